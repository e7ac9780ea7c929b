// Dense convolution: patches of a tile of output pixels side by side in scratch memory, then the product of pointwise_conv.
#include "dense_conv.h"

namespace {

typedef sep_dense_conv_args Args;

enum { kTileBytes = 96 << 10 };  // of patches: written and read again at once

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t aligned(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

int64_t patch_floats(const Args* a) { return (int64_t)a->kernel[0] * a->kernel[1] * a->channels; }

// A multiple of 56 pixels: whole tiles of registers on every instruction set, or nearly.
int64_t tile_pixels(const Args* a) {
  const int64_t fit = kTileBytes / (4 * patch_floats(a)) / 56 * 56;
  return fit < 56 ? 56 : fit;
}

int64_t pixels(const Args* a) { return a->batch * a->out[0] * a->out[1]; }

sep_pointwise_conv_args product(const Args* a, int64_t rows) {
  sep_pointwise_conv_args p = {};
  p.weight = a->weight, p.bias = a->bias;
  p.rows = rows, p.c_in = patch_floats(a), p.c_out = a->filters;
  p.x_stride = p.c_in, p.residual_stride = p.y_stride = a->filters;
  p.activation = a->activation, p.residual_first = a->residual_first, p.product = a->product;
  return p;
}

int64_t packed_bytes(const Args* a) {
  return SEP_TABLE(pointwise_conv).packed_bytes(patch_floats(a), a->filters, a->product);
}

int64_t units(const Args* a) { return ceil_div(pixels(a), tile_pixels(a)); }

int64_t scratch_bytes(const Args* a) {
  const sep_pointwise_conv_args p = product(a, tile_pixels(a));
  return aligned(tile_pixels(a) * patch_floats(a) * 4) + SEP_TABLE(pointwise_conv).scratch_bytes(&p);
}

// The patch of one output pixel, (kh, kw, channels), zeros where it leaves the image.
void gather(const Args* a, int64_t image, int64_t oy, int64_t ox, float* to) {
  const int64_t C = a->channels, *s = a->x_stride;
  for (int64_t ky = 0; ky < a->kernel[0]; ++ky) {
    const int64_t y = oy * a->stride[0] + ky * a->dilation[0] - a->padding[0];
    const float* row = a->x + image * s[0] + y * s[2];
    for (int64_t kx = 0; kx < a->kernel[1]; ++kx, to += C) {
      const int64_t x = ox * a->stride[1] + kx * a->dilation[1] - a->padding[1];
      if (y < 0 || y >= a->size[0] || x < 0 || x >= a->size[1]) {
        for (int64_t c = 0; c < C; ++c) to[c] = 0;
      } else {
        const float* p = row + x * s[3];
        for (int64_t c = 0; c < C; ++c) to[c] = p[c * s[1]];
      }
    }
  }
}

void run(const Args* a, void* scratch, int64_t begin, int64_t end) {
  const int64_t most = tile_pixels(a), patch = patch_floats(a), image_pixels = a->out[0] * a->out[1];
  float* patches = (float*)scratch;
  void* inner = (char*)scratch + aligned(most * patch * 4);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t first = unit * most, last = least(pixels(a), first + most);
    for (int64_t i = first; i < last; ++i)
      gather(a, i / image_pixels, i % image_pixels / a->out[1], i % a->out[1], patches + (i - first) * patch);
    sep_pointwise_conv_args p = product(a, last - first);
    p.x = patches;
    p.y = a->y + first * a->filters;
    p.residual = a->residual ? a->residual + first * a->filters : nullptr;
    SEP_TABLE(pointwise_conv).run(&p, inner, 0, SEP_TABLE(pointwise_conv).units(&p));
  }
}

void pack_weight(const Args* a, const float* weight, void* packed) {
  SEP_TABLE(pointwise_conv).pack_weight(weight, patch_floats(a), 1, patch_floats(a), a->filters, a->product, packed);
}

}  // namespace

extern "C" const sep_dense_conv_kernels SEP_TABLE(dense_conv) = {packed_bytes, pack_weight, units, scratch_bytes, run};
