// The welfare of one row of utilities and its weights, in double. What the formulas are: MATH section 5.
#pragma once
#include <math.h>
#include <string.h>

#include "maxmin/welfare.h"
#include "simd.h"

namespace maxmin {
namespace MAXMIN_ISA {
namespace {

constexpr double kTiny = 2.2250738585072014e-308;

// Places for one row: seven arrays of n_groups numbers and two of indices.
constexpr int64_t kScratchArrays = 9;
struct Scratch {
  double *u, *eta, *weights, *above, *tilted, *sorted, *ratio;
  int64_t *order, *spare;
};
inline Scratch scratch_of(double* memory, int64_t n) {
  static_assert(sizeof(int64_t) == sizeof(double), "");
  int64_t* index = reinterpret_cast<int64_t*>(memory + 7 * n);
  return {memory,         memory + n,     memory + 2 * n, memory + 3 * n, memory + 4 * n,
          memory + 5 * n, memory + 6 * n, index,          index + n};
}

// Indices of `key` from the smallest (or largest) on; equal ones stay in order. Merge sort.
inline void sort_indices(const double* key, int64_t n, bool descending, int64_t* order, int64_t* spare) {
  for (int64_t i = 0; i < n; i++) order[i] = i;
  for (int64_t width = 1; width < n; width *= 2) {
    for (int64_t begin = 0; begin < n; begin += 2 * width) {
      int64_t middle = begin + width < n ? begin + width : n, end = begin + 2 * width < n ? begin + 2 * width : n;
      int64_t i = begin, j = middle;
      for (int64_t k = begin; k < end; k++) {
        bool second = i == middle;
        if (!second && j < end) {
          double a = key[order[i]], b = key[order[j]];
          second = descending ? b > a : b < a;
        }
        spare[k] = order[second ? j++ : i++];
      }
    }
    memcpy(order, spare, n * sizeof(int64_t));
  }
}

inline double dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t k = 0; k < n; k++) sum += a[k] * b[k];
  return sum;
}
inline int64_t first_min(const double* u, int64_t n) {
  int64_t best = 0;
  for (int64_t k = 1; k < n; k++)
    if (u[k] < u[best]) best = k;
  return best;
}

inline double softmin(double tau, int64_t n, Scratch& s) {
  double top = -INFINITY, total = 0;
  for (int64_t k = 0; k < n; k++) {
    s.sorted[k] = log(s.eta[k]) - s.u[k] / tau;
    if (s.sorted[k] > top) top = s.sorted[k];
  }
  for (int64_t k = 0; k < n; k++) total += s.weights[k] = exp(s.sorted[k] - top);
  for (int64_t k = 0; k < n; k++) s.weights[k] /= total;
  return isinf(top) ? -tau * top : -tau * (top + log(total));
}

// Nash and the power means: logarithms of utilities that must be positive where a group has a share.
inline bool logarithms(int64_t n, const Scratch& s, double* log_u) {
  bool positive = true;
  for (int64_t k = 0; k < n; k++) {
    positive = positive && !(s.u[k] <= 0 && s.eta[k] > 0);
    log_u[k] = s.u[k] > 0 && s.eta[k] > 0 ? log(s.u[k]) : 0.0;
  }
  return positive;
}

inline double nash(int64_t n, Scratch& s) {
  double* log_u = s.sorted;
  if (!logarithms(n, s, log_u)) return NAN;
  for (int64_t k = 0; k < n; k++) s.weights[k] = s.eta[k] * exp(-log_u[k]);
  return dot(s.eta, log_u, n);
}

// log (sum eta u^p)^(1/p) = centre + log(sum eta e^x) / p with x = p (log u - centre): exact near p = 0, where it is
// the geometric mean.
inline double power_mean(double p, int64_t n, Scratch& s) {
  double* log_u = s.sorted;
  if (!logarithms(n, s, log_u)) return NAN;
  double log_mean = dot(s.eta, log_u, n);
  if (p != 0) {
    double widest = 0, top = -INFINITY, near = 0, far = 0;
    for (int64_t k = 0; k < n; k++) {
      if (s.eta[k] <= 0) continue;
      double x = p * (log_u[k] - log_mean);
      widest = fabs(x) > widest ? fabs(x) : widest;
      top = x > top ? x : top;
    }
    for (int64_t k = 0; k < n; k++) {
      if (s.eta[k] <= 0) continue;
      double x = p * (log_u[k] - log_mean);
      near += s.eta[k] * expm1(x);
      far += s.eta[k] * exp(x - top);
    }
    log_mean += (widest < 1 ? log1p(near) : top + log(far)) / p;
  }
  for (int64_t k = 0; k < n; k++) s.weights[k] = s.eta[k] * exp((p - 1) * (log_u[k] - log_mean));
  return exp(log_mean);
}

// The smallest utilities filled up to eta / alpha until the mass is one.
inline void cvar(double alpha, int64_t n, Scratch& s) {
  sort_indices(s.u, n, false, s.order, s.spare);
  double left = 1;
  for (int64_t i = 0; i < n; i++) {
    int64_t k = s.order[i];
    double cap = s.eta[k] / alpha;
    s.weights[k] = cap < left ? cap : left;
    left -= s.weights[k];
  }
}

inline void by_rank(const double* rank_weights, int64_t n, Scratch& s) {
  sort_indices(s.u, n, false, s.order, s.spare);
  for (int64_t i = 0; i < n; i++) s.weights[s.order[i]] = rank_weights[i];
}

// Mass moved from the largest utilities to the smallest.
inline void tv_ball(double radius, int64_t n, Scratch& s) {
  const int64_t worst = first_min(s.u, n);
  double held = 0, taken = 0;
  for (int64_t k = 0; k < n; k++) held += s.u[k] == s.u[worst] ? s.eta[k] : 0.0;
  double move = fmin(fmax(1 - held, 0.0), radius);
  sort_indices(s.u, n, true, s.order, s.spare);
  for (int64_t i = 0; i < n; i++) {
    int64_t k = s.order[i];
    double take = fmin(s.eta[k], fmax(move - taken, 0.0));
    s.weights[k] = s.eta[k] - take;
    taken += take;
  }
  s.weights[worst] += taken;
}

// s.above: utilities over that of the worst group with a share (0 without a share). Returns the mass of those worst.
inline double measure_above(int64_t n, Scratch& s) {
  double low = INFINITY, mass = 0;
  for (int64_t k = 0; k < n; k++)
    if (s.eta[k] > 0 && s.u[k] < low) low = s.u[k];
  for (int64_t k = 0; k < n; k++) {
    s.above[k] = s.eta[k] > 0 ? s.u[k] - low : 0.0;
    if (s.above[k] == 0) mass += s.eta[k];
  }
  return mass;
}

// q ∝ eta (t - u)_+. Among the j worst groups, of mass m, mean and variance given, the radius fixes t in closed form;
// the j wanted is the first whose t does not reach the next group.
inline void chi2_ball(double radius, int64_t n, Scratch& s) {
  const double mass_worst = measure_above(n, s);
  if (mass_worst * (1 + radius) >= 1) {
    for (int64_t k = 0; k < n; k++) s.weights[k] = s.eta[k] > 0 && s.above[k] == 0 ? s.eta[k] / mass_worst : 0.0;
    return;
  }
  for (int64_t k = 0; k < n; k++) s.ratio[k] = s.eta[k] > 0 ? s.above[k] : INFINITY;  // last: they change no sum
  sort_indices(s.ratio, n, false, s.order, s.spare);
  double total = 0, held = 0, first = 0, mean = 0, spread = 0, slope = 0;
  for (int64_t i = 0; i < n; i++) total += s.eta[s.order[i]];
  for (int64_t i = 0; i < n; i++) {
    const int64_t k = s.order[i];
    const double x = s.above[k], share = s.eta[k] / total, before = mean;
    held += s.eta[k];
    first += share * x;
    const double mass = held / total;  // exactly 1 in the end: a small radius is a difference from that
    mean = first / fmax(mass, kTiny);
    spread += share * (x - before) * (x - mean);  // mass times variance
    const double room = mass * radius - (1 - mass), next = i + 1 < n ? s.ratio[s.order[i + 1]] : INFINITY;
    slope = sqrt(fmax(room * mass / fmax(spread, kTiny), 0.0));  // 1 / (t - mean)
    if (room > 0 && slope * (next - mean) >= 1) break;
  }
  double sum = 0;
  for (int64_t k = 0; k < n; k++) sum += s.weights[k] = s.eta[k] * fmax(1 + slope * (mean - s.above[k]), 0.0);
  for (int64_t k = 0; k < n; k++) s.weights[k] /= sum;
}

// s.weights = max(floor, c s.tilted) with the c that makes them sum to one.
inline void normalise(const double* floor, int64_t n, Scratch& s) {
  double scale = 0, sum = 0;
  if (!floor) {
    for (int64_t k = 0; k < n; k++) sum += s.tilted[k];
    for (int64_t k = 0; k < n; k++) s.weights[k] = s.tilted[k] / sum;
    return;
  }
  // Groups leave their floor in the order of floor / tilted.
  double lifted = 1;
  for (int64_t k = 0; k < n; k++) {
    lifted -= floor[k];
    s.ratio[k] = s.tilted[k] > 0 ? floor[k] / s.tilted[k] : INFINITY;
  }
  sort_indices(s.ratio, n, false, s.order, s.spare);
  for (int64_t i = 0; i < n; i++) {
    lifted += floor[s.order[i]];
    sum += s.tilted[s.order[i]];
    scale = lifted / sum;
    if (scale <= (i + 1 < n ? s.ratio[s.order[i + 1]] : INFINITY)) break;
  }
  for (int64_t k = 0; k < n; k++) s.weights[k] = fmax(floor[k], scale * s.tilted[k]);
}

// KL(weights || eta) as a sum of terms >= 0, which keeps its digits near zero.
inline double divergence(int64_t n, const Scratch& s) {
  double sum = 0;
  for (int64_t k = 0; k < n; k++) {
    if (s.eta[k] <= 0) continue;
    const double excess = s.weights[k] / s.eta[k] - 1;
    sum += s.eta[k] * ((excess > -1 ? (1 + excess) * log1p(excess) : 0.0) - excess);
  }
  return sum;
}

// q = max(floor, c eta exp(-u / tau)): bisection on log tau.
inline void kl_ball(double radius, const double* floor, int64_t n, Scratch& s) {
  if (radius == 0) {
    memcpy(s.weights, s.eta, n * sizeof(double));
    return;
  }
  measure_above(n, s);
  double span = kTiny;
  for (int64_t k = 0; k < n; k++) {
    s.tilted[k] = s.eta[k] > 0 && s.above[k] == 0 ? s.eta[k] : 0.0;
    span = fmax(span, s.above[k]);
  }
  normalise(floor, n, s);
  if (divergence(n, s) <= radius) return;  // the egalitarian corner
  // By Hoeffding's lemma the divergence is at most span^2 / (8 tau^2).
  double low = log(span * 1e-18), high = log(span * (4 / sqrt(radius)));
  for (int step = 0; step < 73; step++) {
    const double middle = step < 72 ? (low + high) / 2 : high, tau = exp(middle);
    for (int64_t k = 0; k < n; k++) s.tilted[k] = s.eta[k] * exp(-s.above[k] / tau);
    normalise(floor, n, s);
    (divergence(n, s) > radius ? low : high) = middle;
  }
}

// From s.u and s.eta to the value (returned) and s.weights. NaN: both are undefined.
inline double welfare_row(const maxmin_welfare& w, Scratch& s) {
  const int64_t n = w.n_groups;
  for (int64_t k = 0; k < n; k++)
    if (s.u[k] != s.u[k]) return NAN;
  switch (w.kind) {
    case MAXMIN_MIN: {
      const int64_t worst = first_min(s.u, n);
      for (int64_t k = 0; k < n; k++) s.weights[k] = k == worst;
      return s.u[worst];
    }
    case MAXMIN_SOFTMIN: return softmin(w.param, n, s);
    case MAXMIN_NASH: return nash(n, s);
    case MAXMIN_POWER:
      if (w.param < 1) return power_mean(w.param, n, s);
      memcpy(s.weights, s.eta, n * sizeof(double));
      break;
    case MAXMIN_CVAR: cvar(w.param, n, s); break;
    case MAXMIN_OWA: by_rank(w.rank_weights, n, s); break;
    case MAXMIN_KL:
    case MAXMIN_FLOOR: kl_ball(w.param, w.floor, n, s); break;
    case MAXMIN_CHI2: chi2_ball(w.param, n, s); break;
    case MAXMIN_TV: tv_ball(w.param, n, s); break;
    default: memcpy(s.weights, s.eta, n * sizeof(double));
  }
  return dot(s.weights, s.u, n);
}

}  // namespace
}  // namespace MAXMIN_ISA
}  // namespace maxmin
