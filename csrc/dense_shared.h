// Vectors of filters of several groups: each lane takes the channels of its own group, so that none multiplies zeros.
//
// A pixel of input lies in scratch memory as vectors that hold `part` channels of one group, of the next, and so on, a lane for each
// filter. A step permutes such a vector, so that every lane has the same channel of its own group, and multiplies it by a vector of weights.
#pragma once
#include "dense_copy.h"

namespace {

// One row of the input: the pixels of copy_pixels, each of so many vectors.
void copy_shared(const Group& a, const float* row, int64_t width, float* to) {
  const int64_t C = a.channels, left = a.padding[1], *s = a.x_stride, used = a.members * C;
  for (int64_t i = 0; i < row_pixels(a); ++i, to += a.widest) {
    const int64_t pixel = i - left;
    const float* from = pixel >= 0 && pixel < width ? row + pixel * s[3] : nullptr;
    if (!from || (C == a.part && s[1] == 1)) {  // as they lie
      for (int64_t c = 0; c < a.widest; c += kLanes) store(to + c, from ? load_tail(from, used) : V{});
      continue;
    }
    for (int64_t c = 0; c < C; c += a.part)
      for (int64_t member = 0; member * a.part < kLanes; ++member) {
        const int64_t n = member < a.members ? least(a.part, C - c) : 0;
        for (int64_t l = 0; l < a.part; ++l)
          to[c / a.part * kLanes + member * a.part + l] = l < n ? from[(member * C + c + l) * s[1]] : 0;
      }
  }
}

// (filters, kh, kw, channels) of the share: a vector for each tap and channel.
void pack_shared(const Group& a, const float* weight, float* packed) {
  const int64_t patch = patch_floats(a);
  for (int64_t k = 0; k < patch; ++k)
    for (int64_t l = 0; l < kLanes; ++l) packed[k * kLanes + l] = l < a.filters ? weight[l * patch + k] : 0;
}

struct SharedTile : Tile {
  const int32_t* index;                   // `part` permutations
  int64_t channels, part;
  int64_t taps[2], skip[2];               // of a column, of a row; floats from the end of one to the next
};

template <int R>
void shared_tile(const SharedTile& t) {
  V sum[R][1];
  const bool whole = t.columns >= kLanes;
  const V first = t.bias ? load_tail(t.bias, t.columns) : V{};
  #pragma GCC unroll 16
  for (int r = 0; r < R; ++r) sum[r][0] = first;
  Rows<R> rows = rows_from<R>(t.x, t.x_stride);
  const float* w = t.w;
  for (int64_t ky = 0; ky < t.taps[0]; ++ky, advance(rows, t.skip[0]))
    for (int64_t kx = 0; kx < t.taps[1]; ++kx, advance(rows, t.skip[1]))
      for (int64_t left = t.channels; left > 0; left -= t.part, advance(rows, kLanes)) {
        const int32_t* index = t.index;
        for (int64_t i = least(left, t.part); i > 0; --i, w += kLanes, index += kLanes) {
          const V weight = load(w);
          const VI lanes = *(const VIMemory*)index;
          #pragma GCC unroll 16
          for (int r = 0; r < R; ++r) sum[r][0] = fma(permute(load((const float*)row_of(rows, r)), lanes), weight, sum[r][0]);
        }
      }
  if (whole) store_whole<R, 1>(t, sum);
  else store_some<R, 1>(t, sum);
  if (!is_clamp(t.activation)) finish(t, R);
}

typedef void (*SharedFunction)(const SharedTile&);
#define SEP_SHARED_FEW shared_tile<1>, shared_tile<2>, shared_tile<3>, shared_tile<4>, shared_tile<5>, shared_tile<6>
#define SEP_SHARED_MANY shared_tile<7>, shared_tile<8>, shared_tile<9>, shared_tile<10>, shared_tile<11>, shared_tile<12>, shared_tile<13>, shared_tile<14>
#if defined(__AVX512F__) || defined(__aarch64__)
SharedFunction const kSharedTiles[kRows] = {SEP_SHARED_FEW, SEP_SHARED_MANY};
#else
SharedFunction const kSharedTiles[kRows] = {SEP_SHARED_FEW};
#endif

// So many rows of output. x: where the taps of the first begin; rows of input are `row` floats apart.
void multiply_shared(const Group& a, const float* x, int64_t row, int64_t rows, float* y, const float* residual) {
  int32_t index[kLanes * kLanes];
  for (int64_t l = 0; l < kLanes; ++l) {
    const int64_t member = least(a.ahead + l, a.ahead + a.filters - 1) / a.width;
    for (int64_t i = 0; i < a.part; ++i) index[i * kLanes + l] = (int32_t)(member * a.part + i);
  }
  SharedTile t;
  t.x_stride = a.stride[1] * a.widest;
  t.w = (const float*)a.weight;
  t.y_stride = t.residual_stride = a.y_stride[2];
  t.columns = a.filters;
  t.bias = a.bias;
  t.activation = a.activation, t.residual_first = a.residual_first;
  t.index = index, t.channels = a.channels, t.part = a.part;
  t.taps[0] = a.kernel[0], t.taps[1] = a.kernel[1];
  t.skip[1] = (a.dilation[1] - 1) * a.widest;
  t.skip[0] = a.dilation[0] * row - (int64_t)a.kernel[1] * a.dilation[1] * a.widest;
  const int64_t tiles = ceil_div(a.out[1], kRows);
  for (int64_t oy = 0; oy < rows; ++oy)
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t first = a.out[1] * i / tiles, pixels = a.out[1] * (i + 1) / tiles - first, at = oy * a.y_stride[1] + first * a.y_stride[2];
      t.x = (const Word*)(x + oy * a.stride[0] * row + first * t.x_stride);
      t.y = y + at;
      t.residual = residual ? residual + at : nullptr;
      kSharedTiles[pixels - 1](t);
    }
}

}  // namespace
