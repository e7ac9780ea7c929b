// Winograd convolution against loops in double precision: shapes, ends, splits of the work, and values that are not finite.
#include "../winograd_conv.h"

#include <algorithm>

#include "grid.h"

namespace {

struct Shape {
  const char* name;
  int64_t batch, channels, filters, size[2], out[2];
  int32_t padding[2];
  int32_t activation = SEP_NONE;
  bool bias = true, residual = false, residual_first = false, wide = false;  // wide: x is a slice of more rows, pixels and channels
};

// One convolution, its memory and its result.
struct Layer {
  Shape s;
  int64_t strides[4], results;
  Floats x, w, bias, residual, y;

  explicit Layer(const Shape& s)
      : s(s), results(s.batch * s.out[0] * s.out[1] * s.filters), x(s.batch * image()), w(s.filters * 9 * s.channels), bias(s.filters),
        residual(results), y(results) {
    fill(x, 1), fill(w, 2), fill(bias, 3), fill(residual, 4), unwritten(y);
    const int64_t to[] = {image(), 1, pixel() * (s.size[1] + s.wide), pixel()};
    std::copy(to, to + 4, strides);
  }
  int64_t pixel() const { return s.channels + (s.wide ? 3 : 0); }
  int64_t image() const { return pixel() * (s.size[1] + s.wide) * (s.size[0] + s.wide); }
  float& input(int64_t n, int64_t i, int64_t j, int64_t c) { return x[n * strides[0] + i * strides[2] + j * strides[3] + c]; }

  // Over `parts` of the work, the last first, each with scratch memory in which nothing has been written.
  void run(int tile, int64_t parts, const float* other = nullptr) {
    sep_winograd_conv_args a{};
    a.batch = s.batch, a.channels = s.channels, a.filters = s.filters, a.activation = s.activation, a.residual_first = s.residual_first;
    a.tile = tile;
    for (int i = 0; i < 2; ++i) a.size[i] = s.size[i], a.out[i] = s.out[i], a.padding[i] = s.padding[i];
    std::copy(strides, strides + 4, a.x_stride);
    const auto* kernels = sep_winograd_conv();
    Aligned packed(kernels->packed_bytes(&a));
    kernels->pack_weight(&a, w.p, packed.p);
    a.x = x.p, a.weight = packed.p, a.bias = s.bias ? bias.p : nullptr, a.residual = other ? other : s.residual ? residual.p : nullptr, a.y = y.p;
    const int64_t units = kernels->units(&a);
    for (int64_t part = parts - 1; part >= 0; --part) {
      Aligned scratch(kernels->scratch_bytes(&a));
      kernels->run(&a, scratch.p, units * part / parts, units * (part + 1) / parts);
    }
  }

  double term(int64_t n, int64_t i, int64_t j, int64_t f, int64_t tap, int64_t c) {
    const int64_t row = i + tap / 3 - s.padding[0], column = j + tap % 3 - s.padding[1];
    if (row < 0 || row >= s.size[0] || column < 0 || column >= s.size[1]) return 0;
    return (double)input(n, row, column, c) * w[(f * 9 + tap) * s.channels + c];
  }

  // The transforms add what cancels again: an error is relative to all that a tile reads. The bound counts in the largest root of a sum
  // of squares, of which the largest output has some four: 2e-5 of that for 4x4, 3e-6 for 2x2 at most.
  void judge(int tile, Judge& judge) {
    std::vector<double> sums(results);
    double magnitude = 0;
    for (int64_t at = 0; at < results; ++at) {
      const int64_t f = at % s.filters, pixel = at / s.filters, j = pixel % s.out[1], i = pixel / s.out[1] % s.out[0];
      double size = 0;
      for (int64_t tap = 0; tap < 9; ++tap)
        for (int64_t c = 0; c < s.channels; ++c) {
          const double product = term(pixel / s.out[1] / s.out[0], i, j, f, tap, c);
          sums[at] += product, size += product * product;
        }
      if (s.bias) sums[at] += bias[f];
      if (std::isfinite(size)) magnitude = std::max(magnitude, std::sqrt(size));
    }
    for (int64_t at = 0; at < results; ++at) {
      const double added = s.residual ? residual[at] : 0, before = s.residual_first ? added : 0;
      const double sum = sums[at] + before, wanted = (std::isnan(sum) ? sum : activated(sum, s.activation)) + added - before;
      judge.value(s.name, y[at], wanted, (tile == 4 ? 2e-5 : 6e-6) * (magnitude + 1));
    }
    ++judge.cases;
  }
};

void judge_shape(const Shape& shape, int tile, Judge& judge) {
  Layer layer(shape);
  layer.run(tile, 1);
  layer.judge(tile, judge);
  const std::vector<float> alone(layer.y.p, layer.y.p + layer.results);
  unwritten(layer.y);
  layer.run(tile, 5);
  judge.value("same bits in five parts", layer.results && std::memcmp(alone.data(), layer.y.p, layer.results * 4), 0, 0);
}

// A residual that is y itself.
void judge_in_place(int tile, Judge& judge) {
  Layer apart({"residual", 2, 20, 33, {9, 10}, {9, 10}, {1, 1}, SEP_SILU, true, true}), place(apart.s);
  apart.run(tile, 1);
  std::copy(place.residual.p, place.residual.p + place.results, place.y.p);
  place.run(tile, 1, place.y.p);
  judge.value("residual in place", std::memcmp(apart.y.p, place.y.p, place.results * 4), 0, 0);
  ++judge.cases;
}

// Pixels inside a tile, at its edge and at the border of the image; weights of which some are zero: infinity times those is NaN.
// What is huge overflows in the transforms only, by the points or as the difference of two pixels.
void judge_special(int tile, Judge& judge) {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (const float value : {infinity, -infinity, nan, 3e38f, -3e38f})
    for (const int64_t at : {int64_t(0), int64_t(3), int64_t(4), int64_t(6), int64_t(9)}) {
      Layer layer({"not finite", 2, 18, 34, {11, 12}, {11, 12}, {1, 1}, SEP_RELU, true, true});
      for (int64_t i = 0; i < layer.w.n; ++i) layer.w[i] = std::fabs(layer.w[i]) < 0.1f ? 0 : layer.w[i] / 16;
      layer.input(1, at, at, 17) = value;
      if (std::isfinite(value)) layer.input(1, at, at + 2, 17) = -value;
      layer.run(tile, 2);
      layer.judge(tile, judge);
    }
}

// A weight that is not finite belongs to one output channel alone.
void judge_special_weight(int tile, Judge& judge) {
  Layer layer({"weight not finite", 1, 5, 20, {6, 6}, {6, 6}, {1, 1}});
  layer.w[9 * 5 * 3 + 4] = std::numeric_limits<float>::infinity(), layer.w[9 * 5 * 17] = 3e38f;
  for (int64_t i = 0; i < layer.x.n; ++i) layer.x[i] /= 8;
  layer.run(tile, 1);
  layer.judge(tile, judge);
}

}  // namespace

bool test_winograd_conv() {
  Judge judge{"winograd_conv"};
  std::vector<Shape> shapes = {
      {"plain", 2, 16, 24, {14, 14}, {14, 14}, {1, 1}, SEP_RELU},
      {"one pixel", 1, 8, 8, {1, 1}, {1, 1}, {1, 1}},
      {"one row", 2, 8, 8, {1, 9}, {1, 9}, {1, 1}},
      {"two by three", 3, 5, 7, {2, 3}, {2, 3}, {1, 1}},
      {"no padding", 2, 17, 33, {9, 8}, {7, 6}, {0, 0}},
      {"padding 2", 1, 16, 32, {7, 9}, {9, 11}, {2, 2}},
      {"padding beyond the kernel", 1, 3, 4, {5, 5}, {11, 11}, {4, 4}},
      {"top and left", 1, 8, 40, {9, 8}, {9, 8}, {2, 2}},
      {"bottom and right", 1, 8, 16, {9, 8}, {9, 9}, {0, 1}},
      {"no bias", 1, 6, 6, {8, 8}, {8, 8}, {1, 1}, SEP_NONE, false},
      {"residual", 2, 16, 31, {9, 9}, {9, 9}, {1, 1}, SEP_RELU, true, true},
      {"residual first", 2, 16, 31, {9, 9}, {9, 9}, {1, 1}, SEP_RELU6, true, true, true},
      {"residual and silu", 2, 16, 31, {9, 9}, {9, 9}, {1, 1}, SEP_SILU, true, true},
      {"residual first, hard swish", 1, 16, 31, {9, 9}, {9, 9}, {1, 1}, SEP_HARD_SWISH, true, true, true},
      {"slice", 2, 19, 20, {10, 11}, {10, 11}, {1, 1}, SEP_NONE, true, false, false, true},
      {"many tiles", 2, 4, 65, {31, 30}, {31, 30}, {1, 1}},
      {"many channels", 1, 530, 18, {5, 6}, {5, 6}, {1, 1}, SEP_GELU},  // more than one chunk
      {"large weight", 2, 272, 264, {3, 5}, {3, 5}, {1, 1}},            // groups of several panels
      {"batch 0", 0, 8, 8, {8, 8}, {8, 8}, {1, 1}},
  };
  for (const int64_t channels : {1, 15, 16, 17, 33}) shapes.push_back({"channels", 1, channels, channels * 2 - 1, {7, 9}, {7, 9}, {1, 1}});
  for (const int tile : {2, 4}) {
    for (const Shape& shape : shapes) judge_shape(shape, tile, judge);
    judge_in_place(tile, judge);
    judge_special(tile, judge);
    judge_special_weight(tile, judge);
  }
  return judge.report();
}
