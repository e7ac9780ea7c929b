// Element by element: a unit is as many whole rows as make some 4096 elements.
#include "elementwise.h"

#include "activation.h"
#include "vec.h"

namespace {

typedef sep_elementwise_args Args;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t unit_rows(const Args* a) { return a->channels < 4096 ? 4096 / a->channels : 1; }
int64_t units(const Args* a) { return (a->rows + unit_rows(a) - 1) / unit_rows(a); }

void run_row(const Args* a, int64_t row) {
  const float *x = a->x + row * a->channels, *other = a->other ? a->other + row * a->channels : nullptr;
  const float* scale = a->scale ? a->scale + row / a->image_rows * a->channels : nullptr;
  float* y = a->y + row * a->channels;
  for (int64_t c = 0; c < a->channels; c += kLanes) {
    const int64_t n = least(kLanes, a->channels - c);
    V v = load_tail(x + c, n);
    if (scale) v = a->divides ? v / load_tail(scale + c, n) : v * load_tail(scale + c, n);
    if (other) v = a->subtracts ? v - load_tail(other + c, n) : v + load_tail(other + c, n);
    if (a->bends) {
      v = select((VI)(v < V{}), v * splat(a->slope), v);
      v = minimum(maximum(v, splat(a->low)), splat(a->high));
    }
    store_tail(y + c, activate(v, a->activation), n);
  }
}

void run(const Args* a, int64_t begin, int64_t end) {
  const int64_t last = least(a->rows, end * unit_rows(a));
  for (int64_t row = begin * unit_rows(a); row < last; ++row) run_row(a, row);
}

}  // namespace

extern "C" const sep_elementwise_kernels SEP_TABLE(elementwise) = {units, run};
