// Elementwise steps, layer norm and pooling against loops in double precision.
#include "../elementwise.h"
#include "../layer_norm.h"
#include "../pool.h"
#include "grid.h"

namespace {

const int64_t kChannels[] = {1, 3, 15, 16, 17, 40, 1000};

void judge_elementwise(int64_t channels, bool scaled, bool added, int activation, Judge& judge) {
  const int64_t images = 2, image_rows = 7, n = images * image_rows * channels;
  Floats x(n), scale(images * channels), other(n), y(n);
  fill(x, 1), fill(scale, 2), fill(other, 3), unwritten(y);
  sep_elementwise_args a{x.p, scaled ? scale.p : nullptr, added ? other.p : nullptr, y.p, images * image_rows, channels,
                         image_rows, activation};
  sep_elementwise()->run(&a, 0, sep_elementwise()->units(&a));
  ++judge.cases;
  for (int64_t i = 0; i < n; ++i) {
    const double s = scaled ? scale[i / channels / image_rows * channels + i % channels] : 1, o = added ? other[i] : 0;
    judge.value("elementwise", y[i], activated(x[i] * s + o, activation), rounding(1, std::fabs(x[i] * s) + std::fabs(o)));
  }
}

// Quotients, differences, slopes and limits; what is no number or infinite comes out as torch has it.
void judge_operators(int64_t channels, Judge& judge) {
  const int64_t rows = 9, n = rows * channels;
  Floats x(n), by(n), other(n), y(n);
  fill(x, 1), fill(by, 2), fill(other, 3), unwritten(y);
  by[0] = 0;
  if (n > 30) x[5] = 0, by[5] = 0, x[6] = NAN, x[7] = -INFINITY, other[8] = INFINITY, x[9] = 0;
  sep_elementwise_args a{x.p, by.p, other.p, y.p, rows, channels, 1, SEP_NONE, 1, 1, 1, -0.25f, -2, 1.5f};
  const int64_t units = sep_elementwise()->units(&a);
  for (int64_t part = 1; part >= 0; --part) sep_elementwise()->run(&a, units * part / 2, units * (part + 1) / 2);
  ++judge.cases;
  for (int64_t i = 0; i < n; ++i) {
    const double quotient = x[i] / (double)by[i], v = quotient - other[i], bent = v < 0 ? -0.25 * v : v;
    const double wanted = std::isnan(bent) ? bent : std::fmin(std::fmax(bent, -2), 1.5);
    judge.value("operators", y[i], wanted, rounding(1, std::fabs(quotient) + std::fabs(other[i])));
  }
}

// Small numbers keep their own digits; the rest of its accuracy is that of all activations.
void judge_tanh(Judge& judge) {
  const int64_t n = 4001;
  Floats x(n), y(n);
  for (int64_t i = 0; i < n; ++i) x[i] = std::ldexp(i % 2 ? -1.0f : 1.0f, (int)(i / 100) - 34) * (1 + i % 100 / 100.0f);
  x[0] = NAN, x[1] = INFINITY, x[2] = -INFINITY, x[3] = 0, x[4] = 8.99f, x[5] = -9.01f, x[6] = 1e30f;
  sep_elementwise_args a{x.p, nullptr, nullptr, y.p, 1, n, 1, SEP_TANH};
  sep_elementwise()->run(&a, 0, sep_elementwise()->units(&a));
  ++judge.cases;
  for (int64_t i = 0; i < n; ++i) judge.value("tanh", y[i], std::tanh((double)x[i]), 6e-7 * std::fabs(std::tanh((double)x[i])));
}

void judge_layer_norm(int64_t channels, bool affine, Judge& judge) {
  const int64_t rows = 9;
  Floats x(rows * channels), weight(channels), bias(channels), y(rows * channels);
  fill(x, 1), fill(weight, 2), fill(bias, 3), unwritten(y);
  sep_layer_norm_args a{x.p, affine ? weight.p : nullptr, affine ? bias.p : nullptr, y.p, rows, channels, 1e-6f};
  sep_layer_norm()->run(&a, 0, sep_layer_norm()->units(&a));
  ++judge.cases;
  for (int64_t r = 0; r < rows; ++r) {
    double mean = 0, variance = 0;
    for (int64_t c = 0; c < channels; ++c) mean += x[r * channels + c] / (double)channels;
    for (int64_t c = 0; c < channels; ++c) variance += std::pow(x[r * channels + c] - mean, 2) / (double)channels;
    const double deviation = std::sqrt(variance + a.epsilon);
    for (int64_t c = 0; c < channels; ++c) {
      const double scaled = (x[r * channels + c] - mean) / deviation * (affine ? weight[c] : 1);
      judge.value("layer norm", y[r * channels + c], scaled + (affine ? bias[c] : 0),
                  rounding(16, 2 + std::fabs(scaled)) / std::fmin(1, deviation));
    }
  }
}

void judge_pool(int64_t channels, const Case& c, int kind, Judge& judge) {
  Floats x(c.batch * c.size[1] * c.size[2] * channels), y(c.batch * c.out(1) * c.out(2) * channels);
  fill(x, 1), unwritten(y);
  sep_pool_args a{};
  a.x = x.p, a.y = y.p, a.batch = c.batch, a.channels = channels, a.kind = kind;
  for (int i = 0; i < 2; ++i) {
    a.size[i] = c.size[i + 1], a.out[i] = c.out(i + 1), a.kernel[i] = c.kernel[i + 1];
    a.stride[i] = c.stride[i + 1], a.padding[i] = c.before[i + 1];
  }
  sep_pool()->run(&a, 0, sep_pool()->units(&a));
  ++judge.cases;
  for (int64_t place = 0; place < c.batch * c.out(1) * c.out(2); ++place)
    for (int64_t f = 0; f < channels; ++f) {
      const int64_t n = place / c.out(2) / c.out(1), i = place / c.out(2) % c.out(1), j = place % c.out(2);
      double sum = 0, most = -INFINITY, inside = 0, magnitude = 0;
      for (int64_t ky = 0; ky < c.kernel[1]; ++ky)
        for (int64_t kx = 0; kx < c.kernel[2]; ++kx) {
          const int64_t row = i * c.stride[1] + ky - c.before[1], column = j * c.stride[2] + kx - c.before[2];
          if (row < 0 || row >= c.size[1] || column < 0 || column >= c.size[2]) continue;
          const double value = x[((n * c.size[1] + row) * c.size[2] + column) * channels + f];
          sum += value, magnitude += std::fabs(value), most = std::fmax(most, value), inside += 1;
        }
      const double wanted = kind == SEP_POOL_MAX ? most : sum / inside;
      judge.value("pool", y[place * channels + f], wanted, kind == SEP_POOL_MAX ? 0 : rounding(c.taps(), magnitude / inside));
    }
}

}  // namespace

bool test_rowwise() {
  Judge judge{"rowwise"};
  const Case windows[] = {
      {"global", 2, 1, 1, 1, {1, 7, 7}, {1, 7, 7}, {1, 1, 1}, {0, 0, 0}, {0, 0, 0}, {1, 1, 1}},
      {"3x3 stride 2", 2, 1, 1, 1, {1, 8, 9}, {1, 3, 3}, {1, 2, 2}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
      {"2x2", 1, 1, 1, 1, {1, 6, 5}, {1, 2, 2}, {1, 2, 2}, {0, 0, 0}, {0, 0, 0}, {1, 1, 1}},
  };
  judge_tanh(judge);
  for (int64_t channels : kChannels) {
    for (int activation = SEP_NONE; activation <= SEP_TANH; ++activation)
      judge_elementwise(channels, activation % 2, activation / 2 % 2, activation, judge);
    judge_operators(channels, judge);
    judge_layer_norm(channels, false, judge), judge_layer_norm(channels, true, judge);
    for (const Case& window : windows)
      judge_pool(channels, window, SEP_POOL_MAX, judge), judge_pool(channels, window, SEP_POOL_MEAN, judge);
  }
  return judge.report();
}
