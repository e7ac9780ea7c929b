// What torch calls: checks, memory and threads around the kernels. Shapes are checked in the user's words in Python; here
// only what would make a kernel touch memory that is not its own.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <memory>
#include <optional>
#include <vector>

#include "depthwise_conv.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

void need_isa() {
  STD_TORCH_CHECK(sep_isa() >= 0, "SEPARABLE_ISA names an instruction set that this build or this processor lacks");
}

Tensor empty_strided(const Ints& sizes, const Ints& strides, int32_t dtype) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype,
                                                  aoti_torch_device_type_cpu(), -1, &handle));
  return Tensor(handle);
}

// Strides of (N, C, ...) in channels-last memory.
Ints channels_last_strides(const Ints& sizes) {
  Ints strides(sizes.size());
  strides[1] = 1;
  int64_t step = sizes[1];
  for (size_t i = sizes.size() - 1; i >= 2; --i) {
    strides[i] = step;
    step *= sizes[i];
  }
  strides[0] = step;
  return strides;
}

Ints contiguous_strides(const Ints& sizes) {
  Ints strides(sizes.size());
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0; step *= sizes[i]) strides[i] = step;
  return strides;
}

// The result lies in memory as the input does; functional/depthwise_conv_operator.py says the same.
bool is_channels_last(const Tensor& t) { return t.stride(1) == 1 && t.size(1) > 1; }

Ints sizes_of(const Tensor& t) {
  Ints sizes(t.dim());
  for (size_t i = 0; i < sizes.size(); ++i) sizes[i] = t.size(i);
  return sizes;
}

bool has_strides(const Tensor& t, const Ints& strides) {
  for (size_t i = 0; i < strides.size(); ++i)
    if (t.size(i) > 1 && t.stride(i) != strides[i]) return false;
  return true;
}

Tensor in_channels_last(const Tensor& t) {
  const Ints sizes = sizes_of(t), strides = channels_last_strides(sizes);
  if (has_strides(t, strides)) return t;
  Tensor copy = empty_strided(sizes, strides, aoti_torch_dtype_float32());
  torch::stable::copy_(copy, t);
  return copy;
}

Tensor depthwise_conv_inference(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
                      const Ints& padding, const Ints& dilation, int64_t activation) {
  need_isa();
  const int64_t dims = input.dim() - 2;
  STD_TORCH_CHECK(dims >= 1 && dims <= 3 && weight.dim() == dims + 2, "depthwise_conv: wrong number of dimensions");
  STD_TORCH_CHECK(input.scalar_type() == ScalarType::Float && weight.scalar_type() == ScalarType::Float,
                  "depthwise_conv: float32 only");
  STD_TORCH_CHECK(weight.size(0) == input.size(1) && weight.size(1) == 1, "depthwise_conv: wrong weight");
  STD_TORCH_CHECK(activation == SEP_NONE, "depthwise_conv: no activation");
  sep_depthwise_conv_args a{};
  a.batch = input.size(0);
  a.channels = input.size(1);
  a.filters = weight.size(0);
  Ints out{a.batch, a.filters};
  for (int i = 0; i < 3; ++i) {
    const int64_t j = i - (3 - dims);  // dimension j of the tensor's own, or one of size 1 before it
    a.size[i] = j < 0 ? 1 : input.size(j + 2);
    a.kernel[i] = j < 0 ? 1 : static_cast<int32_t>(weight.size(j + 2));
    a.stride[i] = j < 0 ? 1 : static_cast<int32_t>(stride[j]);
    a.dilation[i] = j < 0 ? 1 : static_cast<int32_t>(dilation[j]);
    a.padding[i] = j < 0 ? 0 : static_cast<int32_t>(padding[2 * j]);
    const int64_t padded = j < 0 ? 1 : a.size[i] + padding[2 * j] + padding[2 * j + 1];
    a.out[i] = (padded - a.dilation[i] * (a.kernel[i] - 1) - 1) / a.stride[i] + 1;
    STD_TORCH_CHECK(a.out[i] > 0, "depthwise_conv: empty output");
    if (j >= 0) out.push_back(a.out[i]);
  }
  Tensor x = in_channels_last(input), w = torch::stable::contiguous(weight);
  Tensor y = empty_strided(out, channels_last_strides(out), aoti_torch_dtype_float32());
  std::optional<Tensor> b;
  if (bias) b = torch::stable::contiguous(*bias);
  const sep_depthwise_conv_kernels* kernels = sep_depthwise_conv();
  std::unique_ptr<float[]> packed(new float[kernels->packed_floats(&a)]);
  kernels->pack_weight(&a, w.const_data_ptr<float>(), packed.get());
  a.x = x.const_data_ptr<float>();
  a.weight = packed.get();
  a.bias = b ? b->const_data_ptr<float>() : nullptr;
  a.y = y.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, kernels->units(&a), 1, [&](int64_t begin, int64_t end) { kernels->forward(&a, begin, end); });
  if (is_channels_last(input)) return y;
  Tensor result = empty_strided(out, contiguous_strides(out), aoti_torch_dtype_float32());
  torch::stable::copy_(result, y);
  return result;
}

Tensor depthwise_conv(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
                      const Ints& padding, const Ints& dilation) {
  return depthwise_conv_inference(input, weight, bias, stride, padding, dilation, SEP_NONE);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(separable, CPU, m) {
  m.impl("depthwise_conv", TORCH_BOX(&depthwise_conv));
  m.impl("depthwise_conv_inference", TORCH_BOX(&depthwise_conv_inference));
}
