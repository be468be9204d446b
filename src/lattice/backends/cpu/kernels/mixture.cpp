// route, mixture and gate_rows: a few experts a token, each a small gated network of its own.
//
// The experts' matrices stay as they lie in the file, mapped: nothing of an expert that no token chose is ever read. A row
// of a matrix is unpacked once a step, into floats, and meets all tokens of its expert. Every product is sixteen partial
// sums over k and the experts of a token are summed in the order of its list, so a token's bits depend on itself alone.
#include <algorithm>
#include <cmath>

#include "kernel.h"
#include "math.h"
#include "tiles.h"

namespace lattice {
namespace {

constexpr int together = 4;      // rows unpacked at once: they and a token's activations stay in the first cache
constexpr int64_t block = 32;    // rows of an item

// The products of `together` rows w, `stride` floats apart, with x.
void dots(const float* w, int64_t stride, const float* x, int64_t k, float* out) {
  vf sums[together][parts];
  for (auto& row : sums)
    for (vf& part : row) part = zero();
  int64_t i = 0;
  for (; i + 16 <= k; i += 16)
    LATTICE_UNROLL
    for (int p = 0; p < parts; ++p) {
      const vf v = load(x + i + lanes * p);
      LATTICE_UNROLL
      for (int r = 0; r < together; ++r) sums[r][p] = fma(load(w + r * stride + i + lanes * p), v, sums[r][p]);
    }
  for (int p = 0; i < k; i += lanes, ++p) {
    const int n = int(std::min<int64_t>(lanes, k - i));
    for (int r = 0; r < together; ++r) sums[r][p] = fma(load_n(w + r * stride + i, n), load_n(x + i, n), sums[r][p]);
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
  int64_t capacity, top_k, experts, hidden, inner;

  explicit Sizes(const Record& record)
      : capacity(record.tensor[1].shape[0]), top_k(record.tensor[1].shape[1]), experts(record.tensor[5].shape[0]),
        hidden(record.tensor[5].shape[1]), inner(record.tensor[5].shape[2]) {}
  int64_t pairs() const { return capacity * top_k; }           // of a token and one of its experts
  int64_t shared() const { return round_up(pairs() * (inner + hidden) * 4, 64); }
  int64_t rows() const { return round_up(together * std::max(inner, hidden) * 4, 64); }
  int64_t own() const { return rows() + round_up((pairs() + 2 * experts + 2) * 4, 64); }
};

int64_t mixture_scratch(const Record& record, int threads) {
  const Sizes sizes(record);
  return sizes.shared() + threads * sizes.own();
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
    for (int64_t i = 0; i < pairs; ++i)            // moves the begin of each expert to its end, where the next one's is due
      if (weights[i] != 0.0f) pair[first[ids[i] + 1]++] = int32_t(i);
  }
};

}  // namespace

// mixture(x (T, n), ids, weights (T, top_k), gate, up?, down) -> y (T, n); kind.
KERNEL(mixture, mixture_scratch) {
  const Sizes s(call.record);
  const float *x = call.data<float>(0), *weights = call.data<float>(2);
  const Tensor gate = flat(call.tensor(3)), up = call.tensor(4).data ? flat(call.tensor(4)) : gate, down = flat(call.tensor(5));
  const bool halves = !call.tensor(4).data;
  auto* middle = reinterpret_cast<float*>(call.scratch);             // (pairs, inner)
  float *made = middle + s.pairs() * s.inner, *y = call.data<float>(6);
  auto* rows = reinterpret_cast<float*>(call.scratch + s.shared() + call.thread * s.own());
  const int64_t tokens = call.rows(1);
  const Groups groups(reinterpret_cast<int32_t*>(reinterpret_cast<uint8_t*>(rows) + s.rows()), s.experts,
                      call.data<int32_t>(1), weights, tokens * s.top_k);
  // body(expert, first row, end row) for all `n` rows of the experts that have tokens.
  auto share = [&](int64_t n, auto&& body) {
    const int64_t blocks = (n + block - 1) / block;
    call.tiles(groups.count * blocks, 1, [&](int64_t item, int64_t) {
      const int64_t begin = item % blocks * block;
      body(groups.active[item / blocks], begin, std::min(n, begin + block));
    });
  };
  float product[together];

  share(s.inner, [&](int64_t expert, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row += 2) {                 // two of gate, two of up
      const int64_t next = std::min(row + 1, end - 1), base = expert * s.inner;
      for (int i = 0; i < 2; ++i) {
        read_row(gate, (halves ? 2 * base : base) + (i ? next : row), rows + i * s.hidden);
        read_row(up, (halves ? 2 * base + s.inner : base) + (i ? next : row), rows + (2 + i) * s.hidden);
      }
      for (int32_t i = groups.first[expert]; i < groups.first[expert + 1]; ++i) {
        const int64_t pair = groups.pair[i];
        dots(rows, s.hidden, x + pair / s.top_k * s.hidden, s.hidden, product);
        float* out = middle + pair * s.inner;
        with_activation(Activation(call.integer(0)), [&](auto f) {
          float gated[lanes];
          store(gated, f(load_n(product, 2)));
          out[row] = gated[0] * product[2];
          out[next] = gated[next - row] * product[2 + next - row];
        });
      }
    }
  });
  call.barrier();
  share(s.hidden, [&](int64_t expert, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row += together) {
      const int64_t count = std::min<int64_t>(together, end - row);
      for (int64_t i = 0; i < together; ++i)
        read_row(down, expert * s.hidden + row + std::min(i, count - 1), rows + i * s.inner);
      for (int32_t i = groups.first[expert]; i < groups.first[expert + 1]; ++i) {
        dots(rows, s.inner, middle + groups.pair[i] * s.inner, s.inner, product);
        std::copy(product, product + count, made + groups.pair[i] * s.hidden + row);
      }
    }
  });
  call.barrier();
  call.tiles(tokens * s.hidden, 2048, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t pair = i / s.hidden * s.top_k, column = i % s.hidden;
      float sum = 0;
      for (int64_t j = 0; j < s.top_k; ++j)
        if (weights[pair + j] != 0.0f) sum = std::fma(weights[pair + j], made[(pair + j) * s.hidden + column], sum);
      y[i] = sum;
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
      float* weights = call.data<float>(2) + t * top_k;
      if (!std::all_of(x, x + experts, [](float v) { return std::isfinite(v); })) {
        for (int32_t j = 0; j < top_k; ++j) ids[j] = j, weights[j] = 0;
        continue;
      }
      int64_t count = 0;                           // a descending list; equal ones stay in the order of their ids
      for (int32_t e = 0; e < experts; ++e) {
        if (count == top_k && !(x[e] > weights[top_k - 1])) continue;
        int64_t place = count == top_k ? top_k - 1 : count++;
        for (; place > 0 && weights[place - 1] < x[e]; --place) weights[place] = weights[place - 1], ids[place] = ids[place - 1];
        weights[place] = x[e], ids[place] = e;
      }
      const vf largest = set1(weights[0]);
      for (int64_t j = 0; j < top_k; j += lanes) {
        const int n = int(std::min<int64_t>(lanes, top_k - j));
        store_n(weights + j, exp(load_n(weights + j, n) - largest), n);
      }
      float sum = 0;
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
      float factor[lanes];
      store(factor, sigmoid(set1(gate[t])));
      for (int64_t i = t * n; i < (t + 1) * n; ++i) call.data<float>(2)[i] = x[i] * factor[0];
    }
  });
}

}  // namespace lattice
