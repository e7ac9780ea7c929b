// Resizing by tables of pixels and weights, and borders and cuts, against loops over all places.
#include "../resample.h"

#include "../pad.h"
#include "grid.h"

namespace {

// Pixels that go up and down, with both ends among them: what is first, what second, the weight of the second.
void fill_table(Floats& table, int64_t out, int64_t size) {
  for (int64_t i = 0; i < out; ++i) {
    const int64_t first = i * 7 % size;
    table[i] = first, table[out + i] = std::min(first + 1, size - 1), table[2 * out + i] = i % 5 / 4.0f;
  }
}

void judge_resample(int64_t channels, bool blends, Judge& judge) {
  const int64_t batch = 2, height = 5, width = 19, rows = 9, columns = 40, results = batch * rows * columns * channels;
  Floats x(batch * height * width * channels), down(3 * rows), across(3 * columns), y(results);
  fill(x, 1), fill_table(down, rows, height), fill_table(across, columns, width), unwritten(y);
  x[3] = INFINITY, x[channels + 1] = NAN;
  sep_resample_args a{x.p, down.p, across.p, y.p, batch, channels, {height, width}, {rows, columns}, blends};
  Aligned scratch(sep_resample()->scratch_bytes(&a));
  const int64_t units = sep_resample()->units(&a);
  for (int64_t part = 2; part >= 0; --part) sep_resample()->run(&a, scratch.p, units * part / 3, units * (part + 1) / 3);
  ++judge.cases;
  for (int64_t at = 0; at < results; ++at) {
    const int64_t c = at % channels, ox = at / channels % columns, oy = at / channels / columns % rows, n = at / channels / columns / rows;
    double sum = 0, magnitude = 0;
    for (int64_t corner = 0; corner < (blends ? 4 : 1); ++corner) {
      const double of_row = corner / 2 ? down[2 * rows + oy] : 1 - down[2 * rows + oy];
      const double of_column = corner % 2 ? across[2 * columns + ox] : 1 - across[2 * columns + ox];
      const double value = x[((n * height + (int64_t)down[corner / 2 * rows + oy]) * width + (int64_t)across[corner % 2 * columns + ox]) * channels + c];
      sum += blends ? of_row * of_column * value : value, magnitude += std::isfinite(value) ? std::fabs(value) : 0;
    }
    judge.value(blends ? "blended" : "nearest", y[at], sum, blends ? rounding(4, magnitude) : 0);
  }
}

struct Border {
  const char* name;
  int64_t size[4], before[4], after[4];
  bool transposed;  // x with its two last dimensions the other way round
};

const Border kBorders[] = {
    {"border", {2, 5, 6, 17}, {0, 1, 2, 0}, {0, 2, 1, 0}, false},
    {"cut off", {2, 7, 6, 5}, {-1, -2, -1, -1}, {0, -1, -2, -3}, false},
    {"channels", {1, 4, 5, 16}, {0, 0, 0, 8}, {0, 0, 0, 9}, false},
    {"both", {3, 4, 5, 33}, {1, -1, 3, -4}, {-1, 2, -2, 20}, false},
    {"of columns", {2, 4, 5, 7}, {0, 1, 0, 2}, {0, -1, 1, -3}, true},
    {"nothing of it left", {1, 2, 3, 4}, {0, -2, 0, 0}, {0, 3, 0, 0}, false},
    {"no pixel left", {1, 2, 3, 4}, {0, 0, -3, 0}, {0, 0, 2, 0}, false},
    {"no number left", {1, 2, 3, 4}, {0, 0, 0, 2}, {0, 0, 0, -4}, false},
};

void judge_border(const Border& b, Judge& judge) {
  sep_pad_args a{};
  int64_t numbers = 1, results = 1;
  for (int i = 3; i >= 0; --i) {
    a.size[i] = b.size[i], a.before[i] = b.before[i], a.out[i] = b.before[i] + b.size[i] + b.after[i];
    a.x_stride[i] = numbers, numbers *= a.size[i], results *= a.out[i];
  }
  if (b.transposed) a.x_stride[2] = 1, a.x_stride[3] = b.size[2];
  Floats x(numbers), y(results);
  fill(x, 1), unwritten(y);
  a.x = x.p, a.y = y.p, a.value = 2.5f;
  const int64_t units = sep_pad()->units(&a);
  for (int64_t part = 2; part >= 0; --part) sep_pad()->run(&a, units * part / 3, units * (part + 1) / 3);
  ++judge.cases;
  for (int64_t at = 0; at < results; ++at) {
    int64_t rest = at, from = 0;
    bool inside = true;
    for (int i = 3; i >= 0; --i) {
      const int64_t place = rest % a.out[i] - a.before[i];
      inside = inside && place >= 0 && place < a.size[i], from += place * a.x_stride[i], rest /= a.out[i];
    }
    judge.value(b.name, y[at], inside ? x[from] : 2.5f, 0);
  }
}

}  // namespace

bool test_resample() {
  Judge judge{"resample, pad"};
  for (int64_t channels : {1, 2, 3, 15, 16, 17, 40})
    for (bool blends : {false, true}) judge_resample(channels, blends, judge);
  for (const Border& b : kBorders) judge_border(b, judge);
  return judge.report();
}
