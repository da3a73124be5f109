// One EM pass over rows in one read of the features, for Hopper (sm_90a): MATH (2)-(8) and the group masses.
// Built only where nvcc is. csrc/cuda/README.md has the plan.
#pragma once
#include "maxmin/common.h"

#ifdef __cplusplus
extern "C" {
#endif

// What depends on the data alone: rows cut into tiles, tiles dealt to clusters. On the device, but for `carry`.
typedef struct maxmin_em_cuda_plan {
  const void* tiles;          // maxmin::em::Tile, 256 bytes each, 16-byte aligned; weights v of the rows filled in
  const int32_t* tile_begin;  // (n_clusters + 1)
  int64_t n_clusters;         // shares of the tiles, at most what maxmin_em_pass_cuda_clusters says
  int carry;                  // an annotator may cross tiles
  // 5: the pass. To find what bounds it, with 8 heads, at most 4096 features and no carry: 1 loads only, 2 + margins,
  // 3 + exchange, 4 + posterior; the results then mean nothing.
  int steps;
  int64_t n_chunks;                // pieces of annotators too long for one cluster
  int64_t n_split;                 // such annotators
  const int32_t* split_begin;      // (n_split + 1) chunks of each
  const int64_t* split_annotator;  // (n_split) their row in log_resp
} maxmin_em_cuda_plan;

// n_heads is 8 or blocks of 16, above 4096 features blocks of 8; a head's mixture owns the heads
// [mixture_begin[h], mixture_end[h]), all in one block.
typedef struct maxmin_em_cuda_heads {
  int64_t n_heads, n_features;
  const float* weight;       // (n_heads, n_features), contiguous
  const float* log_weights;  // (n_heads): log eta
  const int32_t *mixture_begin, *mixture_end;
  // 1: features are float16, whose range is short: `weight` then holds each head's weights times a power of two that
  // puts the largest at [2^14, 2^15). margin_scale (n_heads) undoes it; coef_scale (1) is the power that puts the
  // largest comparison weight there. Powers of two, so nothing is rounded. 0: bfloat16, both unused.
  int half;
  const float *margin_scale, *coef_scale;
} maxmin_em_cuda_heads;

// What is maximised: (3b) with label_noise > 0, (7H) if hard, else (7T), at temperature 1 the likelihood.
typedef struct maxmin_em_cuda_objective {
  int sets;  // 0: every row is a comparison, 1: the tiles know which rows make one
  int hard;
  double label_noise, temperature;
} maxmin_em_cuda_objective;

// Every value is written once; `evidence[h]` is the sum over annotators of Z of the head's mixture.
typedef struct maxmin_em_cuda_outputs {
  float* log_resp;   // (annotators of the plan, n_heads)
  double* evidence;  // (n_heads)
  double* mass;      // (n_heads)
  float* gradient;   // (n_heads, n_features)
} maxmin_em_cuda_outputs;

// Scratch: parts of each cluster, of each chunk, of each split annotator.
typedef struct maxmin_em_cuda_scratch {
  double *evidence_parts, *mass_parts;  // (n_clusters, n_heads)
  float* gradient_parts;                // (n_clusters, n_heads, n_features)
  float* chunk_sums;                    // (n_chunks, n_heads, 2)
  float* chunk_gradients;               // (n_chunks, n_heads, n_features)
  double *split_resp, *split_evidence;  // (n_split, n_heads)
} maxmin_em_cuda_scratch;

// All return 0 or a cudaError_t.
// Shares that the tiles are to be dealt in on the current device: of one block the clusters that run at once.
int maxmin_em_pass_cuda_clusters(int64_t n_heads, int64_t n_features, int half, int carry, int* n_clusters);
// features (n_rows, n_features) bfloat16 or float16; base and row stride (in elements) multiples of 16 bytes.
int maxmin_em_pass_cuda(const maxmin_em_cuda_plan* plan, const maxmin_em_cuda_heads* heads,
                        const maxmin_em_cuda_objective* objective, const void* features, int64_t n_rows,
                        int64_t stride_row, const maxmin_em_cuda_outputs* out, const maxmin_em_cuda_scratch* scratch,
                        void* stream);
const char* maxmin_cuda_error_name(int error);

#ifdef __cplusplus
}
#endif
