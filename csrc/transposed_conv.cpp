// Transposed convolution: one dense convolution for each phase of its results, or where channels are filtered on their own one
// depthwise convolution.
#include "transposed_conv.h"

#include "dense_conv.h"
#include "depthwise_conv.h"

namespace {

typedef sep_transposed_conv_args Args;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t phases(const Args* a) { return (int64_t)a->stride[0] * a->stride[1]; }

// Along one dimension the results phase, phase + stride, ...: how many there are, and the taps that they meet. Tap k meets result q at
// place (q + padding - k * dilation) / stride of x, where that is whole.
struct Taps {
  int64_t out, count, dilation, before;  // `before`: places before the first that the first result meets, negative for places after it
};

Taps taps_of(const Args* a, int d, int64_t phase) {
  const int64_t s = a->stride[d], step = a->dilation[d], shift = phase + a->padding[d];
  Taps t = {phase < a->out[d] ? (a->out[d] - phase + s - 1) / s : 0, 0, 1, 0};
  int64_t first = -1, last = -1;
  for (int64_t k = 0; k < a->kernel[d]; ++k) {
    if ((shift - k * step) % s) continue;
    if (first < 0) first = k;
    else if (t.count == 1) t.dilation = (k - first) * step / s;
    last = k, ++t.count;
  }
  t.before = t.count ? (last * step - shift) / s : 0;
  return t;
}

// The dense convolution of a phase, without its weight.
sep_dense_conv_args phase_of(const Args* a, int64_t phase) {
  const int64_t index[2] = {phase / a->stride[1], phase % a->stride[1]};
  sep_dense_conv_args d = {};
  d.bias = a->bias, d.batch = a->batch, d.channels = a->channels, d.filters = a->filters, d.groups = a->groups;
  d.activation = a->activation, d.residual_first = a->residual_first, d.product = a->product;
  const int64_t y_stride[3] = {a->out[0] * a->out[1] * a->filters, a->out[1] * a->filters, a->filters};
  int64_t x_at = 0, y_at = 0;
  bool empty = false;
  for (int i = 0; i < 4; ++i) d.x_stride[i] = a->x_stride[i];
  d.y_stride[0] = y_stride[0];
  for (int i = 0; i < 2; ++i) {
    const Taps t = taps_of(a, i, index[i]);
    const int64_t cut = t.before < 0 ? least(-t.before, a->size[i]) : 0;  // places of x before the first that is met
    x_at += cut * a->x_stride[2 + i], y_at += index[i] * y_stride[1 + i];
    d.size[i] = a->size[i] - cut, d.padding[i] = (int32_t)most(t.before, 0);
    d.out[i] = t.out, d.kernel[i] = (int32_t)most(t.count, 1), d.stride[i] = 1, d.dilation[i] = (int32_t)t.dilation;
    d.y_stride[1 + i] = a->stride[i] * y_stride[1 + i];
    empty = empty || !t.count;
  }
  if (empty)  // nothing of x is met, so that its NaN stays out of what is bias alone
    for (int i = 0; i < 2; ++i) d.size[i] = 0, d.kernel[i] = 1, d.padding[i] = 0, d.dilation[i] = 1;
  d.x = a->x ? a->x + x_at : nullptr;
  d.y = a->y ? a->y + y_at : nullptr;
  d.residual = a->residual ? a->residual + y_at : nullptr;
  return d;
}

bool is_depthwise(const Args* a) { return a->groups > 1 && a->groups == a->channels && a->groups == a->filters; }

sep_view view(const float* data, int64_t image, int64_t row, int64_t pixel) { return {(void*)data, {image, 1, 0, row, pixel}}; }

sep_depthwise_conv_args depthwise_of(const sep_dense_conv_args& d) {
  sep_depthwise_conv_args a = {};
  a.x = view(d.x, d.x_stride[0], d.x_stride[2], d.x_stride[3]), a.y = view(d.y, d.y_stride[0], d.y_stride[1], d.y_stride[2]);
  a.bias = d.bias, a.packed = (float*)d.weight, a.batch = d.batch, a.channels = d.channels, a.filters = d.filters;
  a.activation = d.activation, a.dtype = SEP_F32;
  a.size[0] = a.out[0] = a.kernel[0] = a.stride[0] = a.dilation[0] = 1;
  for (int i = 0; i < 2; ++i) {
    a.size[i + 1] = d.size[i], a.out[i + 1] = d.out[i], a.kernel[i + 1] = d.kernel[i], a.stride[i + 1] = 1;
    a.padding[i + 1] = d.padding[i], a.dilation[i + 1] = d.dilation[i];
  }
  return a;
}

// A phase as the kernel that computes it sees it.
struct Part {
  bool depthwise;
  sep_dense_conv_args dense;
  sep_depthwise_conv_args deep;

  Part(const Args* a, int64_t phase) : depthwise(is_depthwise(a)), dense(phase_of(a, phase)), deep(depthwise_of(dense)) {}

  int64_t packed_bytes() const {
    return depthwise ? SEP_TABLE(depthwise_conv).packed_floats(&deep) * 4 : SEP_TABLE(dense_conv).packed_bytes(&dense);
  }
  int64_t weights() const { return dense.filters * (dense.channels / dense.groups) * dense.kernel[0] * dense.kernel[1]; }
  void pack(const float* weight, void* to) {
    deep.weight = weight, deep.packed = (float*)to;
    if (depthwise) SEP_TABLE(depthwise_conv).pack_weight(&deep);
    else SEP_TABLE(dense_conv).pack_weight(&dense, weight, to);
  }
  int64_t units() const {
    if (!dense.out[0] || !dense.out[1]) return 0;  // of a stride longer than the results
    return depthwise ? SEP_TABLE(depthwise_conv).units(&deep) : SEP_TABLE(dense_conv).units(&dense);
  }
  int64_t scratch_bytes() const {
    if (!units()) return 0;
    return depthwise ? SEP_TABLE(depthwise_conv).scratch_bytes(&deep) : SEP_TABLE(dense_conv).scratch_bytes(&dense);
  }
  void run(const void* weight, void* scratch, int64_t begin, int64_t end) {
    dense.weight = weight, deep.packed = (float*)weight;
    if (depthwise) SEP_TABLE(depthwise_conv).run(&deep, scratch, begin, end);
    else SEP_TABLE(dense_conv).run(&dense, scratch, begin, end);
  }
};

int64_t packed_bytes(const Args* a) {
  int64_t bytes = 0;
  for (int64_t phase = 0; phase < phases(a); ++phase) bytes += Part(a, phase).packed_bytes();
  return bytes;
}

void pack_weight(const Args* a, const float* weight, void* packed) {
  char* to = (char*)packed;
  for (int64_t phase = 0; phase < phases(a); ++phase) {
    Part part(a, phase);
    part.pack(weight, to);
    weight += part.weights(), to += part.packed_bytes();
  }
}

int64_t units(const Args* a) {
  int64_t all = 0;
  for (int64_t phase = 0; phase < phases(a); ++phase) all += Part(a, phase).units();
  return all;
}

int64_t scratch_bytes(const Args* a) {
  int64_t bytes = 0;
  for (int64_t phase = 0; phase < phases(a); ++phase) bytes = most(bytes, Part(a, phase).scratch_bytes());
  return bytes;
}

void run(const Args* a, void* scratch, int64_t begin, int64_t end) {
  const char* weight = (const char*)a->weight;
  int64_t before = 0;  // units of the phases before
  for (int64_t phase = 0; phase < phases(a) && before < end; ++phase) {
    Part part(a, phase);
    const int64_t count = part.units(), first = most(begin - before, 0), last = least(end - before, count);
    if (first < last) part.run(weight, scratch, first, last);
    weight += part.packed_bytes(), before += count;
  }
}

}  // namespace

extern "C" const sep_transposed_conv_kernels SEP_TABLE(transposed_conv) = {packed_bytes, pack_weight, units, scratch_bytes, run};
