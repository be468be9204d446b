// The vector of simd.h in plain C++: the place to read what an operation means, and the target that runs everywhere.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace lattice {

constexpr int lanes = 8;
constexpr int registers = 0;
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
#if !defined(__FP_FAST_FMAF)
__attribute__((noinline))   // or every unrolled product repeats its instructions: megabytes of code, minutes of compiling
#endif
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
inline vf load_bf16_pair(const uint16_t* p, int e) {
  return each([&](int i) { return from_bf16(p[2 * i + e]); });
}
inline vf load_i8(const int8_t* p) { return each([&](int i) { return float(p[i]); }); }
inline void store_i8(int8_t* p, vf a) {  // rounds to nearest even and saturates
  for (int i = 0; i < lanes; i++) {
    const float rounded = std::nearbyint(a.v[i]);
    p[i] = rounded > 127 ? 127 : rounded > -128 ? int8_t(rounded) : -128;   // a NaN becomes -128, as on the others
  }
}

template <class Fold> inline float reduce(vf a, Fold&& fold) {
  for (int half = lanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) a.v[i] = fold(a.v[i], a.v[i + half]);
  return a.v[0];
}
inline float reduce_add(vf a) { return reduce(a, [](float p, float q) { return p + q; }); }
inline float reduce_max(vf a) { return reduce(a, [](float p, float q) { return p > q ? p : q; }); }

}  // namespace lattice
