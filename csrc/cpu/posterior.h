// (5), (6), (7T), (7H): an annotator's log-evidence and responsibilities from its sums (4), in double.
#pragma once
#include "maxmin/em_pass.h"
#include "simd.h"

namespace maxmin {
namespace MAXMIN_ISA {

// The heads of the mixtures first .. first + count.
struct Mixtures {
  int64_t count, n_heads;
  const int64_t* indptr;  // of these mixtures; indptr[0] need not be 0
  double temperature;
  bool hard;
};

// joint (n_heads) holds L and becomes log gamma; gamma (n_heads) and evidence (count) are written, total (count) is
// scratch. Arrays have a vector's width of slack, finite or not.
static void posterior(const Mixtures& mixtures, double* joint, double* gamma, double* evidence, double* total) {
  const int64_t *ptr = mixtures.indptr, n_mixtures = mixtures.count, n_heads = mixtures.n_heads, h0 = ptr[0];
  constexpr int w = kWidth<double>;
  const double inf = __builtin_inf();
  if (mixtures.hard) {
    for (int64_t g = 0; g < n_mixtures; g++) {
      const int64_t begin = ptr[g] - h0, end = ptr[g + 1] - h0;
      double top = -inf;
      int64_t first = begin;
      for (int64_t h = begin; h < end; h++)
        if (joint[h] > top || joint[h] != joint[h]) top = joint[h], first = h;  // a NaN stays: nothing is above it
      for (int64_t h = begin; h < end; h++) {
        gamma[h] = top != top ? top : h == first;
        joint[h] = top != top ? top : h == first ? 0 : -inf;
      }
      evidence[g] = top;
    }
    return;
  }
  if (mixtures.temperature != 1)
    for (int64_t h = 0; h < n_heads; h++) joint[h] /= mixtures.temperature;
  for (int64_t g = 0; g < n_mixtures; g++) {
    const int64_t begin = ptr[g] - h0, end = ptr[g + 1] - h0;
    double top = -inf;
    for (int64_t h = begin; h < end; h++) top = joint[h] > top ? joint[h] : top;
    if (top == -inf) top = 0;  // every head ruled out: -inf, and no NaN, is the evidence
    for (int64_t h = begin; h < end; h++) joint[h] -= top;
    evidence[g] = top;
  }
  for (int64_t h = 0; h < n_heads; h += w) store(gamma + h, vexp(load(joint + h)));
  for (int64_t g = 0; g < n_mixtures; g++) {
    const int64_t begin = ptr[g] - h0, end = ptr[g + 1] - h0;
    double sum = 0;
    for (int64_t h = begin; h < end; h++) sum += gamma[h];
    const double inverse = 1 / sum;
    for (int64_t h = begin; h < end; h++) gamma[h] *= inverse;
    total[g] = sum;
  }
  for (int64_t g = 0; g < n_mixtures; g += w) {
    Vec<double> log_total = vlog(load(total + g));
    store(evidence + g, (load(evidence + g) + log_total) * mixtures.temperature);
    store(total + g, log_total);
  }
  for (int64_t g = 0; g < n_mixtures; g++)
    for (int64_t h = ptr[g] - h0; h < ptr[g + 1] - h0; h++) joint[h] -= total[g];
}

}  // namespace MAXMIN_ISA
}  // namespace maxmin
