// A share of the filters of a dense convolution, and its product: what windows, patches and shared vectors have in common.
//
// A share is a group, or where groups would leave lanes of their last vector idle, a vector of filters, whatever groups they are of.
#pragma once
#include "dense_conv.h"
#include "tile.h"

namespace {

enum {
  kUnitWork = 1 << 18,       // multiply-adds of a unit worth a thread's while
  kManyRowsBytes = 1 << 20,  // of rows of input in a unit, at most
};

SEP_INLINE int64_t aligned(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

// The arguments with the filters of one share and the channels that each of them reads; the results of all shares lie side by side.
// y_stride is never 0.
struct Group : sep_dense_conv_args {
  int64_t shares;   // in all
  int64_t members;  // groups that the filters are of
  int64_t ahead;    // filters of the first of these that come before the share
  int64_t width;    // filters of each group
  int64_t part;     // channels of each group that share a vector of input, where there are several members
  int64_t widest;   // floats of a pixel of input in scratch memory, of any share
};

int64_t patch_floats(const Group& a) { return (int64_t)a.kernel[0] * a.kernel[1] * a.channels; }
int64_t packed_bytes(const Group& a) { return SEP_TABLE(pointwise_conv).packed_bytes(patch_floats(a), a.filters, a.product); }
int64_t row_pixels(const sep_dense_conv_args& a) {
  return (a.out[1] - 1) * a.stride[1] + (int64_t)(a.kernel[1] - 1) * a.dilation[1] + 1;
}
int64_t reach_of(const sep_dense_conv_args& a) { return (int64_t)(a.kernel[0] - 1) * a.dilation[0] + 1; }

// Whether pixels lie side by side, as in torch's default layout; then x and the weight are taken channel by channel. Of one channel, and
// of groups, the order is that of channels-last.
bool is_planar(const Group& a) { return a.x_stride[3] == 1 && a.channels > 1 && a.groups == 1; }

// Channels of each group in a vector of input that filters of several groups read: a power of two, for as many groups as may meet there.
int64_t part_of(int64_t width) {
  const int64_t most_groups = kLanes % width == 0 ? kLanes / width : (kLanes - 2) / width + 2;
  int64_t part = kLanes;
  while (part * most_groups > kLanes) part /= 2;
  return part;
}
int64_t shared_pixel(int64_t channels, int64_t part) { return ceil_div(channels, part) * kLanes; }

// Whether shares are vectors: where more than an eighth of the lanes of a group's vectors would be idle, and rows fit.
bool is_by_vectors(const sep_dense_conv_args* a) {
  const int64_t width = a->filters / a->groups, idle = ceil_div(width, kLanes) * kLanes - width;
  if (!kPermutes || a->groups == 1 || width == 0 || a->product != SEP_F32 || idle * 8 <= width) return false;
  const int64_t pixel = shared_pixel(a->channels / a->groups, part_of(width));
  return reach_of(*a) * most(row_pixels(*a), a->out[1] * a->kernel[1]) * pixel * 4 <= kManyRowsBytes;
}

int64_t shares_of(const sep_dense_conv_args* a) { return is_by_vectors(a) ? ceil_div(a->filters, kLanes) : a->groups; }

Group share_of(const sep_dense_conv_args* a, int64_t share) {
  Group g;
  (sep_dense_conv_args&)g = *a;
  if (!a->y_stride[2]) {
    g.y_stride[2] = a->filters;
    g.y_stride[1] = a->out[1] * g.y_stride[2], g.y_stride[0] = a->out[0] * g.y_stride[1];
  }
  g.shares = shares_of(a);
  g.width = a->filters / a->groups;
  g.channels = g.widest = a->channels / a->groups;
  g.filters = g.width, g.members = 1, g.ahead = 0, g.part = 0;
  int64_t group = share, at = share * g.width;
  const int64_t each = packed_bytes(g);  // of a group
  int64_t bytes = share * each;
  if (is_by_vectors(a)) {
    at = share * kLanes, group = at / g.width;
    g.filters = least(kLanes, a->filters - at);
    g.ahead = at - group * g.width;
    g.members = (g.ahead + g.filters - 1) / g.width + 1;
    g.part = part_of(g.width);
    g.widest = most(g.channels, shared_pixel(g.channels, g.part));
    bytes = share * packed_bytes(g);  // of a vector, though the last one may not be full
  }
  g.x = a->x + group * g.channels * a->x_stride[1];
  g.weight = (const char*)a->weight + bytes;
  g.bias = a->bias ? a->bias + at : nullptr;
  g.residual = a->residual ? a->residual + at : nullptr;
  g.y = a->y + at;
  return g;
}

// Where the results of a row of pixels begin.
int64_t row_at(const Group& a, int64_t image, int64_t oy) { return image * a.y_stride[0] + oy * a.y_stride[1]; }

sep_pointwise_conv_args product(const Group& a, int64_t rows) {
  sep_pointwise_conv_args p = {};
  p.weight = a.weight, p.bias = a.bias;
  p.rows = rows, p.c_in = patch_floats(a), p.c_out = a.filters;
  p.x_stride = p.c_in, p.residual_stride = p.y_stride = a.y_stride[2];
  p.activation = a.activation, p.residual_first = a.residual_first, p.product = a.product;
  return p;
}

}  // namespace
