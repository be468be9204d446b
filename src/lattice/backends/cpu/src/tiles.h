// How weight matrices lie in memory for the linear kernel: the tile layout "R16", the same on every target.
//
// A matrix (n rows, k columns) is cut into panels of 16 rows, n padded with zero rows. A panel is contiguous, made of
// 64-byte vectors that hold 4 bytes of each of the 16 rows, so that one vector load brings 16 rows (AVX-512) or one of
// its halves 8 rows (AVX2), and one output lies in one lane: no horizontal sums.
//
//   q8_0  tiles of 64 k, 1088 bytes: f16 scale[2 blocks][16 rows]; 16 vectors: vector 8b+j, byte 4r+i:
//         w[r][32b+4j+i] + 128
//   q4_1  tiles of 64 k,  640 bytes: f16 scale[2][16]; f16 minimum[2][16]; 8 vectors: vector 4b+j, byte 4r+i:
//         low nibble w[r][32b+4j+i], high nibble w[r][32b+16+4j+i] (0..15)
//   bf16  vector i/2: u16 number 2r + i%2 = w[r][i]          (k padded to even with zeros)
//   f16   half vector i: u16 number r = w[r][i]
//   f32   vector i: float number r = w[r][i]
//
// Block formats need k % 32 == 0; where k % 64 == 32 the last tile's second block is zero and no kernel reads it.
#pragma once
#include <cstdint>

#include "abi.h"

namespace lattice {

constexpr int panel_rows = 16;
constexpr int block_values = 32;   // values of k that share a scale
constexpr int q8_tile = 1088, q4_tile = 640;

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
constexpr bool is_block(DType dtype) { return dtype == DType::q8_0 || dtype == DType::q4_1; }

// Bytes of one panel, and of a row in layout rows. 0: the dtype has no tiles (or no such row).
inline int64_t panel_bytes(DType dtype, int64_t k) {
  switch (dtype) {
    case DType::q8_0: return round_up(k, 64) / 64 * q8_tile;
    case DType::q4_1: return round_up(k, 64) / 64 * q4_tile;
    case DType::bf16: return round_up(k, 2) * panel_rows * 2;
    case DType::f16: return k * panel_rows * 2;
    case DType::f32: return k * panel_rows * 4;
    default: return 0;
  }
}
inline int64_t row_bytes(DType dtype, int64_t k) {
  switch (dtype) {
    case DType::q8_0: return k / block_values * 34;   // per block: f16 scale, 32 int8
    case DType::q4_1: return k / block_values * 20;   // per block: f16 scale, f16 minimum, 16 bytes of two nibbles
    case DType::bf16:
    case DType::f16: return k * 2;
    case DType::f32: return k * 4;
    default: return 0;
  }
}

// The `row`-th row of a two-dimensional tensor (rows or tiles, any weight dtype) as floats, shape[1] of them.
void read_row(const Tensor& matrix, int64_t row, float* out);

}  // namespace lattice
