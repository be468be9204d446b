// pool(x (T, n), step) -> (S, n): each sequence becomes the mean of its tokens, its first (cls) or its last.
#include <algorithm>
#include <cstring>

#include "kernel.h"
#include "sequences.h"
#include "simd.h"

namespace lattice {

// Tokens are added in order, each column on its own. An empty sequence gives zeros.
static void mean_columns(const float* x, int64_t tokens, int64_t stride, int n, float* y) {
  vf sum = zero();
  for (int64_t t = 0; t < tokens; ++t) sum = sum + (n == lanes ? load(x + t * stride) : load_n(x + t * stride, n));
  const vf mean = sum / set1(float(std::max<int64_t>(1, tokens)));
  if (n == lanes) store(y, mean);
  else store_n(y, mean, n);
}

KERNEL(pool, no_scratch) {
  const float* x = call.data<float>(0);
  const StepView step(call, 1);
  float* y = call.data<float>(1 + StepField::step_fields);
  const int64_t n = call.width(0);
  const Pooling mode = Pooling(call.integer(0));
  // An item is 64 columns of one sequence, so that a single long text is shared too.
  const int64_t columns = 64, blocks = (n + columns - 1) / columns;
  call.tiles(step.sequences * blocks, 8, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t s = item / blocks, first = item % blocks * columns, last = std::min(n, first + columns);
      const int64_t tokens = step.length(s), token = mode == Pooling::last ? std::max<int64_t>(0, tokens - 1) : 0;
      const float* row = x + (step.offsets[s] + token) * n;
      if (tokens > 0 && mode != Pooling::mean) {
        std::memcpy(y + s * n + first, row + first, size_t(last - first) * sizeof(float));
        continue;
      }
      for (int64_t c = first; c < last; c += lanes)
        mean_columns(row + c, tokens, n, int(std::min<int64_t>(lanes, last - c)), y + s * n + c);
    }
  });
}

}  // namespace lattice
