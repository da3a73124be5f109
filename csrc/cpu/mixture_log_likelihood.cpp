// (3)-(6) and (10) from margins. A task owns annotators; their comparisons go through a buffer that stays in the
// nearest cache, several short annotators at once or one long one piece by piece. Plain pairs go without it.
#include "maxmin/mixture_log_likelihood.h"

#include "choices.h"
#include "pairs.h"
#include "posterior.h"
#include "storage.h"

namespace maxmin {
namespace MAXMIN_ISA {
namespace {

constexpr int64_t kBuffer = 8192;       // numbers in a buffer
constexpr int64_t kTaskWork = 1 << 15;  // margins worth a task
constexpr int64_t kTasks = 64;

template <class T, class Real>
struct Job {
  const maxmin_comparisons& data;
  const maxmin_mixtures& mixtures;
  const T* margins;
  Real *log_resp, *z;
  const Real* grad_z;
  T* grad_margins;
  bool flat;      // without the buffer
  int64_t apart;  // vectors, where flat
  int64_t n_tasks, capacity;
  Real* reals;      // (n_tasks) of two buffers, or a factor, and a row
  double* doubles;  // (n_tasks) of joint or grad_log_weights, resp, evidence, total, sums

  int64_t first(int64_t task) const {  // annotator
    if (task == n_tasks) return data.n_annotators;
    return lower_bound(data.indptr, data.n_annotators, data.n_comparisons * task / n_tasks);
  }
  int64_t buffer() const { return capacity * mixtures.n_heads + kSlack; }
  int64_t task_reals() const { return 2 * buffer() + mixtures.n_heads + kSlack; }
  int64_t task_doubles() const {
    return 2 * (mixtures.n_heads + mixtures.n_mixtures + 2 * kSlack) + mixtures.n_heads * kWidth<Real>;
  }
};

template <class T, class Real>
void forward_task(void* context, int64_t task) {
  const Job<T, Real>& job = *static_cast<const Job<T, Real>*>(context);
  const maxmin_comparisons& data = job.data;
  const int64_t n_heads = job.mixtures.n_heads, n_mixtures = job.mixtures.n_mixtures;
  const Mixtures mixtures{n_mixtures, n_heads, job.mixtures.mixture_indptr, job.mixtures.temperature,
                          job.mixtures.hard != 0};
  const Real* log_weights = static_cast<const Real*>(job.mixtures.log_weights);
  Real *shares = job.reals + task * job.task_reals(), *log_prob = shares + job.buffer();
  double *joint = job.doubles + task * job.task_doubles(), *resp = joint + n_heads + kSlack;
  double *evidence = resp + n_heads + kSlack, *total = evidence + n_mixtures + kSlack;
  double* sums = total + n_mixtures + kSlack;

  int64_t a = job.first(task);
  const int64_t last = job.first(task + 1);
  auto start = [&] {
    for (int64_t h = 0; h < n_heads; h++) joint[h] = log_weights[h];
  };
  auto finish = [&] {
    posterior(mixtures, joint, resp, evidence, total);
    for (int64_t g = 0; g < n_mixtures; g++) job.z[a * n_mixtures + g] = (Real)evidence[g];
    for (int64_t h = 0; h < n_heads; h++) job.log_resp[a * n_heads + h] = (Real)joint[h];
    a++;
    start();
  };
  start();
  if (job.flat) {
    const T* limit = job.margins + data.indptr[last] * n_heads;
    while (a < last) {
      const T* m = job.margins + data.indptr[a] * n_heads;
      const int64_t n = (data.indptr[a + 1] - data.indptr[a]) * n_heads;
      add_up_pairs<Real>(m, n, limit, n_heads, job.apart, sums, joint, [](int64_t, int64_t, Vec<Real>, Vec<Real>) {});
      finish();
    }
    return;
  }
  int64_t cut;
  for (int64_t c = data.indptr[a]; c < data.indptr[last]; c = cut) {
    cut = next_cut<Real>(data, c, data.indptr[last], job.capacity);
    const Choices<Real> part = choices_between<Real>(data, c, cut);
    widen_row(job.margins + part.first_row * n_heads, 1, part.n_rows * n_heads, shares);
    choose(part, n_heads, shares, log_prob);
    for (int64_t from = c; from < cut;) {
      while (data.indptr[a + 1] <= from) finish();
      const int64_t to = least(cut, data.indptr[a + 1]);
      add_up(part, n_heads, log_prob, from - c, to - c, joint);
      from = to;
    }
  }
  while (a < last) finish();
}

template <class T, class Real>
void backward_task(void* context, int64_t task) {
  const Job<T, Real>& job = *static_cast<const Job<T, Real>*>(context);
  const maxmin_comparisons& data = job.data;
  const int64_t n_heads = job.mixtures.n_heads, n_mixtures = job.mixtures.n_mixtures;
  const int64_t* mixture_indptr = job.mixtures.mixture_indptr;
  Real *shares = job.reals + task * job.task_reals(), *log_prob = shares + job.buffer();
  Real *scale = log_prob + job.buffer(), *factor = shares;
  double* grad_log_weights = job.doubles + task * job.task_doubles();

  int64_t a = job.first(task) - 1;
  const int64_t last = job.first(task + 1);
  auto next = [&] {
    a++;
    const Real *log_resp = job.log_resp + a * n_heads, *grad = job.grad_z + a * n_mixtures;
    memcpy(scale, log_resp, n_heads * sizeof(Real));
    for (int64_t h = 0; h < n_heads; h += kWidth<Real>) store(scale + h, vexp(load(scale + h)));
    for (int64_t g = 0; g < n_mixtures; g++)
      for (int64_t h = mixture_indptr[g]; h < mixture_indptr[g + 1]; h++) {
        scale[h] *= grad[g];
        grad_log_weights[h] += scale[h];
      }
  };
  memset(grad_log_weights, 0, n_heads * sizeof(double));
  if (job.flat) {
    const T* limit = job.margins + data.indptr[last] * n_heads;
    while (a + 1 < last) {
      next();
      for (int64_t k = 0, h = 0; k < job.apart * kWidth<Real>; k++, h = h + 1 == n_heads ? 0 : h + 1)
        factor[k] = scale[h];
      const int64_t begin = data.indptr[a] * n_heads, n = data.indptr[a + 1] * n_heads - begin;
      weigh_pairs<Real>(job.margins + begin, n, limit, job.apart, factor, job.grad_margins + begin);
    }
    return;
  }
  const int64_t end = data.indptr[last];
  int64_t cut;
  for (int64_t c = data.indptr[a + 1]; c < end; c = cut) {
    cut = next_cut<Real>(data, c, end, job.capacity);
    const Choices<Real> part = choices_between<Real>(data, c, cut);
    widen_row(job.margins + part.first_row * n_heads, 1, part.n_rows * n_heads, shares);
    choose_shares(part, n_heads, shares, log_prob);
    for (int64_t from = c; from < cut;) {
      while (data.indptr[a + 1] <= from) next();
      const int64_t to = least(cut, data.indptr[a + 1]);
      weigh(part, n_heads, scale, from - c, to - c, shares);
      from = to;
    }
    narrow_row(shares, part.n_rows * n_heads, job.grad_margins + part.first_row * n_heads);
  }
  while (a + 1 < last) next();
}

template <class T, class Real>
int run(Job<T, Real>& job, Real* grad_log_weights, const maxmin_parallel* parallel) {
  const int64_t n_heads = job.mixtures.n_heads;
  if (!is_indptr(job.data.indptr, job.data.n_annotators, job.data.n_comparisons) ||
      !is_indptr(job.mixtures.mixture_indptr, job.mixtures.n_mixtures, n_heads) ||
      !(job.data.choice_indptr ? is_indptr(job.data.choice_indptr, job.data.n_comparisons, job.data.n_rows)
                               : job.data.n_rows == job.data.n_comparisons))
    return MAXMIN_BAD_ARGUMENT;
  job.n_tasks = clamp((job.data.n_rows + job.data.n_annotators) * n_heads / kTaskWork, 1, kTasks);
  // A product of fewer than two factors gains nothing over the logarithm of each.
  job.apart = period<Real>(n_heads);
  job.flat = are_plain_pairs(job.data) &&
             (grad_log_weights || job.data.n_rows * n_heads >= 2 * job.apart * kWidth<Real> * job.data.n_annotators);
  job.capacity = job.flat ? kWidth<Real> : buffer_rows(job.data, most(16, kBuffer / most(1, n_heads)));
  Scratch<Real> reals(job.n_tasks * job.task_reals());
  Scratch<double> doubles(job.n_tasks * job.task_doubles());
  if (!reals.data || !doubles.data) return MAXMIN_OUT_OF_MEMORY;
  job.reals = reals.data;
  job.doubles = doubles.data;
  if (!grad_log_weights) {
    run_tasks(parallel, job.n_tasks, forward_task<T, Real>, &job);
    return MAXMIN_OK;
  }
  run_tasks(parallel, job.n_tasks, backward_task<T, Real>, &job);
  for (int64_t h = 0; h < n_heads; h++) {
    double sum = 0;
    for (int64_t t = 0; t < job.n_tasks; t++) sum += doubles.data[t * job.task_doubles() + h];
    grad_log_weights[h] = (Real)sum;
  }
  return MAXMIN_OK;
}

template <class T, class Real>
int forward(const maxmin_comparisons& data, const maxmin_mixtures& mixtures, const void* margins, void* z,
            void* log_resp, const maxmin_parallel* parallel) {
  Job<T, Real> job{data, mixtures, static_cast<const T*>(margins), static_cast<Real*>(log_resp), static_cast<Real*>(z)};
  return run<T, Real>(job, nullptr, parallel);
}

template <class T, class Real>
int backward(const maxmin_comparisons& data, const maxmin_mixtures& mixtures, const void* margins, const void* log_resp,
             const void* grad_z, void* grad_margins, void* grad_log_weights, const maxmin_parallel* parallel) {
  // log_resp is only read here.
  Job<T, Real> job{data,
                   mixtures,
                   static_cast<const T*>(margins),
                   static_cast<Real*>(const_cast<void*>(log_resp)),
                   nullptr,
                   static_cast<const Real*>(grad_z),
                   static_cast<T*>(grad_margins)};
  return run<T, Real>(job, static_cast<Real*>(grad_log_weights), parallel);
}

}  // namespace

int mixture_log_likelihood_fwd(const maxmin_comparisons* data, const maxmin_mixtures* mixtures, const void* margins,
                               int dtype, void* z, void* log_resp, const maxmin_parallel* parallel) {
  switch (dtype) {
    case MAXMIN_F64: return forward<double, double>(*data, *mixtures, margins, z, log_resp, parallel);
    case MAXMIN_F32: return forward<float, float>(*data, *mixtures, margins, z, log_resp, parallel);
    case MAXMIN_BF16: return forward<bf16, float>(*data, *mixtures, margins, z, log_resp, parallel);
    case MAXMIN_F16: return forward<f16, float>(*data, *mixtures, margins, z, log_resp, parallel);
  }
  return MAXMIN_BAD_ARGUMENT;
}

int mixture_log_likelihood_bwd(const maxmin_comparisons* data, const maxmin_mixtures* mixtures, const void* margins,
                               int dtype, const void* log_resp, const void* grad_z, void* grad_margins,
                               void* grad_log_weights, const maxmin_parallel* parallel) {
#define MAXMIN_BACKWARD(T, Real) \
  backward<T, Real>(*data, *mixtures, margins, log_resp, grad_z, grad_margins, grad_log_weights, parallel)
  switch (dtype) {
    case MAXMIN_F64: return MAXMIN_BACKWARD(double, double);
    case MAXMIN_F32: return MAXMIN_BACKWARD(float, float);
    case MAXMIN_BF16: return MAXMIN_BACKWARD(bf16, float);
    case MAXMIN_F16: return MAXMIN_BACKWARD(f16, float);
  }
#undef MAXMIN_BACKWARD
  return MAXMIN_BAD_ARGUMENT;
}

}  // namespace MAXMIN_ISA
}  // namespace maxmin
