// (3)-(6) from margins that are there already, and its gradient (10).
#pragma once
#include "maxmin/em_pass.h"

#ifdef __cplusplus
extern "C" {
#endif

// margins (n_rows, n_heads) of `dtype`, contiguous. `real` is the accumulation type: double for MAXMIN_F64, else float.
// z (n_annotators, n_mixtures) and log_resp (n_annotators, n_heads) real.
int maxmin_mixture_log_likelihood_fwd_cpu(const maxmin_comparisons* comparisons, const maxmin_mixtures* mixtures,
                                          const void* margins, int dtype, void* z, void* log_resp,
                                          const maxmin_parallel* parallel);

// grad_z (n_annotators, n_mixtures) and log_resp real; of the mixtures only their heads are read. grad_margins
// (n_rows, n_heads) of `dtype`, grad_log_weights (n_heads) real.
int maxmin_mixture_log_likelihood_bwd_cpu(const maxmin_comparisons* comparisons, const maxmin_mixtures* mixtures,
                                          const void* margins, int dtype, const void* log_resp, const void* grad_z,
                                          void* grad_margins, void* grad_log_weights, const maxmin_parallel* parallel);

#ifdef __cplusplus
}
#endif
