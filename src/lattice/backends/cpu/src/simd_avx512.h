// The vector of simd.h on AVX-512: sixteen lanes in one register.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace lattice {

constexpr int lanes = 16;
constexpr int registers = 32;
struct vf { __m512 v; };
struct vmask { __mmask16 v; };

inline __mmask16 first_lanes(int n) { return __mmask16((1u << n) - 1); }
inline vf set1(float x) { return {_mm512_set1_ps(x)}; }
inline vf zero() { return {_mm512_setzero_ps()}; }
inline vf load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, vf a) { _mm512_storeu_ps(p, a.v); }
inline vf load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
inline void store_n(float* p, vf a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }
inline vf operator+(vf a, vf b) { return {_mm512_add_ps(a.v, b.v)}; }
inline vf operator-(vf a, vf b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline vf operator*(vf a, vf b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline vf operator/(vf a, vf b) { return {_mm512_div_ps(a.v, b.v)}; }
inline vf fma(vf a, vf b, vf c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline vf max(vf a, vf b) { return {_mm512_max_ps(a.v, b.v)}; }
inline vf min(vf a, vf b) { return {_mm512_min_ps(a.v, b.v)}; }
inline vf sqrt(vf a) { return {_mm512_sqrt_ps(a.v)}; }
inline vf abs(vf a) { return {_mm512_abs_ps(a.v)}; }
inline vf copy_sign(vf a, vf sign) {  // bits chosen by the mask of -0.0
  const __m512i m = _mm512_castps_si512(_mm512_set1_ps(-0.0f));
  const __m512i s = _mm512_castps_si512(sign.v), size = _mm512_castps_si512(a.v);
  return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(m, s, size, 0xca))};
}
inline vf round(vf a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline vf ldexp(vf a, vf n) { return {_mm512_scalef_ps(a.v, n.v)}; }
inline vf ldexp_normal(vf a, vf n) { return ldexp(a, n); }
inline vmask operator<(vf a, vf b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline vmask operator==(vf a, vf b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
inline vf select(vmask m, vf yes, vf no) { return {_mm512_mask_blend_ps(m.v, no.v, yes.v)}; }
inline uint32_t bits(vmask m) { return m.v; }
inline vf load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
inline void store_f16(uint16_t* p, vf a) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline vf load_bf16(const uint16_t* p) {
  const __m256i halves = _mm256_loadu_si256((const __m256i*)p);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
}
inline vf load_bf16_pair(const uint16_t* p, int e) {
  const __m512i both = _mm512_loadu_si512(p);
  return {_mm512_castsi512_ps(e ? _mm512_and_si512(both, _mm512_set1_epi32(-65536)) : _mm512_slli_epi32(both, 16))};
}
inline vf load_i8(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}
inline void store_i8(int8_t* p, vf a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.v))); }

inline __m256 upper_half(vf a) { return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1)); }
inline float reduce_add(vf a) {
  const __m256 x = _mm256_add_ps(_mm512_castps512_ps256(a.v), upper_half(a));
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ps(y, _mm_shuffle_ps(y, y, 1)));
}
inline float reduce_max(vf a) {
  const __m256 x = _mm256_max_ps(_mm512_castps512_ps256(a.v), upper_half(a));
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ps(y, _mm_shuffle_ps(y, y, 1)));
}

}  // namespace lattice
