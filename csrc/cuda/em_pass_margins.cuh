// Margins of a tile: X W by m16n8k16, sums of the warps in fixed order, pushed to every CTA of the cluster.
#pragma once
#include "em_pass_cta.cuh"

namespace maxmin::em {

template <class F>
struct Margins {
  static constexpr int C = F::C, NB = F::kHeadBlocks, kParts = F::kParts;
  static constexpr bool kHalf = F::kHalf;

  const Cta<F>& cta;
  uint32_t w[4][NB][kParts][2];  // B fragments of the weights' parts

  MAXMIN_DEVICE explicit Margins(const Cta<F>& cta_) : cta(cta_) {
    const Arguments& a = cta.a;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int b = 0; b < NB; ++b) {
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int64_t d = cta.column0 + k * 16 + maps::b_k(cta.lane, i);
          v[i] = d < a.n_features ? a.weight[(cta.head0 + b * 8 + maps::b_n(cta.lane)) * a.n_features + d] : 0.f;
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
  }
  Margins(const Margins&) = delete;
  Margins& operator=(const Margins&) = delete;

  // Of tile i, whose boxes have come, over this warp's 64 columns.
  MAXMIN_DEVICE void multiply(int i) const {
    constexpr int S = NB == 1 ? 2 : 1;  // sums that do not wait for each other: four with either
    const int lane = cta.lane;
    float m[2][NB][S][4] = {};
    const uint32_t a0 = cta.own_box + (2 * i) % F::SLOTS * F::kSlot + maps::x_addr(lane);
    const uint32_t a1 = cta.own_box + (2 * i + 1) % F::SLOTS * F::kSlot + maps::x_addr(lane);
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
          cta.partial[cta.warp * F::kPartial + at] = S == 2 ? m[r][b][0][j] + m[r][b][S - 1][j] : m[r][b][0][j];
        }
      }
    }
    named_barrier<1, F::kThreads>();
  }

  // Over warps in fixed order; the butterfly gives every lane of a slot the same bits.
  MAXMIN_DEVICE void exchange(int i) const {
    const int lane = cta.lane, e = i & 1;
    const int g = lane / F::kLanes, slot = cta.warp * F::kLanes + lane % F::kLanes;
    float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
    for (int j = 0; j < F::kPerGroup; ++j) {
      const float* from = cta.partial + (g * F::kPerGroup + j) * F::kPartial + maps::partial_slot(slot);
      const float4 u = *reinterpret_cast<const float4*>(from);
      v.x += u.x, v.y += u.y, v.z += u.z, v.w += u.w;
    }
#pragma unroll
    for (int o = F::kLanes; o < 32; o <<= 1) {
      v.x += __shfl_xor_sync(~0u, v.x, o), v.y += __shfl_xor_sync(~0u, v.y, o);
      v.z += __shfl_xor_sync(~0u, v.z, o), v.w += __shfl_xor_sync(~0u, v.w, o);
    }
    const uint32_t dst = shared_addr(cta.inbox + (e * C + cta.me) * (F::kInbox / 4) + slot * 4);
    const uint32_t bar = shared_addr(cta.got + e);
#pragma unroll
    for (int c0 = 0; c0 < C; c0 += F::kGroups) {
      if (const int c = c0 + g; c < C) push(peer_addr(dst, c), peer_addr(bar, c), v);
    }
  }
};

}  // namespace maxmin::em
