// The engine of linear and project, and the op linear.
//
// 1. x is brought into the forms that the weights need (normalised, quantised), once for all of them. With a few tokens
//    every thread does so for itself, which is cheaper than a barrier; the bits are the same.
// 2. Panels of weights times tiles of tokens, from the shared counter. A range holds a few panels and a block of tokens
//    whose activations fit in L2: inside it a panel stays in L1 or L2 while the tokens pass, so a prompt reads every
//    weight once per block and a decode step once.
// 3. Bias, activation, gate and residual are applied to a tile just computed, on its way from L1 to y.
#include "linear.h"

#include <algorithm>

#include "math.h"
#include "norm.h"
#include "quantise.h"
#include "rows.h"
#include "tiles.h"

namespace lattice {
namespace {

constexpr int64_t private_tokens = 4, private_values = 8192;   // up to here x is prepared by every thread for itself
constexpr int64_t block_bytes = 256 << 10;                     // activations of a block of tokens: half of a small L2
constexpr int64_t range_bytes = 256 << 10;                     // weights of a range of panels in decode
constexpr int forms = 4;

// ---- 1. forms of x -----------------------------------------------------------------------------------------------

bool needs(const Projection& p, Form form) {
  for (int i = 0; i < p.outputs; i++)
    if (p.output[i].form() == form) return true;
  return false;
}

// Where the forms lie for `tokens` tokens; x itself serves as floats when nothing changes it.
struct Forms {
  int64_t offset[forms] = {}, stride[forms] = {}, bytes = 0;
  bool copied[forms] = {};

  Forms(const Projection& p, int64_t tokens) {
    for (int f = 0; f < forms; f++) {
      stride[f] = form_bytes(Form(f), p.k);
      copied[f] = needs(p, Form(f)) && (Form(f) != Form::floats || p.norm != Norm::none);
      offset[f] = bytes;
      if (copied[f]) bytes += round_up(stride[f] * tokens, 64);
    }
  }
  bool any() const { return bytes > 0; }
};

int64_t row_scratch(const Projection& p) { return round_up(p.k * 4, 64); }   // one normalised row
int64_t thread_scratch(const Projection& p) { return row_scratch(p) + Forms(p, private_tokens).bytes; }

void prepare(const Projection& p, const Forms& f, int64_t token, uint8_t* base, float* row) {
  const float* x = p.x + token * p.k;
  if (p.norm != Norm::none) {
    if (f.copied[int(Form::floats)]) row = reinterpret_cast<float*>(base + token * f.stride[int(Form::floats)]);
    if (p.norm == Norm::layer) layer_norm_row(x, p.norm_weight, p.norm_bias, p.k, p.eps, row);
    else
      for (int64_t i = 0; i < p.k; i += p.norm_group) rms_norm_row(x + i, p.norm_weight, p.norm_group, p.eps, row + i);
    x = row;
  }
  auto to = [&](Form form) { return base + f.offset[int(form)] + token * f.stride[int(form)]; };
  if (f.copied[int(Form::records)]) quantise_row(x, p.k, reinterpret_cast<Quantised*>(to(Form::records)));
  if (f.copied[int(Form::row8)]) quantise_row8(x, p.k, to(Form::row8));
  if (f.copied[int(Form::row16)]) quantise_row16(x, p.k, to(Form::row16));
}

// ---- 3. what follows a product -----------------------------------------------------------------------------------

struct Tile {
  int64_t row, token;        // first row of the weight and first token
  int panels, tokens;
  float *out, *up;           // [tokens][16 * panels]; up only when gated
};

// y = f(out + bias) [* (up + bias_up)] [+ residual] of one tile.
void finish(const Projection& p, const Output& output, const Tile& tile) {
  const int width = panel_rows * tile.panels;
  const int64_t n = output.n();
  const int used = int(std::min<int64_t>(width, n - tile.row));
  const float* bias = output.bias;
  const float* up_bias = p.output[1].bias;
  with_activation(p.activation, [&](auto f) {
    for (int t = 0; t < tile.tokens; t++) {
      const int64_t at = (tile.token + t) * n + tile.row;
      auto value = [&](int i, auto part) {
        vf v = load(tile.out + t * width + i);
        if (bias) v = v + part(bias + tile.row + i);
        v = f(v);
        if (p.gated) {
          vf up = load(tile.up + t * width + i);
          if (up_bias) up = up + part(up_bias + tile.row + i);
          v = v * up;
        }
        return p.residual ? v + part(p.residual + at + i) : v;
      };
      int i = 0;
      for (; i + lanes <= used; i += lanes) store(output.y + at + i, value(i, [](const float* q) { return load(q); }));
      const int rest = used - i;
      if (rest) store_n(output.y + at + i, value(i, [=](const float* q) { return load_n(q, rest); }), rest);
    }
  });
}

// ---- 2. panels times tokens --------------------------------------------------------------------------------------

struct Source { const uint8_t* x[forms]; int64_t stride[forms]; };

// Panels [begin, end) of one output (of both, if gated) for tokens [first, last).
void multiply_range(const Projection& p, const Source& source, int which, int64_t begin, int64_t end, int64_t first,
                    int64_t last) {
  const Output& output = p.output[which];
  const int pair = p.gated ? 2 : 1;
  int limit = most_tokens(output.weight->dtype);
  if (p.gated) limit = std::min(limit, most_tokens(p.output[1].weight->dtype));
  const int64_t tokens = last - first, tiles = (tokens + limit - 1) / limit;
  const int largest = int((tokens + tiles - 1) / tiles);
  int side = most_panels(output.weight->dtype, largest);   // panels side by side
  if (p.gated && side != most_panels(p.output[1].weight->dtype, largest)) side = 1;
  alignas(64) float out[2][group_values];
  for (int64_t panel = begin; panel < end;) {
    const int panels = panel + side <= end ? side : 1;
    for (int64_t i = 0; i < tiles; i++) {
      const int64_t from = first + tokens * i / tiles, to = first + tokens * (i + 1) / tiles;
      const Tile tile{panel * panel_rows, from, panels, int(to - from), out[0], out[1]};
      for (int j = 0; j < pair; j++) {
        const Tensor& w = *p.output[which + j].weight;
        const int form = int(p.output[which + j].form());
        const auto* weights = static_cast<const uint8_t*>(w.data) + panel * panel_bytes(w.dtype, p.k);
        const uint8_t* x = source.x[form] + from * source.stride[form];
        multiply(w.dtype, panels, tile.tokens, {weights, x, source.stride[form], p.k, out[j], panel_rows * panels});
      }
      finish(p, output, tile);
    }
    panel += panels;
  }
}

int64_t panels_of(const Output& output) { return round_up(output.n(), panel_rows) / panel_rows; }

// How the work is cut: ranges of `grain` panels times blocks of `block` tokens, the panels of one block first.
struct Cut { int64_t grain[most_outputs], ranges[most_outputs], all_ranges, block, blocks; };

Cut cut(const Projection& p, int threads) {
  Cut c{};
  const int outputs = p.gated ? 1 : p.outputs;
  int64_t all_panels = 0, token_bytes = 0;
  for (int i = 0; i < outputs; i++) {
    all_panels += panels_of(p.output[i]);
    token_bytes = std::max(token_bytes, form_bytes(p.output[i].form(), p.k));
  }
  const int64_t wanted = threads == 1 ? 1 : 8 * threads;   // ranges, so that the last ones level the threads
  const int64_t unit = group_tokens;                       // whole tiles of tokens
  c.block = std::max(unit, block_bytes / token_bytes / unit * unit);
  while (c.block > unit && all_panels * ((p.tokens + c.block - 1) / c.block) < wanted)
    c.block = std::max(unit, c.block / 2 / unit * unit);
  c.blocks = (p.tokens + c.block - 1) / c.block;
  for (int i = 0; i < outputs; i++) {
    const Tensor& w = *p.output[i].weight;
    const int64_t tokens = std::min(p.tokens, c.block);
    const int side = most_panels(w.dtype, int(std::min<int64_t>(tokens, most_tokens(w.dtype))));
    int64_t grain = std::min(all_panels * c.blocks / wanted, range_bytes / panel_bytes(w.dtype, p.k));
    c.grain[i] = std::max<int64_t>(side, grain / side * side);
    c.ranges[i] = (panels_of(p.output[i]) + c.grain[i] - 1) / c.grain[i];
    c.all_ranges += c.ranges[i];
  }
  return c;
}

}  // namespace

int64_t projection_scratch(const Projection& p, int threads) {
  return Forms(p, p.tokens).bytes + threads * thread_scratch(p);
}

void run_projection(Call& call, const Projection& p) {
  if (p.tokens == 0) return;
  uint8_t* own = call.scratch + call.thread * thread_scratch(p);
  float* row = reinterpret_cast<float*>(own);
  const bool alone = p.tokens <= private_tokens && p.tokens * p.k <= private_values;
  const Forms f(p, alone ? private_tokens : p.tokens);
  uint8_t* base = alone ? own + row_scratch(p) : call.scratch + call.threads * thread_scratch(p);
  if (f.any()) {
    if (alone)
      for (int64_t t = 0; t < p.tokens; t++) prepare(p, f, t, base, row);
    else {
      call.tiles(p.tokens, 4, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; t++) prepare(p, f, t, base, row);
      });
      call.barrier();
    }
  }
  Source source;
  for (int i = 0; i < forms; i++) {
    source.x[i] = f.copied[i] ? base + f.offset[i] : reinterpret_cast<const uint8_t*>(p.x);
    source.stride[i] = f.stride[i];
  }
  const Cut c = cut(p, call.threads);
  call.tiles(c.all_ranges * c.blocks, 1, [&](int64_t item, int64_t) {
    const int64_t first = item / c.all_ranges * c.block;
    int64_t range = item % c.all_ranges;
    int which = 0;
    while (range >= c.ranges[which]) range -= c.ranges[which++];
    const int64_t begin = range * c.grain[which], end = std::min(begin + c.grain[which], panels_of(p.output[which]));
    multiply_range(p, source, which, begin, end, first, std::min(first + c.block, p.tokens));
  });
}

// ---- linear(x, w, b?) -> y ---------------------------------------------------------------------------------------

static Projection read_linear(const Record& record, int64_t rows) {
  const Tensor* t = record.tensor;
  Projection p;
  p.x = static_cast<const float*>(t[0].data);
  p.k = t[1].shape[1];
  p.tokens = rows;
  for (int d = 1; d < t[0].ndim - 1; d++) p.tokens *= t[0].shape[d];
  p.outputs = 1;
  p.output[0] = {&t[1], static_cast<const float*>(t[2].data), static_cast<float*>(t[3].data)};
  return p;
}

static int64_t linear_scratch(const Record& record, int threads) {
  return projection_scratch(read_linear(record, record.tensor[0].shape[0]), threads);
}

KERNEL(linear, linear_scratch) { run_projection(call, read_linear(call.record, call.rows(0))); }

}  // namespace lattice
