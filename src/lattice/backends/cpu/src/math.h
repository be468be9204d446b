// Functions of a vector: exp, erf, softplus and the activations built on them.
//
// exp(x) = 2^n * exp(r), n = round(x / ln 2), |r| <= ln(2) / 2; exp(r) = 1 + r + r^2 * q(r), q of degree 4 by minimax of
// the relative error (3e-9 before rounding; about 1e-7 after).
// erf(z) = z * P(z^2) / Q(z^2) on |z| < 4 by minimax of the absolute error (2e-8 before rounding), else +-1.
// tanh-GELU needs no tanh: (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)).
#pragma once
#include "abi.h"
#include "simd.h"

namespace lattice {

// Full range: 0 below -104, infinity above 88.73; a NaN stays one (min and max return their second operand then).
inline vf exp(vf x) {
  x = min(set1(89.0f), max(set1(-104.0f), x));
  const vf n = round(x * set1(1.44269504f));
  vf r = fma(n, set1(-0.693359375f), x);          // ln 2 in two parts; the first has few bits, so n times it is exact
  r = fma(n, set1(2.12194440e-4f), r);
  vf q = fma(set1(0.0013814467f), r, set1(0.0083687808f));
  q = fma(q, r, set1(0.0416683927f));
  q = fma(q, r, set1(0.1666651964f));
  q = fma(q, r, set1(0.4999999404f));
  return ldexp(fma(q, r * r, r) + set1(1.0f), n);
}

// 2^y for y <= 0, exactly 0 below 2^-126 and exactly 1 at 0: the softmax's own exponential, cheaper than exp.
// 2^r = 1 + r * q(r) on |r| <= 1/2, q of degree 5 by minimax of the relative error (2e-9 before rounding).
inline vf exp2_down(vf y) {
  const vf limit = set1(-126.0f), k = max(limit, y), n = round(k), r = k - n;
  vf q = fma(set1(1.53533101e-4f), r, set1(1.33989391e-3f));
  q = fma(q, r, set1(9.61843798e-3f));
  q = fma(q, r, set1(5.55033232e-2f));
  q = fma(q, r, set1(2.40226479e-1f));
  q = fma(q, r, set1(6.93147203e-1f));
  return select(y < limit, zero(), ldexp_normal(fma(q, r, set1(1.0f)), n));
}

inline vf erf(vf z) {
  const vf size = abs(z), s = min(size, set1(4.0f)) * min(size, set1(4.0f));
  vf p = fma(set1(1.9748281e-06f), s, set1(2.8804227e-04f));
  p = fma(p, s, set1(4.0036710e-03f));
  p = fma(p, s, set1(5.3467553e-02f));
  p = fma(p, s, set1(1.9624953e-01f));
  p = fma(p, s, set1(1.1283790e+00f));
  vf q = fma(set1(3.7480895e-05f), s, set1(1.2163667e-03f));
  q = fma(q, s, set1(1.5444470e-02f));
  q = fma(q, s, set1(1.1647666e-01f));
  q = fma(q, s, set1(5.0725275e-01f));
  q = fma(q, s, set1(1.0f));
  return select(size < set1(4.0f), z * p / q, copy_sign(set1(1.0f), z));
}

// ln(1 + exp(x)) = max(x, 0) + ln(1 + u), u = exp(-|x|); with s = u / (2 + u), ln(1 + u) = 2 atanh(s) = s * q(s^2),
// q of degree 4 by minimax of the relative error (4e-9 before rounding).
inline vf softplus(vf x) {
  const vf u = exp(-abs(x)), s = u / (set1(2.0f) + u), square = s * s;
  vf q = fma(set1(0.28178337f), square, set1(0.27960601f));
  q = fma(q, square, set1(0.40024909f));
  q = fma(q, square, set1(0.66666317f));
  return fma(s, fma(q, square, set1(2.0f)), max(zero(), x));
}

inline vf sigmoid(vf x) { return set1(1.0f) / (set1(1.0f) + exp(-x)); }
inline vf silu(vf x) { return x / (set1(1.0f) + exp(-x)); }

inline vf gelu(vf x) {
  const vf half = x * set1(0.5f);
  return fma(half, erf(x * set1(0.70710678f)), half);
}

// 0.5 x (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3)
inline vf gelu_tanh(vf x) {
  const vf cube = x * x * x;
  return x * sigmoid(set1(1.59576912f) * fma(cube, set1(0.044715f), x));
}

inline vf relu(vf x) { return max(zero(), x); }    // this order keeps a NaN

// Call body(f) with f the vector function of `kind`: the choice is made once and not per value.
template <class Body> inline void with_activation(Activation kind, Body&& body) {
  switch (kind) {
    case Activation::none: return body([](vf x) { return x; });
    case Activation::silu: return body([](vf x) { return silu(x); });
    case Activation::gelu: return body([](vf x) { return gelu(x); });
    case Activation::gelu_tanh: return body([](vf x) { return gelu_tanh(x); });
    case Activation::relu: return body([](vf x) { return relu(x); });
    case Activation::sigmoid: return body([](vf x) { return sigmoid(x); });
  }
}

}  // namespace lattice
