// Depthwise convolution of (N, C, D, H, W), any strides; 2-D is D = 1, 1-D is D = H = 1.
//
// "Wide" channels are the more numerous of input and output: C*m outputs of C inputs, or C inputs summed by m into C/m
// outputs; the weight is (wide, taps). float32 or bfloat16 in memory, float32 inside.
#pragma once
#include "kernels.h"

enum { SEP_MAX_KERNEL = 255, SEP_MAX_STRIDE = 16 };  // in each dimension

typedef struct sep_view {
  void* data;
  int64_t stride[5];  // N C D H W, in elements
} sep_view;

typedef struct sep_depthwise_conv_args {
  sep_view x, y;             // input and output; for the gradients y is the output's gradient, which is read
  sep_view gx;               // gradients: that of the input, or data = null
  const float* weight;       // (wide, taps) contiguous
  const float* bias;         // forward: one value for each output channel, or null
  float* packed;             // packed_floats() floats, which pack_weight() fills
  float* partial;            // gradients: units() * partial_floats() floats, zeros at first; or null
  int64_t batch, channels, filters;
  int64_t size[3], out[3];                                // D H W of input and output
  int32_t kernel[3], stride[3], padding[3], dilation[3];  // padding before; what is after follows from `out`
  int32_t dtype, activation;
  int32_t without_bias;  // gradients: the bias's is not asked for
} sep_depthwise_conv_args;

typedef struct sep_depthwise_conv_kernels {
  int64_t lanes;  // floats in a vector: m is at most that
  int64_t (*packed_floats)(const sep_depthwise_conv_args*);
  int64_t (*scratch_bytes)(const sep_depthwise_conv_args*);  // for each call of run
  int64_t (*units)(const sep_depthwise_conv_args*);
  void (*pack_weight)(const sep_depthwise_conv_args*);
  void (*run)(const sep_depthwise_conv_args*, void* scratch, int64_t begin, int64_t end);
} sep_depthwise_conv_kernels;

// The gradients of input, weight and bias from one reading of x and the output's gradient.
typedef struct sep_depthwise_conv_backward_kernels {
  int64_t lanes;
  int64_t (*packed_floats)(const sep_depthwise_conv_args*);
  int64_t (*scratch_bytes)(const sep_depthwise_conv_args*);
  int64_t (*units)(const sep_depthwise_conv_args*);
  int64_t (*partial_floats)(const sep_depthwise_conv_args*);  // of one unit's share of the weight's and bias's gradients
  void (*pack_weight)(const sep_depthwise_conv_args*);
  void (*run)(const sep_depthwise_conv_args*, void* scratch, int64_t begin, int64_t end);
  // Adds the units' shares in order: gw (wide, taps), gb (filters); either may be null.
  void (*finish)(const sep_depthwise_conv_args*, float* gw, float* gb);
} sep_depthwise_conv_backward_kernels;

SEP_OPERATION(depthwise_conv)
SEP_OPERATION(depthwise_conv_backward)
