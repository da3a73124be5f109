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
                      Config<16, 4, 8, 10, 3, kCarry>,   // 2048     180; 242
                      Config<16, 8, 8, 10, 3, kCarry>>;  // 4096     182; 244

// visit(Config) of the first variant with so many heads and room for the columns; `otherwise` if there is none.
template <class Visit, class... Fs>
int visit_first(Variants<Fs...>, int64_t n_heads, int64_t n_features, int otherwise, Visit visit) {
  int result = otherwise;
  (void)((n_heads == Fs::H && n_features <= Fs::kColumns && (result = visit(Fs{}), true)) || ...);
  return result;
}
template <class Visit>
int visit_variant(int64_t n_heads, int64_t n_features, bool carry, int otherwise, Visit visit) {
  if (n_heads == 8) {
    return carry ? visit_first(Narrow<true>{}, n_heads, n_features, otherwise, visit)
                 : visit_first(Narrow<false>{}, n_heads, n_features, otherwise, visit);
  }
  return carry ? visit_first(Wide<true>{}, n_heads, n_features, otherwise, visit)
               : visit_first(Wide<false>{}, n_heads, n_features, otherwise, visit);
}

}  // namespace maxmin::em
