// rope_angles and rope: rotary position embedding.
//
// Pair number i of a head turns by position * inverse_frequency[i]: (a, b) -> (a cos - b sin, b cos + a sin). Pairs are
// (i, i + h) in the split-half form and (2i, 2i + 1) in the interleaved form; `inverse` turns backwards. Angles are
// taken in double: at position 100,000 a float angle is off by a hundredth of a turn's radian.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernel.h"
#include "simd.h"

namespace lattice {

// rope_angles(positions, inverse_frequencies (h,)) -> (T, 2h): cosines, then sines.
KERNEL(rope_angles, no_scratch) {
  const int32_t* positions = call.data<int32_t>(0);
  const float* frequencies = call.data<float>(1);
  float* angles = call.data<float>(2);
  const int64_t half = call.tensor(1).shape[0];
  call.tiles(call.rows(0), std::max<int64_t>(1, 128 / std::max<int64_t>(1, half)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t i = 0; i < half; ++i) {
        const double angle = double(positions[t]) * double(frequencies[i]);
        angles[t * 2 * half + i] = float(std::cos(angle));
        angles[t * 2 * half + half + i] = float(std::sin(angle));
      }
  });
}

static void rotate_split(const float* x, const float* cosines, const float* sines, int64_t half, vf sign, float* y) {
  int64_t i = 0;
  for (; i + lanes <= half; i += lanes) {
    const vf a = load(x + i), b = load(x + half + i), c = load(cosines + i), s = load(sines + i) * sign;
    store(y + i, a * c - b * s);
    store(y + half + i, b * c + a * s);
  }
  if (const int rest = int(half - i)) {
    const vf a = load_n(x + i, rest), b = load_n(x + half + i, rest);
    const vf c = load_n(cosines + i, rest), s = load_n(sines + i, rest) * sign;
    store_n(y + i, a * c - b * s, rest);
    store_n(y + half + i, b * c + a * s, rest);
  }
}

static void rotate_pairs(const float* x, const float* cosines, const float* sines, int64_t half, float sign, float* y) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1], c = cosines[i], s = sines[i] * sign;
    y[2 * i] = a * c - b * s;
    y[2 * i + 1] = b * c + a * s;
  }
}

// rope(x (T, heads * head_dim), angles (T, 2h)) -> y; head_dim, interleaved, inverse. Values past 2h are copied.
KERNEL(rope, no_scratch) {
  const float *x = call.data<float>(0), *angles = call.data<float>(1);
  float* y = call.data<float>(2);
  const int64_t width = call.width(0), head_dim = call.integer(0), rotary = call.width(1), half = rotary / 2;
  const bool interleaved = call.integer(1) != 0;
  const float sign = call.integer(2) ? -1.0f : 1.0f;
  call.tiles(call.rows(0), std::max<int64_t>(1, 8192 / width), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float *cosines = angles + t * rotary, *sines = cosines + half;
      for (int64_t head = 0; head < width; head += head_dim) {
        const float* from = x + t * width + head;
        float* to = y + t * width + head;
        if (interleaved) rotate_pairs(from, cosines, sines, half, sign, to);
        else rotate_split(from, cosines, sines, half, set1(sign), to);
        if (from != to) std::memcpy(to + rotary, from + rotary, size_t(head_dim - rotary) * sizeof(float));
      }
    }
  });
}

}  // namespace lattice
