// Products of bfloat16 by the matrix tiles of x86 (AMX): 16 rows by 32 channels times 32 channels by 16 columns in one instruction.
//
// The assembler's own words, as the compiler's flags for them would let it use what the processor may lack. Registers: 0 to 3 hold
// the sums of 32 rows by 32 columns, 4 and 5 the rows, 6 and 7 the columns. Linux grants them on request: sep_has_bf16_tiles().
#pragma once
#include <stdint.h>

#include "vec.h"

namespace {

enum {
  kTileRows = 16,     // of one register; a row is 64 bytes: 16 pairs of bfloat16, or 16 sums
  kTilePairs = 16,    // of channels in one step
  kSquare = 2 * 16,   // rows and columns of the sums in four registers
};

#if defined(SEP_HAS_TILES) && defined(__AVX512F__)

// All eight registers of 16 rows of 64 bytes. What a thread has configured is its own; end_tiles() gives it back.
SEP_INLINE void begin_tiles() {
  static const struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } kAll = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
  asm volatile("ldtilecfg %0" : : "m"(kAll));
}
SEP_INLINE void end_tiles() { asm volatile("tilerelease"); }

#define SEP_TILE_LOAD(n, p, stride) asm volatile("tileloadd (%0,%1,1), %%tmm" #n : : "r"(p), "r"(stride) : "memory")
#define SEP_TILE_STORE(n, p, stride) asm volatile("tilestored %%tmm" #n ", (%0,%1,1)" : : "r"(p), "r"(stride) : "memory")
#define SEP_TILE_DOT(sum, rows, columns) asm volatile("tdpbf16ps %%tmm" #columns ", %%tmm" #rows ", %%tmm" #sum : :)
#define SEP_TILE_ZERO(n) asm volatile("tilezero %%tmm" #n : :)

// Rows of x times columns of w. All strides are bytes; `steps` and `run` are pairs, multiples of kTilePairs.
struct TileFactors {
  const char* x;  // whole registers of rows, each in runs of pairs side by side
  int64_t x_stride, run, run_stride;
  const char* w;  // `steps` pairs of two vectors of columns, or of one where there is no other
  int64_t steps;
  const char* ahead;  // memory to fetch meanwhile
  int64_t ahead_bytes;
};

// kSquare rows, or half of them without TwoRows, by two vectors of columns, or one: of `sums`, kSquare by kSquare, those are written.
template <bool TwoRows, bool TwoColumns>
SEP_INLINE void multiply_tiles(const TileFactors& t, float* sums) {
  const char *x = t.x, *w = t.w, *ahead = t.ahead;
  const int64_t x_stride = t.x_stride, skip = t.run_stride - 4 * t.run;
  int64_t left = t.run;
  const int64_t w_stride = TwoColumns ? 128 : 64, share = t.ahead_bytes / (t.steps / kTilePairs);
  SEP_TILE_ZERO(0);
  SEP_TILE_ZERO(1);
  SEP_TILE_ZERO(2);
  SEP_TILE_ZERO(3);
  const char* below = x + kTileRows * x_stride;
  for (int64_t i = 0; i < t.steps; i += kTilePairs, x += 64, below += 64, w += kTilePairs * w_stride, ahead += share) {
    if (left == 0) x += skip, below += skip, left = t.run;
    left -= kTilePairs;
    for (int64_t at = 0; at < share; at += 64) __builtin_prefetch(ahead + at, 0, 2);
    SEP_TILE_LOAD(6, w, w_stride);
    SEP_TILE_LOAD(4, x, x_stride);
    SEP_TILE_DOT(0, 4, 6);
    if (TwoColumns) {
      SEP_TILE_LOAD(7, w + 64, w_stride);
      SEP_TILE_DOT(1, 4, 7);
    }
    if (TwoRows) {
      SEP_TILE_LOAD(5, below, x_stride);
      SEP_TILE_DOT(2, 5, 6);
      if (TwoColumns) SEP_TILE_DOT(3, 5, 7);
    }
  }
  const int64_t stride = kSquare * 4;
  float* lower = sums + kTileRows * kSquare;
  SEP_TILE_STORE(0, sums, stride);
  if (TwoColumns) SEP_TILE_STORE(1, sums + kTileRows, stride);
  if (TwoRows) SEP_TILE_STORE(2, lower, stride);
  if (TwoRows && TwoColumns) SEP_TILE_STORE(3, lower + kTileRows, stride);
}

#endif

}  // namespace
