// Padding and cropping: a unit is one index of the two first dimensions, such as a row of pixels of channels-last images.
#include "pad.h"

#include "vec.h"

namespace {

typedef sep_pad_args Args;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t units(const Args* a) { return a->out[0] * a->out[1]; }

// What of `out` places in dimension d lies inside x: [begin, end).
struct Inside {
  int64_t begin, end;
};

int64_t within(int64_t at, int64_t out) { return at < 0 ? 0 : least(at, out); }

Inside inside(const Args* a, int d) {
  return {within(a->before[d], a->out[d]), within(a->before[d] + a->size[d], a->out[d])};
}

float* fill(float* y, int64_t count, float value) {
  for (int64_t i = 0; i < count; i += kLanes) store_tail(y + i, splat(value), least(kLanes, count - i));
  return y + count;
}

float* copy(const float* x, int64_t stride, int64_t count, float* y) {
  if (stride != 1)
    for (int64_t i = 0; i < count; ++i) y[i] = x[i * stride];
  else
    for (int64_t i = 0; i < count; i += kLanes) {
      const int64_t n = least(kLanes, count - i);
      store_tail(y + i, load_tail(x + i, n), n);
    }
  return y + count;
}

// x: where the element at index 0 of the two last dimensions lies.
void pad_row(const Args* a, const float* x, float* y) {
  const int64_t length = a->out[3], *s = a->x_stride;
  const Inside places = inside(a, 2), numbers = inside(a, 3);
  const int64_t count = numbers.end - numbers.begin;
  x += (numbers.begin - a->before[3]) * s[3];
  if (places.end <= places.begin || count <= 0) {
    fill(y, a->out[2] * length, a->value);
    return;
  }
  y = fill(y, places.begin * length, a->value);
  if (count == length && s[3] == 1 && s[2] == length) {
    y = copy(x + (places.begin - a->before[2]) * s[2], 1, (places.end - places.begin) * length, y);
  } else {
    for (int64_t i = places.begin; i < places.end; ++i) {
      y = fill(y, numbers.begin, a->value);
      y = copy(x + (i - a->before[2]) * s[2], s[3], count, y);
      y = fill(y, length - numbers.end, a->value);
    }
  }
  fill(y, (a->out[2] - places.end) * length, a->value);
}

void run(const Args* a, int64_t begin, int64_t end) {
  const int64_t row = a->out[2] * a->out[3];
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t i = unit / a->out[1] - a->before[0], j = unit % a->out[1] - a->before[1];
    const bool outside = i < 0 || i >= a->size[0] || j < 0 || j >= a->size[1];
    if (outside) fill(a->y + unit * row, row, a->value);
    else pad_row(a, a->x + i * a->x_stride[0] + j * a->x_stride[1], a->y + unit * row);
  }
}

}  // namespace

extern "C" const sep_pad_kernels SEP_TABLE(pad) = {units, run};
