// The C interface of em_pass.h, rows form: the best instruction set that this processor has.
#include "isa.h"
#include "maxmin/em_pass.h"

MAXMIN_DECLARE(int em_pass_rows(const maxmin_comparisons* comparisons, const maxmin_mixtures* mixtures,
                                const void* features, int dtype, int64_t n_features, int64_t stride_row,
                                int64_t stride_feature, const void* weight, const maxmin_em_outputs* out,
                                const maxmin_parallel* parallel))

extern "C" int maxmin_em_pass_rows_cpu(const maxmin_comparisons* comparisons, const maxmin_mixtures* mixtures,
                                       const void* features, int dtype, int64_t n_features, int64_t stride_row,
                                       int64_t stride_feature, const void* weight, const maxmin_em_outputs* out,
                                       const maxmin_parallel* parallel) {
  return MAXMIN_DISPATCH(em_pass_rows, comparisons, mixtures, features, dtype, n_features, stride_row, stride_feature,
                         weight, out, parallel);
}
