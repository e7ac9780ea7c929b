// Depthwise convolutions that most networks are made of, each read and written as it lies in memory; depthwise_conv*.cpp
// ask `depthwise_special` first, and take the general way where it knows none.
//
// depthwise_planes: maps whose rows lie densely (torch's default layout); vectors run along the rows.
// depthwise_pixels: maps whose channels lie densely (channels-last); a vector holds channels of one pixel.
// Both: 2-D, square kernels of 3, 5 or 7 without dilation; each file's `fits` says the rest.
#pragma once
#include "depthwise_conv.h"

typedef struct sep_depthwise_special_kernels {
  int (*fits)(const sep_depthwise_conv_args*, int gradients);
  int64_t (*packed_floats)(const sep_depthwise_conv_args*);
  void (*pack_weight)(const sep_depthwise_conv_args*);
  int64_t (*scratch_bytes)(const sep_depthwise_conv_args*, int gradients);
  int64_t (*units)(const sep_depthwise_conv_args*, int gradients);
  int64_t (*partial_floats)(const sep_depthwise_conv_args*);
  void (*forward)(const sep_depthwise_conv_args*, void* scratch, int64_t begin, int64_t end);
  void (*backward)(const sep_depthwise_conv_args*, void* scratch, int64_t begin, int64_t end);
  void (*finish)(const sep_depthwise_conv_args*, float* gw, float* gb);
} sep_depthwise_special_kernels;

extern "C" const sep_depthwise_special_kernels SEP_TABLE(depthwise_planes), SEP_TABLE(depthwise_pixels);  // of this instruction set

static inline const sep_depthwise_special_kernels* depthwise_special(const sep_depthwise_conv_args* a, int gradients) {
  if (SEP_TABLE(depthwise_planes).fits(a, gradients)) return &SEP_TABLE(depthwise_planes);
  return SEP_TABLE(depthwise_pixels).fits(a, gradients) ? &SEP_TABLE(depthwise_pixels) : nullptr;
}
