// Depthwise convolution and its gradients, in every layout and element type, against loops in double precision.
#include "../depthwise_conv.h"

#include <sys/mman.h>

#include "grid.h"

namespace {

using Args = sep_depthwise_conv_args;

enum Layout { kChannelsFirst, kChannelsLast };

// A tensor (N, C, D, H, W) of exactly its size, in one of the layouts and element types.
struct Tensor {
  int64_t n, channels, size[3];
  bool half;
  Floats floats;
  Buffer<uint16_t> halves;
  int64_t stride[5];

  Tensor(int64_t n, int64_t channels, const int64_t* s, Layout layout, bool half)
      : n(n), channels(channels), size{s[0], s[1], s[2]}, half(half),
        floats(half ? 0 : n * channels * s[0] * s[1] * s[2]), halves(half ? n * channels * s[0] * s[1] * s[2] : 0) {
    const int64_t pixels = s[0] * s[1] * s[2], pixel = layout == kChannelsLast ? channels : 1;
    stride[0] = channels * pixels, stride[1] = layout == kChannelsLast ? 1 : pixels;
    stride[2] = s[1] * s[2] * pixel, stride[3] = s[2] * pixel, stride[4] = pixel;
  }
  int64_t elements() const { return floats.n + halves.n; }
  double get(int64_t i) { return half ? from_bfloat16(halves[i]) : floats[i]; }
  void set(int64_t i, float x) {
    if (half) halves[i] = to_bfloat16(x);
    else floats[i] = x;
  }
  void random(unsigned seed) {
    std::mt19937 source(seed);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < elements(); ++i) set(i, normal(source));
  }
  void unwritten() {
    for (int64_t i = 0; i < elements(); ++i) set(i, std::numeric_limits<float>::quiet_NaN());
  }
  sep_view view() {
    sep_view v{half ? (void*)halves.p : (void*)floats.p, {}};
    std::copy(stride, stride + 5, v.stride);
    return v;
  }
  int64_t at(int64_t image, int64_t c, const int64_t* p) const {
    return image * stride[0] + c * stride[1] + p[0] * stride[2] + p[1] * stride[3] + p[2] * stride[4];
  }
};

// `merging`: the wide channels are the input's, C*m of them, summed by m into C outputs.
struct Setting {
  Layout layout;
  bool half, merging, with_bias;
  int activation;
};

template <class Body>  // body(output place, tap, input place) for every tap that lies inside
void each_tap(const Case& c, Body body) {
  const int64_t out[3] = {c.out(0), c.out(1), c.out(2)};
  for (int64_t place = 0; place < out[0] * out[1] * out[2]; ++place) {
    const int64_t o[3] = {place / out[2] / out[1], place / out[2] % out[1], place % out[2]};
    for (int64_t t = 0; t < c.taps(); ++t) {
      const int64_t k[3] = {t / c.kernel[2] / c.kernel[1], t / c.kernel[2] % c.kernel[1], t % c.kernel[2]};
      int64_t p[3];
      bool inside = true;
      for (int i = 0; i < 3; ++i) {
        p[i] = o[i] * c.stride[i] + k[i] * c.dilation[i] - c.before[i];
        inside = inside && p[i] >= 0 && p[i] < c.size[i];
      }
      if (inside) body(o, t, p);
    }
  }
}

Args arguments(const Case& c, const Setting& s) {
  Args a{};
  a.batch = c.batch, a.channels = s.merging ? c.filters() : c.channels, a.filters = s.merging ? c.channels : c.filters();
  for (int i = 0; i < 3; ++i) {
    a.size[i] = c.size[i], a.out[i] = c.out(i);
    a.kernel[i] = c.kernel[i], a.stride[i] = c.stride[i], a.padding[i] = c.before[i], a.dilation[i] = c.dilation[i];
  }
  a.dtype = s.half ? SEP_BF16 : SEP_F32, a.activation = s.activation;
  return a;
}

// Of more than 8 MiB, which is written past the caches.
const Case kLarge = {"beyond the caches", 1, 32, 1, 0, {1, 256, 256}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}};

// What rounding the result itself to its element type may change.
double stored(const Setting& s, double value) { return s.half ? std::fabs(value) / 250 : 0; }

void forward(const Case& c, const Setting& s, Judge& judge) {
  if (c.multiplier > sep_depthwise_conv()->lanes) return;  // torch's own operation serves
  Args a = arguments(c, s);
  const int64_t out[3] = {c.out(0), c.out(1), c.out(2)}, taps = c.taps();
  Tensor x(c.batch, a.channels, c.size, s.layout, s.half), y(c.batch, a.filters, out, s.layout, s.half);
  Floats w(c.filters() * taps), bias(a.filters);
  x.random(1), fill(w, 2), fill(bias, 3), y.unwritten();
  const auto* kernels = sep_depthwise_conv();
  a.x = x.view(), a.y = y.view(), a.weight = w.p, a.bias = s.with_bias ? bias.p : nullptr;
  Floats packed(kernels->packed_floats(&a));
  a.packed = packed.p;
  kernels->pack_weight(&a);
  Aligned scratch(kernels->scratch_bytes(&a));
  const int64_t units = kernels->units(&a);
  for (int64_t part = 2; part >= 0; --part) kernels->run(&a, scratch.p, units * part / 3, units * (part + 1) / 3);
  ++judge.cases;

  std::vector<double> sum(y.elements()), magnitude(y.elements());
  for (int64_t n = 0; n < c.batch; ++n)
    for (int64_t wide = 0; wide < c.filters(); ++wide) {
      const int64_t from = s.merging ? wide : wide / c.multiplier, to = s.merging ? wide / c.multiplier : wide;
      each_tap(c, [&](const int64_t* o, int64_t t, const int64_t* p) {
        const double product = x.get(x.at(n, from, p)) * w[wide * taps + t];
        sum[y.at(n, to, o)] += product, magnitude[y.at(n, to, o)] += std::fabs(product);
      });
    }
  for (int64_t n = 0; n < c.batch; ++n)
    for (int64_t f = 0; f < a.filters; ++f)
      for (int64_t place = 0; place < out[0] * out[1] * out[2]; ++place) {
        const int64_t o[3] = {place / out[2] / out[1], place / out[2] % out[1], place % out[2]}, at = y.at(n, f, o);
        const double before = sum[at] + (s.with_bias ? bias[f] : 0), wanted = activated(before, s.activation);
        const double bound = rounding(taps * c.multiplier, magnitude[at] + std::fabs(before));
        judge.value(c.name, y.get(at), wanted, bound + stored(s, wanted));
      }
}

void backward(const Case& c, const Setting& s, Judge& judge) {
  if (c.multiplier > sep_depthwise_conv_backward()->lanes) return;
  Args a = arguments(c, s);
  const int64_t out[3] = {c.out(0), c.out(1), c.out(2)}, taps = c.taps();
  Tensor x(c.batch, a.channels, c.size, s.layout, s.half), gx(c.batch, a.channels, c.size, s.layout, s.half);
  Tensor gy(c.batch, a.filters, out, s.layout, s.half);
  Floats w(c.filters() * taps), gw(w.n), gb(a.filters);
  x.random(1), fill(w, 2), gy.random(4), gx.unwritten(), unwritten(gw), unwritten(gb);
  const auto* kernels = sep_depthwise_conv_backward();
  a.x = x.view(), a.y = gy.view(), a.gx = gx.view(), a.weight = w.p;
  Floats packed(kernels->packed_floats(&a));
  a.packed = packed.p;
  kernels->pack_weight(&a);
  const int64_t units = kernels->units(&a);
  Floats partial(units * kernels->partial_floats(&a));
  for (int64_t i = 0; i < partial.n; ++i) partial[i] = 0;
  a.partial = partial.p;
  Aligned scratch(kernels->scratch_bytes(&a));
  for (int64_t part = 2; part >= 0; --part) kernels->run(&a, scratch.p, units * part / 3, units * (part + 1) / 3);
  kernels->finish(&a, gw.p, gb.p);
  ++judge.cases;

  std::vector<double> to_x(x.elements()), x_size(x.elements()), to_w(w.n), w_size(w.n), to_b(a.filters), b_size(a.filters);
  for (int64_t n = 0; n < c.batch; ++n)
    for (int64_t wide = 0; wide < c.filters(); ++wide) {
      const int64_t from = s.merging ? wide : wide / c.multiplier, to = s.merging ? wide / c.multiplier : wide;
      each_tap(c, [&](const int64_t* o, int64_t t, const int64_t* p) {
        const double g = gy.get(gy.at(n, to, o)), value = x.get(x.at(n, from, p)), weight = w[wide * taps + t];
        to_x[x.at(n, from, p)] += g * weight, x_size[x.at(n, from, p)] += std::fabs(g * weight);
        to_w[wide * taps + t] += g * value, w_size[wide * taps + t] += std::fabs(g * value);
      });
    }
  const int64_t places = out[0] * out[1] * out[2];
  for (int64_t n = 0; n < c.batch; ++n)
    for (int64_t f = 0; f < a.filters; ++f)
      for (int64_t place = 0; place < places; ++place) {
        const int64_t o[3] = {place / out[2] / out[1], place / out[2] % out[1], place % out[2]};
        const double g = gy.get(gy.at(n, f, o));
        to_b[f] += g, b_size[f] += std::fabs(g);
      }
  for (int64_t i = 0; i < x.elements(); ++i)
    judge.value(c.name, gx.get(i), to_x[i], rounding(taps * c.multiplier, x_size[i]) + stored(s, to_x[i]));
  for (int64_t i = 0; i < w.n; ++i) judge.value(c.name, gw[i], to_w[i], rounding(c.batch * places, w_size[i]));
  for (int64_t i = 0; i < a.filters; ++i) judge.value(c.name, gb[i], to_b[i], rounding(c.batch * places, b_size[i]));
}

// An image of 5 GiB of address space of which only the last rows are ever touched: offsets beyond 2^32 bytes.
void beyond_32_bits(Judge& judge) {
  const Case c = {"beyond 2^32 bytes", 1, 16, 1, 0, {1, 1 << 13, 10240}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}};
  Args a = arguments(c, {kChannelsLast, false, false, false, SEP_NONE});
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
  const sep_view last = {x, {floats, 1, floats, c.size[2] * c.channels, c.channels}};
  a.x = last, a.y = last, a.y.data = y, a.weight = w.p;
  const auto* kernels = sep_depthwise_conv();
  Floats packed(kernels->packed_floats(&a));
  a.packed = packed.p;
  kernels->pack_weight(&a);
  Aligned scratch(kernels->scratch_bytes(&a));
  kernels->run(&a, scratch.p, kernels->units(&a) - 1, kernels->units(&a));
  ++judge.cases;
  judge.value(c.name, y[floats - 1], 2, 1e-6);  // of the last row alone: what lies above it is zero
  judge.value(c.name, y[floats - 1 - c.channels], 3, 1e-6);
  munmap(x, floats * 4), munmap(y, floats * 4);
}

}  // namespace

bool test_depthwise_conv() {
  Judge judge{"depthwise_conv"};
  for (const Case& c : grid())
    for (Layout layout : {kChannelsFirst, kChannelsLast})
      for (bool half : {false, true}) {
        forward(c, {layout, half, false, true, SEP_RELU6}, judge);
        if (c.multiplier > 1) forward(c, {layout, half, true, false, SEP_NONE}, judge);
      }
  for (int activation = SEP_NONE; activation <= SEP_GELU; ++activation)
    forward(grid()[3], {kChannelsLast, false, false, true, activation}, judge);
  forward(kLarge, {kChannelsLast, false, false, true, SEP_RELU6}, judge);
  beyond_32_bits(judge);
  return judge.report();
}

bool test_depthwise_conv_backward() {
  Judge judge{"depthwise grad"};
  for (const Case& c : grid())
    for (Layout layout : {kChannelsFirst, kChannelsLast})
      for (bool half : {false, true}) {
        backward(c, {layout, half, false, false, SEP_NONE}, judge);
        if (c.multiplier > 1) backward(c, {layout, half, true, false, SEP_NONE}, judge);
      }
  backward(kLarge, {kChannelsLast, false, false, false, SEP_NONE}, judge);
  return judge.report();
}
