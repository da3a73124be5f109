// Newton's curvature: Hess of MATH section 2, without its ridge.
#pragma once
#include "maxmin/em_pass.h"

#ifdef __cplusplus
extern "C" {
#endif

// Rows of differences: features[i], or features[chosen[i]] - features[rejected[i]]. Strides count elements.
typedef struct maxmin_differences {
  int64_t n_items, n_features;  // n_items: rows of features
  int dtype;
  const void* features;
  int64_t stride_row, stride_feature;
  const int64_t *chosen, *rejected;  // (n_rows), or NULL
} maxmin_differences;

// resp (n_annotators, n_heads) and share (n_rows, n_heads) real, contiguous; out (n_heads, n_features, n_features)
// real.
int maxmin_weighted_gram_cpu(const maxmin_comparisons* comparisons, const maxmin_differences* rows, int64_t n_heads,
                             const void* resp, const void* share, void* out, const maxmin_parallel* parallel);

// The same in the basis of the items, for features that are theirs: out (n_heads, n_items, n_items), rows sum to 0. All
// rows of a comparison must have one chosen item. dtype MAXMIN_F64 or MAXMIN_F32, of resp, share and out.
int maxmin_weighted_laplacian_cpu(const maxmin_comparisons* comparisons, int64_t n_items, const int64_t* chosen,
                                  const int64_t* rejected, int64_t n_heads, const void* resp, const void* share,
                                  int dtype, void* out, const maxmin_parallel* parallel);

#ifdef __cplusplus
}
#endif
