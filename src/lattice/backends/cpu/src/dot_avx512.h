// dot.h on AVX-512 with VNNI. vpdpbusd: four u8 x s8 products added to an i32 lane, nothing ever saturates.
#pragma once
#include "quantise.h"

namespace lattice {

constexpr int record_tokens = 6;   // 12 integer and 12 float sums of two panels in 32 registers

struct Bytes { __m512i v; };
LATTICE_INLINE Bytes load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
template <int m> LATTICE_INLINE Bytes only(Bytes a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(m))}; }
LATTICE_INLINE Bytes operator|(Bytes a, Bytes b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int n> LATTICE_INLINE Bytes down(Bytes a) { return n ? Bytes{_mm512_srli_epi16(a.v, n)} : a; }

struct Whole { __m512i v; };
LATTICE_INLINE Whole whole(int32_t i) { return {_mm512_set1_epi32(i)}; }
template <int a, int b> LATTICE_INLINE Whole mix(const int16_t (&half)[2]) {
  int32_t both;
  std::memcpy(&both, half, 4);
  return {_mm512_madd_epi16(_mm512_set1_epi32(both), _mm512_set1_epi32(int32_t(uint32_t(b) << 16 | uint16_t(a))))};
}

struct Four { __m512i v; };
LATTICE_INLINE const int8_t* values(const int8_t (&q)[32]) { return q; }
template <int j> LATTICE_INLINE Four four(const int8_t* q) {
  int32_t bytes;
  std::memcpy(&bytes, q + 4 * j, 4);
  return {_mm512_set1_epi32(bytes)};
}

// sum + four products u8 x s8, sum + two products of 16 bits, sum + other or sum - other (sign -1), in each lane.
LATTICE_INLINE Whole add_fours(Whole sum, __m512i u, __m512i s) { return {_mm512_dpbusd_epi32(sum.v, u, s)}; }
LATTICE_INLINE Whole add_pairs(Whole sum, __m512i a, __m512i b) { return {_mm512_dpwssd_epi32(sum.v, a, b)}; }
LATTICE_INLINE Whole add_signed(Whole sum, Whole other, int32_t sign) {
  const __m512i s = _mm512_set1_epi32(sign);
  return {_mm512_add_epi32(sum.v, _mm512_sub_epi32(_mm512_xor_si512(other.v, s), s))};
}
LATTICE_INLINE Whole load_whole(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
LATTICE_INLINE vf floats(Whole a) { return {_mm512_cvtepi32_ps(a.v)}; }

#define LATTICE_VNNI 1

}  // namespace lattice
