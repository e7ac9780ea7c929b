// Pointwise convolution, with all that it does before and after the product, against loops in double precision.
#include "../pointwise_conv.h"

#include "grid.h"

namespace {

struct Shape {
  const char* name;
  int64_t images, image_rows, c_in, c_out;
};

// Tails in rows, channels in and channels out of each vector width and of matrix tiles; a vector times a matrix; a weight larger
// than a second-level cache.
const Shape kShapes[] = {
    {"one of each", 1, 1, 1, 1},      {"plain", 2, 14, 16, 32},         {"lanes-1", 1, 13, 15, 31},
    {"lanes+1", 1, 15, 17, 33},       {"rows 29", 1, 29, 8, 64},        {"narrow", 3, 50, 40, 3},
    {"linear", 1, 1, 300, 130},       {"linear, batch 5", 5, 1, 65, 9}, {"deep", 1, 49, 1030, 70},
    {"large weight", 1, 7, 520, 600}, {"long", 2, 333, 24, 24},         {"batch 0", 0, 4, 8, 8},
    {"tiles", 1, 64, 64, 64},         {"tiles+1", 1, 33, 65, 65},       {"tiles-1", 2, 47, 63, 79},
};

struct Around {
  bool bias, scale, residual, residual_first, normalize, sums, y;
  int32_t activation;
};

const Around kAround[] = {
    {false, false, false, false, false, false, true, SEP_NONE},   {true, false, false, false, false, false, true, SEP_RELU6},
    {true, true, true, false, false, false, true, SEP_HARD_SWISH}, {true, false, true, true, false, false, true, SEP_RELU},
    {true, false, false, false, true, false, true, SEP_GELU},     {true, false, false, false, false, true, true, SEP_SILU},
    {true, true, false, false, false, true, false, SEP_SIGMOID},  {true, false, true, true, false, false, true, SEP_GELU},
};

void judge_case(const Shape& s, const Around& around, int64_t padding, int product, Judge& judge, bool infinite = false) {
  const int64_t rows = s.images * s.image_rows;
  const int64_t x_stride = s.c_in + padding, y_stride = s.c_out + padding, r_stride = s.c_out + 2 * padding;
  // A last row ends where its channels end: nothing of the padding after it may be read.
  const auto extent = [&](int64_t stride, int64_t channels) { return rows ? (rows - 1) * stride + channels : 0; };
  Floats x(extent(x_stride, s.c_in)), w(s.c_in * s.c_out), bias(s.c_out), scale(s.images * s.c_in);
  Floats residual(extent(r_stride, s.c_out)), y(extent(y_stride, s.c_out)), sums(s.images * s.c_out);
  fill(x, 1), fill(w, 2), fill(bias, 3), fill(scale, 4), fill(residual, 5), unwritten(y), unwritten(sums);
  if (infinite && x.n) x[x.n / 2] = std::numeric_limits<float>::infinity(), x[0] = std::numeric_limits<float>::quiet_NaN();
  const auto* kernels = sep_pointwise_conv();
  Aligned packed(kernels->packed_bytes(s.c_in, s.c_out, product));
  kernels->pack_weight(w.p, s.c_in, 1, s.c_in, s.c_out, product, packed.p);
  sep_pointwise_conv_args a{};
  a.x = x.p, a.weight = packed.p, a.y = around.y ? y.p : nullptr;
  a.bias = around.bias ? bias.p : nullptr, a.scale = around.scale ? scale.p : nullptr;
  a.residual = around.residual ? residual.p : nullptr, a.sums = around.sums ? sums.p : nullptr;
  a.rows = rows, a.c_in = s.c_in, a.c_out = s.c_out, a.image_rows = s.image_rows;
  a.x_stride = x_stride, a.y_stride = y_stride, a.residual_stride = r_stride;
  a.activation = around.activation, a.residual_first = around.residual_first, a.normalize = around.normalize;
  a.epsilon = 1e-5f, a.product = product;
  Aligned scratch(kernels->scratch_bytes(&a));
  const int64_t units = kernels->units(&a);
  for (int64_t part = 2; part >= 0; --part) kernels->run(&a, scratch.p, units * part / 3, units * (part + 1) / 3);
  ++judge.cases;

  std::vector<double> row(s.c_in), total(s.images * s.c_out), total_bound(s.images * s.c_out);
  for (int64_t r = 0; r < rows; ++r) {
    double mean = 0, variance = 0;
    for (int64_t c = 0; c < s.c_in; ++c) mean += x[r * x_stride + c] / (double)s.c_in;
    for (int64_t c = 0; c < s.c_in; ++c) variance += std::pow(x[r * x_stride + c] - mean, 2) / (double)s.c_in;
    const double deviation = std::sqrt(variance + a.epsilon);
    for (int64_t c = 0; c < s.c_in; ++c) {
      row[c] = x[r * x_stride + c];
      if (around.normalize) row[c] = (row[c] - mean) / deviation;
      if (around.scale) row[c] *= scale[r / s.image_rows * s.c_in + c];
      row[c] = as_product(row[c], product);
    }
    for (int64_t o = 0; o < s.c_out; ++o) {
      double sum = around.bias ? bias[o] : 0, magnitude = std::fabs(sum);
      for (int64_t c = 0; c < s.c_in; ++c) {
        const double term = row[c] * as_product(w[o * s.c_in + c], product);
        sum += term, magnitude += std::fabs(term);
      }
      const double other = around.residual ? residual[r * r_stride + o] : 0;
      if (around.residual_first) sum += other;
      double value = activated(sum, around.activation);
      if (!around.residual_first) value += other;
      // Normalizing a row of nearly equal values, as one of a single channel, magnifies what rounding does to it.
      const double bound = rounding(s.c_in, magnitude + std::fabs(other)) * (around.normalize ? 4 / std::fmin(1, deviation) : 1)
                           // and may then carry it over the edge between two bfloat16.
                           + (around.normalize && product != SEP_F32 ? magnitude / 256 : 0);
      if (around.y) judge.value(s.name, y[r * y_stride + o], value, bound);
      total[r / s.image_rows * s.c_out + o] += value;
      total_bound[r / s.image_rows * s.c_out + o] += bound + 1.2e-7 * (double)s.image_rows * std::fabs(value);
    }
  }
  if (around.sums)
    for (int64_t i = 0; i < sums.n; ++i) judge.value(s.name, sums[i], total[i], total_bound[i]);
  if (around.y)
    for (int64_t r = 0; r + 1 < rows; ++r)
      for (int64_t c = s.c_out; c < y_stride; ++c)
        judge.value("between rows nothing is written", std::isnan(y[r * y_stride + c]), 1, 0);
}

}  // namespace

bool test_pointwise_conv_bfloat16() {
  bool good = true;
  for (const int product : {SEP_BF16, SEP_BF16_TILES}) {
    const char* name = product == SEP_BF16 ? "pointwise bf16" : "pointwise tiles";
    if (!(product == SEP_BF16 ? sep_has_bf16() : sep_has_bf16_tiles())) {
      std::printf("%-16s %-9s skipped, it does not multiply so here\n", name, sep_isa_name(sep_isa()));
      continue;
    }
    Judge judge{name};
    for (const Shape& s : kShapes) {
      judge_case(s, kAround[0], 0, product, judge, true);
      for (const Around& around : kAround) judge_case(s, around, 0, product, judge), judge_case(s, around, 5, product, judge);
    }
    good = judge.report() && good;
  }
  return good;
}

bool test_pointwise_conv() {
  Judge judge{"pointwise_conv"};
  for (const Shape& s : kShapes) {
    judge_case(s, kAround[0], 0, SEP_F32, judge, true);
    for (const Around& around : kAround) judge_case(s, around, 0, SEP_F32, judge), judge_case(s, around, 5, SEP_F32, judge);
  }
  return judge.report();
}
