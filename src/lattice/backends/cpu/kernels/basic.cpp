// add, mul, scale, concat, take_rows and split_heads: the plain element and row movements.
#include <algorithm>
#include <cstring>

#include "kernel.h"
#include "simd.h"

namespace lattice {

static int64_t bytes_of(DType dtype) { return dtype == DType::f16 || dtype == DType::bf16 ? 2 : dtype == DType::i64 ? 8 : 4; }

// z[i] = value(x[i], y[i]) over all values of tensors 0 and 1 into tensor 2. Values have no neighbours, so where a
// range begins changes no bit; ranges are large, so one row is one thread's work.
template <class Value> static void elementwise(Call& call, Value&& value) {
  const float *x = call.data<float>(0), *y = call.data<float>(1);
  float* z = call.data<float>(2);
  call.tiles(call.rows(0) * call.width(0), 16384, [&](int64_t begin, int64_t end) {
    int64_t i = begin;
    for (; i + lanes <= end; i += lanes) store(z + i, value(load(x + i), load(y + i)));
    const int rest = int(end - i);
    if (rest) store_n(z + i, value(load_n(x + i, rest), load_n(y + i, rest)), rest);
  });
}

// add(x, y) -> x + y
KERNEL(add, no_scratch) {
  elementwise(call, [](vf a, vf b) { return a + b; });
}

// mul(x, y) -> x * y
KERNEL(mul, no_scratch) {
  elementwise(call, [](vf a, vf b) { return a * b; });
}

// scale(x) -> x * factor
KERNEL(scale, no_scratch) {
  const float* x = call.data<float>(0);
  float* y = call.data<float>(1);
  const vf factor = set1(call.real(0));
  call.tiles(call.rows(0) * call.width(0), 16384, [&](int64_t begin, int64_t end) {
    int64_t i = begin;
    for (; i + lanes <= end; i += lanes) store(y + i, load(x + i) * factor);
    if (i < end) store_n(y + i, load_n(x + i, int(end - i)) * factor, int(end - i));
  });
}

// concat(x, y) -> rows of x, each with that of y behind it
KERNEL(concat, no_scratch) {
  const int64_t n = call.width(0);
  call.tiles(call.rows(0), std::max<int64_t>(1, 16384 / std::max<int64_t>(1, n)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int part = 0; part < 2; ++part) {
        std::memcpy(call.data<float>(2) + (2 * i + part) * n, call.data<float>(part) + i * n, size_t(n) * sizeof(float));
      }
    }
  });
}

// take_rows(x, rows) -> the named rows of x
KERNEL(take_rows, no_scratch) {
  const uint8_t* x = call.data<uint8_t>(0);
  const int32_t* rows = call.data<int32_t>(1);
  uint8_t* y = call.data<uint8_t>(2);
  const int64_t bytes = call.width(0) * bytes_of(call.tensor(0).dtype);
  call.tiles(call.rows(1), std::max<int64_t>(1, 65536 / std::max<int64_t>(1, bytes)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::memcpy(y + i * bytes, x + rows[i] * bytes, size_t(bytes));
  });
}

// split_heads(x) -> q, gate; head_dim. x: heads of [Q | gate], a row's heads one after another
KERNEL(split_heads, no_scratch) {
  const float* x = call.data<float>(0);
  const int64_t head_dim = call.integer(0), heads = call.rows(0) * (call.width(0) / (2 * head_dim));
  call.tiles(heads, 1 + 8192 / head_dim, [&](int64_t begin, int64_t end) {
    for (int64_t i = 2 * begin; i < 2 * end; ++i)
      std::memcpy(call.data<float>(1 + i % 2) + i / 2 * head_dim, x + i * head_dim, size_t(head_dim) * sizeof(float));
  });
}

}  // namespace lattice
