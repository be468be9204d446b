// Tiling: from the rows of a file to the panels of tiles.h, and single rows back out of either.
//
// Block formats are moved, never recoded: 4 bytes of k of a row are one 32-bit unit in both layouts. Plain formats may
// change on the way (f32 -> f16), rounded to nearest even.
#include "tiles.h"

#include <atomic>
#include <cstring>
#include <vector>

#include "error.h"
#include "pool.h"
#include "simd.h"

namespace lattice {
namespace {

// ---- one row out of file order -----------------------------------------------------------------------------------

void widen(const uint16_t* p, DType dtype, int64_t k, float* out) {
  const bool half = dtype == DType::f16;
  int64_t i = 0;
  for (; i + lanes <= k; i += lanes) store(out + i, half ? load_f16(p + i) : load_bf16(p + i));
  for (; i < k; i++) out[i] = half ? from_f16(p[i]) : from_bf16(p[i]);
}

uint16_t half_at(const uint8_t* p) {
  uint16_t h;
  std::memcpy(&h, p, sizeof h);
  return h;
}

void read_file_row(const uint8_t* p, DType dtype, int64_t k, float* out) {
  switch (dtype) {
    case DType::f32: std::memcpy(out, p, size_t(k) * 4); break;
    case DType::f16:
    case DType::bf16: widen(reinterpret_cast<const uint16_t*>(p), dtype, k, out); break;
    case DType::q8_0:
      for (int64_t b = 0; b < k / block_values; b++, p += 34, out += block_values) {
        const float scale = from_f16(half_at(p));
        for (int i = 0; i < block_values; i++) out[i] = scale * float(int8_t(p[2 + i]));
      }
      break;
    case DType::q4_1:
      for (int64_t b = 0; b < k / block_values; b++, p += 20, out += block_values) {
        const float scale = from_f16(half_at(p)), minimum = from_f16(half_at(p + 2));
        for (int i = 0; i < 16; i++) {
          out[i] = scale * float(p[4 + i] & 15) + minimum;
          out[i + 16] = scale * float(p[4 + i] >> 4) + minimum;
        }
      }
      break;
    default: break;
  }
}

// ---- one row out of a panel --------------------------------------------------------------------------------------

void read_panel_row(const uint8_t* panel, DType dtype, int r, int64_t k, float* out) {
  const auto* halves = reinterpret_cast<const uint16_t*>(panel);
  const auto* floats = reinterpret_cast<const float*>(panel);
  switch (dtype) {
    case DType::f32:
      for (int64_t i = 0; i < k; i++) out[i] = floats[i * panel_rows + r];
      break;
    case DType::f16:
      for (int64_t i = 0; i < k; i++) out[i] = from_f16(halves[i * panel_rows + r]);
      break;
    case DType::bf16:
      for (int64_t i = 0; i < k; i++) out[i] = from_bf16(halves[i / 2 * 2 * panel_rows + 2 * r + i % 2]);
      break;
    case DType::q8_0:
      for (int64_t b = 0; b < k / block_values; b++, out += block_values) {
        const uint8_t* tile = panel + b / 2 * q8_tile;
        const float scale = from_f16(half_at(tile + 32 * (b % 2) + 2 * r));
        const uint8_t* v = tile + 64 + 512 * (b % 2) + 4 * r;
        for (int i = 0; i < block_values; i++) out[i] = scale * float(int(v[64 * (i / 4) + i % 4]) - 128);
      }
      break;
    case DType::q4_1:
      for (int64_t b = 0; b < k / block_values; b++, out += block_values) {
        const uint8_t* tile = panel + b / 2 * q4_tile;
        const float scale = from_f16(half_at(tile + 32 * (b % 2) + 2 * r));
        const float minimum = from_f16(half_at(tile + 64 + 32 * (b % 2) + 2 * r));
        const uint8_t* v = tile + 128 + 256 * (b % 2) + 4 * r;
        for (int i = 0; i < 16; i++) {
          const uint8_t byte = v[64 * (i / 4) + i % 4];
          out[i] = scale * float(byte & 15) + minimum;
          out[i + 16] = scale * float(byte >> 4) + minimum;
        }
      }
      break;
    default: break;
  }
}

// ---- one panel in ------------------------------------------------------------------------------------------------

// `rows` of the panel's 16 exist; the panel's memory is zero already where nothing is written.
void tile_blocks(const uint8_t* source, DType dtype, int rows, int64_t k, uint8_t* panel) {
  const bool q8 = dtype == DType::q8_0;
  const int head = q8 ? 2 : 4, units = q8 ? 8 : 4, tile_size = q8 ? q8_tile : q4_tile;
  const uint32_t flip = q8 ? 0x80808080u : 0;
  const int64_t stride = row_bytes(dtype, k), block_size = head + 4 * units;
  for (int r = 0; r < panel_rows; r++)
    for (int64_t b = 0; b < round_up(k, 64) / block_values; b++) {
      uint8_t* tile = panel + b / 2 * tile_size;
      uint8_t* vectors = tile + 32 * head + 64 * units * (b % 2) + 4 * r;
      const bool exists = r < rows && b < k / block_values;
      const uint8_t* block = source + (exists ? r * stride + b * block_size : 0);
      for (int h = 0; h < head; h += 2) {
        uint16_t value = exists ? half_at(block + h) : uint16_t(0);
        std::memcpy(tile + 32 * h + 32 * (b % 2) + 2 * r, &value, 2);
      }
      for (int j = 0; j < units; j++) {
        uint32_t unit = 0;
        if (exists) std::memcpy(&unit, block + head + 4 * j, 4);
        unit ^= flip;
        std::memcpy(vectors + 64 * j, &unit, 4);
      }
    }
}

void tile_plain(const uint8_t* source, DType from, DType to, int rows, int64_t k, float* row, uint8_t* panel) {
  auto* halves = reinterpret_cast<uint16_t*>(panel);
  auto* floats = reinterpret_cast<float*>(panel);
  for (int r = 0; r < panel_rows; r++) {
    if (r < rows) read_file_row(source + r * row_bytes(from, k), from, k, row);
    else std::memset(row, 0, size_t(k) * 4);
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
  if (n < 1 || k < 1 || (is_block(type) && k % block_values)) return -1;
  const int64_t panel = panel_bytes(type, k);
  return panel ? round_up(n, panel_rows) / panel_rows * panel : -1;
}

int32_t lattice_tile(void* pool, int32_t from, const void* source, int32_t to, int64_t n, int64_t k, void* tiles) {
  const DType in = DType(from), out = DType(to);
  if (lattice_tiled_bytes(from, n, k) < 0 || lattice_tiled_bytes(to, n, k) < 0)
    return fail("[cpu.tile] expected a dtype with tiles and whole blocks of k, got k " + std::to_string(k));
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
