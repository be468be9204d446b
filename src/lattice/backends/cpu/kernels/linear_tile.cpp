// Groups of weight panels times tiles of tokens: the products behind linear.cpp, for every weight dtype.
//
// Shapes are chosen by registers: 16 (AVX2) or 32 (AVX-512). Floats keep one sum per vector and token, 12 (or 24) in
// all, with the weights loaded once per k and an activation broadcast per token; with few tokens more panels run side by
// side, so that there are always enough independent chains to hide the latency of fma. Blocks need an integer and a
// float sum per vector and token; a whole panel at once shares each broadcast between its vectors, which is worth more
// than keeping the float sums in registers (AVX2: 30 instead of 26 products a cycle).
#include "linear_tile.h"

#include <type_traits>
#include <utility>

#include "dot.h"
#include "linear_rows.h"
#include "tiles.h"

namespace lattice {
namespace {

constexpr int panel_vectors = panel_rows / lanes;   // vectors that hold a panel's 16 rows: 1 or 2
constexpr bool wide = lanes == 16;                  // AVX-512

// Blocks are fetched this many bytes before they are used. The processor's own prefetching stops at page ends and lets
// arithmetic and memory take turns; with this one token reads a third more bytes a second, two to four tokens a half.
constexpr int ahead = 2048;

// ---- plain weights, float activations ----------------------------------------------------------------------------

template <DType D> LATTICE_INLINE vf weight(const uint8_t* p, int e) {
  if constexpr (D == DType::f32) return load(reinterpret_cast<const float*>(p));
  else if constexpr (D == DType::f16) return load_f16(reinterpret_cast<const uint16_t*>(p));
  else return load_bf16_pair(reinterpret_cast<const uint16_t*>(p), e);   // k + e: they share a 32-bit lane
}

template <DType D, int P, int T> void multiply_floats(const Product& a) {
  constexpr int V = P * panel_vectors;
  constexpr int pair = D == DType::bf16 ? 2 : 1;                          // k in one vector
  constexpr int bytes = D == DType::f16 ? 2 * panel_rows : 4 * panel_rows;   // of one vector of 16 rows
  const int64_t panel = panel_bytes(D, a.k);
  const uint8_t* w[P];
  const float* x[T];
  LATTICE_UNROLL
  for (int p = 0; p < P; p++) w[p] = a.panel + p * panel;
  LATTICE_UNROLL
  for (int t = 0; t < T; t++) x[t] = reinterpret_cast<const float*>(a.x + t * a.x_stride);
  vf sum[V][T];
  LATTICE_UNROLL
  for (int v = 0; v < V; v++)
    LATTICE_UNROLL
    for (int t = 0; t < T; t++) sum[v][t] = zero();
  auto step = [&](int64_t i, int e) __attribute__((always_inline)) {
    vf value[V];
    LATTICE_UNROLL
    for (int v = 0; v < V; v++)
      value[v] = weight<D>(w[v / panel_vectors] + i / pair * bytes + v % panel_vectors * (bytes / panel_vectors), e);
    LATTICE_UNROLL
    for (int t = 0; t < T; t++) {
      const vf y = set1(x[t][i + e]);
      LATTICE_UNROLL
      for (int v = 0; v < V; v++) sum[v][t] = fma(value[v], y, sum[v][t]);
    }
  };
  int64_t i = 0;
  for (; i + 2 <= a.k; i += 2) {
    step(i, 0);
    if constexpr (pair == 2) step(i, 1);
    else step(i + 1, 0);
  }
  if (i < a.k) step(i, 0);
  LATTICE_UNROLL
  for (int t = 0; t < T; t++)
    LATTICE_UNROLL
    for (int v = 0; v < V; v++) store(a.out + t * a.out_stride + v * lanes, sum[v][t]);
}

// ---- block weights, quantised activations ------------------------------------------------------------------------

// Scale and minimum of the rows of one vector for group g of a tile; p: the tile's head, moved to the vector's rows.
template <DType D> LATTICE_INLINE vf scale_of(const uint8_t* p, const int8_t* factors, int g) {
  const auto* halves = reinterpret_cast<const uint16_t*>(p);
  if constexpr (format(D).super()) return load_f16(halves) * load_i8(factors + panel_rows * g);
  else return load_f16(halves + panel_rows * g);
}
template <DType D> LATTICE_INLINE vf minimum_of(const uint8_t* p, const int8_t* factors, int g) {
  const auto* halves = reinterpret_cast<const uint16_t*>(p);
  if constexpr (format(D).super()) return load_f16(halves + panel_rows) * load_i8(factors + panel_rows * (8 + g));
  else return load_f16(halves + panel_rows * (2 + g));
}

// Per group: y += integer * (w_scale * d), and where the format has a minimum: y += w_minimum * (d * sum of q).
// A loop step takes one record, which is one group of 32 or two of 16.
// AVX2 has too few registers for integer and float sums of three tokens: from there on the float sums stay in `out`.
template <DType D, int P, int T> void multiply_blocks(const Product& a) {
  constexpr Format f = format(D);
  constexpr int V = P * panel_vectors, groups = record_values / f.group;
  constexpr int records = f.tile_values() / record_values, bytes = groups * f.group_bytes();   // of a tile, a record
  constexpr bool in_memory = !wide && V * T > 4;
  const int64_t panel = panel_bytes(D, a.k);
  const Quantised* x[T];
  vf sum[V][T];
  LATTICE_UNROLL
  for (int t = 0; t < T; t++) x[t] = reinterpret_cast<const Quantised*>(a.x + t * a.x_stride);
  LATTICE_UNROLL
  for (int t = 0; t < T; t++)
    LATTICE_UNROLL
    for (int v = 0; v < V; v++) {
      if constexpr (in_memory) store(a.out + t * a.out_stride + v * lanes, zero());
      else sum[v][t] = zero();
    }
  for (int64_t b = 0; b < a.k / record_values; b++) {
    const uint8_t *head[V], *vectors[V];
    const int8_t* factors[V];
    LATTICE_UNROLL
    for (int v = 0; v < V; v++) {
      const uint8_t* tile = a.panel + v / panel_vectors * panel + b / records * f.tile_bytes();
      head[v] = tile + 2 * (v % panel_vectors * lanes);
      factors[v] = reinterpret_cast<const int8_t*>(tile + 64) + v % panel_vectors * lanes;
      vectors[v] = tile + f.head() + b % records * bytes + v % panel_vectors * vector_bytes;
      if (v % panel_vectors == 0)
        for (int line = 0; line < bytes + f.head() / records; line += 64) prefetch(vectors[v] + ahead + line);
    }
    repeat<groups>([&](auto half) __attribute__((always_inline)) {
      const int group = int(b % records) * groups + half;
      vf whole[V][T], scale[V], minimum[V];
      dot<f.bits, f.offset, groups == 1 ? -1 : int(half), V, T>(vectors, x, whole);
      LATTICE_UNROLL
      for (int v = 0; v < V; v++) {
        scale[v] = scale_of<D>(head[v], factors[v], group);
        if constexpr (f.minimum) minimum[v] = minimum_of<D>(head[v], factors[v], group);
        vectors[v] += f.group_bytes();
      }
      LATTICE_UNROLL
      for (int t = 0; t < T; t++)
        LATTICE_UNROLL
        for (int v = 0; v < V; v++) {
          [[maybe_unused]] float* place = a.out + t * a.out_stride + v * lanes;
          vf y;
          if constexpr (in_memory) y = load(place);
          else y = sum[v][t];
          y = fma(whole[v][t], scale[v] * set1(x[t]->d), y);
          if constexpr (f.minimum) y = fma(minimum[v], set1(x[t]->sum), y);
          if constexpr (in_memory) store(place, y);
          else sum[v][t] = y;
        }
    });
    LATTICE_UNROLL
    for (int t = 0; t < T; t++) x[t]++;
  }
  if constexpr (!in_memory)
    LATTICE_UNROLL
    for (int t = 0; t < T; t++)
      LATTICE_UNROLL
      for (int v = 0; v < V; v++) store(a.out + t * a.out_stride + v * lanes, sum[v][t]);
}

// ---- which kernel ------------------------------------------------------------------------------------------------

// Most tokens of one call, and panels side by side at T tokens.
template <DType D> constexpr int tokens_limit() {
  if (is_block(D) || (D == DType::row8 && registers && !wide)) return record_tokens;
  return wide ? 12 : registers ? 6 : 2;                    // without registers to fill: little code instead
}
template <DType D> constexpr int panels_for(int T) {
  if (is_block(D)) return wide ? 2 : 1;
  if (!registers) return 1;
  if (wide) return T <= 2 ? 8 : T <= 4 ? 4 : 2;
  if (D == DType::bf16) return T == 1 ? 2 : 1;             // takes registers to unpack
  return T == 1 ? 4 : T == 2 ? 2 : 1;
}
template <DType D> constexpr bool fits() {
  for (int T = 1; T <= tokens_limit<D>(); T++)
    if (panels_for<D>(T) * panel_rows * T > group_values) return false;
  return group_tokens % tokens_limit<D>() == 0;
}
static_assert(fits<DType::q8_0>());   // as every format of blocks
static_assert(fits<DType::bf16>() && fits<DType::f16>() && fits<DType::f32>());

using Kernel = void (*)(const Product&);
template <DType D, int P, int T> constexpr Kernel kernel_of() {
  if constexpr (is_block(D)) return multiply_blocks<D, P, T>;
  else if constexpr (is_row(D)) return multiply_rows<D, P, T>;
  else return multiply_floats<D, P, T>;
}
struct Row { Kernel best, single; };
template <DType D, int... I> const Row& pick(int tokens, std::integer_sequence<int, I...>) {
  static constexpr Row rows[] = {{kernel_of<D, panels_for<D>(I + 1), I + 1>(), kernel_of<D, 1, I + 1>()}...};
  return rows[tokens - 1];
}
template <DType D> void run(int panels, int tokens, const Product& a) {
  const Row& row = pick<D>(tokens, std::make_integer_sequence<int, tokens_limit<D>()>());
  (panels == 1 ? row.single : row.best)(a);
}

// Call body with the dtype as a constant.
template <class Body> auto with(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::q8_0: return body(std::integral_constant<DType, DType::q8_0>());
    case DType::q4_0: return body(std::integral_constant<DType, DType::q4_0>());
    case DType::q4_1: return body(std::integral_constant<DType, DType::q4_1>());
    case DType::q5_0: return body(std::integral_constant<DType, DType::q5_0>());
    case DType::q5_1: return body(std::integral_constant<DType, DType::q5_1>());
    case DType::q4_k: return body(std::integral_constant<DType, DType::q4_k>());
    case DType::q5_k: return body(std::integral_constant<DType, DType::q5_k>());
    case DType::q6_k: return body(std::integral_constant<DType, DType::q6_k>());
    case DType::row8: return body(std::integral_constant<DType, DType::row8>());
    case DType::row16: return body(std::integral_constant<DType, DType::row16>());
    case DType::bf16: return body(std::integral_constant<DType, DType::bf16>());
    case DType::f16: return body(std::integral_constant<DType, DType::f16>());
    default: return body(std::integral_constant<DType, DType::f32>());
  }
}

}  // namespace

Form form_of(DType weights) {
  return is_block(weights) ? Form::records : weights == DType::row8 ? Form::row8 : weights == DType::row16 ? Form::row16 : Form::floats;
}
int64_t form_bytes(Form form, int64_t k) {
  if (form == Form::row8 || form == Form::row16) return row_stride(form == Form::row8 ? DType::row8 : DType::row16, k);
  return form == Form::records ? k / record_values * int64_t(sizeof(Quantised)) : k * 4;
}
int most_tokens(DType weights) {
  return with(weights, [](auto d) { return tokens_limit<d.value>(); });
}
int most_panels(DType weights, int tokens) {
  return with(weights, [=](auto d) { return panels_for<d.value>(tokens); });
}
void multiply(DType weights, int panels, int tokens, const Product& product) {
  with(weights, [&](auto d) { run<d.value>(panels, tokens, product); });
}

}  // namespace lattice
