// Tiling: from the rows of a file to the panels of tiles.h, and single rows back out of either.
//
// Block formats keep their integers and scales exactly; only the order of bits changes. Plain formats may change on the
// way (f32 -> f16), rounded to nearest even.
#include "tiles.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "error.h"
#include "pool.h"
#include "simd.h"

namespace lattice {
namespace {

uint16_t half_at(const uint8_t* p) {
  uint16_t h;
  std::memcpy(&h, p, sizeof h);
  return h;
}
uint32_t unit_at(const uint8_t* p) {
  uint32_t unit;
  std::memcpy(&unit, p, sizeof unit);
  return unit;
}

// ---- blocks ------------------------------------------------------------------------------------------------------

// A block of any format, the same from a file and from a tile. A unit is 4 values of k in the bytes of an uint32, and
// what happens to one byte of it happens to all: shifts bring in bits of a neighbour, which a mask removes.
struct Block {
  uint16_t scale, minimum;   // f16
  int8_t factor[16];         // k-quants: of the scale of each group; from [8] on of the minimum, where there is one
  uint32_t unit[64];         // integers, unsigned
};
constexpr uint32_t all(uint32_t byte) { return byte * 0x01010101u; }

// Bit e of `bits` becomes byte e.
uint32_t spread(uint32_t bits) { return ((bits & 15) * 0x00204081u) & all(1); }

LATTICE_INLINE void read_small(const uint8_t* p, const Format& f, Block& to) {
  to.scale = half_at(p);
  if (f.minimum) to.minimum = half_at(p += 2);
  p += 2;
  const uint32_t fifth = f.bits == 5 ? unit_at(p) : 0;   // bit i belongs to value i
  if (f.bits == 5) p += 4;
  for (int i = 0; i < 8 && f.bits == 8; i++) to.unit[i] = unit_at(p + 4 * i) ^ all(128);
  for (int i = 0; i < 8 && f.bits < 8; i++) to.unit[i] = unit_at(p + 4 * (i & 3)) >> (i & 4) & all(15);
  for (int i = 0; i < 8 && f.bits == 5; i++) to.unit[i] |= spread(fifth >> 4 * i) << 4;
}

// f16 scale, f16 minimum, 12 bytes of 6-bit factors, (5 bits: 32 bytes of fifth bits,) 128 bytes of nibbles. Nibbles:
// 32 bytes hold one group in their low halves and the next in their high ones. Fifth bits: bit g belongs to group g.
LATTICE_INLINE void read_q4_k_q5_k(const uint8_t* p, const Format& f, Block& to) {
  to.scale = half_at(p);
  to.minimum = half_at(p + 2) ^ 0x8000;
  const uint8_t* six = p + 4;
  for (int g = 0; g < 4; g++) {
    to.factor[g] = six[g] & 63;
    to.factor[g + 8] = six[g + 4] & 63;
    to.factor[g + 4] = int8_t((six[g + 8] & 15) | six[g] >> 6 << 4);
    to.factor[g + 12] = int8_t(six[g + 8] >> 4 | six[g + 4] >> 6 << 4);
  }
  const uint8_t *fifth = p + 16, *nibbles = f.bits == 5 ? p + 48 : p + 16;
  LATTICE_UNROLL
  for (int group = 0; group < 8; group++)
    for (int j = 0; j < 8; j++) {
      to.unit[8 * group + j] = unit_at(nibbles + 32 * (group / 2) + 4 * j) >> (group % 2 * 4) & all(15);
      if (f.bits == 5) to.unit[8 * group + j] |= (unit_at(fifth + 4 * j) >> group & all(1)) << 4;
    }
}

// 128 bytes of nibbles, 64 bytes of high bits, 16 signed factors, f16 scale. A half of 128 values: 64 bytes hold 64
// values in their low halves and 64 in their high ones; 32 bytes hold their high bits, four times 32 values.
LATTICE_INLINE void read_q6_k(const uint8_t* p, Block& to) {
  to.scale = half_at(p + 208);
  to.minimum = 0;
  std::memcpy(to.factor, p + 192, 16);
  for (int part = 0; part < 8; part++)             // 32 values each, four of a half
    for (int j = 0; j < 8; j++) {
      const uint32_t low = unit_at(p + 64 * (part / 4) + 32 * (part % 2) + 4 * j) >> (part / 2 % 2 * 4) & all(15);
      const uint32_t high = unit_at(p + 128 + 32 * (part / 4) + 4 * j) >> (part % 4 * 2) & all(3);
      to.unit[8 * part + j] = low | high << 4;
    }
}

LATTICE_INLINE void read_file_block(const uint8_t* p, DType dtype, Block& to) {
  const Format f = format(dtype);
  if (!f.super()) read_small(p, f, to);
  else if (f.bits == 6) read_q6_k(p, to);
  else read_q4_k_q5_k(p, f, to);
}

// Where block b of a row lies in its panel: the head of its tile, its place there, its first vector.
struct Place {
  int64_t tile;
  int slot, vectors;

  Place(const Format& f, int64_t b) {
    const int blocks = f.tile_values() / f.block;
    tile = b / blocks * f.tile_bytes();
    slot = int(b % blocks);
    vectors = f.head() + slot * (f.block / f.group) * f.group_bytes();
  }
  int scale(int r) const { return 32 * slot + 2 * r; }
  int minimum(const Format& f, int r) const { return (f.super() ? 32 : 64 + 32 * slot) + 2 * r; }
  static int factor(int i, int r) { return 64 + 16 * i + r; }
};

// The units of one group from and to its vectors, of which p is the row's part; see tiles.h.
void read_group(const uint8_t* p, int bits, uint32_t* unit) {
  auto field = [&](int vector, int from, int count) {
    return unit_at(p + 64 * vector) >> from & all((1u << count) - 1);
  };
  const int whole = bits == 4 ? 4 : bits == 6 ? 3 : bits;   // units that start in a vector of their own
  for (int u = 0; u < whole; u++) unit[u] = field(u, 0, bits);
  if (bits == 4)
    for (int u = 4; u < 8; u++) unit[u] = field(u - 4, 4, 4);
  if (bits == 5) {
    unit[5] = field(0, 5, 3) | field(1, 6, 2) << 3;
    unit[6] = field(2, 5, 3) | field(3, 6, 2) << 3;
    unit[7] = field(4, 5, 3) | field(1, 5, 1) << 3 | field(3, 5, 1) << 4;
  }
  if (bits == 6) unit[3] = field(0, 6, 2) | field(1, 6, 2) << 2 | field(2, 6, 2) << 4;
}
void write_group(const uint32_t* unit, int bits, uint8_t* p) {
  auto field = [&](int u, int from, int count) { return unit[u] >> from & all((1u << count) - 1); };
  auto put = [&](int vector, uint32_t high) {
    const uint32_t value = unit[vector] | high;
    std::memcpy(p + 64 * vector, &value, 4);
  };
  if (bits == 8)
    for (int u = 0; u < 8; u++) put(u, 0);
  if (bits == 4)
    for (int u = 0; u < 4; u++) put(u, unit[u + 4] << 4);
  if (bits == 5) {
    put(0, field(5, 0, 3) << 5);
    put(1, field(7, 3, 1) << 5 | field(5, 3, 2) << 6);
    put(2, field(6, 0, 3) << 5);
    put(3, field(7, 4, 1) << 5 | field(6, 3, 2) << 6);
    put(4, field(7, 0, 3) << 5);
  }
  if (bits == 6)
    for (int u = 0; u < 3; u++) put(u, field(3, 2 * u, 2) << 6);
}

void read_tile_block(const uint8_t* panel, DType dtype, int r, int64_t b, Block& to) {
  const Format f = format(dtype);
  const Place at(f, b);
  const uint8_t* tile = panel + at.tile;
  to.scale = half_at(tile + at.scale(r));
  if (f.minimum) to.minimum = half_at(tile + at.minimum(f, r));
  if (f.super())
    for (int i = 0; i < 16; i++) to.factor[i] = int8_t(tile[at.factor(i, r)]);
  for (int g = 0; g < f.block / f.group; g++)
    read_group(tile + at.vectors + g * f.group_bytes() + 4 * r, f.bits, to.unit + g * f.group / 4);
}
void write_tile_block(const Block& from, DType dtype, int r, int64_t b, uint8_t* panel) {
  const Format f = format(dtype);
  const Place at(f, b);
  uint8_t* tile = panel + at.tile;
  std::memcpy(tile + at.scale(r), &from.scale, 2);
  if (f.minimum) std::memcpy(tile + at.minimum(f, r), &from.minimum, 2);
  if (f.super())
    for (int i = 0; i < 16; i++) tile[at.factor(i, r)] = uint8_t(from.factor[i]);
  for (int g = 0; g < f.block / f.group; g++)
    write_group(from.unit + g * f.group / 4, f.bits, tile + at.vectors + g * f.group_bytes() + 4 * r);
}

LATTICE_INLINE void to_floats(const Block& block, DType dtype, float* out) {
  const Format f = format(dtype);
  const bool whole = f.bits == 8;                // then a signed byte but for its highest bit
  uint32_t unit[64];
  for (int i = 0; i < f.block / 4; i++) unit[i] = block.unit[i] ^ (whole ? all(128) : 0);
  for (int g = 0; g < f.block / f.group; g++) {
    float scale = from_f16(block.scale), minimum = f.minimum ? from_f16(block.minimum) : 0.0f;
    if (f.super()) scale *= float(block.factor[g]);
    if (f.super() && f.minimum) minimum *= float(block.factor[8 + g]);
    for (int i = g * f.group; i < (g + 1) * f.group; i += lanes) {
      vf value = load_i8(reinterpret_cast<const int8_t*>(unit) + i);
      value = set1(scale) * (whole ? value : value - set1(float(f.offset)));
      store(out + i, f.minimum ? value + set1(minimum) : value);
    }
  }
}

// ---- one row as floats -------------------------------------------------------------------------------------------

void widen(const uint16_t* p, DType dtype, int64_t k, float* out) {
  const bool half = dtype == DType::f16;
  int64_t i = 0;
  for (; i + lanes <= k; i += lanes) store(out + i, half ? load_f16(p + i) : load_bf16(p + i));
  for (; i < k; i++) out[i] = half ? from_f16(p[i]) : from_bf16(p[i]);
}

template <DType dtype> void read_blocks(const uint8_t* p, int64_t k, float* out) {   // a format known to the compiler
  constexpr Format f = format(dtype);
  Block block{};
  for (int64_t b = 0; b < k / f.block; b++) {
    read_file_block(p + b * f.bytes, dtype, block);
    to_floats(block, dtype, out + b * f.block);
  }
}

void read_file_row(const uint8_t* p, DType dtype, int64_t k, float* out) {
  switch (dtype) {
    case DType::q8_0: return read_blocks<DType::q8_0>(p, k, out);
    case DType::q4_0: return read_blocks<DType::q4_0>(p, k, out);
    case DType::q4_1: return read_blocks<DType::q4_1>(p, k, out);
    case DType::q5_0: return read_blocks<DType::q5_0>(p, k, out);
    case DType::q5_1: return read_blocks<DType::q5_1>(p, k, out);
    case DType::q4_k: return read_blocks<DType::q4_k>(p, k, out);
    case DType::q5_k: return read_blocks<DType::q5_k>(p, k, out);
    case DType::q6_k: return read_blocks<DType::q6_k>(p, k, out);
    case DType::f32: std::memcpy(out, p, size_t(k) * 4); return;
    default: widen(reinterpret_cast<const uint16_t*>(p), dtype, k, out);
  }
}

void read_panel_row(const uint8_t* panel, DType dtype, int r, int64_t k, float* out) {
  const Format f = format(dtype);
  const auto* halves = reinterpret_cast<const uint16_t*>(panel);
  const auto* floats = reinterpret_cast<const float*>(panel);
  if (f.block) {
    Block block;
    for (int64_t b = 0; b < k / f.block; b++) {
      read_tile_block(panel, dtype, r, b, block);
      to_floats(block, dtype, out + b * f.block);
    }
    return;
  }
  for (int64_t i = 0; i < k; i++)
    if (dtype == DType::row8) out[i] = floats[r] * float(int8_t(panel[panel_head + i / 4 * 64 + 4 * r + i % 4]));
    else if (dtype == DType::row16) out[i] = floats[r] * float(int16_t(halves[panel_head / 2 + i / 2 * 32 + 2 * r + i % 2]));
    else if (dtype == DType::f32) out[i] = floats[i * panel_rows + r];
    else if (dtype == DType::f16) out[i] = from_f16(halves[i * panel_rows + r]);
    else out[i] = from_bf16(halves[i / 2 * 2 * panel_rows + 2 * r + i % 2]);
}

// ---- one panel in ------------------------------------------------------------------------------------------------

// `rows` of the panel's 16 exist; the others become zeros, and so does the rest of a tile that is cut in half.
void tile_blocks(const uint8_t* source, DType dtype, int rows, int64_t k, uint8_t* panel) {
  const Format f = format(dtype);
  const int64_t blocks = k / f.block, stride = blocks * f.bytes, whole = round_up(k, f.tile_values()) / f.block;
  const Block none{};
  Block block;
  for (int r = 0; r < panel_rows; r++)
    for (int64_t b = 0; b < whole; b++) {
      const bool exists = r < rows && b < blocks;
      if (exists) read_file_block(source + r * stride + b * f.bytes, dtype, block);
      write_tile_block(exists ? block : none, dtype, r, b, panel);
    }
}

// q = round_to_even(w / scale), scale = max|w| / limit of the row; in row8 no pair exceeds 172 (rows.h), rounded up or not.
// Not a number where a weight is not finite.
void tile_rows(const float* row, DType to, int r, int64_t k, uint8_t* panel) {
  const bool bytes = to == DType::row8;
  float largest = 0, pair = 0, odd = 0;
  for (int64_t i = 0; i < k; i++) {
    largest = std::max(largest, std::fabs(row[i]));
    if (i % 2) pair = std::max(pair, std::fabs(row[i]) + std::fabs(row[i - 1]));
    odd += row[i] - row[i];
  }
  const float scale = std::max(largest / float(row_limit(to)), bytes ? pair / 170.9f : 0.0f);
  const bool usable = odd == 0 && scale > 1e-37f;
  int32_t sum = 0;
  for (int64_t i = 0; i < (bytes ? 4 : 2) * row_units(to, k); i++) {
    const int q = i < k && usable ? int(std::nearbyint(row[i] / scale)) : 0;
    sum += q;
    if (bytes) panel[panel_head + i / 4 * 64 + 4 * r + i % 4] = uint8_t(q);
    else reinterpret_cast<uint16_t*>(panel)[panel_head / 2 + i / 2 * 32 + 2 * r + i % 2] = uint16_t(q);
  }
  reinterpret_cast<float*>(panel)[r] = scale + odd;
  reinterpret_cast<int32_t*>(panel)[16 + r] = bytes ? -row8_offset * sum : 0;
}

void tile_plain(const uint8_t* source, DType from, DType to, int rows, int64_t k, float* row, uint8_t* panel) {
  auto* halves = reinterpret_cast<uint16_t*>(panel);
  auto* floats = reinterpret_cast<float*>(panel);
  for (int r = 0; r < panel_rows; r++) {
    if (r < rows) read_file_row(source + r * row_bytes(from, k), from, k, row);
    else std::memset(row, 0, size_t(k) * 4);
    if (is_row(to)) {
      tile_rows(row, to, r, k, panel);
      continue;
    }
    for (int64_t i = 0; i < k; i++)
      if (to == DType::f32) floats[i * panel_rows + r] = row[i];
      else if (to == DType::f16) halves[i * panel_rows + r] = to_f16(row[i]);
      else halves[i / 2 * 2 * panel_rows + 2 * r + i % 2] = to_bf16(row[i]);
    if (to == DType::bf16 && k % 2) halves[k / 2 * 2 * panel_rows + 2 * r + 1] = 0;
  }
}

}  // namespace

void read_row(const Tensor& matrix, int64_t row, float* out) {
  const int64_t k = matrix.shape[1];
  const auto* bytes = static_cast<const uint8_t*>(matrix.data);
  if (matrix.layout == Layout::rows) {
    read_file_row(bytes + row * row_bytes(matrix.dtype, k), matrix.dtype, k, out);
  } else {
    const uint8_t* panel = bytes + row / panel_rows * panel_bytes(matrix.dtype, k);
    read_panel_row(panel, matrix.dtype, int(row % panel_rows), k, out);
  }
}

}  // namespace lattice

using namespace lattice;

int64_t lattice_tiled_bytes(int32_t dtype, int64_t n, int64_t k) {
  const DType type = DType(dtype);
  if (n < 1 || k < 1 || (is_block(type) && k % format(type).block)) return -1;
  const int64_t panel = panel_bytes(type, k);
  return panel ? round_up(n, panel_rows) / panel_rows * panel : -1;
}

int32_t lattice_tile(void* pool, int32_t from, const void* source, int32_t to, int64_t n, int64_t k, void* tiles) {
  const DType in = DType(from), out = DType(to);
  if (lattice_tiled_bytes(from, n, k) < 0 || lattice_tiled_bytes(to, n, k) < 0)
    return fail("[cpu.tile] expected a dtype with tiles and whole blocks of k, got k " + std::to_string(k));
  if (is_row(in)) return fail("[cpu.tile] expected rows of a dtype that files hold, got integers with a scale a row");
  if (is_block(out) && in != out)   // encoding into blocks is dtypes' work, in Python
    return fail("[cpu.tile] expected blocks to stay in their format, got another");
  const int64_t panels = round_up(n, panel_rows) / panel_rows, size = panel_bytes(out, k);
  std::atomic<int64_t> next{0};
  static_cast<Pool*>(pool)->run([&](int) {
    std::vector<float> row(is_block(out) ? 0 : size_t(k));
    for (int64_t p; (p = next.fetch_add(1, std::memory_order_relaxed)) < panels;) {
      const int rows = int(n - p * panel_rows < panel_rows ? n - p * panel_rows : panel_rows);
      const uint8_t* first = static_cast<const uint8_t*>(source) + p * panel_rows * row_bytes(in, k);
      uint8_t* panel = static_cast<uint8_t*>(tiles) + p * size;
      if (is_block(out)) tile_blocks(first, out, rows, k, panel);
      else tile_plain(first, in, out, rows, k, row.data(), panel);
    }
  });
  return 0;
}
