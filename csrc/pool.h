// Pooling of channels-last images: maximum or mean over a window; over the whole image when kernel = size and out = 1, 1.
#pragma once
#include "kernels.h"

enum { SEP_POOL_MAX = 0, SEP_POOL_MEAN };

typedef struct sep_pool_args {
  const float* x;  // (batch, H, W, channels)
  float* y;        // (batch, out[0], out[1], channels)
  int64_t batch, channels, size[2], out[2];
  int32_t kernel[2], stride[2], padding[2];  // padding before; what is after follows from `out`; it never wins a maximum
  int32_t kind;
  float factor;  // mean: the sum is multiplied by this; 0: divided by the number of pixels inside the image
} sep_pool_args;

typedef struct sep_pool_kernels {
  int64_t (*units)(const sep_pool_args*);  // an output row of 64 channels
  void (*run)(const sep_pool_args*, int64_t begin, int64_t end);
} sep_pool_kernels;

SEP_OPERATION(pool)
