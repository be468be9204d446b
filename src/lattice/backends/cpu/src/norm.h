// One row normalised: shared by the norm kernels and by the projections that normalise their input.
//
//   rms:   y = x / sqrt(mean(x^2) + eps) * weight
//   layer: y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias
//
// Sums run in one order that the width alone fixes, on every target.
#pragma once
#include <cmath>
#include <cstdint>

#include "simd.h"

namespace lattice {

// Sum of term(vector of x) over a row: four sums of sixteen lanes side by side, then what is left value by value.
template <class Term> inline float row_sum(const float* x, int64_t n, Term&& term) {
  vf sums[4][parts];
  for (auto& sum : sums)
    for (vf& part : sum) part = zero();
  int64_t i = 0;
  for (; i + 64 <= n; i += 64)
    LATTICE_UNROLL
    for (int s = 0; s < 4; s++)
      LATTICE_UNROLL
      for (int p = 0; p < parts; p++) sums[s][p] = term(load(x + i + 16 * s + lanes * p), sums[s][p]);
  for (; i + 16 <= n; i += 16)
    for (int p = 0; p < parts; p++) sums[0][p] = term(load(x + i + lanes * p), sums[0][p]);
  vf folded[parts];
  for (int p = 0; p < parts; p++) folded[p] = (sums[0][p] + sums[1][p]) + (sums[2][p] + sums[3][p]);
  float sum = reduce_add(folded);
  for (; i < n; i += lanes) {            // a term of a zero need not be zero: only lanes that exist are added
    const int rest = int(n - i < lanes ? n - i : lanes);
    alignas(64) float tail[lanes];
    store(tail, term(load_n(x + i, rest), zero()));
    for (int j = 0; j < rest; ++j) sum += tail[j];
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
