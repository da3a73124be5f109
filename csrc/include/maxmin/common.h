// What every operation's C interface shares. Plain C: no torch, no Python, no C++ types.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Storage types of features, rewards, hidden states. The accumulation type is float for all but MAXMIN_F64.
enum maxmin_dtype { MAXMIN_F64 = 0, MAXMIN_F32 = 1, MAXMIN_BF16 = 2, MAXMIN_F16 = 3 };

// Return codes of every entry point.
enum maxmin_status { MAXMIN_OK = 0, MAXMIN_BAD_ARGUMENT = 1, MAXMIN_OUT_OF_MEMORY = 2 };

// Who runs the tasks 0..n_tasks-1 and with how many threads. The caller lends its own pool (the torch binding lends
// torch's), so that two pools never fight over the same cores. `run` returns when every task has returned. Kernels cut
// the work into tasks by its size alone, never by the number of threads: results do not depend on the latter.
typedef void (*maxmin_task)(void* context, int64_t task);
typedef struct maxmin_parallel {
  void (*run)(int64_t n_tasks, maxmin_task task, void* context);  // NULL: in order, on the calling thread
  int n_threads;                                                  // a hint
} maxmin_parallel;

#ifdef __cplusplus
}
#endif
