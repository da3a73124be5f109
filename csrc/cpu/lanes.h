// Sums over the lanes of several vectors at once: fewer shuffles than one vector after the other.
#pragma once
#include <utility>

#include "simd.h"

namespace maxmin {
namespace MAXMIN_ISA {

template <class T, int... I>
MAXMIN_INLINE Vec<T> pair_sums(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (2 * I)...) + __builtin_shufflevector(a, b, (2 * I + 1)...);
#else
  return __builtin_shuffle(a, b, IVec<T>{(2 * I)...}) + __builtin_shuffle(a, b, IVec<T>{(2 * I + 1)...});
#endif
}

// Lane i < n: the sum of the lanes of v[i]; n is a power of two up to the width.
template <class T, int n>
MAXMIN_INLINE Vec<T> sum_each(Vec<T>* v) {
  constexpr std::make_integer_sequence<int, kWidth<T>> lanes{};
  MAXMIN_UNROLL for (int live = n; live > 1; live /= 2) MAXMIN_UNROLL for (int i = 0; i < live / 2; i++) v[i] =
      pair_sums<T>(v[2 * i], v[2 * i + 1], lanes);
  MAXMIN_UNROLL for (int done = n; done < kWidth<T>; done *= 2) v[0] = pair_sums<T>(v[0], v[0], lanes);
  return v[0];
}

}  // namespace MAXMIN_ISA
}  // namespace maxmin
