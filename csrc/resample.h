// Resizing of channels-last images: each pixel of the result is one pixel of the input, or two by two of them, weighted.
//
// Which ones, and their weights, stand in tables, one for rows and one for columns, since that is a matter of the caller's
// rounding. Images of few channels are given as rows of their numbers, one channel each: what is then a vector is a run of a row.
#pragma once
#include "kernels.h"

typedef struct sep_resample_args {
  const float* x;             // (batch, size[0], size[1], channels)
  const float *rows, *columns;  // (3, out[0]) and (3, out[1]): a pixel, the same or the next, the weight of that, from 0 to 1
  float* y;                   // (batch, out[0], out[1], channels)
  int64_t batch, channels, size[2], out[2];
  int32_t blends;             // 0: the first pixel alone
} sep_resample_args;

typedef struct sep_resample_kernels {
  int64_t (*units)(const sep_resample_args*);  // some rows of the result
  int64_t (*scratch_bytes)(const sep_resample_args*);
  void (*run)(const sep_resample_args*, void* scratch, int64_t begin, int64_t end);
} sep_resample_kernels;

SEP_OPERATION(resample)
