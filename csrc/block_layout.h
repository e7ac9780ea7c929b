// Rows of one block of channels, copied between a tensor of any layout and scratch memory of kLanes floats a pixel.
//
// On the way in: bfloat16 becomes float32, channels-first becomes channels-last, each channel is repeated `share` times
// (depth multiplier), zeros go beside the row. On the way out: the reverse, `share` lanes summed, bias and activation.
#pragma once
#include "activation.h"
#include "depthwise_conv.h"
#include "vec.h"

namespace {

typedef struct Block {
  int64_t first, used;  // channels of the tensor: first ... first + used - 1, each of them `share` lanes
  int64_t share;
} Block;

template <class T>
SEP_INLINE const T* element(const sep_view* v, int64_t n, int64_t c, int64_t z, int64_t y, int64_t x) {
  const int64_t* s = v->stride;
  return (const T*)v->data + n * s[0] + c * s[1] + z * s[2] + y * s[3] + x * s[4];
}

// Pixels [begin, end) of the row p, channels-last; any distance `step` between pixels.
template <class T>
SEP_INLINE void read_pixels(const T* p, int64_t step, Block b, int64_t pixels, float* out) {
  if (b.share > 1) {
    VI index;
    for (int l = 0; l < kLanes; ++l) index[l] = l / (int)b.share;
    for (int64_t i = 0; i < pixels; ++i) {
      const V a = b.used == kLanes ? load(p + i * step) : load_tail(p + i * step, b.used);
      store(out + i * kLanes, permute(a, index));
    }
  } else if (b.used == kLanes) {
    for (int64_t i = 0; i < pixels; ++i) store(out + i * kLanes, load(p + i * step));
  } else {
    for (int64_t i = 0; i < pixels; ++i) store(out + i * kLanes, load_tail(p + i * step, b.used));
  }
}

// The same where neighbouring pixels are neighbours in memory; `step` leads from channel to channel.
template <class T>
SEP_INLINE void read_planes(const T* p, int64_t step, Block b, int64_t pixels, float* out) {
  for (int64_t i = 0; i < pixels; i += kLanes) {
    const int64_t left = pixels - i;
    V rows[kLanes] = {};
    const int64_t lanes = b.used * b.share;
    if (left >= kLanes)
      for (int64_t l = 0; l < lanes; ++l) rows[l] = load(p + i + l / b.share * step);
    else
      for (int64_t l = 0; l < lanes; ++l) rows[l] = load_tail(p + i + l / b.share * step, left);
    transpose(rows);
    if (left >= kLanes)
      for (int64_t l = 0; l < kLanes; ++l) store(out + (i + l) * kLanes, rows[l]);
    else
      for (int64_t l = 0; l < left; ++l) store(out + (i + l) * kLanes, rows[l]);
  }
}

// Row (image, z, y) into out, whose first pixel is pixel `low` of the row and whose last is `high` - 1; 0 ... in - 1 exist.
template <class T>
void read_row(const sep_view* v, Block b, int64_t n, int64_t z, int64_t y, int64_t in, int64_t low, int64_t high, float* out) {
  const int64_t begin = low > 0 ? low : 0, end = high < in ? high : in;
  for (int64_t i = low; i < begin && i < high; ++i) store(out + (i - low) * kLanes, V{});
  for (int64_t i = end > low ? end : low; i < high; ++i) store(out + (i - low) * kLanes, V{});
  if (begin >= end) return;
  const T* p = element<T>(v, n, b.first, z, y, begin);
  float* o = out + (begin - low) * kLanes;
  if (v->stride[1] == 1 || b.used == 1) {
    read_pixels(p, v->stride[4], b, end - begin, o);
  } else if (v->stride[4] == 1 || end - begin == 1) {
    read_planes(p, v->stride[1], b, end - begin, o);
  } else {
    T gathered[kLanes] = {};
    for (int64_t i = 0; i < end - begin; ++i) {
      for (int64_t l = 0; l < b.used; ++l) gathered[l] = p[l * v->stride[1] + i * v->stride[4]];
      read_pixels(gathered, 0, b, 1, o + i * kLanes);
    }
  }
}

void read_any_row(const sep_view* v, int32_t dtype, Block b, int64_t n, int64_t z, int64_t y, int64_t in, int64_t low,
                  int64_t high, float* out) {
  if (dtype == SEP_BF16)
    read_row<uint16_t>(v, b, n, z, y, in, low, high, out);
  else
    read_row<float>(v, b, n, z, y, in, low, high, out);
}

// Pixels of scratch memory into row (image, z, y), which is channels-last or contiguous.
template <class T>
void write_row(const sep_view* v, Block b, int64_t n, int64_t z, int64_t y, int64_t pixels, const float* in, V bias,
               int32_t activation) {
  T* p = (T*)element<T>(v, n, b.first, z, y, 0);
  if (v->stride[1] == 1 || b.used == 1) {
    for (int64_t i = 0; i < pixels; ++i) {
      const V a = activate(add_shares(load(in + i * kLanes), b.share) + bias, activation);
      if (b.used == kLanes)
        store(p + i * v->stride[4], a);
      else
        store_tail(p + i * v->stride[4], a, b.used);
    }
    return;
  }
  for (int64_t i = 0; i < pixels; i += kLanes) {
    const int64_t left = pixels - i < kLanes ? pixels - i : kLanes;
    V rows[kLanes] = {};
    for (int64_t l = 0; l < left; ++l)
      rows[l] = activate(add_shares(load(in + (i + l) * kLanes), b.share) + bias, activation);
    transpose(rows);
    T* q = p + i * v->stride[4];
    if (left == kLanes)
      for (int64_t l = 0; l < b.used; ++l) store(q + l * v->stride[1], rows[l]);
    else
      for (int64_t l = 0; l < b.used; ++l) store_tail(q + l * v->stride[1], rows[l], left);
  }
}

void write_any_row(const sep_view* v, int32_t dtype, Block b, int64_t n, int64_t z, int64_t y, int64_t pixels,
                   const float* in, V bias, int32_t activation) {
  if (dtype == SEP_BF16)
    write_row<uint16_t>(v, b, n, z, y, pixels, in, bias, activation);
  else
    write_row<float>(v, b, n, z, y, pixels, in, bias, activation);
}

}  // namespace
