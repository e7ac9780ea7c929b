// Transposed convolution, the adjoint of a dense one: its results that lie a stride apart are a dense convolution of stride 1.
//
// Results are taken by their remainders by the stride, phase by phase: those of one phase meet the same taps, stride / gcd(stride,
// dilation) apart, and are written where they belong (dense_conv.h, y_stride). No number is multiplied that is not a tap's.
// The weight to pack holds for each phase, rows before columns, (filters, taps down, taps across, channels/groups) with the taps in
// the order in which they meet the rows and columns of x, the last of the kernel first; of a phase without taps one of zeros.
#pragma once
#include "kernels.h"

typedef struct sep_transposed_conv_args {
  const float* x;
  const void* weight;     // made by pack_weight
  const float* bias;      // filters floats, or null
  const float* residual;  // like y, or null; null where each channel is filtered on its own
  float* y;               // (batch, out[0], out[1], filters)
  int64_t batch, channels, filters, groups, size[2], out[2];  // H W; groups divides channels and filters
  int64_t x_stride[4];                                        // floats to the next image, channel (1), row, pixel
  int32_t kernel[2], stride[2], padding[2], dilation[2];      // padding: what is cut off before the first result
  int32_t activation, residual_first, product;                // as in pointwise_conv.h
} sep_transposed_conv_args;

typedef struct sep_transposed_conv_kernels {
  int64_t (*packed_bytes)(const sep_transposed_conv_args*);
  void (*pack_weight)(const sep_transposed_conv_args*, const float* weight, void* packed);
  int64_t (*units)(const sep_transposed_conv_args*);  // those of all phases, one after the other
  int64_t (*scratch_bytes)(const sep_transposed_conv_args*);
  void (*run)(const sep_transposed_conv_args*, void* scratch, int64_t begin, int64_t end);
} sep_transposed_conv_kernels;

SEP_OPERATION(transposed_conv)
