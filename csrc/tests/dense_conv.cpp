// Dense convolution, from channels-last and from torch's default layout, against loops in double precision.
#include "../dense_conv.h"

#include "grid.h"

namespace {

enum Layout { kChannelsLast, kDefault, kSlice, kTransposed };  // kSlice: of twice the channels; kTransposed: columns before rows

void judge_case(const Case& c, Layout layout, int product, Judge& judge, int64_t groups = 1) {
  const int64_t height = c.size[1], width = c.size[2], filters = c.out_channels, deep = c.channels / groups;
  const int64_t patch = c.taps() * deep;
  const int64_t results = c.batch * c.out(1) * c.out(2) * filters, wide = layout == kSlice ? 2 * c.channels : c.channels;
  Floats x(c.batch * height * width * wide), w(filters * patch), bias(filters), residual(results), y(results);
  fill(x, 1), fill(w, 2), fill(bias, 3), fill(residual, 4), unwritten(y);
  sep_dense_conv_args a{};
  a.batch = c.batch, a.channels = c.channels, a.filters = filters, a.groups = groups, a.activation = SEP_SILU, a.product = product;
  for (int i = 0; i < 2; ++i) {
    a.size[i] = c.size[i + 1], a.out[i] = c.out(i + 1), a.kernel[i] = c.kernel[i + 1], a.stride[i] = c.stride[i + 1];
    a.padding[i] = c.before[i + 1], a.dilation[i] = c.dilation[i + 1];
  }
  const int64_t strides[][4] = {{height * width * wide, 1, width * wide, wide},
                                {height * width * wide, height * width, width, 1},
                                {height * width * wide, 1, width * wide, wide},
                                {height * width * wide, 1, wide, height * wide}};
  const int64_t* stride = strides[layout];
  std::copy(stride, stride + 4, a.x_stride);
  const bool planar = stride[3] == 1 && groups == 1;  // the order of the weight
  const auto* kernels = sep_dense_conv();
  Aligned packed(kernels->packed_bytes(&a));
  kernels->pack_weight(&a, w.p, packed.p);
  a.x = x.p, a.weight = packed.p, a.bias = bias.p, a.residual = residual.p, a.y = y.p;
  Aligned scratch(kernels->scratch_bytes(&a));
  const int64_t units = kernels->units(&a);
  for (int64_t part = 0; part < 3; ++part)
    kernels->run(&a, scratch.p, units * part / 3, units * (part + 1) / 3);
  Floats whole(results);
  unwritten(whole);
  a.y = whole.p;
  kernels->run(&a, scratch.p, 0, units);
  for (int64_t i = 0; i < results; ++i) judge.value("at once", whole[i], y[i], 0);
  ++judge.cases;
  for (int64_t place = 0; place < c.batch * c.out(1) * c.out(2); ++place)
    for (int64_t f = 0; f < filters; ++f) {
      const int64_t n = place / c.out(2) / c.out(1), i = place / c.out(2) % c.out(1), j = place % c.out(2);
      double sum = bias[f], magnitude = std::fabs(sum);
      for (int64_t ch = 0; ch < deep; ++ch)
        for (int64_t ky = 0; ky < c.kernel[1]; ++ky)
          for (int64_t kx = 0; kx < c.kernel[2]; ++kx) {
            const int64_t row = i * c.stride[1] + ky * c.dilation[1] - c.before[1];
            const int64_t column = j * c.stride[2] + kx * c.dilation[2] - c.before[2];
            if (row < 0 || row >= height || column < 0 || column >= width) continue;
            const int64_t tap = ky * c.kernel[2] + kx, at = planar ? ch * c.taps() + tap : tap * deep + ch;
            const int64_t channel = f / (filters / groups) * deep + ch;
            const double term = as_product(x[n * stride[0] + channel * stride[1] + row * stride[2] + column * stride[3]], product) *
                                as_product(w[f * patch + at], product);
            sum += term, magnitude += std::fabs(term);
          }
      const double other = residual[place * filters + f];
      judge.value(c.name, y[place * filters + f], activated(sum, SEP_SILU) + other, rounding(patch, magnitude + std::fabs(other)));
    }
}

}  // namespace

bool test_dense_conv() {
  Judge judge{"dense_conv"};
  std::vector<Case> cases;
  for (const Case& c : grid())
    if (c.size[0] == 1 && c.channels < 900 && c.size[2] < 1000 && c.multiplier == 1) cases.push_back(c);
  cases.push_back({"stem", 1, 3, 1, 32, {1, 33, 35}, {1, 3, 3}, {1, 2, 2}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}});
  cases.push_back({"patches", 1, 3, 1, 96, {1, 32, 32}, {1, 4, 4}, {1, 4, 4}, {0, 0, 0}, {0, 0, 0}, {1, 1, 1}});
  // Windows of whole matrix tiles; weights too large to be read for each row of output.
  cases.push_back({"windows", 2, 32, 1, 40, {1, 9, 31}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}});
  cases.push_back({"windows, stride 2", 1, 64, 1, 24, {1, 12, 29}, {1, 5, 2}, {1, 2, 2}, {0, 2, 0}, {0, 2, 1}, {1, 2, 1}});
  cases.push_back({"large weight", 1, 80, 1, 96, {1, 9, 11}, {1, 3, 3}, {1, 2, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}});
  cases.push_back({"large weight, few channels", 1, 3, 1, 200, {1, 20, 21}, {1, 9, 9}, {1, 1, 1}, {0, 4, 4}, {0, 4, 4}, {1, 1, 1}});
  cases.push_back({"windows, few columns", 1, 64, 1, 20, {1, 5, 7}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}});
  cases.push_back({"windows, one channel", 1, 1, 1, 18, {1, 3, 90}, {1, 1, 64}, {1, 1, 1}, {0, 0, 0}, {0, 0, 0}, {1, 1, 1}});
  cases.push_back({"windows, odd channels", 1, 3, 1, 18, {1, 4, 50}, {1, 2, 32}, {1, 1, 1}, {0, 0, 0}, {0, 0, 0}, {1, 1, 1}});
  cases.push_back({"windows, one pixel", 1, 64, 1, 40, {1, 1, 1}, {1, 3, 3}, {1, 1, 1}, {0, 2, 8}, {0, 2, 9}, {1, 1, 1}});
  cases.push_back({"blocks of rows", 1, 40, 1, 56, {1, 61, 58}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}});
  cases.push_back({"shares of columns", 1, 96, 1, 290, {1, 5, 6}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}});
  cases.push_back({"in place", 2, 24, 1, 70, {1, 9, 13}, {1, 3, 3}, {1, 2, 2}, {0, 0, 0}, {0, 0, 0}, {1, 2, 1}});
  cases.push_back({"one tap, stride 2", 2, 64, 1, 70, {1, 9, 13}, {1, 1, 1}, {1, 2, 2}, {0, 0, 0}, {0, 0, 0}, {1, 1, 1}});
  cases.push_back({"one tap, stride 2, rows copied", 2, 256, 1, 600, {1, 5, 27}, {1, 1, 1}, {1, 2, 2}, {0, 0, 0}, {0, 0, 0}, {1, 1, 1}});
  cases.push_back({"short rows", 3, 72, 1, 80, {1, 7, 7}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}});
  cases.push_back({"shorter rows, stride 1 2", 2, 40, 1, 33, {1, 5, 7}, {1, 3, 3}, {1, 1, 2}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}});
  cases.push_back({"taps of a row apart, stride 2", 1, 20, 1, 33, {1, 9, 17}, {1, 3, 3}, {1, 2, 2}, {0, 1, 3}, {0, 1, 3}, {1, 1, 3}});
  cases.push_back({"taps apart", 1, 20, 1, 33, {1, 14, 19}, {1, 3, 3}, {1, 1, 1}, {0, 6, 6}, {0, 6, 6}, {1, 6, 6}});
  cases.push_back({"a column of taps", 1, 5, 1, 33, {1, 200, 1}, {1, 64, 1}, {1, 4, 1}, {0, 30, 0}, {0, 32, 0}, {1, 1, 1}});
  std::vector<int> products = bfloat16_products();
  products.push_back(SEP_F32);
  for (const Case& c : cases)
    for (const int product : products)
      for (const Layout layout : {kChannelsLast, kDefault, kSlice, kTransposed}) judge_case(c, layout, product, judge);
  // Groups of one channel, of few, of a vector, of more; maps of few rows and many; nothing padded; taps apart.
  const Case grouped[] = {
      {"groups", 2, 48, 1, 96, {1, 9, 11}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
      {"groups, stride 2", 1, 96, 1, 48, {1, 15, 14}, {1, 3, 3}, {1, 2, 2}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
      {"groups, nothing padded", 1, 48, 1, 48, {1, 9, 11}, {1, 3, 1}, {1, 2, 1}, {0, 0, 0}, {0, 0, 0}, {1, 1, 1}},
      {"groups, taps apart", 1, 48, 1, 96, {1, 9, 17}, {1, 3, 3}, {1, 1, 1}, {0, 3, 3}, {0, 3, 3}, {1, 3, 3}},
      {"groups, taps apart, stride 2", 1, 48, 1, 48, {1, 9, 17}, {1, 3, 3}, {1, 2, 2}, {0, 2, 2}, {0, 2, 2}, {1, 2, 2}},
      {"groups of more than a vector", 1, 144, 1, 288, {1, 7, 7}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}}};
  for (const Case& c : grouped)
    for (const int64_t groups : {2, 3, 16, 48})
      for (const Layout layout : {kChannelsLast, kDefault, kSlice, kTransposed}) judge_case(c, layout, SEP_F32, judge, groups);
  // Groups of a vector, of several vectors, and of parts of one, which share it; of as many filters as channels, and not.
  const Case maps[] = {
      {"of groups", 3, 0, 1, 0, {1, 7, 7}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
      {"of groups, stride 2", 1, 0, 1, 0, {1, 9, 31}, {1, 3, 3}, {1, 2, 2}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
      {"of groups, taps apart", 1, 0, 1, 0, {1, 11, 17}, {1, 3, 2}, {1, 1, 2}, {0, 2, 3}, {0, 2, 3}, {1, 2, 3}}};
  const int64_t widths[][3] = {{4, 4, 9}, {8, 8, 6}, {16, 16, 4}, {24, 24, 4}, {48, 48, 2}, {2, 2, 17}, {12, 12, 5}, {6, 6, 11}, {20, 20, 3},
                               {4, 8, 6}, {8, 4, 6}, {16, 4, 5}, {1, 2, 21}, {3, 1, 19}, {40, 5, 7}, {5, 40, 3}};  // channels, filters, groups
  for (const Case& map : maps)
    for (const int64_t* width : widths) {
      Case c = map;
      const std::string name = std::to_string(width[0]) + " to " + std::to_string(width[1]) + " " + map.name;
      c.name = name.c_str(), c.channels = width[0] * width[2], c.out_channels = width[1] * width[2];
      for (const Layout layout : {kChannelsLast, kDefault, kSlice}) judge_case(c, layout, SEP_F32, judge, width[2]);
    }
  return judge.report();
}
