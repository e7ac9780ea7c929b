// Batch norm of a training step, forward and backward, against loops in double precision.
#include "../batch_norm.h"

#include "grid.h"

namespace {

struct Shape {
  const char* name;
  int64_t rows, channels;
  float mean;  // of x, whose deviation is 1; but for 0 x is whole numbers: their sums are exact, their mean is rounded
};

// Tails in channels of each vector width and in rows of each group of 2 and 4; units of many rows and of one.
const Shape kShapes[] = {
    {"one of each", 1, 1, 0},       {"one row", 1, 19, 0},          {"one channel", 37, 1, 0},
    {"lanes-1", 23, 15, 0},         {"lanes", 18, 16, 0},           {"lanes+1", 9, 17, 0},
    {"several units", 1003, 40, 0}, {"several groups", 50, 131, 0}, {"rows wider than a unit", 3, 16500, 0},
    {"far from zero", 700, 24, 1000},
};

// A step as ops_batch_norm.cpp makes it; units in three parts, the last first.
struct Step {
  Shape shape;
  Floats x, g, weight, bias, y, gx, mean, variance, weight_grad, bias_grad;

  explicit Step(const Shape& s)
      : shape(s), x(s.rows * s.channels), g(x.n), weight(s.channels), bias(s.channels), y(x.n), gx(x.n),
        mean(s.channels), variance(s.channels), weight_grad(s.channels), bias_grad(s.channels) {
    fill(x, 1), fill(g, 2), fill(weight, 3), fill(bias, 4);
    if (s.mean)
      for (int64_t i = 0; i < x.n; ++i) x[i] = std::round(x[i] + s.mean);
  }

  // `in_place`: the gradient of x is written where g was.
  void run(int activation, bool affine, bool in_place) {
    for (Floats* b : {&y, &gx, &mean, &variance, &weight_grad, &bias_grad}) unwritten(*b);
    if (in_place) std::copy(g.p, g.p + g.n, gx.p);
    sep_batch_norm_args a{};
    a.x = x.p, a.g = in_place ? gx.p : g.p, a.weight = affine ? weight.p : nullptr, a.bias = affine ? bias.p : nullptr;
    a.mean = mean.p, a.variance = variance.p, a.weight_grad = weight_grad.p, a.bias_grad = bias_grad.p;
    a.rows = shape.rows, a.channels = shape.channels, a.activation = activation, a.epsilon = 1e-3f;
    const auto* kernels = sep_batch_norm();
    const int64_t units = kernels->units(&a);
    const auto over_units = [&](void (*run)(const sep_batch_norm_args*, int64_t, int64_t)) {
      for (int64_t part = 2; part >= 0; --part) run(&a, units * part / 3, units * (part + 1) / 3);
    };
    Floats partial(units * 2 * shape.channels), coefficients(4 * shape.channels);
    a.partial = partial.p, a.coefficients = coefficients.p;
    unwritten(partial), unwritten(coefficients), a.y = y.p;
    over_units(kernels->moments), kernels->finish_moments(&a), over_units(kernels->normalize);
    unwritten(partial), unwritten(coefficients), a.y = gx.p;
    kernels->set_coefficients(&a);
    over_units(kernels->sums), kernels->finish_sums(&a), over_units(kernels->gradient);
  }
};

// Whether rounding may carry z over a corner of the activation, where the derivative jumps by 1 at most.
bool near_corner(double z, double bound, int activation) {
  const double low = activation == SEP_HARD_SWISH ? -3 : 0, high = activation == SEP_HARD_SWISH ? 3 : 6;
  const bool clamps = activation == SEP_RELU || activation == SEP_RELU6 || activation == SEP_HARD_SWISH;
  return clamps && (std::fabs(z - low) <= bound || (activation != SEP_RELU && std::fabs(z - high) <= bound));
}

void judge_channel(Step& s, int64_t c, int activation, bool affine, Judge& judge) {
  const int64_t rows = s.shape.rows, channels = s.shape.channels;
  const double n = (double)rows, weight = affine ? s.weight[c] : 1, bias = affine ? s.bias[c] : 0;
  double mean = 0, variance = 0, largest = 0;
  for (int64_t r = 0; r < rows; ++r) {
    mean += s.x[r * channels + c] / n;
    largest = std::fmax(largest, std::fabs(s.x[r * channels + c]));
  }
  for (int64_t r = 0; r < rows; ++r) variance += std::pow(s.x[r * channels + c] - mean, 2) / n;
  const double factor = 1 / std::sqrt(variance + 1e-3f), moved = rounding(s.shape.mean ? 1 : rows, 2 * largest);
  const double share = moved * factor;  // of the deviation: what rounding does to x - mean, and to the deviation itself
  judge.value(s.shape.name, s.mean[c], mean, moved);
  judge.value(s.shape.name, s.variance[c], variance, 2 * share / factor / factor);

  double sum = 0, products = 0, sum_bound = 0, products_bound = 0;
  std::vector<double> through(rows), through_bound(rows);
  for (int64_t r = 0; r < rows; ++r) {
    const double x = (s.x[r * channels + c] - mean) * factor, z = x * weight + bias, g = s.g[r * channels + c];
    const double x_bound = share * (1 + std::fabs(x));
    const double z_bound = std::fabs(weight) * x_bound + rounding(1, std::fabs(z));
    judge.value(s.shape.name, s.y[r * channels + c], activated(z, activation), 1.5 * z_bound);  // hard swish's slope
    through[r] = g * derivative(z, activation);
    through_bound[r] = std::fabs(g) * (z_bound + near_corner(z, z_bound, activation)) + rounding(4, std::fabs(g));
    sum += through[r], products += through[r] * x;
    sum_bound += through_bound[r] + rounding(rows, std::fabs(through[r]));
    products_bound += through_bound[r] * std::fabs(x) + std::fabs(through[r]) * x_bound;
    products_bound += rounding(rows, std::fabs(through[r] * x));
  }
  judge.value(s.shape.name, s.bias_grad[c], sum, sum_bound);
  judge.value(s.shape.name, s.weight_grad[c], products, products_bound + share * std::fabs(products));
  for (int64_t r = 0; r < rows; ++r) {
    const double x = (s.x[r * channels + c] - mean) * factor, x_bound = share * (1 + std::fabs(x));
    const double wanted = through[r] - sum / n - x * products / n, scale = std::fabs(weight * factor);
    const double size = std::fabs(through[r]) + std::fabs(sum / n) + std::fabs(x * products / n);
    const double moments = (sum_bound + std::fabs(x) * products_bound + x_bound * std::fabs(products)) / n;
    const double bound = scale * (through_bound[r] + moments + 2 * share * size) + rounding(4, scale * size);
    judge.value(s.shape.name, s.gx[r * channels + c], weight * factor * wanted, bound);
  }
}

// What is no number fills its channel, forward and backward, and no other.
void judge_odd_number(float odd, int activation, Judge& judge) {
  Step clean({"odd number", 30, 21, 0}), s(clean.shape);
  for (Step* step : {&clean, &s}) step->weight[2] = 0.1f, step->bias[2] = 1;  // where relu and relu6 let g through
  s.x[7 * 21 + 18] = odd, s.g[7 * 21 + 2] = odd;
  clean.run(activation, true, false), s.run(activation, true, false);
  ++judge.cases;
  for (int64_t i = 0; i < s.x.n; ++i) {
    const int64_t c = i % 21;
    judge.value("y of an odd number", s.y[i], c == 18 ? NAN : clean.y[i], 0);
    if (c == 2)
      judge.value("gradient of an odd number", std::isfinite(s.gx[i]), 0, 0);
    else
      judge.value("gradient of an odd number", s.gx[i], c == 18 ? NAN : clean.gx[i], 0);
  }
}

}  // namespace

bool test_batch_norm() {
  Judge judge{"batch_norm"};
  for (const Shape& shape : kShapes) {
    Step step(shape);
    for (int activation = SEP_NONE; activation <= SEP_GELU; ++activation)
      for (bool affine : {false, true}) {
        step.run(activation, affine, activation % 2);
        ++judge.cases;
        for (int64_t c = 0; c < shape.channels; ++c) judge_channel(step, c, activation, affine, judge);
      }
  }
  for (int activation = SEP_NONE; activation <= SEP_GELU; ++activation)
    for (float odd : {NAN, INFINITY, -INFINITY}) judge_odd_number(odd, activation, judge);
  return judge.report();
}
