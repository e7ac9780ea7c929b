// Rows of the input of a dense convolution into scratch memory, with the zeros that stand beside them.
#pragma once
#include "dense_group.h"

namespace {

// `count` elements, of which those before `first` and from `last` on are zeros. from: the element 0.
template <class T>
void copy_padded(const float* from, int64_t first, int64_t last, int64_t count, T* to) {
  first = least(most(first, 0), count), last = least(most(last, first), count);
  for (int64_t i = 0; i < first; ++i) to[i] = 0;
  int64_t i = first;
  for (; i + kLanes <= last; i += kLanes) store(to + i, load(from + i));
  if (i < last) store_tail(to + i, load_tail(from + i, last - i), last - i);
  for (i = last; i < count; ++i) to[i] = 0;
}

// The channels of one pixel, which are `stride` floats apart; from: null where it is a pixel of the border.
template <class T>
SEP_INLINE void copy_channels(const float* from, int64_t stride, int64_t channels, T* to) {
  int64_t c = 0;
  if (stride == 1 || !from) {
    for (; c + kLanes <= channels; c += kLanes) store(to + c, from ? load(from + c) : V{});
    if (c < channels) store_tail(to + c, from ? load_tail(from + c, channels - c) : V{}, channels - c);
    return;
  }
  for (; c < channels; c += kLanes) {
    const int64_t n = least(kLanes, channels - c);
    V v = {};
    for (int64_t l = 0; l < n; ++l) v[l] = from[(c + l) * stride];
    store_tail(to + c, v, n);
  }
}

// `count` windows on a row, `step` pixels apart, each of so many taps side by side. row: the first pixel inside the image, `width` of
// which there are: 0 of a row outside.
template <class T>
void copy_windows(const Group& a, const float* row, int64_t width, int64_t count, int64_t step, int64_t taps, T* to) {
  const int64_t C = a.channels, left = a.padding[1], *s = a.x_stride;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t tap = 0; tap < taps; ++tap, to += C) {
      const int64_t pixel = i * step + tap * a.dilation[1] - left;
      copy_channels(pixel >= 0 && pixel < width ? row + pixel * s[3] : nullptr, s[1], C, to);
    }
}

// A whole row, `count` pixels of it with its borders.
template <class T>
void copy_pixels(const Group& a, const float* row, int64_t width, int64_t count, T* to) {
  const int64_t C = a.channels, left = a.padding[1], *s = a.x_stride;
  if ((s[1] == 1 || C == 1) && s[3] == C) return copy_padded(row - left * C, left * C, (left + width) * C, count * C, to);
  const int64_t first = least(left, count), last = most(first, least(left + width, count));
  for (int64_t i = 0; i < first * C; ++i) to[i] = 0;
  for (int64_t i = last * C; i < count * C; ++i) to[i] = 0;
  const float* from = row + (first - left) * s[3];
  to += first * C;
  if (C == kLanes && s[1] == 1)
    for (int64_t i = first; i < last; ++i, from += s[3], to += C) store(to, load(from));
  else
    for (int64_t i = first; i < last; ++i, from += s[3], to += C) copy_channels(from, s[1], C, to);
}

}  // namespace
