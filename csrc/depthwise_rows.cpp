// The inner loops of a depthwise convolution: one row of outputs for one block of channels.
//
// A row is computed in tiles of P neighbouring outputs that stay in registers. Taps come in lines of KW neighbours, whose
// inputs the P outputs share: P + KW - 1 loads for P * KW products; taps that do not fill a line come one by one.
#include "depthwise_rows.h"

#include "activation.h"

namespace {

alignas(64) const float kZeros[kLanes] = {};

// Input i, or zeros where it is outside and CHECK says that it may be; a choice of addresses, for a branch would often err.
template <bool CHECK>
SEP_INLINE V input(const sep_row* r, const float* x, int64_t i) {
  const float* p = x + i * r->xs;
  if (CHECK) {
    p = (uint64_t)(i - r->low) < (uint64_t)(r->high - r->low) ? p : kZeros;
    asm("" : "+r"(p));
  }
  return load(p);
}

template <int KW, int S, int P, bool CHECK>
SEP_INLINE void tile(const sep_row* r, int64_t o) {
  V sum[P];
  for (int p = 0; p < P; ++p) sum[p] = load(r->bias);
  if constexpr (KW > 0) {
    for (int64_t l = 0; l < r->line_count; ++l) {
      const float* w = r->lines[l].w;
      const int64_t i = o * S + r->lines[l].offset;
      V tap[KW];
#pragma GCC unroll 8
      for (int k = 0; k < KW; ++k) tap[k] = load(w + k * kLanes);
#pragma GCC unroll 32
      for (int j = 0; j < (P - 1) * S + KW; ++j) {
        const V x = input<CHECK>(r, r->lines[l].x, i + j);
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p)
          if (j - p * S >= 0 && j - p * S < KW) sum[p] = fma(x, tap[j - p * S], sum[p]);
      }
    }
  }
  for (int64_t l = 0; l < r->single_count; ++l) {
    const V tap = load(r->singles[l].w);
    const int64_t i = o * r->advance + r->singles[l].offset;
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sum[p] = fma(input<CHECK>(r, r->singles[l].x, i + p * r->advance), tap, sum[p]);
  }
  float* y = r->y + o * r->ys;
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) store(y + p * r->ys, sum[p]);
}

template <int KW, int S, int P>
SEP_INLINE int64_t tile_at(const sep_row* r, int64_t o, int64_t inside, int64_t outside) {
  if (o >= inside && o + P <= outside)
    tile<KW, S, P, false>(r, o);
  else
    tile<KW, S, P, true>(r, o);
  return o + P;
}

template <int KW, int S>
void compute_row(const sep_row* r) {
  const int64_t n = r->outputs, advance = KW > 0 ? S : r->advance;
  const int64_t inside = ceil_div(r->low, advance);  // outputs inside ... outside - 1 read no border
  const int64_t outside = floor_div(r->high - 1 - r->reach, advance) + 1;
  int64_t o = 0;
  if (n % 7 == 0 && n % 8) {
    while (o < n) o = tile_at<KW, S, 7>(r, o, inside, outside);
    return;
  }
  while (o + 8 <= n) o = tile_at<KW, S, 8>(r, o, inside, outside);
  if (o == n) return;
  if (n >= 8) {  // the last tile computes some outputs again rather than fewer at a time
    tile_at<KW, S, 8>(r, n - 8, inside, outside);
    return;
  }
  if (o + 4 <= n) o = tile_at<KW, S, 4>(r, o, inside, outside);
  while (o < n) o = tile_at<KW, S, 1>(r, o, inside, outside);
}

// A pass of its own over a row that is still in the first-level cache, so that the tiles stay small.
__attribute__((noinline)) void activate_row(const sep_row* r) {
  for (int64_t o = 0; o < r->outputs; ++o) store(r->y + o * r->ys, activate(load(r->y + o * r->ys), r->activation));
}

template <int S>
sep_compute_row compute_row_of(int64_t length) {
  switch (length) {
    case 1: return compute_row<1, S>;
    case 2: return compute_row<2, S>;
    case 3: return compute_row<3, S>;
    case 4: return compute_row<4, S>;
    case 5: return compute_row<5, S>;
    case 7: return compute_row<7, S>;
    default: return compute_row<0, 1>;
  }
}

sep_compute_row choose_row(int64_t length, int64_t advance) {
  return advance == 2 ? compute_row_of<2>(length) : compute_row_of<1>(length);
}

}  // namespace

extern "C" const sep_depthwise_rows_kernels SEP_TABLE(depthwise_rows) = {choose_row, activate_row};
