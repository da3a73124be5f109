// The variants of the kernel that are compiled, each without a spill, and which of them serves.
#pragma once
#include "em_pass_config.h"

namespace maxmin::em {

template <class... Fs>
struct Variants {};

//     H  C  warps slots half carry                                  columns
template <bool kHalf, bool kCarry>
using Narrow = Variants<Config<8, 2, 8, 10, kHalf, kCarry>,   // 1024
                        Config<8, 2, 16, 6, kHalf, kCarry>,   // 2048
                        Config<8, 4, 16, 6, kHalf, kCarry>,   // 4096
                        Config<8, 8, 16, 5, kHalf, kCarry>>;  // 8192
template <bool kHalf, bool kCarry>
using Wide = Variants<Config<16, 2, 8, 10, kHalf, kCarry>,   // 1024
                      Config<16, 4, 8, 10, kHalf, kCarry>,   // 2048
                      Config<16, 8, 8, 10, kHalf, kCarry>>;  // 4096

// The middle one stopped early, for measurements.
template <int kSteps>
using Rung = Variants<Config<8, 4, 16, 6, false, false, true, kSteps>>;

// More heads than a block holds are blocks, worked on side by side.
constexpr int block_heads(int64_t n_features) { return n_features > 4096 ? 8 : 16; }
constexpr int head_blocks(int64_t n_heads, int64_t n_features) {
  return n_heads > block_heads(n_features) ? static_cast<int>(n_heads / block_heads(n_features)) : 1;
}
// Of one block; 0, which no variant serves, where blocks would not be whole.
constexpr int64_t heads_of_block(int64_t n_heads, int64_t n_features) {
  const int n_blocks = head_blocks(n_heads, n_features);
  return n_heads % n_blocks ? 0 : n_heads / n_blocks;
}
// Shares of the tiles, each worked on by a cluster a block: as many as run at once. Where that would leave more than an
// eighth of the clusters idle (of 16, with 6 blocks 4), as many as run in the fewest rounds that do not.
constexpr int shares_of(int n_clusters, int n_blocks) {
  if (n_clusters < 1) return 1;
  int round = 1;
  while (n_clusters * round / n_blocks * n_blocks * 8 < n_clusters * round * 7) ++round;
  return n_clusters * round / n_blocks;
}

// Which features, heads and tiles a variant is wanted for.
struct Wanted {
  int64_t n_heads, n_features;
  bool half, carry;
  int steps = kWhole;
};

// visit(Config) of the first variant of these that serves; `otherwise` if none does.
template <class Visit, class... Fs>
int visit_first(Variants<Fs...>, const Wanted& w, int otherwise, Visit visit) {
  int result = otherwise;
  (void)((w.n_heads == Fs::H && w.n_features <= Fs::kColumns && w.half == Fs::kHalf && w.carry == Fs::kCarry &&
          (result = visit(Fs{}), true)) ||
         ...);
  return result;
}
template <bool kHalf, bool kCarry, class Visit>
int visit_whole(const Wanted& w, int otherwise, Visit visit) {
  if (w.n_heads == 8) return visit_first(Narrow<kHalf, kCarry>{}, w, otherwise, visit);
  return visit_first(Wide<kHalf, kCarry>{}, w, otherwise, visit);
}
template <class Visit>
int visit_variant(const Wanted& w, int otherwise, Visit visit) {
  switch (w.steps) {
    case kLoads: return visit_first(Rung<kLoads>{}, w, otherwise, visit);
    case kMargins: return visit_first(Rung<kMargins>{}, w, otherwise, visit);
    case kExchange: return visit_first(Rung<kExchange>{}, w, otherwise, visit);
    case kPosterior: return visit_first(Rung<kPosterior>{}, w, otherwise, visit);
    case kWhole: break;
    default: return otherwise;
  }
  if (w.half) {
    return w.carry ? visit_whole<true, true>(w, otherwise, visit) : visit_whole<true, false>(w, otherwise, visit);
  }
  return w.carry ? visit_whole<false, true>(w, otherwise, visit) : visit_whole<false, false>(w, otherwise, visit);
}

}  // namespace maxmin::em
