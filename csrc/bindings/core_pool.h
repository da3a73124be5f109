// Threads of maxmin_kernels._core, where there is no torch whose pool could be lent.
#pragma once
#include "maxmin/common.h"

namespace maxmin::core {

// Threads a call uses: MAXMIN_NUM_THREADS, else the processors that this process may run on.
int num_threads();
// The pool, to lend to a kernel. Made at first use. One call has it at a time; another, and one from a task, runs on
// its own thread: results do not depend on that.
const maxmin_parallel* parallel();

}  // namespace maxmin::core
