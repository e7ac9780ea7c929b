// Copy floats from one order of dimensions to another: channels-last to torch's default layout and back, slices, joins.
#pragma once
#include "kernels.h"

enum { SEP_RELAYOUT_DIMS = 6 };

typedef struct sep_relayout_args {
  const float* x;
  float* y;                             // does not overlap x
  int64_t size[SEP_RELAYOUT_DIMS];      // ones where there are fewer dimensions
  int64_t x_stride[SEP_RELAYOUT_DIMS];  // floats
  int64_t y_stride[SEP_RELAYOUT_DIMS];  // floats; no two indices share an element
} sep_relayout_args;

typedef struct sep_relayout_kernels {
  int64_t (*units)(const sep_relayout_args*);
  void (*run)(const sep_relayout_args*, int64_t begin, int64_t end);
} sep_relayout_kernels;

SEP_OPERATION(relayout)
