// dot.h in plain C++: what every operation means.
#pragma once
#include "quantise.h"

namespace lattice {

constexpr int record_tokens = 2;   // nothing stays in registers: little code instead

struct Bytes { uint8_t v[4 * lanes]; };
template <class Body> LATTICE_INLINE Bytes each_byte(Body&& body) {
  Bytes r;
  for (int i = 0; i < 4 * lanes; i++) r.v[i] = uint8_t(body(i));
  return r;
}
LATTICE_INLINE Bytes load_bytes(const uint8_t* p) { return each_byte([&](int i) { return p[i]; }); }
template <int m> LATTICE_INLINE Bytes only(Bytes a) { return each_byte([&](int i) { return a.v[i] & m; }); }
LATTICE_INLINE Bytes operator|(Bytes a, Bytes b) { return each_byte([&](int i) { return a.v[i] | b.v[i]; }); }
template <int n> LATTICE_INLINE Bytes down(Bytes a) { return each_byte([&](int i) { return a.v[i] >> n; }); }

struct Whole { int32_t i; };
LATTICE_INLINE Whole whole(int32_t i) { return {i}; }
template <int a, int b> LATTICE_INLINE Whole mix(const int16_t (&half)[2]) { return {a * half[0] + b * half[1]}; }

struct Four { const int8_t* q; };
LATTICE_INLINE const int8_t* values(const int8_t (&q)[32]) { return q; }
template <int j> LATTICE_INLINE Four four(const int8_t* q) { return {q + 4 * j}; }

template <int bits> struct Sum {
  int32_t sum[lanes];

  static LATTICE_INLINE Bytes prepare(Bytes w) { return w; }
  LATTICE_INLINE void start(Whole seed) {
    for (int r = 0; r < lanes; r++) sum[r] = seed.i;
  }
  template <int i> LATTICE_INLINE void add(const Bytes& w, Four x) {
    for (int r = 0; r < lanes; r++)
      for (int e = 0; e < 4; e++) sum[r] += w.v[4 * r + e] * x.q[e];
  }
  LATTICE_INLINE vf total(Whole) const { return each([&](int r) { return float(sum[r]); }); }
};

}  // namespace lattice
