// Read bandwidth and the peak of multiply-adds, with the vectors that the kernels use.
#include "maxmin/probe.h"

#include "simd.h"

namespace maxmin {
namespace MAXMIN_ISA {

int64_t probe_read(const void* data, int64_t bytes) {
  constexpr int kLanes = 8;
  constexpr int64_t kBlock = kLanes * MAXMIN_VECTOR_BYTES;
  const char* p = static_cast<const char*>(data);
  IVec<float> sum[kLanes];
  MAXMIN_UNROLL for (int i = 0; i < kLanes; i++) sum[i] = IVec<float>{};
  int64_t at = 0;
  for (; at + kBlock <= bytes; at += kBlock) {
    MAXMIN_UNROLL for (int64_t line = 0; line < kBlock; line += 64) __builtin_prefetch(p + at + 4096 + line, 0, 2);
    MAXMIN_UNROLL for (int i = 0; i < kLanes; i++) sum[i] ^=
        (IVec<float>)load(reinterpret_cast<const float*>(p + at + i * MAXMIN_VECTOR_BYTES));
  }
  MAXMIN_UNROLL for (int i = 1; i < kLanes; i++) sum[0] ^= sum[i];
  int64_t result = 0;
  for (int i = 0; i < kWidth<float>; i++) result ^= sum[0][i];
  for (; at < bytes; at++) result ^= p[at];
  return result;
}

int64_t probe_fma(int64_t rounds) {
  constexpr int kChains = 12;  // enough to hide the latency of two units
  volatile float one = 1.0f, small = 1e-9f;
  const Vec<float> a = splat(float(one)), b = splat(float(small));
  Vec<float> sum[kChains];
  MAXMIN_UNROLL for (int i = 0; i < kChains; i++) sum[i] = splat(float(i));
  for (int64_t r = 0; r < rounds; r++) {
    MAXMIN_UNROLL for (int i = 0; i < kChains; i++) sum[i] = sum[i] * a + b;
  }
  MAXMIN_UNROLL for (int i = 1; i < kChains; i++) sum[0] += sum[i];
  volatile float sink = reduce_add<float>(sum[0]);
  (void)sink;
  return rounds * kChains * kWidth<float> * 2;
}

}  // namespace MAXMIN_ISA
}  // namespace maxmin
