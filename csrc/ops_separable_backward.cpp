// torch's entry to the gradients of a separable convolution whose forward kept its input alone (separable_conv.h).
//
// What stood between the halves is made again, some images at a time in scratch memory, used at once for the gradients of both
// halves, and forgotten. Images are shared out over at most kGroups groups by the shapes alone; each adds its part of
// the weights' gradients to sums of its own, and these are added in order: the same bits for any number of threads.
#include <algorithm>
#include <tuple>

#include "activation_gradient.h"
#include "depthwise_conv.h"
#include "ops.h"
#include "pointwise_conv.h"

namespace {

constexpr int64_t kGroups = 8, kPixels = 256;  // pixels of one product of the pointwise weight's gradient

using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Ints sizes_of(const Tensor& t) {
  Ints sizes(t.dim());
  for (size_t i = 0; i < sizes.size(); ++i) sizes[i] = t.size(static_cast<int64_t>(i));
  return sizes;
}

// Dense channels-last (batch, channels, rows, columns); a sequence is an image of one row.
struct Image {
  explicit Image(const Tensor& t) : size{t.size(0), t.size(1), t.dim() == 4 ? t.size(2) : 1, t.size(t.dim() - 1)} {
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && (t.dim() == 3 || t.dim() == 4), "separable_conv_backward: float32 images");
    int64_t step = size[1];
    bool dense = size[1] == 1 || is_channels_last(t);
    for (int64_t i = t.dim() - 1; i >= 0; --i) {
      if (i == 1) continue;
      dense = dense && (t.size(i) == 1 || t.stride(i) == step);
      step *= t.size(i);
    }
    STD_TORCH_CHECK(dense || t.numel() == 0, "separable_conv_backward: memory must be dense, channels last");
  }
  int64_t pixels() const { return size[2] * size[3]; }
  int64_t size[4];
};

sep_view view_of(float* data, int64_t channels, int64_t rows, int64_t columns) {
  return sep_view{data, {rows * columns * channels, 1, rows * columns * channels, columns * channels, channels}};
}

const float* floats_of(const Tensor& t, int64_t count) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.numel() == count && t.is_contiguous(), "separable_conv_backward: wrong weight");
  return t.const_data_ptr<float>();
}

// Everything that a group of images needs: shapes, packed weights, where its results go.
struct Job {
  bool pointwise_first;
  int64_t batch, images;                 // all, and of one step
  int64_t in_pixels, out_pixels, c_in, c_out, channels;  // channels: of the depthwise half
  int64_t inner_pixels;                  // of what stands between the halves
  int32_t activation;                    // between the halves
  const float *x, *g, *dw_bias, *pw_bias;
  float* gx;                             // or null
  sep_depthwise_conv_args depthwise;     // weight and packed set
  const float* dw_packed_backward;
  const void *pw_forward, *pw_backward;  // the pointwise weight packed as it is and transposed
};

// y (rows, c_out) = x (rows, c_in) times a packed weight, + bias, + what stands in y where `add`.
void multiply(const float* x, int64_t rows, int64_t c_in, const void* weight, int64_t c_out, const float* bias, bool add, float* y) {
  sep_pointwise_conv_args p{};
  p.x = x, p.weight = weight, p.bias = bias, p.y = y, p.residual = add ? y : nullptr;
  p.rows = p.image_rows = rows, p.c_in = p.x_stride = c_in, p.c_out = p.y_stride = p.residual_stride = c_out;
  const auto* kernels = sep_pointwise_conv();
  const Buffer scratch(kernels->scratch_bytes(&p));
  kernels->run(&p, scratch.data, 0, kernels->units(&p));
}

// gw (c_out, c_in) += the sum over pixels of g (pixels, c_out) times a (pixels, c_in); sums over c_out of g go into gb.
void add_weight_gradient(const float* g, const float* a, int64_t pixels, int64_t c_out, int64_t c_in, float* gw, float* gb) {
  const auto* kernels = sep_pointwise_conv();
  const int64_t most = std::min(pixels, kPixels);
  const Buffer packed(kernels->packed_bytes(most, c_in, SEP_F32)), transposed(most * c_out * 4);
  for (int64_t first = 0; first < pixels; first += kPixels) {
    const int64_t count = std::min(kPixels, pixels - first);
    const float* from = g + first * c_out;
    float* to = transposed.floats();
    for (int64_t c = 0; c < c_out; c += 16)  // blocks of a few cache lines on either side
      for (int64_t r = 0; r < count; ++r)
        for (int64_t i = c; i < std::min(c + 16, c_out); ++i) to[i * count + r] = from[r * c_out + i];
    for (int64_t c = 0; c < c_out; ++c) {
      float sum = 0;
      for (int64_t r = 0; r < count; ++r) sum += to[c * count + r];
      gb[c] += sum;
    }
    kernels->pack_weight(a + first * c_in, 1, c_in, count, c_in, SEP_F32, packed.data);
    multiply(to, c_out, count, packed.data, c_in, nullptr, true, gw);
  }
}

// g = g through the activation, and z = act(z), for what stands between the halves.
void through(const Job& j, float* g, float* z, int64_t count) {
  sep_activation_gradient_args a{g, z, count, j.activation};
  sep_activation_gradient()->run(&a);
}

void activate(const Job& j, float* a, const float* z, int64_t count) {
  sep_activation_gradient_args args{a, const_cast<float*>(z), count, j.activation};
  sep_activation_gradient()->activate(&args);
}

// The depthwise half of `count` images backward: gx may be null; dw_sums takes the weight's gradient, db_sums the bias's.
void depthwise_backward(const Job& j, int64_t count, const float* x, const float* g, float* gx, float* dw_sums, float* db_sums) {
  const auto* kernels = sep_depthwise_conv_backward();
  sep_depthwise_conv_args d = j.depthwise;
  d.batch = count;
  d.x = view_of(const_cast<float*>(x), j.channels, d.size[1], d.size[2]);
  d.y = view_of(const_cast<float*>(g), j.channels, d.out[1], d.out[2]);
  d.gx = gx ? view_of(gx, j.channels, d.size[1], d.size[2]) : sep_view{};
  d.packed = const_cast<float*>(j.dw_packed_backward);
  const int64_t units = kernels->units(&d), shares = units * kernels->partial_floats(&d), taps = d.kernel[1] * d.kernel[2];
  const Buffer partial(shares * 4), scratch(kernels->scratch_bytes(&d));
  std::fill_n(partial.floats(), shares, 0.0f);
  d.partial = partial.floats();
  kernels->run(&d, scratch.data, 0, units);
  std::vector<float> gw(j.channels * taps), gb(j.channels);
  kernels->finish(&d, gw.data(), gb.data());
  for (size_t i = 0; i < gw.size(); ++i) dw_sums[i] += gw[i];
  for (size_t i = 0; i < gb.size(); ++i) db_sums[i] += gb[i];
}

// The gradients of four parameters, one after another.
struct Sums {
  Sums(float* at, int64_t dw_size, int64_t channels, int64_t pw_size) : dw(at), db(dw + dw_size), pw(db + channels), pb(pw + pw_size) {}
  float *dw, *db, *pw, *pb;
};

// Images first ... first + count - 1, depthwise half first.
void step_depthwise_first(const Job& j, int64_t first, int64_t count, const Sums& sums, float* z, float* a, float* ga) {
  const int64_t pixels = count * j.out_pixels;
  const float *x = j.x + first * j.in_pixels * j.channels, *g = j.g + first * j.out_pixels * j.c_out;
  sep_depthwise_conv_args d = j.depthwise;
  d.batch = count, d.bias = j.dw_bias;
  d.x = view_of(const_cast<float*>(x), j.channels, d.size[1], d.size[2]);
  d.y = view_of(z, j.channels, d.out[1], d.out[2]);
  const auto* kernels = sep_depthwise_conv();
  const Buffer scratch(kernels->scratch_bytes(&d));
  kernels->run(&d, scratch.data, 0, kernels->units(&d));
  activate(j, a, z, pixels * j.channels);
  add_weight_gradient(g, a, pixels, j.c_out, j.channels, sums.pw, sums.pb);
  multiply(g, pixels, j.c_out, j.pw_backward, j.channels, nullptr, false, ga);
  through(j, ga, z, pixels * j.channels);
  depthwise_backward(j, count, x, ga, j.gx ? j.gx + first * j.in_pixels * j.channels : nullptr, sums.dw, sums.db);
}

void step_pointwise_first(const Job& j, int64_t first, int64_t count, const Sums& sums, float* z, float* a, float* ga) {
  const int64_t pixels = count * j.in_pixels;
  const float *x = j.x + first * j.in_pixels * j.c_in, *g = j.g + first * j.out_pixels * j.channels;
  multiply(x, pixels, j.c_in, j.pw_forward, j.channels, j.pw_bias, false, z);
  activate(j, a, z, pixels * j.channels);
  depthwise_backward(j, count, a, g, ga, sums.dw, sums.db);
  through(j, ga, z, pixels * j.channels);
  add_weight_gradient(ga, x, pixels, j.c_out, j.c_in, sums.pw, sums.pb);
  if (j.gx) multiply(ga, pixels, j.c_out, j.pw_backward, j.c_in, nullptr, false, j.gx + first * j.in_pixels * j.c_in);
}

sep_depthwise_conv_args depthwise_args(const Image& x, const Tensor& weight, const Ints& stride, const Ints& padding, const Ints& dilation,
                                       int64_t channels) {
  const int64_t dims = weight.dim() - 2;
  STD_TORCH_CHECK(static_cast<int64_t>(stride.size()) == dims && static_cast<int64_t>(dilation.size()) == dims &&
                      static_cast<int64_t>(padding.size()) == 2 * dims && weight.size(0) == channels && weight.size(1) == 1,
                  "separable_conv_backward: wrong depthwise weight or window");
  sep_depthwise_conv_args d{};
  d.dtype = SEP_F32;
  d.batch = x.size[0], d.channels = d.filters = channels;
  d.size[0] = d.out[0] = d.kernel[0] = d.stride[0] = d.dilation[0] = 1;
  for (int i = 1; i < 3; ++i) {
    const int64_t at = i - (3 - dims);  // dimension of the window's own, or one of size 1 before it
    const int64_t k = at < 0 ? 1 : weight.size(2 + at), s = at < 0 ? 1 : stride[at], l = at < 0 ? 1 : dilation[at];
    const int64_t before = at < 0 ? 0 : padding[2 * at], after = at < 0 ? 0 : padding[2 * at + 1];
    STD_TORCH_CHECK(k >= 1 && k <= SEP_MAX_KERNEL && s >= 1 && s <= SEP_MAX_STRIDE && l >= 1 && before >= 0 && after >= 0,
                    "separable_conv_backward: kernel, stride, padding or dilation out of range");
    d.size[i] = x.size[1 + i];
    d.kernel[i] = static_cast<int32_t>(k), d.stride[i] = static_cast<int32_t>(s), d.dilation[i] = static_cast<int32_t>(l);
    d.padding[i] = static_cast<int32_t>(before);
    const int64_t rest = d.size[i] + before + after - l * (k - 1) - 1;
    STD_TORCH_CHECK(d.size[i] > 0 && rest >= 0 && d.size[i] + before + after < INT32_MAX, "separable_conv_backward: wrong size");
    d.out[i] = rest / s + 1;
  }
  return d;
}

// Gradients of input (empty where it is not asked for), depthwise weight, pointwise weight, depthwise bias, pointwise bias.
Five separable_conv_backward(const Tensor& grad, const Tensor& input, const Tensor& dw_weight, const Tensor& pw_weight,
                             const Optional& dw_bias, const Optional& pw_bias, const Ints& stride, const Ints& padding,
                             const Ints& dilation, bool pointwise_first, int64_t inner_activation, bool need_input) {
  STD_TORCH_CHECK(sep_isa() >= 0, "SEPARABLE_ISA names an instruction set that this build or this processor lacks");
  STD_TORCH_CHECK(inner_activation >= SEP_NONE && inner_activation <= SEP_GELU, "separable_conv_backward: unknown activation");
  const Image x(input), g(grad);
  Job j{};
  j.pointwise_first = pointwise_first, j.activation = static_cast<int32_t>(inner_activation);
  j.c_in = pw_weight.size(1), j.c_out = pw_weight.size(0), j.channels = pointwise_first ? j.c_out : j.c_in;
  j.depthwise = depthwise_args(x, dw_weight, stride, padding, dilation, j.channels);
  const int64_t taps = j.depthwise.kernel[1] * j.depthwise.kernel[2], dw_size = j.channels * taps, pw_size = j.c_in * j.c_out;
  STD_TORCH_CHECK(x.size[1] == j.c_in && g.size[0] == x.size[0] && g.size[1] == j.c_out && g.size[2] == j.depthwise.out[1] &&
                      g.size[3] == j.depthwise.out[2],
                  "separable_conv_backward: wrong gradient");
  j.batch = x.size[0], j.in_pixels = x.pixels(), j.out_pixels = g.pixels();
  j.inner_pixels = pointwise_first ? j.in_pixels : j.out_pixels;
  const float *dw = floats_of(dw_weight, dw_size), *pw = floats_of(pw_weight, pw_size);
  j.dw_bias = dw_bias ? floats_of(*dw_bias, j.channels) : nullptr;
  j.pw_bias = pw_bias ? floats_of(*pw_bias, j.c_out) : nullptr;
  Tensor gx = empty_like_layout(need_input ? sizes_of(input) : Ints{0}, need_input, ScalarType::Float);
  Tensor gdw = empty_like_layout(sizes_of(dw_weight), false, ScalarType::Float);
  Tensor gpw = empty_like_layout(sizes_of(pw_weight), false, ScalarType::Float);
  Tensor gdb = empty_strided({j.channels}, {1}, ScalarType::Float), gpb = empty_strided({j.c_out}, {1}, ScalarType::Float);
  j.x = input.const_data_ptr<float>(), j.g = grad.const_data_ptr<float>();
  j.gx = need_input ? gx.mutable_data_ptr<float>() : nullptr;

  const auto *pointwise = sep_pointwise_conv();
  const auto* forward = sep_depthwise_conv();
  const auto* backward = sep_depthwise_conv_backward();
  j.images = std::max<int64_t>(1, kPixels / j.inner_pixels);
  j.depthwise.weight = dw;
  j.depthwise.batch = j.images;
  // How the weights are packed depends on the layout, and a single channel lies in both.
  j.depthwise.x = view_of(nullptr, j.channels, j.depthwise.size[1], j.depthwise.size[2]);
  j.depthwise.y = view_of(nullptr, j.channels, j.depthwise.out[1], j.depthwise.out[2]);
  const Buffer packed_forward(forward->packed_floats(&j.depthwise) * 4), packed_backward(backward->packed_floats(&j.depthwise) * 4);
  j.depthwise.packed = packed_backward.floats();
  backward->pack_weight(&j.depthwise);
  j.dw_packed_backward = packed_backward.floats();
  j.depthwise.packed = packed_forward.floats();
  forward->pack_weight(&j.depthwise);
  const Buffer pw_forward(pointwise->packed_bytes(j.c_in, j.c_out, SEP_F32)), pw_backward(pointwise->packed_bytes(j.c_out, j.c_in, SEP_F32));
  pointwise->pack_weight(pw, j.c_in, 1, j.c_in, j.c_out, SEP_F32, pw_forward.data);
  pointwise->pack_weight(pw, 1, j.c_in, j.c_out, j.c_in, SEP_F32, pw_backward.data);
  j.pw_forward = pw_forward.data, j.pw_backward = pw_backward.data;

  const int64_t steps = (j.batch + j.images - 1) / j.images, groups = std::min(steps, kGroups);
  const int64_t own = dw_size + j.channels + pw_size + j.c_out, inner = j.images * j.inner_pixels * j.channels;
  const Buffer all(std::max<int64_t>(1, groups) * own * 4);
  std::fill_n(all.floats(), std::max<int64_t>(1, groups) * own, 0.0f);
  torch::stable::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
    const Buffer z(inner * 4), a(inner * 4), ga(inner * 4);
    for (int64_t group = begin; group < end; ++group) {
      const Sums sums(all.floats() + group * own, dw_size, j.channels, pw_size);
      for (int64_t step = steps * group / groups; step < steps * (group + 1) / groups; ++step) {
        const int64_t first = step * j.images, count = std::min(j.images, j.batch - first);
        (j.pointwise_first ? step_pointwise_first : step_depthwise_first)(j, first, count, sums, z.floats(), a.floats(), ga.floats());
      }
    }
  });
  for (int64_t group = 1; group < groups; ++group)
    for (int64_t i = 0; i < own; ++i) all.floats()[i] += all.floats()[group * own + i];
  const Sums total(all.floats(), dw_size, j.channels, pw_size);
  std::copy_n(total.dw, dw_size, gdw.mutable_data_ptr<float>());
  std::copy_n(total.pw, pw_size, gpw.mutable_data_ptr<float>());
  std::copy_n(total.db, j.channels, gdb.mutable_data_ptr<float>());
  std::copy_n(total.pb, j.c_out, gpb.mutable_data_ptr<float>());
  return {gx, gdw, gpw, gdb, gpb};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(separable, CPU, m) { m.impl("separable_conv_backward", TORCH_BOX(&separable_conv_backward)); }
