// Dense convolution by patches: a tile of output pixels gathers its patches, kh*kw*channels floats each, in scratch memory.
#pragma once
#include "dense_group.h"

namespace {

enum { kTileBytes = 96 << 10 };  // of patches: written and read again at once

int64_t pixels(const Group& a) { return a.batch * a.out[0] * a.out[1]; }

// A multiple of 56 pixels, or of 64: whole tiles of registers on every instruction set, or nearly, and whole matrix tiles.
int64_t tile_pixels(const Group& a) {
  const int64_t whole = a.product == SEP_BF16_TILES ? 64 : 56, fit = kTileBytes / (4 * patch_floats(a)) / whole * whole;
  return fit < whole ? whole : fit;
}

// Floats of a patch from one tap to the next, and from one channel to the next.
int64_t tap_stride(const Group& a) { return is_planar(a) ? 1 : a.channels; }
int64_t channel_stride(const Group& a) { return is_planar(a) ? (int64_t)a.kernel[0] * a.kernel[1] : 1; }

int64_t patches_units(const Group& a) { return ceil_div(pixels(a), tile_pixels(a)); }

int64_t patches_scratch_bytes(const Group& a) {
  const sep_pointwise_conv_args p = product(a, tile_pixels(a));
  return aligned(tile_pixels(a) * patch_floats(a) * 4) + aligned(patch_floats(a) * 8) + SEP_TABLE(pointwise_conv).scratch_bytes(&p);
}

// The patch of an output pixel at a border, zeros where it leaves the image. x: the image.
void gather_clipped(const Group& a, const float* x, int64_t top, int64_t left, float* to) {
  const int64_t C = a.channels, tap = tap_stride(a), channel = channel_stride(a), *s = a.x_stride;
  for (int64_t ky = 0; ky < a.kernel[0]; ++ky) {
    const int64_t y = top + ky * a.dilation[0];
    for (int64_t kx = 0; kx < a.kernel[1]; ++kx, to += tap) {
      const int64_t column = left + kx * a.dilation[1];
      const bool inside = y >= 0 && y < a.size[0] && column >= 0 && column < a.size[1];
      for (int64_t c = 0; c < C; ++c) to[c * channel] = inside ? x[y * s[2] + column * s[3] + c * s[1]] : 0;
    }
  }
}

// Inside the image every patch is the same walk from its first element: along runs of channels, or by a table of offsets.
bool is_channels_last(const Group& a) {
  return (a.x_stride[1] == 1 || a.channels == 1) && a.x_stride[3] == a.channels && a.dilation[1] == 1;
}

void gather_runs(const Group& a, const float* from, float* to) {
  const int64_t run = a.kernel[1] * a.channels;
  for (int64_t ky = 0; ky < a.kernel[0]; ++ky, from += a.dilation[0] * a.x_stride[2], to += run)
    for (int64_t i = 0; i < run; i += kLanes) {
      const int64_t n = least(kLanes, run - i);
      store_tail(to + i, load_tail(from + i, n), n);
    }
}

void fill_offsets(const Group& a, int64_t* offsets) {
  const int64_t taps = (int64_t)a.kernel[0] * a.kernel[1], tap = tap_stride(a), channel = channel_stride(a);
  for (int64_t t = 0; t < taps; ++t)
    for (int64_t c = 0; c < a.channels; ++c)
      offsets[t * tap + c * channel] = t / a.kernel[1] * a.dilation[0] * a.x_stride[2] +
                                       t % a.kernel[1] * a.dilation[1] * a.x_stride[3] + c * a.x_stride[1];
}

// Patches of the output pixels [first, last), counted over all images.
void gather(const Group& a, const int64_t* offsets, int64_t first, int64_t last, float* to) {
  const int64_t patch = patch_floats(a), *s = a.x_stride;
  const int64_t down = (int64_t)(a.kernel[0] - 1) * a.dilation[0], right = (int64_t)(a.kernel[1] - 1) * a.dilation[1];
  const bool runs = is_channels_last(a);
  int64_t ox = first % a.out[1], oy = first / a.out[1] % a.out[0], image = first / a.out[1] / a.out[0];
  for (int64_t i = first; i < last; ++i, to += patch) {
    const int64_t top = oy * a.stride[0] - a.padding[0], left = ox * a.stride[1] - a.padding[1];
    const float* x = a.x + image * s[0];
    if (top < 0 || left < 0 || top + down >= a.size[0] || left + right >= a.size[1]) {
      gather_clipped(a, x, top, left, to);
    } else if (runs) {
      gather_runs(a, x + top * s[2] + left * s[3], to);
    } else {
      const float* from = x + top * s[2] + left * s[3];
      for (int64_t k = 0; k < patch; ++k) to[k] = from[offsets[k]];
    }
    if (++ox < a.out[1]) continue;
    ox = 0;
    if (++oy < a.out[0]) continue;
    oy = 0;
    ++image;
  }
}

void run_patches(const Group& a, int64_t unit, void* scratch) {
  const int64_t all = tile_pixels(a), patch = patch_floats(a), first = unit * all, last = least(pixels(a), first + all);
  float* patches = (float*)scratch;
  int64_t* offsets = (int64_t*)((char*)scratch + aligned(all * patch * 4));
  void* inner = (char*)offsets + aligned(patch * 8);
  fill_offsets(a, offsets);
  gather(a, offsets, first, last, patches);
  const bool dense = a.y_stride[1] == a.out[1] * a.y_stride[2] && a.y_stride[0] == a.out[0] * a.y_stride[1];
  for (int64_t i = first, next; i < last; i = next) {  // rows of pixels, which lie apart where y has gaps
    next = dense ? last : least(last, i - i % a.out[1] + a.out[1]);
    const int64_t row = i / a.out[1], at = row_at(a, row / a.out[0], row % a.out[0]) + i % a.out[1] * a.y_stride[2];
    sep_pointwise_conv_args p = product(a, next - i);
    p.x = patches + (i - first) * patch;
    p.y = a.y + at;
    p.residual = a.residual ? a.residual + at : nullptr;
    SEP_TABLE(pointwise_conv).run(&p, inner, 0, SEP_TABLE(pointwise_conv).units(&p));
  }
}

}  // namespace
