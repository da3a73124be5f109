// What one EM pass over items does with the rows of a few comparisons, kLanes vectors of heads at a time.
#pragma once
#include "choices.h"

namespace maxmin {
namespace MAXMIN_ISA {

constexpr int kLanes = 3;  // vectors of heads side by side

template <class Real>
struct Limits;  // how far a head's scores may lie apart, so that the products below stay normal numbers
template <>
struct Limits<float> {
  static constexpr double range = 20, log_smallest = 85;
};
template <>
struct Limits<double> {
  static constexpr double range = 170, log_smallest = 700;
};

template <class Real, int V>
static void differences(const Real* table, int64_t stride, const int64_t* chosen, const int64_t* rejected, int64_t n,
                        Real* margins) {
  for (int64_t i = 0; i < n; i++) {
    const Real *c = table + chosen[i] * stride, *r = table + rejected[i] * stride;
    MAXMIN_UNROLL for (int v = 0; v < V; v++)
        store(margins + i * stride + v * kWidth<Real>, load(c + v * kWidth<Real>) - load(r + v * kWidth<Real>));
  }
}

// The product of many probabilities p = 1 - s, as mantissa and exponent, so that it takes one logarithm at the end.
template <class Real>
struct Product {
  Vec<Real> mantissa, shares;  // shares: the sum of s
  IVec<Real> exponent;

  MAXMIN_INLINE void clear(Product& p) { p = {splat(Real(1)), Vec<Real>{}, IVec<Real>{}}; }
  MAXMIN_INLINE void split(Product& p) {
    constexpr int bits = sizeof(Real) == 4 ? 23 : 52;
    const IVec<Real> one = (IVec<Real>)splat(Real(1)), i = (IVec<Real>)p.mantissa - one;
    p.exponent += i >> bits;
    p.mantissa = (Vec<Real>)((i & (((IVec<Real>{} + 1) << bits) - 1)) + one);
  }
};

// The logarithm of a product, onto joint. When no choice was a surprise it lies in the digits that a product near 1 has
// rounded off: then it is taken from 1 - product, which the n shares give.
template <class Real>
static void add_log(const Product<Real>& p, const Real* shares, int64_t stride, int64_t n, double* joint) {
  constexpr int w = kWidth<Real>;
  Vec<Real> log = vlog(p.mantissa), exponent = __builtin_convertvector(p.exponent, Vec<Real>);
  const auto near_one = p.shares < Real(0.5);  // so is 1 - product then
  bool any = false;
  for (int j = 0; j < w; j++) any |= near_one[j] != 0;
  if (any) {
    Vec<Real> rest{};
    for (int64_t i = 0; i < n; i++) {
      const Vec<Real> s = load(shares + i * stride);
      rest = (rest + s) - rest * s;
    }
    log = near_one ? -atanh2(rest / (Real(2) - rest)) : log;  // log1p(-rest)
    exponent = near_one ? Vec<Real>{} : exponent;
  }
  add_wide<Real>(joint, log, 1);
  add_wide<Real>(joint, exponent, 0.69314718055994530942);
}

// Pairs, from a table of exponentials. Four rows share a division: their sums multiply to a normal number.
template <class Real, int V>
static void shares_of_exponentials(const Real* table, int64_t stride, const int64_t* chosen, const int64_t* rejected,
                                   int64_t n, int64_t batch, Real* shares, double* joint) {
  constexpr int w = kWidth<Real>;
  Product<Real> product[V];
  MAXMIN_UNROLL for (int v = 0; v < V; v++) Product<Real>::clear(product[v]);
  for (int64_t begin = 0; begin < n; begin += batch) {
    const int64_t end = least(n, begin + batch);
    int64_t i = begin;
    for (; i + 4 <= end; i += 4) {
      const Real *c[4], *r[4];
      MAXMIN_UNROLL for (int k = 0; k < 4; k++) {
        c[k] = table + chosen[i + k] * stride;
        r[k] = table + rejected[i + k] * stride;
      }
      Real* to = shares + i * stride;
      MAXMIN_UNROLL for (int v = 0; v < V; v++) {
        Vec<Real> ec[4], er[4], sum[4], s[4];
        MAXMIN_UNROLL for (int k = 0; k < 4; k++) {
          ec[k] = load(c[k] + v * w), er[k] = load(r[k] + v * w);
          sum[k] = ec[k] + er[k];
        }
        Vec<Real> sum01 = sum[0] * sum[1], sum23 = sum[2] * sum[3], inverse = Real(1) / (sum01 * sum23);
        Vec<Real> inverse01 = inverse * sum23, inverse23 = inverse * sum01;
        s[0] = er[0] * (inverse01 * sum[1]), s[1] = er[1] * (inverse01 * sum[0]);
        s[2] = er[2] * (inverse23 * sum[3]), s[3] = er[3] * (inverse23 * sum[2]);
        MAXMIN_UNROLL for (int k = 0; k < 4; k++) store(to + k * stride + v * w, s[k]);
        product[v].mantissa *= ((ec[0] * ec[1]) * (ec[2] * ec[3])) * inverse;
        product[v].shares += (s[0] + s[1]) + (s[2] + s[3]);
      }
    }
    for (; i < end; i++) {
      const Real *c = table + chosen[i] * stride, *r = table + rejected[i] * stride;
      MAXMIN_UNROLL for (int v = 0; v < V; v++) {
        Vec<Real> ec = load(c + v * w), er = load(r + v * w), inverse = Real(1) / (ec + er), s = er * inverse;
        store(shares + i * stride + v * w, s);
        product[v].mantissa *= ec * inverse;
        product[v].shares += s;
      }
    }
    MAXMIN_UNROLL for (int v = 0; v < V; v++) Product<Real>::split(product[v]);
  }
  MAXMIN_UNROLL for (int v = 0; v < V; v++) add_log(product[v], shares + v * w, stride, n, joint + v * w);
}

// gradient[chosen] += gamma s, gradient[rejected] -= gamma s
template <class Real, int V>
static void scatter(const Real* shares, int64_t stride, const int64_t* chosen, const int64_t* rejected, int64_t n,
                    const Real* gamma, Real* gradient) {
  constexpr int w = kWidth<Real>;
  Vec<Real> g[V];
  MAXMIN_UNROLL for (int v = 0; v < V; v++) g[v] = load(gamma + v * w);
  for (int64_t i = 0; i < n; i++) {
    Real *c = gradient + chosen[i] * stride, *r = gradient + rejected[i] * stride;
    MAXMIN_UNROLL for (int v = 0; v < V; v++) {
      Vec<Real> pull = g[v] * load(shares + i * stride + v * w);
      store(c + v * w, load(c + v * w) + pull);
      store(r + v * w, load(r + v * w) - pull);
    }
  }
}

// f(lane, V): heads in strips of up to kLanes vectors.
#define MAXMIN_STRIPS(stride, call)                               \
  for (int64_t h = 0; h < (stride); h += kLanes * kWidth<Real>) { \
    const int64_t vectors = ((stride) - h) / kWidth<Real>;        \
    if (vectors >= 3) {                                           \
      constexpr int V = 3;                                        \
      call;                                                       \
    } else if (vectors == 2) {                                    \
      constexpr int V = 2;                                        \
      call;                                                       \
    } else {                                                      \
      constexpr int V = 1;                                        \
      call;                                                       \
    }                                                             \
  }

}  // namespace MAXMIN_ISA
}  // namespace maxmin
