// Integer products of one group of k: V vectors of weight rows times T activation records, exact on every target.
//
//   sum[v][t](lane) = sum over the group's k of (w[row of lane][k] - offset) * q[t][k]    as a float
//
// A lane is a row: four bytes of k, a unit, lie in each 32-bit lane of a weight vector (tiles.h); the same four of an
// activation are broadcast to all lanes. What a format means is written here once; how a target multiplies bytes is
// written in the one file that is included below, which defines:
//
//   record_tokens          tokens of one call at most, the best number for its registers (it divides 12)
//   Bytes                  a weight vector, four unsigned bytes of each of `lanes` rows
//     load_bytes(p)        from vector_bytes bytes of any alignment
//     only<m>(a), a | b    bit by bit; m: the same byte everywhere
//     down<n>(a)           shifted by n bits; what comes in from a neighbouring byte is for the caller to mask
//   Whole                  an int32 in each lane
//     whole(i)             the same in all lanes
//     mix<a, b>(half)      a * half[0] + b * half[1] in all lanes
//   values(q), four<j>()   the 32 activations of a record; of those, numbers 4j to 4j+3 for all lanes
//   Sum<bits>              one exact sum of products for each lane
//     prepare(bytes)       static: what can be done to a weight vector once for all tokens
//     start(seed)          the first call; `seed` is what the sum starts from
//     add<i>(w, four)      the i-th four products, i = 0, 1, ...; w is prepared and has at most `bits` bits, unsigned.
//                          Sum<8> takes value + 128, and seed is -128 * sum(q): for targets that multiply unsigned
//                          bytes; the others make the value in prepare and leave this seed alone
//     total(seed)          the last call: the sum, as floats; seed as given to start (a target adds it here or there)
//
// bf16 weights have no place here: vdpbf16ps would round the activations too, so they are widened to floats.
#pragma once
#include <type_traits>
#include <utility>

#include "quantise.h"

namespace lattice {

constexpr int vector_bytes = 4 * lanes;   // bytes of one weight vector that belong to `lanes` rows

// body(0), body(1), ..., body(N - 1) with constants.
template <int N, class Body> LATTICE_INLINE void repeat(Body&& body) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, I>()), ...);
  }(std::make_integer_sequence<int, N>());
}

}  // namespace lattice

#if defined(__AVX512F__)
#include "dot_avx512.h"
#elif defined(__AVX2__)
#include "dot_avx2.h"
#elif defined(__ARM_FEATURE_DOTPROD)
#include "dot_neon.h"
#else
#include "dot_scalar.h"
#endif

namespace lattice {

#if defined(LATTICE_VNNI)   // vpdpbusd: nothing saturates, and every weight is four unsigned bytes
template <int bits> struct Sum {
  Whole sum;

  static LATTICE_INLINE Bytes prepare(Bytes w) { return w; }
  LATTICE_INLINE void start(Whole seed) { sum = seed; }
  template <int i> LATTICE_INLINE void add(Bytes w, Four q) { sum = add_fours(sum, w.v, q.v); }
  LATTICE_INLINE vf total(Whole) const { return floats(sum); }
};
#endif

// How a group of weights of so many bits (tiles.h) lies in its vectors, 64 bytes apart. Step i yields `units` vectors of
// bytes, the j-th of them unit(i, j) of the group.
template <int bits> struct Unpack;

template <> struct Unpack<8> {   // 8 vectors: vector i is unit i
  static constexpr int steps = 8, units = 1;
  static constexpr int unit(int i, int) { return i; }
  template <int i> static LATTICE_INLINE void step(const uint8_t* w, Bytes (&out)[1]) {
    out[0] = load_bytes(w + 64 * i);
  }
};

template <> struct Unpack<4> {   // 4 vectors: low nibbles of vector i are unit i, high ones unit i + 4
  static constexpr int steps = 4, units = 2;
  static constexpr int unit(int i, int j) { return i + 4 * j; }
  template <int i> static LATTICE_INLINE void step(const uint8_t* w, Bytes (&out)[2]) {
    const Bytes both = load_bytes(w + 64 * i);
    out[0] = only<15>(both);
    out[1] = only<15>(down<4>(both));
  }
};

template <> struct Unpack<5> {   // 5 vectors: low 5 bits of vector i are unit i; units 5 to 7 are in the bits left over
  static constexpr int steps = 4, units = 2;
  static constexpr int unit(int i, int j) { return 2 * i + j; }
  template <int i> static LATTICE_INLINE void step(const uint8_t* w, Bytes (&out)[2]) {
    auto load = [=](int n) __attribute__((always_inline)) { return load_bytes(w + 64 * n); };
    out[0] = only<31>(load(2 * i < 5 ? 2 * i : 0));
    out[1] = only<31>(load(2 * i + 1 < 5 ? 2 * i + 1 : 0));
    if constexpr (i == 2) out[1] = only<7>(down<5>(load(0))) | only<24>(down<3>(load(1)));
    if constexpr (i == 3) {
      out[0] = only<7>(down<5>(load(2))) | only<24>(down<3>(load(3)));
      out[1] = only<7>(down<5>(load(4))) | only<8>(down<2>(load(1))) | only<16>(down<1>(load(3)));
    }
  }
};

template <> struct Unpack<6> {   // 16 k, 3 vectors: low 6 bits of vector i are unit i; unit 3 is in the bits left over
  static constexpr int steps = 2, units = 2;
  static constexpr int unit(int i, int j) { return 2 * i + j; }
  template <int i> static LATTICE_INLINE void step(const uint8_t* w, Bytes (&out)[2]) {
    auto load = [=](int n) __attribute__((always_inline)) { return load_bytes(w + 64 * n); };
    out[0] = only<63>(load(2 * i));
    if constexpr (i == 0) out[1] = only<63>(load(1));
    else out[1] = only<3>(down<6>(load(0))) | only<12>(down<4>(load(1))) | only<48>(down<2>(load(2)));
  }
};

// What undoes the offset of weights stored unsigned, for the whole record or for its half 0 or 1. Signed weights would
// need a sign or a subtraction per vector, and targets that multiply unsigned bytes could not take them at all; a seed
// is made once per token and group, and starts a sum that has to start from something. The rare ones (16 and 32) come
// from the sums of the halves with one more operation, so that records grow by 4 bytes only.
template <int offset, int half> LATTICE_INLINE Whole seed(const Quantised& x) {
  if constexpr (offset == 0) return whole(0);
  else if constexpr (offset == 8) return whole(x.minus_8);
  else if constexpr (offset == 128) return whole(x.minus_128);
  else if constexpr (half < 0) return mix<-offset, -offset>(x.half);
  else return half ? mix<0, -offset>(x.half) : mix<-offset, 0>(x.half);
}

// w[v]: the group's first vector. half: -1 for a group of 32 k; 0 or 1 for the half of the record that a group of 16
// belongs to.
template <int bits, int offset, int half, int V, int T>
LATTICE_INLINE void dot(const uint8_t* const (&w)[V], const Quantised* const (&x)[T], vf (&sum)[V][T]) {
  using Layout = Unpack<bits>;
  constexpr int units = Layout::units, first = half > 0 ? 4 : 0;
  Sum<bits> s[V][T];
  LATTICE_UNROLL
  for (int t = 0; t < T; t++)
    LATTICE_UNROLL
    for (int v = 0; v < V; v++) s[v][t].start(seed<offset, half>(*x[t]));
  repeat<Layout::steps>([&](auto i) __attribute__((always_inline)) {
    decltype(Sum<bits>::prepare(load_bytes(w[0]))) weights[V][units];
    LATTICE_UNROLL
    for (int v = 0; v < V; v++) {
      Bytes bytes[units];
      Layout::template step<i>(w[v], bytes);
      LATTICE_UNROLL
      for (int j = 0; j < units; j++) weights[v][j] = Sum<bits>::prepare(bytes[j]);
    }
    LATTICE_UNROLL
    for (int t = 0; t < T; t++) {
      const auto q = values(x[t]->q);
      repeat<units>([&](auto j) __attribute__((always_inline)) {   // each four meets its vectors before the next is made
        const auto y = four<first + Layout::unit(i, j)>(q);
        LATTICE_UNROLL
        for (int v = 0; v < V; v++) s[v][t].template add<i * units + j>(weights[v][j], y);
      });
    }
  });
  LATTICE_UNROLL               // the seed once more, not kept meanwhile: registers are short
  for (int v = 0; v < V; v++)
    LATTICE_UNROLL
    for (int t = 0; t < T; t++) sum[v][t] = s[v][t].total(seed<offset, half>(*x[t]));
}

}  // namespace lattice
