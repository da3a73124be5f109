// One EM pass: MATH (2)-(6), (8) and the group masses, from one read of the features.
#pragma once
#include "maxmin/common.h"

#ifdef __cplusplus
extern "C" {
#endif

// Comparisons are sorted by annotator. `real` below is the accumulation type: double for MAXMIN_F64, else float.
typedef struct maxmin_comparisons {
  int64_t n_annotators, n_comparisons, n_rows;
  const int64_t* indptr;          // (n_annotators + 1) comparisons of each annotator
  const int64_t* choice_indptr;   // (n_comparisons + 1) rows of each comparison; NULL: every row is a pair
  const void* comparison_weight;  // (n_comparisons) real >= 0, or NULL for ones
  double label_noise;             // epsilon of (3b), 0 for none
} maxmin_comparisons;

typedef struct maxmin_mixtures {
  int64_t n_heads, n_mixtures;
  const int64_t* mixture_indptr;  // (n_mixtures + 1) heads of each mixture
  const void* log_weights;        // (n_heads) real: log eta
  double temperature;             // T of (7T), 1 for plain EM
  int hard;                       // one-hot responsibilities, (7H)
} maxmin_mixtures;

typedef struct maxmin_em_outputs {
  double* log_likelihood;  // (n_mixtures) sum over annotators of Z (T logsumexp(L/T); max L when hard)
  void* log_resp;          // (n_annotators, n_heads) real
  double* mass;            // (n_heads) sum of responsibilities
  void* gradient;          // rows: (n_heads, n_features) real; indexed: (n_items, n_heads) real, dLL/dscores
} maxmin_em_outputs;

// features (n_rows, n_features) of `dtype`, strides in elements; weight (n_heads, n_features) real, contiguous.
int maxmin_em_pass_rows_cpu(const maxmin_comparisons* comparisons, const maxmin_mixtures* mixtures,
                            const void* features, int dtype, int64_t n_features, int64_t stride_row,
                            int64_t stride_feature, const void* weight, const maxmin_em_outputs* out,
                            const maxmin_parallel* parallel);

// scores (n_items, n_heads) real, contiguous: features of the items times weights. chosen, rejected (n_rows) item rows.
// dtype MAXMIN_F64 or MAXMIN_F32.
int maxmin_em_pass_indexed_cpu(const maxmin_comparisons* comparisons, const maxmin_mixtures* mixtures,
                               const void* scores, int dtype, int64_t n_items, const int64_t* chosen,
                               const int64_t* rejected, const maxmin_em_outputs* out, const maxmin_parallel* parallel);

#ifdef __cplusplus
}
#endif
