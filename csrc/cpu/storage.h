// Between storage types and the accumulation type, for what simd.h's vector loads do not cover: rows of any stride, and
// the way back.
#pragma once
#include "maxmin/common.h"
#include "simd.h"

namespace maxmin {
namespace MAXMIN_ISA {

// Round to nearest, ties to even; NaN stays NaN.
MAXMIN_INLINE void narrow(float x, float* out) { *out = x; }
MAXMIN_INLINE void narrow(double x, double* out) { *out = x; }
MAXMIN_INLINE void narrow(double x, float* out) { *out = (float)x; }
MAXMIN_INLINE void narrow(float x, double* out) { *out = x; }
MAXMIN_INLINE void narrow(float x, bf16* out) {
  uint32_t u;
  memcpy(&u, &x, 4);
  uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  out->bits = (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}
MAXMIN_INLINE void narrow(float x, f16* out) {
  uint32_t u, small;
  memcpy(&u, &x, 4);
  uint32_t sign = (u >> 16) & 0x8000, a = u & 0x7fffffff;
  float shifted = __builtin_fabsf(x) + 0.5f;  // its last bit counts 2^-24, as a subnormal's
  memcpy(&small, &shifted, 4);
  uint32_t normal = (a + 0xc8000fff + ((a >> 13) & 1)) >> 13;
  uint32_t r = a < 0x38800000 ? small - 0x3f000000 : normal;
  r = a >= 0x477ff000 ? 0x7c00 : r;  // 65520 and above
  r = a > 0x7f800000 ? 0x7e00 : r;
  out->bits = (uint16_t)(sign | r);
}
MAXMIN_INLINE void narrow(double x, bf16* out) { narrow((float)x, out); }
MAXMIN_INLINE void narrow(double x, f16* out) { narrow((float)x, out); }

// n elements `stride` apart to a contiguous row of the accumulation type.
template <class T, class Real>
MAXMIN_INLINE void widen_row(const T* from, int64_t stride, int64_t n, Real* to) {
  int64_t i = 0;
  if (stride == 1)
    for (; i + kWidth<Real> <= n; i += kWidth<Real>) store(to + i, load_wide(from + i));
  for (; i < n; i++) to[i] = widen(from[i * stride]);
}
template <class T, class Real>
MAXMIN_INLINE void subtract_row(const T* from, int64_t stride, int64_t n, Real* to) {
  int64_t i = 0;
  if (stride == 1)
    for (; i + kWidth<Real> <= n; i += kWidth<Real>) store(to + i, load(to + i) - load_wide(from + i));
  for (; i < n; i++) to[i] -= widen(from[i * stride]);
}
template <class Real, class T>
MAXMIN_INLINE void narrow_row(const Real* from, int64_t n, T* to) {
  for (int64_t i = 0; i < n; i++) narrow(from[i], to + i);
}

MAXMIN_INLINE void store_narrow(float* to, Vec<float> v) { store(to, v); }
MAXMIN_INLINE void store_narrow(double* to, Vec<double> v) { store(to, v); }
template <class T>
MAXMIN_INLINE void store_narrow(T* to, Vec<float> v) {
  float t[kWidth<float>];
  store(t, v);
  narrow_row(t, kWidth<float>, to);
}

// The same where the storage type is known at run time only: small arrays.
template <class Real>
static void widen_any(const void* from, int dtype, int64_t offset, int64_t stride, int64_t n, Real* to) {
  for (int64_t i = 0; i < n; i++) {
    int64_t at = offset + i * stride;
    switch (dtype) {
      case MAXMIN_F64: to[i] = (Real) static_cast<const double*>(from)[at]; break;
      case MAXMIN_F32: to[i] = static_cast<const float*>(from)[at]; break;
      case MAXMIN_BF16: to[i] = widen(static_cast<const bf16*>(from)[at]); break;
      default: to[i] = widen(static_cast<const f16*>(from)[at]);
    }
  }
}
template <class Real>
static void narrow_any(const Real* from, int64_t n, void* to, int dtype, int64_t offset) {
  switch (dtype) {
    case MAXMIN_F64: narrow_row(from, n, static_cast<double*>(to) + offset); break;
    case MAXMIN_F32: narrow_row(from, n, static_cast<float*>(to) + offset); break;
    case MAXMIN_BF16: narrow_row(from, n, static_cast<bf16*>(to) + offset); break;
    default: narrow_row(from, n, static_cast<f16*>(to) + offset);
  }
}

}  // namespace MAXMIN_ISA
}  // namespace maxmin
