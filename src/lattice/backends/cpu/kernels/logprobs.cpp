// logprobs(logits (R, vocab), tokens (R,), top) -> log softmax of the tokens (R,), and the `top` likeliest of each row:
// ids (R, top) and theirs (R, top).
//
// First pass: each chunk of a row by itself, its largest value, the sum of exp(x - largest) and its own `top` largest.
// Second: the chunks of a row are joined in their order, so the bits do not depend on the number of threads, and sums are
// sixteen partial ones, so they do not depend on the target either.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernel.h"
#include "math.h"

namespace lattice {
namespace {

namespace field {                      // tensors of the record
enum : int { logits, tokens, values, top_ids, top_values };
}

constexpr int64_t chunk = 8192;        // values: 32 KiB
constexpr float lowest = -std::numeric_limits<float>::infinity();

struct Entry {
  float x;
  int32_t id;
};

struct Part {                          // what is known of a chunk; its entries lie behind it
  double sum;                          // of exp(x - largest)
  float largest;
  int32_t count, next;                 // of the entries, and the first that is not yet taken
  Entry* entries() { return reinterpret_cast<Entry*>(this + 1); }
};

float clean(float value) { return value == value ? value : lowest; }

int64_t chunks_of(int64_t vocab) { return (vocab + chunk - 1) / chunk; }
int64_t part_bytes(int64_t top) { return int64_t(sizeof(Part)) + top * int64_t(sizeof(Entry)); }

void sum_up(const float* x, int64_t begin, int64_t end, Part& part) {
  vf tops = set1(lowest);
  int64_t i = begin;
  for (; i + lanes <= end; i += lanes) tops = max(load(x + i), tops);   // the second operand where x is not a number
  part.largest = reduce_max(tops);
  for (; i < end; ++i) part.largest = std::max(part.largest, clean(x[i]));
  part.sum = 0;
  if (!std::isfinite(part.largest)) return;
  auto weight = [&](vf v) { return exp(select(v == v, v, set1(lowest)) - set1(part.largest)); };
  for (int64_t block = begin; block < end; block += 512) {
    const int64_t stop = std::min(end, block + 512);
    vf sums[parts];
    for (vf& each : sums) each = zero();
    for (i = block; i < stop; i += 16) {
      alignas(64) float padded[16];
      const float* from = x + i;
      if (i + 16 > stop) {
        std::fill(padded, padded + 16, lowest);
        from = std::copy(from, x + stop, padded) - (stop - i);
      }
      for (int p = 0; p < parts; ++p) sums[p] = sums[p] + weight(load(from + p * lanes));
    }
    part.sum += double(reduce_add(sums));
  }
}

// The `top` largest of a chunk, in descending order; equal ones stay in the order of their ids.
void list_top(const float* x, int64_t begin, int64_t end, int64_t top, Part& part) {
  Entry* entries = part.entries();
  part.count = part.next = 0;
  for (int64_t i = begin; i < end; ++i) {
    const bool full = part.count == top;
    if (full)
      while (i + lanes <= end && !any(set1(entries[top - 1].x) < load(x + i))) i += lanes;
    if (i == end) break;
    const Entry next{clean(x[i]), int32_t(i)};
    if (full && !(next.x > entries[top - 1].x)) continue;
    int64_t place = full ? top - 1 : part.count++;
    for (; place > 0 && entries[place - 1].x < next.x; --place) entries[place] = entries[place - 1];
    entries[place] = next;
  }
}

int64_t logprobs_scratch(const Record& record, int) {
  const Tensor& logits = record.tensor[field::logits];
  return logits.shape[0] * chunks_of(logits.shape[1]) * part_bytes(record.parameter[0]);
}

}  // namespace

KERNEL(logprobs, logprobs_scratch) {
  const int64_t rows = call.rows(field::logits), vocab = call.width(field::logits), chunks = chunks_of(vocab);
  const int64_t top = call.integer(0), bytes = part_bytes(top);
  const float* logits = call.data<float>(field::logits);
  auto part = [&](int64_t row, int64_t c) -> Part& {
    return *reinterpret_cast<Part*>(call.scratch + (row * chunks + c) * bytes);
  };
  call.tiles(rows * chunks, 1, [&](int64_t i, int64_t) {
    const int64_t row = i / chunks, begin = i % chunks * chunk, end = std::min(vocab, begin + chunk);
    sum_up(logits + row * vocab, begin, end, part(row, i % chunks));
    list_top(logits + row * vocab, begin, end, top, part(row, i % chunks));
  });
  call.barrier();
  call.tiles(rows, 1, [&](int64_t row, int64_t) {
    float largest = lowest;
    for (int64_t c = 0; c < chunks; ++c) largest = std::max(largest, part(row, c).largest);
    double sum = 0;
    for (int64_t c = 0; c < chunks; ++c) sum += part(row, c).sum * std::exp(double(part(row, c).largest) - double(largest));
    const double none = std::numeric_limits<double>::quiet_NaN();
    const double total = std::isfinite(largest) ? double(largest) + std::log(sum) : none;
    auto value = [&](float x) { return float(double(x) - total); };
    call.data<float>(field::values)[row] = value(clean(logits[row * vocab + call.data<int32_t>(field::tokens)[row]]));
    for (int64_t i = 0; i < top; ++i) {           // the largest of what the chunks have left, of equal ones the first
      Part* from = nullptr;
      for (int64_t c = 0; c < chunks; ++c) {
        Part& each = part(row, c);
        if (each.next < each.count && (!from || each.entries()[each.next].x > from->entries()[from->next].x)) from = &each;
      }
      const Entry& entry = from->entries()[from->next++];
      call.data<int32_t>(field::top_ids)[row * top + i] = entry.id;
      call.data<float>(field::top_values)[row * top + i] = value(entry.x);
    }
  });
}

}  // namespace lattice
