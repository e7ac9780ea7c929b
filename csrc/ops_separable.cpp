// torch's entry to the fused separable convolution (separable_conv.h), for inference: weights are packed in each call, which takes
// less than the pass over them that any kernel makes. Shapes are checked in the user's words in Python; here only what would
// make a kernel touch memory that is not its own.
#include "ops.h"
#include "relayout.h"
#include "separable_conv.h"

namespace {

Tensor dense(const Tensor& t) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, "separable_conv: float32 only");
  return torch::stable::contiguous(t);
}

const float* optional_floats(const Optional& t) { return t ? t->const_data_ptr<float>() : nullptr; }

// (batch, channels, rows, columns) of a tensor of three or four dimensions: a sequence is an image of one row.
struct Image {
  explicit Image(const Tensor& t) : size{t.size(0), t.size(1), 1, t.size(t.dim() - 1)} {
    if (t.dim() == 4) size[2] = t.size(2);
    stride[0] = t.stride(0), stride[1] = t.stride(1), stride[3] = t.stride(t.dim() - 1);
    stride[2] = t.dim() == 4 ? t.stride(2) : 0;
  }
  bool lies_as_kernels_read() const {
    const int64_t expected[4] = {size[1] * size[2] * size[3], 1, size[1] * size[3], size[1]};
    for (int i = 0; i < 4; ++i)
      if (size[i] > 1 && stride[i] != expected[i]) return false;
    return true;
  }
  int64_t size[4], stride[4];
};

Tensor result(const Tensor& like, int64_t channels, const int64_t out[2]) {
  Ints sizes{like.size(0), channels, out[0], out[1]};
  if (like.dim() == 3) sizes.erase(sizes.begin() + 2);
  return empty_like_layout(sizes, is_channels_last(like), ScalarType::Float);
}

// Between channels-last memory and whatever strides `other` has; to_kernels says which way.
void copy_layout(const Image& other, float* outside, float* inside, bool to_kernels) {
  sep_relayout_args a{};
  a.x = to_kernels ? outside : inside;
  a.y = to_kernels ? inside : outside;
  const int64_t last[4] = {other.size[1] * other.size[2] * other.size[3], 1, other.size[1] * other.size[3], other.size[1]};
  for (int i = 0; i < SEP_RELAYOUT_DIMS; ++i) a.size[i] = 1;
  for (int i = 0; i < 4; ++i) {
    a.size[i] = other.size[i];
    a.x_stride[i] = to_kernels ? other.stride[i] : last[i];
    a.y_stride[i] = to_kernels ? last[i] : other.stride[i];
  }
  torch::stable::parallel_for(0, sep_relayout()->units(&a), 4,
                              [&](int64_t begin, int64_t end) { sep_relayout()->run(&a, begin, end); });
}

sep_depthwise_step depthwise_step(const Image& x, const Tensor& weight, const Ints& stride, const Ints& padding,
                                  const Ints& dilation, int64_t channels) {
  const int64_t dims = weight.dim() - 2;
  STD_TORCH_CHECK(static_cast<int64_t>(stride.size()) == dims && static_cast<int64_t>(dilation.size()) == dims &&
                      static_cast<int64_t>(padding.size()) == 2 * dims,
                  "separable_conv: wrong number of dimensions");
  STD_TORCH_CHECK(weight.size(0) == channels && weight.size(1) == 1, "separable_conv: wrong depthwise weight");
  sep_depthwise_step d{};
  d.batch = x.size[0], d.channels = channels, d.makes = d.adds = 1;
  for (int i = 0; i < 2; ++i) {
    const int64_t j = i - (2 - dims);  // dimension j of the tensor's own, or one of size 1 before it
    const int64_t before = j < 0 ? 0 : padding[2 * j], after = j < 0 ? 0 : padding[2 * j + 1];
    d.size[i] = x.size[2 + i];
    d.kernel[i] = j < 0 ? 1 : static_cast<int32_t>(weight.size(2 + j));
    d.stride[i] = j < 0 ? 1 : static_cast<int32_t>(stride[j]);
    d.dilation[i] = j < 0 ? 1 : static_cast<int32_t>(dilation[j]);
    d.padding[i] = static_cast<int32_t>(before);
    const int64_t rest = d.size[i] + before + after - static_cast<int64_t>(d.dilation[i]) * (d.kernel[i] - 1) - 1;
    STD_TORCH_CHECK(d.kernel[i] > 0 && d.stride[i] > 0 && d.dilation[i] > 0 && before >= 0 && rest >= 0,
                    "separable_conv: empty output");
    d.out[i] = rest / d.stride[i] + 1;
  }
  return d;
}

Tensor separable_conv_inference(const Tensor& input, const Tensor& dw_weight, const Tensor& pw_weight, const Optional& dw_bias,
                                const Optional& pw_bias, const Ints& stride, const Ints& padding, const Ints& dilation,
                                bool pointwise_first, int64_t inner_activation, int64_t activation) {
  STD_TORCH_CHECK(sep_isa() >= 0, "SEPARABLE_ISA names an instruction set that this build or this processor lacks");
  STD_TORCH_CHECK((input.dim() == 3 || input.dim() == 4) && dw_weight.dim() == input.dim() && pw_weight.dim() == input.dim() &&
                      input.scalar_type() == ScalarType::Float,
                  "separable_conv: three or four dimensions of float32");
  const auto *pointwise = sep_pointwise_conv();
  const auto *chain = sep_separable_conv();
  const Tensor dw = dense(dw_weight), pw = dense(pw_weight);
  Optional db, pb;
  if (dw_bias) db = dense(*dw_bias);
  if (pw_bias) pb = dense(*pw_bias);
  const Image x(input);
  const int64_t c_in = pw.size(1), c_out = pw.size(0), channels = pointwise_first ? c_out : c_in;
  STD_TORCH_CHECK(x.size[1] == c_in && pw.numel() == c_in * c_out, "separable_conv: wrong pointwise weight");
  STD_TORCH_CHECK((!db || db->numel() == channels) && (!pb || pb->numel() == c_out), "separable_conv: wrong bias");
  sep_separable_conv_args a{};
  a.depthwise = depthwise_step(x, dw, stride, padding, dilation, channels);
  a.depthwise.bias = optional_floats(db);
  a.depthwise.activation = static_cast<int32_t>(pointwise_first ? activation : inner_activation);
  sep_pointwise_conv_args& p = pointwise_first ? a.expand : a.project;
  p.c_in = c_in, p.c_out = c_out, p.bias = optional_floats(pb);
  p.activation = static_cast<int32_t>(pointwise_first ? inner_activation : activation);

  Tensor y = result(input, c_out, a.depthwise.out);
  if (y.numel() == 0) return y;
  const Buffer dw_packed(chain->packed_floats(&a.depthwise) * 4), pw_packed(pointwise->packed_bytes(c_in, c_out, SEP_F32));
  chain->pack_depthwise(&a.depthwise, dw.const_data_ptr<float>(), dw_packed.floats());
  pointwise->pack_weight(pw.const_data_ptr<float>(), c_in, 1, c_in, c_out, SEP_F32, pw_packed.data);
  a.depthwise.weight = dw_packed.floats();
  p.weight = pw_packed.data;

  const Image out(y);
  const bool in_place = x.lies_as_kernels_read(), out_place = out.lies_as_kernels_read();
  const Buffer x_copy(in_place ? 0 : input.numel() * 4), y_copy(out_place ? 0 : y.numel() * 4);
  float* source = const_cast<float*>(input.const_data_ptr<float>());
  if (!in_place) copy_layout(x, source, x_copy.floats(), true);
  a.x = in_place ? source : x_copy.floats();
  a.y = out_place ? y.mutable_data_ptr<float>() : y_copy.floats();
  const int64_t scratch_bytes = chain->scratch_bytes(&a);
  torch::stable::parallel_for(0, chain->units(&a), 1, [&](int64_t begin, int64_t end) {
    const Buffer scratch(scratch_bytes);
    chain->run(&a, scratch.data, begin, end);
  });
  if (!out_place) copy_layout(out, y.mutable_data_ptr<float>(), y_copy.floats(), false);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(separable, CPU, m) { m.impl("separable_conv_inference", TORCH_BOX(&separable_conv_inference)); }
