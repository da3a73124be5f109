// The variants of the kernel that are compiled, each without a spill, and which of them serves.
#pragma once
#include "em_pass_config.h"

namespace maxmin::em {

template <class... Fs>
struct Variants {};

//     H  C  warps slots parts carry                              columns  registers a thread
template <bool kCarry>
using Narrow = Variants<Config<8, 2, 8, 10, 3, kCarry>,   // 1024     120; carrying 152
                        Config<8, 2, 16, 6, 3, kCarry>,   // 2048     118; 128
                        Config<8, 4, 16, 6, 3, kCarry>,   // 4096     118; 128
                        Config<8, 8, 16, 5, 3, kCarry>>;  // 8192     119; 128
template <bool kCarry>
using Wide = Variants<Config<16, 2, 8, 10, 3, kCarry>,   // 1024     178; 241
                      Config<16, 4, 8, 10, 3, kCarry>,   // 2048     178; 242
                      Config<16, 8, 8, 10, 3, kCarry>>;  // 4096     182; 244

// The middle one stopped early, for measurements.
template <int kSteps>
using Rung = Variants<Config<8, 4, 16, 6, 3, false, true, kSteps>>;

// visit(Config) of the first variant with so many heads and room for the columns; `otherwise` if there is none.
template <class Visit, class... Fs>
int visit_first(Variants<Fs...>, int64_t n_heads, int64_t n_features, int otherwise, Visit visit) {
  int result = otherwise;
  (void)((n_heads == Fs::H && n_features <= Fs::kColumns && (result = visit(Fs{}), true)) || ...);
  return result;
}
template <class Visit>
int visit_variant(int64_t n_heads, int64_t n_features, bool carry, int steps, int otherwise, Visit visit) {
  if (steps != kWhole && carry) return otherwise;
  switch (steps) {
    case kLoads: return visit_first(Rung<kLoads>{}, n_heads, n_features, otherwise, visit);
    case kMargins: return visit_first(Rung<kMargins>{}, n_heads, n_features, otherwise, visit);
    case kExchange: return visit_first(Rung<kExchange>{}, n_heads, n_features, otherwise, visit);
    case kPosterior: return visit_first(Rung<kPosterior>{}, n_heads, n_features, otherwise, visit);
    case kWhole: break;
    default: return otherwise;
  }
  if (n_heads == 8) {
    return carry ? visit_first(Narrow<true>{}, n_heads, n_features, otherwise, visit)
                 : visit_first(Narrow<false>{}, n_heads, n_features, otherwise, visit);
  }
  return carry ? visit_first(Wide<true>{}, n_heads, n_features, otherwise, visit)
               : visit_first(Wide<false>{}, n_heads, n_features, otherwise, visit);
}

}  // namespace maxmin::em
