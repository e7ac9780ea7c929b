// Two dimensions are walked at once, the densest of y and the densest of x, in blocks that keep both sides in cache.
// The others make the units.
#include "relayout.h"

namespace {

typedef sep_relayout_args Args;

enum { kBlock = 16, kUnitElements = 8192 };

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The dimension with the smallest stride among those longer than one, `not_this` left out; -1 if there is none.
int densest(const Args* a, const int64_t* stride, int not_this) {
  int found = -1;
  for (int i = SEP_RELAYOUT_DIMS - 1; i >= 0; --i)
    if (i != not_this && a->size[i] > 1 && (found < 0 || stride[i] < stride[found])) found = i;
  return found;
}

struct Plan {
  int inner, outer;          // densest dimension of y; densest of x, or where that is the same, y's next
  int64_t columns, rows;     // their sizes
  int64_t bands, band_rows;  // `rows` is split into bands
  int64_t others;            // product of the sizes of all other dimensions
};

Plan plan(const Args* a) {
  Plan p;
  p.inner = densest(a, a->y_stride, -1);
  p.outer = densest(a, a->x_stride, -1);
  if (p.outer == p.inner) p.outer = densest(a, a->y_stride, p.inner);
  p.columns = p.inner < 0 ? 1 : a->size[p.inner];
  p.rows = p.outer < 0 ? 1 : a->size[p.outer];
  p.band_rows = ceil_div(kUnitElements, p.columns);
  p.band_rows = least(p.rows, ceil_div(p.band_rows, kBlock) * kBlock);
  p.bands = ceil_div(p.rows, p.band_rows);
  p.others = 1;
  for (int i = 0; i < SEP_RELAYOUT_DIMS; ++i)
    if (i != p.inner && i != p.outer) p.others *= a->size[i];
  return p;
}

int64_t units(const Args* a) {
  for (int i = 0; i < SEP_RELAYOUT_DIMS; ++i)
    if (a->size[i] == 0) return 0;
  const Plan p = plan(a);
  return p.others * p.bands;
}

void copy_row(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = x[i];
}

void copy_block(const float* x, float* y, int64_t rows, int64_t columns, int64_t x_row, int64_t x_column, int64_t y_row,
                int64_t y_column) {
  if (rows == kBlock && columns == kBlock && x_row == 1 && y_column == 1) {  // transpose: read whole, written whole
    float block[kBlock][kBlock];
    for (int c = 0; c < kBlock; ++c)
      for (int r = 0; r < kBlock; ++r) block[r][c] = x[c * x_column + r];
    for (int r = 0; r < kBlock; ++r) copy_row(block[r], y + r * y_row, kBlock);
    return;
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) y[r * y_row + c * y_column] = x[r * x_row + c * x_column];
}

void run(const Args* a, int64_t begin, int64_t end) {
  const Plan p = plan(a);
  const int64_t x_row = p.outer < 0 ? 0 : a->x_stride[p.outer], y_row = p.outer < 0 ? 0 : a->y_stride[p.outer];
  const int64_t x_column = p.inner < 0 ? 0 : a->x_stride[p.inner], y_column = p.inner < 0 ? 0 : a->y_stride[p.inner];
  for (int64_t unit = begin; unit < end; ++unit) {
    int64_t rest = unit / p.bands, x_at = 0, y_at = 0;
    for (int i = SEP_RELAYOUT_DIMS - 1; i >= 0; --i)
      if (i != p.inner && i != p.outer) {
        x_at += rest % a->size[i] * a->x_stride[i];
        y_at += rest % a->size[i] * a->y_stride[i];
        rest /= a->size[i];
      }
    const int64_t first = unit % p.bands * p.band_rows, last = least(p.rows, first + p.band_rows);
    for (int64_t r = first; r < last; r += kBlock) {
      const int64_t rows = least(kBlock, last - r);
      if (x_column == 1 && y_column == 1) {
        for (int64_t i = r; i < r + rows; ++i) copy_row(a->x + x_at + i * x_row, a->y + y_at + i * y_row, p.columns);
        continue;
      }
      for (int64_t c = 0; c < p.columns; c += kBlock)
        copy_block(a->x + x_at + r * x_row + c * x_column, a->y + y_at + r * y_row + c * y_column, rows,
                   least(kBlock, p.columns - c), x_row, x_column, y_row, y_column);
    }
  }
}

}  // namespace

extern "C" const sep_relayout_kernels SEP_TABLE(relayout) = {units, run};
