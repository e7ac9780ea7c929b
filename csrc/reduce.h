// Sums along a row, in an order that depends on its length alone.
#pragma once
#include "vec.h"

namespace {

SEP_INLINE V first_lanes(V a, int64_t n) {  // zeros after them
  VI lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return select(lane < (VI{} + (int32_t)n), a, V{});
}

SEP_INLINE float total(V a) {
  for (int half = kLanes / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) a[i] += a[i + half];
  return a[0];
}

struct Moments {
  float mean, factor;  // factor = 1 / sqrt(variance + epsilon)
};

// Four sums at a time, so that additions do not wait for one another.
SEP_INLINE Moments moments(const float* x, int64_t channels, float epsilon) {
  V sum[4] = {}, squares[4] = {};
  int64_t c = 0;
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes)
    for (int i = 0; i < 4; ++i) sum[i] += load(x + c + i * kLanes);
  for (; c < channels; c += kLanes) sum[0] += load_tail(x + c, channels - c < kLanes ? channels - c : (int64_t)kLanes);
  const float mean = total((sum[0] + sum[1]) + (sum[2] + sum[3])) / (float)channels;
  for (c = 0; c + 4 * kLanes <= channels; c += 4 * kLanes)
    for (int i = 0; i < 4; ++i) {
      const V d = load(x + c + i * kLanes) - splat(mean);
      squares[i] = fma(d, d, squares[i]);
    }
  for (; c < channels; c += kLanes) {
    const int64_t n = channels - c < kLanes ? channels - c : (int64_t)kLanes;
    const V d = first_lanes(load_tail(x + c, n) - splat(mean), n);
    squares[0] = fma(d, d, squares[0]);
  }
  const float variance = total((squares[0] + squares[1]) + (squares[2] + squares[3])) / (float)channels;
  return {mean, 1.0f / __builtin_sqrtf(variance + epsilon)};
}

}  // namespace
