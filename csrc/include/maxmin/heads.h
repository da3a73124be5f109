// Several linear heads over the rows of a matrix: reward logits, and margins (1)(2) of chosen against rejected rows.
#pragma once
#include "maxmin/common.h"

#ifdef __cplusplus
extern "C" {
#endif

// `real` below is the accumulation type: double for MAXMIN_F64, else float. Strides count elements.
//
// Row i of the matrix is features[i] (plain), features[i, token_index[i]] (a token of a sequence), or
// features[i] - rejected[i] (a pair). A token index outside [0, n_tokens) has no row: its outputs are NaN, its gradient
// is nothing.
typedef struct maxmin_rows {
  int64_t n_rows, n_features;
  int dtype;             // of features and rejected
  const void* features;  // (n_rows, n_features), or (n_rows, n_tokens, n_features) with token_index
  int64_t stride_row, stride_token, stride_feature;
  const int64_t* token_index;  // (n_rows), or NULL
  int64_t n_tokens;
  const void* rejected;  // (n_rows, n_features), or NULL
  int64_t rejected_stride_row, rejected_stride_feature;
} maxmin_rows;

typedef struct maxmin_heads {
  int64_t n_heads;
  int dtype;           // of weight
  const void* weight;  // (n_heads, n_features)
  int64_t stride_head, stride_feature;
  const void* bias;  // (n_heads) real, or NULL
} maxmin_heads;

// out (n_rows, n_heads) real, contiguous.
int maxmin_heads_fwd_cpu(const maxmin_rows* rows, const maxmin_heads* heads, void* out,
                         const maxmin_parallel* parallel);

// grad (n_rows, n_heads) real, contiguous. Every output may be NULL. All are contiguous; grad_features and
// grad_rejected have the shape and dtype of what they differentiate, grad_weight that of weight, grad_bias is real.
// With token_index only the rows it names are written in grad_features: zero it before.
int maxmin_heads_bwd_cpu(const maxmin_rows* rows, const maxmin_heads* heads, const void* grad, void* grad_features,
                         void* grad_rejected, void* grad_weight, void* grad_bias, const maxmin_parallel* parallel);

#ifdef __cplusplus
}
#endif
