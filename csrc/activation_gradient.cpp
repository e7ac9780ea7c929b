// An activation and its gradient, vector by vector.
#include "activation_gradient.h"

#include "activation_derivative.h"
#include "vec.h"

namespace {

typedef sep_activation_gradient_args Args;

SEP_INLINE int64_t lanes_left(const Args* a, int64_t i) { return a->count - i < kLanes ? a->count - i : (int64_t)kLanes; }

void run(const Args* a) {
  for (int64_t i = 0; i < a->count; i += kLanes) {
    const int64_t n = lanes_left(a, i);
    store_tail(a->g + i, through_activation(load_tail(a->g + i, n), load_tail(a->z + i, n), a->activation), n);
  }
}

void apply(const Args* a) {
  for (int64_t i = 0; i < a->count; i += kLanes) {
    const int64_t n = lanes_left(a, i);
    store_tail(a->g + i, activate(load_tail(a->z + i, n), a->activation), n);
  }
}

}  // namespace

extern "C" const sep_activation_gradient_kernels SEP_TABLE(activation_gradient) = {run, apply};
