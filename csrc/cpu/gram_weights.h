// What the two forms of Newton's curvature share: the weights of an annotator's comparisons.
//
// Of one comparison with shares s, u = sum s x: sum s x x^T - u u^T = sum s (x - u)(x - u)^T + (1 - sum s) u u^T, which
// has no difference of large numbers in it and is positive semidefinite as it stands. A pair: s (1 - s) x x^T.
#pragma once
#include "maxmin/weighted_gram.h"
#include "segments.h"
#include "simd.h"

namespace maxmin {
namespace MAXMIN_ISA {

static inline bool good_comparisons(const maxmin_comparisons& data) {
  return is_indptr(data.indptr, data.n_annotators, data.n_comparisons) &&
         (data.choice_indptr ? is_indptr(data.choice_indptr, data.n_comparisons, data.n_rows)
                             : data.n_rows == data.n_comparisons);
}

static inline int64_t first_row(const maxmin_comparisons& data, int64_t comparison) {
  return data.choice_indptr ? data.choice_indptr[comparison] : comparison;
}

template <class Real>
MAXMIN_INLINE Real weight_of(const maxmin_comparisons& data, int64_t comparison) {
  return data.comparison_weight ? static_cast<const Real*>(data.comparison_weight)[comparison] : Real(1);
}

// Heads h ... of row i of a matrix (n, n_heads): lanes past n_heads hold anything, nothing past the end is read.
template <class Real>
MAXMIN_INLINE Vec<Real> load_heads(const Real* matrix, int64_t i, int64_t n, int64_t n_heads, int64_t h) {
  const int64_t at = i * n_heads + h, left = n * n_heads - at;
  return left >= kWidth<Real> ? load(matrix + at) : load_part(matrix + at, (int)left, Real(0));
}

}  // namespace MAXMIN_ISA
}  // namespace maxmin
