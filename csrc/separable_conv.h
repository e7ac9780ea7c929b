// Fused chains: [pointwise ->] depthwise -> [pointwise], where the tensors between never reach memory.
//
// separable convolution     depthwise, project       expand.weight = null
// pointwise-first order     expand, depthwise        project.weight = null
// MobileNetV2's bottleneck  expand, depthwise, project, residual
// ConvNeXt's two linears    expand, project          depthwise.weight = null
// depthwise alone           depthwise                expand.weight = project.weight = null: with sums for squeeze-excite
// A tile of output rows is made at a time: the rows of the expanded image that it needs (rows still there from the tile before are
// kept), its depthwise output, its product, all in scratch memory made for a second-level cache: 384 KiB, twice that with large weights.
// Use as pointwise_conv.h: units, scratch_bytes, run over any split of [0, units), grain 1; a unit is a tile. The two pointwise
// structs carry weight, bias, c_in, c_out, activation, product, and for the first step normalize and epsilon, for the last step residual,
// residual_stride and residual_first; what else is in them is ignored. x and y are dense channels-last and do not overlap; residual may
// be x. Bottlenecks of small images are one or two tiles: where there are more threads than that, the
// three steps one by one are faster.
#pragma once
#include "pointwise_conv.h"

typedef struct sep_depthwise_step {
  const float* weight;      // made by pack_depthwise; null: absent
  const float* bias;        // makes * channels floats in the order of y, or null
  // Channels: where maps are made or added, those of the smaller side. Batch and sizes are read even where the step is absent: out = size
  // then.
  int64_t batch, channels;
  int64_t size[2], out[2];  // H W
  int32_t kernel[2], stride[2], padding[2], dilation[2];  // padding before; what is after follows from `out`
  int32_t activation;
  // Maps of each channel, in order: all channels' first ones, then all channels' second ones. One of the two is 1.
  int32_t makes;  // made of each channel: x has `channels` channels, y makes * channels
  int32_t adds;   // added to one: x has adds * channels channels, y `channels`
} sep_depthwise_step;

typedef struct sep_separable_conv_args {
  const float* x;                   // (batch, H, W, C)
  float* y;                         // (batch, H', W', C')
  float* sums;                      // project absent only: (units, C') sums over the pixels of each tile of y, or null. Image i has
                                    // tiles [i, i + 1) * units / batch: sep_pool adds them
  sep_pointwise_conv_args expand;   // weight = null: absent
  sep_depthwise_step depthwise;
  sep_pointwise_conv_args project;  // weight = null: absent
} sep_separable_conv_args;

typedef struct sep_separable_conv_kernels {
  int64_t (*packed_floats)(const sep_depthwise_step*);
  void (*pack_depthwise)(const sep_depthwise_step*, const float* weight, float* packed);  // weight (channels, makes * adds, kh, kw)
  int64_t (*units)(const sep_separable_conv_args*);
  int64_t (*scratch_bytes)(const sep_separable_conv_args*);
  void (*run)(const sep_separable_conv_args*, void* scratch, int64_t begin, int64_t end);
} sep_separable_conv_kernels;

SEP_OPERATION(separable_conv)
