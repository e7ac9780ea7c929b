// Convolution that mixes channels and pixels, of all channels or of groups of them: any kernel, stride, padding and dilation.
//
// pointwise_conv multiplies: overlapping windows on rows of the input (dense_windows.h), or where these do not fit, patches gathered in
// scratch memory (dense_patches.h). The input may lie in any order: torch's default layout is read as it is, faster of few channels. y is
// channels-last. The weight to pack has the order of x, so x_stride must be set: torch's own where pixels lie side by side and groups
// is 1, else channels-last. Use as pointwise_conv.h.
#pragma once
#include "pointwise_conv.h"

typedef struct sep_dense_conv_args {
  const float* x;
  const void* weight;     // made by pack_weight
  const float* bias;      // filters floats, or null
  const float* residual;  // like y, or null
  float* y;               // (batch, out[0], out[1], filters)
  int64_t batch, channels, filters, groups, size[2], out[2];  // H W; groups divides channels and filters
  int64_t x_stride[4];                                     // floats to the next image, channel, row, pixel
  int64_t y_stride[3];  // floats to the next image, row, pixel of y and of the residual; 0, 0, 0: they are dense
  int32_t kernel[2], stride[2], padding[2], dilation[2];   // padding before; what is after follows from `out`
  int32_t activation, residual_first, product;             // as in pointwise_conv.h
} sep_dense_conv_args;

typedef struct sep_dense_conv_kernels {
  int64_t (*packed_bytes)(const sep_dense_conv_args*);
  void (*pack_weight)(const sep_dense_conv_args*, const float* weight, void* packed);  // (filters, kh, kw, channels/groups)
                                                                               // or (filters, channels, kh, kw): see above
  int64_t (*units)(const sep_dense_conv_args*);
  int64_t (*scratch_bytes)(const sep_dense_conv_args*);
  void (*run)(const sep_dense_conv_args*, void* scratch, int64_t begin, int64_t end);
} sep_dense_conv_kernels;

SEP_OPERATION(dense_conv)
