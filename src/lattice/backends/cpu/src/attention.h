// The inner routine of attention: a few query rows against one span of 64 positions, by the online softmax.
//
//   scores[j] = scale * sum over d of q[d] k[d][j]           m' = max(m, scores)       r = exp(m - m')
//   p[j] = exp(scores[j] - m')      l' = l r + sum of p      acc'[d] = acc[d] r + sum over j of p[j] v[j][d]
//
// and acc / l in the end. Spans begin at multiples of 64 of the absolute position, every sum runs in one order, and a
// row never sees the rows beside it: what a tile of rows shares is loads. So a prompt gives the same bits however it
// is cut. Positions outside a row's range may hold any bits: their scores are replaced, their values never read.
// Keys and values of 8 bits have a factor a position: the score is multiplied by the key's, p by the value's.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "abi.h"
#include "math.h"
#include "simd.h"

namespace lattice::attention {

constexpr int span = page_tokens;
constexpr int tile_rows = 6;

// Vectors of one row's sums that are held at once: with the rows of the tile some 12 registers (AVX-512: 24).
constexpr int vectors(int rows) {
  const int most = span / lanes, wanted = lanes == 16 ? 4 : rows == 1 ? 8 : rows <= 3 ? 4 : 2;
  return wanted < most ? wanted : most;
}

inline vf load_as_float(const float* p) { return load(p); }
inline vf load_as_float(const uint16_t* p) { return load_f16(p); }
inline vf load_as_float(const int8_t* p) { return load_i8(p); }
inline vf load_as_float(const float* p, int n) { return load_n(p, n); }
inline vf load_as_float(const uint16_t* p, int n) { return load_f16_n(p, n); }
inline vf load_as_float(const int8_t* p, int n) {
  int8_t x[lanes] = {};
  std::memcpy(x, p, size_t(n));
  return load_i8(x);
}

// One span of keys (head_dim, 64) and of values (64, stride); the factors of 64 keys and values, or none; and the span to
// fetch meanwhile, or none: pages lie anywhere, and the processor's own prefetching stops at the end of each 4 KB.
template <class Element> struct Span {
  const Element *keys, *values;
  int64_t stride;
  const float *key_factors = nullptr, *value_factors = nullptr;
  const Element *next_keys = nullptr, *next_values = nullptr;
};

// A query row: its state, and its range of positions in the present span.
struct Row {
  const float* query;
  float* sums;             // acc, head_dim values
  float top, total;        // m and l
  int begin, end;
};

inline void start(Row& row, int64_t head_dim) {
  row.top = -std::numeric_limits<float>::infinity();
  row.total = 0.0f;
  std::fill(row.sums, row.sums + head_dim, 0.0f);
}

inline void finish(const Row& row, int64_t head_dim, float* out) {
  const vf factor = set1(1.0f / row.total);
  int64_t d = 0;
  for (; d + lanes <= head_dim; d += lanes) store(out + d, load(row.sums + d) * factor);
  if (d < head_dim) store_n(out + d, load_n(row.sums + d, int(head_dim - d)) * factor, int(head_dim - d));
}

// sum[r][v] += a(r) * b(v). The shorter side is loaded first and kept: the registers hold that, the sums and one more.
template <int rows, int count, class A, class B> inline void outer_product(vf (&sum)[rows][count], A&& a, B&& b) {
  if constexpr (rows < count) {
    vf kept[rows];
    for (int r = 0; r < rows; ++r) kept[r] = a(r);
    for (int v = 0; v < count; ++v) {
      const vf one = b(v);
      for (int r = 0; r < rows; ++r) sum[r][v] = fma(kept[r], one, sum[r][v]);
    }
  } else {
    vf kept[count];
    for (int v = 0; v < count; ++v) kept[v] = b(v);
    for (int r = 0; r < rows; ++r) {
      const vf one = a(r);
      for (int v = 0; v < count; ++v) sum[r][v] = fma(one, kept[v], sum[r][v]);
    }
  }
}

// q k for the positions that `begin` to `end` touch, 64 floats a row in `scores`.
template <int rows, class Element>
inline void products(Row* const* row, const Span<Element>& kv, int64_t head_dim, int begin, int end, float* scores) {
  constexpr int count = vectors(rows), step = count * lanes;
  for (int j = begin / step * step; j < end; j += step) {
    vf sum[rows][count];
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < count; ++v) sum[r][v] = zero();
    for (int64_t d = 0; d < head_dim; ++d) {
      if (kv.next_keys) prefetch(kv.next_keys + d * span + j);
      outer_product<rows, count>(sum, [&](int r) { return set1(row[r]->query[d]); },
                                 [&](int v) { return load_as_float(kv.keys + d * span + j + v * lanes); });
    }
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < count; ++v) store(scores + r * span + j + v * lanes, sum[r][v]);
  }
}

inline vf lane_numbers() {
  alignas(64) static constexpr float numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load(numbers);
}

// Scores become p; the row's m, l and acc move to the new maximum. Lanes outside the range become 0.
// `scale` includes 1 / ln 2: exponentials are taken to base 2.
template <bool whole> inline void soften(Row& row, float* scores, int64_t head_dim, float scale) {
  const int first = whole ? 0 : row.begin / 16 * parts, last = whole ? span / lanes : (row.end + 15) / 16 * parts;
  const vf none = set1(-std::numeric_limits<float>::infinity());
  vf top = none;
  for (int j = first; j < last; ++j) {
    vf x = load(scores + j * lanes) * set1(scale);
    if constexpr (!whole) {
      const vf position = lane_numbers() + set1(float(j * lanes));
      x = select(position < set1(float(row.end)), x, none);
      x = select(position < set1(float(row.begin)), none, x);
    }
    store(scores + j * lanes, x);
    top = max(top, x);
  }
  const float highest = std::max(row.top, reduce_max(top));
  if (highest != row.top) {              // else every factor is exactly 1
    const vf shrink = exp2_down(set1(row.top - highest));
    alignas(64) float factor[lanes];
    store(factor, shrink);
    row.total *= factor[0];
    row.top = highest;
    int64_t d = 0;
    for (; d + lanes <= head_dim; d += lanes) store(row.sums + d, load(row.sums + d) * shrink);
    if (d < head_dim) store_n(row.sums + d, load_n(row.sums + d, int(head_dim - d)) * shrink, int(head_dim - d));
  }
  vf total[parts];
  for (vf& part : total) part = zero();
  for (int j = first; j < last; j += parts)
    LATTICE_UNROLL
    for (int i = 0; i < parts; ++i) {
      const vf p = exp2_down(load(scores + (j + i) * lanes) - set1(highest));
      store(scores + (j + i) * lanes, p);
      total[i] = total[i] + p;
    }
  row.total += reduce_add(total);
}

// acc += p v over the positions begin to end, in order, `count` vectors of d at a time from d on.
template <int rows, int count, class Element>
inline void weigh_columns(Row* const* row, const float* p, const Span<Element>& kv, int begin, int end, int64_t d) {
  vf sum[rows][count];
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < count; ++v) sum[r][v] = load(row[r]->sums + d + v * lanes);
  for (int j = begin; j < end; ++j) {
    if (kv.next_values) prefetch(kv.next_values + j * kv.stride + d);
    outer_product<rows, count>(sum, [&](int r) { return set1(p[r * span + j]); },
                               [&](int v) { return load_as_float(kv.values + j * kv.stride + d + v * lanes); });
  }
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < count; ++v) store(row[r]->sums + d + v * lanes, sum[r][v]);
}

// The same for all columns from d on: `count` vectors at a time, then half as many, and a partial vector in the end.
template <int rows, int count, class Element>
inline void weigh(Row* const* row, const float* p, const Span<Element>& kv, int64_t head_dim, int begin, int end, int64_t d) {
  for (; d + count * lanes <= head_dim; d += count * lanes) weigh_columns<rows, count>(row, p, kv, begin, end, d);
  if (d == head_dim) return;
  if constexpr (count > 1) return weigh<rows, count / 2>(row, p, kv, head_dim, begin, end, d);
  const int rest = int(head_dim - d);
  for (int r = 0; r < rows; ++r) {
    vf sum = load_n(row[r]->sums + d, rest);
    for (int j = begin; j < end; ++j)
      sum = fma(set1(p[r * span + j]), load_as_float(kv.values + j * kv.stride + d, rest), sum);
    store_n(row[r]->sums + d, sum, rest);
  }
}

template <int rows, class Element>
inline void weigh(Row* const* row, const float* p, const Span<Element>& kv, int64_t head_dim, int begin, int end) {
  if (begin < end) weigh<rows, vectors(rows)>(row, p, kv, head_dim, begin, end, 0);
}

inline void multiply(float* scores, const float* factors) {
  for (int j = 0; j < span; j += lanes) store(scores + j, load(scores + j) * load(factors + j));
}

// A tile of rows, each with a range that is not empty, takes in one span.
template <int rows, class Element>
void take_in(Row* const* row, const Span<Element>& kv, int64_t head_dim, float scale) {
  alignas(64) float p[rows * span];
  if (kv.key_factors) std::fill(p, p + rows * span, 0.0f);   // what no row sees is multiplied all the same
  int first = span, last = 0, common_first = 0, common_last = span;
  for (int r = 0; r < rows; ++r) {
    first = std::min(first, row[r]->begin), common_first = std::max(common_first, row[r]->begin);
    last = std::max(last, row[r]->end), common_last = std::min(common_last, row[r]->end);
  }
  products<rows>(row, kv, head_dim, first, last, p);
  for (int r = 0; r < rows; ++r) {
    if (kv.key_factors) multiply(p + r * span, kv.key_factors);
    if (row[r]->begin == 0 && row[r]->end == span) soften<true>(*row[r], p + r * span, head_dim, scale);
    else soften<false>(*row[r], p + r * span, head_dim, scale);
    if (kv.value_factors) multiply(p + r * span, kv.value_factors);
  }
  // Positions that all rows see are shared; the others are added row by row, before and after, still in order.
  if (common_last < common_first) common_last = common_first;
  for (int r = 0; r < rows; ++r)
    weigh<1>(row + r, p + r * span, kv, head_dim, row[r]->begin, std::min(common_first, row[r]->end));
  weigh<rows>(row, p, kv, head_dim, common_first, common_last);
  for (int r = 0; r < rows; ++r)
    weigh<1>(row + r, p + r * span, kv, head_dim, std::max(common_last, row[r]->begin), row[r]->end);
}

template <class Element>
void take_in(int rows, Row* const* row, const Span<Element>& kv, int64_t head_dim, float scale) {
  switch (rows) {
    case 1: return take_in<1>(row, kv, head_dim, scale);
    case 2: return take_in<2>(row, kv, head_dim, scale);
    case 3: return take_in<3>(row, kv, head_dim, scale);
    case 4: return take_in<4>(row, kv, head_dim, scale);
    case 5: return take_in<5>(row, kv, head_dim, scale);
    case 6: return take_in<6>(row, kv, head_dim, scale);
  }
}

}  // namespace lattice::attention
