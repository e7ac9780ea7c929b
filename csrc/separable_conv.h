// Fused chains: [pointwise ->] depthwise -> [pointwise], where the tensors between never reach memory.
//
// separable convolution     depthwise, project       expand.weight = null
// pointwise-first order     expand, depthwise        project.weight = null
// MobileNetV2's bottleneck  expand, depthwise, project, residual
// ConvNeXt's two linears    expand, project          has_depthwise = 0
// A tile of output rows is made at a time: the rows of the expanded image that it needs (rows still there from the tile before are
// kept), its depthwise output, its product, all in scratch memory that fits the processor's second-level cache.
// Use as pointwise_conv.h: units, scratch_bytes, run over any split of [0, units); a unit is a tile. The two pointwise structs
// carry weight, bias, c_in, c_out, activation, product, normalize (expand), epsilon, and for the last step residual, residual_first,
// scale (not with a depthwise before it: squeeze-excite needs the whole image first, so end the chain there and take sums); x, y, rows and
// strides in them are ignored but for residual_stride. x and y are dense channels-last and do not overlap.
#pragma once
#include "depthwise_conv.h"
#include "pointwise_conv.h"

typedef struct sep_separable_conv_args {
  const float* x;                      // (batch, H, W, C)
  float* y;                            // (batch, H', W', C')
  float* sums;                         // project.weight = null only: (units, C') sums over the pixels of each tile of y, or null. Image i has
                                       // tiles [i, i + 1) * units / batch: sep_pool adds them (squeeze-excite)
  sep_pointwise_conv_args expand;      // weight = null: absent
  sep_depthwise_conv_args depthwise;   // x, y ignored; size and out as always; channels = what comes in, filters = what goes out
  sep_pointwise_conv_args project;     // weight = null: absent
  int32_t has_depthwise;               // 0: absent; depthwise.batch, size and out are still read (out = size)
} sep_separable_conv_args;

typedef struct sep_separable_conv_kernels {
  int64_t (*units)(const sep_separable_conv_args*);
  int64_t (*scratch_bytes)(const sep_separable_conv_args*);
  void (*run)(const sep_separable_conv_args*, void* scratch, int64_t begin, int64_t end);
} sep_separable_conv_kernels;

SEP_OPERATION(separable_conv)
