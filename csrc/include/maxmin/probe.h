// What this processor can do at best, for the floors of benchmarks. Each call runs on the calling thread.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Reads `bytes` bytes once. The result depends on all of them, so that no read is left out.
int64_t maxmin_probe_read(const void* data, int64_t bytes);

// Does float32 multiply-adds on registers alone, `rounds` times over. Returns how many flops that was.
int64_t maxmin_probe_fma(int64_t rounds);

#ifdef __cplusplus
}
#endif
