// Resizing: a unit is some rows of an image of the result. Vectors lie along the channels, or where there is one, along the row.
#include "resample.h"

#include "vec.h"

namespace {

typedef sep_resample_args Args;

enum { kUnitRows = 8 };

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t blocks(const Args* a) { return (a->out[0] + kUnitRows - 1) / kUnitRows; }
int64_t units(const Args* a) { return a->batch * blocks(a); }

// Of one channel two rows of the input as wide as the result, for all rows between them.
int64_t scratch_bytes(const Args* a) { return a->channels == 1 ? 2 * a->out[1] * 4 : 0; }

// Both weights are multiplied, as torch does: an infinite pixel of weight 0 makes NaN.
SEP_INLINE V blend(V first, V second, V weight) { return (splat(1.0f) - weight) * first + weight * second; }
SEP_INLINE VI whole(V a) { return __builtin_convertvector(a, VI); }

void widen_row(const Args* a, const float* row, float* to) {
  const float *first = a->columns, *second = first + a->out[1], *weight = second + a->out[1];
  for (int64_t i = 0; i < a->out[1]; i += kLanes) {
    const int64_t n = least(kLanes, a->out[1] - i);
    V v = gather(row, whole(load_tail(first + i, n)));
    if (a->blends) v = blend(v, gather(row, whole(load_tail(second + i, n))), load_tail(weight + i, n));
    store_tail(to + i, v, n);
  }
}

void blend_rows(const float* above, const float* below, float weight, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t n = least(kLanes, count - i);
    store_tail(to + i, blend(load_tail(above + i, n), load_tail(below + i, n), splat(weight)), n);
  }
}

void copy_pixel(const float* x, int64_t channels, float* y) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int64_t n = least(kLanes, channels - c);
    store_tail(y + c, load_tail(x + c, n), n);
  }
}

struct Corners {
  const float *above[2], *below[2];
};

void blend_pixel(const Corners& p, float down, float right, int64_t channels, float* y) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int64_t n = least(kLanes, channels - c);
    const V above = blend(load_tail(p.above[0] + c, n), load_tail(p.above[1] + c, n), splat(right));
    const V below = blend(load_tail(p.below[0] + c, n), load_tail(p.below[1] + c, n), splat(right));
    store_tail(y + c, blend(above, below, splat(down)), n);
  }
}

// Rows [first, last) of an image of one channel. A row and the next one lie in different halves of scratch memory.
void resize_plane(const Args* a, const float* x, int64_t first, int64_t last, float* scratch, float* y) {
  const int64_t out = a->out[1];
  int64_t held[2] = {-1, -1};
  const auto widened = [&](float at) {
    const int64_t row = (int64_t)at;
    float* half = scratch + row % 2 * out;
    if (held[row % 2] != row) widen_row(a, x + row * a->size[1], half);
    held[row % 2] = row;
    return half;
  };
  for (int64_t oy = first; oy < last; ++oy, y += out) {
    const float* above = widened(a->rows[oy]);
    if (a->blends) blend_rows(above, widened(a->rows[a->out[0] + oy]), a->rows[2 * a->out[0] + oy], out, y);
    else copy_pixel(above, out, y);
  }
}

// The same of several channels.
void resize(const Args* a, const float* x, int64_t first, int64_t last, float* y) {
  const int64_t C = a->channels, row = a->size[1] * C, out = a->out[1];
  for (int64_t oy = first; oy < last; ++oy) {
    const float *above = x + (int64_t)a->rows[oy] * row, *below = x + (int64_t)a->rows[a->out[0] + oy] * row;
    const float down = a->rows[2 * a->out[0] + oy];
    for (int64_t ox = 0; ox < out; ++ox, y += C) {
      const int64_t left = (int64_t)a->columns[ox] * C, right = (int64_t)a->columns[out + ox] * C;
      if (a->blends)
        blend_pixel({{above + left, above + right}, {below + left, below + right}}, down, a->columns[2 * out + ox], C, y);
      else
        copy_pixel(above + left, C, y);
    }
  }
}

void run(const Args* a, void* scratch, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / blocks(a), first = unit % blocks(a) * kUnitRows, last = least(a->out[0], first + kUnitRows);
    const float* x = a->x + image * a->size[0] * a->size[1] * a->channels;
    float* y = a->y + (image * a->out[0] + first) * a->out[1] * a->channels;
    if (a->channels == 1) resize_plane(a, x, first, last, (float*)scratch, y);
    else resize(a, x, first, last, y);
  }
}

}  // namespace

extern "C" const sep_resample_kernels SEP_TABLE(resample) = {units, scratch_bytes, run};
