// Activations of a vector of floats, by our own polynomials: exp within 2e-7 of itself, erf and tanh within 4e-7.
// Infinities and NaN come out as torch has them: silu(-inf), hard_swish(-inf) and gelu(-inf) are NaN.
#pragma once
#include "kernels.h"
#include "vec.h"

namespace {

// 2^n * e^r with n = round(x / ln 2): |r| < 0.35, 1 + r + r^2 Q(r) with Q fitted to the largest relative error, 1.6e-7.
// For -87 < x < 88; NaN stays NaN.
SEP_INLINE V exponential(V x) {
  const V n = nearest(x * splat(1.44269504f));
  V r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  V p = splat(0.008312514051795006f);
  p = fma(p, r, splat(0.04189015552401543f));
  p = fma(p, r, splat(0.16667114198207855f));
  p = fma(p, r, splat(0.499992311000824f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  return times_power_of_two(p, n);
}

// 0 below -80, where it is less than 2e-35; so silu(-infinity) is NaN, as in torch.
SEP_INLINE V sigmoid(V x) {
  const V c = minimum(maximum(x, splat(-80.0f)), splat(80.0f));
  return select((VI)(x < splat(-80.0f)), V{}, reciprocal(splat(1.0f) + exponential(-c)));
}

// x P(x^2) / Q(x^2), fitted to the largest error on |x| < 3.92, beyond which float32 knows only 1 and -1.
SEP_INLINE V error_function(V x) {
  const V c = minimum(maximum(x, splat(-3.92f)), splat(3.92f)), t = c * c;
  V p = splat(1.9921376548381886e-08f);
  p = fma(p, t, splat(-1.9942849576182198e-06f));
  p = fma(p, t, splat(0.0001489844435127452f));
  p = fma(p, t, splat(0.003972808364778757f));
  p = fma(p, t, splat(0.05139702558517456f));
  p = fma(p, t, splat(0.206112340092659f));
  p = fma(p, t, splat(1.1283787488937378f));
  V q = splat(0.001024102559313178f);
  q = fma(q, t, splat(0.01488905306905508f));
  q = fma(q, t, splat(0.11756377667188644f));
  q = fma(q, t, splat(0.5159910917282104f));
  q = fma(q, t, splat(1.0f));
  return maximum(minimum(c * p * reciprocal(q), splat(1.0f)), splat(-1.0f));
}

// x P(x^2) / Q(x^2), fitted to the largest relative error on |x| < 9, beyond which float32 knows only 1 and -1; within 4e-7 of itself.
SEP_INLINE V hyperbolic_tangent(V x) {
  const V c = minimum(maximum(x, splat(-9.0f)), splat(9.0f)), t = c * c;
  V p = splat(1.3354700863623082e-08f);
  p = fma(p, t, splat(2.0609113206262566e-05f));
  p = fma(p, t, splat(0.003495590086364036f));
  p = fma(p, t, splat(0.13381027304431653f));
  p = fma(p, t, splat(0.9999999794465785f));
  V q = splat(7.776575183531592e-07f);
  q = fma(q, t, splat(0.0003285637970674843f));
  q = fma(q, t, splat(0.025876989708283043f));
  q = fma(q, t, splat(0.4671434289630977f));
  q = fma(q, t, splat(1.0f));
  return maximum(minimum(c * p * reciprocal(q), splat(1.0f)), splat(-1.0f));
}

// relu and relu6 are max(min(x, high), low); with infinities the identity, so that none needs no branch.
SEP_INLINE V clamp(V x, V low, V high) { return minimum(maximum(x, low), high); }
SEP_INLINE bool is_clamp(int32_t activation) { return activation <= SEP_RELU6; }
SEP_INLINE V clamp_low(int32_t activation) { return splat(activation == SEP_NONE ? -__builtin_inff() : 0.0f); }
SEP_INLINE V clamp_high(int32_t activation) { return splat(activation == SEP_RELU6 ? 6.0f : __builtin_inff()); }

SEP_INLINE V activate(V x, int32_t activation) {
  switch (activation) {
    case SEP_RELU: return maximum(x, splat(0.0f));
    case SEP_RELU6: return clamp(x, splat(0.0f), splat(6.0f));
    case SEP_SILU: return x * sigmoid(x);
    case SEP_HARD_SWISH: return x * clamp(x + splat(3.0f), splat(0.0f), splat(6.0f)) * splat(1.0f / 6.0f);
    case SEP_GELU: return splat(0.5f) * x * (splat(1.0f) + error_function(x * splat(0.70710678f)));
    case SEP_SIGMOID: return sigmoid(x);
    case SEP_HARD_SIGMOID: return clamp(x + splat(3.0f), splat(0.0f), splat(6.0f)) * splat(1.0f / 6.0f);
    case SEP_TANH: return hyperbolic_tangent(x);
    default: return x;
  }
}

}  // namespace
