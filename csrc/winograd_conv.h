// Dense 3x3 convolution, stride 1, no dilation, no groups, by Winograd's minimal filtering (Lavin and Gray 2016, arXiv:1509.09308).
//
// A tile of 4x4 outputs takes 36 multiplications for each pair of channels, not 144; one of 2x2 takes 16, not 36. The transformed
// weights are 4 and 1.8 times as many, so that few pixels of many channels are better served by the smaller tile, or by dense_conv.
// The largest error at 512 channels is 6e-6 of the largest output for 4x4, 1e-6 for 2x2 (benchmarks/winograd.py). It is relative to the
// largest input of a tile, not of the pixels that one output reads. Where a result is not finite, the outputs around it are computed again by plain sums.
//
// x is channels-last: its channels lie side by side (x_stride[1] is 1, or there is one channel). y and residual are dense and
// channels-last; residual may be y. Use as dense_conv.h.
#pragma once
#include "kernels.h"

typedef struct sep_winograd_conv_args {
  const float* x;
  const void* weight;     // made by pack_weight with the same `tile`
  const float* bias;      // filters floats, or null
  const float* residual;  // like y, or null
  float* y;               // (batch, out[0], out[1], filters)
  int64_t batch, channels, filters, size[2], out[2];  // H W
  int64_t x_stride[4];                                // floats to the next image, channel, row, pixel
  int32_t padding[2];                                 // before; what is after follows from `out`
  int32_t activation, residual_first;                 // as in pointwise_conv.h
  int32_t tile;                                       // 4 or 2: outputs of a tile in each direction
} sep_winograd_conv_args;

typedef struct sep_winograd_conv_kernels {
  int64_t (*packed_bytes)(const sep_winograd_conv_args*);                       // depends on channels, filters and tile alone
  void (*pack_weight)(const sep_winograd_conv_args*, const float* weight, void* packed);  // (filters, 3, 3, channels)
  int64_t (*units)(const sep_winograd_conv_args*);
  int64_t (*scratch_bytes)(const sep_winograd_conv_args*);
  void (*run)(const sep_winograd_conv_args*, void* scratch, int64_t begin, int64_t end);
} sep_winograd_conv_kernels;

SEP_OPERATION(winograd_conv)
