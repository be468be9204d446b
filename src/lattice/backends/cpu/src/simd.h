// One vector of floats, `vf`, and the few operations that kernels need: the same source serves every target.
//
// This file says what each operation means; simd_<target>.h says how, and simd_scalar.h in plain C++. `lanes` is 16
// (AVX-512) or 8 (AVX2 + FMA + F16C; NEON; scalar). A further target adds one more such file.
//
//   registers                 vectors of `lanes` that registers hold; 0: none
//   set1(x), zero()           every lane x, or 0
//   load(p), store(p, a)      `lanes` floats at any address
//   load_n(p, n), store_n     the first n lanes only, 0 <= n <= lanes: the others are 0, or leave memory alone
//   + - * / sqrt abs          lane by lane, rounded to nearest even
//   fma(a, b, c)              a * b + c, rounded once
//   max(a, b), min(a, b)      b where either is not a number, and where they are equal
//   copy_sign(a, sign)        |a| with the sign of `sign`
//   round(a)                  to the nearest whole number, ties to even
//   ldexp(a, n)               a * 2^n for whole n in [-252, 254], subnormal results included
//   ldexp_normal(a, n)        the same where neither a nor the result is subnormal
//   a < b, a == b             a vmask; false where either is not a number
//   select(m, yes, no)        yes where m holds;   bits(m): lane i as bit i;   any(m): whether one holds
//   load_f16, store_f16       `lanes` halves at p; to halves: to nearest even;   load_f16_n, store_f16_n: n of them
//   load_bf16                 the same of bf16
//   load_bf16_pair(p, e)      value e (0 or 1) of each of the `lanes` pairs at p
//   load_i8, store_i8         `lanes` int8 at p; to int8: to nearest even, saturating, a NaN becomes -128
//   reduce_add, reduce_max    in one fixed tree: lane i with lane i + lanes/2, and so on down to one
//   reduce_add(sums)          of `parts` vectors, sixteen partial sums on every target: all targets give the same bits. The
//                             plain form is for sums that are exact anyway
#pragma once
#include <bit>
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
#else
#define LATTICE_UNROLL _Pragma("GCC unroll 16")
#endif
#define LATTICE_INLINE inline __attribute__((always_inline))

namespace lattice {

using std::bit_cast;

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
#elif defined(__aarch64__) && defined(__ARM_FP16_FORMAT_IEEE)
inline float from_f16(uint16_t h) { return float(bit_cast<__fp16>(h)); }
inline uint16_t to_f16(float f) { return bit_cast<uint16_t>(__fp16(f)); }
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

}  // namespace lattice

// ---- one vector --------------------------------------------------------------------------------------------------

#if defined(__AVX512F__)
#include "simd_avx512.h"
#elif defined(__AVX2__)
#include "simd_avx2.h"
#elif defined(__ARM_FEATURE_DOTPROD)   // its integer products need that; plain NEON is the base of aarch64
#include "simd_neon.h"
#else
#include "simd_scalar.h"
#endif

namespace lattice {

inline vf operator-(vf a) { return zero() - a; }
inline bool any(vmask m) { return bits(m) != 0; }

constexpr int parts = 16 / lanes;   // vectors of sixteen values
inline float reduce_add(const vf (&sums)[parts]) {
  vf folded[parts];
  for (int i = 0; i < parts; i++) folded[i] = sums[i];
  for (int half = parts / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) folded[i] = folded[i] + folded[i + half];
  return reduce_add(folded[0]);
}

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

}  // namespace lattice
