// CSR pointers, and memory that lives as long as a scope.
#pragma once
#include <stdlib.h>

#include "tasks.h"

namespace maxmin {
namespace MAXMIN_ISA {

static inline int64_t clamp(int64_t x, int64_t low, int64_t high) { return least(most(x, low), high); }
static inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// The first i in [0, n] with ptr[i] >= target (n if there is none).
static inline int64_t lower_bound(const int64_t* ptr, int64_t n, int64_t target) {
  int64_t low = 0, high = n;
  while (low < high) {
    int64_t middle = low + (high - low) / 2;
    if (ptr[middle] < target)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// From 0 to `end` without a step down?
static inline bool is_indptr(const int64_t* ptr, int64_t n, int64_t end) {
  bool good = ptr[0] == 0 && ptr[n] == end;
  for (int64_t i = 0; i < n; i++) good &= ptr[i] <= ptr[i + 1];
  return good;
}

// All in [0, size)? Neither an index nor what is left above it may have a sign.
static inline bool in_range(const int64_t* index, int64_t n, int64_t size) {
  uint64_t signs = 0;
  for (int64_t i = 0; i < n; i++) signs |= (uint64_t)index[i] | ((uint64_t)(size - 1) - (uint64_t)index[i]);
  return !(signs >> 63);
}

template <class T>
struct Scratch {
  T* data;  // on a cache line; NULL: out of memory
  explicit Scratch(int64_t n) : data(static_cast<T*>(aligned_alloc(64, round_up(most(1, n) * sizeof(T), 64)))) {}
  ~Scratch() { free(data); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

}  // namespace MAXMIN_ISA
}  // namespace maxmin
