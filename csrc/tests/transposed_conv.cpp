// Transposed convolution against loops in double precision that spread each pixel over the results.
#include "../transposed_conv.h"

#include "grid.h"

namespace {

struct Spread {
  const char* name;
  int64_t batch, channels, filters, groups;
  int64_t size[2];
  int32_t kernel[2], stride[2], padding[2], added[2], dilation[2];

  int64_t out(int i) const { return (size[i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (kernel[i] - 1) + added[i] + 1; }
};

const Spread kCases[] = {
    {"2x2, stride 2", 2, 24, 33, 1, {7, 9}, {2, 2}, {2, 2}, {0, 0}, {0, 0}, {1, 1}},
    {"4x4, stride 2", 2, 17, 24, 1, {9, 8}, {4, 4}, {2, 2}, {1, 1}, {0, 0}, {1, 1}},
    {"3x3, stride 2", 1, 16, 16, 1, {9, 8}, {3, 3}, {2, 2}, {1, 1}, {1, 1}, {1, 1}},
    {"stride 1", 1, 15, 31, 1, {6, 7}, {3, 3}, {1, 1}, {1, 1}, {0, 0}, {1, 1}},
    {"one channel", 1, 1, 1, 1, {5, 4}, {4, 4}, {2, 2}, {1, 1}, {0, 0}, {1, 1}},
    {"three channels", 1, 3, 3, 1, {5, 4}, {5, 3}, {3, 2}, {2, 0}, {1, 0}, {1, 1}},
    {"phases without taps", 2, 8, 20, 1, {4, 5}, {1, 2}, {3, 3}, {0, 0}, {2, 1}, {1, 1}},
    {"taps apart", 1, 20, 18, 1, {7, 6}, {3, 3}, {2, 3}, {2, 1}, {0, 1}, {2, 2}},
    {"taps apart, as far as the stride", 1, 8, 9, 1, {5, 5}, {3, 3}, {2, 2}, {0, 1}, {0, 0}, {2, 4}},
    {"large padding", 1, 8, 9, 1, {6, 12}, {5, 4}, {2, 1}, {4, 5}, {0, 0}, {1, 1}},
    {"stride beyond the results", 1, 8, 9, 1, {1, 1}, {3, 2}, {8, 8}, {0, 0}, {0, 0}, {1, 1}},
    {"one row", 1, 8, 9, 1, {1, 30}, {1, 4}, {1, 2}, {0, 1}, {0, 0}, {1, 1}},
    {"large weight", 1, 80, 96, 1, {9, 11}, {6, 6}, {2, 2}, {2, 2}, {0, 0}, {1, 1}},
    {"patches", 2, 900, 5, 1, {2, 110}, {4, 4}, {2, 2}, {1, 1}, {0, 0}, {1, 1}},
    {"groups", 2, 24, 36, 3, {5, 7}, {4, 4}, {2, 2}, {1, 1}, {0, 0}, {1, 1}},
    {"groups of one channel", 1, 20, 20, 20, {5, 7}, {4, 4}, {2, 2}, {1, 1}, {0, 0}, {1, 1}},
    {"groups of one channel, phases without taps", 1, 33, 33, 33, {4, 3}, {1, 2}, {3, 3}, {0, 0}, {2, 1}, {1, 1}},
    {"groups of one channel, taps apart", 2, 16, 16, 16, {6, 5}, {3, 3}, {2, 2}, {3, 1}, {0, 1}, {2, 3}},
    {"batch 0", 0, 8, 8, 1, {5, 7}, {4, 4}, {2, 2}, {1, 1}, {0, 0}, {1, 1}},
};

// Tap (ky, kx) of a weight (filters, kh, kw, deep), phase by phase as the kernel packs it.
std::vector<float> phases(const Spread& c, Floats& weight, int64_t deep) {
  std::vector<float> all;
  const auto meets = [&](int d, int64_t phase, int64_t k) { return (phase + c.padding[d] + c.stride[d] * 1000 - k * c.dilation[d]) % c.stride[d] == 0; };
  for (int64_t down = 0; down < c.stride[0]; ++down)
    for (int64_t across = 0; across < c.stride[1]; ++across) {
      const size_t before = all.size();
      for (int64_t f = 0; f < c.filters; ++f)
        for (int64_t ky = c.kernel[0] - 1; ky >= 0; --ky)
          for (int64_t kx = c.kernel[1] - 1; kx >= 0; --kx)
            for (int64_t ch = 0; ch < deep; ++ch)
              if (meets(0, down, ky) && meets(1, across, kx))
                all.push_back(weight[((f * c.kernel[0] + ky) * c.kernel[1] + kx) * deep + ch]);
      if (all.size() == before) all.resize(before + c.filters * deep);
    }
  return all;
}

void judge_case(const Spread& c, bool wide, int product, Judge& judge) {
  const int64_t height = c.size[0], width = c.size[1], deep = c.channels / c.groups, share = c.filters / c.groups;
  const int64_t taps = (int64_t)c.kernel[0] * c.kernel[1], row = (wide ? 2 : 1) * c.channels;  // of twice the channels where wide
  const int64_t places = c.out(0) * c.out(1), results = c.batch * places * c.filters;
  Floats x(c.batch * height * width * row), w(c.filters * taps * deep), bias(c.filters), residual(results), y(results), whole(results);
  fill(x, 1), fill(w, 2), fill(bias, 3), fill(residual, 4), unwritten(y), unwritten(whole);
  sep_transposed_conv_args a{};
  a.batch = c.batch, a.channels = c.channels, a.filters = c.filters, a.groups = c.groups, a.activation = SEP_SILU, a.product = product;
  for (int i = 0; i < 2; ++i) {
    a.size[i] = c.size[i], a.out[i] = c.out(i), a.kernel[i] = c.kernel[i], a.stride[i] = c.stride[i];
    a.padding[i] = c.padding[i], a.dilation[i] = c.dilation[i];
  }
  const int64_t stride[] = {height * width * row, 1, width * row, row};
  std::copy(stride, stride + 4, a.x_stride);
  const auto* kernels = sep_transposed_conv();
  const std::vector<float> ordered = phases(c, w, deep);
  Floats exact(ordered.size());
  std::copy(ordered.begin(), ordered.end(), exact.p);
  Aligned packed(kernels->packed_bytes(&a));
  kernels->pack_weight(&a, exact.p, packed.p);
  const bool alone = c.groups > 1 && deep == 1 && share == 1;
  a.x = x.p, a.weight = packed.p, a.bias = bias.p, a.residual = alone ? nullptr : residual.p, a.y = y.p;
  Aligned scratch(kernels->scratch_bytes(&a));
  const int64_t units = kernels->units(&a);
  for (int64_t part = 4; part >= 0; --part) kernels->run(&a, scratch.p, units * part / 5, units * (part + 1) / 5);
  a.y = whole.p;
  kernels->run(&a, scratch.p, 0, units);
  for (int64_t i = 0; i < results; ++i) judge.value("at once", whole[i], y[i], 0);
  ++judge.cases;

  std::vector<double> sum(results), magnitude(results);
  for (int64_t pixel = 0; pixel < c.batch * height * width; ++pixel)
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t n = pixel / width / height, i = pixel / width % height, j = pixel % width;
      const int64_t oy = i * c.stride[0] + t / c.kernel[1] * c.dilation[0] - c.padding[0];
      const int64_t ox = j * c.stride[1] + t % c.kernel[1] * c.dilation[1] - c.padding[1];
      if (oy < 0 || oy >= c.out(0) || ox < 0 || ox >= c.out(1)) continue;
      for (int64_t f = 0; f < c.filters; ++f)
        for (int64_t ch = 0; ch < deep; ++ch) {
          const double term = as_product(x[pixel * row + f / share * deep + ch], product) * as_product(w[(f * taps + t) * deep + ch], product);
          const int64_t at = (n * places + oy * c.out(1) + ox) * c.filters + f;
          sum[at] += term, magnitude[at] += std::fabs(term);
        }
    }
  for (int64_t i = 0; i < results; ++i) {
    const double total = sum[i] + bias[i % c.filters], other = alone ? 0 : residual[i];
    judge.value(c.name, y[i], activated(total, SEP_SILU) + other,
                rounding(taps * deep, magnitude[i] + std::fabs(bias[i % c.filters]) + std::fabs(other)));
  }
}

}  // namespace

bool test_transposed_conv() {
  Judge judge{"transposed_conv"};
  std::vector<int> products = bfloat16_products();
  products.push_back(SEP_F32);
  for (const Spread& c : kCases)
    for (const int product : products)
      if (c.groups == 1 || product == SEP_F32) judge_case(c, false, product, judge), judge_case(c, true, product, judge);
  return judge.report();
}
