// Depthwise convolution of some output rows of one dense channels-last image, float32 or bfloat16; channels are
// those of the output, M of them for each of the input.
//
// A group of outputs side by side is summed in registers, kLanes channels at a time: each input vector is loaded once for all the
// outputs it reaches, and memory is read as it lies (channel blocks outermost measured the same for 32 channels, slower for more).
#pragma once
#include "activation.h"
#include "separable_conv.h"
#include "vec.h"

namespace {

typedef sep_depthwise_step Step;

enum { kGroup = 7 };  // outputs summed at once: divides 7, 14, 28, 56 and 112; 7 sums and 7 weights fit 16 registers

// One group of outputs side by side, all channels.
template <class T>
struct Group {
  const T* x;  // the first output's window: tap (0, 0), which may lie outside the image
  int64_t x_row, x_pixel, pixel;  // elements to the next row of taps, to the next pixel of x, and of y
  int64_t low, high;     // columns of the window that are inside the image: low <= column < high
  const float *w, *bias;
  T* y;
  int64_t channels;
  int32_t first_tap, last_tap;  // rows of the kernel that are inside the image
  int32_t height, width, stride, dilation, activation;
  bool streams;  // writes past the caches; the activation is a clamp then
};

// Where block c begins: the last one overlaps the one before rather than being shorter.
SEP_INLINE int64_t block_start(int64_t c, int64_t channels) {
  return c + kLanes <= channels || channels < kLanes ? c : channels - kLanes;
}

// Lanes of kLanes / M neighbouring channels, each M times.
template <int M, class T>
SEP_INLINE V spread(const T* p, VI index) {
  return M == 1 ? load(p) : permute(load_tail(p, kLanes / M), index);
}
SEP_INLINE VI spread_index(int share) {
  VI index;
  for (int l = 0; l < kLanes; ++l) index[l] = l / share;
  return index;
}

SEP_INLINE void put(float* p, V a, bool streams) {
  if (streams) stream(p, a);
  else store(p, a);
}
SEP_INLINE void put(uint16_t* p, V a, bool) { store(p, a); }

template <class T>
void finish_group(T* y, int64_t pixel, int64_t outputs, int32_t activation) {
  for (int64_t i = 0; i < outputs; ++i) store(y + i * pixel, activate(load(y + i * pixel), activation));
}

template <class T, int M, int K, int S, int G, bool Checked>
void group(const Group<T>& g) {
  const VI index = spread_index(M);
  const bool simple = is_clamp(g.activation);
  const V low = clamp_low(simple ? g.activation : SEP_NONE), high = clamp_high(simple ? g.activation : SEP_NONE);
  const float* taps = g.w;
  for (int64_t c = 0; c < g.channels; c += kLanes, taps += g.height * K * kLanes) {
    const int64_t at = block_start(c, g.channels);
    V sum[G];
    #pragma GCC unroll 8
    for (int i = 0; i < G; ++i) sum[i] = g.bias ? load(g.bias + at) : V{};
    const T* x = g.x + g.first_tap * g.x_row + at / M;
    const float* w = taps + g.first_tap * K * kLanes;
    for (int32_t ky = g.first_tap; ky < g.last_tap; ++ky, x += g.x_row, w += K * kLanes) {
      V weight[K];
      #pragma GCC unroll 8
      for (int k = 0; k < K; ++k) weight[k] = load(w + k * kLanes);
      #pragma GCC unroll 32
      for (int column = 0; column < (G - 1) * S + K; ++column) {
        if (Checked && (column < g.low || column >= g.high)) continue;
        const V v = spread<M>(x + column * g.x_pixel, index);
        #pragma GCC unroll 8
        for (int i = 0; i < G; ++i)
          if (column - i * S >= 0 && column - i * S < K) sum[i] = fma(v, weight[column - i * S], sum[i]);
      }
    }
    #pragma GCC unroll 8
    for (int i = 0; i < G; ++i) put(g.y + i * g.pixel + at, clamp(sum[i], low, high), g.streams);
    if (!simple) finish_group(g.y + at, g.pixel, G, g.activation);
  }
}

// Any kernel, stride and dilation, any number of channels: one output.
template <class T>
void general_output(const Group<T>& g) {
  const int64_t n = g.channels < kLanes ? g.channels : (int64_t)kLanes;
  for (int64_t c = 0; c < g.channels; c += kLanes) {
    const int64_t at = block_start(c, g.channels);
    const float* taps = g.w + c * g.height * g.width;
    V sum = g.bias ? load_tail(g.bias + at, n) : V{};
    for (int32_t ky = g.first_tap; ky < g.last_tap; ++ky)
      for (int32_t k = 0; k < g.width; ++k) {
        const int64_t column = (int64_t)k * g.dilation;
        if (column < g.low || column >= g.high) continue;
        const V v = load_tail(g.x + ky * g.x_row + column * g.x_pixel + at, n);
        sum = fma(v, load(taps + (ky * g.width + k) * kLanes), sum);
      }
    store_tail(g.y + at, activate(sum, g.activation), n);
  }
}

template <class T>
struct Groups {
  void (*inside[4])(const Group<T>&);  // of kGroup, 4, 2 and 1 outputs
  void (*checked[4])(const Group<T>&);
};
#define SEP_GROUPS(M, K, S)                                                                                                \
  {{group<T, M, K, S, kGroup, false>, group<T, M, K, S, 4, false>, group<T, M, K, S, 2, false>, group<T, M, K, S, 1, false>}, \
   {group<T, M, K, S, kGroup, true>, group<T, M, K, S, 4, true>, group<T, M, K, S, 2, true>, group<T, M, K, S, 1, true>}}
template <class T, int M>
constexpr Groups<T> kGroups[1][2] = {{SEP_GROUPS(M, 3, 1), SEP_GROUPS(M, 3, 2)}};
template <class T>
constexpr Groups<T> kGroups<T, 1>[3][2] = {{SEP_GROUPS(1, 3, 1), SEP_GROUPS(1, 3, 2)},
                                           {SEP_GROUPS(1, 5, 1), SEP_GROUPS(1, 5, 2)},
                                           {SEP_GROUPS(1, 7, 1), SEP_GROUPS(1, 7, 2)}};
const int kGroupOutputs[4] = {kGroup, 4, 2, 1};

template <class T, int M>
const Groups<T>* special_groups(const Step& s) {
  const int32_t k = s.kernel[1];
  if ((k != 3 && (M > 1 || (k != 5 && k != 7))) || s.stride[1] > 2 || s.dilation[1] != 1 || s.channels < kLanes) return nullptr;
  return &kGroups<T, M>[k / 2 - 1][s.stride[1] - 1];
}

// Output rows [first, last). x: where the image's row 0 is or would be; y: output row `first`. Both dense. M > 1 for what
// `special_groups` knows alone; bfloat16 is rounded before an activation that is no clamp.
template <class T, int M = 1>
void convolve_rows(const Step& s, const T* x, T* y, int64_t first, int64_t last, bool streams = false) {
  const Groups<T>* special = special_groups<T, M>(s);
  Group<T> g = {};
  g.streams = streams;
  g.pixel = g.channels = s.channels, g.x_pixel = s.channels / M;
  g.x_row = s.size[1] * g.x_pixel * s.dilation[0];
  g.w = s.weight, g.bias = s.bias;
  g.height = s.kernel[0], g.width = s.kernel[1];
  g.stride = s.stride[1], g.dilation = s.dilation[1], g.activation = s.activation;
  int size = 3;
  while (special && size > 0 && kGroupOutputs[size - 1] <= s.out[1]) --size;
  const int64_t outputs = special ? kGroupOutputs[size] : 1;
  const int64_t reach = (outputs - 1) * s.stride[1] + (int64_t)(s.kernel[1] - 1) * s.dilation[1];
  for (int64_t oy = first; oy < last; ++oy) {
    const int64_t iy = oy * s.stride[0] - s.padding[0], d = s.dilation[0];
    g.first_tap = 0, g.last_tap = s.kernel[0];
    while (g.first_tap < g.last_tap && iy + g.first_tap * d < 0) ++g.first_tap;
    while (g.last_tap > g.first_tap && iy + (g.last_tap - 1) * d >= s.size[0]) --g.last_tap;
    for (int64_t at = 0; at < s.out[1]; at += outputs) {
      const int64_t ox = at + outputs <= s.out[1] ? at : s.out[1] - outputs;  // the last group moves back to end with the row
      const int64_t ix = ox * s.stride[1] - s.padding[1];
      g.x = x + (iy * s.size[1] + ix) * g.x_pixel;
      g.y = y + ((oy - first) * s.out[1] + ox) * s.channels;
      g.low = -ix, g.high = s.size[1] - ix;
      if (!special) {
        if constexpr (M == 1) general_output(g);
      } else if (ix >= 0 && ix + reach < s.size[1]) {
        special->inside[size](g);
      } else {
        special->checked[size](g);
      }
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
    const int64_t at = block_start(c, C);
    for (int64_t t = 0; t < taps; ++t)
      for (int64_t l = 0; l < kLanes; ++l) *packed++ = at + l < C ? weight[(at + l) * taps + t] : 0;
  }
}

}  // namespace
