// dot.h on AVX2. With AVX-VNNI as on AVX-512; else vpmaddubsw: two u8 x s8 products added in an i16, which saturates: 32767 holds eight times two
// products of nibbles (8 * 2 * 15 * 127 = 30480), four of 5 bits (31496), two of 6 bits (32004). Before it could, the
// pairs are widened into an i32. Whole bytes are |w| times q with the sign of w: 2 * 128 * 127 = 32512, so widened at
// once.
#pragma once
#include "quantise.h"

namespace lattice {

constexpr int record_tokens = 4;   // 8 integer sums of a panel in 16 registers

struct Bytes { __m256i v; };
LATTICE_INLINE Bytes load_bytes(const uint8_t* p) { return {_mm256_loadu_si256((const __m256i*)p)}; }
template <int m> LATTICE_INLINE Bytes only(Bytes a) { return {_mm256_and_si256(a.v, _mm256_set1_epi8(m))}; }
LATTICE_INLINE Bytes operator|(Bytes a, Bytes b) { return {_mm256_or_si256(a.v, b.v)}; }
template <int n> LATTICE_INLINE Bytes down(Bytes a) { return n ? Bytes{_mm256_srli_epi16(a.v, n)} : a; }

struct Whole { __m256i v; };
LATTICE_INLINE Whole whole(int32_t i) { return {_mm256_set1_epi32(i)}; }
template <int a, int b> LATTICE_INLINE Whole mix(const int16_t (&half)[2]) {
  int32_t both;
  std::memcpy(&both, half, 4);
  return {_mm256_madd_epi16(_mm256_set1_epi32(both), _mm256_set1_epi32(int32_t(uint32_t(b) << 16 | uint16_t(a))))};
}

struct Four { __m256i v; };
LATTICE_INLINE const int8_t* values(const int8_t (&q)[32]) { return q; }
template <int j> LATTICE_INLINE Four four(const int8_t* q) {
  int32_t bytes;
  std::memcpy(&bytes, q + 4 * j, 4);
  return {_mm256_set1_epi32(bytes)};
}

// Compilers turn a chain of integer additions into a tree, which needs more than 16 registers; this hides the chain.
LATTICE_INLINE __m256i keep(__m256i x) {
  asm("" : "+x"(x));
  return x;
}

// sum + four products u8 x s8, sum + two products of 16 bits, sum + other or sum - other (sign -1), in each lane.
LATTICE_INLINE Whole add_signed(Whole sum, Whole other, int32_t sign) {
  const __m256i s = _mm256_set1_epi32(sign);
  return {_mm256_add_epi32(sum.v, _mm256_sub_epi32(_mm256_xor_si256(other.v, s), s))};
}
LATTICE_INLINE Whole load_whole(const int32_t* p) { return {_mm256_loadu_si256((const __m256i*)p)}; }
LATTICE_INLINE vf floats(Whole a) { return {_mm256_cvtepi32_ps(a.v)}; }

#if defined(__AVXVNNI__)
#define LATTICE_VNNI 1
LATTICE_INLINE Whole add_fours(Whole sum, __m256i u, __m256i s) { return {_mm256_dpbusd_avx_epi32(sum.v, u, s)}; }
LATTICE_INLINE Whole add_pairs(Whole sum, __m256i a, __m256i b) { return {_mm256_dpwssd_avx_epi32(sum.v, a, b)}; }
#else
LATTICE_INLINE __m256i widen_pairs(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
LATTICE_INLINE Whole add_fours(Whole sum, __m256i u, __m256i s) {
  return {keep(_mm256_add_epi32(sum.v, widen_pairs(_mm256_maddubs_epi16(u, s))))};
}
LATTICE_INLINE Whole add_pairs(Whole sum, __m256i a, __m256i b) {
  return {keep(_mm256_add_epi32(sum.v, _mm256_madd_epi16(a, b)))};
}

template <int bits> struct Sum {
  static constexpr int run = bits == 4 ? 8 : bits == 5 ? 4 : 2;   // products of one chain of pairs
  __m256i pairs, sum;

  static LATTICE_INLINE Bytes prepare(Bytes w) { return w; }
  LATTICE_INLINE void start(Whole) {}
  template <int i> LATTICE_INLINE void add(Bytes w, Four q) {
    const __m256i product = _mm256_maddubs_epi16(w.v, q.v);
    pairs = keep(i % run ? _mm256_add_epi16(pairs, product) : product);
    if constexpr (i % run == run - 1) {
      const __m256i fours = widen_pairs(pairs);
      sum = i < run ? fours : keep(_mm256_add_epi32(sum, fours));
    }
  }
  LATTICE_INLINE vf total(Whole seed) const { return floats({_mm256_add_epi32(sum, seed.v)}); }
};

template <> struct Sum<8> {
  __m256i sum;

  struct Weight { __m256i value, magnitude; };
  static LATTICE_INLINE Weight prepare(Bytes w) {
    const __m256i value = _mm256_xor_si256(w.v, _mm256_set1_epi8(-128));
    return {value, _mm256_abs_epi8(value)};
  }
  LATTICE_INLINE void start(Whole) {}
  template <int i> LATTICE_INLINE void add(Weight w, Four q) {
    const __m256i fours = widen_pairs(_mm256_maddubs_epi16(w.magnitude, _mm256_sign_epi8(q.v, w.value)));
    sum = keep(i ? _mm256_add_epi32(sum, fours) : fours);
  }
  LATTICE_INLINE vf total(Whole) const { return floats({sum}); }
};
#endif

}  // namespace lattice
