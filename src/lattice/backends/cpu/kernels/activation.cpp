// activation(x) -> f(x) and gated_activation(gate, up) -> f(gate) * up; the functions are in math.h.
#include "kernel.h"
#include "math.h"

namespace lattice {

constexpr int64_t grain = 8192;   // values: one row of a small model stays on one thread

KERNEL(activation, no_scratch) {
  const float* x = call.data<float>(0);
  float* y = call.data<float>(1);
  with_activation(Activation(call.integer(0)), [&](auto f) {
    call.tiles(call.rows(0) * call.width(0), grain, [&](int64_t begin, int64_t end) {
      int64_t i = begin;
      for (; i + lanes <= end; i += lanes) store(y + i, f(load(x + i)));
      const int rest = int(end - i);
      if (rest) store_n(y + i, f(load_n(x + i, rest)), rest);
    });
  });
}

KERNEL(gated_activation, no_scratch) {
  const float *gate = call.data<float>(0), *up = call.data<float>(1);
  float* y = call.data<float>(2);
  with_activation(Activation(call.integer(0)), [&](auto f) {
    call.tiles(call.rows(0) * call.width(0), grain, [&](int64_t begin, int64_t end) {
      int64_t i = begin;
      for (; i + lanes <= end; i += lanes) store(y + i, f(load(gate + i)) * load(up + i));
      const int rest = int(end - i);
      if (rest) store_n(y + i, f(load_n(gate + i, rest)) * load_n(up + i, rest), rest);
    });
  });
}

}  // namespace lattice
