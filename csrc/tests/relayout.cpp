// Copies between orders of dimensions against one loop over all indices; equal to the bit, and nothing else written.
#include "../relayout.h"

#include "grid.h"

namespace {

typedef int64_t Index[SEP_RELAYOUT_DIMS];

struct Copy {
  const char* name;
  Index size, x_stride, y_stride;
};

// Blocks are 16 by 16, units 8192 elements: sizes just below, at and above them.
const Copy kCopies[] = {
    {"one element", {1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1}},
    {"to channels-last", {1, 1, 2, 17, 15, 16}, {0, 0, 4080, 240, 16, 1}, {0, 0, 4080, 1, 272, 17}},
    {"from channels-last", {1, 1, 2, 33, 7, 9}, {0, 0, 2079, 1, 297, 33}, {0, 0, 2079, 63, 9, 1}},
    {"whole blocks", {1, 1, 1, 1, 32, 48}, {0, 0, 0, 0, 1, 32}, {0, 0, 0, 0, 48, 1}},
    {"several bands", {1, 1, 1, 1, 700, 31}, {0, 0, 0, 0, 1, 700}, {0, 0, 0, 0, 31, 1}},
    {"same order", {1, 1, 1, 3, 5, 40}, {0, 0, 0, 200, 40, 1}, {0, 0, 0, 200, 40, 1}},
    {"into a wider tensor", {1, 1, 1, 2, 30, 20}, {0, 0, 0, 600, 20, 1}, {0, 0, 0, 1590, 53, 1}},
    {"every second column", {1, 1, 1, 1, 19, 18}, {0, 0, 0, 0, 36, 2}, {0, 0, 0, 0, 18, 1}},
    {"into every third column", {1, 1, 1, 1, 19, 18}, {0, 0, 0, 0, 18, 1}, {0, 0, 0, 0, 54, 3}},
    {"one row for all", {1, 1, 1, 1, 21, 17}, {0, 0, 0, 0, 0, 1}, {0, 0, 0, 0, 17, 1}},
    {"pixel shuffle", {2, 3, 4, 2, 5, 2}, {240, 80, 5, 40, 1, 20}, {240, 80, 20, 10, 2, 1}},
    {"one column of many rows", {1, 1, 1, 1, 9000, 1}, {0, 0, 0, 0, 3, 0}, {0, 0, 0, 0, 1, 0}},
    {"nothing", {1, 1, 1, 2, 0, 4}, {0, 0, 0, 4, 4, 1}, {0, 0, 0, 4, 4, 1}},
};

int64_t elements(const Copy& c) {
  int64_t n = 1;
  for (int64_t size : c.size) n *= size;
  return n;
}

// Floats from the first element to the last.
int64_t extent(const Copy& c, const int64_t* stride) {
  int64_t last = 0;
  for (int i = 0; i < SEP_RELAYOUT_DIMS; ++i) last += (c.size[i] - 1) * stride[i];
  return elements(c) ? last + 1 : 0;
}

void judge_copy(const Copy& c, Judge& judge) {
  Floats x(extent(c, c.x_stride)), y(extent(c, c.y_stride)), wanted(y.n);
  fill(x, 1), unwritten(y), unwritten(wanted);
  sep_relayout_args a{x.p, y.p, {}, {}, {}};
  for (int i = 0; i < SEP_RELAYOUT_DIMS; ++i)
    a.size[i] = c.size[i], a.x_stride[i] = c.x_stride[i], a.y_stride[i] = c.y_stride[i];
  const int64_t units = sep_relayout()->units(&a);
  for (int64_t part = 2; part >= 0; --part) sep_relayout()->run(&a, units * part / 3, units * (part + 1) / 3);
  ++judge.cases;

  for (int64_t i = 0; i < elements(c); ++i) {
    int64_t rest = i, from = 0, to = 0;
    for (int d = SEP_RELAYOUT_DIMS - 1; d >= 0; --d) {
      from += rest % c.size[d] * c.x_stride[d], to += rest % c.size[d] * c.y_stride[d];
      rest /= c.size[d];
    }
    wanted[to] = x[from];
  }
  for (int64_t i = 0; i < y.n; ++i) judge.value(c.name, y[i], wanted[i], 0);
}

}  // namespace

bool test_relayout() {
  Judge judge{"relayout"};
  for (const Copy& c : kCopies) judge_copy(c, judge);
  return judge.report();
}
