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

// The one-hot form; the first of equal heads wins.
static void posterior_hard(const Mixtures& mixtures, double* joint, double* gamma, double* evidence) {
  const int64_t *ptr = mixtures.indptr, h0 = ptr[0];
  const double inf = __builtin_inf();
  for (int64_t g = 0; g < mixtures.count; g++) {
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
}

// joint becomes joint - top of its mixture, and evidence that top: exponentials of it can all be taken.
static void subtract_tops(const Mixtures& mixtures, double* joint, double* evidence) {
  const int64_t *ptr = mixtures.indptr, h0 = ptr[0];
  for (int64_t g = 0; g < mixtures.count; g++) {
    double top = -__builtin_inf();
    for (int64_t h = ptr[g] - h0; h < ptr[g + 1] - h0; h++) top = joint[h] > top ? joint[h] : top;
    if (top == -__builtin_inf()) top = 0;  // every head ruled out: -inf, and no NaN, is the evidence
    for (int64_t h = ptr[g] - h0; h < ptr[g + 1] - h0; h++) joint[h] -= top;
    evidence[g] = top;
  }
}

// gamma = exp(joint - shift), and total of each mixture; returns the least total, NaN if any is.
static double exponentials(const Mixtures& mixtures, const double* joint, double shift, double* gamma, double* total) {
  const int64_t *ptr = mixtures.indptr, h0 = ptr[0];
  for (int64_t h = 0; h < mixtures.n_heads; h += kWidth<double>) store(gamma + h, vexp(load(joint + h) - shift));
  double least = __builtin_inf();
  for (int64_t g = 0; g < mixtures.count; g++) {
    double sum = 0;
    for (int64_t h = ptr[g] - h0; h < ptr[g + 1] - h0; h++) sum += gamma[h];
    total[g] = sum;
    least = sum < least || sum != sum ? sum : least;
  }
  return least;
}

// joint (n_heads) holds L and becomes log gamma; gamma (n_heads) and evidence (count) are written, total (count) is
// scratch. Arrays have a vector's width of slack, which may hold anything.
static void posterior(const Mixtures& mixtures, double* joint, double* gamma, double* evidence, double* total) {
  const int64_t *ptr = mixtures.indptr, n_mixtures = mixtures.count, n_heads = mixtures.n_heads, h0 = ptr[0];
  constexpr int w = kWidth<double>;
  if (mixtures.hard) return posterior_hard(mixtures, joint, gamma, evidence);
  if (mixtures.temperature != 1)
    for (int64_t h = 0; h < n_heads; h++) joint[h] /= mixtures.temperature;
  // One shift for all mixtures serves where their tops are not too far apart: it takes no look at their bounds.
  for (int64_t h = n_heads; h % w; h++) joint[h] = joint[0];
  Vec<double> tops = splat(-__builtin_inf());
  for (int64_t h = 0; h < n_heads; h += w) tops = vmax(load(joint + h), tops);
  const double shift = reduce_max<double>(tops);
  if (exponentials(mixtures, joint, shift, gamma, total) > 1e-250) {
    for (int64_t g = 0; g < n_mixtures; g += w) store(evidence + g, splat(shift));
    for (int64_t h = 0; h < n_heads; h += w) store(joint + h, load(joint + h) - shift);
  } else {
    subtract_tops(mixtures, joint, evidence);
    exponentials(mixtures, joint, 0, gamma, total);
  }
  double log_total[w], inverse[w];
  for (int64_t g0 = 0; g0 < n_mixtures; g0 += w) {
    const Vec<double> sum = load(total + g0), log = vlog(sum);
    store(log_total, log);
    store(inverse, 1.0 / sum);
    store(evidence + g0, (load(evidence + g0) + log) * mixtures.temperature);
    for (int64_t g = g0; g < n_mixtures && g < g0 + w; g++)
      for (int64_t h = ptr[g] - h0; h < ptr[g + 1] - h0; h++) {
        gamma[h] *= inverse[g - g0];
        joint[h] -= log_total[g - g0];
      }
  }
}

}  // namespace MAXMIN_ISA
}  // namespace maxmin
