// A rows pass: its data, what tasks sum up, the buffers they work with, and the layout of all that by sizes alone.
#pragma once
#include "em_pass_rows_plan.h"
#include "em_pass_rows_products.h"
#include "maxmin/em_pass.h"
#include "pairs.h"

namespace maxmin {
namespace MAXMIN_ISA {

constexpr int64_t kNearBytes = 30 << 10;    // rows of a tile: the nearest cache
constexpr int64_t kMiddleBytes = 92 << 10;  // the second, where the products are long
constexpr int64_t kMarginBytes = 64 << 10;  // margins of a tile
constexpr int64_t kWholeBytes = 384 << 10;  // rows and margins of the longest annotator that stays whole
constexpr int64_t kMostRows = 256;
constexpr int64_t kShortRow = 128;

// The part of an annotator that a task has, if a cut divides it.
struct Part {
  int64_t annotator;  // -1: none
  double* joint;      // (n_padded) sums (4), without log eta
  double* gradient;   // (n_sums) with shares in place of gamma s
  double* resp;       // (n_padded) gamma, known when all tasks are done
};
struct Task {
  Cut begin, end;
  double *gradient, *mass, *log_likelihood;  // (n_sums), (n_padded), (n_mixtures)
  Part first, last;                          // continues the task before; goes on in the next one
};

// Cuts one allocation into arrays. Without a base it only measures, so that the same lines do both.
struct Carver {
  char* base;
  int64_t used;
  template <class T>
  T* take(int64_t n) {
    T* p = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += round_up(n * (int64_t)sizeof(T), 64);
    return p;
  }
};

template <class T>
struct Pass {
  typedef typename Accumulate<T>::type Real;
  const maxmin_comparisons& data;
  const maxmin_mixtures& mixtures;
  const T* features;
  int64_t n_features, stride_row, stride_feature;
  const maxmin_em_outputs& out;

  const HeadBlock* blocks;
  int64_t n_blocks, most_padded, most_mixtures, n_padded, n_sums, n_weights;
  bool multiplied;         // logarithms: of products of an annotator's pairs
  bool direct;             // rows are read where they lie, else copied tile by tile
  int64_t width;           // features of a row as the products see it
  int64_t tile, capacity;  // rows: of several annotators; of one that stays whole, and of the buffers
  const Real* weights;
  Task* tasks;
  int64_t n_tasks;
  int failed;

  // Where the gradient of feature d by head h of a block stands among its sums.
  int64_t place(const HeadBlock& b, int64_t h, int64_t d) const {
    if (b.transposed) return b.sums + d * b.padded + h;
    return b.sums + h * width + (direct ? Rows<T>::lane(d) : d);
  }
};

// What a task works with. s first holds margins; c first log-probabilities.
template <class Real>
struct Buffers {
  Real *rows, *s, *c, *log_resp, *resp, *mixture_sums, *sums;
  double *joint, *pair_sums, *whole_joint, *whole_gradient;
  int64_t cleared;  // bytes that have to begin as zeros: the first arrays
  int64_t summed;   // rows in `sums` since they were last taken over

  template <class T>
  Buffers(const Pass<T>& p, Carver& carver, bool long_annotators) : summed(0) {
    const int64_t margins = p.capacity * p.most_padded + kSlack, heads = p.tile * p.most_padded + kSlack;
    rows = carver.take<Real>(p.direct ? 0 : p.capacity * p.width + kSlack);
    sums = carver.take<Real>(p.n_sums);
    log_resp = carver.take<Real>(heads);
    cleared = carver.used;
    resp = carver.take<Real>(heads);
    s = carver.take<Real>(margins);
    c = carver.take<Real>(margins);
    mixture_sums = carver.take<Real>(p.tile * p.most_mixtures + kSlack);
    joint = carver.take<double>(heads);
    pair_sums = carver.take<double>(p.most_padded + kSlack);
    whole_joint = carver.take<double>(long_annotators ? p.n_padded : 0);
    whole_gradient = carver.take<double>(long_annotators ? p.n_sums : 0);
  }
  PosteriorScratch<Real> posterior() const { return {joint, log_resp, resp, mixture_sums}; }
};

template <class T>
int64_t buffer_bytes(const Pass<T>& p, bool long_annotators) {
  Carver measure{};
  Buffers<typename Pass<T>::Real>(p, measure, long_annotators);
  return measure.used;
}
template <class T>
Buffers<typename Pass<T>::Real> lay_buffers(const Pass<T>& p, char* memory, bool long_annotators) {
  Carver carver{memory, 0};
  Buffers<typename Pass<T>::Real> buffers(p, carver, long_annotators);
  memset(memory, 0, buffers.cleared);
  return buffers;
}

template <class T>
void pack_weights(const Pass<T>& p, const void* weight, typename Pass<T>::Real* packed) {
  typedef typename Pass<T>::Real Real;
  for (int64_t k = 0; k < p.n_blocks; k++) {
    const HeadBlock& b = p.blocks[k];
    const Real* from = static_cast<const Real*>(weight) + b.head * p.n_features;
    Real* to = packed + b.weights;
    if (b.margins == Margins::kLanes) {
      pack_lanes(from, b.n_heads, p.n_features, to);
      continue;
    }
    for (int64_t h = 0; h < b.n_heads; h++)
      for (int64_t d = 0; d < p.n_features; d++) {
        const int64_t at = b.margins == Margins::kQuads ? (d / 4 * b.padded + h) * 4 + d % 4
                                                        : h * p.width + (p.direct ? Rows<T>::lane(d) : d);
        to[at] = from[h * p.n_features + d];
      }
  }
}

// Layout of everything that depends on the sizes alone.
template <class T>
void lay_out(Pass<T>& p, HeadBlock* blocks) {
  typedef typename Pass<T>::Real Real;
  constexpr int64_t W = kWidth<Real>;
  p.blocks = blocks;
  p.n_blocks = cut_heads<Real>(p.mixtures, p.n_features, blocks);
  int64_t least_padded = W;
  bool quads = false, scalars = true, narrow = p.n_blocks == 1;  // how rows are read: only feature by feature; never so
  for (int64_t k = 0; k < p.n_blocks; k++) {
    least_padded = least(least_padded, blocks[k].padded);
    scalars &= blocks[k].transposed;
    narrow &= blocks[k].margins == Margins::kDots;
    quads |= 2 * blocks[k].padded == W;
  }
  // A product of fewer than two factors gains nothing over the logarithm of each.
  p.multiplied = are_plain_pairs(p.data) && p.data.n_rows >= 2 * ceil_div(W, least_padded) * p.data.n_annotators;
  const bool whole_groups = p.n_features % Rows<T>::kFeatures == 0;
  // Sums over lanes take longer than a copy where rows are short and heads not so few.
  narrow &= !quads || p.n_features > kShortRow;
  p.direct = p.stride_feature == 1 && (sizeof(T) == sizeof(Real) ? whole_groups || scalars : whole_groups && narrow);
  p.width = scalars ? p.n_features : round_up(p.n_features, W);
  p.most_padded = p.most_mixtures = 1;
  p.n_padded = p.n_sums = p.n_weights = 0;
  for (int64_t k = 0; k < p.n_blocks; k++) {
    HeadBlock& b = blocks[k];
    p.most_padded = most(p.most_padded, b.padded);
    p.most_mixtures = most(p.most_mixtures, b.n_mixtures);
    p.n_padded = b.at + round_up(b.padded, kSlack);
    if (b.margins == Margins::kDots && sizeof(Real) == sizeof(float) && 2 * b.padded == W &&
        (sizeof(T) == sizeof(Real) || !p.direct))
      b.margins = Margins::kQuads;
    b.weights = p.n_weights;
    b.sums = p.n_sums;
    p.n_weights += round_up(b.padded * p.width, kSlack);
    p.n_sums += round_up(b.padded * p.width, kSlack);
  }
  const int64_t row_bytes = most(1, p.width) * (p.direct ? sizeof(T) : sizeof(Real));
  const int64_t margin_bytes = p.most_padded * sizeof(Real);
  const int64_t near = p.n_padded <= kSlack && p.most_padded <= 4 ? kNearBytes : kMiddleBytes;
  p.tile = clamp(least(near / row_bytes, kMarginBytes / margin_bytes), 16, kMostRows);
  p.capacity = clamp(kWholeBytes / (row_bytes + margin_bytes), p.tile, kMostRows);
  p.capacity = buffer_rows(p.data, p.capacity);
  p.tile = least(p.tile, most(1, p.capacity));
}

}  // namespace MAXMIN_ISA
}  // namespace maxmin
