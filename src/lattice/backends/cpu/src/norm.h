// One row normalised: shared by the norm kernels and by the projections that normalise their input.
//
//   rms:   y = x / sqrt(mean(x^2) + eps) * weight
//   layer: y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias
//
// Sums run through four accumulators in one order that the width alone fixes.
#pragma once
#include <cmath>
#include <cstdint>

#include "simd.h"

namespace lattice {

// Sum of term(vector of x) over a row; the lanes past its end do not count.
template <class Term> inline float row_sum(const float* x, int64_t n, Term&& term) {
  vf a = zero(), b = zero(), c = zero(), d = zero();
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    a = term(load(x + i), a);
    b = term(load(x + i + lanes), b);
    c = term(load(x + i + 2 * lanes), c);
    d = term(load(x + i + 3 * lanes), d);
  }
  for (; i + lanes <= n; i += lanes) a = term(load(x + i), a);
  float sum = reduce_add((a + b) + (c + d));
  if (i < n) {
    // The last lanes are summed on their own: a term of a zero need not be zero.
    alignas(64) float tail[lanes];
    store(tail, term(load_n(x + i, int(n - i)), zero()));
    for (int64_t j = 0; i + j < n; ++j) sum += tail[j];
  }
  return sum;
}

// y[i] = value(vector of x, i, lanes used) over a row.
template <class Value> inline void row_map(const float* x, int64_t n, float* y, Value&& value) {
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store(y + i, value(load(x + i), i, lanes));
  if (i < n) store_n(y + i, value(load_n(x + i, int(n - i)), i, int(n - i)), int(n - i));
}

inline void rms_norm_row(const float* x, const float* weight, int64_t n, float eps, float* y) {
  const float squares = row_sum(x, n, [](vf v, vf sum) { return fma(v, v, sum); });
  const vf scale = set1(1.0f / std::sqrt(squares / float(n) + eps));
  row_map(x, n, y, [&](vf v, int64_t i, int used) {
    return v * scale * (used == lanes ? load(weight + i) : load_n(weight + i, used));
  });
}

inline void layer_norm_row(const float* x, const float* weight, const float* bias, int64_t n, float eps, float* y) {
  const vf mean = set1(row_sum(x, n, [](vf v, vf sum) { return sum + v; }) / float(n));
  const float squares = row_sum(x, n, [&](vf v, vf sum) { return fma(v - mean, v - mean, sum); });
  const vf scale = set1(1.0f / std::sqrt(squares / float(n) + eps));
  row_map(x, n, y, [&](vf v, int64_t i, int used) {
    const vf w = used == lanes ? load(weight + i) : load_n(weight + i, used);
    const vf b = used == lanes ? load(bias + i) : load_n(bias + i, used);
    return fma((v - mean) * scale, w, b);
  });
}

}  // namespace lattice
