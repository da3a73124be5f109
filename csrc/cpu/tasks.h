// Cutting work into tasks. By its size alone: results must not depend on the number of threads.
#pragma once
#include "maxmin/common.h"

namespace maxmin {
namespace MAXMIN_ISA {

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

static inline void run_tasks(const maxmin_parallel* parallel, int64_t n_tasks, maxmin_task task, void* context) {
  if (parallel && parallel->run && n_tasks > 1) {
    parallel->run(n_tasks, task, context);
  } else {
    for (int64_t t = 0; t < n_tasks; t++) task(context, t);
  }
}

}  // namespace MAXMIN_ISA
}  // namespace maxmin
