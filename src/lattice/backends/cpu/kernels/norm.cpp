// rms_norm, layer_norm and normalize: every row (rms_norm: every group of a row) on its own. Formulas in norm.h.
#include "norm.h"

#include <algorithm>

#include "kernel.h"

namespace lattice {

// Rows per range: some 8k values, so that a single row never costs a second thread's wake-up of cache lines.
static int64_t row_grain(int64_t width) { return std::max<int64_t>(1, 8192 / std::max<int64_t>(1, width)); }

// rms_norm(x, weight) -> y; eps. weight (m,): every consecutive m values of a row are one group.
KERNEL(rms_norm, no_scratch) {
  const float *x = call.data<float>(0), *weight = call.data<float>(1);
  float* y = call.data<float>(2);
  const int64_t group = call.tensor(1).shape[0], groups = call.rows(0) * (call.width(0) / group);
  const float eps = call.real(0);
  call.tiles(groups, row_grain(group), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) rms_norm_row(x + i * group, weight, group, eps, y + i * group);
  });
}

// layer_norm(x, weight, bias) -> y; eps.
KERNEL(layer_norm, no_scratch) {
  const float *x = call.data<float>(0), *weight = call.data<float>(1), *bias = call.data<float>(2);
  float* y = call.data<float>(3);
  const int64_t n = call.width(0);
  const float eps = call.real(0);
  call.tiles(call.rows(0), row_grain(n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) layer_norm_row(x + i * n, weight, bias, n, eps, y + i * n);
  });
}

// normalize(x) -> y: each row divided by its length, or by 1e-12 where that is larger.
KERNEL(normalize, no_scratch) {
  const float* x = call.data<float>(0);
  float* y = call.data<float>(1);
  const int64_t n = call.width(0);
  call.tiles(call.rows(0), row_grain(n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* row = x + i * n;
      const float length = std::sqrt(row_sum(row, n, [](vf v, vf sum) { return fma(v, v, sum); }));
      const vf divisor = set1(length > 1e-12f ? length : 1e-12f);
      row_map(row, n, y + i * n, [&](vf v, int64_t, int) { return v / divisor; });
    }
  });
}

}  // namespace lattice
