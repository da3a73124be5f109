// The C interfaces of mixture_log_likelihood.h, choice_shares.h and weighted_gram.h: the best instruction set that this
// processor has.
#include "isa.h"
#include "maxmin/choice_shares.h"
#include "maxmin/mixture_log_likelihood.h"
#include "maxmin/weighted_gram.h"

MAXMIN_DECLARE(int mixture_log_likelihood_fwd(const maxmin_comparisons* comparisons, const maxmin_mixtures* mixtures,
                                              const void* margins, int dtype, void* z, void* log_resp,
                                              const maxmin_parallel* parallel))
MAXMIN_DECLARE(int mixture_log_likelihood_bwd(const maxmin_comparisons* comparisons, const maxmin_mixtures* mixtures,
                                              const void* margins, int dtype, const void* log_resp, const void* grad_z,
                                              void* grad_margins, void* grad_log_weights,
                                              const maxmin_parallel* parallel))
MAXMIN_DECLARE(int choice_shares_fwd(const maxmin_comparisons* comparisons, int64_t n_heads, const void* margins,
                                     int dtype, void* log_prob, void* share, const maxmin_parallel* parallel))
MAXMIN_DECLARE(int choice_shares_bwd(const maxmin_comparisons* comparisons, int64_t n_heads, const void* grad_log_prob,
                                     const void* share, int dtype, void* grad_margins, const maxmin_parallel* parallel))
MAXMIN_DECLARE(int weighted_gram(const maxmin_comparisons* comparisons, const maxmin_differences* rows, int64_t n_heads,
                                 const void* resp, const void* share, void* out, const maxmin_parallel* parallel))
MAXMIN_DECLARE(int weighted_laplacian(const maxmin_comparisons* comparisons, int64_t n_items, const int64_t* chosen,
                                      const int64_t* rejected, int64_t n_heads, const void* resp, const void* share,
                                      int dtype, void* out, const maxmin_parallel* parallel))

extern "C" int maxmin_mixture_log_likelihood_fwd_cpu(const maxmin_comparisons* comparisons,
                                                     const maxmin_mixtures* mixtures, const void* margins, int dtype,
                                                     void* z, void* log_resp, const maxmin_parallel* parallel) {
  return MAXMIN_DISPATCH(mixture_log_likelihood_fwd, comparisons, mixtures, margins, dtype, z, log_resp, parallel);
}

extern "C" int maxmin_mixture_log_likelihood_bwd_cpu(const maxmin_comparisons* comparisons,
                                                     const maxmin_mixtures* mixtures, const void* margins, int dtype,
                                                     const void* log_resp, const void* grad_z, void* grad_margins,
                                                     void* grad_log_weights, const maxmin_parallel* parallel) {
  return MAXMIN_DISPATCH(mixture_log_likelihood_bwd, comparisons, mixtures, margins, dtype, log_resp, grad_z,
                         grad_margins, grad_log_weights, parallel);
}

extern "C" int maxmin_choice_shares_fwd_cpu(const maxmin_comparisons* comparisons, int64_t n_heads, const void* margins,
                                            int dtype, void* log_prob, void* share, const maxmin_parallel* parallel) {
  return MAXMIN_DISPATCH(choice_shares_fwd, comparisons, n_heads, margins, dtype, log_prob, share, parallel);
}

extern "C" int maxmin_choice_shares_bwd_cpu(const maxmin_comparisons* comparisons, int64_t n_heads,
                                            const void* grad_log_prob, const void* share, int dtype, void* grad_margins,
                                            const maxmin_parallel* parallel) {
  return MAXMIN_DISPATCH(choice_shares_bwd, comparisons, n_heads, grad_log_prob, share, dtype, grad_margins, parallel);
}

extern "C" int maxmin_weighted_gram_cpu(const maxmin_comparisons* comparisons, const maxmin_differences* rows,
                                        int64_t n_heads, const void* resp, const void* share, void* out,
                                        const maxmin_parallel* parallel) {
  return MAXMIN_DISPATCH(weighted_gram, comparisons, rows, n_heads, resp, share, out, parallel);
}

extern "C" int maxmin_weighted_laplacian_cpu(const maxmin_comparisons* comparisons, int64_t n_items,
                                             const int64_t* chosen, const int64_t* rejected, int64_t n_heads,
                                             const void* resp, const void* share, int dtype, void* out,
                                             const maxmin_parallel* parallel) {
  return MAXMIN_DISPATCH(weighted_laplacian, comparisons, n_items, chosen, rejected, n_heads, resp, share, dtype, out,
                         parallel);
}
