// project(x, norm_weight?, norm_bias?, residual?, w1, b1?, w2?, b2?, w3?, b3?, w4?, b4?) -> y1 [, y2 ...];
// norm, eps, activation, gated: what stands around a linear, in one pass over x and y. The work is linear.cpp's.
#include "linear.h"

namespace lattice {

static Projection read_project(const Record& record, int64_t rows) {
  const Tensor* t = record.tensor;
  const auto floats = [&](int i) { return static_cast<float*>(t[i].data); };
  Projection p;
  p.x = floats(0);
  p.k = t[4].shape[1];
  p.tokens = rows;
  for (int d = 1; d < t[0].ndim - 1; d++) p.tokens *= t[0].shape[d];
  p.norm = Norm(record.parameter[0]);
  __builtin_memcpy(&p.eps, record.parameter + 1, sizeof p.eps);
  p.activation = Activation(record.parameter[2]);
  p.gated = record.parameter[3] != 0;
  p.norm_weight = floats(1);
  p.norm_bias = floats(2);
  p.norm_group = t[1].data ? t[1].shape[0] : p.k;
  p.residual = floats(3);
  constexpr int first_weight = 4, first_output = first_weight + 2 * most_outputs;
  for (int i = 0; i < most_outputs && t[first_weight + 2 * i].data; i++) {
    const int weight = first_weight + 2 * i;
    float* y = p.gated && i > 0 ? nullptr : floats(first_output + i);
    p.output[p.outputs++] = {&t[weight], floats(weight + 1), y};
  }
  return p;
}

static int64_t project_scratch(const Record& record, int threads) {
  return projection_scratch(read_project(record, record.tensor[0].shape[0]), threads);
}

KERNEL(project, project_scratch) { run_projection(call, read_project(call.record, call.rows(0))); }

}  // namespace lattice
