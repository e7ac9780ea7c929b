// What is left to do element by element: y = act(x * scale + other), each part optional; x / scale and x - other where asked.
#pragma once
#include "kernels.h"

typedef struct sep_elementwise_args {
  const float* x;      // (rows, channels), dense
  const float* scale;  // (rows / image_rows, channels), or null
  const float* other;  // (rows, channels), dense, or null
  float* y;            // (rows, channels), dense; may be x or other
  int64_t rows, channels, image_rows;
  int32_t activation;
  int32_t divides, subtracts;  // 1: x / scale; x - other
  int32_t bends;               // 1: what is below 0 is multiplied by `slope`, then all is kept within low ... high
  float slope, low, high;
} sep_elementwise_args;

typedef struct sep_elementwise_kernels {
  int64_t (*units)(const sep_elementwise_args*);  // some 4096 elements
  void (*run)(const sep_elementwise_args*, int64_t begin, int64_t end);
} sep_elementwise_kernels;

SEP_OPERATION(elementwise)
