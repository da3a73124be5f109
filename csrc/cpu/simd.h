// Vectors of one instruction set, by the compiler's vector extensions: the same kernel source serves AVX-512, AVX2 and
// the baseline of any processor. A kernel file is compiled once per set with MAXMIN_ISA (a namespace) and
// MAXMIN_VECTOR_BYTES (64, 32, 16) defined. Everything here is static or always inlined, so that no function compiled
// for a wide set can be picked by the linker for a narrow one.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#define MAXMIN_INLINE static inline __attribute__((always_inline))
#define MAXMIN_UNROLL _Pragma("GCC unroll 64")

namespace maxmin {
namespace MAXMIN_ISA {

template <class T>
struct Simd;
template <>
struct Simd<float> {
  static constexpr int kWidth = MAXMIN_VECTOR_BYTES / 4;
  typedef float vec __attribute__((vector_size(MAXMIN_VECTOR_BYTES)));
  typedef int32_t ivec __attribute__((vector_size(MAXMIN_VECTOR_BYTES)));
  typedef float loose __attribute__((vector_size(MAXMIN_VECTOR_BYTES), aligned(4), may_alias));
};
template <>
struct Simd<double> {
  static constexpr int kWidth = MAXMIN_VECTOR_BYTES / 8;
  typedef double vec __attribute__((vector_size(MAXMIN_VECTOR_BYTES)));
  typedef int64_t ivec __attribute__((vector_size(MAXMIN_VECTOR_BYTES)));
  typedef double loose __attribute__((vector_size(MAXMIN_VECTOR_BYTES), aligned(8), may_alias));
};
template <class T>
using Vec = typename Simd<T>::vec;
template <class T>
using IVec = typename Simd<T>::ivec;
template <class T>
constexpr int kWidth = Simd<T>::kWidth;

template <class T>
MAXMIN_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};
}
template <class T>
MAXMIN_INLINE Vec<T> load(const T* p) {  // any alignment
  return *reinterpret_cast<const typename Simd<T>::loose*>(p);
}
template <class T>
MAXMIN_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Simd<T>::loose*>(p) = v;
}
// Four elements, again and again.
MAXMIN_INLINE Vec<float> load_quad(const float* p) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_broadcast_f32x4(0xffff, _mm_loadu_ps(p));
#elif defined(__AVX__)
  return (Vec<float>)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
#else
  static_assert(kWidth<float> == 4);
  return load(p);
#endif
}
// A vector of doubles from as many elements.
MAXMIN_INLINE Vec<double> load_double(const double* p) { return load(p); }
MAXMIN_INLINE Vec<double> load_double(const float* p) {
  typedef float half __attribute__((vector_size(MAXMIN_VECTOR_BYTES / 2), aligned(4), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const half*>(p), Vec<double>);
}
// The first n lanes (n < width) and `fill` in the others.
template <class T>
MAXMIN_INLINE Vec<T> load_part(const T* p, int n, T fill) {
  Vec<T> v = splat(fill);
  T t[kWidth<T>];
  memcpy(t, &v, sizeof v);
  for (int i = 0; i < n; i++) t[i] = p[i];
  memcpy(&v, t, sizeof v);
  return v;
}
template <class T>
MAXMIN_INLINE void store_part(T* p, Vec<T> v, int n) {
  T t[kWidth<T>];
  memcpy(t, &v, sizeof v);
  for (int i = 0; i < n; i++) p[i] = t[i];
}
// NaN in the second operand wins, as in the x86 instructions.
template <class V>
MAXMIN_INLINE V vmin(V a, V b) {
  return a < b ? a : b;
}
template <class V>
MAXMIN_INLINE V vmax(V a, V b) {
  return a > b ? a : b;
}
// Of the above GCC makes two instructions; of the forms without a mask it says that they read what is not there.
#if defined(__AVX512F__)
MAXMIN_INLINE Vec<float> vmin(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b);
}
MAXMIN_INLINE Vec<float> vmax(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
}
MAXMIN_INLINE Vec<double> vmin(Vec<double> a, Vec<double> b) {
  return (Vec<double>)_mm512_maskz_min_pd(0xff, (__m512d)a, (__m512d)b);
}
MAXMIN_INLINE Vec<double> vmax(Vec<double> a, Vec<double> b) {
  return (Vec<double>)_mm512_maskz_max_pd(0xff, (__m512d)a, (__m512d)b);
}
#endif
template <class T>
MAXMIN_INLINE Vec<T> vabs(Vec<T> x) {
  constexpr int bits = sizeof(T) * 8 - 1;
  IVec<T> i = (IVec<T>)x;
  return (Vec<T>)(i & ~((IVec<T>{} + 1) << bits));
}
template <class T>
MAXMIN_INLINE T reduce_add(Vec<T> v) {
  T s = 0;
  for (int i = 0; i < kWidth<T>; i++) s += v[i];
  return s;
}
template <class T>
MAXMIN_INLINE T reduce_max(Vec<T> v) {
  T s = v[0];
  for (int i = 1; i < kWidth<T>; i++) s = v[i] > s ? v[i] : s;
  return s;
}

// c[0] x^(n-1) + ... + c[n-1]
template <int n>
MAXMIN_INLINE Vec<double> horner(Vec<double> x, const double (&c)[n]) {
  Vec<double> p = splat(c[0]);
  MAXMIN_UNROLL for (int i = 1; i < n; i++) p = p * x + c[i];
  return p;
}

// e^x is a normal number between these.
template <class T>
constexpr T kExpLow = sizeof(T) == 4 ? -87 : -708;
template <class T>
constexpr T kExpHigh = sizeof(T) == 4 ? 88 : 709;
template <class T>
MAXMIN_INLINE Vec<T> not_below(T low, Vec<T> x) {  // NaN stays NaN, here and below
  return vmax(splat(low), x);
}
template <class T>
MAXMIN_INLINE Vec<T> not_above(T high, Vec<T> x) {
  return vmin(splat(high), x);
}

// e^y for kExpLow <= y <= kExpHigh. Relative error 1 ulp or so. Fused multiply-adds by the compiler.
MAXMIN_INLINE Vec<float> exp_between(Vec<float> y) {
  typedef Vec<float> V;
  const V magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  V shifted = y * 1.44269504f + magic;
  V n = shifted - magic;
  V r = (y - n * 0.693145752f) - n * 1.42860677e-6f;
  V p = r * 1.9875691e-4f + 1.3981999e-3f;
  p = p * r + 8.3334519e-3f;
  p = p * r + 4.1665796e-2f;
  p = p * r + 1.6666665e-1f;
  p = p * r + 0.5f;
  p = (p * (r * r) + r) + 1.f;
  IVec<float> power = ((IVec<float>)shifted << 23) + 0x3f800000;  // the magic's own bits fall out of the shift
  return p * (V)power;
}
MAXMIN_INLINE Vec<double> exp_between(Vec<double> y) {
  typedef Vec<double> V;
  const V magic = splat(6755399441055744.0);  // 1.5 * 2^52
  V shifted = y * 1.4426950408889634 + magic;
  V n = shifted - magic;
  V r = (y - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
  // (e^r - 1 - r) / r^2, minimax on |r| <= log(2) / 2: e^r to 1e-17
  V p = horner(r, {2.5100385495510319e-8, 2.7620088445409748e-7, 2.7557268459997065e-6, 2.4801521295954375e-5,
                   1.9841269863053617e-4, 1.3888888917213717e-3, 8.3333333333300618e-3, 4.1666666666624128e-2,
                   1.6666666666666667e-1, 0.5000000000000001});
  p = (p * (r * r) + r) + 1.0;
  IVec<double> power = ((IVec<double>)shifted << 52) + 0x3ff0000000000000LL;
  return p * (V)power;
}
// e^x for x <= kExpHigh; below kExpLow it is 0. NaN stays NaN.
template <class T>
MAXMIN_INLINE Vec<T> exp_or_0(Vec<T> x) {
  Vec<T> e = exp_between(not_above<T>(kExpHigh<T>, not_below<T>(kExpLow<T>, x)));
  return x < kExpLow<T> ? Vec<T>{} : e;
}
MAXMIN_INLINE Vec<float> vexp(Vec<float> x) { return exp_or_0<float>(x); }
MAXMIN_INLINE Vec<double> vexp(Vec<double> x) { return exp_or_0<double>(x); }
// 2 atanh(t) for |t| <= 1/3: a minimax polynomial in t^2, relative error 1e-10 before rounding.
MAXMIN_INLINE Vec<float> atanh2(Vec<float> t) {
  Vec<float> u = t * t, p = u * 0.24300934f + 0.21427658f;
  p = p * u + 0.28616885f;
  p = p * u + 0.39998878f;
  p = p * u + 0.66666676f;
  return t * (p * u + 2.f);
}
MAXMIN_INLINE Vec<double> atanh2(Vec<double> t) {  // to 1e-17
  Vec<double> u = t * t;
  Vec<double> p = horner(
      u, {0.16164938169471339, 0.088003176508687735, 0.12001155182857779, 0.13314135550881163, 0.15385570592912244,
          0.18181789417326448, 0.22222222717801782, 0.28571428567105061, 0.40000000000014597, 0.66666666666666659});
  return t * (p * u + 2.0);
}
// log of a positive normal number; log 0 = -inf, NaN stays NaN.
MAXMIN_INLINE Vec<float> vlog(Vec<float> x) {
  typedef Vec<float> V;
  IVec<float> i = (IVec<float>)x;
  IVec<float> e = (i - 0x3f3504f3) >> 23;  // mantissa in [sqrt(1/2), sqrt 2)
  V m = (V)(i - (e << 23));
  V t = (m - 1.f) / (m + 1.f);
  V r = __builtin_convertvector(e, V) * 0.693147180f + atanh2(t);
  r = x == 0.f ? splat(-__builtin_inff()) : r;
  return x < __builtin_inff() ? r : x;
}
MAXMIN_INLINE Vec<double> vlog(Vec<double> x) {
  typedef Vec<double> V;
  IVec<double> i = (IVec<double>)x;
  IVec<double> e = (i - 0x3fe6a09e667f3bcdLL) >> 52;
  V m = (V)(i - (e << 52));
  V t = (m - 1.0) / (m + 1.0), u = t * t;  // |t| <= 0.172: fewer terms than atanh2 has
  V p = horner(u, {0.14617807153417325, 0.15331611722055008, 0.18182892432536871, 0.22222211089379496,
                   0.28571428626253838, 0.39999999999898891, 0.66666666666666697});
  V r = __builtin_convertvector(e, V) * 0.69314718055994531 + t * (p * u + 2.0);
  r = x == 0.0 ? splat(-__builtin_inf()) : r;
  return x < __builtin_inf() ? r : x;
}
// log(1 + x) for x >= 0, as precise where x is small. NaN stays NaN.
template <class T>
MAXMIN_INLINE Vec<T> vlog1p(Vec<T> x) {
  constexpr int mantissa = sizeof(T) == 4 ? 23 : 52;
  const auto half_root = sizeof(T) == 4 ? 0x3f3504f3 : 0x3fe6a09e667f3bcdLL;
  typedef decltype(IVec<T>{}[0] + 0) I;
  const Vec<T> u = x + T(1);
  const IVec<T> i = (IVec<T>)u, e = (i - (I)half_root) >> mantissa;
  const Vec<T> f = e == 0 ? x : (Vec<T>)(i - (e << mantissa)) - T(1);  // of 1 + f in [sqrt(1/2), sqrt 2)
  const Vec<T> r = __builtin_convertvector(e, Vec<T>) * T(0.69314718055994531) + atanh2(f / (f + T(2)));
  return x == x ? r : x;
}
// (3), (3') of a pair: l = log sigma(m), s = sigma(-m). One exponential, one division.
template <class T>
MAXMIN_INLINE void log_sigmoid(Vec<T> m, Vec<T>& l, Vec<T>& s) {
  typedef Vec<T> V;
  V e = vexp(-vabs<T>(m)), e1 = e + T(1), e2 = e + T(2);
  V inv = T(1) / (e1 * e2), i1 = inv * e2;
  l = vmin(m, V{}) - atanh2(e * inv * e1);  // log1p(e) = 2 atanh(e / (2 + e))
  l = m != m ? m : l;
  s = m < T(0) ? i1 : e * i1;
}
// s of log_sigmoid alone.
template <class T>
MAXMIN_INLINE Vec<T> sigmoid_of_minus(Vec<T> m) {
  return T(1) / (exp_between(not_above<T>(kExpHigh<T>, not_below<T>(kExpLow<T>, m))) + T(1));
}

// ---- storage types: widen one vector of the accumulation type
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
template <class T>
struct Accumulate {
  typedef float type;
};
template <>
struct Accumulate<double> {
  typedef double type;
};
MAXMIN_INLINE float widen(float x) { return x; }
MAXMIN_INLINE double widen(double x) { return x; }
MAXMIN_INLINE float widen(bf16 x) {
  uint32_t u = (uint32_t)x.bits << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
MAXMIN_INLINE float widen(f16 x) {  // exact, subnormals, infinities and NaN included
  uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, rest = (uint32_t)(x.bits & 0x7fff) << 13;
  uint32_t big = rest >= 0x0f800000 ? rest + 0x70000000 : rest + 0x38000000;
  float f;
  if (rest < 0x00800000) {
    f = (float)(int32_t)(x.bits & 0x7fff) * 5.9604644775390625e-8f;
    memcpy(&big, &f, 4);
  }
  big |= sign;
  memcpy(&f, &big, 4);
  return f;
}
template <class T>
MAXMIN_INLINE Vec<T> load_wide(const T* p) {
  return load(p);
}
MAXMIN_INLINE Vec<float> load_wide(const bf16* p) {
  typedef uint16_t half __attribute__((vector_size(MAXMIN_VECTOR_BYTES / 2), aligned(2), may_alias));
  return (Vec<float>)(__builtin_convertvector(*reinterpret_cast<const half*>(p), IVec<float>) << 16);
}
MAXMIN_INLINE Vec<float> load_wide(const f16* p) {
#if defined(__F16C__) || defined(__ARM_FP16_FORMAT_IEEE)
  typedef _Float16 half __attribute__((vector_size(MAXMIN_VECTOR_BYTES / 2), aligned(2), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const half*>(p), Vec<float>);
#else
  float t[kWidth<float>];
  for (int i = 0; i < kWidth<float>; i++) t[i] = widen(p[i]);
  return load(t);
#endif
}

}  // namespace MAXMIN_ISA
}  // namespace maxmin
