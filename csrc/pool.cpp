// Pooling: each unit is one output row of a group of channels, summed or compared in the order of the window.
#include "pool.h"

#include "vec.h"

namespace {

typedef sep_pool_args Args;

enum { kGroup = 64 };  // channels of a unit

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t groups(const Args* a) { return (a->channels + kGroup - 1) / kGroup; }
int64_t units(const Args* a) { return a->batch * a->out[0] * groups(a); }

// NaN wins, from whichever side.
SEP_INLINE V greater(V a, V b) { return select((VI)(a > b) | (VI)(a != a), a, b); }

void pool_pixel(const Args* a, const float* image, int64_t top, int64_t left, int64_t channel, int64_t end, float* y) {
  const int64_t y0 = most(0, top), y1 = least(a->size[0], top + a->kernel[0]);
  const int64_t x0 = most(0, left), x1 = least(a->size[1], left + a->kernel[1]);
  const float inside = (float)((y1 - y0) * (x1 - x0));
  for (int64_t c = channel; c < end; c += kLanes) {
    const int64_t n = least(kLanes, end - c);
    V all = splat(a->kind == SEP_POOL_MAX ? -__builtin_inff() : 0.0f);
    for (int64_t iy = y0; iy < y1; ++iy) {
      const float* p = image + (iy * a->size[1] + x0) * a->channels + c;
      for (int64_t ix = x0; ix < x1; ++ix, p += a->channels) {
        const V v = n == kLanes ? load(p) : load_tail(p, n);
        all = a->kind == SEP_POOL_MAX ? greater(v, all) : all + v;
      }
    }
    if (a->kind == SEP_POOL_MEAN) all = a->factor != 0 ? all * splat(a->factor) : all / splat(inside);
    store_tail(y + c, all, n);
  }
}

void run(const Args* a, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t row = unit / groups(a), image = row / a->out[0], oy = row % a->out[0];
    const int64_t channel = unit % groups(a) * kGroup, stop = least(a->channels, channel + kGroup);
    const float* x = a->x + image * a->size[0] * a->size[1] * a->channels;
    for (int64_t ox = 0; ox < a->out[1]; ++ox)
      pool_pixel(a, x, oy * a->stride[0] - a->padding[0], ox * a->stride[1] - a->padding[1], channel, stop,
                 a->y + (row * a->out[1] + ox) * a->channels);
  }
}

}  // namespace

extern "C" const sep_pool_kernels SEP_TABLE(pool) = {units, run};
