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

// One group of outputs side by side, all channels of one map of each.
template <class T>
struct Group {
  const T* x;  // the first output's window: tap (0, 0), which may lie outside the image
  int64_t x_row, x_pixel, pixel;  // elements to the next row of taps, to the next pixel of x, and of y
  int64_t low, high;     // columns of the window that are inside the image: low <= column < high
  const float *w, *bias;
  T* y;
  int64_t channels;
  int32_t first_tap, last_tap;  // rows of the kernel that are inside the image
  int32_t height, width, stride, dilation, activation, adds;
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

// Sums of outputs to memory. What the group says is read before: the compiler cannot know that y is not the group.
template <int G, class T>
SEP_INLINE void put_group(const Group<T>& g, T* y, const V sum[G]) {
  const int64_t pixel = g.pixel;
  const int32_t activation = g.activation;
  const bool streams = g.streams;
  if (activation == SEP_NONE) {
    #pragma GCC unroll 8
    for (int i = 0; i < G; ++i) put(y + i * pixel, sum[i], streams);
  } else if (is_clamp(activation)) {
    const V low = clamp_low(activation), high = clamp_high(activation);
    #pragma GCC unroll 8
    for (int i = 0; i < G; ++i) put(y + i * pixel, clamp(sum[i], low, high), streams);
  } else {
    for (int i = 0; i < G; ++i) store(y + i * pixel, sum[i]);
    for (int i = 0; i < G; ++i) store(y + i * pixel, activate(load(y + i * pixel), activation));
  }
}

// M > 1: channels of the output, M of them for each of the input.
template <class T, int M, int K, int S, int G, bool Checked>
void group(const Group<T>& g) {
  const VI index = spread_index(M);
  const float* taps = g.w;
  const int64_t x_row = g.x_row, x_pixel = g.x_pixel;
  for (int64_t c = 0; c < g.channels; c += kLanes) {
    const int64_t at = block_start(c, g.channels);
    V sum[G];
    const V bias = g.bias ? load(g.bias + at) : V{};
    #pragma GCC unroll 8
    for (int i = 0; i < G; ++i) sum[i] = bias;
    const T* map = g.x + g.first_tap * x_row + at / M;
    for (int32_t left = g.adds; left > 0; --left, map += g.channels, taps += g.height * K * kLanes) {
      const T* x = map;
      const float* w = taps + g.first_tap * K * kLanes;
      for (int32_t rows = g.last_tap - g.first_tap; rows > 0; --rows, x += x_row, w += K * kLanes) {
        V weight[K];
        #pragma GCC unroll 8
        for (int k = 0; k < K; ++k) weight[k] = load(w + k * kLanes);
        #pragma GCC unroll 32
        for (int column = 0; column < (G - 1) * S + K; ++column) {
          if (Checked && (column < g.low || column >= g.high)) continue;
          const V v = held(spread<M>(x + column * x_pixel, index));
          #pragma GCC unroll 8
          for (int i = 0; i < G; ++i)
            if (column - i * S >= 0 && column - i * S < K) sum[i] = fma(v, weight[column - i * S], sum[i]);
        }
      }
    }
    put_group<G>(g, g.y + at, sum);
  }
}

// Any kernel, stride and dilation, any number of channels.
template <class T, int G, bool Checked>
void general_group(const Group<T>& g) {
  const int64_t n = g.channels < kLanes ? g.channels : (int64_t)kLanes, step = g.stride * g.x_pixel;
  const float* taps = g.w;
  for (int64_t c = 0; c < g.channels; c += kLanes) {
    const int64_t at = block_start(c, g.channels);
    V sum[G];
    const V bias = g.bias ? load_tail(g.bias + at, n) : V{};
    for (int i = 0; i < G; ++i) sum[i] = bias;
    const T* map = g.x + at;
    for (int32_t left = g.adds; left > 0; --left, map += g.channels, taps += (int64_t)g.height * g.width * kLanes)
      for (int32_t ky = g.first_tap; ky < g.last_tap; ++ky)
        for (int32_t k = 0; k < g.width; ++k) {
          const int64_t column = (int64_t)k * g.dilation;
          const T* x = map + ky * g.x_row + column * g.x_pixel;
          const V w = load(taps + (ky * g.width + k) * kLanes);
          #pragma GCC unroll 8
          for (int i = 0; i < G; ++i) {
            if (Checked && (column + i * g.stride < g.low || column + i * g.stride >= g.high)) continue;
            sum[i] = fma(load_tail(x + i * step, n), w, sum[i]);
          }
        }
    for (int i = 0; i < G; ++i) store_tail(g.y + i * g.pixel + at, activate(sum[i], g.activation), n);
  }
}

template <class T>
struct Groups {
  void (*inside[5])(const Group<T>&);  // of 8, kGroup, 4, 2 and 1 outputs
  void (*checked[5])(const Group<T>&);
};
const int kGroupOutputs[5] = {8, kGroup, 4, 2, 1};
#define SEP_GROUP_SIZES(M, K, S, checked)                                                                             \
  {group<T, M, K, S, 8, checked>, group<T, M, K, S, kGroup, checked>, group<T, M, K, S, 4, checked>, group<T, M, K, S, 2, checked>, \
   group<T, M, K, S, 1, checked>}
#define SEP_GROUPS(M, K, S) {SEP_GROUP_SIZES(M, K, S, false), SEP_GROUP_SIZES(M, K, S, true)}
template <class T, int M>
constexpr Groups<T> kGroups[1][2] = {{SEP_GROUPS(M, 3, 1), SEP_GROUPS(M, 3, 2)}};
template <class T>
constexpr Groups<T> kGroups<T, 1>[3][2] = {{SEP_GROUPS(1, 3, 1), SEP_GROUPS(1, 3, 2)},
                                           {SEP_GROUPS(1, 5, 1), SEP_GROUPS(1, 5, 2)},
                                           {SEP_GROUPS(1, 7, 1), SEP_GROUPS(1, 7, 2)}};
#define SEP_GENERAL_SIZES(checked)                                                                                                 \
  {general_group<T, 8, checked>, general_group<T, kGroup, checked>, general_group<T, 4, checked>, general_group<T, 2, checked>, \
   general_group<T, 1, checked>}
template <class T>
constexpr Groups<T> kGeneralGroups = {SEP_GENERAL_SIZES(false), SEP_GENERAL_SIZES(true)};

template <class T, int M>
const Groups<T>& groups_for(const Step& s) {
  const int32_t k = s.kernel[1];
  const bool special = (k == 3 || (M == 1 && (k == 5 || k == 7))) && s.stride[1] <= 2 && s.dilation[1] == 1 && s.channels >= kLanes;
  if (M > 1 || special) return kGroups<T, M>[k / 2 - 1][s.stride[1] - 1];
  return kGeneralGroups<T>;
}

// One group of outputs from (oy, ox) on, all its maps.
template <class T>
void convolve_group(const Step& s, void (*const inside)(const Group<T>&), void (*const checked)(const Group<T>&), Group<T>& g, const T* x,
                    T* y, int64_t oy, int64_t ox, int64_t reach) {
  const int64_t iy = oy * s.stride[0] - s.padding[0], ix = ox * s.stride[1] - s.padding[1], d = s.dilation[0];
  g.first_tap = 0, g.last_tap = s.kernel[0];
  while (g.first_tap < g.last_tap && iy + g.first_tap * d < 0) ++g.first_tap;
  while (g.last_tap > g.first_tap && iy + (g.last_tap - 1) * d >= s.size[0]) --g.last_tap;
  g.x = x + (iy * s.size[1] + ix) * g.x_pixel;
  g.low = -ix, g.high = s.size[1] - ix;
  const auto run = ix >= 0 && ix + reach < s.size[1] ? inside : checked;
  const int64_t packed = (s.channels + kLanes - 1) / kLanes * kLanes * s.kernel[0] * s.kernel[1];
  for (int32_t map = 0; map < s.makes; ++map) {
    g.w = s.weight + map * packed, g.bias = s.bias ? s.bias + map * s.channels : nullptr;
    g.y = y + map * s.channels;
    run(g);
  }
}

// Output rows [first, last). x: where the image's row 0 is or would be; y: output row `first`. Both dense. M > 1: of a kernel of 3 with
// stride 1 or 2 and no dilation, kLanes channels or more, the M maps of a channel side by side; `makes` and `adds` are 1 then. bfloat16 is
// rounded before an activation that is no clamp. `near`: x lies in a near cache, and is read down the columns: each line of it once.
template <class T, int M = 1>
void convolve_rows(const Step& s, const T* x, T* y, int64_t first, int64_t last, bool streams = false, bool near = false) {
  Group<T> g = {};
  g.streams = streams;
  g.channels = s.channels, g.pixel = s.channels * s.makes, g.x_pixel = s.channels * s.adds / M;
  g.x_row = s.size[1] * g.x_pixel * s.dilation[0];
  g.height = s.kernel[0], g.width = s.kernel[1], g.adds = s.adds;
  g.stride = s.stride[1], g.dilation = s.dilation[1], g.activation = s.activation;
  int size = s.out[1] % 8 == 0 ? 0 : 1;
  while (kGroupOutputs[size] > s.out[1]) ++size;
  const int64_t outputs = kGroupOutputs[size], width = s.out[1];
  const int64_t reach = (outputs - 1) * s.stride[1] + (int64_t)(s.kernel[1] - 1) * s.dilation[1];
  const Groups<T>& groups = groups_for<T, M>(s);
  const auto inside = groups.inside[size], checked = groups.checked[size];
  const auto at = [&](int64_t oy, int64_t column) {  // the last group moves back to end with the row
    const int64_t ox = column + outputs <= width ? column : width - outputs;
    convolve_group(s, inside, checked, g, x, y + ((oy - first) * width + ox) * g.pixel, oy, ox, reach);
  };
  if (near)
    for (int64_t column = 0; column < width; column += outputs)
      for (int64_t oy = first; oy < last; ++oy) at(oy, column);
  else
    for (int64_t oy = first; oy < last; ++oy)
      for (int64_t column = 0; column < width; column += outputs) at(oy, column);
}

int64_t packed_floats(const Step* s) {
  return (s->channels + kLanes - 1) / kLanes * kLanes * s->kernel[0] * s->kernel[1] * s->makes * s->adds;
}

// (channels, maps, taps) -> (map made, block, map added, taps, kLanes), the last block as it overlaps; zeros where an image has fewer
// channels.
void pack_depthwise(const Step* s, const float* weight, float* packed) {
  const int64_t C = s->channels, taps = (int64_t)s->kernel[0] * s->kernel[1], maps = (int64_t)s->makes * s->adds;
  for (int64_t made = 0; made < s->makes; ++made)
    for (int64_t c = 0; c < C; c += kLanes) {
      const int64_t at = block_start(c, C);
      for (int64_t map = made * s->adds; map < (made + 1) * s->adds; ++map)
        for (int64_t t = 0; t < taps; ++t)
          for (int64_t l = 0; l < kLanes; ++l) *packed++ = at + l < C ? weight[((at + l) * maps + map) * taps + t] : 0;
    }
}

}  // namespace
