// Depthwise convolution of maps whose rows lie densely in memory (torch's default layout): vectors run along the rows.
//
// float32, multiplier 1, square kernels of 3, 5 or 7 without stride or dilation; depthwise_conv*.cpp ask `fits` first.
#pragma once
#include "depthwise_conv.h"

typedef struct sep_depthwise_planes_kernels {
  int (*fits)(const sep_depthwise_conv_args*);
  int64_t (*packed_floats)(const sep_depthwise_conv_args*);
  void (*pack_weight)(const sep_depthwise_conv_args*);
  int64_t (*scratch_bytes)(const sep_depthwise_conv_args*, int gradients);
  int64_t (*units)(const sep_depthwise_conv_args*, int gradients);
  int64_t (*partial_floats)(const sep_depthwise_conv_args*);
  void (*forward)(const sep_depthwise_conv_args*, void* scratch, int64_t begin, int64_t end);
  void (*backward)(const sep_depthwise_conv_args*, void* scratch, int64_t begin, int64_t end);
  void (*finish)(const sep_depthwise_conv_args*, float* gw, float* gb);
} sep_depthwise_planes_kernels;

extern "C" const sep_depthwise_planes_kernels SEP_TABLE(depthwise_planes);  // of the same instruction set
