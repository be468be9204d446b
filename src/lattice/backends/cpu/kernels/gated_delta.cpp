// gated_delta(qkv, a, b, a_log, dt_bias, step) -> o; key_heads, value_heads, key_dim, tiled.
// slot_gated_delta(state (slots, value_heads, dk, dv), qkv, a, b, a_log, dt_bias, step) -> (state, o); the same.
//
//   S = g S;   d = beta (v - S^T k);   S = S + k d^T;   o = S^T q        per token and value head; formulas in ops/delta.py
//
// Columns of S have nothing to do with each other, so a block of them goes alone through all tokens, from cache. A token
// reads S^T k and S^T q before the decay, o = g (S^T q) + (q.k) d, and then writes g S + k d^T, which is done while the next
// token reads. Sums run over two chains, even and odd rows. An item of work is some blocks of one head of one sequence.
#include <algorithm>

#include "kernel.h"
#include "math.h"
#include "norm.h"
#include "sequences.h"

namespace lattice {
namespace {

constexpr int64_t chunk = 16;         // tokens whose q and k are made ready at once
constexpr int vectors = 2, block = vectors * lanes;   // columns of a block

struct Rows { float* at; int64_t stride; };   // of one block

LATTICE_INLINE vf load_part(const float* p, int64_t n) { return n >= lanes ? load(p) : n > 0 ? load_n(p, int(n)) : zero(); }
LATTICE_INLINE void store_part(float* p, vf v, int64_t n) { n >= lanes ? store(p, v) : n > 0 ? store_n(p, v, int(n)) : void(); }

// What a token does to the state: g S + k d^T.
struct Change { const float* k; vf d[vectors]; float g; };

// One pass over the rows: writes what `change` makes of `from` to `to` (they may be the same), reads S^T k and S^T q, or
// reads from what it has just written.
template <bool writes, bool reads>
LATTICE_INLINE void sweep(Rows from, Rows to, const Change& change, const float* k, const float* q, int64_t dk,
                          vf (&sk)[vectors], vf (&sq)[vectors]) {
  const vf g = set1(change.g);
  vf u[2][vectors], p[2][vectors];
  for (int r = 0; r < 2; ++r)
    for (int c = 0; c < vectors; ++c) u[r][c] = p[r][c] = zero();
  auto take = [&](int64_t i, int r) {
    vf x[vectors];
    LATTICE_UNROLL
    for (int c = 0; c < vectors; ++c) {
      x[c] = load(from.at + i * from.stride + c * lanes);
      if constexpr (writes) store(to.at + i * to.stride + c * lanes, x[c] = fma(set1(change.k[i]), change.d[c], x[c] * g));
    }
    if constexpr (reads) {
      const vf ki = set1(k[i]), qi = set1(q[i]);
      LATTICE_UNROLL
      for (int c = 0; c < vectors; ++c) u[r][c] = fma(x[c], ki, u[r][c]), p[r][c] = fma(x[c], qi, p[r][c]);
    }
  };
  int64_t i = 0;
  for (; i + 2 <= dk; i += 2) take(i, 0), take(i + 1, 1);
  if (i < dk) take(i, 0);
  for (int c = 0; c < vectors; ++c) sk[c] = u[0][c] + u[1][c], sq[c] = p[0][c] + p[1][c];
}

void copy(Rows from, Rows to, int64_t dk, int64_t columns) {
  for (int64_t i = 0; i < dk; ++i) std::copy_n(from.at + i * from.stride, columns, to.at + i * to.stride);
}

// x scaled to length 1, times `factor`; zero where it has no finite length.
void unit(const float* x, int64_t dk, float factor, float* to) {
  const float squares = row_sum(x, dk, [](vf v, vf sum) { return fma(v, v, sum); });
  const vf scale = set1(1.0f / std::sqrt(squares + 1e-6f) * factor);
  if (squares < INFINITY) row_map(x, dk, to, [&](vf v, int64_t, int) { return v * scale; });
  else std::fill_n(to, dk, 0.0f);
}

// The sizes of a head, and a thread's memory for one: the blocks of its state, and a chunk of tokens made ready.
struct Head {
  int64_t dk, dv, blocks;
  float *tiles, *q = nullptr, *k = nullptr, *products = nullptr;
  alignas(64) float qk[chunk], decay[chunk], beta[chunk];

  Head(const Record& record, int first, uint8_t* memory = nullptr) {
    const int64_t in = record.tensor[first].shape[1], out = record.tensor[record.tensors - 1].shape[1];
    dk = (in - out) / (2 * record.parameter[0]), dv = out / record.parameter[1], blocks = (dv + block - 1) / block;
    tiles = reinterpret_cast<float*>(memory);
    if (memory) q = tiles + blocks * dk * block, k = q + chunk * dk, products = k + chunk * dk;
  }
  int64_t bytes() const { return (blocks * block + 2 * chunk + 1) * dk * int64_t(sizeof(float)); }

  void prepare(int i, const float* query, const float* key) {
    float *qi = q + i * dk, *ki = k + i * dk;
    unit(query, dk, float(1.0 / std::sqrt(double(dk))), qi), unit(key, dk, 1.0f, ki);
    row_map(qi, dk, products, [&](vf v, int64_t j, int n) { return v * load_part(ki + j, n); });
    qk[i] = row_sum(products, dk, [](vf v, vf sum) { return sum + v; });
  }

  // From a + dt_bias and b, in place, to the decay and beta of all tokens.
  void gates(float a_log) {
    const vf rate = exp(set1(a_log));
    for (int64_t i = 0; i < chunk; i += lanes) {
      const vf g = exp(-(rate * softplus(load(decay + i)))), weight = sigmoid(load(beta + i));
      store(decay + i, select(g == g, g, set1(1.0f))), store(beta + i, select(weight == weight, weight, zero()));
    }
  }
};

template <int first> int64_t scratch_of(const Record& record, int threads) { return threads * Head(record, first).bytes(); }

void run(Call& call, int first, float* state) {
  Head head(call.record, first, call.scratch + call.thread * Head(call.record, first).bytes());
  const int64_t dk = head.dk, dv = head.dv, key_heads = call.integer(0), heads = call.integer(1), blocks = head.blocks;
  const float *qkv = call.data<float>(first), *a = call.data<float>(first + 1), *b = call.data<float>(first + 2);
  const float *a_log = call.data<float>(first + 3), *dt_bias = call.data<float>(first + 4);
  const StepView step(call, first + 5);
  float* out = call.data<float>(call.record.tensors - 1);
  const int64_t width = call.width(first), keys = key_heads * dk;
  // A head is parted only where there would be too little to do: every part makes q and k ready for itself.
  const int64_t whole = step.sequences * heads, wanted = call.threads > 1 ? 4 * call.threads : 1;
  const int64_t head_parts = std::min(blocks, 1 + (wanted - 1) / std::max<int64_t>(1, whole));

  call.tiles(whole * head_parts, 1, [&](int64_t item, int64_t) {
    const int64_t s = item / (heads * head_parts), h = item / head_parts % heads, part = item % head_parts;
    const int64_t key_head = call.integer(3) ? h % key_heads : h / (heads / key_heads);
    const int64_t begin = step.offsets[s], end = step.offsets[s + 1];
    auto slot = [&](int64_t number, int64_t column) { return Rows{state + (number * heads + h) * dk * dv + column, dv}; };

    for (int64_t t0 = begin; t0 < end; t0 += chunk) {
      const int count = int(std::min(chunk, end - t0));
      for (int i = 0; i < chunk; ++i) {
        const int64_t t = t0 + std::min(i, count - 1), x = t * width + key_head * dk;   // beyond the last: the last again
        if (i < count) head.prepare(i, qkv + x, qkv + x + keys);
        head.decay[i] = a[t * heads + h] + dt_bias[h], head.beta[i] = b[t * heads + h];
      }
      head.gates(a_log[h]);

      for (int64_t j = blocks * part / head_parts; j < blocks * (part + 1) / head_parts; ++j) {
        const int64_t column = j * block, columns = std::min<int64_t>(block, dv - column);
        const Rows tile{head.tiles + column * dk, block};
        Rows from = tile;
        if (t0 == begin) {
          const bool fresh = !state || step.positions[begin] == 0;
          if (fresh || columns < block) std::fill_n(tile.at, dk * block, 0.0f);
          if (!fresh && columns < block) copy(slot(step.slots[s], column), tile, dk, columns);
          else if (!fresh) from = slot(step.slots[s], column);
        }
        Change change{};
        vf sk[vectors], sq[vectors];
        bool pending = false;           // `change` is not written yet: the next token's sweep does it
        for (int i = 0; i < count; ++i) {
          const int64_t t = t0 + i, save = state ? step.saves[t] : -1;
          const float *q = head.q + i * dk, *k = head.k + i * dk, *v = qkv + t * width + 2 * keys + h * dv + column;
          float *o = out + (t * heads + h) * dv + column, g = head.decay[i];
          if (pending) sweep<true, true>(from, tile, change, k, q, dk, sk, sq), from = tile;
          else sweep<false, true>(from, tile, change, k, q, dk, sk, sq);
          change.k = k, change.g = g;
          for (int c = 0; c < vectors; ++c) {
            const int64_t n = columns - c * lanes;
            const vf d = set1(head.beta[i]) * fma(set1(-g), sk[c], load_part(v + c * lanes, n));
            change.d[c] = select(abs(d) < set1(INFINITY), d, zero());
            store_part(o + c * lanes, fma(set1(head.qk[i]), change.d[c], set1(g) * sq[c]), n);
          }
          pending = save < 0 && i + 1 < count;
          if (pending || (save < 0 && t + 1 == end)) continue;
          const bool direct = save >= 0 && t + 1 == end && columns == block;
          sweep<true, false>(from, direct ? slot(save, column) : tile, change, k, q, dk, sk, sq);
          if (save >= 0 && !direct) copy(tile, slot(save, column), dk, columns);
          from = tile;
        }
      }
    }
  });
}

}  // namespace

KERNEL(gated_delta, scratch_of<0>) { run(call, 0, nullptr); }

KERNEL(slot_gated_delta, scratch_of<1>) { run(call, 1, call.data<float>(0)); }

}  // namespace lattice
