// One row of a depthwise convolution for one block of channels: what forward and the input's gradient are made of.
#pragma once
#include "kernels.h"
#include "vec.h"

typedef struct sep_line {
  const float* x;  // input number 0 of this row and block
  const float* w;  // its taps, kLanes floats each
  int64_t offset;  // input of tap 0 for output 0
} sep_line;

typedef struct sep_row {
  const sep_line *lines, *singles;  // of KW taps; of one tap
  int64_t line_count, single_count;
  int64_t xs;            // floats from one input to the next
  int64_t advance;       // inputs from one output to the next
  int64_t low, high;     // inputs below low and from high on are zeros, and not in memory
  int64_t reach;         // output 0 reads inputs 0 ... reach
  float* y;
  int64_t ys, outputs;  // floats from one output to the next; how many
  const float* bias;  // kLanes floats
  int32_t activation;  // applied by `activate`
} sep_row;

typedef void (*sep_compute_row)(const sep_row*);

namespace {

SEP_INLINE int64_t at_least(int64_t a, int64_t least) { return a > least ? a : least; }
SEP_INLINE int64_t at_most(int64_t a, int64_t most) { return a < most ? a : most; }
SEP_INLINE int64_t ceil_div(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }
SEP_INLINE int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// The length of line that leaves the fewest taps over, longer ones first; 0 where taps share no inputs.
SEP_INLINE int64_t line_length(int64_t taps, int64_t advance) {
  if (advance > 2) return 0;
  if (taps <= 5 || taps == 7) return taps;
  const int lengths[] = {7, 5, 4, 3};
  int64_t best = 7;
  for (int length : lengths)
    if (taps % length < taps % best) best = length;
  return best;
}

}  // namespace

// The row function for lines of `length` taps (0: single taps alone) that `advance` by 1 or 2 inputs an output.
typedef struct sep_depthwise_rows_kernels {
  sep_compute_row (*choose)(int64_t length, int64_t advance);
  void (*activate)(const sep_row*);  // a computed row, in place
} sep_depthwise_rows_kernels;

extern "C" const sep_depthwise_rows_kernels SEP_TABLE(depthwise_rows);  // of the same instruction set
