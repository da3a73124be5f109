// Welfare of MATH section 5 and its weights, by row; and the reduction of a batch of rewards to it.
#pragma once
#include "maxmin/common.h"

#ifdef __cplusplus
extern "C" {
#endif

enum maxmin_welfare_kind {
  MAXMIN_MIN = 0,
  MAXMIN_SOFTMIN = 1,  // param: tau
  MAXMIN_MEAN = 2,
  MAXMIN_NASH = 3,
  MAXMIN_POWER = 4,    // param: p <= 1
  MAXMIN_CVAR = 5,     // param: alpha
  MAXMIN_OWA = 6,      // rank_weights
  MAXMIN_LEXIMIN = 7,  // an order, no number: callers hand over OWA with steep weights; refused here
  MAXMIN_KL = 8,       // param: radius
  MAXMIN_CHI2 = 9,     // param: radius
  MAXMIN_TV = 10,      // param: radius
  MAXMIN_FLOOR = 11,   // floor, param: radius of the KL ball, infinity for none
};

typedef struct maxmin_welfare {
  int kind;  // a maxmin_welfare_kind
  double param;
  int64_t n_groups;
  const double* group_weights;  // (n_groups) shares, summing to one; NULL: equal
  const double* rank_weights;   // (n_groups) from the worst group on; OWA only
  const double* floor;          // (n_groups) least weights; KL and FLOOR only, may be NULL
} maxmin_welfare;

// A matrix of `dtype`, strides in elements.
typedef struct maxmin_matrix {
  const void* data;
  int dtype;
  int64_t n_rows, n_columns, stride_row, stride_column;
} maxmin_matrix;

// `real` below is the accumulation type: double for MAXMIN_F64, else float. Outputs are contiguous. All is computed in
// double. A row with a NaN, or outside the domain of its kind, gives NaN.

// utilities (n_rows, n_groups) -> value (n_rows) real, weights (n_rows, n_groups) real, the gradient of the value.
int maxmin_welfare_fwd_cpu(const maxmin_welfare* welfare, const maxmin_matrix* utilities, void* value, void* weights,
                           const maxmin_parallel* parallel);

// The means of rewards (n_rows, n_groups), NaN and what mask (bytes, NULL: all count) hides left out; a group without
// any takes its running estimate (real; NULL: NaN). Then the welfare: value (1), weights, utilities (n_groups) real.
int maxmin_reduce_fwd_cpu(const maxmin_welfare* welfare, const maxmin_matrix* rewards, const uint8_t* mask,
                          int64_t mask_stride_row, int64_t mask_stride_column, const void* running, void* value,
                          void* weights, void* utilities, const maxmin_parallel* parallel);

// The gradient by the rewards (n_rows, n_groups), in their dtype. grad_value (1), grad_utilities, weights real.
int maxmin_reduce_bwd_cpu(const maxmin_matrix* rewards, const uint8_t* mask, int64_t mask_stride_row,
                          int64_t mask_stride_column, const void* grad_value, const void* grad_utilities,
                          const void* weights, void* grad_rewards, const maxmin_parallel* parallel);

#ifdef __cplusplus
}
#endif
