// The sums (4) and shares (3') or weighted shares (10) of pairs straight from margins, without noise and weights.
//
// An annotator's margins, rows of H heads, are taken as a flat array. Its vectors hold the same heads again after
// `period` of them, so that no lane is idle, whatever H is.
#pragma once
#include "choices.h"
#include "storage.h"

namespace maxmin {
namespace MAXMIN_ISA {

template <class Real>
static inline int64_t period(int64_t n_heads) {
  int64_t a = kWidth<Real>, b = n_heads;
  while (b) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return n_heads / a;
}

// The first n lanes of one and the others of another.
template <class Real>
MAXMIN_INLINE Vec<Real> first_of(Vec<Real> x, int64_t n, Vec<Real> other) {
  IVec<Real> lane;
  for (int k = 0; k < kWidth<Real>; k++) lane[k] = k;
  return lane < (decltype(lane[0] + 0))n ? x : other;
}
// A vector of which only the first n elements are asked for; before `limit` more may be read. The others are `fill`.
template <class Real, class T>
MAXMIN_INLINE Vec<Real> load_first(const T* from, int64_t n, const T* limit, Real fill) {
  if (limit - from >= kWidth<Real>) return first_of<Real>(load_wide(from), n, splat(fill));
  Real t[kWidth<Real>];
  for (int k = 0; k < kWidth<Real>; k++) t[k] = k < n ? widen(from[k]) : fill;
  return load(t);
}

// joint[h] += sum of log sigma(m) over the n margins of an annotator. sums: room for `apart` vectors. Each vector is
// shown to see(its place, how many of its elements are the annotator's, margins, exp(-|m|)).
//
// A sum of logarithms is the logarithm of a product: log sigma(m) = min(m, 0) - log(1 + e), e = exp(-|m|), and one
// logarithm serves kFactors rows. The product is kept less 1, so that small e do not vanish beside it.
template <class Real, class T, class See>
MAXMIN_INLINE void add_up_pairs(const T* m, int64_t n, const T* limit, int64_t n_heads, int64_t apart, double* sums,
                                double* joint, See see) {
  constexpr int w = kWidth<Real>;
  constexpr int64_t kFactors = 16;
  const int64_t n_vectors = (n + w - 1) / w, n_whole = n / w, n_sums = least(apart, n_vectors) * w;
  for (int64_t j = 0; j * w < n_sums; j++) {
    double sum[w] = {};
    for (int64_t i = j; i < n_vectors;) {
      Vec<Real> product{}, low{};
      auto take = [&](Vec<Real> mi, int64_t n_there) {
        const Vec<Real> e = exp_between(not_below<Real>(kExpLow<Real>, -vabs<Real>(mi)));
        product = e * product + (product + e);
        low += vmin(mi, Vec<Real>{});
        see(i * w, n_there, mi, e);
      };
      const int64_t end = i + kFactors * apart;
      for (; i < least(end, n_whole); i += apart) take(load_wide(m + i * w), w);
      if (i < least(end, n_vectors)) {
        take(load_first<Real>(m + i * w, n - i * w, limit, kExpHigh<Real>), n - i * w);
        i += apart;
      }
      add_wide<Real>(sum, low - vlog1p<Real>(product), 1);
    }
    memcpy(sums + j * w, sum, sizeof sum);
  }
  for (int64_t row = 0; row < n_sums; row += n_heads)
    for (int64_t h = 0; h < least(n_heads, n_sums - row); h++) joint[h] += sums[row + h];
}

// As add_up_pairs, and margins become shares, in place. A vector's width of slack lies behind them.
template <class Real>
static void share_pairs(Real* m, int64_t n, int64_t n_heads, int64_t apart, double* sums, double* joint) {
  constexpr int w = kWidth<Real>;
  add_up_pairs<Real>(m, n, m + n + w, n_heads, apart, sums, joint,
                     [&](int64_t i, int64_t n_there, Vec<Real> mi, Vec<Real> e) {
                       const Vec<Real> inverse = Real(1) / (e + Real(1)), s = mi < Real(0) ? inverse : e * inverse;
                       store(m + i, n_there == w ? s : first_of<Real>(s, n_there, load(m + i)));
                     });
}

// out = factor sigma(-m) of the n margins of an annotator; factor: `apart` vectors, repeated. Before `limit` more of
// `out` may be overwritten.
template <class Real, class T>
static void weigh_pairs(const T* m, int64_t n, const T* limit, int64_t apart, const Real* factor, T* out) {
  constexpr int w = kWidth<Real>;
  for (int64_t i = 0, j = 0; i < n; i += w, j = j + 1 == apart ? 0 : j + 1) {
    const bool whole = limit - (m + i) >= w;
    const Vec<Real> mi = whole ? load_wide(m + i) : load_first<Real>(m + i, n - i, limit, Real(0));
    const Vec<Real> s = load(factor + j * w) * sigmoid_of_minus<Real>(mi);
    if (whole)
      store_narrow(out + i, s);
    else
      for (int k = 0; k < n - i; k++) narrow(s[k], out + i + k);
  }
}

}  // namespace MAXMIN_ISA
}  // namespace maxmin
