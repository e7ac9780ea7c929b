// What an activation does to a gradient: g * act'(z), with torch's own choice where there is a corner.
#pragma once
#include "activation.h"

namespace {

// relu and relu6 pass g or nothing, so a gradient of infinity or NaN stops where torch stops it; NaN in z passes g.
SEP_INLINE V through_activation(V g, V z, int32_t activation) {
  const V zero = V{}, one = splat(1.0f);
  switch (activation) {
    case SEP_RELU: return select((VI)(z <= zero), zero, g);
    case SEP_RELU6: return select((VI)(z <= zero) | (VI)(z >= splat(6.0f)), zero, g);
    case SEP_SILU: {
      const V s = sigmoid(z);
      return g * s * (one + z * (one - s));
    }
    case SEP_HARD_SWISH: {
      const V inside = fma(z, splat(1.0f / 3.0f), splat(0.5f));
      return g * select((VI)(z <= splat(-3.0f)), zero, select((VI)(z >= splat(3.0f)), one, inside));
    }
    case SEP_GELU: {
      const V below = splat(0.5f) * (one + error_function(z * splat(0.70710678f)));
      const V density = exponential(maximum(z * z * splat(-0.5f), splat(-80.0f))) * splat(0.39894228f);
      return g * fma(z, density, below);
    }
    default: return g;
  }
}

}  // namespace
