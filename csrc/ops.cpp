// What torch calls: checks, memory and threads around the kernels. Shapes are checked in the user's words in Python; here
// only what would make a kernel touch memory that is not its own.
#include <bit>
#include <tuple>

#include "depthwise_conv.h"
#include "ops.h"

namespace {

Ints sizes_of(const Tensor& t) {
  Ints sizes(t.dim());
  for (size_t i = 0; i < sizes.size(); ++i) sizes[i] = t.size(static_cast<int64_t>(i));
  return sizes;
}

const void* data_of(const Tensor& t) {
  return t.scalar_type() == ScalarType::Float ? static_cast<const void*>(t.const_data_ptr<float>())
                                              : t.const_data_ptr<torch::headeronly::BFloat16>();
}

sep_view view_of(const Tensor& t) {
  sep_view v{const_cast<void*>(data_of(t)), {t.stride(0), t.stride(1), 0, 0, 0}};
  const int64_t dims = t.dim() - 2;
  for (int64_t i = 0; i < dims; ++i) v.stride[5 - dims + i] = t.stride(2 + i);
  return v;
}

// The values of a small tensor as float32, one after another.
std::vector<float> floats_of(const Tensor& t) {
  const Tensor dense = t.is_contiguous() ? t : torch::stable::contiguous(t);  // which asks torch's dispatcher by name
  std::vector<float> values(dense.numel());
  if (dense.scalar_type() == ScalarType::Float) {
    const float* p = dense.const_data_ptr<float>();
    values.assign(p, p + values.size());
  } else {
    const auto* p = reinterpret_cast<const uint16_t*>(data_of(dense));
    for (size_t i = 0; i < values.size(); ++i) values[i] = std::bit_cast<float>(static_cast<uint32_t>(p[i]) << 16);
  }
  return values;
}

void write_floats(const Tensor& t, const float* values) {
  if (t.scalar_type() == ScalarType::Float) {
    std::copy(values, values + t.numel(), t.mutable_data_ptr<float>());
  } else {
    auto* p = t.mutable_data_ptr<torch::headeronly::BFloat16>();
    for (int64_t i = 0; i < t.numel(); ++i) p[i] = values[i];
  }
}

// Splits [0, units) over torch's threads, each with its own scratch memory; not for less work than a thread costs.
template <class Run>
void in_parallel(int64_t units, double macs, int64_t scratch_bytes, const Run& run) {
  if (units == 0) return;
  const auto grain = static_cast<int64_t>(1 + 200000.0 * static_cast<double>(units) / (macs + 1));
  torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    Buffer scratch(scratch_bytes);
    run(scratch.data, begin, end);
  });
}

sep_depthwise_conv_args depthwise_args(const Tensor& x, const Tensor& weight, const Ints& stride, const Ints& padding,
                                       const Ints& dilation, int64_t lanes) {
  const int64_t dims = x.dim() - 2;
  STD_TORCH_CHECK(sep_isa() >= 0, "SEPARABLE_ISA names an instruction set that this build or this processor lacks");
  STD_TORCH_CHECK(dims >= 1 && dims <= 3 && weight.dim() == dims + 2, "depthwise_conv: wrong number of dimensions");
  STD_TORCH_CHECK(static_cast<int64_t>(stride.size()) == dims && static_cast<int64_t>(padding.size()) == 2 * dims &&
                      static_cast<int64_t>(dilation.size()) == dims,
                  "depthwise_conv: stride, padding and dilation must fit the dimensions");
  STD_TORCH_CHECK(x.scalar_type() == weight.scalar_type() &&
                      (x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16),
                  "depthwise_conv: float32 or bfloat16, the same for all");
  sep_depthwise_conv_args a{};
  a.dtype = x.scalar_type() == ScalarType::Float ? SEP_F32 : SEP_BF16;
  a.batch = x.size(0);
  a.channels = x.size(1);
  a.filters = weight.size(0);
  const bool multiplies = weight.size(1) == 1 && a.channels > 0 && a.filters % a.channels == 0;
  STD_TORCH_CHECK(multiplies || a.filters * weight.size(1) == a.channels, "depthwise_conv: wrong weight");
  const int64_t multiplier = multiplies ? a.filters / a.channels : weight.size(1);
  STD_TORCH_CHECK(multiplier <= lanes, "depthwise_conv: depth multiplier above ", lanes, " on this instruction set");
  for (int i = 0; i < 3; ++i) {
    const int64_t j = i - (3 - dims);  // dimension j of the tensor's own, or one of size 1 before it
    a.size[i] = j < 0 ? 1 : x.size(j + 2);
    const int64_t k = j < 0 ? 1 : weight.size(j + 2), s = j < 0 ? 1 : stride[j], d = j < 0 ? 1 : dilation[j];
    const int64_t before = j < 0 ? 0 : padding[2 * j], after = j < 0 ? 0 : padding[2 * j + 1];
    STD_TORCH_CHECK(k >= 1 && k <= SEP_MAX_KERNEL && s >= 1 && s <= SEP_MAX_STRIDE && d >= 1 && before >= 0 && after >= 0,
                    "depthwise_conv: kernel, stride, padding or dilation out of range");
    const int64_t rest = a.size[i] + before + after - d * (k - 1) - 1;
    STD_TORCH_CHECK(a.size[i] > 0 && rest >= 0 && (a.size[i] + before + after) < INT32_MAX, "depthwise_conv: wrong size");
    a.kernel[i] = static_cast<int32_t>(k);
    a.stride[i] = static_cast<int32_t>(s);
    a.dilation[i] = static_cast<int32_t>(d);
    a.padding[i] = static_cast<int32_t>(before);
    a.out[i] = rest / s + 1;
  }
  return a;
}

Ints result_sizes(const sep_depthwise_conv_args& a, int64_t dims) {
  Ints sizes{a.batch, a.filters};
  for (int64_t i = 3 - dims; i < 3; ++i) sizes.push_back(a.out[i]);
  return sizes;
}

double macs_of(const sep_depthwise_conv_args& a) {
  double macs = static_cast<double>(a.batch) * static_cast<double>(a.channels > a.filters ? a.channels : a.filters);
  for (int i = 0; i < 3; ++i) macs *= static_cast<double>(a.out[i]) * a.kernel[i];
  return macs;
}

Tensor depthwise_conv_inference(const Tensor& x, const Tensor& weight, const Optional& bias, const Ints& stride,
                                const Ints& padding, const Ints& dilation, int64_t activation) {
  const sep_depthwise_conv_kernels* kernels = sep_depthwise_conv();
  sep_depthwise_conv_args a = depthwise_args(x, weight, stride, padding, dilation, kernels->lanes);
  STD_TORCH_CHECK(!bias || bias->numel() == a.filters, "depthwise_conv: wrong bias");
  a.activation = static_cast<int32_t>(activation);
  Tensor y = empty_like_layout(result_sizes(a, x.dim() - 2), is_channels_last(x), x.scalar_type());
  const std::vector<float> w = floats_of(weight), b = bias ? floats_of(*bias) : std::vector<float>();
  a.weight = w.data();
  a.bias = bias ? b.data() : nullptr;
  a.x = view_of(x);
  a.y = view_of(y);
  Buffer packed(kernels->packed_floats(&a) * 4);
  a.packed = packed.floats();
  kernels->pack_weight(&a);
  in_parallel(kernels->units(&a), macs_of(a), kernels->scratch_bytes(&a),
              [&](void* scratch, int64_t begin, int64_t end) { kernels->run(&a, scratch, begin, end); });
  return y;
}

Tensor depthwise_conv(const Tensor& x, const Tensor& weight, const Optional& bias, const Ints& stride, const Ints& padding,
                      const Ints& dilation) {
  return depthwise_conv_inference(x, weight, bias, stride, padding, dilation, SEP_NONE);
}

// Gradients of input, weight and bias; an empty tensor for one that is not asked for.
std::tuple<Tensor, Tensor, Tensor> depthwise_conv_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                           const Ints& stride, const Ints& padding, const Ints& dilation,
                                                           bool need_x, bool need_weight, bool need_bias) {
  const sep_depthwise_conv_backward_kernels* kernels = sep_depthwise_conv_backward();
  sep_depthwise_conv_args a = depthwise_args(x, weight, stride, padding, dilation, kernels->lanes);
  STD_TORCH_CHECK(sizes_of(grad) == result_sizes(a, x.dim() - 2) && grad.scalar_type() == x.scalar_type(),
                  "depthwise_conv_backward: wrong gradient");
  const ScalarType dtype = x.scalar_type();
  Tensor gx = empty_like_layout(need_x ? sizes_of(x) : Ints{0}, need_x && is_channels_last(x), dtype);
  Tensor gw = empty_like_layout(need_weight ? sizes_of(weight) : Ints{0}, false, dtype);
  Tensor gb = empty_like_layout(Ints{need_bias ? a.filters : 0}, false, dtype);
  const std::vector<float> w = floats_of(weight);
  a.weight = w.data();
  a.x = view_of(x);
  a.y = view_of(grad);
  if (need_x) a.gx = view_of(gx);
  a.without_bias = !need_bias;
  const int64_t units = kernels->units(&a), shares = need_weight || need_bias ? units * kernels->partial_floats(&a) : 0;
  Buffer packed(kernels->packed_floats(&a) * 4), partial(shares * 4);
  std::fill(partial.floats(), partial.floats() + shares, 0.0f);
  a.packed = packed.floats();
  a.partial = shares || (!units && (need_weight || need_bias)) ? partial.floats() : nullptr;
  kernels->pack_weight(&a);
  in_parallel(units, 2 * macs_of(a), kernels->scratch_bytes(&a),
              [&](void* scratch, int64_t begin, int64_t end) { kernels->run(&a, scratch, begin, end); });
  if (need_weight || need_bias) {
    std::vector<float> sums(w.size()), bias_sums(a.filters);
    kernels->finish(&a, sums.data(), bias_sums.data());
    if (need_weight) write_floats(gw, sums.data());
    if (need_bias) write_floats(gb, bias_sums.data());
  }
  return {gx, gw, gb};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(separable, CPU, m) {
  m.impl("depthwise_conv", TORCH_BOX(&depthwise_conv));
  m.impl("depthwise_conv_inference", TORCH_BOX(&depthwise_conv_inference));
  m.impl("depthwise_conv_backward", TORCH_BOX(&depthwise_conv_backward));
}
