// The C interface of em_pass.h, indexed form: the best instruction set that this processor has.
#include "isa.h"
#include "maxmin/em_pass.h"

MAXMIN_DECLARE(int em_pass_indexed(const maxmin_comparisons* comparisons, const maxmin_mixtures* mixtures,
                                   const void* scores, int dtype, int64_t n_items, const int64_t* chosen,
                                   const int64_t* rejected, const maxmin_em_outputs* out,
                                   const maxmin_parallel* parallel))

extern "C" int maxmin_em_pass_indexed_cpu(const maxmin_comparisons* comparisons, const maxmin_mixtures* mixtures,
                                          const void* scores, int dtype, int64_t n_items, const int64_t* chosen,
                                          const int64_t* rejected, const maxmin_em_outputs* out,
                                          const maxmin_parallel* parallel) {
  return MAXMIN_DISPATCH(em_pass_indexed, comparisons, mixtures, scores, dtype, n_items, chosen, rejected, out,
                         parallel);
}
