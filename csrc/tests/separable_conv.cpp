// Fused chains against loops in double precision: every form of [pointwise ->] [depthwise] -> [pointwise].
#include "../separable_conv.h"

#include "grid.h"

namespace {

struct Image {
  int64_t batch, height, width, channels;
  std::vector<double> values, bounds;  // (batch, height, width, channels) and what rounding may have changed in each

  Image(int64_t batch, int64_t height, int64_t width, int64_t channels)
      : batch(batch), height(height), width(width), channels(channels),
        values(batch * height * width * channels), bounds(values.size()) {}
};

Image pointwise(const Image& x, Floats& w, Floats& bias, int activation, int product) {
  Image y(x.batch, x.height, x.width, bias.n);
  for (int64_t r = 0; r < x.batch * x.height * x.width; ++r)
    for (int64_t o = 0; o < y.channels; ++o) {
      double sum = bias[o], magnitude = std::fabs(sum), carried = 0;
      for (int64_t c = 0; c < x.channels; ++c) {
        const double weight = as_product(w[o * x.channels + c], product), bound = x.bounds[r * x.channels + c];
        const double value = as_product(x.values[r * x.channels + c], product);
        sum += value * weight, magnitude += std::fabs(value * weight);
        // A value known within bounds may be rounded to either of two bfloat16.
        carried += (bound + (product != SEP_F32 && bound > 0 ? std::fabs(value) / 128 : 0)) * std::fabs(weight);
      }
      y.values[r * y.channels + o] = activated(sum, activation);
      y.bounds[r * y.channels + o] = rounding(x.channels, magnitude) + 1.13 * carried;
    }
  return y;
}

Image depthwise(const Image& x, const Case& c, Floats& w, Floats& bias, int activation) {
  Image y(x.batch, c.out(1), c.out(2), x.channels);
  for (int64_t n = 0; n < y.batch; ++n)
    for (int64_t i = 0; i < y.height; ++i)
      for (int64_t j = 0; j < y.width; ++j)
        for (int64_t f = 0; f < y.channels; ++f) {
          double sum = bias[f], magnitude = std::fabs(sum), carried = 0;
          for (int64_t ky = 0; ky < c.kernel[1]; ++ky)
            for (int64_t kx = 0; kx < c.kernel[2]; ++kx) {
              const int64_t row = i * c.stride[1] + ky * c.dilation[1] - c.before[1];
              const int64_t column = j * c.stride[2] + kx * c.dilation[2] - c.before[2];
              if (row < 0 || row >= x.height || column < 0 || column >= x.width) continue;
              const int64_t at = ((n * x.height + row) * x.width + column) * x.channels + f;
              const double weight = w[(f * c.kernel[1] + ky) * c.kernel[2] + kx];
              sum += x.values[at] * weight;
              magnitude += std::fabs(x.values[at] * weight);
              carried += x.bounds[at] * std::fabs(weight);
            }
          const int64_t at = ((n * y.height + i) * y.width + j) * y.channels + f;
          y.values[at] = activated(sum, activation);
          y.bounds[at] = rounding(c.taps(), magnitude) + 1.13 * carried;
        }
  return y;
}

// Weights of a pointwise step, packed at an address that is a multiple of 64.
struct Packed {
  Floats weight, bias;
  Aligned memory;

  Packed(int64_t c_in, int64_t c_out, int product, unsigned seed)
      : weight(c_in * c_out), bias(c_out), memory(sep_pointwise_conv()->packed_bytes(c_in, c_out, product)) {
    fill(weight, seed), fill(bias, seed + 1);
    for (int64_t i = 0; i < weight.n; ++i) weight[i] /= std::sqrt((float)c_in);
    sep_pointwise_conv()->pack_weight(weight.p, c_in, 1, c_in, c_out, product, memory.p);
  }
};

void step(sep_pointwise_conv_args& a, Packed& w, int64_t c_in, int activation, int product) {
  a.weight = w.memory.p, a.bias = w.bias.p, a.c_in = c_in, a.c_out = w.bias.n, a.activation = activation, a.product = product;
}

enum Form { kDepthwise, kSeparable, kPointwiseFirst, kBottleneck, kTwoPointwise };

void judge_case(const Case& c, Form form, int product, Judge& judge) {
  const bool expands = form > kSeparable, projects = form != kPointwiseFirst && form != kDepthwise, filters = form != kTwoPointwise;
  const int64_t c_in = c.channels, c_mid = expands ? c_in * 3 + 1 : c_in;
  const int64_t c_deep = c_mid, c_out = projects ? c.out_channels : c_deep;
  const int64_t height = filters ? c.out(1) : c.size[1], width = filters ? c.out(2) : c.size[2];
  Packed expand(c_in, c_mid, product, 10), project(c_deep, c_out, product, 20);
  Floats x(c.batch * c.size[1] * c.size[2] * c_in), w(c_deep * c.taps()), bias(c_deep);
  Floats y(c.batch * height * width * c_out), residual(y.n);
  fill(x, 1), fill(w, 2), fill(bias, 3), fill(residual, 4), unwritten(y);

  sep_separable_conv_args a{};
  sep_depthwise_step& d = a.depthwise;
  d.batch = c.batch, d.channels = c_mid, d.bias = bias.p, d.activation = SEP_RELU6;
  for (int i = 0; i < 2; ++i) {
    d.size[i] = c.size[i + 1], d.out[i] = filters ? c.out(i + 1) : c.size[i + 1], d.kernel[i] = c.kernel[i + 1];
    d.stride[i] = c.stride[i + 1], d.padding[i] = c.before[i + 1], d.dilation[i] = c.dilation[i + 1];
  }
  const auto* kernels = sep_separable_conv();
  Floats packed(kernels->packed_floats(&d));
  kernels->pack_depthwise(&d, w.p, packed.p);
  if (filters) d.weight = packed.p;
  a.x = x.p, a.y = y.p;
  if (expands) step(a.expand, expand, c_in, SEP_HARD_SWISH, product);
  if (projects) {
    step(a.project, project, c_deep, SEP_NONE, product);
    a.project.residual = residual.p, a.project.residual_stride = c_out;
  }
  const int64_t units = kernels->units(&a), scratch_bytes = kernels->scratch_bytes(&a);
  Floats sums(units * c_out);
  if (!projects) unwritten(sums), a.sums = sums.p;
  Aligned scratch(scratch_bytes);
  Floats at_once(y.n);
  a.y = at_once.p;
  kernels->run(&a, scratch.p, 0, units);
  a.y = y.p;
  for (int64_t part = 2; part >= 0; --part) kernels->run(&a, scratch.p, units * part / 3, units * (part + 1) / 3);
  judge.value("the same bits in parts and at once", std::memcmp(y.p, at_once.p, y.n * 4), 0, 0);
  ++judge.cases;

  Image image(c.batch, c.size[1], c.size[2], c_in);
  for (int64_t i = 0; i < x.n; ++i) image.values[i] = x[i];
  if (expands) image = pointwise(image, expand.weight, expand.bias, SEP_HARD_SWISH, product);
  if (filters) image = depthwise(image, c, w, bias, SEP_RELU6);
  if (projects) image = pointwise(image, project.weight, project.bias, SEP_NONE, product);
  for (int64_t i = 0; i < y.n; ++i)
    judge.value(c.name, y[i], image.values[i] + (projects ? residual[i] : 0), image.bounds[i] + 1.2e-7 * std::fabs(residual[i]));
  if (!projects && c.batch) {
    const int64_t tiles = units / c.batch, pixels = height * width;
    for (int64_t n = 0; n < c.batch; ++n)
      for (int64_t o = 0; o < c_out; ++o) {
        double got = 0, wanted = 0, bound = 0;
        for (int64_t t = 0; t < tiles; ++t) got += sums[(n * tiles + t) * c_out + o];
        for (int64_t p = 0; p < pixels; ++p) {
          const int64_t at = (n * pixels + p) * c_out + o;
          wanted += image.values[at], bound += image.bounds[at] + 1.2e-7 * (double)pixels * std::fabs(image.values[at]);
        }
        judge.value(c.name, got, wanted, bound);
      }
  }
}

}  // namespace

bool test_separable_conv() {
  Judge judge{"separable_conv"};
  std::vector<Case> cases;
  for (const Case& c : grid())
    if (c.size[0] == 1 && c.multiplier == 1 && c.channels < 900 && c.size[2] < 1000) cases.push_back(c);
  // Images of several tiles, so that rows are kept from one to the next and the product is split over columns.
  cases.push_back({"tiles", 1, 40, 1, 48, {1, 70, 67}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}});
  cases.push_back({"tiles, stride 2", 1, 40, 1, 48, {1, 70, 67}, {1, 3, 3}, {1, 2, 2}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}});
  cases.push_back({"many columns", 1, 130, 1, 300, {1, 7, 7}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}});
  cases.push_back({"large weights", 1, 330, 1, 330, {1, 19, 11}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}});
  for (const Case& c : cases)
    for (Form form : {kDepthwise, kSeparable, kPointwiseFirst, kBottleneck, kTwoPointwise}) {
      judge_case(c, form, SEP_F32, judge);
      for (const int product : bfloat16_products())
        if (form != kDepthwise) judge_case(c, form, product, judge);
    }
  return judge.report();
}
