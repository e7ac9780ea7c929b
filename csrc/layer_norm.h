// Layer norm over channels: each row gets mean 0 and variance 1, then weight and bias.
// Where a pointwise convolution follows, its `normalize` does this without a pass over memory.
#pragma once
#include "kernels.h"

typedef struct sep_layer_norm_args {
  const float* x;       // (rows, channels), dense
  const float* weight;  // channels floats, or null: 1
  const float* bias;    // channels floats, or null: 0
  float* y;             // (rows, channels), dense; may be x
  int64_t rows, channels;
  float epsilon;  // added to the (biased) variance
} sep_layer_norm_args;

typedef struct sep_layer_norm_kernels {
  int64_t (*units)(const sep_layer_norm_args*);  // some 4096 elements
  void (*run)(const sep_layer_norm_args*, int64_t begin, int64_t end);
} sep_layer_norm_kernels;

SEP_OPERATION(layer_norm)
