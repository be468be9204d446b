// conv1d(x (T, channels), weight (channels, width), step) -> f(y); kind. Causal, each channel for itself.
// slot_conv1d(state (slots, channels, width - 1), x, weight, step) -> (state, f(y)); the sequences go on from slots.
//
// An item is a block of channels of one sequence. What lies channel by channel, the weights and the state, is turned so
// that channels stand side by side. A sum runs from the oldest input to the newest.
#include <algorithm>

#include "kernel.h"
#include "math.h"
#include "sequences.h"

namespace lattice {
namespace {

constexpr int64_t block = 256;        // channels

// n channels of `width` values, one after another, to `width` rows of channels, or back. What the compiler knows is fast.
template <bool back, int known = 0> void turn(float* values, int64_t n, int64_t width, float* rows, int64_t stride) {
  if (!known && width == 3) return turn<back, 3>(values, n, width, rows, stride);
  if (!known && width == 4) return turn<back, 4>(values, n, width, rows, stride);
  if (known) width = known;
  for (int64_t c = 0; c < n; ++c)
    for (int64_t j = 0; j < width; ++j)
      if (back) values[c * width + j] = rows[j * stride + c];
      else rows[j * stride + c] = values[c * width + j];
}

// A thread's memory: the weights of a block, `width` rows; then the width - 1 inputs before the step and after them the
// first width - 1 of the step, so that the inputs of every token stand in rows one stride apart.
int64_t scratch_bytes(int64_t width) { return (3 * width - 2) * block * int64_t(sizeof(float)); }
template <int weight> int64_t scratch_of(const Record& record, int threads) {
  return threads * scratch_bytes(record.tensor[weight].shape[1]);
}

void convolve(Call& call, int first, float* state) {
  float *x = call.data<float>(first), *weight = call.data<float>(first + 1), *y = call.data<float>(call.record.tensors - 1);
  const StepView step(call, first + 2);
  const int64_t channels = call.width(first), width = call.width(first + 1), past = width - 1;
  float* weights = reinterpret_cast<float*>(call.scratch + call.thread * scratch_bytes(width));
  float* history = weights + width * block;
  int64_t turned = -1;                  // the channel whose block of weights is at hand

  auto run = [&](int64_t s, int64_t c0, auto f) {
    const int64_t row = step.offsets[s], length = step.length(s), n = std::min(block, channels - c0);
    float* input = x + row * channels + c0;
    auto slot = [&](int64_t number) { return state + (number * channels + c0) * past; };
    if (turned != c0) turn<false>(weight + c0 * width, n, width, weights, block);
    turned = c0;
    std::fill_n(history, past * block, 0.0f);
    if (state && length && step.positions[row] != 0) turn<false>(slot(step.slots[s]), n, past, history, block);
    for (int64_t i = 0; i < std::min(past, length); ++i) std::copy_n(input + i * channels, n, history + (past + i) * block);
    for (int64_t i = 0; i < length; ++i) {
      float *oldest = i < past ? history + i * block : input + (i - past) * channels, *out = y + (row + i) * channels + c0;
      const int64_t stride = i < past ? block : channels;
      auto value = [&](int64_t c, auto&& get) {
        vf sum = zero();
        for (int64_t j = 0; j < width; ++j) sum = fma(get(oldest + j * stride + c), get(weights + j * block + c), sum);
        return f(sum);
      };
      int64_t c = 0;
      for (; c + lanes <= n; c += lanes) store(out + c, value(c, [](const float* p) { return load(p); }));
      if (c < n) store_n(out + c, value(c, [&](const float* p) { return load_n(p, int(n - c)); }), int(n - c));
      if (state && step.saves[row + i] >= 0) turn<true>(slot(step.saves[row + i]), n, past, oldest + stride, stride);
    }
  };
  with_activation(Activation(call.integer(0)), [&](auto f) {
    call.tiles((channels + block - 1) / block * step.sequences, 1, [&](int64_t item, int64_t) {
      run(item % step.sequences, item / step.sequences * block, f);
    });
  });
}

}  // namespace

KERNEL(conv1d, scratch_of<1>) { convolve(call, 0, nullptr); }

KERNEL(slot_conv1d, scratch_of<2>) { convolve(call, 1, call.data<float>(0)); }

}  // namespace lattice
