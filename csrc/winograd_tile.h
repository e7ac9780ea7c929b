// The transforms of Winograd's minimal filtering for three weights in a row; in two dimensions each is applied to columns, then rows.
//
// `out` outputs in a row are a polynomial product evaluated at out + 1 points and infinity: y = A^T [(G g) * (B^T d)]. The points
// decide the error: Barabasz et al. 2018 (arXiv:1803.10986) analyse the choice. Symmetric ones share half of their sums; of those
// tried on random layers, 0, +-11/16, +-3/2 had the least error, below 0, +-1, +-2 and 0, +-1, +-1/2.
#pragma once
#include "vec.h"

namespace {

struct Two {
  enum { kOut = 2, kIn = 4 };
  SEP_INLINE void input(const V* d, V* v) {
    v[0] = d[0] - d[2], v[1] = d[1] + d[2], v[2] = d[2] - d[1], v[3] = d[3] - d[1];
  }
  SEP_INLINE void output(const V* m, V* y) { y[0] = m[0] + (m[1] + m[2]), y[1] = (m[1] - m[2]) + m[3]; }
  SEP_INLINE void weight(const double* g, double* u) {
    u[0] = g[0], u[3] = g[2];
    u[1] = (g[0] + g[2] + g[1]) / 2, u[2] = (g[0] + g[2] - g[1]) / 2;
  }
};

struct Four {
  enum { kOut = 4, kIn = 6 };
  // Points 0, a, -a, b, -b and infinity; all of these are exact in float32.
  static constexpr float a = 0.6875f, b = 1.5f, aa = a * a, bb = b * b;

  SEP_INLINE void input(const V* d, V* v) {
    const V sum = splat(-(aa + bb)), product = splat(aa * bb);
    const V even_a = fma(splat(-bb), d[2], d[4]), odd_a = fma(splat(-bb), d[1], d[3]);
    const V even_b = fma(splat(-aa), d[2], d[4]), odd_b = fma(splat(-aa), d[1], d[3]);
    v[0] = fma(product, d[0], fma(sum, d[2], d[4]));
    v[1] = fma(splat(a), odd_a, even_a), v[2] = fma(splat(-a), odd_a, even_a);
    v[3] = fma(splat(b), odd_b, even_b), v[4] = fma(splat(-b), odd_b, even_b);
    v[5] = fma(product, d[1], fma(sum, d[3], d[5]));
  }
  SEP_INLINE void output(const V* m, V* y) {
    const V even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + (even_a + even_b);
    y[1] = fma(splat(a), odd_a, splat(b) * odd_b);
    y[2] = fma(splat(aa), even_a, splat(bb) * even_b);
    y[3] = fma(splat(aa * a), odd_a, fma(splat(bb * b), odd_b, m[5]));
  }
  SEP_INLINE void weight(const double* g, double* u) {
    u[0] = g[0] / ((double)aa * bb), u[5] = g[2];
    const double even_a = g[0] + g[2] * aa, odd_a = g[1] * a, even_b = g[0] + g[2] * bb, odd_b = g[1] * b;
    const double under_a = 2.0 * aa * ((double)aa - bb), under_b = 2.0 * bb * ((double)bb - aa);
    u[1] = (even_a + odd_a) / under_a, u[2] = (even_a - odd_a) / under_a;
    u[3] = (even_b + odd_b) / under_b, u[4] = (even_b - odd_b) / under_b;
  }
};

// d and v: kIn x kIn.
template <class F>
SEP_INLINE void input_transform(const V (*d)[F::kIn], V (*v)[F::kIn]) {
  V half[F::kIn][F::kIn];
  #pragma GCC unroll 6
  for (int j = 0; j < F::kIn; ++j) {
    V column[F::kIn], turned[F::kIn];
    #pragma GCC unroll 6
    for (int i = 0; i < F::kIn; ++i) column[i] = d[i][j];
    F::input(column, turned);
    #pragma GCC unroll 6
    for (int i = 0; i < F::kIn; ++i) half[i][j] = turned[i];
  }
  #pragma GCC unroll 6
  for (int i = 0; i < F::kIn; ++i) F::input(half[i], v[i]);
}

// Product (i, j) of the tile at m + (i * kIn + j) * stride; y: kOut x kOut.
template <class F>
SEP_INLINE void output_transform(const float* m, int64_t stride, V (*y)[F::kOut]) {
  V half[F::kOut][F::kIn];
  #pragma GCC unroll 6
  for (int j = 0; j < F::kIn; ++j) {
    V column[F::kIn], turned[F::kOut];
    #pragma GCC unroll 6
    for (int i = 0; i < F::kIn; ++i) column[i] = load(m + (i * F::kIn + j) * stride);
    F::output(column, turned);
    #pragma GCC unroll 4
    for (int i = 0; i < F::kOut; ++i) half[i][j] = turned[i];
  }
  #pragma GCC unroll 4
  for (int i = 0; i < F::kOut; ++i) F::output(half[i], y[i]);
}

// g: 3x3, u: kIn x kIn.
template <class F>
SEP_INLINE void weight_transform(const double (*g)[3], double (*u)[F::kIn]) {
  double half[F::kIn][3];
  for (int j = 0; j < 3; ++j) {
    const double column[3] = {g[0][j], g[1][j], g[2][j]};
    double turned[F::kIn];
    F::weight(column, turned);
    for (int i = 0; i < F::kIn; ++i) half[i][j] = turned[i];
  }
  for (int i = 0; i < F::kIn; ++i) F::weight(half[i], u[i]);
}

}  // namespace
