// csrc/cuda's own kernel, tile cutter and joining launches as a library that needs no device: the same calls as the
// binding's.
#include "device.h"
//
#include "banks.h"
#include "em_pass_join.cuh"
#include "em_pass_kernel.cuh"
#include "em_pass_variants.h"
#include "maxmin/em_pass_cuda.h"

using namespace maxmin::em;

namespace {

// Small variants that exercise what the large ones do, quickly: a number each, and some that are compiled for the
// device.
template <class Visit>
int visit_emulated(int which, Visit visit) {
  switch (which) {
    case 1: return visit(Config<8, 2, 4, 6, false, true>{});   // 512 columns
    case 2: return visit(Config<8, 4, 4, 5, false, true>{});   // 1024; an odd ring
    case 3: return visit(Config<8, 2, 4, 8, false, true>{});   // a longer ring
    case 8: return visit(Config<8, 2, 4, 6, true, true>{});    // float16
    case 4: return visit(Config<16, 2, 8, 5, false, true>{});  // 1024; two heads a warp
#ifndef MAXMIN_QUICK
    case 0: return visit(Config<8, 2, 4, 6, false, false, false>{});
    case 5: return visit(Config<16, 2, 8, 10, false, false>{});  // as compiled
    case 6: return visit(Config<8, 4, 16, 6, false, true>{});    // as compiled: 4096
    case 7: return visit(Config<16, 8, 8, 10, false, true>{});   // as compiled: 4096
    case 9: return visit(Config<16, 2, 8, 10, true, false>{});   // float16, as compiled
    case 10: return visit(Config<8, 4, 16, 6, true, true>{});    // float16, as compiled: 4096
    case 11: return visit(Config<16, 2, 8, 10, true, true>{});   // float16, as compiled
#endif
  }
  return 1;
}

template <class Kernel>
void for_each_thread(int64_t n, Kernel kernel) {
  blockDim.x = 64;
  for (int64_t at = 0; at < (n + 63) / 64 * 64; ++at) {
    blockIdx.x = static_cast<unsigned>(at / 64);
    threadIdx.x = static_cast<unsigned>(at % 64);
    kernel();
  }
}

}  // namespace

extern "C" {

int bank_conflicts(int heads, int warps) {
  if (heads == 8) return warps == 8 ? banks::conflicts_of_pass<8, 8>() : banks::conflicts_of_pass<8, 16>();
  return warps == 8 ? banks::conflicts_of_pass<16, 8>() : banks::conflicts_of_pass<16, 16>();
}

// What the kernel makes of x: the sum of its parts.
double sum_of_parts(int half, float x) {
  double sum = 0.;
  for (int p = 0; p < (half ? 2 : 3); ++p) {
    sum += half ? half_value(rounded<true>(x)) : bf16_value(rounded<false>(x));
    x = half ? rest<true>(x) : rest<false>(x);
  }
  return sum;
}

int shares(int n_clusters, int n_blocks) { return shares_of(n_clusters, n_blocks); }

// Heads of a block; 0: no variant takes so many heads and features.
int block_served(int64_t n_heads, int64_t n_features) {
  const Wanted wanted{heads_of_block(n_heads, n_features), n_features, false, false};
  return visit_variant(wanted, 0, [](auto variant) { return decltype(variant)::H; });
}

int wants_carry(const int64_t* sizes, int64_t n) { return TileCutter::wants_carry(sizes, n); }

// Called twice: without places to write to it says how much there is.
void cut_tiles(const int64_t* sizes, int64_t n, const int64_t* lengths, int carry, int64_t n_clusters,
               int64_t chunk_rows, int64_t counts[2], void* tiles, int32_t* begin, int32_t* split_begin,
               int64_t* split_annotator) {
  const Tiles cut = TileCutter(sizes, n, lengths, carry, chunk_rows).cut(n_clusters);
  counts[0] = static_cast<int64_t>(cut.tiles.size());
  counts[1] = static_cast<int64_t>(cut.split_annotator.size());
  if (!tiles) return;
  std::memcpy(tiles, cut.tiles.data(), cut.tiles.size() * sizeof(Tile));
  std::copy(cut.begin.begin(), cut.begin.end(), begin);
  std::copy(cut.split_begin.begin(), cut.split_begin.end(), split_begin);
  std::copy(cut.split_annotator.begin(), cut.split_annotator.end(), split_annotator);
}

// As maxmin_em_pass_cuda; the seed decides the interleaving. 0, 1 no such variant, 2 stuck (said on stdout).
int emulate(int which, unsigned seed, const maxmin_em_cuda_plan* plan, const maxmin_em_cuda_heads* heads,
            const maxmin_em_cuda_objective* objective, const void* features, int64_t n_rows, int64_t stride_row,
            const maxmin_em_cuda_outputs* out, const maxmin_em_cuda_scratch* scratch) {
  Arguments a = arguments_of(*plan, *heads, 1, *objective, *out, *scratch);
  const CUtensorMap map{static_cast<const uint16_t*>(features), n_rows, heads->n_features, stride_row};
  const int result = visit_emulated(which, [&](auto variant) {
    using F = decltype(variant);
    a.head_blocks = static_cast<int>(heads->n_heads / F::H);  // whatever it takes with as many features as a test has
    if (heads->n_heads != F::H * a.head_blocks || heads->n_features > F::kColumns || plan->carry != F::kCarry ||
        heads->half != F::kHalf) {
      return 1;
    }
    for (int q = 0; q < plan->n_clusters * a.head_blocks; ++q) {
      const char* error = device::run(F::C, F::kThreads, F::kBytes, q, seed, [&] { em_pass_kernel<F>(map, a); });
      if (error) {
        std::printf("variant %d, seed %u: %s\n", which, seed, error);
        std::fflush(stdout);
        return 2;
      }
    }
    return 0;
  });
  if (result) return result;
  const Split split{plan->n_split, plan->split_begin, plan->split_annotator, scratch->split_resp,
                    scratch->split_evidence};
  const int H = static_cast<int>(heads->n_heads);
  for_each_thread(split.n_split * H, [&] { split_posterior_kernel(a, split, H); });
  for_each_thread(H * heads->n_features,
                  [&] { join_kernel(a, split, H, plan->n_clusters, out->evidence, out->mass, out->gradient); });
  return 0;
}
}
