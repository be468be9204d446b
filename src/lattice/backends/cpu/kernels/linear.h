// A projection: y_i = f(norm(x) @ w_i.T + b_i) + residual, for up to four weights that read the same x.
//
// linear and project differ only in how much of it their record fills in.
#pragma once
#include <cstdint>

#include "kernel.h"
#include "linear_tile.h"

namespace lattice {

struct Output {                          // one weight and where its product goes
  const Tensor* weight = nullptr;        // (n, k), layout tiles
  const float* bias = nullptr;           // (n,) or absent
  float* y = nullptr;                    // (tokens, n); a gated pair has one y, that of the gate

  int64_t n() const { return weight->shape[0]; }
  Form form() const { return form_of(weight->dtype); }
};

constexpr int most_outputs = 4;

struct Projection {
  const float* x = nullptr;              // (tokens, k)
  int64_t tokens = 0, k = 0;
  Norm norm = Norm::none;
  const float* norm_weight = nullptr;
  const float* norm_bias = nullptr;
  int64_t norm_group = 0;                // consecutive values that are normalised together; divides k
  float eps = 0;
  Activation activation = Activation::none;
  bool gated = false;                    // two outputs, gate and up: y = f(gate) * up
  const float* residual = nullptr;       // added last; only with one y
  int outputs = 0;
  Output output[most_outputs];
};

int64_t projection_scratch(const Projection& projection, int threads);   // tokens: the capacity
void run_projection(Call& call, const Projection& projection);           // every thread calls it

}  // namespace lattice
