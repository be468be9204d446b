// One vector of floats, `vf`, and the few operations that kernels need: the same source serves every target.
//
// lanes: 16 (AVX-512), 8 (AVX2 + FMA + F16C), 8 (scalar: plain C++, and the place to read what each operation means).
// fma(a, b, c) = a * b + c is rounded once everywhere. Sums across lanes run over sixteen partial sums, whatever `lanes`
// is (reduce_add), so every target gives the same bits. max and min return the second operand when the first is NaN.
// A further target (NEON) adds one more section with the same names.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#if defined(__GNUC__) && !defined(__clang__)  // GCC 12 calls its own AVX-512 intrinsics uninitialised
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#endif

// Before a loop of a few constant iterations over an array of vectors: unrolled, the array lives in registers.
#if defined(__clang__)
#define LATTICE_UNROLL _Pragma("clang loop unroll(full)")
#define LATTICE_INLINE inline __attribute__((always_inline))
#elif defined(__GNUC__)
#define LATTICE_UNROLL _Pragma("GCC unroll 16")
#define LATTICE_INLINE inline __attribute__((always_inline))
#else
#define LATTICE_UNROLL
#define LATTICE_INLINE inline
#endif

namespace lattice {

template <class To, class From> inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// ---- one value ---------------------------------------------------------------------------------------------------

inline float from_bf16(uint16_t h) { return bit_cast<float>(uint32_t(h) << 16); }

inline uint16_t to_bf16(float f) {  // round to nearest even; a NaN stays one
  uint32_t u = bit_cast<uint32_t>(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return uint16_t((u >> 16) | 0x40);
  return uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

#if defined(__F16C__)
inline float from_f16(uint16_t h) { return _cvtsh_ss(h); }
inline uint16_t to_f16(float f) { return uint16_t(_cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT)); }
#else
inline float from_f16(uint16_t h) {
  uint32_t sign = uint32_t(h & 0x8000) << 16, rest = h & 0x7fff;
  if (rest >= 0x7c00) return bit_cast<float>(sign | 0x7f800000u | ((rest & 0x3ff) << 13));
  // The f16 exponent placed in the f32 field is 112 too low; the product mends it, subnormals included, exactly.
  float magnitude = bit_cast<float>(rest << 13) * bit_cast<float>(uint32_t(127 + 112) << 23);
  return bit_cast<float>(bit_cast<uint32_t>(magnitude) | sign);
}
inline uint16_t to_f16(float f) {  // round to nearest even
  uint32_t u = bit_cast<uint32_t>(f), sign = (u >> 16) & 0x8000, rest = u & 0x7fffffff;
  if (rest > 0x7f800000u) return uint16_t(sign | 0x7e00 | ((rest >> 13) & 0x3ff));
  if (rest >= 0x477ff000u) return uint16_t(sign | 0x7c00);  // 65520 and more round to infinity
  if (rest < 0x38800000u) {  // below 2^-14: adding 0.5 leaves the subnormal's bits, correctly rounded, at the bottom
    float shifted = bit_cast<float>(rest) + 0.5f;
    return uint16_t(sign | (bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  rest += 0xfff + ((rest >> 13) & 1);
  return uint16_t(sign | ((rest - (112u << 23)) >> 13));
}
#endif

inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

// ---- AVX-512 -----------------------------------------------------------------------------------------------------

#if defined(__AVX512F__)

constexpr int lanes = 16;
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
inline vf copy_sign(vf a, vf sign) {  // |a| with the sign of `sign`: bits chosen by the mask of -0.0
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
inline vf load_bf16_pair(const uint16_t* p, int e) {  // value e (0 or 1) of the `lanes` pairs at p
  const __m512i both = _mm512_loadu_si512(p);
  return {_mm512_castsi512_ps(e ? _mm512_and_si512(both, _mm512_set1_epi32(-65536)) : _mm512_slli_epi32(both, 16))};
}
inline vf load_i8(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}
inline void store_i8(int8_t* p, vf a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.v))); }

// ---- AVX2 --------------------------------------------------------------------------------------------------------

#elif defined(__AVX2__)

constexpr int lanes = 8;
struct vf { __m256 v; };
struct vmask { __m256 v; };

inline __m256i first_lanes(int n) {
  alignas(32) static const int32_t window[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256((const __m256i*)(window + 8 - n));
}
inline vf set1(float x) { return {_mm256_set1_ps(x)}; }
inline vf zero() { return {_mm256_setzero_ps()}; }
inline vf load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline void store(float* p, vf a) { _mm256_storeu_ps(p, a.v); }
inline vf load_n(const float* p, int n) { return {_mm256_maskload_ps(p, first_lanes(n))}; }
inline void store_n(float* p, vf a, int n) { _mm256_maskstore_ps(p, first_lanes(n), a.v); }
inline vf operator+(vf a, vf b) { return {_mm256_add_ps(a.v, b.v)}; }
inline vf operator-(vf a, vf b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline vf operator*(vf a, vf b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline vf operator/(vf a, vf b) { return {_mm256_div_ps(a.v, b.v)}; }
inline vf fma(vf a, vf b, vf c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline vf max(vf a, vf b) { return {_mm256_max_ps(a.v, b.v)}; }
inline vf min(vf a, vf b) { return {_mm256_min_ps(a.v, b.v)}; }
inline vf sqrt(vf a) { return {_mm256_sqrt_ps(a.v)}; }
inline vf abs(vf a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline vf copy_sign(vf a, vf sign) {  // |a| with the sign of `sign`
  const __m256 m = _mm256_set1_ps(-0.0f);
  return {_mm256_or_ps(_mm256_and_ps(m, sign.v), _mm256_andnot_ps(m, a.v))};
}
inline vf round(vf a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline vf ldexp(vf a, vf n) {  // a * 2^n for whole n in [-252, 254], in two steps so that subnormals come out too
  __m256i whole = _mm256_cvtps_epi32(n.v), half = _mm256_srai_epi32(whole, 1), rest = _mm256_sub_epi32(whole, half);
  const __m256i bias = _mm256_set1_epi32(127);
  __m256 p = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  __m256 q = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  return {_mm256_mul_ps(_mm256_mul_ps(a.v, p), q)};
}
inline vf ldexp_normal(vf a, vf n) {  // the same where neither a nor the result is subnormal
  const __m256i shift = _mm256_slli_epi32(_mm256_cvtps_epi32(n.v), 23);
  return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.v), shift))};
}
inline vmask operator<(vf a, vf b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
inline vmask operator==(vf a, vf b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)}; }
inline vf select(vmask m, vf yes, vf no) { return {_mm256_blendv_ps(no.v, yes.v, m.v)}; }
inline uint32_t bits(vmask m) { return uint32_t(_mm256_movemask_ps(m.v)); }
inline vf load_f16(const uint16_t* p) { return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p))}; }
inline void store_f16(uint16_t* p, vf a) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline vf load_bf16(const uint16_t* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16))};
}
inline vf load_bf16_pair(const uint16_t* p, int e) {  // value e (0 or 1) of the `lanes` pairs at p
  const __m256i both = _mm256_loadu_si256((const __m256i*)p);
  return {_mm256_castsi256_ps(e ? _mm256_and_si256(both, _mm256_set1_epi32(-65536)) : _mm256_slli_epi32(both, 16))};
}
inline vf load_i8(const int8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)))};
}
inline void store_i8(int8_t* p, vf a) {
  __m256i whole = _mm256_cvtps_epi32(a.v);
  __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(words, words));
}

// ---- scalar ------------------------------------------------------------------------------------------------------

#else

constexpr int lanes = 8;
struct vf { float v[lanes]; };
struct vmask { bool v[lanes]; };

template <class Body> inline vf each(Body&& body) {
  vf r;
  for (int i = 0; i < lanes; i++) r.v[i] = body(i);
  return r;
}
// a * b + c rounded once. The product is exact in double; their sum is rounded to odd, so that only the rounding to float
// counts (Boldo and Melquiond, "Emulation of FMA", 2008). libm's fmaf is many times slower where there is no instruction.
inline float fma_one(float a, float b, float c) {
#if defined(__FP_FAST_FMAF)
  return __builtin_fmaf(a, b, c);
#else
  const double product = double(a) * double(b), sum = product + c, back = sum - product;
  const double error = (product - (sum - back)) + (c - back);   // what the sum lost, exactly; NaN where it is not finite
  const uint64_t u = bit_cast<uint64_t>(sum);
  const bool inexact = error > 0 || error < 0, even = !(u & 1);
  const uint64_t toward = (error > 0) == (sum > 0) ? uint64_t(1) : ~uint64_t(0);
  return float(bit_cast<double>(u + (inexact && even ? toward : 0)));
#endif
}
inline vf set1(float x) { return each([&](int) { return x; }); }
inline vf zero() { return set1(0.0f); }
inline vf load(const float* p) { return each([&](int i) { return p[i]; }); }
inline void store(float* p, vf a) { std::memcpy(p, a.v, sizeof a.v); }
inline vf load_n(const float* p, int n) { return each([&](int i) { return i < n ? p[i] : 0.0f; }); }
inline void store_n(float* p, vf a, int n) { std::memcpy(p, a.v, size_t(n) * sizeof(float)); }
inline vf operator+(vf a, vf b) { return each([&](int i) { return a.v[i] + b.v[i]; }); }
inline vf operator-(vf a, vf b) { return each([&](int i) { return a.v[i] - b.v[i]; }); }
inline vf operator*(vf a, vf b) { return each([&](int i) { return a.v[i] * b.v[i]; }); }
inline vf operator/(vf a, vf b) { return each([&](int i) { return a.v[i] / b.v[i]; }); }
inline vf fma(vf a, vf b, vf c) { return each([&](int i) { return fma_one(a.v[i], b.v[i], c.v[i]); }); }
inline vf max(vf a, vf b) { return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline vf min(vf a, vf b) { return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
inline vf sqrt(vf a) { return each([&](int i) { return std::sqrt(a.v[i]); }); }
inline vf abs(vf a) { return each([&](int i) { return std::fabs(a.v[i]); }); }
inline vf copy_sign(vf a, vf sign) { return each([&](int i) { return std::copysign(a.v[i], sign.v[i]); }); }
inline vf round(vf a) { return each([&](int i) { return std::nearbyint(a.v[i]); }); }
inline vf ldexp(vf a, vf n) { return each([&](int i) { return std::ldexp(a.v[i], int(n.v[i])); }); }
inline vf ldexp_normal(vf a, vf n) { return ldexp(a, n); }
template <class Body> inline vmask each_mask(Body&& body) {
  vmask r;
  for (int i = 0; i < lanes; i++) r.v[i] = body(i);
  return r;
}
inline vmask operator<(vf a, vf b) { return each_mask([&](int i) { return a.v[i] < b.v[i]; }); }
inline vmask operator==(vf a, vf b) { return each_mask([&](int i) { return a.v[i] == b.v[i]; }); }
inline vf select(vmask m, vf yes, vf no) { return each([&](int i) { return m.v[i] ? yes.v[i] : no.v[i]; }); }
inline uint32_t bits(vmask m) {
  uint32_t r = 0;
  for (int i = 0; i < lanes; i++) r |= uint32_t(m.v[i]) << i;
  return r;
}
inline vf load_f16(const uint16_t* p) { return each([&](int i) { return from_f16(p[i]); }); }
inline void store_f16(uint16_t* p, vf a) {
  for (int i = 0; i < lanes; i++) p[i] = to_f16(a.v[i]);
}
inline vf load_bf16(const uint16_t* p) { return each([&](int i) { return from_bf16(p[i]); }); }
inline vf load_bf16_pair(const uint16_t* p, int e) {  // value e (0 or 1) of the `lanes` pairs at p
  return each([&](int i) { return from_bf16(p[2 * i + e]); });
}
inline vf load_i8(const int8_t* p) { return each([&](int i) { return float(p[i]); }); }
inline void store_i8(int8_t* p, vf a) {  // rounds to nearest even and saturates
  for (int i = 0; i < lanes; i++) {
    const float rounded = std::nearbyint(a.v[i]);
    p[i] = rounded > 127 ? 127 : rounded > -128 ? int8_t(rounded) : -128;   // a NaN becomes -128, as on the others
  }
}

#endif

// ---- the same everywhere -----------------------------------------------------------------------------------------

inline vf operator-(vf a) { return zero() - a; }
inline bool any(vmask m) { return bits(m) != 0; }

// Halves are folded onto each other: lane i with lane i + lanes/2, and so on down to one.
template <class Fold> inline float reduce(vf a, Fold&& fold) {
  alignas(64) float x[lanes];
  store(x, a);
  for (int half = lanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) x[i] = fold(x[i], x[i + half]);
  return x[0];
}
#if defined(__AVX2__)
template <class Fold> inline float reduce_quarter(__m128 x, Fold&& fold) {
  x = fold(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(fold(x, _mm_shuffle_ps(x, x, 1)));
}
inline __m256 low_half(vf a) {
#if defined(__AVX512F__)
  return _mm512_castps512_ps256(a.v);
#else
  return a.v;
#endif
}
inline float reduce_lanes(vf a) {
  __m256 x = low_half(a);
#if defined(__AVX512F__)
  x = _mm256_add_ps(x, _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1)));
#endif
  return reduce_quarter(_mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)),
                        [](__m128 p, __m128 q) { return _mm_add_ps(p, q); });
}
inline float reduce_max(vf a) {
  __m256 x = low_half(a);
#if defined(__AVX512F__)
  x = _mm256_max_ps(x, _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1)));
#endif
  return reduce_quarter(_mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)),
                        [](__m128 p, __m128 q) { return _mm_max_ps(p, q); });
}
#else
inline float reduce_lanes(vf a) { return reduce(a, [](float p, float q) { return p + q; }); }
inline float reduce_max(vf a) { return reduce(a, [](float p, float q) { return p > q ? p : q; }); }
#endif

// The sum of sixteen partial sums, halves folded onto each other: the same tree on every target. parts: vectors of sixteen.
constexpr int parts = 16 / lanes;
inline float reduce_add(const vf (&sums)[parts]) {
  vf folded[parts];
  for (int i = 0; i < parts; i++) folded[i] = sums[i];
  for (int half = parts / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) folded[i] = folded[i] + folded[i + half];
  return reduce_lanes(folded[0]);
}

// Partial vectors of halves (what lies past n is zero, or left alone).
inline vf load_f16_n(const uint16_t* p, int n) {
  uint16_t x[lanes] = {};
  std::memcpy(x, p, size_t(n) * sizeof *p);
  return load_f16(x);
}
inline void store_f16_n(uint16_t* p, vf a, int n) {
  uint16_t x[lanes];
  store_f16(x, a);
  std::memcpy(p, x, size_t(n) * sizeof *p);
}
inline vf load_bf16_n(const uint16_t* p, int n) {
  uint16_t x[lanes] = {};
  std::memcpy(x, p, size_t(n) * sizeof *p);
  return load_bf16(x);
}

}  // namespace lattice
