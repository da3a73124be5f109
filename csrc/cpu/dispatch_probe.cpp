// The C interface of probe.h: the best instruction set that this processor has.
#include "isa.h"
#include "maxmin/probe.h"

MAXMIN_DECLARE(int64_t probe_read(const void* data, int64_t bytes))
MAXMIN_DECLARE(int64_t probe_fma(int64_t rounds))

extern "C" int64_t maxmin_probe_read(const void* data, int64_t bytes) {
  return MAXMIN_DISPATCH(probe_read, data, bytes);
}
extern "C" int64_t maxmin_probe_fma(int64_t rounds) { return MAXMIN_DISPATCH(probe_fma, rounds); }
