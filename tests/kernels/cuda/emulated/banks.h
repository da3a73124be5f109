// Bank conflicts of what a warp does in shared memory during a pass.
#pragma once
#include <algorithm>
#include <set>
#include <vector>

#include "em_pass_config.h"

namespace banks {

// Wavefronts beyond the first of accesses of `width` bytes that go together.
inline int conflicts(const std::vector<int>& bytes, int width) {
  std::vector<std::set<int>> bank(32);
  size_t most = 0;
  for (int a : bytes) {
    for (int i = 0; i < width; i += 4) {
      auto& words = bank[(a + i) / 4 % 32];
      words.insert((a + i) / 4);
      most = std::max(most, words.size());
    }
  }
  return static_cast<int>(most) - 1;
}

template <int H, int WARPS>
int conflicts_of_pass() {
  using namespace maxmin::em;
  using F = Config<H, 2, WARPS, 4, false, false>;
  int found = 0;
  // ldmatrix takes eight rows of 16 bytes at a time.
  for (int i = 0; i < 4; ++i) {
    for (int k = 0; k < 4; ++k) {
      std::vector<int> x, xt, coef;
      for (int lane = 8 * i; lane < 8 * i + 8; ++lane) {
        x.push_back(maps::x_addr(lane) ^ 32 * k);
        xt.push_back(maps::xt_addr(lane) ^ 32 * k);
        coef.push_back(maps::coef_addr(lane, k % F::kHeadBlocks, k / 2, F::kCoef));
      }
      found += conflicts(x, 16) + conflicts(xt, 16) + conflicts(coef, 16);
    }
  }
  // Partial margins are stored a float a lane and loaded, for the sum over warps, 16 bytes a lane.
  for (int j = 0; j < 4; ++j) {
    std::vector<int> stored;
    for (int lane = 0; lane < 32; ++lane) {
      stored.push_back(4 * maps::partial_at(maps::acc_col(lane, j), maps::acc_row(lane, j)));
    }
    found += conflicts(stored, 4);
  }
  std::set<int> slots;
  for (int warp = 0; warp < WARPS; ++warp) {
    for (int quarter = 0; quarter < 4; ++quarter) {
      std::vector<int> loaded;
      for (int lane = 8 * quarter; lane < 8 * quarter + 8; ++lane) {
        const int slot = warp * F::kLanes + lane % F::kLanes;
        loaded.push_back(4 * (lane / F::kLanes * F::kPerGroup * F::kPartial + maps::partial_slot(slot)));
        slots.insert(slot);
      }
      found += conflicts(loaded, 16);
    }
  }
  return found + (static_cast<int>(slots.size()) == H * 8 ? 0 : 1000);  // every slot is somebody's
}

}  // namespace banks
