// Depthwise convolution, float32, channels last. A unit is one output row.
#include "depthwise_conv.h"

#include "vec.h"

namespace {

typedef sep_depthwise_conv_args Args;

int64_t taps(const Args* a) { return (int64_t)a->kernel[0] * a->kernel[1] * a->kernel[2]; }
int64_t blocks(const Args* a) { return (a->filters + kLanes - 1) / kLanes; }

int64_t packed_floats(const Args* a) { return blocks(a) * taps(a) * kLanes; }

void pack_weight(const Args* a, const float* weight, float* packed) {
  const int64_t n = taps(a);
  for (int64_t b = 0; b < blocks(a); ++b)
    for (int64_t t = 0; t < n; ++t)
      for (int64_t l = 0; l < kLanes; ++l) {
        const int64_t c = b * kLanes + l;
        packed[(b * n + t) * kLanes + l] = c < a->filters ? weight[c * n + t] : 0;
      }
}

int64_t units(const Args* a) { return a->batch * a->out[0] * a->out[1]; }

void forward(const Args* a, int64_t begin, int64_t end) {
  const int64_t C = a->channels, n = taps(a);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t oy = unit % a->out[1], od = unit / a->out[1] % a->out[0], image = unit / a->out[1] / a->out[0];
    for (int64_t b = 0; b < blocks(a); ++b) {
      const int64_t c = b * kLanes, left = C - c < kLanes ? C - c : kLanes;
      for (int64_t ox = 0; ox < a->out[2]; ++ox) {
        V sum = a->bias ? load_tail(a->bias + c, left) : V{};
        for (int64_t kd = 0; kd < a->kernel[0]; ++kd)
          for (int64_t ky = 0; ky < a->kernel[1]; ++ky)
            for (int64_t kx = 0; kx < a->kernel[2]; ++kx) {
              const int64_t z = od * a->stride[0] + kd * a->dilation[0] - a->padding[0];
              const int64_t y = oy * a->stride[1] + ky * a->dilation[1] - a->padding[1];
              const int64_t x = ox * a->stride[2] + kx * a->dilation[2] - a->padding[2];
              if (z < 0 || z >= a->size[0] || y < 0 || y >= a->size[1] || x < 0 || x >= a->size[2]) continue;
              const float* p = (const float*)a->x + (((image * a->size[0] + z) * a->size[1] + y) * a->size[2] + x) * C + c;
              const float* w = a->weight + (b * n + (kd * a->kernel[1] + ky) * a->kernel[2] + kx) * kLanes;
              sum = fma(load_tail(p, left), load(w), sum);
            }
        store_tail((float*)a->y + (unit * a->out[2] + ox) * C + c, sum, left);
      }
    }
  }
}

}  // namespace

extern "C" const sep_depthwise_conv_kernels SEP_TABLE(depthwise_conv) = {packed_floats, pack_weight, units, forward};
