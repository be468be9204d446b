// gated_delta(qkv, a, b, a_log, dt_bias, step) -> o; key_heads, value_heads, key_dim, tiled.
// slot_gated_delta(state (slots, value_heads, dk, dv), qkv, a, b, a_log, dt_bias, step) -> (state, o); the same.
//
//   S = g S;   d = beta (v - S^T k);   S = S + k d^T;   o = S^T q        per token and value head; formulas in ops/delta.py
//
// Columns of S have nothing to do with each other, so a block of them goes alone through all tokens, from cache. A token
// takes two sweeps: one reads S^T k and S^T q before the decay, o = g (S^T q) + (q.k) d; the other writes g S + k d^T. The
// sums of a sweep run over two chains, even and odd rows. An item of work is some blocks of one head of one sequence.
#include <algorithm>
#include <cstring>

#include "kernel.h"
#include "math.h"
#include "norm.h"
#include "sequences.h"

namespace lattice {
namespace {

constexpr int64_t chunk = 16;         // tokens whose q and k are made ready at once
constexpr int vectors = 2, block = vectors * lanes;   // columns of a block

int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

struct Shape {
  int64_t key_heads, value_heads, dk, dv;

  Shape(const Record& record, int first)
      : key_heads(record.parameter[0]), value_heads(record.parameter[1]) {
    const int64_t out = record.tensor[record.tensors - 1].shape[1];
    dk = (record.tensor[first].shape[1] - out) / (2 * key_heads);
    dv = out / value_heads;
  }
  int64_t blocks() const { return (dv + block - 1) / block; }
  int64_t row() const { return padded(dk, 16); }
  int64_t bytes() const { return (chunk * (2 * row() + 3) + blocks() * dk * block) * int64_t(sizeof(float)); }
};
static_assert(chunk % 16 == 0);       // so that every part of a thread's memory begins on 64 bytes

struct Rows { float* at; int64_t stride; };   // of one block

LATTICE_INLINE vf load_part(const float* p, int64_t n) { return n >= lanes ? load(p) : n > 0 ? load_n(p, int(n)) : zero(); }
LATTICE_INLINE void store_part(float* p, vf v, int64_t n) {
  if (n >= lanes) store(p, v);
  else if (n > 0) store_n(p, v, int(n));
}

// S^T k and S^T q.
LATTICE_INLINE void read(Rows s, const float* k, const float* q, int64_t dk, vf (&sk)[vectors], vf (&sq)[vectors]) {
  vf u[2][vectors], p[2][vectors];
  for (int r = 0; r < 2; ++r)
    for (int c = 0; c < vectors; ++c) u[r][c] = p[r][c] = zero();
  auto take = [&](int64_t i, int r) {
    const vf ki = set1(k[i]), qi = set1(q[i]);
    LATTICE_UNROLL
    for (int c = 0; c < vectors; ++c) {
      const vf x = load(s.at + i * s.stride + c * lanes);
      u[r][c] = fma(x, ki, u[r][c]);
      p[r][c] = fma(x, qi, p[r][c]);
    }
  };
  int64_t i = 0;
  for (; i + 2 <= dk; i += 2) take(i, 0), take(i + 1, 1);
  if (i < dk) take(i, 0);
  for (int c = 0; c < vectors; ++c) sk[c] = u[0][c] + u[1][c], sq[c] = p[0][c] + p[1][c];
}

// to = g * from + k d^T; the two may be the same.
LATTICE_INLINE void write(Rows from, Rows to, const float* k, const vf (&d)[vectors], float g, int64_t dk) {
  const vf decay = set1(g);
  for (int64_t i = 0; i < dk; ++i) {
    const vf ki = set1(k[i]);
    LATTICE_UNROLL
    for (int c = 0; c < vectors; ++c)
      store(to.at + i * to.stride + c * lanes, fma(ki, d[c], load(from.at + i * from.stride + c * lanes) * decay));
  }
}

void copy(Rows from, Rows to, int64_t dk, int64_t columns) {
  for (int64_t i = 0; i < dk; ++i)
    std::memcpy(to.at + i * to.stride, from.at + i * from.stride, size_t(columns) * sizeof(float));
}

// Tokens made ready for one head, in a thread's memory; after them stand the blocks of the state.
struct Ready {
  float *q, *k, *decay, *beta, *qk, *tiles;
  int64_t row;

  Ready(uint8_t* memory, const Shape& shape)
      : q(reinterpret_cast<float*>(memory)), k(q + chunk * shape.row()), decay(k + chunk * shape.row()),
        beta(decay + chunk), qk(beta + chunk), tiles(qk + chunk), row(shape.row()) {}

  // x scaled to length 1, times `factor`; zero where it has no finite length.
  static void unit(const float* x, int64_t dk, float factor, float* to, int64_t row) {
    const float squares = row_sum(x, dk, [](vf v, vf sum) { return fma(v, v, sum); });
    std::fill(to + dk, to + row, 0.0f);
    if (squares < INFINITY) {
      const vf scale = set1(1.0f / std::sqrt(squares + 1e-6f) * factor);
      row_map(x, dk, to, [&](vf v, int64_t, int) { return v * scale; });
    } else {
      std::fill_n(to, dk, 0.0f);
    }
  }

  void vectors_of(int i, const float* query, const float* key, int64_t dk) {
    unit(query, dk, float(1.0 / std::sqrt(double(dk))), q + i * row, row);
    unit(key, dk, 1.0f, k + i * row, row);
    vf sums[parts];
    for (vf& part : sums) part = zero();
    for (int64_t j = 0; j < row; j += lanes) {
      vf& sum = sums[j / lanes % parts];
      sum = fma(load(q + i * row + j), load(k + i * row + j), sum);
    }
    qk[i] = reduce_add(sums);
  }

  // From a + dt_bias and b, in place, to the decay and beta of all tokens.
  void gates(float a_log) {
    const vf rate = exp(set1(a_log));
    for (int64_t i = 0; i < chunk; i += lanes) {
      const vf g = exp(-(rate * softplus(load(decay + i)))), weight = sigmoid(load(beta + i));
      store(decay + i, select(g == g, g, set1(1.0f)));
      store(beta + i, select(weight == weight, weight, zero()));
    }
  }
};

void run(Call& call, int first, float* state) {
  const Shape shape(call.record, first);
  const int64_t dk = shape.dk, dv = shape.dv, heads = shape.value_heads, blocks = shape.blocks();
  const float *qkv = call.data<float>(first), *a = call.data<float>(first + 1), *b = call.data<float>(first + 2);
  const float *a_log = call.data<float>(first + 3), *dt_bias = call.data<float>(first + 4);
  const StepView step(call, first + 5);
  float* out = call.data<float>(call.record.tensors - 1);
  const int64_t width = call.width(first), keys = shape.key_heads * dk;
  const bool tiled = call.integer(3) != 0;
  Ready ready(call.scratch + call.thread * shape.bytes(), shape);
  // A head is parted only where there would be too little to do: every part makes q and k ready for itself.
  const int64_t whole = step.sequences * heads, wanted = call.threads > 1 ? 4 * call.threads : 1;
  const int64_t head_parts = std::min(blocks, 1 + (wanted - 1) / std::max<int64_t>(1, whole));

  call.tiles(whole * head_parts, 1, [&](int64_t item, int64_t) {
    const int64_t s = item / (heads * head_parts), h = item / head_parts % heads, part = item % head_parts;
    const int64_t key_head = tiled ? h % shape.key_heads : h / (heads / shape.key_heads);
    const int64_t begin = step.offsets[s], end = step.offsets[s + 1];
    auto slot = [&](int64_t number) { return state + (number * heads + h) * dk * dv; };
    const bool fresh = !state || begin == end || step.positions[begin] == 0;

    for (int64_t t0 = begin; t0 < end; t0 += chunk) {
      const int count = int(std::min(chunk, end - t0));
      std::fill_n(ready.decay, 2 * chunk, 0.0f);
      for (int i = 0; i < count; ++i) {
        const float* x = qkv + (t0 + i) * width + key_head * dk;
        ready.vectors_of(i, x, x + keys, dk);
        ready.decay[i] = a[(t0 + i) * heads + h] + dt_bias[h];
        ready.beta[i] = b[(t0 + i) * heads + h];
      }
      ready.gates(a_log[h]);

      for (int64_t j = blocks * part / head_parts; j < blocks * (part + 1) / head_parts; ++j) {
        const int64_t column = j * block, columns = std::min<int64_t>(block, dv - column);
        const Rows tile{ready.tiles + j * dk * block, block};
        Rows from = tile;
        if (t0 == begin && (fresh || columns < block)) std::fill_n(tile.at, dk * block, 0.0f);
        if (t0 == begin && !fresh) {
          const Rows saved{slot(step.slots[s]) + column, dv};
          if (columns < block) copy(saved, tile, dk, columns);
          else from = saved;
        }
        for (int i = 0; i < count; ++i) {
          const int64_t t = t0 + i;
          const float *q = ready.q + i * ready.row, *k = ready.k + i * ready.row;
          const float* v = qkv + t * width + 2 * keys + h * dv + column;
          float* o = out + (t * heads + h) * dv + column;
          vf sk[vectors], sq[vectors], d[vectors];
          read(from, k, q, dk, sk, sq);
          for (int c = 0; c < vectors; ++c) {
            const int64_t n = columns - c * lanes;
            const vf change = set1(ready.beta[i]) * fma(set1(-ready.decay[i]), sk[c], load_part(v + c * lanes, n));
            d[c] = select(abs(change) < set1(INFINITY), change, zero());
            store_part(o + c * lanes, fma(set1(ready.qk[i]), d[c], set1(ready.decay[i]) * sq[c]), n);
          }
          const bool save = state && step.saves[t] >= 0, last = t + 1 == end;
          if (last && !save) break;
          const Rows kept{save ? slot(step.saves[t]) + column : nullptr, dv};
          const bool direct = save && last && columns == block;
          write(from, direct ? kept : tile, k, d, ready.decay[i], dk);
          if (save && !direct) copy(tile, kept, dk, columns);
          from = tile;
        }
      }
    }
  });
}

int64_t gated_delta_scratch(const Record& record, int threads) { return threads * Shape(record, 0).bytes(); }
int64_t slot_gated_delta_scratch(const Record& record, int threads) { return threads * Shape(record, 1).bytes(); }

}  // namespace

KERNEL(gated_delta, gated_delta_scratch) { run(call, 0, nullptr); }

KERNEL(slot_gated_delta, slot_gated_delta_scratch) { run(call, 1, call.data<float>(0)); }

}  // namespace lattice
