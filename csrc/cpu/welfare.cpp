// Welfare of many rows of utilities, and the reduction of a batch of rewards to one such row.
#include "maxmin/welfare.h"

#include <stdlib.h>

#include "storage.h"
#include "tasks.h"
#include "welfare_row.h"

namespace maxmin {
namespace MAXMIN_ISA {
namespace {

constexpr int64_t kTasks = 64;      // at most: every task has its own scratch memory
constexpr int64_t kWork = 1 << 13;  // numbers worth a task

void fill_shares(const maxmin_welfare& w, double* eta) {
  for (int64_t k = 0; k < w.n_groups; k++) eta[k] = w.group_weights ? w.group_weights[k] : 1.0 / (double)w.n_groups;
}

int real_of(int dtype) { return dtype == MAXMIN_F64 ? MAXMIN_F64 : MAXMIN_F32; }

// A value and its weights to row i of the outputs; undefined ones are NaN.
void put(double value, Scratch& s, int64_t n, int real, int64_t i, void* values, void* weights) {
  if (value != value)
    for (int64_t k = 0; k < n; k++) s.weights[k] = value;
  narrow_any(&value, 1, values, real, i);
  narrow_any(s.weights, n, weights, real, i * n);
}

struct Rows {
  maxmin_welfare welfare;
  maxmin_matrix utilities;
  void *value, *weights;
  double* memory;
  int64_t task_rows;
};

void welfare_task(void* context, int64_t task) {
  const Rows& f = *static_cast<const Rows*>(context);
  const maxmin_matrix& u = f.utilities;
  const int64_t n = f.welfare.n_groups, end = least(u.n_rows, (task + 1) * f.task_rows);
  Scratch s = scratch_of(f.memory + task * kScratchArrays * n, n);
  fill_shares(f.welfare, s.eta);
  for (int64_t i = task * f.task_rows; i < end; i++) {
    widen_any(u.data, u.dtype, i * u.stride_row, u.stride_column, n, s.u);
    put(welfare_row(f.welfare, s), s, n, real_of(u.dtype), i, f.value, f.weights);
  }
}

// What is there of a batch of rewards.
template <class T>
struct Batch {
  maxmin_matrix rewards;
  const uint8_t* mask;
  int64_t mask_stride_row, mask_stride_column, task_rows, n_tasks;
  double *sum, *count;       // (n_tasks, n_columns)
  const double* by_utility;  // (n_columns) gradient by each reward that is there
  T* grad_rewards;

  const T* at(int64_t i, int64_t k) const {
    return static_cast<const T*>(rewards.data) + i * rewards.stride_row + k * rewards.stride_column;
  }
  bool there(int64_t i, int64_t k, double x) const {
    return x == x && (!mask || mask[i * mask_stride_row + k * mask_stride_column]);
  }
};

template <class T>
void sum_task(void* context, int64_t task) {
  const Batch<T>& f = *static_cast<const Batch<T>*>(context);
  const int64_t n = f.rewards.n_columns, end = least(f.rewards.n_rows, (task + 1) * f.task_rows);
  double *sum = f.sum + task * n, *count = f.count + task * n;
  for (int64_t i = task * f.task_rows; i < end; i++)
    for (int64_t k = 0; k < n; k++) {
      const double x = widen(*f.at(i, k));
      const bool there = f.there(i, k, x);
      sum[k] += there ? x : 0.0;
      count[k] += there;
    }
}

template <class T>
void gradient_task(void* context, int64_t task) {
  const Batch<T>& f = *static_cast<const Batch<T>*>(context);
  const int64_t n = f.rewards.n_columns, end = least(f.rewards.n_rows, (task + 1) * f.task_rows);
  for (int64_t i = task * f.task_rows; i < end; i++)
    for (int64_t k = 0; k < n; k++)
      narrow(f.there(i, k, widen(*f.at(i, k))) ? f.by_utility[k] : 0.0, f.grad_rewards + i * n + k);
}

// Sums and counts of each column, in the first row of f.sum and f.count, always added in the same order.
template <class T>
bool sum_columns(Batch<T>& f, const maxmin_parallel* parallel) {
  const int64_t n = f.rewards.n_columns;
  f.task_rows = most(most(1, ceil_div(kWork, most(1, n))), ceil_div(f.rewards.n_rows, kTasks));
  f.n_tasks = ceil_div(f.rewards.n_rows, f.task_rows);
  const int64_t size = most(1, f.n_tasks) * most(1, n);
  f.sum = static_cast<double*>(calloc(2 * size, sizeof(double)));
  if (!f.sum) return false;
  f.count = f.sum + size;
  run_tasks(parallel, f.n_tasks, sum_task<T>, &f);
  for (int64_t t = 1; t < f.n_tasks; t++)
    for (int64_t k = 0; k < n; k++) {
      f.sum[k] += f.sum[t * n + k];
      f.count[k] += f.count[t * n + k];
    }
  return true;
}

template <class T>
int reduce(const maxmin_welfare& welfare, Batch<T> f, const void* running, void* value, void* weights, void* utilities,
           const maxmin_parallel* parallel) {
  const int64_t n = welfare.n_groups;
  const int real = real_of(f.rewards.dtype);
  double* memory = static_cast<double*>(calloc(most(1, n) * kScratchArrays, sizeof(double)));
  const bool summed = memory && sum_columns(f, parallel);
  if (summed) {
    Scratch s = scratch_of(memory, n);
    fill_shares(welfare, s.eta);
    if (running) widen_any(running, real, 0, 1, n, s.u);
    for (int64_t k = 0; k < n; k++)
      if (f.count[k] > 0) {
        s.u[k] = f.sum[k] / f.count[k];
      } else if (!running) {
        s.u[k] = NAN;
      }
    narrow_any(s.u, n, utilities, real, 0);
    widen_any(utilities, real, 0, 1, n, s.u);  // the welfare of the utilities as they are given out
    put(n > 0 ? welfare_row(welfare, s) : NAN, s, n, real, 0, value, weights);
  }
  free(f.sum);
  free(memory);
  return summed ? MAXMIN_OK : MAXMIN_OUT_OF_MEMORY;
}

template <class T>
int reduce_gradient(Batch<T> f, const void* grad_value, const void* grad_utilities, const void* weights,
                    void* grad_rewards, const maxmin_parallel* parallel) {
  const int64_t n = f.rewards.n_columns;
  const int real = real_of(f.rewards.dtype);
  const bool summed = sum_columns(f, parallel);
  if (summed) {
    double upstream;
    widen_any(grad_value, real, 0, 1, 1, &upstream);
    for (int64_t k = 0; k < n; k++) {
      double weight, direct;
      widen_any(weights, real, k, 1, 1, &weight);
      widen_any(grad_utilities, real, k, 1, 1, &direct);
      f.sum[k] = (upstream * weight + direct) / f.count[k];
    }
    f.by_utility = f.sum;
    f.grad_rewards = static_cast<T*>(grad_rewards);
    run_tasks(parallel, f.n_tasks, gradient_task<T>, &f);
  }
  free(f.sum);
  return summed ? MAXMIN_OK : MAXMIN_OUT_OF_MEMORY;
}

template <class T>
Batch<T> batch_of(const maxmin_matrix& rewards, const uint8_t* mask, int64_t stride_row, int64_t stride_column) {
  return {rewards, mask, stride_row, stride_column, 0, 0, nullptr, nullptr, nullptr, nullptr};
}

}  // namespace

int welfare_fwd(const maxmin_welfare* welfare, const maxmin_matrix* utilities, void* value, void* weights,
                const maxmin_parallel* parallel) {
  const int64_t n = welfare->n_groups;
  if (n < 1) return MAXMIN_BAD_ARGUMENT;
  Rows f{*welfare, *utilities, value, weights, nullptr, 0};
  f.task_rows = most(ceil_div(kWork, n * n), ceil_div(utilities->n_rows, kTasks));
  const int64_t n_tasks = ceil_div(utilities->n_rows, f.task_rows);
  f.memory = static_cast<double*>(malloc(most(1, n_tasks) * kScratchArrays * n * sizeof(double)));
  if (!f.memory) return MAXMIN_OUT_OF_MEMORY;
  run_tasks(parallel, n_tasks, welfare_task, &f);
  free(f.memory);
  return MAXMIN_OK;
}

int reduce_fwd(const maxmin_welfare* welfare, const maxmin_matrix* rewards, const uint8_t* mask,
               int64_t mask_stride_row, int64_t mask_stride_column, const void* running, void* value, void* weights,
               void* utilities, const maxmin_parallel* parallel) {
#define MAXMIN_REDUCE(T)                                                                                         \
  reduce<T>(*welfare, batch_of<T>(*rewards, mask, mask_stride_row, mask_stride_column), running, value, weights, \
            utilities, parallel)
  switch (rewards->dtype) {
    case MAXMIN_F64: return MAXMIN_REDUCE(double);
    case MAXMIN_F32: return MAXMIN_REDUCE(float);
    case MAXMIN_BF16: return MAXMIN_REDUCE(bf16);
    case MAXMIN_F16: return MAXMIN_REDUCE(f16);
  }
#undef MAXMIN_REDUCE
  return MAXMIN_BAD_ARGUMENT;
}

int reduce_bwd(const maxmin_matrix* rewards, const uint8_t* mask, int64_t mask_stride_row, int64_t mask_stride_column,
               const void* grad_value, const void* grad_utilities, const void* weights, void* grad_rewards,
               const maxmin_parallel* parallel) {
#define MAXMIN_GRADIENT(T)                                                                                         \
  reduce_gradient<T>(batch_of<T>(*rewards, mask, mask_stride_row, mask_stride_column), grad_value, grad_utilities, \
                     weights, grad_rewards, parallel)
  switch (rewards->dtype) {
    case MAXMIN_F64: return MAXMIN_GRADIENT(double);
    case MAXMIN_F32: return MAXMIN_GRADIENT(float);
    case MAXMIN_BF16: return MAXMIN_GRADIENT(bf16);
    case MAXMIN_F16: return MAXMIN_GRADIENT(f16);
  }
#undef MAXMIN_GRADIENT
  return MAXMIN_BAD_ARGUMENT;
}

}  // namespace MAXMIN_ISA
}  // namespace maxmin
