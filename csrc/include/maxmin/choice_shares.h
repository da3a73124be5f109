// Log-probability of each choice, (3) or (3b), and its rows' shares (3').
#pragma once
#include "maxmin/em_pass.h"

#ifdef __cplusplus
extern "C" {
#endif

// Of the comparisons, n_rows, n_comparisons, choice_indptr and label_noise are read. margins (n_rows, n_heads) of
// `dtype`, contiguous; log_prob (n_comparisons, n_heads) and share (n_rows, n_heads) of the accumulation type.
int maxmin_choice_shares_fwd_cpu(const maxmin_comparisons* comparisons, int64_t n_heads, const void* margins, int dtype,
                                 void* log_prob, void* share, const maxmin_parallel* parallel);

// All of `dtype`, MAXMIN_F64 or MAXMIN_F32: grad_log_prob (n_comparisons, n_heads), share and grad_margins (n_rows,
// n_heads).
int maxmin_choice_shares_bwd_cpu(const maxmin_comparisons* comparisons, int64_t n_heads, const void* grad_log_prob,
                                 const void* share, int dtype, void* grad_margins, const maxmin_parallel* parallel);

#ifdef __cplusplus
}
#endif
