// The inner kernel of weights with one scale a row (rows.h): a few panels times a few tokens.
//
//   y[t][r] = (sum of integers) * (w_scale[r] * d[t])
#pragma once
#include "linear_tile.h"
#include "rows.h"

namespace lattice {

template <DType D, int P, int T> void multiply_rows(const Product& a) {
  constexpr int V = P * (panel_rows / lanes), pv = panel_rows / lanes, bits = D == DType::row8 ? 8 : 16;
  const int64_t panel = panel_bytes(D, a.k), steps = row_units(D, a.k) / step_units;
  const int64_t chunk = D == DType::row8 ? steps : chunk_steps;
  const uint8_t* w[P];                             // the first unit of the panel
  const uint8_t* x[T];
  LATTICE_UNROLL
  for (int p = 0; p < P; p++) w[p] = a.panel + p * panel + panel_head;
  LATTICE_UNROLL
  for (int t = 0; t < T; t++) x[t] = a.x + t * a.x_stride;
  auto unit = [&](int v, int64_t i) __attribute__((always_inline)) {
    return load_bytes(w[v / pv] + 64 * i + v % pv * vector_bytes);
  };
  auto activations = [](const void* q) __attribute__((always_inline)) -> auto& {
    return *static_cast<const int8_t (*)[record_values]>(q);
  };
  for (int64_t first = 0; first < steps; first += chunk) {
    RowSum<bits> sum[V][T];
    for (int64_t i = first; i < std::min(first + chunk, steps); i++)
      repeat<step_units>([&](auto j) __attribute__((always_inline)) {
        Bytes weights[V];
        LATTICE_UNROLL
        for (int v = 0; v < V; v++) weights[v] = unit(v, i * step_units + j);
        LATTICE_UNROLL
        for (int t = 0; t < T; t++) {
          const auto q = four<j>(values(activations(x[t] + row_head + 4 * step_units * i)));
          LATTICE_UNROLL
          for (int v = 0; v < V; v++) sum[v][t].add(weights[v], q);
        }
      });
    LATTICE_UNROLL
    for (int t = 0; t < T; t++) {
      const RowHead& head = *reinterpret_cast<const RowHead*>(x[t]);
      const auto* extra = reinterpret_cast<const Extra*>(x[t] + row_head + 4 * step_units * steps);
      for (int e = 0; e < (bits == 8 ? head.extras : 0); e++, extra++)
        LATTICE_UNROLL
        for (int v = 0; v < V; v++) {
          RowSum<bits> more;
          more.add(unit(v, extra->unit), four<0>(values(activations(extra->q))));
          sum[v][t].add(more, extra->sign);
        }
      LATTICE_UNROLL
      for (int v = 0; v < V; v++) {
        float* place = a.out + t * a.out_stride + v * lanes;
        const uint8_t* scale = a.panel + v / pv * panel + v % pv * vector_bytes;
        vf y = sum[v][t].total(reinterpret_cast<const int32_t*>(scale + 64));
        if (first > 0) y = load(place) + y;
        if (first + chunk >= steps) y = y * (load(reinterpret_cast<const float*>(scale)) * set1(head.d));
        store(place, y);
      }
    }
  }
}

}  // namespace lattice
