// (3), (3'), (3b) on a buffer of margins that lies in the nearest cache, and the sums (4) of an annotator.
//
// A buffer holds whole comparisons: rows of `stride` heads, contiguous, with a vector's width of slack behind the last
// row. Lanes past the last head of a row belong to the next row, or to the slack: they are computed and overwritten.
#pragma once
#include <math.h>

#include "maxmin/em_pass.h"
#include "segments.h"
#include "simd.h"

namespace maxmin {
namespace MAXMIN_ISA {

constexpr int64_t kSlack = MAXMIN_VECTOR_BYTES;  // elements; a vector of either type is no wider

// Part of a data set, in whole comparisons.
template <class Real>
struct Choices {
  int64_t first, count;  // comparisons
  int64_t first_row, n_rows;
  const int64_t* choice_indptr;  // of the data set, or NULL: pairs
  const Real* weight;            // of the data set, or NULL
  Real noise;

  int64_t row(int64_t c) const { return choice_indptr ? choice_indptr[first + c] - first_row : c; }
};

template <class Real>
static inline int64_t row_of(const maxmin_comparisons& data, int64_t comparison) {
  return data.choice_indptr ? data.choice_indptr[comparison] : comparison;
}

template <class Real>
static inline Choices<Real> choices_between(const maxmin_comparisons& data, int64_t begin, int64_t end) {
  const int64_t first_row = row_of<Real>(data, begin);
  return {begin,
          end - begin,
          first_row,
          row_of<Real>(data, end) - first_row,
          data.choice_indptr,
          static_cast<const Real*>(data.comparison_weight),
          (Real)data.label_noise};
}

// As many whole comparisons from `begin` on, before `end`, as a buffer of `capacity` rows holds.
template <class Real>
static inline int64_t next_cut(const maxmin_comparisons& data, int64_t begin, int64_t end, int64_t capacity) {
  end = least(end, begin + capacity);
  if (!data.choice_indptr) return end;
  const int64_t* ptr = data.choice_indptr + begin;
  int64_t fitting = lower_bound(ptr, end - begin, ptr[0] + capacity + 1) - 1;  // ptr[fitting] - ptr[0] <= capacity
  if (ptr[end - begin] - ptr[0] <= capacity) fitting = end - begin;
  return begin + most(1, fitting);
}

// Rows that a buffer must hold: `wanted`, or the longest comparison.
static inline int64_t buffer_rows(const maxmin_comparisons& data, int64_t wanted) {
  int64_t longest = least(wanted, most(data.n_rows, data.n_comparisons));
  if (data.choice_indptr)
    for (int64_t c = 0; c < data.n_comparisons; c++)
      longest = most(longest, data.choice_indptr[c + 1] - data.choice_indptr[c]);
  return longest;
}

// (3b) of one vector: l becomes the noisy log-probability; returns what a share is multiplied by.
template <class Real>
MAXMIN_INLINE Vec<Real> add_noise(Real noise, Real n_alternatives, Vec<Real>& l) {
  Vec<Real> kept = vexp(l) * (Real(1) - noise), both = kept + noise / n_alternatives;
  l = vlog(both);
  return kept / both;
}

// No margin of the n so far below 0 that sums of exp(-m) might overflow? (A NaN says nothing.)
template <class Real>
static bool moderate(const Real* m, int64_t n) {
  constexpr Real kSafe = sizeof(Real) == 4 ? 40 : 300;
  Vec<Real> lowest{};
  int64_t i = 0;
  for (; i + kWidth<Real> <= n; i += kWidth<Real>) lowest = vmin(load(m + i), lowest);
  bool all = reduce_max<Real>(-lowest) < kSafe;
  for (; i < n; i++) all &= !(m[i] <= -kSafe);
  return all;
}

// choose() for choices among several. Without kShift no margin is far below 0.
template <class Real, bool kShift>
static void choose_among(const Choices<Real>& part, int64_t stride, Real* m, Real* l) {
  constexpr int w = kWidth<Real>;
  for (int64_t c = 0; c < part.count; c++, l += stride) {
    const int64_t begin = part.row(c), end = part.row(c + 1);
    for (int64_t h = 0; h < stride; h += w) {
      const int n = (int)least(w, stride - h);  // lanes past it may be a later row's margins: keep them
      Real* mh = m + begin * stride + h;
      Vec<Real> shift{}, total = splat(Real(1));
      if (kShift) {
        for (int64_t i = 0; i < end - begin; i++) shift = vmax(-load(mh + i * stride), shift);
        total = vexp(-shift);
      }
      for (int64_t i = 0; i < end - begin; i++) {
        Vec<Real> e = vexp(kShift ? -load(mh + i * stride) - shift : -load(mh + i * stride));
        total += e;
        n == w ? store(mh + i * stride, e) : store_part(mh + i * stride, e, n);
      }
      Vec<Real> lc = -(shift + vlog(total)), scale = Real(1) / total;
      if (part.noise > 0) scale *= add_noise<Real>(part.noise, (Real)(end - begin + 1), lc);
      n == w ? store(l + h, lc) : store_part(l + h, lc, n);
      for (int64_t i = 0; i < end - begin; i++) {
        Vec<Real> s = load(mh + i * stride) * scale;
        n == w ? store(mh + i * stride, s) : store_part(mh + i * stride, s, n);
      }
    }
  }
}

// Margins m become shares s, in place; l gets the log-probability of each comparison.
template <class Real>
static void choose(const Choices<Real>& part, int64_t stride, Real* m, Real* l) {
  if (part.choice_indptr) {
    if (moderate(m, part.n_rows * stride))
      choose_among<Real, false>(part, stride, m, l);
    else
      choose_among<Real, true>(part, stride, m, l);
    return;
  }
  for (int64_t i = 0; i < part.n_rows * stride; i += kWidth<Real>) {
    Vec<Real> li, si;
    log_sigmoid<Real>(load(m + i), li, si);
    if (part.noise > 0) si *= add_noise<Real>(part.noise, 2, li);
    store(l + i, li);
    store(m + i, si);
  }
}

// What choose() makes of the margins, where nobody asks for the log-probabilities (l is room for them).
template <class Real>
static void choose_shares(const Choices<Real>& part, int64_t stride, Real* m, Real* l) {
  if (part.choice_indptr || part.noise > 0) return choose(part, stride, m, l);
  for (int64_t i = 0; i < part.n_rows * stride; i += kWidth<Real>) store(m + i, sigmoid_of_minus<Real>(load(m + i)));
}

// Pairs of which (3) is all there is?
static inline bool are_plain_pairs(const maxmin_comparisons& data) {
  return !data.choice_indptr && !data.comparison_weight && data.label_noise == 0;
}

// to[h] += factor x[h], in double.
template <class Real>
MAXMIN_INLINE void add_wide(double* to, Vec<Real> x, double factor) {
  constexpr int parts = sizeof(double) / sizeof(Real), w = kWidth<double>;
  typedef Real part __attribute__((vector_size(MAXMIN_VECTOR_BYTES / parts)));
  part p[parts];
  memcpy(p, &x, sizeof x);
  MAXMIN_UNROLL for (int k = 0; k < parts; k++)
      store(to + k * w, load(to + k * w) + factor * __builtin_convertvector(p[k], Vec<double>));
}

// add_up() for kColumns vectors of heads from h on: their sums stay in registers.
template <int kColumns, class Real>
static void add_up_columns(const Choices<Real>& part, int64_t stride, const Real* __restrict__ l, int64_t c0,
                           int64_t c1, double* __restrict__ joint, int64_t h) {
  constexpr int w = kWidth<double>;
  Vec<double> sum[kColumns];
  MAXMIN_UNROLL for (int k = 0; k < kColumns; k++) sum[k] = load(joint + h + k * w);
  for (int64_t c = c0; c < c1; c++) {
    const double v = part.weight ? (double)part.weight[part.first + c] : 1.0;
    MAXMIN_UNROLL for (int k = 0; k < kColumns; k++) sum[k] += v * load_double(l + c * stride + h + k * w);
  }
  MAXMIN_UNROLL for (int k = 0; k < kColumns; k++) store(joint + h + k * w, sum[k]);
}

// (4): joint[h] += sum over the comparisons c0 .. c1 of the part of v l, in double.
template <class Real>
static void add_up(const Choices<Real>& part, int64_t stride, const Real* __restrict__ l, int64_t c0, int64_t c1,
                   double* __restrict__ joint) {
  constexpr int w = kWidth<double>;
  int64_t h = 0;
  for (; h + 4 * w <= stride; h += 4 * w) add_up_columns<4>(part, stride, l, c0, c1, joint, h);
  for (; h + w <= stride; h += w) add_up_columns<1>(part, stride, l, c0, c1, joint, h);
  if (h == stride) return;
  for (int64_t c = c0; c < c1; c++) {
    const double v = part.weight ? (double)part.weight[part.first + c] : 1.0;
    for (int64_t k = h; k < stride; k++) joint[k] += v * (double)l[c * stride + k];
  }
}

// (10): shares of the comparisons c0 .. c1 of the part become scale[h] v s, in place.
template <class Real>
static void weigh(const Choices<Real>& part, int64_t stride, const Real* __restrict__ scale, int64_t c0, int64_t c1,
                  Real* __restrict__ s) {
  constexpr int w = kWidth<Real>;
  if (!part.weight && stride > 0 && w % stride == 0) {  // few heads: a vector holds whole rows
    Real rows[w];
    for (int k = 0; k < w; k++) rows[k] = scale[k % stride];
    const Vec<Real> factor = load(rows);
    int64_t i = part.row(c0) * stride;
    const int64_t end = part.row(c1) * stride;
    for (; i + w <= end; i += w) store(s + i, load(s + i) * factor);
    for (int k = 0; i < end; i++, k++) s[i] *= rows[k];
    return;
  }
  for (int64_t c = c0; c < c1; c++) {
    const Real v = part.weight ? part.weight[part.first + c] : Real(1);
    for (int64_t i = part.row(c); i < part.row(c + 1); i++)
      for (int64_t h = 0; h < stride; h++) s[i * stride + h] *= scale[h] * v;
  }
}

}  // namespace MAXMIN_ISA
}  // namespace maxmin
