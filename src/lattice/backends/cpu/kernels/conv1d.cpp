// conv1d(x (T, channels), weight (channels, width), step) -> f(y); kind. Causal, each channel for itself.
// slot_conv1d(state (slots, channels, width - 1), x, weight, step) -> (state, f(y)); the sequences go on from slots.
//
// An item is a block of channels of one sequence. What lies channel by channel, the weights and the state, is turned so
// that channels stand side by side. A sum runs from the oldest input to the newest.
#include <algorithm>
#include <cstring>

#include "kernel.h"
#include "math.h"
#include "sequences.h"

namespace lattice {
namespace {

constexpr int64_t block = 256;        // channels

// n rows of `width` values to `width` rows, `block` apart; and back. A width known to the compiler makes it vectors.
template <int known> void turn_known(const float* from, int64_t n, int64_t width, float* to) {
  if (known) width = known;
  for (int64_t c = 0; c < n; ++c)
    for (int64_t j = 0; j < width; ++j) to[j * block + c] = from[c * width + j];
}
void turn(const float* from, int64_t n, int64_t width, float* to) {
  width == 3 ? turn_known<3>(from, n, width, to) : width == 4 ? turn_known<4>(from, n, width, to) : turn_known<0>(from, n, width, to);
}
template <int known> void turn_back_known(const float* from, int64_t stride, int64_t n, int64_t width, float* to) {
  if (known) width = known;
  for (int64_t c = 0; c < n; ++c)
    for (int64_t j = 0; j < width; ++j) to[c * width + j] = from[j * stride + c];
}
void turn_back(const float* from, int64_t stride, int64_t n, int64_t width, float* to) {
  width == 3 ? turn_back_known<3>(from, stride, n, width, to) : turn_back_known<0>(from, stride, n, width, to);
}

// A thread's memory: the weights of a block, `width` rows; then the width - 1 inputs before the step and after them the
// first width - 1 of the step, so that the inputs of every token stand in rows one stride apart.
int64_t scratch_bytes(int64_t width) { return (3 * width - 2) * block * int64_t(sizeof(float)); }

void convolve(Call& call, int first, float* state) {
  const float *x = call.data<float>(first), *weight = call.data<float>(first + 1);
  const StepView step(call, first + 2);
  float* y = call.data<float>(call.record.tensors - 1);
  const int64_t channels = call.width(first), width = call.width(first + 1), past = width - 1;
  const int64_t blocks = (channels + block - 1) / block;
  float* weights = reinterpret_cast<float*>(call.scratch + call.thread * scratch_bytes(width));
  float* history = weights + width * block;
  int64_t turned = -1;                  // the block whose weights are at hand

  with_activation(Activation(call.integer(0)), [&](auto f) {
    call.tiles(blocks * step.sequences, 1, [&](int64_t item, int64_t) {
      const int64_t s = item % step.sequences, c0 = item / step.sequences * block, n = std::min(block, channels - c0);
      const int64_t row = step.offsets[s], length = step.length(s);
      if (length == 0) return;
      if (turned != c0) turn(weight + c0 * width, n, width, weights);
      turned = c0;
      const float* input = x + row * channels + c0;
      if (state && step.positions[row] != 0)
        turn(state + (step.slots[s] * channels + c0) * past, n, past, history);
      else
        std::fill_n(history, past * block, 0.0f);
      for (int64_t i = 0; i < std::min(past, length); ++i)
        std::memcpy(history + (past + i) * block, input + i * channels, size_t(n) * sizeof(float));

      for (int64_t i = 0; i < length; ++i) {
        const float* oldest = i < past ? history + i * block : input + (i - past) * channels;
        const int64_t stride = i < past ? block : channels;
        float* out = y + (row + i) * channels + c0;
        auto sum = [&](int64_t c, auto&& get) {
          vf total = zero();
          for (int64_t j = 0; j < width; ++j) total = fma(get(oldest + j * stride + c), get(weights + j * block + c), total);
          return f(total);
        };
        int64_t c = 0;
        for (; c + lanes <= n; c += lanes) store(out + c, sum(c, [](const float* p) { return load(p); }));
        const int rest = int(n - c);
        if (rest) store_n(out + c, sum(c, [&](const float* p) { return load_n(p, rest); }), rest);
        if (state && step.saves[row + i] >= 0)
          turn_back(oldest + stride, stride, n, past, state + (step.saves[row + i] * channels + c0) * past);
      }
    });
  });
}

int64_t conv1d_scratch(const Record& record, int threads) { return threads * scratch_bytes(record.tensor[1].shape[1]); }
int64_t slot_conv1d_scratch(const Record& record, int threads) { return threads * scratch_bytes(record.tensor[2].shape[1]); }

}  // namespace

KERNEL(conv1d, conv1d_scratch) { convolve(call, 0, nullptr); }

KERNEL(slot_conv1d, slot_conv1d_scratch) { convolve(call, 1, call.data<float>(0)); }

}  // namespace lattice
