// Depthwise convolution of some output rows of one channels-last image, for the fused chains: multiplier 1, from cache to cache.
//
// For each block of kLanes channels, rows are walked from top to bottom, so that an input row comes once into the first-level
// cache; along a row a group of outputs is summed in registers, each input vector being loaded once for all outputs it reaches.
#pragma once
#include "activation.h"
#include "separable_conv.h"
#include "vec.h"

namespace {

typedef sep_depthwise_step Step;

enum { kGroup = 7 };  // outputs summed at once: divides 7, 14, 28, 56 and 112; 7 sums and 7 weights fit 16 registers

// One group of outputs of one block of channels.
struct Group {
  const float* x;  // the first output's window: tap (0, 0), which may lie outside the image
  int64_t x_row, x_pixel;
  int64_t low, high;  // columns of the window that are inside the image: low <= column < high
  const float* w;     // the block's taps
  float* y;
  int64_t y_pixel;
  V bias;
  int32_t activation, first_tap, last_tap;  // rows of the kernel that are inside the image
  int32_t width;                            // of the kernel
  int32_t stride, dilation;                 // read by the general group only
  int64_t channels;                         // in this block: fewer than kLanes in an image of fewer
};

void finish_group(float* y, int64_t y_pixel, int64_t outputs, int32_t activation) {
  for (int64_t i = 0; i < outputs; ++i) store(y + i * y_pixel, activate(load(y + i * y_pixel), activation));
}

template <int K, int S, int G, bool Checked>
void group(const Group& g) {
  V sum[G];
  #pragma GCC unroll 8
  for (int i = 0; i < G; ++i) sum[i] = g.bias;
  const float *x = g.x + g.first_tap * g.x_row, *w = g.w + g.first_tap * K * kLanes;
  for (int32_t ky = g.first_tap; ky < g.last_tap; ++ky, x += g.x_row, w += K * kLanes) {
    V weight[K];
    #pragma GCC unroll 8
    for (int k = 0; k < K; ++k) weight[k] = load(w + k * kLanes);
    #pragma GCC unroll 32
    for (int column = 0; column < (G - 1) * S + K; ++column) {
      if (Checked && (column < g.low || column >= g.high)) continue;
      const V v = load(x + column * g.x_pixel);
      #pragma GCC unroll 8
      for (int i = 0; i < G; ++i)
        if (column - i * S >= 0 && column - i * S < K) sum[i] = fma(v, weight[column - i * S], sum[i]);
    }
  }
  const bool simple = is_clamp(g.activation);
  const V low = clamp_low(simple ? g.activation : SEP_NONE), high = clamp_high(simple ? g.activation : SEP_NONE);
  #pragma GCC unroll 8
  for (int i = 0; i < G; ++i) store(g.y + i * g.y_pixel, clamp(sum[i], low, high));
  if (!simple) finish_group(g.y, g.y_pixel, G, g.activation);
}

// Any kernel, stride and dilation, any number of channels: one output.
void general_output(const Group& g) {
  V sum = g.bias;
  for (int32_t ky = g.first_tap; ky < g.last_tap; ++ky)
    for (int32_t k = 0; k < g.width; ++k) {
      const int64_t column = (int64_t)k * g.dilation;
      if (column < g.low || column >= g.high) continue;
      const V v = load_tail(g.x + ky * g.x_row + column * g.x_pixel, g.channels);
      sum = fma(v, load(g.w + (ky * g.width + k) * kLanes), sum);
    }
  store_tail(g.y, activate(sum, g.activation), g.channels);
}

typedef void (*GroupFunction)(const Group&);
struct Groups {
  GroupFunction inside[4], checked[4];  // of kGroup, 4, 2 and 1 outputs
};
#define SEP_GROUPS(K, S)                                                                                         \
  {{group<K, S, kGroup, false>, group<K, S, 4, false>, group<K, S, 2, false>, group<K, S, 1, false>},            \
   {group<K, S, kGroup, true>, group<K, S, 4, true>, group<K, S, 2, true>, group<K, S, 1, true>}}
const Groups kGroups[3][2] = {{SEP_GROUPS(3, 1), SEP_GROUPS(3, 2)},
                              {SEP_GROUPS(5, 1), SEP_GROUPS(5, 2)},
                              {SEP_GROUPS(7, 1), SEP_GROUPS(7, 2)}};
const int kGroupOutputs[4] = {kGroup, 4, 2, 1};

const Groups* special_groups(const Step& s) {
  const int32_t k = s.kernel[1];
  if ((k != 3 && k != 5 && k != 7) || s.stride[1] > 2 || s.dilation[1] != 1 || s.channels < kLanes) return nullptr;
  return &kGroups[k / 2 - 1][s.stride[1] - 1];
}

// One output row of one block of channels: groups side by side, the last one moved back to end with the row.
void convolve_row(const Step& s, const Groups* special, Group g, const float* row, float* y) {
  int size = 3;
  while (special && size > 0 && kGroupOutputs[size - 1] <= s.out[1]) --size;
  const int64_t outputs = special ? kGroupOutputs[size] : 1;
  const int64_t reach = (outputs - 1) * s.stride[1] + (int64_t)(s.kernel[1] - 1) * s.dilation[1];
  for (int64_t ox = 0; ox < s.out[1]; ox += outputs) {
    const int64_t first = ox + outputs <= s.out[1] ? ox : s.out[1] - outputs;
    const int64_t ix = first * s.stride[1] - s.padding[1];
    g.x = row + ix * g.x_pixel;
    g.y = y + first * g.y_pixel;
    g.low = -ix;
    g.high = s.size[1] - ix;
    const bool inside = ix >= 0 && ix + reach < s.size[1];
    if (!special) general_output(g);
    else if (inside) special->inside[size](g);
    else special->checked[size](g);
  }
}

// Output rows [first, last). x: where the image's row 0 is or would be; y: output row `first`. Both dense.
void convolve_rows(const Step& s, const float* x, float* y, int64_t first, int64_t last) {
  const int64_t C = s.channels, taps = (int64_t)s.kernel[0] * s.kernel[1];
  const Groups* special = special_groups(s);
  Group g = {};
  g.x_pixel = g.y_pixel = C;
  g.x_row = s.size[1] * C * s.dilation[0];
  g.activation = s.activation;
  g.width = s.kernel[1];
  g.dilation = s.dilation[1];
  for (int64_t c = 0; c < C; c += kLanes) {
    g.channels = C < kLanes ? C : (int64_t)kLanes;
    const int64_t at = C < kLanes || c + kLanes <= C ? c : C - kLanes;  // the last block overlaps the one before
    g.w = s.weight + c * taps;
    g.bias = s.bias ? load_tail(s.bias + at, g.channels) : V{};
    for (int64_t oy = first; oy < last; ++oy) {
      const int64_t iy = oy * s.stride[0] - s.padding[0], d = s.dilation[0];
      int32_t from = 0, to = s.kernel[0];
      while (from < to && iy + from * d < 0) ++from;
      while (to > from && iy + (to - 1) * d >= s.size[0]) --to;
      g.first_tap = from;
      g.last_tap = to;
      convolve_row(s, special, g, x + iy * s.size[1] * C + at, y + (oy - first) * s.out[1] * C + at);
    }
  }
}

int64_t packed_floats(const Step* s) {
  return (s->channels + kLanes - 1) / kLanes * kLanes * s->kernel[0] * s->kernel[1];
}

// (channels, taps) -> (block, taps, kLanes), the last block as it overlaps; zeros where an image has fewer channels.
void pack_depthwise(const Step* s, const float* weight, float* packed) {
  const int64_t C = s->channels, taps = (int64_t)s->kernel[0] * s->kernel[1];
  for (int64_t c = 0; c < C; c += kLanes) {
    const int64_t at = C < kLanes || c + kLanes <= C ? c : C - kLanes;
    for (int64_t t = 0; t < taps; ++t)
      for (int64_t l = 0; l < kLanes; ++l) *packed++ = at + l < C ? weight[(at + l) * taps + t] : 0;
  }
}

}  // namespace
