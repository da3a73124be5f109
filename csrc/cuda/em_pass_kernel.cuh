// One EM pass over rows, one read of the features: MATH (2)-(8) and the group masses. README.md draws the plan.
//
// A cluster of C CTAs owns whole tiles of 32 rows; CTA r the columns [64 WARPS r, 64 WARPS (r + 1)), a warp one box of
// 64 columns in both products. A warp waits for its own box only and, being its only reader, refills it itself.
//
//   margins(t)    X W by m16n8k16; sums of the warps in fixed order; pushed to every CTA of the cluster
//   posterior(t)  in each CTA alike, warp = head, lane = row: log p, sum over the annotator, softmax over the mixture
//   gradient(t)   += X^T c from the same bytes; then the warp's slots are loaded anew
//
// With B blocks of heads the clusters Bq to Bq + B - 1 do this over the same tiles, a block each.
//
// An annotator that ends in the tile gives c = gamma v s; the rows of one that goes on add to an unscaled second sum,
// which is scaled when he ends, or written out where his chunk ends.
//
// Two inboxes are the whole handshake. CTA j pushes t + 2 after got(t + 1), which needs peer p's push(t + 1), which p
// does after the barrier that follows all its reads of inbox(t) and its arming of got(t + 2).
#pragma once
#include "em_pass_config.h"
#include "em_pass_row.cuh"

namespace maxmin::em {

template <class F>
__global__ void __launch_bounds__(F::kThreads, 1)
    em_pass_kernel(const __grid_constant__ CUtensorMap features, const Arguments a) {
  constexpr int H = F::H, C = F::C, NB = F::kHeadBlocks, WARPS = F::WARPS, SLOTS = F::SLOTS;
  constexpr int kParts = F::kParts, kDescriptors = F::kDescriptors;
  constexpr bool kCarry = F::kCarry, kHalf = F::kHalf;
  // Aligned for the swizzle; the same offset in every CTA, since dynamic shared memory starts alike.
  uint8_t* base = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(dynamic_shared()) + 1023) & ~uintptr_t(1023));
  float* partial = reinterpret_cast<float*>(base + F::kPartials);
  float* inbox = reinterpret_cast<float*>(base + F::kInboxes);  // [2][C][H][32]
  float* gamma = reinterpret_cast<float*>(base + F::kGammas);  // [2][H], of the annotator that a carried sum belongs to
  // [H]: log eta, begin and end of the mixture, scale of the margins
  int4* table = reinterpret_cast<int4*>(base + F::kTable);
  const Tile* tiles = reinterpret_cast<const Tile*>(base + F::kTiles);
  uint64_t* full = reinterpret_cast<uint64_t*>(base + F::kBarriers);  // [SLOTS][WARPS]
  uint64_t *described = full + SLOTS * WARPS, *got = described + kDescriptors;
  const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31;
  const int me = cluster_rank(), cluster = cluster_id();
  const int n_blocks = H == 16 ? a.head_blocks : 1, n_heads = n_blocks * H;
  const int share = cluster / n_blocks, head0 = cluster % n_blocks * H;
  const int tile0 = a.tile_begin[share], n = a.tile_begin[share + 1] - tile0;
  const int64_t column0 = int64_t(me * WARPS + warp) * 64;
  const float coef_scale = kHalf ? *a.coef_scale : 1.f;  // a power of two
  if (tid == 0) {
    for (int i = 0; i < SLOTS * WARPS; ++i) mbar_init(full + i, 1);
    for (int i = 0; i < kDescriptors; ++i) mbar_init(described + i, 1);
    for (int i = 0; i < 2; ++i) mbar_init(got + i, 1);
    mbar_init_fence();
    for (int i = 0; i < 2; ++i) mbar_expect(got + i, C * F::kInbox);  // tiles 0 and 1; posterior(t) arms for t + 2
  }
  if (tid < H) {
    const int h = head0 + tid;
    const float log_weight = fmaxf(a.log_weights[h], -1e30f);  // -inf - -inf would be NaN
    const float scale = kHalf ? a.margin_scale[h] : 1.f;
    table[tid] = make_int4(__float_as_int(log_weight), a.mixture_begin[h] - head0, a.mixture_end[h] - head0,
                           __float_as_int(scale));
  }
  cluster_sync();

  const uint64_t policy = n_blocks == 1 ? read_once_policy() : read_again_policy();
  auto first_row = [&](int i) { return i < n ? static_cast<int>(a.tiles[tile0 + i].row0) : 0; };
  auto fill = [&](int unit, int row0) {  // one thread: unit = 2 tile + row block, this warp's box
    uint64_t* bar = full + (unit % SLOTS) * WARPS + warp;
    const uint32_t box = shared_addr(base) + (unit % SLOTS) * F::kSlot + warp * F::kBox;
    mbar_expect(bar, F::kBox);
    copy_box(box, &features, static_cast<int>(column0), row0 + (unit & 1) * 16, bar, policy);
  };
  auto describe = [&](int i) {  // one thread
    uint64_t* bar = described + i % kDescriptors;
    mbar_expect(bar, sizeof(Tile));
    copy_bytes(shared_addr(tiles + i % kDescriptors), a.tiles + tile0 + i, sizeof(Tile), bar);
  };
  if (lane == 0) {
#pragma unroll 1
    for (int unit = 0; unit < SLOTS && unit < 2 * n; ++unit) fill(unit, first_row(unit >> 1));
  }
  if (tid == F::kThreads - 32) {
#pragma unroll 1
    for (int i = 0; i < kDescriptors - 1 && i < n; ++i) describe(i);
  }
  // First rows of tiles i + SLOTS / 2 and the next: read a tile ahead of their use.
  int row_a = first_row(SLOTS / 2), row_b = first_row(SLOTS / 2 + 1);
  auto release = [&](int i, int row_block) {  // this warp has read its box of that unit for the last time
    __syncwarp();
    const int unit = 2 * i + row_block + SLOTS;
    if (lane == 0 && unit < 2 * n) fill(unit, row_block && SLOTS % 2 ? row_b : row_a);
  };

  float acc[F::kKinds][4][NB][4] = {};  // [gradient; carried, unscaled][16-column block][head block]
  uint32_t w[4][NB][kParts][2];         // B fragments of the weights' parts
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int b = 0; b < NB; ++b) {
      float v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t d = column0 + k * 16 + maps::b_k(lane, i);
        v[i] = d < a.n_features ? a.weight[(head0 + b * 8 + maps::b_n(lane)) * a.n_features + d] : 0.f;
      }
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        w[k][b][p][0] = packed<kHalf>(v[0], v[1]);
        w[k][b][p][1] = packed<kHalf>(v[2], v[3]);
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = rest<kHalf>(v[i]);
      }
    }
  }
  float carried_hi[F::kHeadsPerWarp] = {}, carried_lo[F::kHeadsPerWarp] = {};
  double evidence[F::kHeadsPerWarp] = {}, mass[F::kHeadsPerWarp] = {};
  const uint32_t own_box = shared_addr(base) + warp * F::kBox;

  auto margins = [&](int i) {
    const int s0 = (2 * i) % SLOTS, s1 = (2 * i + 1) % SLOTS;
    mbar_wait<kFull>(full + s0 * WARPS + warp, ((2 * i) / SLOTS) & 1);
    mbar_wait<kFull>(full + s1 * WARPS + warp, ((2 * i + 1) / SLOTS) & 1);
    if constexpr (F::kSteps >= kMargins) {
      constexpr int S = NB == 1 ? 2 : 1;  // sums that do not wait for each other: four with either
      float m[2][NB][S][4] = {};
      const uint32_t a0 = own_box + s0 * F::kSlot + maps::x_addr(lane);
      const uint32_t a1 = own_box + s1 * F::kSlot + maps::x_addr(lane);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        uint32_t x0[4], x1[4];
        load_matrices(x0, a0 ^ (32 * k));
        load_matrices(x1, a1 ^ (32 * k));
#pragma unroll
        for (int b = 0; b < NB; ++b) {
#pragma unroll
          for (int p = 0; p < kParts; ++p) {
            multiply_add<kHalf>(m[0][b][p % S], x0, w[k][b][p][0], w[k][b][p][1]);
            multiply_add<kHalf>(m[1][b][p % S], x1, w[k][b][p][0], w[k][b][p][1]);
          }
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int b = 0; b < NB; ++b) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int at = maps::partial_at(b * 8 + maps::acc_col(lane, j), r * 16 + maps::acc_row(lane, j));
            partial[warp * F::kPartial + at] = S == 2 ? m[r][b][0][j] + m[r][b][S - 1][j] : m[r][b][0][j];
          }
        }
      }
      named_barrier<1, F::kThreads>();
    }
    if constexpr (F::kSteps >= kExchange) {
      // Over warps in fixed order; the butterfly gives every lane of a slot the same bits.
      const int g = lane / F::kLanes, slot = warp * F::kLanes + lane % F::kLanes, e = i & 1;
      float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
      for (int j = 0; j < F::kPerGroup; ++j) {
        const float* from = partial + (g * F::kPerGroup + j) * F::kPartial + maps::partial_slot(slot);
        const float4 u = *reinterpret_cast<const float4*>(from);
        v.x += u.x, v.y += u.y, v.z += u.z, v.w += u.w;
      }
#pragma unroll
      for (int o = F::kLanes; o < 32; o <<= 1) {
        v.x += __shfl_xor_sync(~0u, v.x, o), v.y += __shfl_xor_sync(~0u, v.y, o);
        v.z += __shfl_xor_sync(~0u, v.z, o), v.w += __shfl_xor_sync(~0u, v.w, o);
      }
      const uint32_t dst = shared_addr(inbox + (e * C + me) * (F::kInbox / 4) + slot * 4), bar = shared_addr(got + e);
#pragma unroll
      for (int c0 = 0; c0 < C; c0 += F::kGroups) {
        if (const int c = c0 + g; c < C) push(peer_addr(dst, c), peer_addr(bar, c), v);
      }
    }
  };

  auto posterior = [&](int i) {
    const int e = i & 1;
    mbar_wait<kDescribed>(described + i % kDescriptors, (i / kDescriptors) & 1);
    const Tile& tile = tiles[i % kDescriptors];
    if (F::kSteps >= kExchange && warp < F::kHeadWarps) {
      const int first = tile.first[lane], last = tile.last[lane], annotator = tile.annotator[lane];
      const int rows = tile.rows, flags = tile.flags;
      const Comparison comparison = comparison_of(tile.begins, lane);
      const float v = tile.v[lane];
      const bool goes_on = (flags & kOpenOut) && annotator == tile.annotators - 1;
      const bool began_before = (flags & kOpenIn) && annotator == 0;
      mbar_wait<kGot, true>(got + e, (i >> 1) & 1);
      // For i + 2: before the barrier below, so before this CTA's push(i + 1), so before any peer's push(i + 2).
      if (tid == 0) mbar_expect(got + e, C * F::kInbox);
      if constexpr (F::kSteps >= kPosterior) {
        float2* sums =
            reinterpret_cast<float2*>(partial);  // [H][32]; got(i) has seen this CTA's own push(i): it is dead
        float s[F::kHeadsPerWarp], hi[F::kHeadsPerWarp], lo[F::kHeadsPerWarp];
#pragma unroll
        for (int j = 0; j < F::kHeadsPerWarp; ++j) {
          const int h = warp + j * WARPS;
          float m = 0.f;
#pragma unroll
          for (int c = 0; c < C; ++c) m += inbox[(e * C + c) * (F::kInbox / 4) + h * kTileRows + lane];
          if constexpr (kHalf) m *= __int_as_float(table[h].w);
          Term term = a.objective.sets ? term_of_choice(m, lane, comparison) : term_of_pair(m);
          if (a.objective.noise > 0.f) {
            const int offered = comparison.last - comparison.first + 2;
            term = with_noise(term, a.objective.log_kept, a.objective.noise, static_cast<float>(offered));
          }
          s[j] = v * term.share;
          float x = lane == comparison.first ? v * term.log_prob : 0.f;  // once a comparison
          // (4): the annotator's sum, at each of his rows
#pragma unroll
          for (int o = 1; o < 32; o <<= 1) {
            const float y = __shfl_up_sync(~0u, x, o);
            if (lane - o >= first) x += y;
          }
          x = __shfl_sync(~0u, x, last);
          hi[j] = x;
          lo[j] = 0.f;
          if constexpr (kCarry) {
            if (began_before) {
              two_sum(carried_hi[j], x, hi[j], lo[j]);
              lo[j] += carried_lo[j];
            }
            if (flags & kOpenOut) {
              carried_hi[j] = __shfl_sync(~0u, hi[j], rows - 1);
              carried_lo[j] = __shfl_sync(~0u, lo[j], rows - 1);
              if ((flags & kChunkOut) && me == h % C && lane == 0) {
                a.chunk_sums[int64_t(tile.chunk) * n_heads + head0 + h] = make_float2(carried_hi[j], carried_lo[j]);
              }
            }
          }
          float error;
          two_sum(hi[j], __int_as_float(table[h].x), hi[j], error);
          lo[j] += error;
          sums[h * kTileRows + lane] = make_float2(hi[j], lo[j]);
        }
        named_barrier<2, F::kHeadWarps * 32>();
#pragma unroll
        for (int j = 0; j < F::kHeadsPerWarp; ++j) {
          // (5), (6), (7T), (7H) from differences to the largest sum, which two floats give exactly enough.
          const int h = warp + j * WARPS;
          const int begin = table[h].y, end = table[h].z;
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
          const float own = (hi[j] - top) + lo[j], inverse = 1.f / a.objective.temperature;
          float z = 0.f, log_resp, above;  // `above`: evidence less `top`
#pragma unroll
          for (int k = 0; k < H; ++k) {
            if (H <= 8 || (k >= begin && k < end))
              z += __expf((d[k] - best) * inverse);  // 16 heads: skipping saves time
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
          uint16_t* coef = reinterpret_cast<uint16_t*>(base + F::kCoefs + e * F::kKinds * 2 * F::kCoef) +
                           h * maps::kCoefPitch + lane;
          if constexpr (kHalf) s[j] *= coef_scale;
          const float scaled = goes_on || lane >= rows ? 0.f : resp * s[j];
          coef[0] = rounded<kHalf>(scaled);
          coef[F::kCoef / 2] = rounded<kHalf>(rest<kHalf>(scaled));
          if constexpr (kCarry) {
            const float unscaled = goes_on ? s[j] : 0.f;
            coef[F::kCoef] = rounded<kHalf>(unscaled);
            coef[3 * F::kCoef / 2] = rounded<kHalf>(rest<kHalf>(unscaled));
            if (began_before && !goes_on && lane == 0) gamma[e * H + h] = resp;
          }
          if (me == h % C && lane < rows && lane == last && !goes_on) {  // each head's results are one CTA's to write
            a.log_resp[(tile.annotator0 + annotator) * n_heads + head0 + h] = log_resp;
            mass[j] += resp;
            evidence[j] += double(top) + above;
          }
        }
      }
    }
    named_barrier<1, F::kThreads>();
  };

  auto gradient = [&](int i) {
    const int e = i & 1;
    const Tile& tile = tiles[i % kDescriptors];
    const int flags = kCarry ? tile.flags : 0;
    const bool somebody_ends = !kCarry || !((flags & kOpenOut) && tile.annotators == 1);
    if constexpr (kCarry && F::kSteps >= kWhole) {
      if ((flags & kOpenIn) && somebody_ends) {  // the carried sum is whole
#pragma unroll
        for (int b = 0; b < NB; ++b) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const float g = gamma[e * H + b * 8 + maps::acc_col(lane, j)];
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              acc[0][k][b][j] += g * acc[kCarry][k][b][j];
              acc[kCarry][k][b][j] = 0.f;
            }
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if constexpr (F::kSteps >= kWhole) {
        const uint32_t x0 = own_box + ((2 * i + r) % SLOTS) * F::kSlot + maps::xt_addr(lane);
#pragma unroll
        for (int kind = 0; kind < F::kKinds; ++kind) {
          if (kind == 0 ? somebody_ends : (flags & kOpenOut) != 0) {  // both only where one ends and another goes on
            uint32_t c[NB][4];
#pragma unroll
            for (int b = 0; b < NB; ++b) {
              const int at = (e * F::kKinds + kind) * 2 * F::kCoef + maps::coef_addr(lane, b, r, F::kCoef);
              load_matrices(c[b], shared_addr(base) + F::kCoefs + at);
            }
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              uint32_t x[4];
              load_matrices_transposed(x, x0 ^ (32 * k));
#pragma unroll
              for (int p = 0; p < 2; ++p) {
#pragma unroll
                for (int b = 0; b < NB; ++b) multiply_add<kHalf>(acc[kind][k][b], x, c[b][2 * p], c[b][2 * p + 1]);
              }
            }
          }
        }
      }
      if (r == 0) release(i, 0);
    }
    if constexpr (kCarry && F::kSteps >= kWhole) {
      if (flags & kChunkOut) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
#pragma unroll
          for (int b = 0; b < NB; ++b) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              const int64_t d = column0 + k * 16 + maps::acc_row(lane, j);
              const int64_t row = int64_t(tile.chunk) * n_heads + head0 + b * 8 + maps::acc_col(lane, j);
              if (d < a.n_features)
                a.chunk_gradients[row * a.n_features + d] = acc[kCarry][k][b][j] * (1.f / coef_scale);
              acc[kCarry][k][b][j] = 0.f;
            }
          }
        }
      }
    }
    release(i, 1);  // the last read of the tile's descriptor is above
    // Its slot held tile i - 1, which every warp had left before posterior(i)'s barrier.
    if (tid == F::kThreads - 32 && i + kDescriptors - 1 < n) describe(i + kDescriptors - 1);
    row_a = row_b;
    row_b = first_row(i + SLOTS / 2 + 2);
  };

  if (n > 0) margins(0);
#pragma unroll 1
  for (int i = 0; i < n; ++i) {
    posterior(i);
    const bool more = i + 1 < n;
    if constexpr (F::kOverlap) {
      // A warp whose next box has landed hides the exchange behind its gradient. No sum is shared: the bits are the
      // same.
      const int unit = 2 * i + 3;
      if (more && __all_sync(~0u, mbar_test(full + (unit % SLOTS) * WARPS + warp, (unit / SLOTS) & 1))) {
        margins(i + 1);
        gradient(i);
        continue;
      }
    }
    gradient(i);
    if (more) margins(i + 1);
  }

  // Row `cluster` of H heads: share and block, so heads of one share follow each other.
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int b = 0; b < NB; ++b) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int64_t d = column0 + k * 16 + maps::acc_row(lane, j);
        const int64_t row = int64_t(cluster) * H + b * 8 + maps::acc_col(lane, j);
        if (d < a.n_features) a.gradient_parts[row * a.n_features + d] = acc[0][k][b][j] * (1.f / coef_scale);
      }
    }
  }
  if (warp < F::kHeadWarps) {
#pragma unroll
    for (int j = 0; j < F::kHeadsPerWarp; ++j) {
      const int h = warp + j * WARPS;
#pragma unroll
      for (int o = 16; o; o >>= 1) {
        evidence[j] += __shfl_xor_sync(~0u, evidence[j], o);
        mass[j] += __shfl_xor_sync(~0u, mass[j], o);
      }
      if (lane == 0 && me == h % C) {
        a.evidence_parts[int64_t(cluster) * H + h] = evidence[j];
        a.mass_parts[int64_t(cluster) * H + h] = mass[j];
      }
    }
  }
  cluster_sync();  // nobody leaves while a push is under way to a peer, or a peer's to it
}

}  // namespace maxmin::em
