// What clusters and chunks left, added in fixed order: two small launches after the pass.
#pragma once
#include <cstdint>

#include "em_pass_config.h"

namespace maxmin::em {

struct Split {
  int64_t n_split;
  const int32_t* begin;
  const int64_t* annotator;
  double *resp, *evidence;  // (n_split, H)
};

// (5), (6), (7T), (7H) of annotators that were cut into chunks: a thread an annotator and head.
__global__ void split_posterior_kernel(const Arguments a, const Split split, int H) {
  const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, n = at / H;
  if (n >= split.n_split) return;
  const int h = static_cast<int>(at % H), begin = a.mixture_begin[h], end = a.mixture_end[h];
  auto joint = [&](int k) {
    double sum = a.log_weights[k];
    for (int64_t c = split.begin[n]; c < split.begin[n + 1]; ++c) {
      const float2 part = a.chunk_sums[c * H + k];
      sum += double(part.x) + part.y;
    }
    return sum;
  };
  const double temperature = a.objective.temperature;
  double top = -INFINITY, z = 0.;
  int winner = begin;  // the first of equals
  for (int k = begin; k < end; ++k) {
    const double here = joint(k);
    if (here > top) winner = k;
    top = fmax(top, here);
  }
  for (int k = begin; k < end; ++k) z += exp((joint(k) - top) / temperature);
  double evidence = top + temperature * log(z), log_resp = (joint(h) - evidence) / temperature;
  if (a.objective.hard && !isnan(z)) {
    evidence = top;
    log_resp = h == winner ? 0. : -INFINITY;
  }
  a.log_resp[split.annotator[n] * H + h] = static_cast<float>(log_resp);
  split.resp[at] = exp(log_resp);
  split.evidence[at] = evidence;
}

// A thread an element of the gradient; those of the first column add evidence and mass too.
__global__ void join_kernel(const Arguments a, const Split split, int H, int64_t n_clusters, double* evidence,
                            double* mass, float* gradient) {
  const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, size = H * a.n_features;
  if (at >= size) return;
  const int64_t h = at / a.n_features;
  double sum = 0.;
  for (int64_t q = 0; q < n_clusters; ++q) sum += a.gradient_parts[q * size + at];
  for (int64_t n = 0; n < split.n_split; ++n) {
    double whole = 0.;
    for (int64_t c = split.begin[n]; c < split.begin[n + 1]; ++c) whole += a.chunk_gradients[c * size + at];
    sum += split.resp[n * H + h] * whole;
  }
  gradient[at] = static_cast<float>(sum);
  if (at % a.n_features) return;
  double z = 0., m = 0.;
  for (int64_t q = 0; q < n_clusters; ++q) {
    z += a.evidence_parts[q * H + h];
    m += a.mass_parts[q * H + h];
  }
  for (int64_t n = 0; n < split.n_split; ++n) {
    z += split.evidence[n * H + h];
    m += split.resp[n * H + h];
  }
  evidence[h] = z;
  mass[h] = m;
}

}  // namespace maxmin::em
