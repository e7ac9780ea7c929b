// Pointwise (1x1) convolution: rows of channels times a matrix, and what networks do before and after it in the same pass.
//
// y[r, o] = act(sum_c x'[r, c] * weight[o, c] + bias[o]) + residual[r, o], where x' is x, normalized and scaled where asked. A linear
// layer is the same thing. Rows are pixels, N*H*W of a channels-last tensor. x and y do not overlap; residual may be y
// where the activation is none, relu or relu6.
// Use: pack_weight once; units and scratch_bytes of the arguments; then run() over any split of [0, units). A unit is about
// 2^18 multiply-adds, 2^21 by matrix tiles (some 5 us), so a thread wants at least two: grain 2. Each concurrent run() has its own
// scratch memory, aligned to 64 bytes; its contents need not live between calls. Pointers in the arguments may be null while
// units and scratch_bytes are asked, except that scale and sums must be null or not as they will be in run().
#pragma once
#include "kernels.h"

typedef struct sep_pointwise_conv_args {
  const float* x;         // row r at x + r * x_stride: c_in floats
  const void* weight;     // made by pack_weight with the same `product`
  const float* bias;      // c_out floats, or null
  const float* scale;     // x'[r, c] = x[r, c] * scale[(r / image_rows) * c_in + c] (squeeze-excite), or null
  const float* residual;  // row r at residual + r * residual_stride: c_out floats, or null
  float* y;               // row r at y + r * y_stride; may be null where sums are wanted and y is not
  float* sums;            // (rows / image_rows, c_out): the sum over each image's rows of y, or null; times 1/image_rows: the mean
  int64_t rows, c_in, c_out;
  int64_t x_stride, residual_stride, y_stride;
  int64_t image_rows;      // rows of one image; read with scale and sums, and divides rows
  // Channels that lie side by side, and how far apart such runs are, where rows of x overlap as the patches of an image do; run 0: all
  // side by side. Without scale and normalize. With SEP_F32; with SEP_BF16_TILES x holds bfloat16 then, x_stride, run and
  // run_stride count pairs, run is a multiple of 16, c_in of 32, and rows up to the next multiple of 16 can be read. All rows are one
  // unit, which reads each weight once: how many overlapping rows a cache holds is known to who laid them out.
  int64_t run, run_stride;
  // Rows of y that lie y_stride apart, and how far apart such runs are, where they are rows of an image with a border; y_run 0: all of
  // them lie so; else the residual lies as y does. Without sums. The same runs of rows of x lie x_run_stride apart; 0: all rows of x lie x_stride apart.
  int64_t y_run, y_run_stride, x_run_stride;
  const void* ahead;    // memory to fetch meanwhile, evenly over the rows, instead of the weights to come; or null
  int64_t ahead_bytes;
  int32_t activation;      // SEP_NONE ... SEP_TANH
  int32_t residual_first;  // 1: the residual is added before the activation, 0: after it
  int32_t normalize;       // 1: each row of x gets mean 0 and variance 1 first: layer norm, its affine part folded into weight and bias
  int32_t product;         // SEP_F32, or SEP_BF16 or SEP_BF16_TILES: x' and weight are rounded to bfloat16, the sums stay float32
  float epsilon;           // added to the variance by normalize
} sep_pointwise_conv_args;

typedef struct sep_pointwise_conv_kernels {
  // That of the first columns of a weight is where the next begin, if they are whole panels: multiples of two vectors.
  int64_t (*packed_bytes)(int64_t c_in, int64_t c_out, int32_t product);
  // weight[o * out_stride + c * in_stride]: (c_out, c_in) as torch has it is strides (c_in, 1)
  void (*pack_weight)(const float* weight, int64_t out_stride, int64_t in_stride, int64_t c_in, int64_t c_out, int32_t product,
                      void* packed);
  int64_t (*units)(const sep_pointwise_conv_args*);
  int64_t (*scratch_bytes)(const sep_pointwise_conv_args*);
  void (*run)(const sep_pointwise_conv_args*, void* scratch, int64_t begin, int64_t end);
} sep_pointwise_conv_kernels;

SEP_OPERATION(pointwise_conv)
