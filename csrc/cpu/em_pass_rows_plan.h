// How a rows pass is cut: heads into blocks, annotators into tasks. By sizes alone.
#pragma once
#include "choices.h"
#include "em_pass_posterior.h"
#include "maxmin/em_pass.h"

namespace maxmin {
namespace MAXMIN_ISA {

// ---- heads: blocks of whole mixtures, few enough heads that a tile's margins stay in the nearest caches
enum class Margins { kDots, kQuads, kLanes };  // features in the lanes, heads and four features each, heads
struct HeadBlock : MixtureBlock {
  Margins margins;
  bool transposed;        // gradient sums (features, padded) with heads in the lanes, else (n_heads, width)
  int64_t at;             // of its first head among all blocks' padded heads
  int64_t weights, sums;  // where its packed weights and its gradient's sums begin
};
constexpr int64_t kBlockHeads = 64;

template <class Real>
static int64_t pad_heads(int64_t n) {
  int64_t padded = 1;
  while (padded < n && padded < kWidth<Real>) padded *= 2;
  return round_up(most(n, 1), padded);
}

// Fills `blocks` (room for every mixture) and returns how many they are.
template <class Real>
static int64_t cut_heads(const maxmin_mixtures& mixtures, int64_t n_features, HeadBlock* blocks) {
  const int64_t* ptr = mixtures.mixture_indptr;
  int64_t n = 0, at = 0;
  for (int64_t g = 0, end; g < mixtures.n_mixtures; g = end, n++) {
    for (end = g + 1; end < mixtures.n_mixtures && ptr[end + 1] - ptr[g] <= kBlockHeads;) end++;
    HeadBlock& b = blocks[n];
    b.head = ptr[g];
    b.n_heads = ptr[end] - ptr[g];
    b.padded = pad_heads<Real>(b.n_heads);
    b.mixture = g;
    b.n_mixtures = end - g;
    b.indptr = ptr + g;
    const bool lanes = b.padded >= kWidth<Real>;
    b.margins = lanes ? Margins::kLanes : Margins::kDots;
    // Whichever fills its vectors better.
    b.transposed = lanes && n_features * b.padded < b.n_heads * round_up(n_features, kWidth<Real>);
    b.at = at;
    at += round_up(b.padded, kSlack);
  }
  return n;
}

// ---- annotators: a task goes from one cut to the next. A cut lies before an annotator, or inside a long one.
struct Cut {
  int64_t annotator, comparison;
};

static inline int64_t row_of_annotator(const maxmin_comparisons& data, int64_t a) {
  return data.choice_indptr ? data.choice_indptr[data.indptr[a]] : data.indptr[a];
}

// The cut that lies `size` rows and annotators from the beginning, or shortly before. Annotators of up to `whole` rows
// or comparisons stay whole.
static inline Cut cut_at(const maxmin_comparisons& data, int64_t size, int64_t whole) {
  int64_t low = 0, high = data.n_annotators;  // the last annotator that does not begin after `size`
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (row_of_annotator(data, middle) + middle <= size)
      low = middle;
    else
      high = middle - 1;
  }
  const int64_t a = low;
  if (a == data.n_annotators) return {a, data.n_comparisons};
  const int64_t begin = data.indptr[a], end = data.indptr[a + 1], row = row_of_annotator(data, a);
  if (most(end - begin, row_of_annotator(data, a + 1) - row) <= whole) return {a, begin};
  const int64_t wanted = size - a;
  const int64_t c = data.choice_indptr ? lower_bound(data.choice_indptr + begin, end - begin, wanted) + begin : wanted;
  return c < end ? Cut{a, c} : Cut{a + 1, end};
}

}  // namespace MAXMIN_ISA
}  // namespace maxmin
