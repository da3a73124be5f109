// Sizes of a variant of the kernel, and where its buffers lie in shared memory.
#pragma once
#include <cmath>
#include <cstdint>

#include "em_pass_maps.h"
#include "em_pass_tiles.h"
#include "maxmin/em_pass_cuda.h"

namespace maxmin::em {

// kSteps is the ladder of a first run on a device: 1 loads, 2 + margins, 3 + exchange, 4 + posterior, 5 + gradient.
constexpr int kLoads = 1, kMargins = 2, kExchange = 3, kPosterior = 4, kWhole = 5;

// H heads; clusters of C CTAs; a warp owns 64 columns; a slot holds 16 rows of them, a tile takes two slots.
// kCarry: annotators may cross tiles. kOverlap: margins of the next tile before the gradient of this one.
// kHalf: features are float16, not bfloat16.
template <int H_, int C_, int WARPS_, int SLOTS_, bool kHalf_, bool kCarry_, bool kOverlap_ = true,
          int kSteps_ = kWhole>
struct Config {
  static constexpr int H = H_, C = C_, WARPS = WARPS_, SLOTS = SLOTS_, kSteps = kSteps_;
  static constexpr bool kHalf = kHalf_, kCarry = kCarry_, kOverlap = kOverlap_;
  // Numbers of the features' type that a float32 weight is cut into for the margins: 3 x 8 bits are all 24, 2 x 11 with
  // a sign of their own 23.
  static constexpr int kParts = kHalf ? 2 : 3;
  static constexpr int kThreads = WARPS * 32, kHeadBlocks = H / 8, kColumns = C * WARPS * 64;
  static constexpr int kDescriptors = 4;  // of tiles, brought ahead
  static constexpr int kBox = 16 * 128, kSlot = WARPS * kBox;

  // Floats of a warp's partial margins; + 8 puts neighbouring groups 64 bytes apart.
  static constexpr int kPartial = H * maps::kHeadPitch + 8;
  // Of the sum over warps: threads that share a 16-byte slot, warps that each of them adds, slots a warp.
  static constexpr int kGroups = kThreads / (H * 8), kPerGroup = WARPS / kGroups, kLanes = 32 / kGroups;
  // Of the posterior: heads a warp, warps that work.
  static constexpr int kHeadsPerWarp = (H + WARPS - 1) / WARPS, kHeadWarps = H < WARPS ? H : WARPS;

  static constexpr int kInbox = H * kTileRows * 4;        // bytes from one CTA
  static constexpr int kCoef = H * maps::kCoefPitch * 2;  // bytes of one part of one kind
  static constexpr int kKinds = kCarry ? 2 : 1;           // of coefficients: scaled by gamma, unscaled
  static constexpr int kPartials = SLOTS * kSlot, kInboxes = kPartials + WARPS * kPartial * 4;
  static constexpr int kCoefs = kInboxes + 2 * C * kInbox, kGammas = kCoefs + 2 * kKinds * 2 * kCoef;
  static constexpr int kTable = kGammas + 2 * H * 4, kTiles = kTable + H * 16;
  static constexpr int kBarriers = kTiles + kDescriptors * static_cast<int>(sizeof(Tile));
  static constexpr int kBytes = 1024 + kBarriers + (SLOTS * WARPS + kDescriptors + 2) * 8;

  static_assert(kBytes <= 232448, "shared memory of a CTA");
  static_assert(H % 8 == 0 && kGroups >= 1 && kGroups <= 32 && WARPS % kGroups == 0, "the sum over warps");
  static_assert(H <= WARPS || H % WARPS == 0, "heads by warps");
  static_assert(SLOTS >= 4, "two tiles");
  static_assert(WARPS * kPartial * 4 >= H * kTileRows * 8, "sums of annotators lie on the partial margins");
};

// As maxmin_em_cuda_objective.
struct Objective {
  bool sets;              // some comparison has more than one row
  float log_kept, noise;  // (3b): log(1 - epsilon), epsilon
  bool hard;              // (7H)
  float temperature;      // (7T)
};
inline Objective objective_of(const maxmin_em_cuda_objective& o) {
  return {o.sets != 0, static_cast<float>(std::log1p(-o.label_noise)), static_cast<float>(o.label_noise), o.hard != 0,
          static_cast<float>(o.temperature)};
}

// As maxmin_em_pass_cuda's, for one launch.
struct Arguments {
  const Tile* tiles;
  const int32_t* tile_begin;
  const float *weight, *log_weights;
  const float *margin_scale, *coef_scale;  // of float16: see em_pass_cuda.h
  const int32_t *mixture_begin, *mixture_end;
  float* log_resp;
  double *evidence_parts, *mass_parts;
  float* gradient_parts;
  float2* chunk_sums;
  float* chunk_gradients;
  int64_t n_features;
  int head_blocks;  // of F::H heads: neighbouring clusters work on the same tiles, a block each
  Objective objective;
};
inline Arguments arguments_of(const maxmin_em_cuda_plan& plan, const maxmin_em_cuda_heads& heads, int head_blocks,
                              const maxmin_em_cuda_objective& objective, const maxmin_em_cuda_outputs& out,
                              const maxmin_em_cuda_scratch& scratch) {
  return {static_cast<const Tile*>(plan.tiles),
          plan.tile_begin,
          heads.weight,
          heads.log_weights,
          heads.margin_scale,
          heads.coef_scale,
          heads.mixture_begin,
          heads.mixture_end,
          out.log_resp,
          scratch.evidence_parts,
          scratch.mass_parts,
          scratch.gradient_parts,
          reinterpret_cast<float2*>(scratch.chunk_sums),
          scratch.chunk_gradients,
          heads.n_features,
          head_blocks,
          objective_of(objective)};
}

}  // namespace maxmin::em
