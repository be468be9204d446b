// sample(logits (R, vocab), sampling) -> tokens (R,): bias, penalties, temperature, top-k, min-p, top-p, draw.
//
// The draw walks the tokens in descending order of probability (ties: the lower id first) until the running sum passes
// u * total, where u is a hash of (seed, position). Nothing is sorted for that: the tokens above a limit are gathered
// (the limit falls until they hold enough mass, or top_k of them), and the place in their order is found by halving.
// Weights exp(x - max) are floats, running sums doubles.
//
// With as many rows as threads each thread takes whole rows; with fewer, all threads share each row in chunks.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernel.h"
#include "math.h"

namespace lattice {
namespace {

namespace field {                      // tensors of the record
enum : int {
  logits, temperature, top_k, top_p, min_p, repetition, presence, frequency, seed, position,
  edit_offsets, edit_ids, edit_bias, edit_counts, tokens
};
}

constexpr int64_t chunk = 8192;        // values: 32 KiB, and the unit of the sums whatever the number of threads
constexpr float lowest = -std::numeric_limits<float>::infinity();

struct Candidate {
  double weight;
  float x;                             // the logit after edits and temperature
  int32_t id;
  bool operator<(const Candidate& other) const { return x > other.x || (x == other.x && id < other.id); }
};

struct ChunkResult {
  double sum;                          // of the weights that min_p keeps
  float top;
  int32_t index;                       // first token with the value `top`
};

double uniform(int64_t seed_value, int32_t position_value) {
  uint64_t z = uint64_t(seed_value) + 0x9E3779B97F4A7C15u * (uint64_t(int64_t(position_value)) + 1);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  z ^= z >> 31;
  return double(z >> 40) * 0x1p-24;
}

// Largest value of x and its first place; not-a-number never wins.
ChunkResult find_top(const float* x, int64_t begin, int64_t end) {
  vf tops = set1(lowest);
  int64_t i = begin;
  for (; i + lanes <= end; i += lanes) tops = max(load(x + i), tops);
  float top = reduce_max(tops);
  for (; i < end; ++i)
    if (x[i] > top) top = x[i];
  ChunkResult result{0.0, top, int32_t(begin)};
  if (top == lowest) return result;
  for (i = begin; i + lanes <= end && !any(load(x + i) == set1(top)); i += lanes) {}
  while (!(x[i] == top)) ++i;
  result.index = int32_t(i);
  return result;
}

// One row of the step with its working memory.
struct Row {
  const float* source;                 // logits as they came
  float* x;                            // logits after edits and temperature
  Candidate* candidates;
  ChunkResult* chunks;
  const int32_t *ids, *counts;         // of the edits
  const float* bias;
  int64_t vocab, top_k, chunk_count, edits;
  float temperature, top_p, min_p, repetition, presence, frequency;
  double u;
  float top = lowest;

  static int64_t bytes(int64_t vocab) {
    const int64_t floats = (vocab + 15) / 16 * 16;
    return (floats * int64_t(sizeof(float) + sizeof(Candidate)) + ((vocab + chunk - 1) / chunk) * int64_t(sizeof(ChunkResult)) +
            63) / 64 * 64;
  }
  Row(const Call& call, int64_t row, uint8_t* memory) {
    auto real = [&](int tensor) { return call.data<float>(tensor)[row]; };
    vocab = call.width(field::logits);
    source = call.data<float>(field::logits) + row * vocab;
    const int64_t floats = (vocab + 15) / 16 * 16;
    x = reinterpret_cast<float*>(memory);
    candidates = reinterpret_cast<Candidate*>(x + floats);
    chunks = reinterpret_cast<ChunkResult*>(candidates + floats);
    chunk_count = (vocab + chunk - 1) / chunk;
    const int32_t* offsets = call.data<int32_t>(field::edit_offsets) + row;
    ids = call.data<int32_t>(field::edit_ids) + offsets[0];
    counts = call.data<int32_t>(field::edit_counts) + offsets[0];
    bias = call.data<float>(field::edit_bias) + offsets[0];
    edits = offsets[1] - offsets[0];
    temperature = real(field::temperature), top_p = real(field::top_p), min_p = real(field::min_p);
    repetition = real(field::repetition), presence = real(field::presence), frequency = real(field::frequency);
    top_k = call.data<int32_t>(field::top_k)[row];
    u = uniform(call.data<int64_t>(field::seed)[row], call.data<int32_t>(field::position)[row]);
  }

  bool greedy() const { return !(temperature > 0); }
  static float clean(float value) { return value == value ? value : lowest; }

  // The logit of the token that edit e names.
  float edited(int64_t e) const {
    float value = clean(source[ids[e]]) + bias[e];
    if (counts[e] >= 0) value = value > 0 ? value / repetition : value * repetition;
    if (counts[e] > 0) value -= float(double(presence) + double(frequency) * counts[e]);
    return clean(value);
  }

  // First pass: x, its largest value and the place of that.
  void prepare(int64_t number) {
    const int64_t begin = number * chunk, end = std::min(vocab, begin + chunk);
    if (greedy() && edits == 0) {
      chunks[number] = find_top(source, begin, end);
      return;
    }
    const float divisor = greedy() ? 1.0f : temperature;
    auto scaled = [divisor](vf v) { return select(v == v, v, set1(lowest)) / set1(divisor); };
    int64_t i = begin;
    for (; i + lanes <= end; i += lanes) store(x + i, scaled(load(source + i)));
    if (i < end) store_n(x + i, scaled(load_n(source + i, int(end - i))), int(end - i));
    for (int64_t e = 0; e < edits; ++e)
      if (ids[e] >= begin && ids[e] < end) x[ids[e]] = edited(e) / divisor;
    chunks[number] = find_top(x, begin, end);
  }

  int32_t best() {
    int32_t index = chunks[0].index;
    top = chunks[0].top;
    for (int64_t c = 1; c < chunk_count; ++c)
      if (chunks[c].top > top) top = chunks[c].top, index = chunks[c].index;
    return index;
  }

  // Weights exp(x - top) of the vector at i, 0 where min_p drops them or the row has ended. One formula for the total
  // and for the candidates, so that both agree to the bit.
  vf weights(int64_t i, int64_t end) const {
    vf v = set1(lowest);
    if (i + lanes <= end) {
      v = load(x + i);
    } else {
      alignas(64) float padded[lanes];
      store(padded, v);
      for (int64_t j = i; j < end; ++j) padded[j - i] = x[j];
      v = load(padded);
    }
    const vf weight = exp(v - set1(top));
    return select(weight < set1(min_p), zero(), weight);
  }

  // Second pass, needed where no top_k bounds the candidates: the mass of all tokens.
  void weigh(int64_t number) {
    best();
    if (greedy() || top_k > 0) return;
    const int64_t end = std::min(vocab, (number + 1) * chunk);
    double sum = 0;
    for (int64_t block = number * chunk; block < end; block += 512) {
      const int64_t stop = std::min(end, block + 512);
      vf sums[parts];
      for (vf& part : sums) part = zero();
      for (int64_t i = block; i < stop; i += 16)
        for (int p = 0; p < parts; p++) sums[p] = sums[p] + weights(i + p * lanes, stop);
      sum += double(reduce_add(sums));
    }
    chunks[number].sum = sum;
  }

  // All tokens with x >= limit and a weight that min_p keeps; their number and mass.
  int64_t gather(float limit, double& mass) {
    int64_t count = 0;
    mass = 0;
    for (int64_t i = 0; i < vocab; i += lanes) {
      const int used = int(std::min<int64_t>(lanes, vocab - i));
      const vf v = used == lanes ? load(x + i) : load_n(x + i, used);
      uint32_t left = ~bits(v < set1(limit)) & ((1u << used) - 1);
      if (!left) continue;
      alignas(64) float weight[lanes];
      store(weight, weights(i, vocab));
      for (; left; left &= left - 1) {
        const int lane = __builtin_ctz(left);
        if (!(weight[lane] > 0)) continue;
        candidates[count++] = {double(weight[lane]), x[i + lane], int32_t(i + lane)};
        mass += double(weight[lane]);
      }
    }
    return count;
  }

  int32_t draw() {
    const int32_t index = best();
    if (greedy() || !std::isfinite(top)) return index;
    double total = 0, mass = 0;
    for (int64_t c = 0; c < chunk_count; ++c) total += chunks[c].sum;
    const bool cut = top_p < 1.0f;
    int64_t count = 0;
    for (float depth : {4.0f, 8.0f, 16.0f, 32.0f, std::numeric_limits<float>::infinity()}) {
      count = gather(top - depth, mass);
      if (top_k > 0 ? count >= top_k : mass > total * (cut ? double(top_p) : u)) break;
    }
    if (count == 0) return index;       // a min_p above 1
    if (top_k > 0) {
      if (count > top_k) {
        std::nth_element(candidates, candidates + top_k - 1, candidates + count);
        count = top_k;
      }
      total = 0;
      for (int64_t i = 0; i < count; ++i) total += candidates[i].weight;
    }
    if (cut) count = reach(count, total * double(top_p), false, total);
    const int64_t end = reach(count, total * u, true, mass);
    return candidates[end - 1].id;
  }

  // How many of the first `count` candidates, in descending order, it takes until their sum reaches (beyond: exceeds)
  // the target; at least one. They are moved to the front, the last of them to the place before the returned one.
  int64_t reach(int64_t count, double target, bool beyond, double& sum) {
    auto there = [&](double value) { return beyond ? value > target : value >= target; };
    int64_t begin = 0, end = count;
    sum = 0;
    while (end - begin > 32) {
      const int64_t middle = begin + (end - begin) / 2;
      std::nth_element(candidates + begin, candidates + middle, candidates + end);
      double left = 0;
      for (int64_t i = begin; i < middle; ++i) left += candidates[i].weight;
      if (there(sum + left)) end = middle;
      else begin = middle, sum += left;
    }
    std::sort(candidates + begin, candidates + end);
    while (begin < end) {
      sum += candidates[begin++].weight;
      if (there(sum)) break;
    }
    return begin;
  }
};

int64_t sample_scratch(const Record& record, int threads) { return threads * Row::bytes(record.tensor[field::logits].shape[1]); }

}  // namespace

KERNEL(sample, sample_scratch) {
  const int64_t rows = call.rows(field::logits), bytes = Row::bytes(call.width(field::logits));
  int32_t* out = call.data<int32_t>(field::tokens);
  if (rows >= call.threads) {
    call.tiles(rows, 1, [&](int64_t number, int64_t) {
      Row row(call, number, call.scratch + call.thread * bytes);
      for (int64_t c = 0; c < row.chunk_count; ++c) row.prepare(c);
      for (int64_t c = 0; c < row.chunk_count; ++c) row.weigh(c);
      out[number] = row.draw();
    });
    return;
  }
  const int64_t chunks = (call.width(field::logits) + chunk - 1) / chunk;
  auto row_at = [&](int64_t number) { return Row(call, number, call.scratch + number * bytes); };
  call.tiles(rows * chunks, 1, [&](int64_t i, int64_t) { row_at(i / chunks).prepare(i % chunks); });
  call.barrier();
  call.tiles(rows * chunks, 1, [&](int64_t i, int64_t) { row_at(i / chunks).weigh(i % chunks); });
  call.barrier();
  call.tiles(rows, 1, [&](int64_t number, int64_t) { out[number] = row_at(number).draw(); });
}

}  // namespace lattice
