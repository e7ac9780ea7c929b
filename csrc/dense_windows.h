// Dense convolution by windows: each row of output is a product of overlapping windows on rows of the input.
//
// A unit copies the rows that some rows of output need, with their borders of zeros, into scratch memory that stays in a second-level
// cache, and multiplies them by one block of weights after the other, so that each weight is read once a unit. Where nothing is padded
// the rows are read where they lie. A dilation along the row takes the row apart: pixels of one remainder lie side by side.
#pragma once
#include "dense_group.h"

namespace {

enum {
  kSmallWeight = 128 << 10,   // bytes that may be read again for each row of output
  kBlockBytes = 256 << 10,    // of weights that meet all rows of a unit before the next
  kRowsBytes = 320 << 10,     // of rows of input in a unit
  kManyRowsBytes = 1 << 20,   // the same where weights are large
  kFewUnits = 4,
};

struct Windows {
  bool in_place;
  int64_t phases, phase_pixels, row;  // remainders of columns, pixels of each, elements of a row in scratch memory
  int64_t reach;                      // rows of input for one of output
  int64_t rows, blocks;               // of output in a unit, units in an image
  int64_t columns, splits;            // of a block of weights; units that share the columns
};

int64_t row_pixels(const Group& a) { return (a.out[1] - 1) * a.stride[1] + (int64_t)(a.kernel[1] - 1) * a.dilation[1] + 1; }
int64_t reach_of(const Group& a) { return (int64_t)(a.kernel[0] - 1) * a.dilation[0] + 1; }
int64_t whole_tiles(int64_t pixels) { return ceil_div(pixels, 16) * 16; }  // matrix tiles load so many rows, and multiply them
int64_t element_bytes(const Group& a) { return a.product == SEP_F32 ? 4 : 2; }

// Every tap lies inside the image, and what is multiplied together lies together.
bool is_in_place(const Group& a) {
  const bool inside = a.padding[0] == 0 && a.padding[1] == 0 && (a.out[0] - 1) * a.stride[0] + reach_of(a) <= a.size[0] &&
                      row_pixels(a) <= a.size[1];
  const bool together = a.kernel[1] == 1 || (a.dilation[1] == 1 && a.x_stride[3] == a.channels);
  return a.product == SEP_F32 && inside && together && a.x_stride[1] == 1 && !is_planar(a);
}

Windows windows_of(const Group& a) {
  Windows w;
  w.in_place = is_in_place(a);
  w.phases = w.in_place ? 1 : a.dilation[1];
  w.phase_pixels = ceil_div(row_pixels(a), w.phases);
  w.row = w.phases * w.phase_pixels * a.channels;
  w.reach = reach_of(a);
  const int64_t weight = packed_bytes(a), work = most(1, a.out[1] * patch_floats(a) * a.filters);
  const int64_t room = weight > kSmallWeight ? kManyRowsBytes : kRowsBytes;
  const int64_t fit = (room / most(1, w.row * element_bytes(a)) - w.reach) / a.stride[0] + 1;
  const int64_t shared = most(ceil_div(a.out[0], kFewUnits), ceil_div(kUnitWork, work));  // by threads, where a unit has work enough
  w.rows = is_planar(a) ? 1 : most(1, least(least(fit, a.out[0]), weight > kSmallWeight ? a.out[0] : shared));
  w.blocks = a.out[0] ? ceil_div(a.out[0], w.rows) : 0;
  w.rows = w.blocks ? ceil_div(a.out[0], w.blocks) : 0;
  const int64_t panel = 2 * kLanes, panels = ceil_div(a.filters, panel);
  w.columns = least(panels, most(1, kBlockBytes / most(1, patch_floats(a) * panel * 4))) * panel;
  const int64_t units = most(1, a.batch * w.blocks * a.groups);
  w.splits = weight > kSmallWeight && units < kFewUnits ? least(panels, ceil_div(kFewUnits, units)) : 1;
  return w;
}

bool has_windows(const Group& a) {
  const bool one = a.dilation[1] == 1 || (a.stride[1] == 1 && !is_planar(a));  // otherwise taps of a window lie apart
  const int64_t bytes = reach_of(a) * row_pixels(a) * a.channels * element_bytes(a);
  if (bytes > kManyRowsBytes || (is_planar(a) && packed_bytes(a) > kSmallWeight)) return false;
  if (a.product == SEP_F32) return one;
  // Matrix tiles take pairs of channels side by side, 16 of them at once, and rows enough to fill four of five tiles.
  const bool paired = !is_planar(a) && a.x_stride[1] == 1 && a.channels % 2 == 0 && a.kernel[1] * a.channels % 32 == 0;
  return a.product == SEP_BF16_TILES && paired && a.dilation[1] == 1 && packed_bytes(a) <= kSmallWeight &&
         whole_tiles(a.out[1]) * 4 <= a.out[1] * 5;
}

// Elements in scratch memory, those that matrix tiles read and do not use among them.
int64_t rows_bytes(const Group& a, const Windows& w) {
  if (w.in_place) return 0;
  const int64_t rows = is_planar(a) ? a.kernel[0] : (w.rows - 1) * a.stride[0] + w.reach;
  const int64_t unread = a.product == SEP_F32 ? 0 : (whole_tiles(a.out[1]) - a.out[1]) * a.stride[1] * a.channels;
  return aligned((rows * w.row + unread) * element_bytes(a));
}

sep_pointwise_conv_args row_product(const Group& a, const Windows& w) {
  sep_pointwise_conv_args p = product(a, ceil_div(a.out[1], w.phases));
  const int64_t together = a.product == SEP_F32 ? 1 : 2;  // numbers that make one step
  const int64_t pixel = w.in_place ? a.x_stride[3] : is_planar(a) ? 1 : a.channels;
  p.x_stride = (w.phases == 1 ? a.stride[1] : 1) * pixel / together;
  p.y_stride = p.residual_stride = w.phases * a.y_stride[2];
  if (a.kernel[0] == 1 && w.in_place && a.kernel[1] == 1) return p;  // one run
  p.run = a.kernel[1] * (is_planar(a) ? 1 : a.channels) / together;
  p.run_stride = w.in_place ? a.dilation[0] * a.x_stride[2] : (is_planar(a) ? row_pixels(a) : a.dilation[0] * w.row) / together;
  return p;
}

int64_t windows_scratch_bytes(const Group& a) {
  const Windows w = windows_of(a);
  sep_pointwise_conv_args p = row_product(a, w);
  int64_t inner = 0;
  const int64_t blocks[] = {least(w.columns, a.filters), a.filters % w.columns};  // the first ones, the last
  for (const int64_t columns : blocks) {
    p.c_out = columns;
    if (columns) inner = most(inner, SEP_TABLE(pointwise_conv).scratch_bytes(&p));
  }
  return rows_bytes(a, w) + inner;
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

// One row of the input, `width` pixels of it inside the image, which is 0 for a row outside.
template <class T>
void copy_row(const Group& a, const Windows& w, const float* row, int64_t width, T* to) {
  const int64_t C = a.channels, all = row_pixels(a), left = a.padding[1], *s = a.x_stride;
  if (w.phases == 1 && (s[1] == 1 || C == 1) && s[3] == C)
    return copy_padded(row - left * C, 1, left * C, (left + width) * C, all * C, to);
  for (int64_t p = 0; p < all; ++p) {
    const int64_t at = p % w.phases * w.phase_pixels + p / w.phases;
    copy_padded(row + (p - left) * s[3], s[1], 0, p >= left && p < left + width ? C : 0, C, to + at * C);
  }
}

// The rows that output rows [first, last) of the image x read: (rows, phases, pixels, channels), or (channels, kh, pixels) of one row.
template <class T>
void copy_rows(const Group& a, const Windows& w, const float* x, int64_t first, int64_t last, T* to) {
  const int64_t top = first * a.stride[0] - a.padding[0], *s = a.x_stride;
  if (is_planar(a)) {
    for (int64_t ky = 0; ky < a.kernel[0]; ++ky) {
      const int64_t y = top + ky * a.dilation[0], width = y >= 0 && y < a.size[0] ? a.size[1] : 0;
      for (int64_t c = 0; c < a.channels; ++c)
        copy_padded(x + y * s[2] + c * s[1] - a.padding[1], 1, a.padding[1], a.padding[1] + width, row_pixels(a),
                    to + (c * a.kernel[0] + ky) * row_pixels(a));
    }
    return;
  }
  for (int64_t r = 0; r < (last - 1 - first) * a.stride[0] + w.reach; ++r) {
    const int64_t y = top + r;
    copy_row(a, w, x + y * s[2], y >= 0 && y < a.size[0] ? a.size[1] : 0, to + r * w.row);
  }
}

// Columns [begin, end) of output rows [first, last) of an image. rows: where the taps of the first of them begin.
void multiply_rows(const Group& a, const Windows& w, const char* rows, int64_t image, int64_t first, int64_t last, int64_t begin,
                   int64_t end, void* scratch) {
  const int64_t row_bytes = w.in_place ? a.x_stride[2] * 4 : w.row * element_bytes(a);
  for (int64_t column = begin; column < end; column += w.columns) {
    sep_pointwise_conv_args p = row_product(a, w);
    p.c_out = least(w.columns, end - column);
    p.weight = (const char*)a.weight + SEP_TABLE(pointwise_conv).packed_bytes(patch_floats(a), column, a.product);
    p.bias = a.bias ? a.bias + column : nullptr;
    for (int64_t oy = first; oy < last; ++oy)
      for (int64_t phase = 0; phase < least(w.phases, a.out[1]); ++phase) {
        const int64_t at = row_at(a, image, oy) + phase * a.y_stride[2] + column;
        p.rows = ceil_div(a.out[1] - phase, w.phases);
        p.x = (const float*)(rows + (oy - first) * a.stride[0] * row_bytes + phase * w.phase_pixels * a.channels * element_bytes(a));
        p.y = a.y + at;
        p.residual = a.residual ? a.residual + at : nullptr;
        SEP_TABLE(pointwise_conv).run(&p, scratch, 0, SEP_TABLE(pointwise_conv).units(&p));
      }
  }
}

// Units of one group count images, blocks of rows, shares of the columns.
int64_t windows_units(const Group& a) {
  const Windows w = windows_of(a);
  return a.batch * w.blocks * w.splits;
}

void run_windows(const Group& a, int64_t unit, bool is_next, void* scratch) {
  const Windows w = windows_of(a);
  const int64_t split = unit % w.splits, block = unit / w.splits % w.blocks, image = unit / w.splits / w.blocks;
  const int64_t first = block * w.rows, last = least(a.out[0], first + w.rows);
  const float* x = a.x + image * a.x_stride[0];
  const char* rows = (const char*)scratch;
  if (w.in_place) rows = (const char*)(x + first * a.stride[0] * a.x_stride[2]);
  else if (split && is_next) {  // the unit before copied the same rows
  } else if (a.product == SEP_F32) copy_rows(a, w, x, first, last, (float*)scratch);
  else copy_rows(a, w, x, first, last, (uint16_t*)scratch);
  const int64_t panel = 2 * kLanes, panels = ceil_div(a.filters, panel);
  const int64_t begin = panels * split / w.splits * panel, end = least(a.filters, panels * (split + 1) / w.splits * panel);
  multiply_rows(a, w, rows, image, first, last, begin, end, (char*)scratch + rows_bytes(a, w));
}

}  // namespace
