// The gradient of a tile, += X^T c from the bytes of its margins; then the warp's slots are loaded anew.
#pragma once
#include "em_pass_cta.cuh"

namespace maxmin::em {

template <class F>
struct Gradient {
  static constexpr int H = F::H, NB = F::kHeadBlocks;
  static constexpr bool kCarry = F::kCarry, kHalf = F::kHalf;

  const Cta<F>& cta;
  float acc[F::kKinds][4][NB][4] = {};  // [gradient; carried, unscaled][16-column block][head block]

  MAXMIN_DEVICE explicit Gradient(const Cta<F>& cta_) : cta(cta_) {}
  Gradient(const Gradient&) = delete;
  Gradient& operator=(const Gradient&) = delete;

  MAXMIN_DEVICE void operator()(int i, Ring<F>& ring) {
    const int e = i & 1;
    const Tile& tile = cta.tiles[i % F::kDescriptors];
    const int flags = kCarry ? tile.flags : 0;
    const bool somebody_ends = !kCarry || !((flags & kOpenOut) && tile.annotators == 1);
    if constexpr (kCarry && F::kSteps >= kWhole) {
      if ((flags & kOpenIn) && somebody_ends) take_in_carried(e);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if constexpr (F::kSteps >= kWhole) {
        const uint32_t x0 = cta.own_box + ((2 * i + r) % F::SLOTS) * F::kSlot + maps::xt_addr(cta.lane);
#pragma unroll
        for (int kind = 0; kind < F::kKinds; ++kind) {
          // Both only where one ends and another goes on.
          if (kind == 0 ? somebody_ends : (flags & kOpenOut) != 0) multiply(kind, e, r, x0);
        }
      }
      if (r == 0) ring.release(i, 0);
    }
    if constexpr (kCarry && F::kSteps >= kWhole) {
      if (flags & kChunkOut) write_chunk(tile.chunk);
    }
    ring.leave(i);
  }

  // Row block r of the tile, times its coefficients of that kind.
  MAXMIN_DEVICE void multiply(int kind, int e, int r, uint32_t x0) {
    uint32_t c[NB][4];
#pragma unroll
    for (int b = 0; b < NB; ++b) {
      const int at = (e * F::kKinds + kind) * 2 * F::kCoef + maps::coef_addr(cta.lane, b, r, F::kCoef);
      load_matrices(c[b], shared_addr(cta.base) + F::kCoefs + at);
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

  // The carried sum is whole.
  MAXMIN_DEVICE void take_in_carried(int e) {
#pragma unroll
    for (int b = 0; b < NB; ++b) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float g = cta.gamma[e * H + b * 8 + maps::acc_col(cta.lane, j)];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          acc[0][k][b][j] += g * acc[kCarry][k][b][j];
          acc[kCarry][k][b][j] = 0.f;
        }
      }
    }
  }

  // Row `row0` + head of (.., n_features), in this warp's columns.
  MAXMIN_DEVICE void write_kind(int kind, float* out, int64_t row0) const {
    const int64_t n_features = cta.a.n_features;
    const float unscale = 1.f / cta.coef_scale;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int b = 0; b < NB; ++b) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int64_t d = cta.column0 + k * 16 + maps::acc_row(cta.lane, j);
          const int64_t row = row0 + b * 8 + maps::acc_col(cta.lane, j);
          if (d < n_features) out[row * n_features + d] = acc[kind][k][b][j] * unscale;
        }
      }
    }
  }
  MAXMIN_DEVICE void write_chunk(int chunk) {
    write_kind(kCarry, cta.a.chunk_gradients, int64_t(chunk) * cta.n_heads + cta.head0);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int b = 0; b < NB; ++b) {
#pragma unroll
        for (int j = 0; j < 4; ++j) acc[kCarry][k][b][j] = 0.f;
      }
    }
  }
  // Row `cluster` of H heads: share and block, so heads of one share follow each other.
  MAXMIN_DEVICE void write() const { write_kind(0, cta.a.gradient_parts, int64_t(cta.cluster) * H); }
};

}  // namespace maxmin::em
