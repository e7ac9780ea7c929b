// A border of one number around arrays of up to four dimensions; where the border is negative, a part is cut off.
#pragma once
#include "kernels.h"

enum { SEP_PAD_DIMS = 4 };

typedef struct sep_pad_args {
  const float* x;
  float* y;                       // dense, does not overlap x
  int64_t size[SEP_PAD_DIMS];     // of x
  int64_t out[SEP_PAD_DIMS];      // of y
  int64_t before[SEP_PAD_DIMS];   // of the border, or minus what is cut off; what is after follows from `out`
  int64_t x_stride[SEP_PAD_DIMS]; // floats
  float value;
} sep_pad_args;

typedef struct sep_pad_kernels {
  int64_t (*units)(const sep_pad_args*);  // a row of the two last dimensions
  void (*run)(const sep_pad_args*, int64_t begin, int64_t end);
} sep_pad_kernels;

SEP_OPERATION(pad)
