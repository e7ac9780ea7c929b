// Layer norm over channels: mean, then the variance of what is left, as the two-pass definition has it.
#include "layer_norm.h"

#include "reduce.h"
#include "vec.h"

namespace {

typedef sep_layer_norm_args Args;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t unit_rows(const Args* a) { return a->channels < 4096 ? 4096 / a->channels : 1; }
int64_t units(const Args* a) { return (a->rows + unit_rows(a) - 1) / unit_rows(a); }

void run(const Args* a, int64_t begin, int64_t end) {
  const int64_t last = least(a->rows, end * unit_rows(a));
  for (int64_t row = begin * unit_rows(a); row < last; ++row) {
    const float* x = a->x + row * a->channels;
    float* y = a->y + row * a->channels;
    const Moments m = moments(x, a->channels, a->epsilon);
    for (int64_t c = 0; c < a->channels; c += kLanes) {
      const int64_t n = least(kLanes, a->channels - c);
      V v = (load_tail(x + c, n) - splat(m.mean)) * splat(m.factor);
      if (a->weight) v *= load_tail(a->weight + c, n);
      if (a->bias) v += load_tail(a->bias + c, n);
      store_tail(y + c, v, n);
    }
  }
}

}  // namespace

extern "C" const sep_layer_norm_kernels SEP_TABLE(layer_norm) = {units, run};
