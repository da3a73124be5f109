// What a rows pass does with one tile of rows. MATH (2)-(6), (8).
#pragma once
#include "em_pass_rows_pass.h"
#include "storage.h"

namespace maxmin {
namespace MAXMIN_ISA {

// The comparisons of a tile, and its rows as the products read them.
template <class X, class Real>
struct Tile {
  Choices<Real> choices;
  const X* x;
  int64_t stride;
  mutable Ahead ahead;
};

template <class T>
void take_over(const Pass<T>& p, Buffers<typename Pass<T>::Real>& buffers, double* __restrict__ into) {
  typename Pass<T>::Real* __restrict__ sums = buffers.sums;
  if (buffers.summed == 0) return;
  for (int64_t i = 0; i < p.n_sums; i++) {
    into[i] += (double)sums[i];
    sums[i] = 0;
  }
  buffers.summed = 0;
}

// (2), (3): margins, then shares and log-probabilities, times the comparisons' weights. The latter wait for add_up_tile
// if logarithms are of products.
template <class T, class X, class Real>
void shares(const Pass<T>& p, const HeadBlock& b, const Tile<X, Real>& tile, const Buffers<Real>& buffers) {
  const Choices<Real>& part = tile.choices;
  const Real* w = p.weights + b.weights;
  if (&b != p.blocks) tile.ahead.at = reinterpret_cast<const char*>(tile.x);  // the next tile has been asked for
  constexpr bool widened = sizeof(X) == sizeof(Real);
  if (b.margins == Margins::kDots)
    dot_margins<X>(tile.x, tile.stride, part.n_rows, w, p.width, b.padded, buffers.s, tile.ahead);
  if constexpr (widened)
    if (b.margins == Margins::kLanes)
      lane_margins(tile.x, tile.stride, part.n_rows, w, p.n_features, b.padded, buffers.s, tile.ahead);
  if constexpr (widened && sizeof(Real) == sizeof(float))
    if (b.margins == Margins::kQuads) quad_margins(tile.x, tile.stride, part.n_rows, w, p.width, buffers.s, tile.ahead);
  if (p.multiplied) return;
  choose(part, b.padded, buffers.s, buffers.c);
  if (!part.weight) return;
  for (int64_t c = 0; c < part.count; c++) {
    const Real v = part.weight[part.first + c];
    for (int64_t h = 0; h < b.padded; h++) buffers.c[c * b.padded + h] *= v;
    for (int64_t i = part.row(c) * b.padded; i < part.row(c + 1) * b.padded; i++) buffers.s[i] *= v;
  }
}

// (4) of the comparisons c0 ... c1 of a tile.
template <class T, class Real>
void add_up_tile(const Pass<T>& p, const HeadBlock& b, const Buffers<Real>& buffers, int64_t c0, int64_t c1,
                 double* joint) {
  const int64_t n = c1 - c0;
  if (p.multiplied)
    share_pairs(buffers.s + c0 * b.padded, n * b.padded, b.padded, period<Real>(b.padded), buffers.pair_sums, joint);
  else
    add_rows(buffers.c + c0 * b.padded, n, b.padded, joint);
}

// (8): sums += c^T x.
template <class T, class X, class Real>
void gradient(const Pass<T>& p, const HeadBlock& b, const Tile<X, Real>& tile, const Real* c, Real* all_sums) {
  Real* sums = all_sums + b.sums;
  const int64_t n_rows = tile.choices.n_rows;
  if constexpr (sizeof(X) == sizeof(Real))
    if (b.transposed) {
      outer<Real>(tile.x, tile.stride, p.n_features, c, b.padded, b.padded, n_rows, sums, b.padded, tile.ahead);
      return;
    }
  outer<X>(c, b.padded, b.n_heads, tile.x, tile.stride, p.width, n_rows, sums, p.width, tile.ahead);
}

template <class Real>
void set_log_weights(const maxmin_mixtures& mixtures, const HeadBlock& b, double* joint) {
  const Real* log_weights = static_cast<const Real*>(mixtures.log_weights) + b.head;
  for (int64_t h = 0; h < b.padded; h++) joint[h] = h < b.n_heads ? (double)log_weights[h] : 0;
}

// (5), (6) of n annotators from `a` on, whose sums are in the buffers.
template <class T, class Real>
void respond(const Pass<T>& p, const HeadBlock& b, int64_t a, int64_t n, const Buffers<Real>& buffers, double* mass,
             double* log_likelihood) {
  posteriors(b, n, buffers.posterior(), p.mixtures.hard != 0, p.mixtures.temperature, log_likelihood + b.mixture);
  Real* log_resp = static_cast<Real*>(p.out.log_resp) + a * p.mixtures.n_heads + b.head;
  for (int64_t i = 0; i < n; i++)
    for (int64_t h = 0; h < b.n_heads; h++) {
      log_resp[i * p.mixtures.n_heads + h] = buffers.log_resp[i * b.padded + h];
      mass[b.at + h] += (double)buffers.resp[i * b.padded + h];
    }
}

// f(tile) for the comparisons begin ... end.
template <class T, class Real, class F>
void with_tile(const Pass<T>& p, const Buffers<Real>& buffers, int64_t begin, int64_t end, F f) {
  const Choices<Real> choices = choices_between<Real>(p.data, begin, end);
  const T* x = p.features + choices.first_row * p.stride_row;
  const Ahead ahead{reinterpret_cast<const char*>(x + choices.n_rows * p.stride_row)};
  if (p.direct) {
    f(Tile<T, Real>{choices, x, p.stride_row, ahead});
    return;
  }
  for (int64_t i = 0; i < choices.n_rows; i++)  // what is behind a row's features stays 0
    widen_row(x + i * p.stride_row, p.stride_feature, p.n_features, buffers.rows + i * p.width);
  f(Tile<Real, Real>{choices, buffers.rows, p.width, ahead});
}

}  // namespace MAXMIN_ISA
}  // namespace maxmin
