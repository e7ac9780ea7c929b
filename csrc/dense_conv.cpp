// Dense convolution: padded rows of the input, or patches of a tile of output pixels, in scratch memory; then pointwise_conv.
#include "dense_conv.h"

#include "vec.h"

namespace {

typedef sep_dense_conv_args Args;

enum {
  kTileBytes = 96 << 10,     // of patches: written and read again at once
  kSmallWeight = 128 << 10,  // bytes that may be read again for each row of output
  kRowsBytes = 256 << 10,    // of padded rows
  kUnitWork = 1 << 18,       // multiply-adds
};

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t aligned(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

int64_t patch_floats(const Args* a) { return (int64_t)a->kernel[0] * a->kernel[1] * a->channels; }

// A multiple of 56 pixels, or of 64: whole tiles of registers on every instruction set, or nearly, and whole matrix tiles.
int64_t tile_pixels(const Args* a) {
  const int64_t whole = a->product == SEP_BF16_TILES ? 64 : 56, fit = kTileBytes / (4 * patch_floats(a)) / whole * whole;
  return fit < whole ? whole : fit;
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

// Whether pixels lie side by side, as in torch's default layout; then x and the weight are taken channel by channel. Of one channel
// both orders are the same.
bool is_planar(const Args* a) { return a->x_stride[3] == 1 && a->channels > 1; }

// Floats of a patch from one tap to the next, and from one channel to the next.
int64_t tap_stride(const Args* a) { return is_planar(a) ? 1 : a->channels; }
int64_t channel_stride(const Args* a) { return is_planar(a) ? (int64_t)a->kernel[0] * a->kernel[1] : 1; }

int64_t packed_bytes(const Args* a) {
  return SEP_TABLE(pointwise_conv).packed_bytes(patch_floats(a), a->filters, a->product);
}

// ---- windows on padded rows: (channels, kh, pixels) or (kh, pixels, channels)

int64_t row_pixels(const Args* a) { return (a->out[1] - 1) * a->stride[1] + a->kernel[1]; }
int64_t whole_tiles(int64_t pixels) { return ceil_div(pixels, 16) * 16; }  // matrix tiles load so many rows, and multiply them
int64_t rows_bytes(const Args* a) {
  if (a->product == SEP_F32) return a->kernel[0] * row_pixels(a) * a->channels * 4;
  const int64_t unread = (whole_tiles(a->out[1]) - a->out[1]) * a->stride[1];
  return (a->kernel[0] * row_pixels(a) + unread) * a->channels * 2;
}

bool has_windows(const Args* a) {
  // Matrix tiles take pairs of channels side by side, 16 of them at once, and rows enough to fill four of five tiles.
  const bool paired = !is_planar(a) && a->x_stride[1] == 1 && a->channels % 2 == 0 && a->kernel[1] * a->channels % 32 == 0;
  const bool tiles = a->product == SEP_BF16_TILES && paired && whole_tiles(a->out[1]) * 4 <= a->out[1] * 5;
  return (a->product == SEP_F32 || tiles) && a->dilation[1] == 1 && packed_bytes(a) <= kSmallWeight && rows_bytes(a) <= kRowsBytes;
}

int64_t unit_rows(const Args* a) {  // of output
  const int64_t work = a->out[1] * patch_floats(a) * a->filters;
  return work ? ceil_div(kUnitWork, work) : 1;
}

sep_pointwise_conv_args windows(const Args* a) {
  sep_pointwise_conv_args p = product(a, a->out[1]);
  const int64_t pixel = tap_stride(a), together = a->product == SEP_F32 ? 1 : 2;  // numbers that make one step
  p.x_stride = a->stride[1] * pixel / together;
  p.run = a->kernel[1] * pixel / together;
  p.run_stride = row_pixels(a) * pixel / together;
  return p;
}

// `count` elements that are `stride` floats apart, of which those before `first` and from `last` on are zeros. from: the element 0.
template <class T>
void copy_padded(const float* from, int64_t stride, int64_t first, int64_t last, int64_t count, T* to) {
  first = least(first < 0 ? 0 : first, count), last = least(last < first ? first : last, count);
  for (int64_t i = 0; i < first; ++i) to[i] = 0;
  for (int64_t i = first; i < last; i += kLanes) {
    const int64_t n = least(kLanes, last - i);
    V v = {};
    if (stride == 1) v = load_tail(from + i, n);
    else
      for (int64_t l = 0; l < n; ++l) v[l] = from[(i + l) * stride];
    store_tail(to + i, v, n);
  }
  for (int64_t i = last; i < count; ++i) to[i] = 0;
}

// The rows that output row `oy` of the image x reads.
template <class T>
void copy_rows(const Args* a, const float* x, int64_t oy, T* to) {
  const int64_t C = a->channels, all = row_pixels(a), left = a->padding[1], *s = a->x_stride;
  for (int64_t ky = 0; ky < a->kernel[0]; ++ky) {
    const int64_t y = oy * a->stride[0] - a->padding[0] + ky * a->dilation[0];
    const int64_t width = y >= 0 && y < a->size[0] ? a->size[1] : 0;  // a row outside the image is all zeros
    const float* row = x + y * s[2];
    if (is_planar(a))
      for (int64_t c = 0; c < C; ++c)
        copy_padded(row + c * s[1] - left, 1, left, left + width, all, to + (c * a->kernel[0] + ky) * all);
    else if ((s[1] == 1 || C == 1) && s[3] == C)
      copy_padded(row - left * C, 1, left * C, (left + width) * C, all * C, to + ky * all * C);
    else
      for (int64_t p = 0; p < all; ++p)
        copy_padded(row + (p - left) * s[3], s[1], 0, p >= left && p < left + width ? C : 0, C, to + (ky * all + p) * C);
  }
}

void run_windows(const Args* a, void* scratch, int64_t begin, int64_t end) {
  sep_pointwise_conv_args p = windows(a);
  p.x = (const float*)scratch;
  for (int64_t row = begin; row < end; ++row) {
    const float* x = a->x + row / a->out[0] * a->x_stride[0];
    if (a->product == SEP_F32) copy_rows(a, x, row % a->out[0], (float*)scratch);
    else copy_rows(a, x, row % a->out[0], (uint16_t*)scratch);
    p.y = a->y + row * a->out[1] * a->filters;
    p.residual = a->residual ? a->residual + row * a->out[1] * a->filters : nullptr;
    SEP_TABLE(pointwise_conv).run(&p, (char*)scratch + aligned(rows_bytes(a)), 0, SEP_TABLE(pointwise_conv).units(&p));
  }
}

// ---- units: rows of output, or tiles of its pixels

int64_t units(const Args* a) {
  if (has_windows(a)) return ceil_div(a->batch * a->out[0], unit_rows(a));
  return ceil_div(pixels(a), tile_pixels(a));
}

int64_t scratch_bytes(const Args* a) {
  if (has_windows(a)) {
    const sep_pointwise_conv_args p = windows(a);
    return aligned(rows_bytes(a)) + SEP_TABLE(pointwise_conv).scratch_bytes(&p);
  }
  const sep_pointwise_conv_args p = product(a, tile_pixels(a));
  return aligned(tile_pixels(a) * patch_floats(a) * 4) + aligned(patch_floats(a) * 8) + SEP_TABLE(pointwise_conv).scratch_bytes(&p);
}

// ---- patches

// The patch of an output pixel at a border, zeros where it leaves the image. x: the image.
void gather_clipped(const Args* a, const float* x, int64_t top, int64_t left, float* to) {
  const int64_t C = a->channels, tap = tap_stride(a), channel = channel_stride(a), *s = a->x_stride;
  for (int64_t ky = 0; ky < a->kernel[0]; ++ky) {
    const int64_t y = top + ky * a->dilation[0];
    for (int64_t kx = 0; kx < a->kernel[1]; ++kx, to += tap) {
      const int64_t column = left + kx * a->dilation[1];
      const bool inside = y >= 0 && y < a->size[0] && column >= 0 && column < a->size[1];
      for (int64_t c = 0; c < C; ++c) to[c * channel] = inside ? x[y * s[2] + column * s[3] + c * s[1]] : 0;
    }
  }
}

// Inside the image every patch is the same walk from its first element: along runs of channels, or by a table of offsets.
bool is_channels_last(const Args* a) {
  return (a->x_stride[1] == 1 || a->channels == 1) && a->x_stride[3] == a->channels && a->dilation[1] == 1;
}

void gather_runs(const Args* a, const float* from, float* to) {
  const int64_t run = a->kernel[1] * a->channels;
  for (int64_t ky = 0; ky < a->kernel[0]; ++ky, from += a->dilation[0] * a->x_stride[2], to += run)
    for (int64_t i = 0; i < run; i += kLanes) {
      const int64_t n = least(kLanes, run - i);
      store_tail(to + i, load_tail(from + i, n), n);
    }
}

void fill_offsets(const Args* a, int64_t* offsets) {
  const int64_t taps = (int64_t)a->kernel[0] * a->kernel[1], tap = tap_stride(a), channel = channel_stride(a);
  for (int64_t t = 0; t < taps; ++t)
    for (int64_t c = 0; c < a->channels; ++c)
      offsets[t * tap + c * channel] = t / a->kernel[1] * a->dilation[0] * a->x_stride[2] +
                                       t % a->kernel[1] * a->dilation[1] * a->x_stride[3] + c * a->x_stride[1];
}

// Patches of the output pixels [first, last), counted over all images.
void gather(const Args* a, const int64_t* offsets, int64_t first, int64_t last, float* to) {
  const int64_t patch = patch_floats(a), *s = a->x_stride;
  const int64_t down = (int64_t)(a->kernel[0] - 1) * a->dilation[0], right = (int64_t)(a->kernel[1] - 1) * a->dilation[1];
  const bool runs = is_channels_last(a);
  int64_t ox = first % a->out[1], oy = first / a->out[1] % a->out[0], image = first / a->out[1] / a->out[0];
  for (int64_t i = first; i < last; ++i, to += patch) {
    const int64_t top = oy * a->stride[0] - a->padding[0], left = ox * a->stride[1] - a->padding[1];
    const float* x = a->x + image * s[0];
    if (top < 0 || left < 0 || top + down >= a->size[0] || left + right >= a->size[1]) {
      gather_clipped(a, x, top, left, to);
    } else if (runs) {
      gather_runs(a, x + top * s[2] + left * s[3], to);
    } else {
      const float* from = x + top * s[2] + left * s[3];
      for (int64_t k = 0; k < patch; ++k) to[k] = from[offsets[k]];
    }
    if (++ox < a->out[1]) continue;
    ox = 0;
    if (++oy < a->out[0]) continue;
    oy = 0;
    ++image;
  }
}

void run(const Args* a, void* scratch, int64_t begin, int64_t end) {
  if (has_windows(a)) {
    const int64_t rows = unit_rows(a);
    return run_windows(a, scratch, begin * rows, least(end * rows, a->batch * a->out[0]));
  }
  const int64_t most = tile_pixels(a), patch = patch_floats(a);
  float* patches = (float*)scratch;
  int64_t* offsets = (int64_t*)((char*)scratch + aligned(most * patch * 4));
  void* inner = (char*)offsets + aligned(patch * 8);
  fill_offsets(a, offsets);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t first = unit * most, last = least(pixels(a), first + most);
    gather(a, offsets, first, last, patches);
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
