// Integer products of one block: V vectors of weight rows times T activation records, exact on every target.
//
//   sum[v][t](lane) = sum over the block's 32 k of w[row of lane][k] * q[t][k]     as a float (below 2^20: exact)
//
// A lane is a row: four bytes of k lie in each 32-bit lane of a weight vector (tiles.h), the same four bytes of an
// activation are broadcast to all lanes. This is the only file with integer-dot instructions:
//   AVX-512  vpdpbusd: four u8 x s8 products added to an i32 lane.
//   AVX2     vpmaddubsw: two u8 x s8 products in an i16. Nibbles are at most 15, so eight of them (a whole block) stay
//            within 8 * 2 * 15 * 127 = 30480 and are widened once. Bytes are |w| times q with the sign of w:
//            2 * 128 * 127 = 32512, widened every time.
//   scalar   what it means.
// bf16 weights have no place here: vdpbf16ps would round the activations too, so they are widened to floats.
#pragma once
#include <type_traits>

#include "quantise.h"

namespace lattice {

constexpr int vector_bytes = 4 * lanes;   // bytes of one weight vector that belong to `lanes` rows

#if defined(__AVX512F__)

LATTICE_INLINE __m512i four(const int8_t* q) {
  int32_t bytes;
  std::memcpy(&bytes, q, 4);
  return _mm512_set1_epi32(bytes);
}

// w[v]: the first of the block's 8 vectors, 64 bytes apart; bytes are value + 128.
template <int V, int T>
LATTICE_INLINE void dot_q8_0(const uint8_t* const (&w)[V], const Quantised* const (&x)[T], vf (&sum)[V][T]) {
  __m512i s[V][T];
  LATTICE_UNROLL
  for (int t = 0; t < T; t++)
    LATTICE_UNROLL
    for (int v = 0; v < V; v++) s[v][t] = _mm512_set1_epi32(x[t]->minus_128);
  LATTICE_UNROLL
  for (int j = 0; j < 8; j++) {
    __m512i bytes[V];
    LATTICE_UNROLL
    for (int v = 0; v < V; v++) bytes[v] = _mm512_loadu_si512(w[v] + 64 * j);
    LATTICE_UNROLL
    for (int t = 0; t < T; t++) {
      const __m512i q = four(x[t]->q + 4 * j);
      LATTICE_UNROLL
      for (int v = 0; v < V; v++) s[v][t] = _mm512_dpbusd_epi32(s[v][t], bytes[v], q);
    }
  }
  LATTICE_UNROLL
  for (int v = 0; v < V; v++)
    LATTICE_UNROLL
    for (int t = 0; t < T; t++) sum[v][t] = {_mm512_cvtepi32_ps(s[v][t])};
}

// w[v]: the first of the block's 4 vectors of nibbles, 64 bytes apart.
template <int V, int T>
LATTICE_INLINE void dot_q4_1(const uint8_t* const (&w)[V], const Quantised* const (&x)[T], vf (&sum)[V][T]) {
  const __m512i mask = _mm512_set1_epi8(15);
  __m512i s[V][T];
  LATTICE_UNROLL
  for (int v = 0; v < V; v++)
    LATTICE_UNROLL
    for (int t = 0; t < T; t++) s[v][t] = _mm512_setzero_si512();
  LATTICE_UNROLL
  for (int j = 0; j < 4; j++) {
    __m512i low[V], high[V];
    LATTICE_UNROLL
    for (int v = 0; v < V; v++) {
      const __m512i both = _mm512_loadu_si512(w[v] + 64 * j);
      low[v] = _mm512_and_si512(both, mask);
      high[v] = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
    }
    LATTICE_UNROLL
    for (int t = 0; t < T; t++) {
      const __m512i a = four(x[t]->q + 4 * j), b = four(x[t]->q + 16 + 4 * j);
      LATTICE_UNROLL
      for (int v = 0; v < V; v++)
        s[v][t] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(s[v][t], low[v], a), high[v], b);
    }
  }
  LATTICE_UNROLL
  for (int v = 0; v < V; v++)
    LATTICE_UNROLL
    for (int t = 0; t < T; t++) sum[v][t] = {_mm512_cvtepi32_ps(s[v][t])};
}

#elif defined(__AVX2__)

LATTICE_INLINE __m256i four(const int8_t* q) {
  int32_t bytes;
  std::memcpy(&bytes, q, 4);
  return _mm256_set1_epi32(bytes);
}
// Compilers turn a chain of integer additions into a tree, which needs more than 16 registers; this hides the chain.
LATTICE_INLINE __m256i keep(__m256i x) {
#if defined(__GNUC__)
  asm("" : "+x"(x));
#endif
  return x;
}
LATTICE_INLINE __m256i load_bytes(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }

template <int V, int T>
LATTICE_INLINE void dot_q8_0(const uint8_t* const (&w)[V], const Quantised* const (&x)[T], vf (&sum)[V][T]) {
  const __m256i offset = _mm256_set1_epi8(-128), ones = _mm256_set1_epi16(1);
  __m256i s[V][T];
  LATTICE_UNROLL
  for (int j = 0; j < 8; j++)
    LATTICE_UNROLL
    for (int v = 0; v < V; v++) {
      const __m256i value = _mm256_xor_si256(load_bytes(w[v] + 64 * j), offset), magnitude = _mm256_abs_epi8(value);
      LATTICE_UNROLL
      for (int t = 0; t < T; t++) {
        const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(four(x[t]->q + 4 * j), value));
        const __m256i fours = _mm256_madd_epi16(pairs, ones);
        s[v][t] = keep(j ? _mm256_add_epi32(s[v][t], fours) : fours);
      }
    }
  LATTICE_UNROLL
  for (int v = 0; v < V; v++)
    LATTICE_UNROLL
    for (int t = 0; t < T; t++) sum[v][t] = {_mm256_cvtepi32_ps(s[v][t])};
}

template <int V, int T>
LATTICE_INLINE void dot_q4_1(const uint8_t* const (&w)[V], const Quantised* const (&x)[T], vf (&sum)[V][T]) {
  const __m256i mask = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  __m256i s[V][T];
  LATTICE_UNROLL
  for (int j = 0; j < 4; j++) {
    __m256i low[V], high[V];
    LATTICE_UNROLL
    for (int v = 0; v < V; v++) {
      const __m256i both = load_bytes(w[v] + 64 * j);
      low[v] = _mm256_and_si256(both, mask);
      high[v] = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
    }
    LATTICE_UNROLL
    for (int t = 0; t < T; t++) {
      const __m256i a = four(x[t]->q + 4 * j), b = four(x[t]->q + 16 + 4 * j);
      LATTICE_UNROLL
      for (int v = 0; v < V; v++) {
        const __m256i pairs = _mm256_maddubs_epi16(low[v], a);
        s[v][t] = keep(j ? _mm256_add_epi16(s[v][t], pairs) : pairs);
        s[v][t] = keep(_mm256_add_epi16(s[v][t], _mm256_maddubs_epi16(high[v], b)));
      }
    }
  }
  LATTICE_UNROLL
  for (int v = 0; v < V; v++)
    LATTICE_UNROLL
    for (int t = 0; t < T; t++) sum[v][t] = {_mm256_cvtepi32_ps(_mm256_madd_epi16(s[v][t], ones))};
}

#elif defined(__ARM_FEATURE_DOTPROD)

// Sixteen bytes of activations in one register serve four vectors of weights: an instruction names the lane it takes.

template <int V, int T>
LATTICE_INLINE void dot_q8_0(const uint8_t* const (&w)[V], const Quantised* const (&x)[T], vf (&sum)[V][T]) {
  const uint8x16_t offset = vdupq_n_u8(128);
  int32x4_t s[2 * V][T];
  LATTICE_UNROLL
  for (int v = 0; v < 2 * V; v++)
    LATTICE_UNROLL
    for (int t = 0; t < T; t++) s[v][t] = vdupq_n_s32(0);
  LATTICE_UNROLL
  for (int half = 0; half < 2; half++) {
    int8x16_t q[T];
    LATTICE_UNROLL
    for (int t = 0; t < T; t++) q[t] = vld1q_s8(x[t]->q + 16 * half);
    auto step = [&](auto lane) __attribute__((always_inline)) {
      LATTICE_UNROLL
      for (int v = 0; v < 2 * V; v++) {
        const int8x16_t value = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(w[v / 2] + 64 * (4 * half + lane) + 16 * (v % 2)), offset));
        LATTICE_UNROLL
        for (int t = 0; t < T; t++) s[v][t] = vdotq_laneq_s32(s[v][t], value, q[t], lane);
      }
    };
    step(std::integral_constant<int, 0>()), step(std::integral_constant<int, 1>());
    step(std::integral_constant<int, 2>()), step(std::integral_constant<int, 3>());
  }
  LATTICE_UNROLL
  for (int v = 0; v < V; v++)
    LATTICE_UNROLL
    for (int t = 0; t < T; t++) sum[v][t] = {vcvtq_f32_s32(s[2 * v][t]), vcvtq_f32_s32(s[2 * v + 1][t])};
}

template <int V, int T>
LATTICE_INLINE void dot_q4_1(const uint8_t* const (&w)[V], const Quantised* const (&x)[T], vf (&sum)[V][T]) {
  int32x4_t s[2 * V][T];
  LATTICE_UNROLL
  for (int v = 0; v < 2 * V; v++)
    LATTICE_UNROLL
    for (int t = 0; t < T; t++) s[v][t] = vdupq_n_s32(0);
  int8x16_t a[T], b[T];
  LATTICE_UNROLL
  for (int t = 0; t < T; t++) a[t] = vld1q_s8(x[t]->q), b[t] = vld1q_s8(x[t]->q + 16);
  auto step = [&](auto lane) __attribute__((always_inline)) {
    LATTICE_UNROLL
    for (int v = 0; v < 2 * V; v++) {
      const uint8x16_t both = vld1q_u8(w[v / 2] + 64 * lane + 16 * (v % 2));
      const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15))), high = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
      LATTICE_UNROLL
      for (int t = 0; t < T; t++) s[v][t] = vdotq_laneq_s32(vdotq_laneq_s32(s[v][t], low, a[t], lane), high, b[t], lane);
    }
  };
  step(std::integral_constant<int, 0>()), step(std::integral_constant<int, 1>());
  step(std::integral_constant<int, 2>()), step(std::integral_constant<int, 3>());
  LATTICE_UNROLL
  for (int v = 0; v < V; v++)
    LATTICE_UNROLL
    for (int t = 0; t < T; t++) sum[v][t] = {vcvtq_f32_s32(s[2 * v][t]), vcvtq_f32_s32(s[2 * v + 1][t])};
}

#else

template <int V, int T>
inline void dot_q8_0(const uint8_t* const (&w)[V], const Quantised* const (&x)[T], vf (&sum)[V][T]) {
  for (int v = 0; v < V; v++)
    for (int t = 0; t < T; t++)
      for (int r = 0; r < lanes; r++) {
        int32_t s = x[t]->minus_128;
        for (int i = 0; i < 32; i++) s += w[v][64 * (i / 4) + 4 * r + i % 4] * x[t]->q[i];
        sum[v][t].v[r] = float(s);
      }
}

template <int V, int T>
inline void dot_q4_1(const uint8_t* const (&w)[V], const Quantised* const (&x)[T], vf (&sum)[V][T]) {
  for (int v = 0; v < V; v++)
    for (int t = 0; t < T; t++)
      for (int r = 0; r < lanes; r++) {
        int32_t s = 0;
        for (int i = 0; i < 16; i++) {
          const int both = w[v][64 * (i / 4) + 4 * r + i % 4];
          s += (both & 15) * x[t]->q[i] + (both >> 4) * x[t]->q[i + 16];
        }
        sum[v][t].v[r] = float(s);
      }
}

#endif

}  // namespace lattice
