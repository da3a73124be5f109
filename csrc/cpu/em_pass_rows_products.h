// The two products of a tile of rows: margins m = x w^T (2), and the gradient's sums g += c^T x (8). They read x once
// each, the second time from cache, and meanwhile ask memory for the rows of the next tile.
#pragma once
#include <utility>

#include "segments.h"
#include "storage.h"

namespace maxmin {
namespace MAXMIN_ISA {

constexpr bool kManyRegisters = MAXMIN_VECTOR_BYTES == 64;  // 32 of them, else 16
constexpr int kDots = kManyRegisters ? 16 : 8;              // sums of dot_rows that are held in registers
// Rows that are walked through side by side. Where they lie 4096 bytes apart their lines share a set of the nearest
// cache, which has room for eight.
constexpr int kRowsAtOnce = 8;

// ---- how a row of storage type X is read: vector number u of the group of kGroup vectors at p
template <class X>
struct Rows {
  typedef typename Accumulate<X>::type Real;
  static constexpr int kGroup = 1;
  static constexpr int kFeatures = kGroup * kWidth<Real>;  // of a group
  MAXMIN_INLINE Vec<Real> read(const X* p, int) { return load_wide(p); }
  // Where feature d of a group stands among the lanes.
  MAXMIN_INLINE int64_t lane(int64_t d) { return d; }
};
// bfloat16 by two: even features of a group, then odd ones. One shift or mask a vector instead of a widening load.
template <>
struct Rows<bf16> {
  typedef float Real;
  static constexpr int kGroup = 2;
  static constexpr int kFeatures = kGroup * kWidth<float>;
  MAXMIN_INLINE Vec<float> read(const bf16* p, int u) {
    typedef uint32_t pairs __attribute__((vector_size(MAXMIN_VECTOR_BYTES)));
    typedef uint32_t loose __attribute__((vector_size(MAXMIN_VECTOR_BYTES), aligned(2), may_alias));
    pairs v = *reinterpret_cast<const loose*>(p);
    return (Vec<float>)(u ? v & 0xffff0000u : v << 16);
  }
  MAXMIN_INLINE int64_t lane(int64_t d) {
    int64_t in_group = d % kFeatures;
    return d - in_group + (in_group & 1) * kWidth<float> + in_group / 2;
  }
};

// Walks through the rows of the next tile, asking memory for them a few lines at a time.
struct Ahead {
  const char* at;
  template <int64_t lines>
  MAXMIN_INLINE void ask(const char*& at) {
    MAXMIN_UNROLL for (int64_t i = 0; i < lines; i++) __builtin_prefetch(at + i * kLine, 0, 2);
    at += lines * kLine;
  }
  static constexpr int64_t kLine = 64;
};
// Lines that hold half of n values: the margins ask for one half of the rows, the gradient for the other.
template <class X>
constexpr int64_t half_of(int64_t n) {
  return (n * (int64_t)sizeof(X) + 2 * Ahead::kLine - 1) / (2 * Ahead::kLine);
}

// ---- sums over lanes
template <class T, int... I>
MAXMIN_INLINE Vec<T> pair_sums(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (2 * I)...) + __builtin_shufflevector(a, b, (2 * I + 1)...);
#else
  return __builtin_shuffle(a, b, IVec<T>{(2 * I)...}) + __builtin_shuffle(a, b, IVec<T>{(2 * I + 1)...});
#endif
}
// Lane i < n: the sum of the lanes of v[i]; n is a power of two up to the width.
template <class T, int n>
MAXMIN_INLINE Vec<T> sum_each(Vec<T>* v) {
  constexpr std::make_integer_sequence<int, kWidth<T>> lanes{};
  MAXMIN_UNROLL for (int live = n; live > 1; live /= 2) MAXMIN_UNROLL for (int i = 0; i < live / 2; i++) v[i] =
      pair_sums<T>(v[2 * i], v[2 * i + 1], lanes);
  MAXMIN_UNROLL for (int done = n; done < kWidth<T>; done *= 2) v[0] = pair_sums<T>(v[0], v[0], lanes);
  return v[0];
}

// ---- margins of few heads: lanes are features. w (kHeads, n), n whole groups. Whole vectors are written at m.
template <class X, int kRows, int kHeads, class Real = typename Rows<X>::Real>
MAXMIN_INLINE void dot_rows(const X* x, int64_t stride, const Real* w, int64_t n, Real* m, Ahead& ahead) {
  typedef Rows<X> R;
  constexpr int W = kWidth<Real>, kSums = kRows * kHeads;
  Vec<Real> sum[kSums];
  MAXMIN_UNROLL for (int i = 0; i < kSums; i++) sum[i] = Vec<Real>{};
  const char* at = ahead.at;
  for (int64_t d = 0; d < n; d += R::kFeatures) {
    Ahead::ask<half_of<X>(kRows * R::kFeatures)>(at);
    MAXMIN_UNROLL for (int u = 0; u < R::kGroup; u++) {
      Vec<Real> wh[kHeads];
      MAXMIN_UNROLL for (int h = 0; h < kHeads; h++) wh[h] = load(w + h * n + d + u * W);
      MAXMIN_UNROLL for (int r = 0; r < kRows; r++) {
        Vec<Real> xr = R::read(x + r * stride + d, u);
        MAXMIN_UNROLL for (int h = 0; h < kHeads; h++) sum[r * kHeads + h] += xr * wh[h];
      }
    }
  }
  ahead.at = at;
  MAXMIN_UNROLL for (int i = 0; i < kSums; i += W) store(m + i, sum_each < Real, kSums<W ? kSums : W>(sum + i));
}
template <class X, int kRows, int kHeads, class Real>
MAXMIN_INLINE int64_t dot_all(const X* x, int64_t stride, int64_t n_rows, const Real* w, int64_t n, Real* m,
                              Ahead& ahead, int64_t i) {
  for (; i + kRows <= n_rows; i += kRows)
    dot_rows<X, kRows, kHeads>(x + i * stride, stride, w, n, m + i * kHeads, ahead);
  if constexpr (kRows > 1) return dot_all<X, kRows / 2, kHeads>(x, stride, n_rows, w, n, m, ahead, i);
  return i;
}
// padded is a power of two below the width.
template <class X, class Real, int kHeads = kWidth<Real> / 2>
static void dot_margins(const X* x, int64_t stride, int64_t n_rows, const Real* w, int64_t n, int64_t padded, Real* m,
                        Ahead& ahead) {
  if (padded == kHeads)
    dot_all<X, kDots / kHeads, kHeads>(x, stride, n_rows, w, n, m, ahead, 0);
  else if constexpr (kHeads > 1)
    dot_margins<X, Real, kHeads / 2>(x, stride, n_rows, w, n, padded, m, ahead);
}

// ---- margins of half as many heads as lanes, float32: two vectors, each of a quarter as many heads, and of each the
// products of four features, which are broadcast together: one load for two multiply-adds. w (n / 4, width / 2, 4)
// packed, n a multiple of 4.
template <int kRows>
MAXMIN_INLINE void quad_rows(const float* x, int64_t stride, const float* w, int64_t n, float* m, Ahead& ahead) {
  constexpr int W = kWidth<float>, kStep = 8;
  constexpr std::make_integer_sequence<int, W> lanes{};
  Vec<float> sum[kRows][2];
  MAXMIN_UNROLL for (int r = 0; r < kRows; r++) sum[r][0] = sum[r][1] = Vec<float>{};
  const char* at = ahead.at;
  for (int64_t d0 = 0; d0 < n; d0 += kStep) {
    Ahead::ask<half_of<float>(kRows * kStep)>(at);
    const int64_t end = least(n, d0 + kStep);
    for (int64_t d = d0; d < end; d += 4) {
      const Vec<float> w0 = load(w + d * (W / 2)), w1 = load(w + d * (W / 2) + W);
      MAXMIN_UNROLL for (int r = 0; r < kRows; r++) {
        const Vec<float> xr = load_quad(x + r * stride + d);
        sum[r][0] += xr * w0;
        sum[r][1] += xr * w1;
      }
    }
  }
  ahead.at = at;
  Vec<float> two[kRows];
  MAXMIN_UNROLL for (int r = 0; r < kRows; r++) two[r] = pair_sums<float>(sum[r][0], sum[r][1], lanes);
  MAXMIN_UNROLL for (int r = 0; r < kRows; r += 2)
      store(m + r * (W / 2), pair_sums<float>(two[r], two[r + 1 < kRows ? r + 1 : r], lanes));
}
static inline void quad_margins(const float* x, int64_t stride, int64_t n_rows, const float* w, int64_t n, float* m,
                                Ahead& ahead) {
  constexpr int kRows = kManyRegisters ? kRowsAtOnce : 6, kHeads = kWidth<float> / 2;
  int64_t i = 0;
  for (; i + kRows <= n_rows; i += kRows) quad_rows<kRows>(x + i * stride, stride, w, n, m + i * kHeads, ahead);
  for (; i + 2 <= n_rows; i += 2) quad_rows<2>(x + i * stride, stride, w, n, m + i * kHeads, ahead);
  for (; i < n_rows; i++) quad_rows<1>(x + i * stride, stride, w, n, m + i * kHeads, ahead);
}

// ---- margins of many heads: lanes are heads. w (n, kVectors * width) packed.
template <int kRows, int kVectors, class Real>
MAXMIN_INLINE void lane_rows(const Real* x, int64_t stride, const Real* w, int64_t n, Real* m, int64_t stride_m,
                             Ahead& ahead) {
  constexpr int W = kWidth<Real>, kStep = 8;
  Vec<Real> sum[kRows][kVectors];
  MAXMIN_UNROLL for (int r = 0; r < kRows; r++) MAXMIN_UNROLL for (int v = 0; v < kVectors; v++) sum[r][v] =
      Vec<Real>{};
  auto step = [&](int64_t d) __attribute__((always_inline)) {
    Vec<Real> wd[kVectors];
    MAXMIN_UNROLL for (int v = 0; v < kVectors; v++) wd[v] = load(w + (d * kVectors + v) * W);
    MAXMIN_UNROLL for (int r = 0; r < kRows; r++) {
      Vec<Real> xr = splat(x[r * stride + d]);
      MAXMIN_UNROLL for (int v = 0; v < kVectors; v++) sum[r][v] += xr * wd[v];
    }
  };
  const char* at = ahead.at;
  int64_t d = 0;
  for (; d + kStep <= n; d += kStep) {
    Ahead::ask<half_of<Real>(kRows * kStep)>(at);
    MAXMIN_UNROLL for (int64_t i = 0; i < kStep; i++) step(d + i);
  }
  for (; d < n; d++) step(d);
  ahead.at = at;
  MAXMIN_UNROLL for (int r = 0; r < kRows; r++) MAXMIN_UNROLL for (int v = 0; v < kVectors; v++)
      store(m + r * stride_m + v * W, sum[r][v]);
}
template <int kRows, int kVectors, class Real>
MAXMIN_INLINE void lane_all(const Real* x, int64_t stride, int64_t n_rows, const Real* w, int64_t n, Real* m,
                            int64_t stride_m, Ahead& ahead) {
  int64_t i = 0;
  for (; i + kRows <= n_rows; i += kRows)
    lane_rows<kRows, kVectors>(x + i * stride, stride, w, n, m + i * stride_m, stride_m, ahead);
  for (; i + 4 <= n_rows; i += 4)
    lane_rows<4, kVectors>(x + i * stride, stride, w, n, m + i * stride_m, stride_m, ahead);
  for (; i < n_rows; i++) lane_rows<1, kVectors>(x + i * stride, stride, w, n, m + i * stride_m, stride_m, ahead);
}
// w: the panels that pack_lanes makes, each of 2 vectors of heads but for the last.
template <class Real>
static void lane_margins(const Real* x, int64_t stride, int64_t n_rows, const Real* w, int64_t n, int64_t padded,
                         Real* m, Ahead& ahead) {
  constexpr int W = kWidth<Real>;
  int64_t h = 0;
  for (; h + 2 * W <= padded; h += 2 * W)
    lane_all<kManyRegisters ? kRowsAtOnce : 6, 2>(x, stride, n_rows, w + h * n, n, m + h, padded, ahead);
  if (h < padded) lane_all<kRowsAtOnce, 1>(x, stride, n_rows, w + h * n, n, m + h, padded, ahead);
}
template <class Real>
static void pack_lanes(const Real* weight, int64_t n_heads, int64_t n, Real* w) {
  constexpr int W = kWidth<Real>;
  for (int64_t h = 0; h < n_heads; h++) {
    const int64_t padded = round_up(n_heads, W), panel = h / (2 * W) * (2 * W), lanes = least(2 * W, padded - panel);
    for (int64_t d = 0; d < n; d++) w[panel * n + d * lanes + h - panel] = weight[h * n + d];
  }
}

// ---- out[i][j] += sum over rows of a[r][i] b[r][j], for kA of i and kB vectors of j held in registers
template <class X, int kA, int kB, bool kAsk, class Real>
MAXMIN_INLINE void outer_block(const Real* a, int64_t stride_a, const X* b, int64_t stride_b, int64_t n_rows, Real* out,
                               int64_t stride_out, Ahead& ahead) {
  constexpr int W = kWidth<Real>, kGroup = Rows<X>::kGroup;
  Vec<Real> sum[kA][kB];
  MAXMIN_UNROLL for (int i = 0; i < kA; i++) MAXMIN_UNROLL for (int v = 0; v < kB; v++) sum[i][v] =
      load(out + i * stride_out + v * W);
  const char* at = ahead.at;
  for (int64_t r = 0; r < n_rows; r++) {
    if (kAsk) Ahead::ask<half_of<X>(kB * W)>(at);
    Vec<Real> br[kB];
    MAXMIN_UNROLL for (int v = 0; v < kB; v++) br[v] =
        Rows<X>::read(b + r * stride_b + v / kGroup * Rows<X>::kFeatures, v % kGroup);
    MAXMIN_UNROLL for (int i = 0; i < kA; i++) {
      Vec<Real> ai = splat(a[r * stride_a + i]);
      MAXMIN_UNROLL for (int v = 0; v < kB; v++) sum[i][v] += ai * br[v];
    }
  }
  if (kAsk) ahead.at = at;
  MAXMIN_UNROLL for (int i = 0; i < kA; i++) MAXMIN_UNROLL for (int v = 0; v < kB; v++)
      store(out + i * stride_out + v * W, sum[i][v]);
}
// kA of i and all n_b of j (whole groups).
template <class X, int kA, int kB, bool kAsk, class Real>
MAXMIN_INLINE void outer_strip(const Real* a, int64_t stride_a, const X* b, int64_t stride_b, int64_t n_b,
                               int64_t n_rows, Real* out, int64_t stride_out, Ahead& ahead) {
  constexpr int W = kWidth<Real>, kGroup = Rows<X>::kGroup;
  int64_t j = 0;
  for (; j + kB * W <= n_b; j += kB * W)
    outer_block<X, kA, kB, kAsk>(a, stride_a, b + j, stride_b, n_rows, out + j, stride_out, ahead);
  for (; j < n_b; j += kGroup * W)
    outer_block<X, kA, kGroup, kAsk>(a, stride_a, b + j, stride_b, n_rows, out + j, stride_out, ahead);
}
// All n_a of i, in strips as wide as the registers allow; the first of them asks for the next tile.
template <class X, class Real>
static void outer(const Real* a, int64_t stride_a, int64_t n_a, const X* b, int64_t stride_b, int64_t n_b,
                  int64_t n_rows, Real* out, int64_t stride_out, Ahead& ahead) {
  constexpr bool many = kManyRegisters, single = Rows<X>::kGroup == 1;
  int64_t i = 0;
#define MAXMIN_STRIP(kA, kB)                                                                                \
  for (; i + kA <= n_a; i += kA)                                                                            \
  i == 0 ? outer_strip<X, kA, (kB), true>(a, stride_a, b, stride_b, n_b, n_rows, out, stride_out, ahead)    \
         : outer_strip<X, kA, (kB), false>(a + i, stride_a, b, stride_b, n_b, n_rows, out + i * stride_out, \
                                           stride_out, ahead)
  if (many) MAXMIN_STRIP(8, single ? 3 : 2);
  MAXMIN_STRIP(4, many ? 6 : single ? 3 : 2);
  MAXMIN_STRIP(2, many ? 8 : 4);
  MAXMIN_STRIP(1, many ? 12 : 6);
#undef MAXMIN_STRIP
}

}  // namespace MAXMIN_ISA
}  // namespace maxmin
