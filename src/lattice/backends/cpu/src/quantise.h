// Activations for integer products: 32 values as int8 with one scale, in records of 52 bytes.
//
//   d = max|x| / 127,  q = round_to_even(x / d),  x ~ d * q
//
// A row of k values is k/32 records, contiguous. What a weight format needs beside q and d is a product of sum(q): it
// costs nothing here and would cost a vector operation per block and row of weights there.
#pragma once
#include "simd.h"

namespace lattice {

constexpr int record_values = 32;

struct Quantised {
  int8_t q[record_values];
  float d;
  float sum;            // d * sum(q): times the minimum of a group of weights
  int32_t minus_8;      // -8 * sum(q), -128 * sum(q): seeds that undo the offset of weights stored unsigned
  int32_t minus_128;
  int16_t half[2];      // sum(q) of the first and of the last 16: seeds of formats with a scale for 16 weights (mix)
};
static_assert(sizeof(Quantised) == 52);

// 32 floats -> one record. Where a value is not finite, d is NaN and with it every result.
inline void quantise(const float* x, Quantised& record) {
  constexpr int vectors = 32 / lanes;
  vf v[vectors], top = zero();
  LATTICE_UNROLL
  for (int i = 0; i < vectors; i++) {
    v[i] = load(x + i * lanes);
    top = max(top, abs(v[i]));
  }
  const float largest = reduce_max(top);
  const vf scale = set1(largest > 1e-36f ? 127.0f / largest : 0.0f);   // below, the quotient would overflow
  vf total[2] = {zero(), zero()};
  LATTICE_UNROLL
  for (int i = 0; i < vectors; i++) {
    vf q = round(v[i] * scale);
    store_i8(record.q + i * lanes, q);
    total[2 * i / vectors] = total[2 * i / vectors] + q;
  }
  const float first = reduce_add(total[0]), last = reduce_add(total[1]);
  const float sum = first + last;                                      // whole, at most 4064 in magnitude; or NaN
  record.d = sum == sum ? largest / 127.0f : sum;
  record.sum = record.d * sum;
  record.half[0] = sum == sum ? int16_t(first) : int16_t(0);
  record.half[1] = sum == sum ? int16_t(last) : int16_t(0);
  const int32_t whole = record.half[0] + record.half[1];
  record.minus_8 = -8 * whole;
  record.minus_128 = -128 * whole;
}

inline void quantise_row(const float* x, int64_t k, Quantised* records) {
  for (int64_t i = 0; i < k; i += 32) quantise(x + i, *records++);
}

}  // namespace lattice
