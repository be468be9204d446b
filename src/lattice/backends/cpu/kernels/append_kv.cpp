// append_kv(k_pages, v_pages, k, v, step) -> the same pages with this step's keys and values in place.
//
// Keys lie transposed, (pages, kv_heads, head_dim, 64), so that attention finds 64 scores side by side; values lie
// (pages, kv_heads, 64, head_dim). Token t at position p of sequence s goes to page page_table[s][p / 64], slot p % 64.
#include <algorithm>

#include "kernel.h"
#include "sequences.h"
#include "simd.h"

namespace lattice {

static void store_values(float* to, vf v, int n) { n == lanes ? store(to, v) : store_n(to, v, n); }
static void store_values(uint16_t* to, vf v, int n) { n == lanes ? store_f16(to, v) : store_f16_n(to, v, n); }

// Up to `lanes` tokens with neighbouring slots: column d of their keys becomes a piece of row d of the page.
template <class Page> static void put_keys(const float* k, int64_t stride, int64_t head_dim, int tokens, Page* page) {
  float column[lanes] = {};
  for (int64_t d = 0; d < head_dim; ++d) {
    for (int t = 0; t < tokens; ++t) column[t] = k[t * stride + d];
    store_values(page + d * page_tokens, load(column), tokens);
  }
}

template <class Page> static void put_value(const float* v, int64_t head_dim, Page* page) {
  for (int64_t d = 0; d < head_dim; d += lanes) {
    const int n = int(std::min<int64_t>(lanes, head_dim - d));
    store_values(page + d, n == lanes ? load(v + d) : load_n(v + d, n), n);
  }
}

template <class Page> static void append(Call& call) {
  const int64_t kv_heads = call.tensor(0).shape[1], head_dim = call.tensor(0).shape[2];
  Page *k_pages = call.data<Page>(0), *v_pages = call.data<Page>(1);
  const float *k = call.data<float>(2), *v = call.data<float>(3);
  const StepView step(call, 4);
  const int64_t tokens = call.rows(2), stride = kv_heads * head_dim, page_values = head_dim * page_tokens;

  auto append_tokens = [&](int64_t begin, int64_t end, int64_t head) {
    for (int64_t t = begin; t < end;) {
      const int64_t s = step.sequence_of(t), position = step.positions[t], slot = position % page_tokens;
      const int64_t page = step.page_table[s * step.pages + position / page_tokens];
      int run = 1;   // tokens that follow in the same sequence, at the next slots of the same page
      while (run < lanes && t + run < std::min<int64_t>(end, step.offsets[s + 1]) && slot + run < page_tokens &&
             step.positions[t + run] == position + run)
        ++run;
      const int64_t from = t * stride + head * head_dim, to = (page * kv_heads + head) * page_values;
      put_keys(k + from, stride, head_dim, run, k_pages + to + slot);
      for (int i = 0; i < run; ++i) put_value(v + from + i * stride, head_dim, v_pages + to + (slot + i) * head_dim);
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
  else append<float>(call);
}

}  // namespace lattice
