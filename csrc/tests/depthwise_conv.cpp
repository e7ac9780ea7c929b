// Depthwise convolution against loops in double precision.
#include "../depthwise_conv.h"

#include <sys/mman.h>

#include "grid.h"

namespace {

sep_depthwise_conv_args arguments(const Case& c) {
  sep_depthwise_conv_args a{};
  a.batch = c.batch, a.channels = c.channels, a.filters = c.filters();
  for (int i = 0; i < 3; ++i) {
    a.size[i] = c.size[i], a.out[i] = c.out(i);
    a.kernel[i] = c.kernel[i], a.stride[i] = c.stride[i], a.padding[i] = c.before[i], a.dilation[i] = c.dilation[i];
  }
  return a;
}

void forward(const Case& c, int activation, bool with_bias, Judge& judge) {
  sep_depthwise_conv_args a = arguments(c);
  a.activation = activation;
  const int64_t pixels = c.size[0] * c.size[1] * c.size[2], places = c.out(0) * c.out(1) * c.out(2), taps = c.taps();
  Floats x(c.batch * pixels * c.channels), w(c.filters() * taps), bias(c.filters()), y(c.batch * places * c.filters());
  fill(x, 1), fill(w, 2), fill(bias, 3), unwritten(y);
  const auto* kernels = sep_depthwise_conv();
  Floats packed(kernels->packed_floats(&a));
  kernels->pack_weight(&a, w.p, packed.p);
  a.x = x.p, a.weight = packed.p, a.bias = with_bias ? bias.p : nullptr, a.y = y.p;
  const int64_t units = kernels->units(&a);
  for (int64_t part = 0; part < 3; ++part) kernels->forward(&a, units * part / 3, units * (part + 1) / 3);
  ++judge.cases;
  for (int64_t n = 0; n < c.batch; ++n)
    for (int64_t place = 0; place < places; ++place) {
      const int64_t o[3] = {place / c.out(2) / c.out(1), place / c.out(2) % c.out(1), place % c.out(2)};
      for (int64_t f = 0; f < c.filters(); ++f) {
        double sum = with_bias ? bias[f] : 0, magnitude = std::fabs(sum);
        for (int64_t t = 0; t < taps; ++t) {
          const int64_t k[3] = {t / c.kernel[2] / c.kernel[1], t / c.kernel[2] % c.kernel[1], t % c.kernel[2]};
          int64_t at = n;
          bool inside = true;
          for (int i = 0; i < 3; ++i) {
            const int64_t p = o[i] * c.stride[i] + k[i] * c.dilation[i] - c.before[i];
            inside = inside && p >= 0 && p < c.size[i];
            at = at * c.size[i] + p;
          }
          if (!inside) continue;
          const double product = (double)x[at * c.channels + f / c.multiplier] * w[f * taps + t];
          sum += product, magnitude += std::fabs(product);
        }
        judge.value(c.name, y[(n * places + place) * c.filters() + f], activated(sum, activation), rounding(taps, magnitude));
      }
    }
}

// An image of 5 GiB of address space of which only the last rows are ever touched: offsets beyond 2^32 bytes.
void beyond_32_bits(Judge& judge) {
  const Case c = {"beyond 2^32 bytes", 1, 16, 1, 0, {1, 1 << 13, 10240}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}};
  sep_depthwise_conv_args a = arguments(c);
  const int64_t floats = c.size[1] * c.size[2] * c.channels;
  const auto reserve = [&] {
    return (float*)mmap(nullptr, floats * 4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  };
  float *x = reserve(), *y = reserve();
  if (x == MAP_FAILED || y == MAP_FAILED) {
    std::printf("  beyond 2^32 bytes: skipped, no such address space here\n");
    return;
  }
  Floats w(c.channels * 9);
  for (int64_t i = 0; i < w.n; ++i) w[i] = 1;
  for (int64_t i = floats - c.size[2] * c.channels; i < floats; ++i) x[i] = 1;
  const auto* kernels = sep_depthwise_conv();
  Floats packed(kernels->packed_floats(&a));
  kernels->pack_weight(&a, w.p, packed.p);
  a.x = x, a.weight = packed.p, a.y = y;
  kernels->forward(&a, kernels->units(&a) - 1, kernels->units(&a));
  ++judge.cases;
  judge.value(c.name, y[floats - 1], 2, 1e-6);
  judge.value(c.name, y[floats - 1 - c.channels], 3, 1e-6);
  munmap(x, floats * 4), munmap(y, floats * 4);
}

}  // namespace

bool test_depthwise_conv() {
  Judge judge{"depthwise_conv"};
  for (const Case& c : grid()) {
    forward(c, SEP_NONE, false, judge);
    forward(c, SEP_RELU6, true, judge);
  }
  for (int activation = SEP_NONE; activation <= SEP_HARD_SIGMOID; ++activation) forward(grid()[3], activation, true, judge);
  beyond_32_bits(judge);
  return judge.report();
}
