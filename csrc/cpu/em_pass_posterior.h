// (4)-(6), (7T), (7H) for the annotators of a tile: log-probabilities of their comparisons summed in float64, then
// responsibilities.
#pragma once
#include "segments.h"
#include "simd.h"

namespace maxmin {
namespace MAXMIN_ISA {

// Whole mixtures side by side: head h of the block is head `head + h` of all. Rows of `padded` heads, of which the
// last ones stand for nothing; `padded` divides the vector's width or is a multiple of it.
struct MixtureBlock {
  int64_t head, n_heads, padded;
  int64_t mixture, n_mixtures;
  const int64_t* indptr;  // (n_mixtures + 1) of all heads
  int64_t begin(int64_t g) const { return indptr[g] - head; }
};

// ---- (4)
// sums[h] += the n rows of l; `padded` columns.
template <class Real>
MAXMIN_INLINE void add_rows(const Real* l, int64_t n, int64_t padded, double* sums) {
  constexpr int W = kWidth<double>;
  if (padded >= W) {
    for (int64_t h = 0; h < padded; h += W) {
      Vec<double> even = load(sums + h), odd{};
      int64_t i = 0;
      for (; i + 1 < n; i += 2) {
        even += load_double(l + i * padded + h);
        odd += load_double(l + (i + 1) * padded + h);
      }
      if (i < n) even += load_double(l + i * padded + h);
      store(sums + h, even + odd);
    }
    return;
  }
  Vec<double> total{};
  const int64_t end = n * padded;
  int64_t i = 0;
  for (; i + W <= end; i += W) total += load_double(l + i);
  double lanes[W];
  store(lanes, total);
  for (int64_t j = 0; i + j < end; j++) lanes[j] += l[i + j];
  for (int64_t j = 0; j < W; j++) sums[j & (padded - 1)] += lanes[j];  // padded is a power of two here
}

// ---- (5), (6)
// What posteriors need and give. Arrays of (n, padded) but for `sums`, (n, n_mixtures); whole vectors are written.
template <class Real>
struct PosteriorScratch {
  double* joint;   // in: L of (4)
  Real* log_resp;  // out
  Real* resp;      // out
  Real* sums;
};

template <class Real>
MAXMIN_INLINE void exp_all(const Real* x, int64_t n, Real* y) {
  for (int64_t i = 0; i < n; i += kWidth<Real>) store(y + i, vexp(load(x + i)));
}
template <class Real>
MAXMIN_INLINE void log_all(Real* x, int64_t n) {
  for (int64_t i = 0; i < n; i += kWidth<Real>) store(x + i, vlog(load(x + i)));
}

// One-hot responsibilities; the first of equals wins; NaN in, NaN out. log_likelihood[g] += max L.
template <class Real>
static void hard_posteriors(const MixtureBlock& b, int64_t n, const PosteriorScratch<Real>& p, double* log_likelihood) {
  constexpr double kInf = __builtin_inf();
  for (int64_t i = 0; i < n; i++)
    for (int64_t g = 0; g < b.n_mixtures; g++) {
      const int64_t at = i * b.padded, begin = at + b.begin(g), end = at + b.begin(g + 1);
      if (begin == end) {
        log_likelihood[g] -= kInf;
        continue;
      }
      int64_t best = begin;
      bool nan = false;
      for (int64_t h = begin; h < end; h++) {
        nan |= p.joint[h] != p.joint[h];
        if (p.joint[h] > p.joint[best]) best = h;
      }
      for (int64_t h = begin; h < end; h++) {
        p.log_resp[h] = nan ? (Real)__builtin_nan("") : h == best ? Real(0) : (Real)-kInf;
        p.resp[h] = nan ? (Real)__builtin_nan("") : h == best ? Real(1) : Real(0);
      }
      log_likelihood[g] += nan ? __builtin_nan("") : p.joint[best];
    }
}

// softmax(L / T) within each mixture; log_likelihood[g] += T logsumexp(L / T). Differences of L are taken in float64.
template <class Real>
static void soft_posteriors(const MixtureBlock& b, int64_t n, const PosteriorScratch<Real>& p, double temperature,
                            double* log_likelihood) {
  constexpr double kInf = __builtin_inf();
  const double inverse = 1 / temperature;
  for (int64_t i = 0; i < n; i++)
    for (int64_t g = 0; g < b.n_mixtures; g++) {
      const int64_t at = i * b.padded, begin = at + b.begin(g), end = at + b.begin(g + 1);
      double top = -kInf;
      for (int64_t h = begin; h < end; h++) top = p.joint[h] > top || p.joint[h] != p.joint[h] ? p.joint[h] : top;
      const double shift = top == -kInf ? 0 : top;
      for (int64_t h = begin; h < end; h++) p.log_resp[h] = (Real)((p.joint[h] - shift) * inverse);
      log_likelihood[g] += shift;
    }
  exp_all(p.log_resp, n * b.padded, p.resp);
  for (int64_t i = 0; i < n; i++)
    for (int64_t g = 0; g < b.n_mixtures; g++) {
      const int64_t at = i * b.padded, begin = at + b.begin(g), end = at + b.begin(g + 1);
      Real sum = 0;
      for (int64_t h = begin; h < end; h++) sum += p.resp[h];
      p.sums[i * b.n_mixtures + g] = sum;
      for (int64_t h = begin; h < end; h++) p.resp[h] /= sum;
    }
  log_all(p.sums, n * b.n_mixtures);
  for (int64_t i = 0; i < n; i++)
    for (int64_t g = 0; g < b.n_mixtures; g++) {
      const int64_t at = i * b.padded, begin = at + b.begin(g), end = at + b.begin(g + 1);
      const Real log_sum = p.sums[i * b.n_mixtures + g];
      for (int64_t h = begin; h < end; h++) p.log_resp[h] -= log_sum;
      log_likelihood[g] += temperature * (double)log_sum;
    }
}

template <class Real>
static void posteriors(const MixtureBlock& b, int64_t n, const PosteriorScratch<Real>& p, bool hard, double temperature,
                       double* log_likelihood) {
  if (hard)
    hard_posteriors(b, n, p, log_likelihood);
  else
    soft_posteriors(b, n, p, temperature, log_likelihood);
}

// c[row] = resp * s[row] for the rows of one annotator. c is not s: whole vectors are written, in ascending order.
template <class Real>
MAXMIN_INLINE void pull(const Real* s, int64_t n_rows, const Real* resp, int64_t padded, Real* c) {
  constexpr int W = kWidth<Real>;
  if (padded >= W) {
    for (int64_t h = 0; h < padded; h += W) {
      Vec<Real> r = load(resp + h);
      for (int64_t i = 0; i < n_rows; i++) store(c + i * padded + h, load(s + i * padded + h) * r);
    }
    return;
  }
  Real lanes[W];
  for (int64_t j = 0; j < W; j++) lanes[j] = resp[j & (padded - 1)];
  const Vec<Real> r = load(lanes);
  for (int64_t i = 0; i < n_rows * padded; i += W) store(c + i, load(s + i) * r);
}

}  // namespace MAXMIN_ISA
}  // namespace maxmin
