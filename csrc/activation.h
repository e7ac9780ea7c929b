// Activations of a vector of floats, by our own polynomials: exp within 2 units in the last place, erf within 4e-7.
// Infinities and NaN come out as torch has them: silu(-inf), hard_swish(-inf) and gelu(-inf) are NaN.
#pragma once
#include "kernels.h"
#include "vec.h"

namespace {

// 2^n * 2^f with n = round(x / ln 2): the fraction by Taylor's series (|f ln 2| < 0.35, degree 6), the power by its bits.
SEP_INLINE V exponential(V x) {
  const V c = maximum(minimum(x, splat(88.72283f)), splat(-87.3f));  // NaN stays NaN
  const V shifted = fma(c, splat(1.44269504f), splat(12582912.0f));  // 1.5 * 2^23: the integer lands in the low bits
  const V n = shifted - splat(12582912.0f);
  V r = fma(n, splat(-0.693359375f), c);
  r = fma(n, splat(2.12194440e-4f), r);
  V p = splat(1.38888889e-3f);
  p = fma(p, r, splat(8.33333333e-3f));
  p = fma(p, r, splat(4.16666667e-2f));
  p = fma(p, r, splat(1.66666667e-1f));
  p = fma(p, r, splat(0.5f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  const VI half = ((VI)shifted - (VI)splat(12582912.0f)) >> 1, rest = ((VI)shifted - (VI)splat(12582912.0f)) - half;
  const V scaled = p * (V)((half + 127) << 23) * (V)((rest + 127) << 23);  // in two steps: n may be 128
  return select((VI)(x > splat(88.72283f)), splat(__builtin_inff()), scaled);
}

SEP_INLINE V sigmoid(V x) { return splat(1.0f) / (splat(1.0f) + exponential(-x)); }

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
  return maximum(minimum(c * p / q, splat(1.0f)), splat(-1.0f));
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
    case SEP_SILU: return x / (splat(1.0f) + exponential(-x));
    case SEP_HARD_SWISH: return x * clamp(x + splat(3.0f), splat(0.0f), splat(6.0f)) * splat(1.0f / 6.0f);
    case SEP_GELU: return splat(0.5f) * x * (splat(1.0f) + error_function(x * splat(0.70710678f)));
    case SEP_SIGMOID: return sigmoid(x);
    case SEP_HARD_SIGMOID: return clamp(x + splat(3.0f), splat(0.0f), splat(6.0f)) * splat(1.0f / 6.0f);
    default: return x;
  }
}

}  // namespace
