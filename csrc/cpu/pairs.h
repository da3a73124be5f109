// The sums (4) and the weighted shares (10) of pairs, straight from margins: for pairs without noise and weights.
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

// A vector of which only the first n elements are asked for; before `limit` more may be read. The others are `fill`.
template <class Real, class T>
MAXMIN_INLINE Vec<Real> load_first(const T* from, int64_t n, const T* limit, Real fill) {
  constexpr int w = kWidth<Real>;
  Real t[w];
  IVec<Real> lane;
  for (int k = 0; k < w; k++) lane[k] = k;
  if (limit - from >= w) return lane < (decltype(lane[0] + 0))n ? load_wide(from) : splat(fill);
  for (int k = 0; k < w; k++) t[k] = k < n ? widen(from[k]) : fill;
  return load(t);
}

// joint[h] += sum of log sigma(m) over the n margins of an annotator. sums: room for `apart` vectors.
//
// A sum of logarithms is the logarithm of a product: log sigma(m) = min(m, 0) - log(1 + e), e = exp(-|m|), and one
// logarithm serves kFactors rows. The product is kept less 1, so that small e do not vanish beside it.
template <class Real, class T>
static void add_up_pairs(const T* m, int64_t n, const T* limit, int64_t n_heads, int64_t apart, double* sums,
                         double* joint) {
  constexpr int w = kWidth<Real>;
  constexpr int64_t kFactors = 16;
  const int64_t n_vectors = (n + w - 1) / w, n_whole = n / w, n_sums = least(apart, n_vectors) * w;
  for (int64_t j = 0; j * w < n_sums; j++) {
    double sum[w] = {};
    for (int64_t i = j; i < n_vectors;) {
      Vec<Real> product{}, low{};
      auto take = [&](Vec<Real> mi) {
        const Vec<Real> e = exp_between(not_below<Real>(kExpLow<Real>, -vabs<Real>(mi)));
        product = e * product + (product + e);
        low += vmin(mi, Vec<Real>{});
      };
      const int64_t end = i + kFactors * apart;
      for (; i < least(end, n_whole); i += apart) take(load_wide(m + i * w));
      if (i < least(end, n_vectors)) {
        take(load_first<Real>(m + i * w, n - i * w, limit, kExpHigh<Real>));
        i += apart;
      }
      add_wide<Real>(sum, low - vlog1p<Real>(product), 1);
    }
    memcpy(sums + j * w, sum, sizeof sum);
  }
  for (int64_t row = 0; row < n_sums; row += n_heads)
    for (int64_t h = 0; h < least(n_heads, n_sums - row); h++) joint[h] += sums[row + h];
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
