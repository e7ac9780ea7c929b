// Batch norm of a training step with the activation after it: y = act((x - mean) * weight / sqrt(variance + epsilon) + bias).
//
// Forward reads x twice and writes y; torch's own batch norm reads it three times, and the activation after it reads and writes
// once more. Backward makes act's argument again from x, so that neither it nor y is kept, and reads x and g twice.
// Order: moments over all units, finish_moments, normalize over all units; sums, finish_sums, gradient. A unit is some 16384 numbers;
// each keeps its sums apart, and finish_* adds them in order: the same bits for any number of threads.
// Source: Ioffe and Szegedy 2015, arXiv:1502.03167, section 3; the sums of blocks: Chan, Golub and LeVeque 1979.
#pragma once
#include "kernels.h"

typedef struct sep_batch_norm_args {
  const float* x;                // (rows, channels), dense
  const float* g;                // gradient of y, as x; backward only
  float* y;                      // y, or the gradient of x; as x, may be g
  const float *weight, *bias;    // channels floats, or null: ones and zeros
  float *mean, *variance;        // channels floats; variance of all rows, not of a sample. Written by finish_moments, read by finish_sums
  float *weight_grad, *bias_grad;  // channels floats, which finish_sums writes
  float* partial;                // units() * 2 * channels floats
  float* coefficients;           // 4 * channels floats, shared by the steps of one direction; set_coefficients fills them first in backward
  int64_t rows, channels;        // rows >= 1
  int32_t activation;            // SEP_NONE ... SEP_GELU
  float epsilon;
} sep_batch_norm_args;

typedef struct sep_batch_norm_kernels {
  int64_t (*units)(const sep_batch_norm_args*);
  void (*moments)(const sep_batch_norm_args*, int64_t begin, int64_t end);
  void (*finish_moments)(const sep_batch_norm_args*);
  void (*normalize)(const sep_batch_norm_args*, int64_t begin, int64_t end);
  void (*set_coefficients)(const sep_batch_norm_args*);
  void (*sums)(const sep_batch_norm_args*, int64_t begin, int64_t end);
  void (*finish_sums)(const sep_batch_norm_args*);
  void (*gradient)(const sep_batch_norm_args*, int64_t begin, int64_t end);
} sep_batch_norm_kernels;

SEP_OPERATION(batch_norm)
