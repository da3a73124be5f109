// (3), (3'), (3b) of margins. Tasks own comparisons.
#include "maxmin/choice_shares.h"

#include "choices.h"
#include "storage.h"

namespace maxmin {
namespace MAXMIN_ISA {
namespace {

constexpr int64_t kBuffer = 8192;       // numbers in a buffer
constexpr int64_t kTaskWork = 1 << 16;  // margins worth a task
constexpr int64_t kTasks = 256;

template <class Real>
struct Job {
  const maxmin_comparisons& data;
  int64_t n_heads;
  const void *margins, *grad_log_prob;
  Real *log_prob, *share;
  Real* out;  // of the backward
  int64_t n_tasks, capacity, buffer;
  Real* buffers;

  int64_t first(int64_t task) const { return data.n_comparisons * task / n_tasks; }
};

template <class T, class Real>
void forward_task(void* context, int64_t task) {
  const Job<Real>& job = *static_cast<const Job<Real>*>(context);
  // Not in place in the output: the vectors' slack would reach into the next task's rows.
  Real *shares = job.buffers + task * 2 * job.buffer, *log_prob = shares + job.buffer;
  const int64_t end = job.first(task + 1);
  int64_t cut;
  for (int64_t c = job.first(task); c < end; c = cut) {
    cut = next_cut<Real>(job.data, c, end, job.capacity);
    const Choices<Real> part = choices_between<Real>(job.data, c, cut);
    const int64_t at = part.first_row * job.n_heads, size = part.n_rows * job.n_heads;
    widen_row(static_cast<const T*>(job.margins) + at, 1, size, shares);
    choose(part, job.n_heads, shares, log_prob);
    memcpy(job.share + at, shares, size * sizeof(Real));
    memcpy(job.log_prob + c * job.n_heads, log_prob, part.count * job.n_heads * sizeof(Real));
  }
}

template <class Real>
void backward_task(void* context, int64_t task) {
  const Job<Real>& job = *static_cast<const Job<Real>*>(context);
  for (int64_t c = job.first(task); c < job.first(task + 1); c++) {
    const Real* grad = static_cast<const Real*>(job.grad_log_prob) + c * job.n_heads;
    for (int64_t i = row_of<Real>(job.data, c); i < row_of<Real>(job.data, c + 1); i++)
      for (int64_t h = 0; h < job.n_heads; h++) job.out[i * job.n_heads + h] = grad[h] * job.share[i * job.n_heads + h];
  }
}

template <class Real>
int run(Job<Real>& job, maxmin_task task, const maxmin_parallel* parallel) {
  if (!(job.data.choice_indptr ? is_indptr(job.data.choice_indptr, job.data.n_comparisons, job.data.n_rows)
                               : job.data.n_rows == job.data.n_comparisons))
    return MAXMIN_BAD_ARGUMENT;
  job.n_tasks = clamp(job.data.n_rows * job.n_heads / kTaskWork, 1, kTasks);
  job.capacity = buffer_rows(job.data, most(16, kBuffer / most(1, job.n_heads)));
  job.buffer = job.out ? 0 : job.capacity * job.n_heads + kSlack;
  Scratch<Real> buffers(job.n_tasks * 2 * job.buffer);
  if (!buffers.data) return MAXMIN_OUT_OF_MEMORY;
  job.buffers = buffers.data;
  run_tasks(parallel, job.n_tasks, task, &job);
  return MAXMIN_OK;
}

template <class T, class Real>
int forward(const maxmin_comparisons& data, int64_t n_heads, const void* margins, void* log_prob, void* share,
            const maxmin_parallel* parallel) {
  Job<Real> job{data, n_heads, margins, nullptr, static_cast<Real*>(log_prob), static_cast<Real*>(share), nullptr};
  return run(job, forward_task<T, Real>, parallel);
}

template <class Real>
int backward(const maxmin_comparisons& data, int64_t n_heads, const void* grad_log_prob, const void* share,
             void* grad_margins, const maxmin_parallel* parallel) {
  // share is only read here.
  Job<Real> job{data,
                n_heads,
                nullptr,
                grad_log_prob,
                nullptr,
                static_cast<Real*>(const_cast<void*>(share)),
                static_cast<Real*>(grad_margins)};
  return run(job, backward_task<Real>, parallel);
}

}  // namespace

int choice_shares_fwd(const maxmin_comparisons* data, int64_t n_heads, const void* margins, int dtype, void* log_prob,
                      void* share, const maxmin_parallel* parallel) {
  switch (dtype) {
    case MAXMIN_F64: return forward<double, double>(*data, n_heads, margins, log_prob, share, parallel);
    case MAXMIN_F32: return forward<float, float>(*data, n_heads, margins, log_prob, share, parallel);
    case MAXMIN_BF16: return forward<bf16, float>(*data, n_heads, margins, log_prob, share, parallel);
    case MAXMIN_F16: return forward<f16, float>(*data, n_heads, margins, log_prob, share, parallel);
  }
  return MAXMIN_BAD_ARGUMENT;
}

int choice_shares_bwd(const maxmin_comparisons* data, int64_t n_heads, const void* grad_log_prob, const void* share,
                      int dtype, void* grad_margins, const maxmin_parallel* parallel) {
  switch (dtype) {
    case MAXMIN_F64: return backward<double>(*data, n_heads, grad_log_prob, share, grad_margins, parallel);
    case MAXMIN_F32: return backward<float>(*data, n_heads, grad_log_prob, share, grad_margins, parallel);
  }
  return MAXMIN_BAD_ARGUMENT;
}

}  // namespace MAXMIN_ISA
}  // namespace maxmin
