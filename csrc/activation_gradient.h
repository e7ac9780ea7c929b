// An activation and its gradient over dense memory, as the recomputing backward of a separable convolution needs them.
#pragma once
#include "kernels.h"

typedef struct sep_activation_gradient_args {
  float* g;        // run: g = g * act'(z), in place; activate: g = act(z)
  const float* z;  // the activation's argument
  int64_t count;
  int32_t activation;  // SEP_NONE ... SEP_GELU
} sep_activation_gradient_args;

typedef struct sep_activation_gradient_kernels {
  void (*run)(const sep_activation_gradient_args*);
  void (*activate)(const sep_activation_gradient_args*);
} sep_activation_gradient_kernels;

SEP_OPERATION(activation_gradient)
