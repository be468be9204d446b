// dot.h on NEON with dot products. sdot: four s8 x s8 products added to an i32 lane, exact; the four of the activations
// are named by their lane in a register of sixteen, so nothing is broadcast. Weights of at most 7 bits are signed bytes as
// they are; those of 8 are stored as value + 128, and flipping the top bit makes the value. (usdot of i8mm would save that
// one instruction per weight vector, whatever the number of tokens; smmla needs eight k of a row side by side.)
#pragma once
#include "quantise.h"

namespace lattice {

constexpr int record_tokens = 4;   // 8 integer sums of a panel in 16 of the 32 registers, the activations in 8

struct Bytes { uint8x16_t low, high; };
LATTICE_INLINE Bytes load_bytes(const uint8_t* p) { return {vld1q_u8(p), vld1q_u8(p + 16)}; }
template <int m> LATTICE_INLINE Bytes only(Bytes a) {
  return {vandq_u8(a.low, vdupq_n_u8(m)), vandq_u8(a.high, vdupq_n_u8(m))};
}
LATTICE_INLINE Bytes operator|(Bytes a, Bytes b) { return {vorrq_u8(a.low, b.low), vorrq_u8(a.high, b.high)}; }
template <int n> LATTICE_INLINE Bytes down(Bytes a) {
  if constexpr (n == 0) return a;
  else return {vshrq_n_u8(a.low, n), vshrq_n_u8(a.high, n)};
}

struct Whole { int32_t i; };
LATTICE_INLINE Whole whole(int32_t i) { return {i}; }
template <int a, int b> LATTICE_INLINE Whole mix(const int16_t (&half)[2]) { return {a * half[0] + b * half[1]}; }

struct Values { int8x16_t half[2]; };
template <int lane> struct Four { int8x16_t q; };
LATTICE_INLINE Values values(const int8_t (&q)[32]) { return {{vld1q_s8(q), vld1q_s8(q + 16)}}; }
template <int j> LATTICE_INLINE Four<j % 4> four(const Values& q) { return {q.half[j / 4]}; }

template <int bits> struct Sum {
  int32x4_t low, high;

  static LATTICE_INLINE Bytes prepare(Bytes w) {
    if constexpr (bits < 8) return w;
    else return {veorq_u8(w.low, vdupq_n_u8(128)), veorq_u8(w.high, vdupq_n_u8(128))};
  }
  LATTICE_INLINE void start(Whole seed) { low = high = vdupq_n_s32(bits < 8 ? seed.i : 0); }
  template <int i, int lane> LATTICE_INLINE void add(Bytes w, Four<lane> x) {
    low = vdotq_laneq_s32(low, vreinterpretq_s8_u8(w.low), x.q, lane);
    high = vdotq_laneq_s32(high, vreinterpretq_s8_u8(w.high), x.q, lane);
  }
  LATTICE_INLINE vf total(Whole) const { return {vcvtq_f32_s32(low), vcvtq_f32_s32(high)}; }
};

}  // namespace lattice
