// attention (within the sequences of a step) and paged_attention (through the page table), over one inner routine.
//
// An item of work is a key/value head with a tile of consecutive tokens of one sequence and all query heads of the head
// (or a part of them, when there is too little to do otherwise). What is shared by an item's rows is made once: keys as
// floats with positions side by side. The size of items follows the machine, the bits do not: see attention.h.
#include "attention.h"

#include <cstring>

#include "kernel.h"
#include "sequences.h"

namespace lattice {
namespace {

using attention::Row;
using attention::Span;
using attention::span;
using attention::tile_rows;

constexpr int most_rows = 192;        // of an item: their sums stay in L2 with the span
constexpr int fewest_rows = 24;       // below this, unpacking keys and values would weigh too much

// How a step is cut into items; every thread computes the same cut.
struct Cut {
  int64_t tile, parts, items;         // tokens of a tile; parts of a group of query heads
};

Cut cut_step(const StepView& step, int64_t kv_heads, int64_t group, int threads) {
  auto tiles = [&](int64_t tile) {
    int64_t sum = 0;
    for (int64_t s = 0; s < step.sequences; ++s) sum += (step.length(s) + tile - 1) / tile;
    return sum;
  };
  int64_t tile = std::max<int64_t>(1, most_rows / group), items = tiles(tile) * kv_heads, parts = 1;
  if (threads == 1) return {tile, parts, items};
  while (items < 4 * threads && tile * group >= 2 * fewest_rows) {
    tile = (tile + 1) / 2;
    items = tiles(tile) * kv_heads;
  }
  while (items * parts < threads && parts < group) {
    ++parts;
    while (group % parts) ++parts;
  }
  return {tile, parts, items * parts};
}

struct Item {
  int64_t sequence, first, tokens;    // tokens first .. first + tokens - 1 of the sequence
  int64_t kv_head, head, heads;       // query heads head .. head + heads - 1
};

// Walks the items in order: the numbers that one thread draws only grow, so finding the sequence costs nothing. The last
// tile of the last sequence comes first: in causal attention the late tiles are the large ones.
class Items {
 public:
  Items(const StepView& step, const Cut& cut, int64_t kv_heads, int64_t group)
      : step_(step), cut_(cut), kv_heads_(kv_heads), group_(group), sequence_(step.sequences - 1) {}

  Item operator()(int64_t number) {
    const int64_t part = number % cut_.parts, kv_head = number / cut_.parts % kv_heads_;
    const int64_t tile = number / (cut_.parts * kv_heads_), heads = group_ / cut_.parts;
    while (tile >= before_ + tiles()) before_ += tiles(), --sequence_;
    // Tiles of a sequence differ by one token at most.
    const int64_t length = step_.length(sequence_), index = tiles() - 1 - (tile - before_);
    const int64_t first = length * index / tiles(), end = length * (index + 1) / tiles();
    return {sequence_, first, end - first, kv_head, kv_head * group_ + part * heads, heads};
  }

 private:
  int64_t tiles() const { return (step_.length(sequence_) + cut_.tile - 1) / cut_.tile; }

  const StepView& step_;
  const Cut cut_;
  const int64_t kv_heads_, group_;
  int64_t sequence_, before_ = 0;
};

// One thread's working memory.
struct Scratch {
  Row* rows;
  float *sums, *keys, *values;

  static int64_t bytes(int64_t head_dim) {
    return most_rows * int64_t(sizeof(Row)) + (most_rows + 2 * span) * head_dim * int64_t(sizeof(float));
  }
  Scratch(uint8_t* memory, int64_t head_dim)
      : rows(reinterpret_cast<Row*>(memory)),
        sums(reinterpret_cast<float*>(rows + most_rows)),
        keys(sums + most_rows * head_dim),
        values(keys + span * head_dim) {}
};
static_assert(sizeof(Row) * most_rows % 64 == 0);

// The rows of an item, token by token; all positions [begin(token), end(token)) of the sequence are theirs.
struct Block {
  Row* rows;
  int64_t count, heads, head_dim;
  float scale;

  // All rows take in the span that begins at `position`. range(token) gives the first and the end of its positions.
  template <class Element, class Range> void take(const Span<Element>& kv, int64_t position, Range&& range) {
    Row* tile[tile_rows];
    int used = 0;
    for (int64_t r = 0; r < count; ++r) {
      const auto [first, end] = range(r / heads);
      rows[r].begin = int(std::clamp<int64_t>(first - position, 0, span));
      rows[r].end = int(std::clamp<int64_t>(end - position, 0, span));
      if (rows[r].begin < rows[r].end) tile[used++] = rows + r;
      if (used == tile_rows || (used && r + 1 == count)) {
        attention::take_in(used, tile, kv, head_dim, scale);
        used = 0;
      }
    }
  }
};

Block open_block(const Scratch& scratch, const Item& item, const float* queries, int64_t width, int64_t head_dim, float scale) {
  constexpr float per_ln2 = 1.44269504f;   // exponentials are taken to base 2
  Block block{scratch.rows, item.tokens * item.heads, item.heads, head_dim, scale * per_ln2};
  for (int64_t r = 0; r < block.count; ++r) {
    Row& row = scratch.rows[r];
    row.query = queries + r / item.heads * width + (item.head + r % item.heads) * head_dim;
    row.sums = scratch.sums + r * head_dim;
    attention::start(row, head_dim);
  }
  return block;
}

void close_block(const Block& block, const Item& item, float* out, int64_t width) {
  for (int64_t r = 0; r < block.count; ++r)
    attention::finish(block.rows[r], block.head_dim,
                      out + r / item.heads * width + (item.head + r % item.heads) * block.head_dim);
}

struct Bounds { int64_t first, end; };

// Keys of `count` tokens, one row each, to (head_dim, 64); what is missing becomes zero.
void transpose_keys(const float* k, int64_t stride, int64_t head_dim, int64_t count, float* out) {
  for (int64_t j0 = 0; j0 < span; j0 += lanes) {
    const int64_t n = std::clamp<int64_t>(count - j0, 0, lanes);
    alignas(64) float column[lanes] = {};
    for (int64_t d = 0; d < head_dim; ++d) {
      if (n == lanes)                    // a count known to the compiler
        for (int j = 0; j < lanes; ++j) column[j] = k[(j0 + j) * stride + d];
      else
        for (int64_t j = 0; j < n; ++j) column[j] = k[(j0 + j) * stride + d];
      store(out + d * span + j0, load(column));
    }
  }
}

void to_floats(const uint16_t* from, int64_t count, float* to) {   // count: a multiple of lanes
  for (int64_t i = 0; i < count; i += lanes) store(to + i, load_f16(from + i));
}

void to_floats(const int8_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += lanes) store(to + i, load_i8(from + i));
}

int64_t attention_scratch(const Record& record, int threads) { return threads * Scratch::bytes(record.parameter[0]); }

int64_t paged_scratch(const Record& record, int threads) { return threads * Scratch::bytes(record.tensor[1].shape[2]); }

}  // namespace

// attention(q (T, heads * head_dim), k, v (T, kv_heads * head_dim), step) -> o; head_dim, causal, scale, window.
KERNEL(attention, attention_scratch) {
  const float *q = call.data<float>(0), *k = call.data<float>(1), *v = call.data<float>(2);
  const StepView step(call, 3);
  float* o = call.data<float>(3 + StepField::step_fields);
  const int64_t head_dim = call.integer(0), window = call.integer(3), width = call.width(0), stride = call.width(1);
  const int64_t kv_heads = stride / head_dim, group = width / stride;
  const bool causal = call.integer(1) != 0;
  const Scratch scratch(call.scratch + call.thread * Scratch::bytes(head_dim), head_dim);
  const Cut cut = cut_step(step, kv_heads, group, call.threads);
  Items items(step, cut, kv_heads, group);

  call.tiles(cut.items, 1, [&](int64_t number, int64_t) {
    const Item item = items(number);
    const int64_t length = step.length(item.sequence), row = step.offsets[item.sequence], column = item.kv_head * head_dim;
    const int64_t last = item.first + item.tokens;
    Block block = open_block(scratch, item, q + (row + item.first) * width, width, head_dim, call.real(2));
    auto range = [&](int64_t token) {
      const int64_t i = item.first + token;
      return Bounds{window ? std::max<int64_t>(0, i - window + 1) : 0, causal ? i + 1 : length};
    };
    for (int64_t p = range(0).first / span * span; p < (causal ? last : length); p += span) {
      const float* keys = k + (row + p) * stride + column;
      transpose_keys(keys, stride, head_dim, std::min<int64_t>(span, length - p), scratch.keys);
      block.take(Span<float>{scratch.keys, v + (row + p) * stride + column, stride}, p, range);
    }
    close_block(block, item, o + (row + item.first) * width, width);
  });
}

template <class Element> static void paged(Call& call) {
  const float* q = call.data<float>(0);
  const Element *k_pages = call.data<Element>(1), *v_pages = call.data<Element>(2);
  const StepView step(call, 3);
  float* o = call.data<float>(3 + StepField::step_fields);
  constexpr bool factors = sizeof(Element) == 1;   // 8 bits: a page ends in the factors of its keys, a value in its own
  const int64_t kv_heads = call.tensor(1).shape[1], stride = call.tensor(1).shape[2], window = call.integer(1);
  const int64_t head_dim = stride - (factors ? sizeof(float) : 0), page_values = stride * span;
  const int64_t width = call.width(0), group = width / (kv_heads * head_dim);
  const Scratch scratch(call.scratch + call.thread * Scratch::bytes(stride), stride);
  const Cut cut = cut_step(step, kv_heads, group, call.threads);
  Items items(step, cut, kv_heads, group);

  call.tiles(cut.items, 1, [&](int64_t number, int64_t) {
    const Item item = items(number);
    const int64_t row = step.offsets[item.sequence] + item.first;
    const int32_t* pages = step.page_table + item.sequence * step.pages;
    Block block = open_block(scratch, item, q + row * width, width, head_dim, call.real(0));
    auto range = [&](int64_t token) {
      const int64_t position = step.positions[row + token];
      return Bounds{window ? std::max<int64_t>(0, position - window + 1) : 0, position + 1};
    };
    int64_t first = range(0).first, end = range(0).end;
    for (int64_t t = 1; t < item.tokens; ++t)
      first = std::min(first, range(t).first), end = std::max(end, range(t).end);
    for (int64_t p = first / span * span; p < end; p += span) {
      const int64_t page = (pages[p / span] * kv_heads + item.kv_head) * page_values;
      alignas(64) float key_factors[span], value_factors[span];
      if constexpr (factors) {
        std::memcpy(key_factors, k_pages + page + head_dim * span, sizeof key_factors);
        for (int64_t j = 0; j < span; ++j)
          std::memcpy(value_factors + j, v_pages + page + j * stride + head_dim, sizeof(float));
      }
      const float *of_keys = factors ? key_factors : nullptr, *of_values = factors ? value_factors : nullptr;
      if constexpr (sizeof(Element) <= 2) {
        if (block.count > tile_rows) {   // used several times: unpacked once
          to_floats(k_pages + page, page_values, scratch.keys);
          // Rows of values past the end may hold anything; nobody reads what becomes of them.
          to_floats(v_pages + page, page_values, scratch.values);
          block.take(Span<float>{scratch.keys, scratch.values, stride, of_keys, of_values}, p, range);
          continue;
        }
      }
      const int64_t next = p + span < end ? (pages[p / span + 1] * kv_heads + item.kv_head) * page_values : page;
      const Element *next_keys = k_pages + next, *next_values = v_pages + next;
      block.take(Span<Element>{k_pages + page, v_pages + page, stride, of_keys, of_values, next_keys, next_values}, p, range);
    }
    close_block(block, item, o + row * width, width);
  });
}

// paged_attention(q (T, heads * head_dim), k_pages, v_pages, step) -> o; scale, window.
KERNEL(paged_attention, paged_scratch) {
  if (call.tensor(1).dtype == DType::f16) paged<uint16_t>(call);
  else if (call.tensor(1).dtype == DType::i8) paged<int8_t>(call);
  else paged<float>(call);
}

}  // namespace lattice
