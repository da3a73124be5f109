// The posterior of a tile, in each CTA alike, warp = head, lane = row: log p, sum over the annotator, softmax over the
// mixture, coefficients of the gradient.
#pragma once
#include "em_pass_cta.cuh"
#include "em_pass_row.cuh"

namespace maxmin::em {

template <class F>
struct Posterior {
  static constexpr int H = F::H, C = F::C, WARPS = F::WARPS, kHeads = F::kHeadsPerWarp;
  static constexpr bool kCarry = F::kCarry, kHalf = F::kHalf;

  const Cta<F>& cta;
  float carried_hi[kHeads] = {}, carried_lo[kHeads] = {};  // of an annotator who goes on, up to here
  double evidence[kHeads] = {}, mass[kHeads] = {};

  MAXMIN_DEVICE explicit Posterior(const Cta<F>& cta_) : cta(cta_) {}
  Posterior(const Posterior&) = delete;
  Posterior& operator=(const Posterior&) = delete;

  // The lane's row.
  struct Row {
    int first, last, annotator;  // of the annotator in this tile: rows and number
    bool goes_on, began_before;  // he does
    Comparison comparison;
    float v;
  };
  // Of a head at this row: weight of the row, joint log-probability of the annotator in two floats.
  struct Joint {
    float s, hi, lo;
  };

  MAXMIN_DEVICE void operator()(int i) {
    const int e = i & 1, lane = cta.lane;
    mbar_wait<kDescribed>(cta.described + i % F::kDescriptors, (i / F::kDescriptors) & 1);
    const Tile& tile = cta.tiles[i % F::kDescriptors];
    if (F::kSteps >= kExchange && cta.warp < F::kHeadWarps) {
      const int first = tile.first[lane], last = tile.last[lane], annotator = tile.annotator[lane];
      const int rows = tile.rows, flags = tile.flags;
      const Comparison comparison = comparison_of(tile.begins, lane);
      const float v = tile.v[lane];
      const bool goes_on = (flags & kOpenOut) && annotator == tile.annotators - 1;
      const bool began_before = (flags & kOpenIn) && annotator == 0;
      const Row row{first, last, annotator, goes_on, began_before, comparison, v};
      mbar_wait<kGot, true>(cta.got + e, (i >> 1) & 1);
      // For i + 2: before the barrier below, so before this CTA's push(i + 1), so before any peer's push(i + 2).
      if (cta.tid == 0) mbar_expect(cta.got + e, C * F::kInbox);
      if constexpr (F::kSteps >= kPosterior) {
        // [H][32]; got(i) has seen this CTA's own push(i): the partial margins are dead
        float2* sums = reinterpret_cast<float2*>(cta.partial);
        Joint joint[kHeads];
#pragma unroll
        for (int j = 0; j < kHeads; ++j) {
          joint[j] = add_up(j, e, tile, row, rows, flags);
          sums[(cta.warp + j * WARPS) * kTileRows + lane] = make_float2(joint[j].hi, joint[j].lo);
        }
        named_barrier<2, F::kHeadWarps * 32>();
#pragma unroll
        for (int j = 0; j < kHeads; ++j) share_out(j, e, tile, row, rows, sums, joint[j]);
      }
    }
    named_barrier<1, F::kThreads>();
  }

  // (3), (4) of the warp's head j.
  MAXMIN_DEVICE Joint add_up(int j, int e, const Tile& tile, const Row& row, int rows, int flags) {
    const Arguments& a = cta.a;
    const int h = cta.warp + j * WARPS, lane = cta.lane;
    float m = 0.f;
#pragma unroll
    for (int c = 0; c < C; ++c) m += cta.inbox[(e * C + c) * (F::kInbox / 4) + h * kTileRows + lane];
    if constexpr (kHalf) m *= __int_as_float(cta.table[h].w);
    const Comparison comparison = row.comparison;
    Term term = a.objective.sets ? term_of_choice(m, lane, comparison) : term_of_pair(m);
    if (a.objective.noise > 0.f) {
      const int offered = comparison.last - comparison.first + 2;
      term = with_noise(term, a.objective.log_kept, a.objective.noise, static_cast<float>(offered));
    }
    float x = lane == comparison.first ? row.v * term.log_prob : 0.f;  // once a comparison
                                                                       // (4): the annotator's sum, at each of his rows
#pragma unroll
    for (int o = 1; o < 32; o <<= 1) {
      const float y = __shfl_up_sync(~0u, x, o);
      if (lane - o >= row.first) x += y;
    }
    x = __shfl_sync(~0u, x, row.last);
    Joint joint{row.v * term.share, x, 0.f};
    if constexpr (kCarry) {
      if (row.began_before) {
        two_sum(carried_hi[j], x, joint.hi, joint.lo);
        joint.lo += carried_lo[j];
      }
      if (flags & kOpenOut) {
        carried_hi[j] = __shfl_sync(~0u, joint.hi, rows - 1);
        carried_lo[j] = __shfl_sync(~0u, joint.lo, rows - 1);
        if ((flags & kChunkOut) && cta.me == h % C && lane == 0) {
          a.chunk_sums[int64_t(tile.chunk) * cta.n_heads + cta.head0 + h] = make_float2(carried_hi[j], carried_lo[j]);
        }
      }
    }
    float error;
    two_sum(joint.hi, __int_as_float(cta.table[h].x), joint.hi, error);
    joint.lo += error;
    return joint;
  }

  // (5), (6), (7T), (7H) of the warp's head j, from differences to the largest sum, which two floats give exactly
  // enough.
  MAXMIN_DEVICE void share_out(int j, int e, const Tile& tile, const Row& row, int rows, const float2* sums,
                               Joint joint) {
    const Arguments& a = cta.a;
    const int h = cta.warp + j * WARPS, lane = cta.lane;
    const int begin = cta.table[h].y, end = cta.table[h].z;
    float d[H], top = -INFINITY, best = -INFINITY;
#pragma unroll
    for (int k = 0; k < H; ++k) {
      if (k >= begin && k < end) top = fmaxf(top, sums[k * kTileRows + lane].x);
    }
#pragma unroll
    for (int k = 0; k < H; ++k) {
      const float2 u = sums[k * kTileRows + lane];
      d[k] = k >= begin && k < end ? (u.x - top) + u.y : -INFINITY;
      best = fmaxf(best, d[k]);
    }
    const float own = (joint.hi - top) + joint.lo, inverse = 1.f / a.objective.temperature;
    float z = 0.f, log_resp, above;  // `above`: evidence less `top`
#pragma unroll
    for (int k = 0; k < H; ++k) {
      if (H <= 8 || (k >= begin && k < end)) z += __expf((d[k] - best) * inverse);  // 16 heads: skipping saves time
    }
    if (a.objective.hard) {
      bool earlier = false;  // the first of equals wins
#pragma unroll
      for (int k = 0; k < H; ++k) earlier |= k < h && d[k] == best;
      log_resp = own == best && !earlier ? 0.f : -INFINITY;
      if (isnan(z)) log_resp = z;
      above = best;
    } else {
      log_resp = (own - best) * inverse - logf(z);
      if (own < -1e29f) log_resp = -INFINITY;  // log eta was
      above = best + a.objective.temperature * logf(z);
    }
    const float resp = __expf(log_resp);
    uint16_t* coef =
        reinterpret_cast<uint16_t*>(cta.base + F::kCoefs + e * F::kKinds * 2 * F::kCoef) + h * maps::kCoefPitch + lane;
    float s = joint.s;
    if constexpr (kHalf) s *= cta.coef_scale;
    const float scaled = row.goes_on || lane >= rows ? 0.f : resp * s;
    coef[0] = rounded<kHalf>(scaled);
    coef[F::kCoef / 2] = rounded<kHalf>(rest<kHalf>(scaled));
    if constexpr (kCarry) {
      const float unscaled = row.goes_on ? s : 0.f;
      coef[F::kCoef] = rounded<kHalf>(unscaled);
      coef[3 * F::kCoef / 2] = rounded<kHalf>(rest<kHalf>(unscaled));
      if (row.began_before && !row.goes_on && lane == 0) cta.gamma[e * H + h] = resp;
    }
    // Each head's results are one CTA's to write.
    if (cta.me == h % C && lane < rows && lane == row.last && !row.goes_on) {
      a.log_resp[(tile.annotator0 + row.annotator) * cta.n_heads + cta.head0 + h] = log_resp;
      mass[j] += resp;
      evidence[j] += double(top) + above;
    }
  }

  MAXMIN_DEVICE void write() {
    if (cta.warp >= F::kHeadWarps) return;
#pragma unroll
    for (int j = 0; j < kHeads; ++j) {
      const int h = cta.warp + j * WARPS;
#pragma unroll
      for (int o = 16; o; o >>= 1) {
        evidence[j] += __shfl_xor_sync(~0u, evidence[j], o);
        mass[j] += __shfl_xor_sync(~0u, mass[j], o);
      }
      if (cta.lane == 0 && cta.me == h % C) {
        cta.a.evidence_parts[int64_t(cta.cluster) * H + h] = evidence[j];
        cta.a.mass_parts[int64_t(cta.cluster) * H + h] = mass[j];
      }
    }
  }
};

}  // namespace maxmin::em
