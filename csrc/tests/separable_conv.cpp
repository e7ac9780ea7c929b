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

// How many maps are made of each channel, or added; the maps in the order of separable_conv.h, the weight as torch has it.
struct Maps {
  int64_t makes = 1, adds = 1;
};

Image depthwise(const Image& x, const Case& c, const Maps& maps, Floats& w, Floats& bias, int activation) {
  const int64_t channels = x.channels / maps.adds, each = maps.makes * maps.adds;
  Image y(x.batch, c.out(1), c.out(2), channels * maps.makes);
  for (int64_t p = 0; p < y.batch * y.height * y.width; ++p)
    for (int64_t f = 0; f < y.channels; ++f) {
      const int64_t n = p / (y.height * y.width), i = p / y.width % y.height, j = p % y.width, channel = f % channels;
      double sum = bias[f], magnitude = std::fabs(sum), carried = 0;
      for (int64_t map = 0; map < maps.adds; ++map)
        for (int64_t tap = 0; tap < c.taps(); ++tap) {
          const int64_t row = i * c.stride[1] + tap / c.kernel[2] * c.dilation[1] - c.before[1];
          const int64_t column = j * c.stride[2] + tap % c.kernel[2] * c.dilation[2] - c.before[2];
          if (row < 0 || row >= x.height || column < 0 || column >= x.width) continue;
          const int64_t at = ((n * x.height + row) * x.width + column) * x.channels + map * channels + channel;
          const double weight = w[(channel * each + (maps.makes > 1 ? f / channels : map)) * c.taps() + tap];
          sum += x.values[at] * weight;
          magnitude += std::fabs(x.values[at] * weight);
          carried += x.bounds[at] * std::fabs(weight);
        }
      y.values[p * y.channels + f] = activated(sum, activation);
      y.bounds[p * y.channels + f] = rounding(c.taps() * maps.adds, magnitude) + 1.13 * carried;
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

// After the first step, the depthwise one and the last.
struct Activations {
  int expand = SEP_HARD_SWISH, depthwise = SEP_RELU6, project = SEP_NONE;
};

void judge_case(const Case& c, Form form, int product, Judge& judge, Maps maps = {}, Activations acts = {}) {
  const bool expands = form > kSeparable, projects = form != kPointwiseFirst && form != kDepthwise, filters = form != kTwoPointwise;
  const int64_t channels = expands ? c.channels * 3 + 1 : c.channels;
  const int64_t c_mid = channels * maps.adds, c_deep = channels * maps.makes, c_in = expands ? c.channels : c_mid;
  const int64_t c_out = projects ? c.out_channels : c_deep;
  const int64_t height = filters ? c.out(1) : c.size[1], width = filters ? c.out(2) : c.size[2];
  Packed expand(c_in, c_mid, product, 10), project(c_deep, c_out, product, 20);
  Floats x(c.batch * c.size[1] * c.size[2] * c_in), w(channels * maps.makes * maps.adds * c.taps()), bias(c_deep);
  Floats y(c.batch * height * width * c_out), residual(y.n);
  fill(x, 1), fill(w, 2), fill(bias, 3), fill(residual, 4), unwritten(y);

  sep_separable_conv_args a{};
  sep_depthwise_step& d = a.depthwise;
  d.batch = c.batch, d.channels = filters ? channels : c_mid, d.bias = bias.p, d.activation = acts.depthwise;
  d.makes = (int32_t)maps.makes, d.adds = (int32_t)maps.adds;
  for (int i = 0; i < 2; ++i) {
    d.size[i] = c.size[i + 1], d.out[i] = filters ? c.out(i + 1) : c.size[i + 1], d.kernel[i] = c.kernel[i + 1];
    d.stride[i] = c.stride[i + 1], d.padding[i] = c.before[i + 1], d.dilation[i] = c.dilation[i + 1];
  }
  const auto* kernels = sep_separable_conv();
  Floats packed(kernels->packed_floats(&d));
  kernels->pack_depthwise(&d, w.p, packed.p);
  if (filters) d.weight = packed.p;
  a.x = x.p, a.y = y.p;
  if (expands) step(a.expand, expand, c_in, acts.expand, product);
  if (projects) {
    step(a.project, project, c_deep, acts.project, product);
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
  if (expands) image = pointwise(image, expand.weight, expand.bias, acts.expand, product);
  if (filters) image = depthwise(image, c, maps, w, bias, acts.depthwise);
  if (projects) image = pointwise(image, project.weight, project.bias, acts.project, product);
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

// Every number of maps in both orders, each window with channels that do and do not fill vectors, images of few and many pixels a row.
void judge_maps(Judge& judge) {
  const Case cases[] = {
      {"maps", 2, 20, 1, 19, {1, 9, 16}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
      {"maps, stride 2", 1, 16, 1, 32, {1, 13, 15}, {1, 3, 3}, {1, 2, 2}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
      {"maps, dilation 2", 1, 17, 1, 16, {1, 10, 14}, {1, 3, 3}, {1, 1, 1}, {0, 2, 2}, {0, 2, 2}, {1, 2, 2}},
      {"maps, stride and dilation", 1, 3, 1, 5, {1, 11, 12}, {1, 3, 3}, {1, 2, 2}, {0, 2, 2}, {0, 2, 2}, {1, 2, 2}},
      {"maps, five", 1, 33, 1, 15, {1, 7, 11}, {1, 5, 5}, {1, 1, 1}, {0, 2, 2}, {0, 2, 2}, {1, 1, 1}},
      {"maps, five, stride 2", 3, 6, 1, 40, {1, 6, 5}, {1, 5, 5}, {1, 2, 2}, {0, 1, 2}, {0, 2, 2}, {1, 1, 1}},
  };
  for (const int64_t m : {2, 3, 4, 5, 8})
    for (const Case& c : cases)
      for (Form form : {kDepthwise, kSeparable, kPointwiseFirst, kBottleneck})
        for (const Maps& maps : {Maps{m, 1}, Maps{1, m}}) {
          judge_case(c, form, SEP_F32, judge, maps);
          for (const int product : bfloat16_products())
            if (form == kBottleneck && m == 3) judge_case(c, form, product, judge, maps);
        }
  // Of several tiles, and of a product split over columns.
  const Case tiles = {"maps, tiles", 1, 24, 1, 30, {1, 65, 50}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}};
  for (Form form : {kSeparable, kPointwiseFirst, kBottleneck})
    for (const Maps& maps : {Maps{2, 1}, Maps{1, 2}}) judge_case(tiles, form, SEP_F32, judge, maps);
  const Case columns = {"maps, many columns", 1, 70, 1, 300, {1, 7, 7}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}};
  judge_case(columns, kSeparable, SEP_F32, judge, {3, 1});
}

// Each activation at each of the three places, and none.
void judge_activations(Judge& judge) {
  const Case c = {"activations", 1, 16, 1, 32, {1, 8, 14}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}};
  for (int activation = SEP_NONE; activation <= SEP_HARD_SIGMOID; ++activation)
    for (Activations acts : {Activations{activation, SEP_NONE, SEP_NONE}, Activations{SEP_NONE, activation, SEP_NONE},
                             Activations{SEP_NONE, SEP_NONE, activation}}) {
      judge_case(c, kBottleneck, SEP_F32, judge, {}, acts);
      judge_case(c, kBottleneck, SEP_F32, judge, {1, 2}, acts);
    }
}

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
  // Rows of pixels from less than a register's tile to more than two, at a few widths of what both products read and write.
  for (const int64_t width : {6, 7, 8, 13, 14, 15, 28, 31})
    for (const int64_t channels : {8, 200}) {
      const Case c = {"widths", 1, channels, 1, 20, {1, 5, width}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}};
      judge_case(c, kBottleneck, SEP_F32, judge);
    }
  judge_maps(judge);
  judge_activations(judge);
  return judge.report();
}
