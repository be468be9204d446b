// route, mixture and gate_rows: a few experts a token, each a small gated network of its own.
//
// The experts' matrices stay as they lie in the file, mapped: nothing of an expert that no token chose is ever read. A
// row of a matrix is unpacked once a step, into floats, and meets all tokens of its expert. A product is sixteen partial
// sums over k, the experts of a token are summed in the order of its list: a token's bits depend on itself alone.
#include <algorithm>
#include <cmath>

#include "kernel.h"
#include "math.h"
#include "norm.h"
#include "tiles.h"

namespace lattice {
namespace {

constexpr int together = 4;      // rows unpacked at once: they and a token's activations stay in the first cache

// The products of `together` rows of k values with x.
void dots(const float* w, const float* x, int64_t k, float* out) {
  vf sums[together][parts] = {};
  int64_t i = 0;
  for (; i + 16 <= k; i += 16)
    LATTICE_UNROLL
    for (int p = 0; p < parts; ++p) {
      const vf v = load(x + i + lanes * p);
      LATTICE_UNROLL
      for (int r = 0; r < together; ++r) sums[r][p] = fma(load(w + r * k + i + lanes * p), v, sums[r][p]);
    }
  for (int p = 0; i < k; i += lanes, ++p) {
    const int n = int(std::min<int64_t>(lanes, k - i));
    for (int r = 0; r < together; ++r) sums[r][p] = fma(load_n(w + r * k + i, n), load_n(x + i, n), sums[r][p]);
  }
  for (int r = 0; r < together; ++r) out[r] = reduce_add(sums[r]);
}

// All experts' rows as one matrix.
Tensor flat(Tensor t) {
  t.shape[0] *= t.shape[1];
  t.shape[1] = t.shape[2];
  return t;
}

struct Sizes {
  int64_t top_k, pairs, experts, hidden, inner;    // pairs: of a token and one of its experts, at capacity

  explicit Sizes(const Record& record) {
    const int64_t *ids = record.tensor[1].shape, *down = record.tensor[5].shape;
    top_k = ids[1], pairs = ids[0] * top_k, experts = down[0], hidden = down[1], inner = down[2];
  }
  int64_t shared() const { return round_up(pairs * (inner + hidden) * 4, 64); }
  int64_t rows() const { return together * std::max(inner, hidden); }
  int64_t own() const { return round_up((rows() + pairs + 2 * experts + 2) * 4, 64); }   // of a thread: rows, Groups
};

int64_t mixture_scratch(const Record& record, int threads) {
  return Sizes(record).shared() + threads * Sizes(record).own();
}

// Which pairs each expert has: every thread sorts them for itself. Pairs of weight 0 are left out.
struct Groups {
  int32_t *first, *active, *pair;      // first[e] to first[e + 1]: the pairs of expert e, ascending
  int64_t count = 0;                   // of experts that have some: active[0] and so on

  Groups(int32_t* memory, int64_t experts, const int32_t* ids, const float* weights, int64_t pairs)
      : first(memory), active(first + experts + 2), pair(active + experts) {
    std::fill(first, active, 0);
    for (int64_t i = 0; i < pairs; ++i) first[ids[i] + 2] += weights[i] != 0.0f;
    for (int64_t e = 0; e < experts; ++e) {
      if (first[e + 2]) active[count++] = int32_t(e);
      first[e + 2] += first[e + 1];
    }
    for (int64_t i = 0; i < pairs; ++i)            // each expert's begin moves to its end, the next one's begin
      if (weights[i] != 0.0f) pair[first[ids[i] + 1]++] = int32_t(i);
  }
};

}  // namespace

// mixture(x (T, n), ids, weights (T, top_k), gate, up?, down) -> y (T, n); kind.
KERNEL(mixture, mixture_scratch) {
  const Sizes s(call.record);
  const float *x = call.data<float>(0), *weights = call.data<float>(2);
  const Tensor gate = flat(call.tensor(3)), down = flat(call.tensor(5));
  const Tensor up = call.tensor(4).data ? flat(call.tensor(4)) : gate;
  const int64_t tokens = call.rows(1), stride = call.tensor(3).shape[1];   // twice inner where gate holds both
  auto* middle = reinterpret_cast<float*>(call.scratch);             // (pairs, inner)
  float *made = middle + s.pairs * s.inner, *y = call.data<float>(6);
  auto* rows = reinterpret_cast<float*>(call.scratch + s.shared() + call.thread * s.own());
  const Groups groups(reinterpret_cast<int32_t*>(rows + s.rows()), s.experts, call.data<int32_t>(1), weights, tokens * s.top_k);

  // All `n` rows of the experts that have tokens, `step` at a time: read(i, expert, row, to) fetches the i-th of those
  // that meet input(pair); keep(pair, which rows they were, products).
  auto pass = [&](int64_t n, int step, int64_t k, auto&& read, auto&& input, auto&& keep) {
    const int64_t steps = (n + step - 1) / step;
    call.tiles(groups.count * steps, 8, [&](int64_t item, int64_t end) {
      for (; item < end; ++item) {
        const int64_t expert = groups.active[item / steps], row = item % steps * step;
        int64_t at[together];                                        // past the end: the last one again
        for (int i = 0; i < together; ++i) read(i, expert, at[i] = std::min(row + i % step, n - 1), rows + i * k);
        for (int32_t i = groups.first[expert]; i < groups.first[expert + 1]; ++i) {
          float product[together];
          dots(rows, input(groups.pair[i]), k, product);
          keep(groups.pair[i], at, product);
        }
      }
    });
  };
  pass(s.inner, 2, s.hidden,
       [&](int i, int64_t expert, int64_t row, float* to) {          // two of gate, two of up
         read_row(i < 2 ? gate : up, expert * stride + (i < 2 ? 0 : stride - s.inner) + row, to);
       },
       [&](int64_t pair) { return x + pair / s.top_k * s.hidden; },
       [&](int64_t pair, const int64_t* at, const float* product) {
         with_activation(Activation(call.integer(0)), [&](auto f) {
           float gated[lanes];
           store(gated, f(load_n(product, 2)));
           for (int i = 0; i < 2; ++i) middle[pair * s.inner + at[i]] = gated[i] * product[2 + i];
         });
       });
  call.barrier();
  pass(s.hidden, together, s.inner,
       [&](int, int64_t expert, int64_t row, float* to) { read_row(down, expert * s.hidden + row, to); },
       [&](int64_t pair) { return middle + pair * s.inner; },
       [&](int64_t pair, const int64_t* at, const float* product) {
         for (int i = 0; i < together; ++i) made[pair * s.hidden + at[i]] = product[i];
       });
  call.barrier();
  call.tiles(tokens * s.hidden, 2048, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t pair = i / s.hidden * s.top_k, column = i % s.hidden;
      y[i] = 0;
      for (int64_t j = pair; j < pair + s.top_k; ++j)
        if (weights[j] != 0.0f) y[i] = std::fma(weights[j], made[j * s.hidden + column], y[i]);
    }
  });
}

// route(logits (T, experts)) -> ids, weights (T, top_k); top_k.
KERNEL(route, no_scratch) {
  const int64_t experts = call.width(0), top_k = call.integer(0);
  call.tiles(call.rows(0), std::max<int64_t>(1, 4096 / experts), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* x = call.data<float>(0) + t * experts;
      int32_t* ids = call.data<int32_t>(1) + t * top_k;
      float *weights = call.data<float>(2) + t * top_k, sum = 0;
      if (!std::all_of(x, x + experts, [](float v) { return std::isfinite(v); })) {
        for (int32_t j = 0; j < top_k; ++j) ids[j] = j, weights[j] = 0;
        continue;
      }
      int64_t count = 0;                           // a descending list; equal ones stay in the order of their ids
      for (int32_t e = 0; e < experts; ++e) {
        if (count == top_k && !(x[e] > weights[top_k - 1])) continue;
        int64_t j = count == top_k ? top_k - 1 : count++;
        for (; j > 0 && weights[j - 1] < x[e]; --j) weights[j] = weights[j - 1], ids[j] = ids[j - 1];
        weights[j] = x[e], ids[j] = e;
      }
      const vf largest = set1(weights[0]);
      row_map(weights, top_k, weights, [&](vf v, int64_t, int) { return exp(v - largest); });
      for (int64_t j = 0; j < top_k; ++j) sum += weights[j];
      for (int64_t j = 0; j < top_k; ++j) weights[j] /= sum;
    }
  });
}

// gate_rows(x (T, n), gate (T, 1)) -> x * sigmoid(gate).
KERNEL(gate_rows, no_scratch) {
  const float *x = call.data<float>(0), *gate = call.data<float>(1);
  const int64_t n = call.width(0);
  call.tiles(call.rows(0), std::max<int64_t>(1, 8192 / n), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const vf factor = sigmoid(set1(gate[t]));
      row_map(x + t * n, n, call.data<float>(2) + t * n, [&](vf v, int64_t, int) { return v * factor; });
    }
  });
}

}  // namespace lattice
