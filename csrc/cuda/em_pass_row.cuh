// What a comparison's margins say of it, to each of its rows: MATH (3), (3'), (3b). A warp holds a tile, a lane a row.
#pragma once
#include "em_pass_config.h"

namespace maxmin::em {

// First and last lane of the lane's comparison; `begins`: bit of each row that begins one.
struct Comparison {
  int first, last;
};
MAXMIN_DEVICE Comparison comparison_of(uint32_t begins, int lane) {
  const uint32_t up_to = ~0u >> (31 - lane), after = begins & ~up_to;
  return {31 - __clz(static_cast<int>(begins & up_to)), after ? __ffs(static_cast<int>(after)) - 2 : 31};
}

// Log-probability of the comparison, and its derivative by the row's margin.
struct Term {
  float log_prob, share;
};
MAXMIN_DEVICE Term term_of_pair(float m) {
  const float z = __expf(-fabsf(m));
  return {fminf(m, 0.f) - log1pf(z), __fdividef(m > 0.f ? z : 1.f, 1.f + z)};
}
MAXMIN_DEVICE Term term_of_choice(float m, int lane, Comparison c) {
  float shift = fmaxf(-m, 0.f);
#pragma unroll
  for (int o = 1; o < 32; o <<= 1) {
    const float y = __shfl_up_sync(~0u, shift, o);
    if (lane - o >= c.first) shift = fmaxf(shift, y);
  }
  shift = __shfl_sync(~0u, shift, c.last);
  const float z = __expf(-m - shift);
  float total = z;
#pragma unroll
  for (int o = 1; o < 32; o <<= 1) {
    const float y = __shfl_up_sync(~0u, total, o);
    if (lane - o >= c.first) total += y;
  }
  // Less 1, exactly: nothing is lost where all of it is small.
  total = __shfl_sync(~0u, total, c.last) + (__expf(-shift) - 1.f);
  return {-shift - log1pf(total), __fdividef(z, 1.f + total)};
}
// (3b): log_kept = log(1 - noise), `offered` alternatives.
MAXMIN_DEVICE Term with_noise(Term t, float log_kept, float noise, float offered) {
  const float kept = log_kept + t.log_prob, other = logf(noise / offered);
  const float log_prob = fmaxf(kept, other) + log1pf(__expf(-fabsf(kept - other)));
  return {log_prob, t.share * __expf(kept - log_prob)};
}

}  // namespace maxmin::em
