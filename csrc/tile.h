// What the tiles of matrix products have in common: where their rows lie, and what becomes of the sums in their registers.
#pragma once
#include "activation.h"
#include "vec.h"

namespace {

enum {
  kRows = kRegisters == 32 ? 14 : 6,  // 14 * 2 sums, 2 weights, 1 input in 32 registers; 6 * 2, 2 and 1 in 16
  kPanel = 2 * kLanes,
};

SEP_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
SEP_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
SEP_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

typedef uint32_t Word __attribute__((may_alias));  // a float, or a pair

struct Tile {
  const Word* x;  // rows of floats or of pairs
  int64_t x_stride, run, run_stride;  // `run` steps side by side
  const float* w;
  int64_t steps;
  const char* ahead;  // what the tiles after these will read, and how much of it to fetch: in all, and with each step
  int64_t ahead_bytes, ahead_step;  // at most what a step reads, which is no more than two lines
  float* y;
  int64_t y_stride, columns;
  const float *bias, *residual;
  int64_t residual_stride;
  int32_t activation, residual_first;
};

// What is done to sums: the residual before or after a clamp, or, where the activation is none, neither here.
struct Ending {
  explicit Ending(const Tile& t)
      : clamps(is_clamp(t.activation)), before(t.residual && clamps && t.residual_first), after(t.residual && clamps && !t.residual_first),
        low(clamp_low(clamps ? t.activation : SEP_NONE)), high(clamp_high(clamps ? t.activation : SEP_NONE)) {}
  bool clamps, before, after;
  V low, high;
};

// What is not max and min: over the tile just written, so that the tile's code stays small.
void finish(const Tile& t, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    float* y = t.y + r * t.y_stride;
    const float* residual = t.residual ? t.residual + r * t.residual_stride : nullptr;
    for (int64_t c = 0; c < t.columns; c += kLanes) {
      const int64_t n = least(kLanes, t.columns - c);
      V v = load_tail(y + c, n);
      const V added = residual ? load_tail(residual + c, n) : V{};
      if (residual && t.residual_first) v += added;
      v = activate(v, t.activation);
      if (residual && !t.residual_first) v += added;
      store_tail(y + c, v, n);
    }
  }
}

// Where R rows of x are read, three from each address: an address for every row would not fit the registers, nor would a compiler, left
// to itself, find these.
template <int R>
struct Rows {
  enum { kAddresses = (R + 2) / 3 };
  const char* at[kAddresses];
  int64_t stride;  // bytes
};

template <int R>
SEP_INLINE const Word* row_of(const Rows<R>& rows, int r) {
  return (const Word*)(rows.at[r / 3] + r % 3 * rows.stride);
}
template <int R>
SEP_INLINE void advance(Rows<R>& rows, int64_t steps) {
  #pragma GCC unroll 8
  for (int i = 0; i < Rows<R>::kAddresses; ++i) {
    rows.at[i] += 4 * steps;
    asm("" : "+r"(rows.at[i]));
  }
}
template <int R>
SEP_INLINE Rows<R> rows_from(const Word* x, int64_t x_stride) {
  Rows<R> rows;
  rows.stride = 4 * x_stride;
  #pragma GCC unroll 8
  for (int i = 0; i < Rows<R>::kAddresses; ++i) rows.at[i] = (const char*)x + 3 * i * rows.stride;
  advance(rows, 0);
  return rows;
}

// Sums of whole vectors to y. What the tile says is read before anything is written: the compiler cannot know that y is not the tile.
template <int R, int N>
SEP_INLINE void store_whole(const Tile& t, const V sum[R][N]) {
  const Ending end(t);
  float* y = t.y;
  const int64_t y_stride = t.y_stride, residual_stride = t.residual_stride;
  const float* residual = t.residual;
  const bool before = end.before, after = end.after, plain = !residual && (t.activation == SEP_NONE || !end.clamps);
  #pragma GCC unroll 16
  for (int r = 0; r < R; ++r, y += y_stride, residual += residual_stride)
    #pragma GCC unroll 2
    for (int v = 0; v < N; ++v) {
      V s = sum[r][v];
      if (!plain) {
        if (before) s += load(residual + v * kLanes);
        s = clamp(s, end.low, end.high);
        if (after) s += load(residual + v * kLanes);
      }
      store(y + v * kLanes, s);
    }
}

template <int R, int N>
SEP_INLINE void store_some(const Tile& t, const V sum[R][N]) {
  const Ending end(t);
  #pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
    #pragma GCC unroll 2
    for (int v = 0; v < N; ++v) {
      const int64_t n = most(0, least(kLanes, t.columns - v * kLanes));
      const float* residual = t.residual + r * t.residual_stride + v * kLanes;
      V s = sum[r][v];
      if (end.before) s += load_tail(residual, n);
      s = clamp(s, end.low, end.high);
      if (end.after) s += load_tail(residual, n);
      store_tail(t.y + r * t.y_stride + v * kLanes, s, n);
    }
}

}  // namespace
