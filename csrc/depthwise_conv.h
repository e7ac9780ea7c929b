// Depthwise convolution of (N, D, H, W, C), channels last; 2-D is D = 1, 1-D is D = H = 1.
#pragma once
#include "kernels.h"

typedef struct sep_depthwise_conv_args {
  const void* x;        // input
  const float* weight;  // packed by pack_weight
  const float* bias;    // one for each output channel, or null
  void* y;              // output
  int64_t batch, channels, filters;  // C and the output's channels
  int64_t size[3], out[3];           // D H W of input and output
  int32_t kernel[3], stride[3], padding[3], dilation[3];  // padding before; what is after follows from `out`
  int32_t activation;
} sep_depthwise_conv_args;

typedef struct sep_depthwise_conv_kernels {
  int64_t (*packed_floats)(const sep_depthwise_conv_args*);
  void (*pack_weight)(const sep_depthwise_conv_args*, const float* weight, float* packed);  // weight (filters, taps)
  int64_t (*units)(const sep_depthwise_conv_args*);
  void (*forward)(const sep_depthwise_conv_args*, int64_t begin, int64_t end);
} sep_depthwise_conv_kernels;

SEP_OPERATION(depthwise_conv)
