// Rows of channels by a panel of weights, two vectors of columns, whose sums stay in registers: pointwise_tile.h without its endings, and
// with sums that go on from chunk to chunk of channels, so that the weights of a chunk stay in the first-level cache for all rows.
#pragma once
#include "vec.h"

namespace {

enum {
  kRows = kRegisters == 32 ? 14 : 6,  // 14 * 2 sums, 2 weights, 1 input in 32 registers; 6 * 2, 2 and 1 in 16
  kPanel = 2 * kLanes,
};

struct Product {
  const float* x;  // rows of channels
  int64_t x_stride;
  const float* w;
  int64_t channels;
  const char* ahead;  // weights to fetch meanwhile, `share` bytes a channel
  int64_t share;
  float* y;
  int64_t y_stride;
  bool adds;  // to what y holds
};

template <int R, int N>
void product(const Product& p) {
  V sum[R][N];
  #pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
    #pragma GCC unroll 2
    for (int v = 0; v < N; ++v) sum[r][v] = p.adds ? load(p.y + r * p.y_stride + v * kLanes) : V{};
  const float *x = p.x, *w = p.w;
  const char* ahead = p.ahead;
  for (int64_t c = 0; c < p.channels; ++c, w += N * kLanes, ahead += p.share) {
    __builtin_prefetch(ahead, 0, 2);
    if (p.share > 64) __builtin_prefetch(ahead + 64, 0, 2);
    V weight[N];
    #pragma GCC unroll 2
    for (int v = 0; v < N; ++v) weight[v] = load(w + v * kLanes);
    #pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const V a = splat(x[r * p.x_stride + c]);
      #pragma GCC unroll 2
      for (int v = 0; v < N; ++v) sum[r][v] = fma(a, weight[v], sum[r][v]);
    }
  }
  #pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
    #pragma GCC unroll 2
    for (int v = 0; v < N; ++v) store(p.y + r * p.y_stride + v * kLanes, sum[r][v]);
}

typedef void (*ProductFunction)(const Product&);
#define SEP_PRODUCTS(r) {product<r, 1>, product<r, 2>}
ProductFunction const kProducts[kRows][2] = {
    SEP_PRODUCTS(1), SEP_PRODUCTS(2), SEP_PRODUCTS(3), SEP_PRODUCTS(4), SEP_PRODUCTS(5), SEP_PRODUCTS(6),
#if defined(__AVX512F__) || defined(__aarch64__)
    SEP_PRODUCTS(7), SEP_PRODUCTS(8), SEP_PRODUCTS(9), SEP_PRODUCTS(10), SEP_PRODUCTS(11), SEP_PRODUCTS(12), SEP_PRODUCTS(13), SEP_PRODUCTS(14),
#endif
};

}  // namespace
