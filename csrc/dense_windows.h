// Dense convolution by windows: rows of output are a product of overlapping windows on rows of the input.
//
// A unit copies the rows that some rows of output need, with their borders of zeros, into scratch memory that stays in a second-level
// cache, and multiplies all of them by one panel of weights after the other, so that each weight is read once a unit. Where nothing is
// padded the rows are read where they lie. Rows are unfolded, the taps of each output pixel side by side, where a dilation would take
// these apart, and where rows are so short that a tile of the product had better run on into the next: its pixels are then evenly apart.
#pragma once
#include "dense_copy.h"
#include "dense_group.h"
#include "dense_shared.h"

namespace {

enum {
  kSmallWeight = 128 << 10,     // bytes that may be read again for each row of output
  kRowsBytes = 320 << 10,       // of rows of input in a unit; kManyRowsBytes where weights are large
  kUnfoldedBytes = 512 << 10,   // of short rows
  kFewRows = 5,                 // of a tile, which then waits for its weights
  kFewUnits = 4, kSeveralUnits = 8,  // that share large weights; that share the rows
  kTogether = 64,               // channels side by side that are worth reading at once
};

struct Windows {
  bool in_place, unfolded;
  int64_t row;           // elements of a row in scratch memory
  int64_t shares;        // that a unit copies together
  int64_t rows, blocks;  // of output in a unit, at most, and units in an image
  int64_t splits;        // units that share the columns
};

int64_t whole_tiles(int64_t pixels) { return ceil_div(pixels, 16) * 16; }  // matrix tiles load so many rows, and multiply them
int64_t element_bytes(const Group& a) { return a.product == SEP_F32 ? 4 : 2; }
bool is_shared(const Group& a) { return a.members > 1; }

// Every tap lies inside the image, and what is multiplied together lies together.
bool is_in_place(const Group& a) {
  const bool inside = a.padding[0] == 0 && a.padding[1] == 0 && (a.out[0] - 1) * a.stride[0] + reach_of(a) <= a.size[0] &&
                      row_pixels(a) <= a.size[1];
  const bool together = a.kernel[1] == 1 || (a.dilation[1] == 1 && a.x_stride[3] == a.channels);
  return a.product == SEP_F32 && inside && together && a.x_stride[1] == 1 && !is_planar(a) && !a.part;
}

bool is_unfolded(const Group& a) {
  if (a.product != SEP_F32 || is_planar(a) || is_in_place(a)) return false;
  if (a.dilation[1] > 1) return true;
  const int64_t W = a.out[1], bytes = (a.out[0] - 1 + reach_of(a)) * W * a.kernel[1] * a.channels * 4;
  return a.stride[0] == 1 && a.out[0] > 1 && ceil_div(W, kRows) * kFewRows > W && bytes <= kUnfoldedBytes;
}

// Of the widest share, so that all shares have the same units.
int64_t widest_row(const Group& a) { return most(row_pixels(a), is_unfolded(a) ? (int64_t)a.out[1] * a.kernel[1] : 0) * a.widest; }

// Whether shares are vectors of as many channels as filters, side by side in a pixel of the input.
bool is_side_by_side(const Group& a) {
  const bool vectors = a.members * a.channels == kLanes && a.widest == kLanes && a.width == a.channels && a.groups * a.width % kLanes == 0;
  return vectors && a.groups > 1 && a.x_stride[1] == 1 && a.product == SEP_F32 && !is_in_place(a) && !is_unfolded(a);
}

// As many as make a stretch of memory that is worth reading, and make an even number of like units, for two threads.
int64_t shares_together(const Group& a) {
  int64_t together = is_side_by_side(a) ? (int64_t)kTogether / kLanes : 1;
  while (together > 1 && a.shares % (2 * together)) --together;
  return together;
}

Windows windows_of(const Group& a) {
  Windows w;
  w.in_place = is_in_place(a);
  w.unfolded = is_unfolded(a) && !is_shared(a);
  w.row = w.unfolded ? a.out[1] * a.kernel[1] * a.channels : row_pixels(a) * (is_shared(a) ? a.widest : a.channels);
  const int64_t columns = ceil_div(a.filters, kLanes) * kLanes, weight = patch_floats(a) * columns * 4;
  w.shares = weight > kSmallWeight ? 1 : shares_together(a);
  const int64_t work = most(1, w.shares * a.out[1] * patch_floats(a) * columns);
  const int64_t room = weight > kSmallWeight ? (int64_t)kManyRowsBytes : (int64_t)kRowsBytes;
  const int64_t fit = (room / most(1, w.shares * widest_row(a) * element_bytes(a)) - reach_of(a)) / a.stride[0] + 1;
  // By threads, where a unit has work enough.
  const int64_t panels = ceil_div(a.filters, kPanel), sharing = most(1, a.batch * a.shares / w.shares);
  const int64_t wanted = weight > kSmallWeight ? ceil_div(kFewUnits, sharing * panels) : ceil_div(kSeveralUnits, sharing);
  const int64_t blocks = least(wanted, a.out[0] / ceil_div(kUnitWork, work));
  w.rows = is_planar(a) ? 1 : most(1, least(fit, ceil_div(a.out[0], most(1, blocks))));
  w.blocks = a.out[0] ? most(ceil_div(a.out[0], w.rows), blocks) : 0;
  w.rows = w.blocks ? ceil_div(a.out[0], w.blocks) : 0;
  const int64_t units = most(1, a.batch * w.blocks * a.shares);
  w.splits = weight > kSmallWeight && units < kFewUnits ? least(panels, ceil_div(kFewUnits, units)) : 1;
  return w;
}

bool has_windows(const Group& a) {
  const int64_t bytes = reach_of(a) * widest_row(a) * element_bytes(a);
  if (bytes > kManyRowsBytes || (is_planar(a) && packed_bytes(a) > kSmallWeight)) return false;
  if (a.product == SEP_F32) return a.dilation[1] == 1 || !is_planar(a);
  // Matrix tiles take pairs of channels side by side, 16 of them at once, and rows enough to fill four of five tiles.
  const bool paired = !is_planar(a) && a.x_stride[1] == 1 && a.channels % 2 == 0 && a.kernel[1] * a.channels % 32 == 0;
  return a.product == SEP_BF16_TILES && paired && a.dilation[1] == 1 && packed_bytes(a) <= kSmallWeight &&
         whole_tiles(a.out[1]) * 4 <= a.out[1] * 5;
}

// Elements in scratch memory, those that matrix tiles read and do not use among them.
int64_t rows_bytes(const Group& a, const Windows& w) {
  if (w.in_place) return 0;
  const int64_t rows = is_planar(a) ? a.kernel[0] : (w.rows - 1) * a.stride[0] + reach_of(a);
  const int64_t unread = a.product == SEP_F32 ? 0 : (whole_tiles(a.out[1]) - a.out[1]) * a.stride[1] * a.channels;
  return aligned((rows * widest_row(a) + unread) * element_bytes(a));
}

// Columns [begin, end) of so many rows of output.
sep_pointwise_conv_args rows_product(const Group& a, const Windows& w, int64_t rows, int64_t begin, int64_t end) {
  sep_pointwise_conv_args p = product(a, rows * a.out[1]);
  p.c_out = end - begin;
  p.weight = (const char*)a.weight + SEP_TABLE(pointwise_conv).packed_bytes(patch_floats(a), begin, a.product);
  p.bias = a.bias ? a.bias + begin : nullptr;
  const int64_t together = a.product == SEP_F32 ? 1 : 2;  // numbers that make one step
  const int64_t pixel = w.in_place ? a.x_stride[3] : is_planar(a) ? 1 : a.channels, row = w.in_place ? a.x_stride[2] : w.row;
  p.x_stride = (w.unfolded ? a.kernel[1] : a.stride[1]) * pixel / together;
  p.y_run = a.out[1], p.y_run_stride = a.y_stride[1], p.x_run_stride = a.stride[0] * row / together;
  const bool evenly = p.x_run_stride == p.y_run * p.x_stride && a.y_stride[1] == a.out[1] * a.y_stride[2];
  if (evenly || rows == 1) p.y_run = p.y_run_stride = p.x_run_stride = 0;
  if (a.kernel[0] == 1 && w.in_place && a.kernel[1] == 1) return p;  // one run
  p.run = a.kernel[1] * (is_planar(a) ? 1 : a.channels) / together;
  p.run_stride = (is_planar(a) ? row_pixels(a) : a.dilation[0] * row) / together;
  return p;
}

// The columns of a unit: a share of the panels.
int64_t first_column(const Group& a, const Windows& w, int64_t split) {
  return least(a.filters, ceil_div(a.filters, kPanel) * split / w.splits * kPanel);
}

int64_t windows_scratch_bytes(const Group& a) {
  const Windows w = windows_of(a);
  int64_t inner = 0;
  for (int64_t split = 0; split < w.splits; ++split) {
    const sep_pointwise_conv_args p = rows_product(a, w, w.rows, first_column(a, w, split), first_column(a, w, split + 1));
    inner = most(inner, SEP_TABLE(pointwise_conv).scratch_bytes(&p));
  }
  return w.shares * rows_bytes(a, w) + inner;
}

// The rows that output rows [first, last) of the image x read: (rows, pixels, channels), or (channels, kh, pixels) of one row.
template <class T>
void copy_rows(const Group& a, const Windows& w, const float* x, int64_t first, int64_t last, T* to) {
  const int64_t top = first * a.stride[0] - a.padding[0], *s = a.x_stride;
  if (is_planar(a)) {
    for (int64_t ky = 0; ky < a.kernel[0]; ++ky) {
      const int64_t y = top + ky * a.dilation[0], width = y >= 0 && y < a.size[0] ? a.size[1] : 0;
      for (int64_t c = 0; c < a.channels; ++c)
        copy_padded(x + y * s[2] + c * s[1] - a.padding[1], a.padding[1], a.padding[1] + width, row_pixels(a),
                    to + (c * a.kernel[0] + ky) * row_pixels(a));
    }
    return;
  }
  for (int64_t r = 0; r < (last - 1 - first) * a.stride[0] + reach_of(a); ++r, to += w.row) {
    const int64_t y = top + r, width = y >= 0 && y < a.size[0] ? a.size[1] : 0;
    const float* row = x + y * s[2];
    if (is_shared(a)) copy_shared(a, row, width, (float*)to);
    else if (w.unfolded) copy_windows(a, row, width, a.out[1], a.stride[1], a.kernel[1], to);
    else copy_pixels(a, row, width, row_pixels(a), to);
  }
}

// Rows of several shares, pixel by pixel, as they are read in order then. size: floats of a share in scratch memory.
void copy_together(const Group& a, const Windows& w, const float* x, int64_t first, int64_t last, int64_t size, float* to) {
  const int64_t top = first * a.stride[0] - a.padding[0], all = row_pixels(a), left = least(a.padding[1], all), *s = a.x_stride;
  for (int64_t r = 0; r < (last - 1 - first) * a.stride[0] + reach_of(a); ++r, to += w.row) {
    const int64_t y = top + r, right = most(left, y >= 0 && y < a.size[0] ? least(all, left + a.size[1]) : 0);
    const float* from = x + y * s[2];
    for (int64_t share = 0; share < w.shares; ++share)
      for (int64_t i = 0; i < all; i = i + 1 == left ? right : i + 1) store(to + share * size + i * kLanes, V{});
    for (int64_t i = left; i < right; ++i, from += s[3])
      for (int64_t share = 0; share < w.shares; ++share) store(to + share * size + i * kLanes, load(from + share * kLanes));
  }
}

// Units count shares, images, blocks of rows, parts of the columns.
int64_t windows_units(const Group& a) {
  const Windows w = windows_of(a);
  return a.shares / w.shares * a.batch * w.blocks * w.splits;
}

struct Unit {
  int64_t share, image, first, last, split;  // the first share; rows of output
};

Unit unit_of(const Group& a, const Windows& w, int64_t unit) {
  const int64_t images = unit / w.splits / w.blocks, block = unit / w.splits % w.blocks;
  const int64_t first = a.out[0] * block / w.blocks, last = a.out[0] * (block + 1) / w.blocks;
  return {images / a.batch * w.shares, images % a.batch, first, last, unit % w.splits};
}

// Where the rows of a share lie, copied unless the unit before copied the same.
const float* rows_of(const Group& a, const Windows& w, const Unit& u, bool is_copied, char* scratch) {
  const float* x = a.x + u.image * a.x_stride[0];
  if (w.in_place) return x + u.first * a.stride[0] * a.x_stride[2];
  if (is_copied) return (const float*)scratch;
  if (a.product == SEP_F32) copy_rows(a, w, x, u.first, u.last, (float*)scratch);
  else copy_rows(a, w, x, u.first, u.last, (uint16_t*)scratch);
  return (const float*)scratch;
}

void multiply_rows(const Group& a, const Windows& w, const Unit& u, const float* rows, char* scratch) {
  const int64_t begin = first_column(a, w, u.split), at = row_at(a, u.image, u.first) + begin;
  float* y = a.y + at;
  const float* residual = a.residual ? a.residual + at : nullptr;
  if (is_shared(a)) return multiply_shared(a, rows, w.row, u.last - u.first, y, residual);
  sep_pointwise_conv_args p = rows_product(a, w, u.last - u.first, begin, first_column(a, w, u.split + 1));
  p.x = rows, p.y = y, p.residual = residual;
  SEP_TABLE(pointwise_conv).run(&p, scratch, 0, SEP_TABLE(pointwise_conv).units(&p));
}

void run_windows(const sep_dense_conv_args* a, int64_t unit, bool is_next, char* scratch) {
  const Group g = share_of(a, 0);
  const Windows w = windows_of(g);
  const Unit u = unit_of(g, w, unit);
  const int64_t bytes = rows_bytes(g, w);
  const bool together = w.shares > 1;
  if (together) copy_together(g, w, share_of(a, u.share).x + u.image * g.x_stride[0], u.first, u.last, bytes / 4, (float*)scratch);
  for (int64_t share = 0; share < w.shares; ++share) {
    const Group part = share_of(a, u.share + share);
    const Windows own = windows_of(part);
    const float* rows = rows_of(part, own, u, together || (u.split && is_next), scratch + share * bytes);
    multiply_rows(part, own, u, rows, scratch + w.shares * bytes);
  }
}

}  // namespace
