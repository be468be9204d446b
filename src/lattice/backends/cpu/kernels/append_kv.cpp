// append_kv(k_pages, v_pages, k, v, step) -> the same pages with this step's keys and values in place.
//
// Keys lie transposed, (pages, kv_heads, head_dim, 64), so that attention finds 64 scores side by side; values lie
// (pages, kv_heads, 64, head_dim). With 8 bits a key or value is whole numbers times one factor, largest / 127: a page of
// keys has four more rows, its 64 factors, and a value four more bytes, its factor. Token t at position p of sequence s goes to page page_table[s][p / 64], slot p % 64.
#include <algorithm>
#include <cstring>

#include "kernel.h"
#include "sequences.h"
#include "simd.h"

namespace lattice {

static void store_values(float* to, vf v, int n) { n == lanes ? store(to, v) : store_n(to, v, n); }
static void store_values(uint16_t* to, vf v, int n) { n == lanes ? store_f16(to, v) : store_f16_n(to, v, n); }
static void store_values(int8_t* to, vf v, int n) {
  int8_t x[lanes];
  store_i8(x, v);
  std::memcpy(to, x, size_t(n));
}

// What a key or value is multiplied by to be stored, and the factor that undoes it: no number where one of it is none.
struct Factor {
  float inverse = 1, factor = 1;

  Factor(const float* x, int64_t n) {
    vf top = zero(), poison = zero();
    for (int64_t d = 0; d < n; d += lanes) {
      const vf v = n - d >= lanes ? load(x + d) : load_n(x + d, int(n - d));
      top = max(top, abs(v));
      poison = fma(v, zero(), poison);
    }
    const float largest = reduce_max(top);
    inverse = largest > 1e-36f ? 127.0f / largest : 0.0f;
    factor = largest / 127.0f + reduce_add(poison);
  }
};

// Up to `lanes` tokens with neighbouring slots: column d of their keys becomes a piece of row d of the page.
template <class Page>
static void put_keys(const float* k, int64_t stride, int64_t head_dim, int tokens, int64_t slot, Page* page) {
  float column[lanes] = {}, inverse[lanes], factor[lanes];
  if constexpr (sizeof(Page) == 1) {
    for (int t = 0; t < tokens; ++t) {
      const Factor f(k + t * stride, head_dim);
      inverse[t] = f.inverse, factor[t] = f.factor;
    }
    std::memcpy(page + head_dim * page_tokens + slot * sizeof(float), factor, size_t(tokens) * sizeof(float));
  }
  for (int64_t d = 0; d < head_dim; ++d) {
    for (int t = 0; t < tokens; ++t) column[t] = sizeof(Page) == 1 ? k[t * stride + d] * inverse[t] : k[t * stride + d];
    store_values(page + d * page_tokens + slot, load(column), tokens);
  }
}

template <class Page> static void put_value(const float* v, int64_t head_dim, Page* page) {
  vf inverse = set1(1.0f);
  if constexpr (sizeof(Page) == 1) {
    const Factor f(v, head_dim);
    inverse = set1(f.inverse);
    std::memcpy(page + head_dim, &f.factor, sizeof f.factor);
  }
  for (int64_t d = 0; d < head_dim; d += lanes) {
    const int n = int(std::min<int64_t>(lanes, head_dim - d));
    const vf value = n == lanes ? load(v + d) : load_n(v + d, n);
    store_values(page + d, sizeof(Page) == 1 ? value * inverse : value, n);
  }
}

template <class Page> static void append(Call& call) {
  const int64_t kv_heads = call.tensor(0).shape[1], row = call.tensor(0).shape[2];
  const int64_t head_dim = row - (sizeof(Page) == 1 ? sizeof(float) : 0);
  Page *k_pages = call.data<Page>(0), *v_pages = call.data<Page>(1);
  const float *k = call.data<float>(2), *v = call.data<float>(3);
  const StepView step(call, 4);
  const int64_t tokens = call.rows(2), stride = kv_heads * head_dim, page_values = row * page_tokens;

  auto append_tokens = [&](int64_t begin, int64_t end, int64_t head) {
    for (int64_t t = begin; t < end;) {
      const int64_t s = step.sequence_of(t), position = step.positions[t], slot = position % page_tokens;
      const int64_t page = step.page_table[s * step.pages + position / page_tokens];
      int run = 1;   // tokens that follow in the same sequence, at the next slots of the same page
      while (run < lanes && t + run < std::min<int64_t>(end, step.offsets[s + 1]) && slot + run < page_tokens &&
             step.positions[t + run] == position + run)
        ++run;
      const int64_t from = t * stride + head * head_dim, to = (page * kv_heads + head) * page_values;
      put_keys(k + from, stride, head_dim, run, slot, k_pages + to);
      for (int i = 0; i < run; ++i) put_value(v + from + i * stride, head_dim, v_pages + to + (slot + i) * row);
      t += run;
    }
  };

  // An item is one head of 64 tokens; small steps are one thread's work.
  const int64_t blocks = (tokens + page_tokens - 1) / page_tokens;
  const int64_t values = std::min<int64_t>(tokens, page_tokens) * head_dim;
  call.tiles(blocks * kv_heads, 1 + 4096 / std::max<int64_t>(1, values), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item / kv_heads * page_tokens;
      append_tokens(first, std::min(tokens, first + page_tokens), item % kv_heads);
    }
  });
}

KERNEL(append_kv, no_scratch) {
  if (call.tensor(0).dtype == DType::f16) append<uint16_t>(call);
  else if (call.tensor(0).dtype == DType::i8) append<int8_t>(call);
  else append<float>(call);
}

}  // namespace lattice
