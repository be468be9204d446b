// How weight matrices lie in memory for the linear kernel: the tile layout "R16", the same on every target.
//
// A matrix (n rows, k columns) is cut into panels of 16 rows, n padded with zero rows. A panel is contiguous, made of
// 64-byte vectors that hold 4 bytes of each of the 16 rows, so that one vector load brings 16 rows (AVX-512) or one of
// its halves 8 rows (AVX2), and one output lies in one lane: no horizontal sums.
//
// Block formats hold integers of 4, 5, 6 or 8 bits, value = scale * (integer - offset) + minimum. A group of k shares a
// scale; a unit is 4 values of k. A group's vectors, by bits (dot.h unpacks them):
//   8  group of 32: vector j = unit j
//   4  group of 32: vector j = low nibbles unit j, high nibbles unit j + 4
//   5  group of 32: vector j = low 5 bits unit j, j < 5; its high 3 bits, from the lowest, are bits of units 5 to 7:
//        5.0 5.1 5.2 (vector 0), 7.3 5.3 5.4 (1), 6.0 6.1 6.2 (2), 7.4 6.3 6.4 (3), 7.0 7.1 7.2 (4)
//   6  group of 16: vector j = low 6 bits unit j, j < 3; its high 2 bits: unit 3 bits 2j, 2j + 1
//
// A tile is a head and the vectors of its groups, in order of k:
//   q8_0 q4_0 q5_0       64 k; head: f16 scale[2 groups][16 rows]
//   q4_1 q5_1            64 k; head: f16 scale[2][16]; f16 minimum[2][16]
//   q4_k q5_k           256 k; head: f16 d[16]; f16 e[16]; i8 s[8 groups][16]; i8 m[8][16]: scale d * s, minimum e * m
//                              (e is minus the file's, whose minima are subtracted)
//   q6_k                256 k; head: f16 d[16]; 32 bytes unused, which keeps vectors aligned; i8 s[16 groups][16]
// So every number is the file's own; only the 6-bit scales of k-quants became bytes (2 to 3 % more memory).
//
// Integers with one scale a row (rows.h), rounded from a plain dtype while tiling; f32 scale[16]; i32 start[16], what a sum
// starts from; then:
//   row8   vector i/4: i8 number 4r + i%4 = w[r][i]      (k padded to 32 with zeros)
//   row16  vector i/2: i16 number 2r + i%2 = w[r][i]     (k padded to 16)
//
// Plain formats:
//   bf16  vector i/2: u16 number 2r + i%2 = w[r][i]          (k padded to even with zeros)
//   f16   half vector i: u16 number r = w[r][i]
//   f32   vector i: float number r = w[r][i]
//
// Block formats need whole blocks of the file; where a tile of 64 k is cut in half, its second group is never read.
#pragma once
#include <cstdint>

#include "abi.h"

namespace lattice {

constexpr int panel_rows = 16;

struct Format {
  int block, bytes;    // values of k in a block of the file, and its bytes
  int bits, offset;
  bool minimum;
  int group;           // values of k that share a scale

  constexpr bool super() const { return block == 256; }
  constexpr int tile_values() const { return super() ? 256 : 64; }
  constexpr int head() const { return super() ? 320 : minimum ? 128 : 64; }
  constexpr int group_bytes() const { return group * panel_rows * bits / 8; }
  constexpr int tile_bytes() const { return head() + tile_values() / group * group_bytes(); }
};

// The format of a dtype of blocks; a block of 0 values for every other dtype.
constexpr Format format(DType dtype) {
  switch (dtype) {
    case DType::q8_0: return {32, 34, 8, 128, false, 32};
    case DType::q4_0: return {32, 18, 4, 8, false, 32};
    case DType::q4_1: return {32, 20, 4, 0, true, 32};
    case DType::q5_0: return {32, 22, 5, 16, false, 32};
    case DType::q5_1: return {32, 24, 5, 0, true, 32};
    case DType::q4_k: return {256, 144, 4, 0, true, 32};
    case DType::q5_k: return {256, 176, 5, 0, true, 32};
    case DType::q6_k: return {256, 210, 6, 32, false, 16};
    default: return {};
  }
}
constexpr bool is_block(DType dtype) { return format(dtype).block != 0; }
inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// row8 and row16: units of 4 bytes in a row of k, the largest weight, and what row8 adds to activations: an unsigned byte is
// what x86 multiplies by a signed one.
constexpr bool is_row(DType dtype) { return dtype == DType::row8 || dtype == DType::row16; }
constexpr int row_limit(DType dtype) { return dtype == DType::row8 ? 127 : 2047; }
#if defined(__ARM_FEATURE_DOTPROD)
constexpr int row8_offset = 0;
#else
constexpr int row8_offset = 95;
#endif
constexpr int panel_head = 128;
inline int64_t row_units(DType dtype, int64_t k) { return dtype == DType::row8 ? round_up(k, 32) / 4 : round_up(k, 16) / 2; }

// Bytes of one panel, and of a row in layout rows. 0: the dtype has no tiles (or no such row).
inline int64_t panel_bytes(DType dtype, int64_t k) {
  const Format f = format(dtype);
  if (f.block) return round_up(k, f.tile_values()) / f.tile_values() * f.tile_bytes();
  switch (dtype) {
    case DType::bf16: return round_up(k, 2) * panel_rows * 2;
    case DType::f16: return k * panel_rows * 2;
    case DType::f32: return k * panel_rows * 4;
    case DType::row8:
    case DType::row16: return panel_head + 64 * row_units(dtype, k);
    default: return 0;
  }
}
inline int64_t row_bytes(DType dtype, int64_t k) {
  const Format f = format(dtype);
  if (f.block) return k / f.block * f.bytes;
  switch (dtype) {
    case DType::bf16:
    case DType::f16: return k * 2;
    case DType::f32: return k * 4;
    default: return 0;
  }
}

// The `row`-th row of a two-dimensional tensor (rows or tiles, any weight dtype) as floats, shape[1] of them.
void read_row(const Tensor& matrix, int64_t row, float* out);

}  // namespace lattice
