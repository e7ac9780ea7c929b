// torch's entry to batch norm in training (batch_norm.h): memory and threads around the kernels. Tensors are dense channels-last
// float32; the Python beside it makes them so.
#include <tuple>

#include "batch_norm.h"
#include "ops.h"

namespace {

Ints sizes_of(const Tensor& t) {
  Ints sizes(t.dim());
  for (size_t i = 0; i < sizes.size(); ++i) sizes[i] = t.size(static_cast<int64_t>(i));
  return sizes;
}

void check_dense(const Tensor& t) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.dim() >= 2, "batch_norm: float32 of two dimensions or more");
  int64_t step = t.size(1);
  bool dense = t.size(1) == 1 || is_channels_last(t);
  for (int64_t i = t.dim() - 1; i >= 0; --i) {
    if (i == 1) continue;
    dense = dense && (t.size(i) == 1 || t.stride(i) == step);
    step *= t.size(i);
  }
  STD_TORCH_CHECK(dense || t.numel() == 0, "batch_norm: memory must be dense, channels last");
}

const float* vector_of(const Tensor& t, int64_t channels) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.numel() == channels && t.dim() == 1 && (channels == 1 || t.stride(0) == 1),
                  "batch_norm: one float32 for each channel");
  return t.const_data_ptr<float>();
}

sep_batch_norm_args arguments_of(const Tensor& x, const Optional& weight, const Optional& bias, double epsilon, int64_t activation) {
  STD_TORCH_CHECK(sep_isa() >= 0, "SEPARABLE_ISA names an instruction set that this build or this processor lacks");
  STD_TORCH_CHECK(activation >= SEP_NONE && activation <= SEP_GELU, "batch_norm: unknown activation");
  check_dense(x);
  STD_TORCH_CHECK(x.numel() > 0, "batch_norm: empty input");
  sep_batch_norm_args a{};
  a.channels = x.size(1);
  a.rows = x.numel() / a.channels;
  a.x = x.const_data_ptr<float>();
  a.weight = weight ? vector_of(*weight, a.channels) : nullptr;
  a.bias = bias ? vector_of(*bias, a.channels) : nullptr;
  a.epsilon = static_cast<float>(epsilon);
  a.activation = static_cast<int32_t>(activation);
  return a;
}

template <class Run>
void over_units(const sep_batch_norm_args& a, const Run& run) {
  torch::stable::parallel_for(0, sep_batch_norm()->units(&a), 4, [&](int64_t begin, int64_t end) { run(&a, begin, end); });
}

using Three = std::tuple<Tensor, Tensor, Tensor>;

// y, mean and variance.
Three batch_norm(const Tensor& x, const Optional& weight, const Optional& bias, double epsilon, int64_t activation) {
  const auto* kernels = sep_batch_norm();
  sep_batch_norm_args a = arguments_of(x, weight, bias, epsilon, activation);
  Tensor y = empty_like_layout(sizes_of(x), true, ScalarType::Float);
  Tensor mean = empty_strided({a.channels}, {1}, ScalarType::Float), variance = empty_strided({a.channels}, {1}, ScalarType::Float);
  const Buffer partial(kernels->units(&a) * 2 * a.channels * 4), coefficients(4 * a.channels * 4);
  a.y = y.mutable_data_ptr<float>();
  a.mean = mean.mutable_data_ptr<float>(), a.variance = variance.mutable_data_ptr<float>();
  a.partial = partial.floats(), a.coefficients = coefficients.floats();
  over_units(a, kernels->moments);
  kernels->finish_moments(&a);
  over_units(a, kernels->normalize);
  return {y, mean, variance};
}

// Gradients of x, weight and bias.
Three batch_norm_backward(const Tensor& grad, const Tensor& x, const Optional& weight, const Optional& bias, const Tensor& mean,
                          const Tensor& variance, double epsilon, int64_t activation) {
  const auto* kernels = sep_batch_norm();
  sep_batch_norm_args a = arguments_of(x, weight, bias, epsilon, activation);
  check_dense(grad);
  STD_TORCH_CHECK(sizes_of(grad) == sizes_of(x), "batch_norm_backward: wrong gradient");
  Tensor gx = empty_like_layout(sizes_of(x), true, ScalarType::Float);
  Tensor gw = empty_strided({a.channels}, {1}, ScalarType::Float), gb = empty_strided({a.channels}, {1}, ScalarType::Float);
  const Buffer partial(kernels->units(&a) * 2 * a.channels * 4), coefficients(4 * a.channels * 4);
  a.g = grad.const_data_ptr<float>();
  a.y = gx.mutable_data_ptr<float>();
  a.mean = const_cast<float*>(vector_of(mean, a.channels)), a.variance = const_cast<float*>(vector_of(variance, a.channels));
  a.weight_grad = gw.mutable_data_ptr<float>(), a.bias_grad = gb.mutable_data_ptr<float>();
  a.partial = partial.floats(), a.coefficients = coefficients.floats();
  kernels->set_coefficients(&a);
  over_units(a, kernels->sums);
  kernels->finish_sums(&a);
  over_units(a, kernels->gradient);
  return {gx, gw, gb};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(separable, CPU, m) {
  m.impl("batch_norm", TORCH_BOX(&batch_norm));
  m.impl("batch_norm_backward", TORCH_BOX(&batch_norm_backward));
}
