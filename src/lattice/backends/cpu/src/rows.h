// Integer products of whole rows: a row of weights has one scale, a row of activations has one, and an int32 runs along k.
// (dot.h has a scale for every 32 of k: more exact at equal bits, and it pays for it at every block.)
//
//   row8    weights of 8 bits (-127 to 127), activations of 7.6 (-95 to 95, stored + 95 where bytes multiply unsigned)
//   row16   weights and activations of 12 bits (-2047 to 2047): summed over 512 k, then in floats
//
// vpmaddubsw adds two products in an i16. 190 * (|w0| + |w1|) fits as long as no pair of weights exceeds 172 together, and a
// row is scaled so that none does: that costs hardly more than its largest weight does. Every target gives the same
// integers, and the few float operations are written once, in linear_rows.h.
//
// Activations of row8: d = min(max|x|, 4 rms) / 95. What exceeds 95 d, outlier channels, is kept all the same: the rest of
// it follows as extra units behind the row, four values of k of which one is not 0, multiplied like any other. At most
// k / 16 values exceed 4 rms, and no more extra units are needed: a value v needs less than (v / 95d)^2 of them.
#pragma once
#include <algorithm>

#include "dot.h"
#include "norm.h"
#include "tiles.h"

namespace lattice {

constexpr int row_head = 64, step_units = 8;      // bytes before the units of activations; units of one step of a kernel
constexpr int chunk_steps = 32;                   // row16: steps of 16 k whose sum fits an int32

struct RowHead { float d; int32_t extras; };
struct Extra { int32_t unit, sign; int8_t q[4]; };   // q >= 0; sign: 0, or -1 to subtract

inline int64_t row_stride(DType dtype, int64_t k) {   // bytes of one token; what four() may read behind the last extra
  const int64_t extra = dtype == DType::row8 ? (k / 12 + 1) * int64_t(sizeof(Extra)) + 64 : 0;
  return round_up(row_head + 4 * row_units(dtype, k) + extra, 64);
}

// body(values of x, position), zeros behind k, up to whole steps.
template <class Body> LATTICE_INLINE void each_vector(const float* x, int64_t k, int64_t padded, Body&& body) {
  int64_t i = 0;
  for (; i + lanes <= k; i += lanes) body(load(x + i), i);
  for (; i < padded; i += lanes) body(load_n(x + i, int(i < k ? k - i : 0)), i);
}

// The largest magnitude; not a number where a value is none or infinite.
inline float row_largest(const float* x, int64_t k) {
  vf top = zero(), odd = zero();
  each_vector(x, k, k, [&](vf v, int64_t) {
    top = max(top, abs(v));
    odd = odd + (v - v);
  });
  return reduce_max(top) + reduce_add(odd);
}

inline void quantise_row8(const float* x, int64_t k, uint8_t* to) {
  RowHead& head = *reinterpret_cast<RowHead*>(to);
  int8_t* q = reinterpret_cast<int8_t*>(to + row_head);
  const int64_t padded = 4 * row_units(DType::row8, k);
  Extra* extra = reinterpret_cast<Extra*>(q + padded);
  float range = row_largest(x, k);
  const float squares = row_sum(x, k, [](vf v, vf sum) { return fma(v, v, sum); });
  if (squares > 1e-30f) range = std::min(range, 4 * std::sqrt(squares / float(k)));
  head = {range / 95, 0};
  const vf scale = set1(range > 1e-36f ? 95 / range : 0.0f);   // below, the quotient would overflow
  if (!(range < INFINITY)) std::memset(q, 0, size_t(padded));
  if (!(range < INFINITY)) return;
  each_vector(x, k, padded, [&](vf v, int64_t i) {
    vf value = round(v * scale);
    if (any(set1(95) < abs(value))) {
      alignas(64) float lane[lanes];
      store(lane, value);
      for (int j = 0; j < lanes; j++)
        for (float rest = std::fabs(lane[j]) - 95; rest > 0; rest -= 95) {
          Extra& more = extra[head.extras++] = {int32_t((i + j) / 4), lane[j] < 0 ? -1 : 0, {}};
          more.q[(i + j) % 4] = int8_t(std::min(rest, 95.0f));
        }
      value = min(max(value, set1(-95)), set1(95));
    }
    store_i8(q + i, value + set1(row8_offset ? row8_offset - 128 : 0));
  });
  for (int64_t i = 0; i < padded && row8_offset; i++) q[i] = int8_t(q[i] ^ -128);   // unsigned
}

inline void quantise_row16(const float* x, int64_t k, uint8_t* to) {
  RowHead& head = *reinterpret_cast<RowHead*>(to);
  auto* q = reinterpret_cast<int16_t*>(to + row_head);
  const int64_t padded = 2 * row_units(DType::row16, k);
  const float largest = row_largest(x, k);
  head = {largest / 2047, 0};
  const vf scale = set1(largest > 1e-35f && largest < INFINITY ? 2047 / largest : 0.0f);
  each_vector(x, k, padded, [&](vf v, int64_t i) {
    alignas(64) float value[lanes];
    store(value, largest < INFINITY ? round(v * scale) : zero());
    for (int j = 0; j < lanes; j++) q[i + j] = int16_t(value[j]);
  });
}

// One sum for each lane: of bytes, activations unsigned and weights signed, or of pairs of 16-bit numbers.
//   add(w, q)           four or two products
//   add(other, sign)    the sum of another, or minus it
//   total(start)        with an int32 of each lane added to it, as floats
template <int bits> struct RowSum;

#if defined(__AVX2__)
template <int bits> struct RowSum {
  Whole sum = whole(0);
  LATTICE_INLINE void add(Bytes w, Four q) { sum = bits == 8 ? add_fours(sum, q.v, w.v) : add_pairs(sum, w.v, q.v); }
  LATTICE_INLINE void add(RowSum other, int32_t sign) { sum = add_signed(sum, other.sum, sign); }
  LATTICE_INLINE vf total(const int32_t* start) const { return floats(add_signed(sum, load_whole(start), 0)); }
};
#elif defined(__ARM_FEATURE_DOTPROD)
template <int bits> struct RowSum {
  int32x4_t low = vdupq_n_s32(0), high = vdupq_n_s32(0);
  template <int lane> LATTICE_INLINE void add(Bytes w, Four<lane> x) {
    if constexpr (bits == 8) {
      low = vdotq_laneq_s32(low, vreinterpretq_s8_u8(w.low), x.q, lane);
      high = vdotq_laneq_s32(high, vreinterpretq_s8_u8(w.high), x.q, lane);
    } else {
      const int16x8_t q = vreinterpretq_s16_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(x.q), lane));
      auto pairs = [&](uint8x16_t bytes) __attribute__((always_inline)) {
        const int16x8_t v = vreinterpretq_s16_u8(bytes);
        return vpaddq_s32(vmull_s16(vget_low_s16(v), vget_low_s16(q)), vmull_high_s16(v, q));
      };
      low = vaddq_s32(low, pairs(w.low));
      high = vaddq_s32(high, pairs(w.high));
    }
  }
  LATTICE_INLINE void add(RowSum other, int32_t sign) {
    low = vmlaq_n_s32(low, other.low, 2 * sign + 1);
    high = vmlaq_n_s32(high, other.high, 2 * sign + 1);
  }
  LATTICE_INLINE vf total(const int32_t* start) const {
    return {vcvtq_f32_s32(vaddq_s32(low, vld1q_s32(start))), vcvtq_f32_s32(vaddq_s32(high, vld1q_s32(start + 4)))};
  }
};
#else
template <int bits> struct RowSum {
  int32_t sum[lanes] = {};
  LATTICE_INLINE void add(const Bytes& w, Four x) {
    for (int r = 0; r < lanes; r++)
      for (int e = 0; e < (bits == 8 ? 4 : 2); e++) {
        int16_t pair[2][2];
        std::memcpy(pair[0], w.v + 4 * r, 4);
        std::memcpy(pair[1], x.q, 4);
        sum[r] += bits == 8 ? int8_t(w.v[4 * r + e]) * uint8_t(x.q[e]) : pair[0][e] * pair[1][e];
      }
  }
  LATTICE_INLINE void add(const RowSum& other, int32_t sign) {
    for (int r = 0; r < lanes; r++) sum[r] += (2 * sign + 1) * other.sum[r];
  }
  LATTICE_INLINE vf total(const int32_t* start) const { return each([&](int r) { return float(sum[r] + start[r]); }); }
};
#endif

}  // namespace lattice
