// Where a warp's values lie in shared memory and in registers: the layouts of TMA's swizzle, ldmatrix and mma.m16n8k16.
#pragma once

#ifdef __CUDACC__
#define MAXMIN_MAP __host__ __device__ __forceinline__ constexpr
#else
#define MAXMIN_MAP inline constexpr
#endif

namespace maxmin::em::maps {

// Floats a head in a warp's partial margins, bfloat16 a head in the coefficients: both free of bank conflicts.
constexpr int kHeadPitch = 36, kCoefPitch = 40;

// Byte of a row's 16-byte column group in a [16][64] bfloat16 box.
MAXMIN_MAP int swizzled(int row, int group) { return row * 128 + ((group ^ (row & 7)) << 4); }

// Element j of a lane's accumulator of m16n8k16; element i of its B operand (register i / 2).
MAXMIN_MAP int acc_row(int lane, int j) { return lane / 4 + (j >> 1) * 8; }
MAXMIN_MAP int acc_col(int lane, int j) { return (lane & 3) * 2 + (j & 1); }
MAXMIN_MAP int b_k(int lane, int i) { return (lane & 3) * 2 + (i & 1) + (i >> 1) * 8; }
MAXMIN_MAP int b_n(int lane) { return lane / 4; }

// ldmatrix.x4 of A = X: rows 0-15, columns [16k, 16k + 16) are at (box + x_addr) ^ 32k, since boxes are aligned.
MAXMIN_MAP int x_addr(int lane) { return swizzled(lane & 15, lane >> 4); }
// ldmatrix.x4.trans of A = transposed X, the same way.
MAXMIN_MAP int xt_addr(int lane) { return swizzled((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1); }
// ldmatrix.x4 of B = the coefficients of a head block and a row block: registers 0, 1 high and 2, 3 low, `part` bytes
// on.
MAXMIN_MAP int coef_addr(int lane, int head_block, int row_block, int part) {
  return (lane >> 4) * part + (head_block * 8 + (lane & 7)) * kCoefPitch * 2 + (2 * row_block + ((lane >> 3) & 1)) * 16;
}

// Partial margins of one warp, [head][row]; the exchange moves 16-byte slots of 4 rows of a head.
MAXMIN_MAP int partial_at(int head, int row) { return head * kHeadPitch + row; }
MAXMIN_MAP int partial_slot(int slot) { return (slot / 8) * kHeadPitch + (slot % 8) * 4; }

}  // namespace maxmin::em::maps
