// One group of a dense convolution, and its product: what windows and patches share.
#pragma once
#include "dense_conv.h"
#include "vec.h"

namespace {

enum { kUnitWork = 1 << 18 };  // multiply-adds of a unit worth a thread's while

SEP_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
SEP_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
SEP_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
SEP_INLINE int64_t aligned(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

// The arguments with the channels and filters of one group; the results of all groups lie side by side. y_stride is never 0.
struct Group : sep_dense_conv_args {};

int64_t patch_floats(const Group& a) { return (int64_t)a.kernel[0] * a.kernel[1] * a.channels; }
int64_t packed_bytes(const Group& a) { return SEP_TABLE(pointwise_conv).packed_bytes(patch_floats(a), a.filters, a.product); }

// Whether pixels lie side by side, as in torch's default layout; then x and the weight are taken channel by channel. Of one channel, and
// of groups, the order is that of channels-last.
bool is_planar(const Group& a) { return a.x_stride[3] == 1 && a.channels > 1 && a.groups == 1; }

Group group_of(const sep_dense_conv_args* a, int64_t group) {
  Group g;
  (sep_dense_conv_args&)g = *a;
  if (!a->y_stride[2]) {
    g.y_stride[2] = a->filters;
    g.y_stride[1] = a->out[1] * g.y_stride[2], g.y_stride[0] = a->out[0] * g.y_stride[1];
  }
  g.channels = a->channels / a->groups, g.filters = a->filters / a->groups;
  const int64_t at = group * g.filters;
  g.x = a->x + group * g.channels * a->x_stride[1];
  g.weight = (const char*)a->weight + group * packed_bytes(g);
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
