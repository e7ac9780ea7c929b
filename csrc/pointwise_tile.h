// One tile of a pointwise convolution: rows by up to two vectors of columns, whose sums stay in registers over all channels.
//
// One step loads two vectors of weights and multiplies them by one channel of each row, or by a pair of bfloat16. Meanwhile what the
// next tiles will read comes towards the second-level cache: the weights of a network come from further away.
#pragma once
#include "matrix_tiles.h"
#include "tile.h"

namespace {

// ---- products: float32, or pairs of bfloat16 whose two products go into one float32 sum

SEP_INLINE int64_t steps_of(int64_t c_in, int32_t product) {
  if (product == SEP_BF16_TILES) return ceil_div(c_in, 2 * kTilePairs) * kTilePairs;
  return product == SEP_BF16 ? ceil_div(c_in, 2) : c_in;
}
SEP_INLINE int64_t height_of(int32_t product) { return product == SEP_BF16_TILES ? (int64_t)kSquare : (int64_t)kRows; }

struct Single {
  SEP_INLINE V step(V sum, uint32_t x, V w) { return fma((V)(VU{} + x), w, sum); }
  SEP_INLINE V step(V sum, const Word* x, V w) { return fma(splat(*(const float*)x), w, sum); }  // read as it is multiplied
};

#if defined(__AVX512F__)
struct Pairs {
  // The assembler's own words, so that no other code of this file may be compiled to what the processor may lack.
  SEP_INLINE V step(V sum, uint32_t x, V w) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(w), "v"(VU{} + x));
    return sum;
  }
  SEP_INLINE V step(V sum, const Word* x, V w) { return step(sum, *x, w); }
};
#endif

// ---- the tile

// One step: a channel of each row, or a pair, times N vectors of weights. One vector reads x in the multiplication itself; two share it.
template <class Product, int R, int N>
SEP_INLINE void multiply_step(V sum[R][N], const Rows<R>& rows, int offset, const float* w) {
  V weight[N];
  #pragma GCC unroll 2
  for (int v = 0; v < N; ++v) weight[v] = load(w + v * kLanes);
  #pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    if constexpr (N == 1) {
      sum[r][0] = Product::step(sum[r][0], row_of(rows, r) + offset, weight[0]);
    } else {
      const uint32_t a = row_of(rows, r)[offset];
      #pragma GCC unroll 2
      for (int v = 0; v < N; ++v) sum[r][v] = Product::step(sum[r][v], a, weight[v]);
    }
  }
}

template <class Product, int R, int N>
void tile(const Tile& t) {
  V sum[R][N];
  const bool whole = t.columns >= N * kLanes;
  #pragma GCC unroll 2
  for (int v = 0; v < N; ++v) {
    V first = {};
    if (t.bias) first = whole ? load(t.bias + v * kLanes) : load_tail(t.bias + v * kLanes, most(0, least(kLanes, t.columns - v * kLanes)));
    #pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[r][v] = first;
  }
  Rows<R> rows = rows_from<R>(t.x, t.x_stride);
  const float* w = t.w;
  const char* ahead = t.ahead;
  const int64_t share = t.ahead_step;
  for (int64_t steps = t.steps; steps > 0; steps -= t.run, advance(rows, t.run_stride - t.run)) {
    asm volatile("" : : : "memory");  // what only this loop needs is read here, so that the inner one has the registers
    int64_t left = t.run;
    if constexpr (N == 1)  // two steps to one change of addresses
      for (; left > 1; left -= 2, w += 2 * kLanes, ahead += 2 * share) {
        if (share > 0) __builtin_prefetch(ahead, 0, 2);
        if (share > 32) __builtin_prefetch(ahead + 64, 0, 2);
        multiply_step<Product, R, N>(sum, rows, 0, w);
        multiply_step<Product, R, N>(sum, rows, 1, w + kLanes);
        advance(rows, 2);
      }
    for (; left > 0; --left, w += N * kLanes, ahead += share) {
      if (share > 0) __builtin_prefetch(ahead, 0, 2);
      if (share > 64) __builtin_prefetch(ahead + 64, 0, 2);
      multiply_step<Product, R, N>(sum, rows, 0, w);
      advance(rows, 1);
    }
  }
  if (whole) store_whole<R, N>(t, sum);
  else store_some<R, N>(t, sum);
  if (!is_clamp(t.activation)) finish(t, R);
}

typedef void (*TileFunction)(const Tile&);
#define SEP_TILES(P, r) {tile<P, r, 1>, tile<P, r, 2>}
#define SEP_FEW(P) SEP_TILES(P, 1), SEP_TILES(P, 2), SEP_TILES(P, 3), SEP_TILES(P, 4), SEP_TILES(P, 5), SEP_TILES(P, 6)
#define SEP_MANY(P) SEP_TILES(P, 7), SEP_TILES(P, 8), SEP_TILES(P, 9), SEP_TILES(P, 10), SEP_TILES(P, 11), SEP_TILES(P, 12), SEP_TILES(P, 13), SEP_TILES(P, 14)
#if defined(__AVX512F__)
TileFunction const kTiles[2][kRows][2] = {{SEP_FEW(Single), SEP_MANY(Single)}, {SEP_FEW(Pairs), SEP_MANY(Pairs)}};
#elif defined(__aarch64__)
TileFunction const kTiles[1][kRows][2] = {{SEP_FEW(Single), SEP_MANY(Single)}};
#else
TileFunction const kTiles[1][kRows][2] = {{SEP_FEW(Single)}};
#endif

#if defined(SEP_HAS_TILES) && defined(__AVX512F__)
// The sums of matrix tiles go through memory, where all is done to them in one pass.
template <bool Whole>  // whether the vector has all its columns
SEP_INLINE void finish_sums(const Tile& t, const float* sums, int64_t rows, int64_t column) {
  const Ending end(t);
  const int64_t n = Whole ? (int64_t)kLanes : t.columns - column;
  const V bias = t.bias ? load_tail(t.bias + column, n) : V{};
  for (int64_t r = 0; r < rows; ++r) {
    V s = load(sums + r * kSquare) + bias;
    const float* residual = t.residual ? t.residual + r * t.residual_stride + column : nullptr;
    float* y = t.y + r * t.y_stride + column;
    if (end.clamps) {
      if (end.before) s += Whole ? load(residual) : load_tail(residual, n);
      s = clamp(s, end.low, end.high);
      if (end.after) s += Whole ? load(residual) : load_tail(residual, n);
    } else {
      const V added = residual ? load_tail(residual, n) : V{};
      if (residual && t.residual_first) s += added;
      s = activate(s, t.activation);
      if (residual && !t.residual_first) s += added;
    }
    if (Whole) store(y, s);
    else store_tail(y, s, n);
  }
}

void matrix_tile(const Tile& t, int64_t rows) {
  alignas(64) float sums[kSquare * kSquare];
  const bool two_rows = rows > kTileRows, two_columns = t.columns > kLanes;
  auto product = two_rows ? two_columns ? multiply_tiles<true, true> : multiply_tiles<true, false>
                          : two_columns ? multiply_tiles<false, true> : multiply_tiles<false, false>;
  product({(const char*)t.x, t.x_stride * 4, t.run, t.run_stride * 4, (const char*)t.w, t.steps, t.ahead, t.ahead_bytes}, sums);
  for (int64_t column = 0; column < t.columns; column += kLanes) {
    if (t.columns - column >= kLanes) finish_sums<true>(t, sums + column, rows, column);
    else finish_sums<false>(t, sums + column, rows, column);
  }
}
#endif

// Around all tiles of a thread's work.
SEP_INLINE void begin_product(int32_t product) {
#if defined(SEP_HAS_TILES) && defined(__AVX512F__)
  if (product == SEP_BF16_TILES) begin_tiles();
#endif
}
SEP_INLINE void end_product(int32_t product) {
#if defined(SEP_HAS_TILES) && defined(__AVX512F__)
  if (product == SEP_BF16_TILES) end_tiles();
#endif
}

void multiply(const Tile& t, int32_t product, int64_t rows) {
#if defined(SEP_HAS_TILES) && defined(__AVX512F__)
  if (product == SEP_BF16_TILES) return matrix_tile(t, rows);
#endif
  kTiles[product][rows - 1][t.columns > kLanes](t);
}

}  // namespace
