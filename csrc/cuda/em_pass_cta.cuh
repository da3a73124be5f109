// A thread's place in the pass: buffers of its CTA, columns of its warp, heads and tiles of its cluster.
#pragma once
#include "em_pass_config.h"

namespace maxmin::em {

template <class F>
struct Cta {
  static constexpr int H = F::H, C = F::C, WARPS = F::WARPS;

  const Arguments a;  // a copy: what is read through a reference is read anew after every store
  // Aligned for the swizzle; the same offset in every CTA, since dynamic shared memory starts alike. An offset, not a
  // rounded address: of that the compiler would not know that it is shared, and each access would look it up.
  uint8_t* base = dynamic_shared() + (-shared_addr(dynamic_shared()) & 1023);
  float* partial = reinterpret_cast<float*>(base + F::kPartials);
  float* inbox = reinterpret_cast<float*>(base + F::kInboxes);  // [2][C][H][32]
  float* gamma = reinterpret_cast<float*>(base + F::kGammas);  // [2][H], of the annotator that a carried sum belongs to
  // [H]: log eta, begin and end of the mixture, scale of the margins
  int4* table = reinterpret_cast<int4*>(base + F::kTable);
  const Tile* tiles = reinterpret_cast<const Tile*>(base + F::kTiles);
  uint64_t* full = reinterpret_cast<uint64_t*>(base + F::kBarriers);  // [SLOTS][WARPS]
  uint64_t *described = full + F::SLOTS * WARPS, *got = described + F::kDescriptors;
  int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31;
  int me = cluster_rank(), cluster = cluster_id();
  int n_blocks = a.head_blocks, n_heads = n_blocks * H;
  int share = cluster / n_blocks, head0 = cluster % n_blocks * H;
  int tile0 = a.tile_begin[share], n = a.tile_begin[share + 1] - tile0;
  int64_t column0 = int64_t(me * WARPS + warp) * 64;
  float coef_scale = F::kHalf ? *a.coef_scale : 1.f;  // a power of two
  uint32_t own_box = shared_addr(base) + warp * F::kBox;

  MAXMIN_DEVICE explicit Cta(const Arguments& arguments) : a(arguments) {}
  Cta(const Cta&) = delete;
  Cta& operator=(const Cta&) = delete;

  MAXMIN_DEVICE void set_up() const {
    if (tid == 0) {
      for (int i = 0; i < F::SLOTS * WARPS; ++i) mbar_init(full + i, 1);
      for (int i = 0; i < F::kDescriptors; ++i) mbar_init(described + i, 1);
      for (int i = 0; i < 2; ++i) mbar_init(got + i, 1);
      mbar_init_fence();
      for (int i = 0; i < 2; ++i) mbar_expect(got + i, C * F::kInbox);  // tiles 0 and 1; posterior(t) arms for t + 2
    }
    if (tid < H) {
      const int h = head0 + tid;
      const float log_weight = fmaxf(a.log_weights[h], -1e30f);  // -inf - -inf would be NaN
      const float scale = F::kHalf ? a.margin_scale[h] : 1.f;
      table[tid] = make_int4(__float_as_int(log_weight), a.mixture_begin[h] - head0, a.mixture_end[h] - head0,
                             __float_as_int(scale));
    }
    cluster_sync();
  }
};

// What comes from memory: boxes of features, which a warp refills as it leaves them, and tiles' descriptors.
template <class F>
struct Ring {
  static constexpr int SLOTS = F::SLOTS, WARPS = F::WARPS, kDescriptors = F::kDescriptors;

  const Cta<F>& cta;
  const CUtensorMap& features;
  uint64_t policy;
  int row_a = 0, row_b = 0;  // first rows of tiles i + SLOTS / 2 and the next: read a tile ahead of their use

  MAXMIN_DEVICE Ring(const Cta<F>& cta_, const CUtensorMap& map)
      : cta(cta_), features(map), policy(cta.n_blocks == 1 ? read_once_policy() : read_again_policy()) {
    if (cta.lane == 0) {
#pragma unroll 1
      for (int unit = 0; unit < SLOTS && unit < 2 * cta.n; ++unit) fill(unit, first_row(unit >> 1));
    }
    if (cta.tid == F::kThreads - 32) {
#pragma unroll 1
      for (int i = 0; i < kDescriptors - 1 && i < cta.n; ++i) describe(i);
    }
    row_a = first_row(SLOTS / 2), row_b = first_row(SLOTS / 2 + 1);
  }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  MAXMIN_DEVICE int first_row(int i) const { return i < cta.n ? static_cast<int>(cta.a.tiles[cta.tile0 + i].row0) : 0; }
  // One thread: unit = 2 tile + row block, this warp's box.
  MAXMIN_DEVICE void fill(int unit, int row0) const {
    uint64_t* bar = cta.full + (unit % SLOTS) * WARPS + cta.warp;
    const uint32_t box = shared_addr(cta.base) + (unit % SLOTS) * F::kSlot + cta.warp * F::kBox;
    mbar_expect(bar, F::kBox);
    copy_box(box, &features, static_cast<int>(cta.column0), row0 + (unit & 1) * 16, bar, policy);
  }
  // One thread.
  MAXMIN_DEVICE void describe(int i) const {
    uint64_t* bar = cta.described + i % kDescriptors;
    mbar_expect(bar, sizeof(Tile));
    copy_bytes(shared_addr(cta.tiles + i % kDescriptors), cta.a.tiles + cta.tile0 + i, sizeof(Tile), bar);
  }
  // This warp has read its box of that unit for the last time.
  MAXMIN_DEVICE void release(int i, int row_block) const {
    __syncwarp();
    const int unit = 2 * i + row_block + SLOTS;
    if (cta.lane == 0 && unit < 2 * cta.n) fill(unit, row_block && SLOTS % 2 ? row_b : row_a);
  }
  // This warp has left tile i.
  MAXMIN_DEVICE void leave(int i) {
    release(i, 1);  // the last read of the tile's descriptor is above
    // Its slot held tile i - 1, which every warp had left before posterior(i)'s barrier.
    if (cta.tid == F::kThreads - 32 && i + kDescriptors - 1 < cta.n) describe(i + kDescriptors - 1);
    row_a = row_b;
    row_b = first_row(i + SLOTS / 2 + 2);
  }
  // Both boxes of tile i have come.
  MAXMIN_DEVICE void wait(int i) const {
    const int s0 = (2 * i) % SLOTS, s1 = (2 * i + 1) % SLOTS;
    mbar_wait<kFull>(cta.full + s0 * WARPS + cta.warp, ((2 * i) / SLOTS) & 1);
    mbar_wait<kFull>(cta.full + s1 * WARPS + cta.warp, ((2 * i + 1) / SLOTS) & 1);
  }
  // They have, asked of every lane without waiting.
  MAXMIN_DEVICE bool has(int i) const {
    const int unit = 2 * i + 1;
    return __all_sync(~0u, mbar_test(cta.full + (unit % SLOTS) * WARPS + cta.warp, (unit / SLOTS) & 1));
  }
};

}  // namespace maxmin::em
