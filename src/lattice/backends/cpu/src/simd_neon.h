// The vector of simd.h on NEON: eight lanes in two registers.
//
// Eight and not four: 32 registers of four lanes are then what AVX2 has, 16 of eight, so the shapes that kernels chose for
// AVX2's registers serve here unchanged, every operation is two independent instructions, and every sum has the same order.
#pragma once
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace lattice {

constexpr int lanes = 8;
struct vf { float32x4_t low, high; };
struct vmask { uint32x4_t low, high; };

inline vf set1(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
inline vf zero() { return set1(0.0f); }
inline vf load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
inline void store(float* p, vf a) { vst1q_f32(p, a.low), vst1q_f32(p + 4, a.high); }
inline vf load_n(const float* p, int n) {
  float x[lanes] = {};
  std::memcpy(x, p, size_t(n) * sizeof *p);
  return load(x);
}
inline void store_n(float* p, vf a, int n) {
  float x[lanes];
  store(x, a);
  std::memcpy(p, x, size_t(n) * sizeof *p);
}
inline vf operator+(vf a, vf b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
inline vf operator-(vf a, vf b) { return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
inline vf operator*(vf a, vf b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
inline vf operator/(vf a, vf b) { return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }
inline vf fma(vf a, vf b, vf c) { return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)}; }
inline vmask operator<(vf a, vf b) { return {vcltq_f32(a.low, b.low), vcltq_f32(a.high, b.high)}; }
inline vmask operator==(vf a, vf b) { return {vceqq_f32(a.low, b.low), vceqq_f32(a.high, b.high)}; }
inline vf select(vmask m, vf yes, vf no) {
  return {vbslq_f32(m.low, yes.low, no.low), vbslq_f32(m.high, yes.high, no.high)};
}
inline uint32_t bits(vmask m) {
  const uint32x4_t one = {1, 2, 4, 8};
  return vaddvq_u32(vorrq_u32(vandq_u32(m.low, one), vandq_u32(m.high, vshlq_n_u32(one, 4))));
}
inline vf max(vf a, vf b) { return select(b < a, a, b); }   // vmaxq would return a NaN wherever one is
inline vf min(vf a, vf b) { return select(a < b, a, b); }
inline vf sqrt(vf a) { return {vsqrtq_f32(a.low), vsqrtq_f32(a.high)}; }
inline vf abs(vf a) { return {vabsq_f32(a.low), vabsq_f32(a.high)}; }
inline vf copy_sign(vf a, vf sign) {
  const uint32x4_t m = vdupq_n_u32(0x80000000u);
  return {vbslq_f32(m, sign.low, a.low), vbslq_f32(m, sign.high, a.high)};
}
inline vf round(vf a) { return {vrndnq_f32(a.low), vrndnq_f32(a.high)}; }

inline float32x4_t ldexp(float32x4_t a, float32x4_t n) {   // in two steps, so that subnormals come out too
  const int32x4_t whole = vcvtq_s32_f32(n), half = vshrq_n_s32(whole, 1), bias = vdupq_n_s32(127);
  const int32x4_t p = vshlq_n_s32(vaddq_s32(half, bias), 23);
  const int32x4_t q = vshlq_n_s32(vaddq_s32(vsubq_s32(whole, half), bias), 23);
  return vmulq_f32(vmulq_f32(a, vreinterpretq_f32_s32(p)), vreinterpretq_f32_s32(q));
}
inline vf ldexp(vf a, vf n) { return {ldexp(a.low, n.low), ldexp(a.high, n.high)}; }
inline float32x4_t ldexp_normal(float32x4_t a, float32x4_t n) {
  return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a), vshlq_n_s32(vcvtq_s32_f32(n), 23)));
}
inline vf ldexp_normal(vf a, vf n) { return {ldexp_normal(a.low, n.low), ldexp_normal(a.high, n.high)}; }

inline vf load_f16(const uint16_t* p) {
  const float16x8_t halves = vreinterpretq_f16_u16(vld1q_u16(p));
  return {vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)};
}
inline void store_f16(uint16_t* p, vf a) {
  vst1q_u16(p, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(a.low), a.high)));
}
inline vf load_bf16(const uint16_t* p) {
  const uint16x8_t halves = vld1q_u16(p);
  return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(halves), 16)),
          vreinterpretq_f32_u32(vshll_high_n_u16(halves, 16))};
}
inline vf load_bf16_pair(const uint16_t* p, int e) {
  const uint32x4_t low = vreinterpretq_u32_u16(vld1q_u16(p)), high = vreinterpretq_u32_u16(vld1q_u16(p + 8));
  const uint32x4_t upper = vdupq_n_u32(0xffff0000u);
  return e ? vf{vreinterpretq_f32_u32(vandq_u32(low, upper)), vreinterpretq_f32_u32(vandq_u32(high, upper))}
           : vf{vreinterpretq_f32_u32(vshlq_n_u32(low, 16)), vreinterpretq_f32_u32(vshlq_n_u32(high, 16))};
}
inline vf load_i8(const int8_t* p) {
  const int16x8_t words = vmovl_s8(vld1_s8(p));
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(words))), vcvtq_f32_s32(vmovl_high_s16(words))};
}
inline void store_i8(int8_t* p, vf a) {
  a = max(a, set1(-128.0f));   // the conversion makes 0 of a NaN
  const int16x4_t low = vqmovn_s32(vcvtnq_s32_f32(a.low));
  vst1_s8(p, vqmovn_s16(vqmovn_high_s32(low, vcvtnq_s32_f32(a.high))));
}

inline float reduce_add(vf a) {
  const float32x4_t x = vaddq_f32(a.low, a.high);
  const float32x2_t y = vadd_f32(vget_low_f32(x), vget_high_f32(x));
  return vget_lane_f32(y, 0) + vget_lane_f32(y, 1);
}
inline float reduce_max(vf a) {
  auto larger = [](float32x2_t x, float32x2_t y) { return vbsl_f32(vcgt_f32(x, y), x, y); };
  const float32x4_t x = vbslq_f32(vcgtq_f32(a.low, a.high), a.low, a.high);
  const float32x2_t y = larger(vget_low_f32(x), vget_high_f32(x));
  return vget_lane_f32(larger(y, vdup_lane_f32(y, 1)), 0);
}

}  // namespace lattice
