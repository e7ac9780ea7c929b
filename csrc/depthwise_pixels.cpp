// Depthwise convolution of channels-last maps, stride 1 or 2, of 3x3 also with multiplier 2 or 4: nothing is copied, zeros
// around the map are taps left out.
//
// Backward a group of input pixels side by side is summed in registers. Each vector of g serves both gradients as it is
// read: input i and tap k belong to output (i + padding - k) / stride, so gx[i] sums g times the tap, and the tap's gradient
// sums g times x[i]. Blocks of channels take turns within a group as far as their taps and sums stay in the first-level
// cache: memory is read much as it lies, a row ahead towards the second-level cache, and large results are written past
// the caches.
// The bias's gradient reads g once more, an image at a time.
// A unit forward is some rows of one image; backward some images and some blocks of channels, whose sums are kept apart and
// added in order: the same bits for any number of threads.
#include "depthwise_special.h"

#include "depthwise_rows.h"
#include "depthwise_tile.h"

namespace {

typedef sep_depthwise_conv_args Args;

enum { kUnits = 16, kForwardRows = 4, kNearBytes = 24 * 1024 };
enum { kCacheBytes = 2 << 20, kStreamBytes = 8 << 20 };       // of the second level; results that no cache is asked to keep
enum { kSegment = 252 };                                      // products that one sum adds before it goes to the share
enum { kWide = kRegisters > 16 ? 7 : 4, kSome = kWide / 2 };  // input pixels summed at once

bool is_dense(const sep_view* v, int64_t channels, int64_t width) {
  return v->stride[1] == 1 && v->stride[4] == channels && v->stride[3] == channels * width;
}

int fits(const Args* a, int gradients) {
  const int32_t K = a->kernel[2], S = a->stride[2];
  const int64_t m = a->channels ? a->filters / a->channels : 0;
  if (a->channels * m != a->filters || (m != 1 && !(K == 3 && (m == 2 || m == 4))) || a->filters < kLanes) return 0;
  if (a->size[0] != 1 || a->kernel[0] != 1 || a->padding[0] || a->out[0] != 1) return 0;
  if ((K != 3 && K != 5 && K != 7) || S > 2 || a->kernel[1] != K || a->stride[1] != S) return 0;
  if (a->dilation[1] != 1 || a->dilation[2] != 1 || a->x.stride[1] != 1 || a->y.stride[1] != 1) return 0;
  if (gradients) return !a->gx.data || is_dense(&a->gx, a->channels, a->size[2]);
  if (a->dtype == SEP_BF16 && !is_clamp(a->activation)) return 0;  // would be rounded before it and behind it
  return is_dense(&a->x, a->channels, a->size[2]) && is_dense(&a->y, a->filters, a->out[2]);
}

// Whether a dense result whose vectors are all aligned is written past the caches.
bool streams(const Args* a, const sep_view* v, int64_t channels, const int64_t* size) {
  const int64_t vector = kLanes * 4, bytes = a->batch * channels * size[1] * size[2] * 4;
  return a->dtype == SEP_F32 && bytes >= kStreamBytes && channels % kLanes == 0 && (uintptr_t)v->data % vector == 0;
}

// The depthwise step of a chain, for the forward direction.
sep_depthwise_step step_of(const Args* a) {
  sep_depthwise_step s = {};
  s.weight = a->packed, s.bias = a->bias, s.batch = a->batch, s.channels = a->filters, s.activation = a->activation;
  s.makes = s.adds = 1;
  for (int i = 0; i < 2; ++i) {
    s.size[i] = a->size[i + 1], s.out[i] = a->out[i + 1], s.kernel[i] = a->kernel[i + 1], s.stride[i] = a->stride[i + 1];
    s.padding[i] = a->padding[i + 1], s.dilation[i] = 1;
  }
  return s;
}

int64_t packed(const Args* a) {
  const Step s = step_of(a);
  return packed_floats(&s);
}

void pack_weight(const Args* a) {
  const Step s = step_of(a);
  pack_depthwise(&s, a->weight, a->packed);
}

int64_t bands(const Args* a) { return (a->out[1] + kForwardRows - 1) / kForwardRows; }

template <class T, int M>
void run_forward(const Args* a, int64_t begin, int64_t end) {
  const Step s = step_of(a);
  const bool past = streams(a, &a->y, a->filters, a->out) && is_clamp(a->activation);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t n = unit / bands(a), first = unit % bands(a) * kForwardRows;
    T* y = (T*)a->y.data + n * a->y.stride[0] + first * a->y.stride[3];
    convolve_rows<T, M>(s, (const T*)a->x.data + n * a->x.stride[0], y, first, at_most(first + kForwardRows, s.out[0]), past);
  }
  if (past) end_stream();
}

template <class T>
void forward_of(const Args* a, int64_t begin, int64_t end) {
  const int64_t m = a->filters / a->channels;
  m == 1 ? run_forward<T, 1>(a, begin, end) : m == 2 ? run_forward<T, 2>(a, begin, end) : run_forward<T, 4>(a, begin, end);
}

void forward(const Args* a, void*, int64_t begin, int64_t end) {
  a->dtype == SEP_BF16 ? forward_of<uint16_t>(a, begin, end) : forward_of<float>(a, begin, end);
}

// How the gradients are divided, by the shapes alone.
typedef struct Job {
  int64_t taps, blocks;          // blocks of kLanes channels in all; the last overlaps the one before
  int64_t images, chunks;        // of a unit; units over the batch
  int64_t own, groups;           // blocks of a unit; units over the channels
  int64_t near;                  // blocks that take turns within a group of pixels
  bool ahead, streams;           // reads the next row ahead; writes past the caches
} Job;

Job make_job(const Args* a) {
  Job j = {};
  j.taps = a->kernel[1] * a->kernel[2];
  j.blocks = (a->filters + kLanes - 1) / kLanes;
  j.images = (a->batch + kUnits - 1) / kUnits;
  j.chunks = j.images ? (a->batch + j.images - 1) / j.images : 0;
  j.own = j.blocks;
  while (j.own > 1 && j.chunks * ((j.blocks + j.own - 1) / j.own) < kUnits) j.own = (j.own + 1) / 2;
  j.groups = (j.blocks + j.own - 1) / j.own;
  j.near = at_least(kNearBytes / (2 * 4 * kLanes * j.taps), 1);
  const int64_t inputs = a->channels * a->size[1] * a->size[2], outputs = a->filters * a->out[1] * a->out[2];
  j.ahead = (2 * inputs + outputs) * (a->dtype == SEP_F32 ? 4 : 2) > kCacheBytes;
  j.streams = a->gx.data && a->channels == a->filters && streams(a, &a->gx, a->channels, a->size);
  return j;
}

int64_t share_floats(const Job* j) { return (j->taps + 1) * kLanes; }  // of one block: each tap's sum, and the bias's

int64_t units(const Args* a, int gradients) {
  if (!gradients) return a->batch * bands(a);
  const Job j = make_job(a);
  return j.chunks * j.groups;
}

int64_t partial_floats(const Args* a) {
  const Job j = make_job(a);
  return j.own * share_floats(&j);
}

// Sums of each tap, of a unit's blocks, and a pixel of all channels for a gradient that nobody wants.
int64_t scratch_bytes(const Args* a, int gradients) {
  if (!gradients) return 0;
  const Job j = make_job(a);
  return (j.own * j.taps * kLanes + a->channels) * 4;
}

// Input pixels side by side, and where their window of g lies; at a block's first channel.
template <class T>
struct Pixels {
  const T *x, *g;  // g: the output of tap (first_tap, 0) and pixel 0, were it a whole number of strides away, rounded down
  T* gx;
  const float* w;  // of all taps
  float* sums;     // likewise
  int64_t x_pixel, g_pixel, gx_pixel, g_row;
  int64_t low, high;   // outputs of the row, counted from g, that exist: low <= m < high
  int32_t first_tap, last_tap;  // rows of the kernel, `stride` apart, whose outputs exist
  bool streams;
};

// P pixels; pixel q and tap k meet output (q + R - k) / S from g on, where S divides it.
// Weighs: the tap's gradient too.
template <class T, bool Weighs, int M, int K, int S, int R, int P, bool Checked>
SEP_INLINE void gradients_of(const Pixels<T>* at, const T* from, const T* g, T* to, const float* w, float* sums) {
  const VI index = spread_index(M);
  V sum[P], x[P];
#pragma GCC unroll 8
  for (int q = 0; q < P; ++q) sum[q] = V{}, x[q] = Weighs ? spread<M>(from + q * at->x_pixel, index) : V{};
  w += at->first_tap * K * kLanes;
  sums += at->first_tap * K * kLanes;
  for (int32_t ky = at->first_tap; ky < at->last_tap; ky += S, g -= at->g_row, w += S * K * kLanes, sums += S * K * kLanes) {
    V tap[K], part[K];
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) tap[k] = load(w + k * kLanes), part[k] = Weighs ? load(sums + k * kLanes) : V{};
#pragma GCC unroll 16
    for (int m = -((K - 1 - R) / S); m <= (P - 1 + R) / S; ++m) {
      if (Checked && (m < at->low || m >= at->high)) continue;
      const V v = load(g + m * at->g_pixel);
#pragma GCC unroll 8
      for (int q = 0; q < P; ++q) {
        const int k = q + R - m * S;
        if (k < 0 || k >= K) continue;
        sum[q] = fma(v, tap[k], sum[q]);
        if (Weighs) part[k] = fma(v, x[q], part[k]);
      }
    }
#pragma GCC unroll 8
    for (int k = 0; Weighs && k < K; ++k) store(sums + k * kLanes, part[k]);
  }
#pragma GCC unroll 8
  for (int q = 0; q < P; ++q) {
    T* gx = to + q * at->gx_pixel;
    if (M == 1) put(gx, sum[q], at->streams);
    else store_tail(gx, add_shares(sum[q], M), kLanes / M);
  }
}

// A group of pixels for `blocks` blocks of channels from `block` on.
template <class T, bool Weighs, int M, int K, int S, int R, int P, bool Checked>
void each_block(const Pixels<T>* at, int64_t filters, int64_t block, int64_t blocks) {
  const float* w = at->w;
  float* sums = at->sums;
  for (int64_t b = block; b < block + blocks; ++b, w += K * K * kLanes, sums += K * K * kLanes) {
    const int64_t f = block_start(b * kLanes, filters);
    gradients_of<T, Weighs, M, K, S, R, P, Checked>(at, at->x + f / M, at->g + f, at->gx + f / M, w, sums);
  }
}

template <class T>
using EachBlock = void (*)(const Pixels<T>* at, int64_t filters, int64_t block, int64_t blocks);
template <class T>
struct Ways {
  EachBlock<T> inside, wide, narrow, single;  // all but the first look where the map ends
};
#define SEP_WAYS(M, K, S, R)                                                                        \
  {each_block<T, Weighs, M, K, S, R, kWide, false>, each_block<T, Weighs, M, K, S, R, kWide, true>, \
   each_block<T, Weighs, M, K, S, R, kSome, true>, each_block<T, Weighs, M, K, S, R, 1, true>}
#define SEP_STRIDES(M, K) {SEP_WAYS(M, K, 1, 0), SEP_WAYS(M, K, 2, 0), SEP_WAYS(M, K, 2, 1)}
template <class T, bool Weighs>
constexpr Ways<T> kWays[5][3] = {SEP_STRIDES(1, 3), SEP_STRIDES(1, 5), SEP_STRIDES(1, 7), SEP_STRIDES(2, 3), SEP_STRIDES(4, 3)};

// Pixels of the next row, of the channels that come with these.
template <class T>
SEP_INLINE void prefetch_pixels(const T* p, int64_t pixel, int64_t pixels, int64_t channels) {
  for (int64_t q = 0; q < pixels; ++q) prefetch(p + q * pixel, channels * (int64_t)sizeof(T), 0, 1, false);
}

// The gradients that pixels [first, last) of input row `iy` of image n have a part in, for `near` blocks from `block` on.
template <class T>
void run_row(const Args* a, const Job* j, int64_t n, int64_t iy, int64_t first, int64_t last, int64_t block, int64_t near, float* sums,
             T* unwanted) {
  const int64_t K = a->kernel[2], S = a->stride[2], top = iy + a->padding[1], m = a->filters / a->channels;
  const int64_t form = m == 1 ? K / 2 - 1 : m == 2 ? 3 : 4;  // in kWays
  Pixels<T> at = {};
  at.w = a->packed + block * j->taps * kLanes, at.sums = sums, at.streams = j->streams;
  at.x_pixel = a->x.stride[4], at.g_pixel = a->y.stride[4], at.g_row = a->y.stride[3];
  at.first_tap = (int32_t)(top % S), at.last_tap = (int32_t)at_most(K, top + 1);
  while (at.first_tap < at.last_tap && (top - at.first_tap) / S >= a->out[1]) at.first_tap += (int32_t)S;
  const T* x = (const T*)a->x.data + n * a->x.stride[0] + iy * a->x.stride[3];
  const T* g = (const T*)a->y.data + n * a->y.stride[0] + (top - at.first_tap) / S * at.g_row;
  T* gx = a->gx.data ? (T*)a->gx.data + n * a->gx.stride[0] + iy * a->gx.stride[3] : unwanted;
  at.gx_pixel = a->gx.data ? a->gx.stride[4] : 0;
  const bool x_ahead = j->ahead && iy + 1 < a->size[1], g_ahead = j->ahead && top % S == 0 && top / S + 1 < a->out[1];
  const T* next = (const T*)a->y.data + n * a->y.stride[0] + (top / S + 1) * at.g_row;
  for (int64_t ix = first; ix < last;) {
    const int64_t left = ix + a->padding[2], base = left >> (S - 1), R = left & (S - 1), c = block * kLanes;  // S is 1 or 2
    const Ways<T>* ways = a->partial ? &kWays<T, true>[form][S - 1 + R] : &kWays<T, false>[form][S - 1 + R];
    at.x = x + ix * at.x_pixel, at.g = g + base * at.g_pixel, at.gx = gx + ix * at.gx_pixel;
    at.low = -base, at.high = a->out[2] - base;
    const bool inside = (K - 1 - R) >> (S - 1) <= base && base + ((kWide - 1 + R) >> (S - 1)) < a->out[2];
    const int64_t rest = last - ix, pixels = rest >= kWide ? kWide : rest >= kSome ? kSome : 1;
    if (x_ahead) prefetch_pixels(at.x + a->x.stride[3] + c / m, at.x_pixel, pixels, near * kLanes / m);
    const int64_t first_output = ix >> (S - 1), outputs = at_most(a->out[2] - first_output, (pixels + S - 1) >> (S - 1));
    if (g_ahead) prefetch_pixels(next + first_output * at.g_pixel + c, at.g_pixel, outputs, near * kLanes);
    const EachBlock<T> run = pixels == 1 ? ways->single : pixels < kWide ? ways->narrow : inside ? ways->inside : ways->wide;
    run(&at, a->filters, block, near);
    ix += pixels;
  }
}

void add_to_share(const Job* j, float* sums, int64_t blocks, float* share) {
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t t = 0; t < j->taps; ++t) {
      float *sum = sums + (b * j->taps + t) * kLanes, *to = share + b * share_floats(j) + t * kLanes;
      store(to, load(to) + load(sum));
      store(sum, V{});
    }
}

template <class T>
void add_bias(const Args* a, const Job* j, int64_t n, int64_t block, int64_t blocks, float* share) {
  for (int64_t y = 0; y < a->out[1]; ++y) {
    const T* g = (const T*)a->y.data + n * a->y.stride[0] + y * a->y.stride[3];
    for (int64_t b = 0; b < blocks; ++b) {
      const T* from = g + block_start((block + b) * kLanes, a->filters);
      float* to = share + b * share_floats(j) + j->taps * kLanes;
      for (int64_t first = 0; first < a->out[2]; first += kSegment) {
        V sum = {};
        for (int64_t x = first; x < at_most(first + kSegment, a->out[2]); ++x) sum += load(from + x * a->y.stride[4]);
        store(to, load(to) + sum);
      }
    }
  }
}

template <class T>
void run_backward(const Args* a, void* scratch, int64_t begin, int64_t end) {
  const Job j = make_job(a);
  float *sums = (float*)scratch, *end_of_sums = sums + j.own * j.taps * kLanes;
  const int64_t W = a->size[2], rows = at_least(kSegment / W, 1);  // rows until sums go to the share, or parts of one
  for (float* p = sums; p < end_of_sums; p += kLanes) store(p, V{});
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t block = unit % j.groups * j.own, blocks = at_most(j.own, j.blocks - block), chunk = unit / j.groups;
    float* share = a->partial ? a->partial + unit * j.own * share_floats(&j) : nullptr;
    for (int64_t n = chunk * j.images; n < at_most((chunk + 1) * j.images, a->batch); ++n) {
      for (int64_t iy = 0; iy < a->size[1]; ++iy)
        for (int64_t first = 0; first < W; first += kSegment) {
          const int64_t last = at_most(first + kSegment, W);
          for (int64_t b = 0; b < blocks; b += j.near)
            run_row<T>(a, &j, n, iy, first, last, block + b, at_most(j.near, blocks - b), sums + b * j.taps * kLanes, (T*)end_of_sums);
          const bool full = last < W || iy % rows == rows - 1 || iy == a->size[1] - 1;
          if (share && full) add_to_share(&j, sums, blocks, share);
        }
      if (share && !a->without_bias) add_bias<T>(a, &j, n, block, blocks, share);
    }
  }
  if (j.streams) end_stream();
}

void backward(const Args* a, void* scratch, int64_t begin, int64_t end) {
  if (a->dtype == SEP_BF16) return run_backward<uint16_t>(a, scratch, begin, end);
  run_backward<float>(a, scratch, begin, end);
}

void finish(const Args* a, float* gw, float* gb) {
  const Job j = make_job(a);
  for (int64_t b = 0; b < j.blocks; ++b)
    for (int64_t t = 0; t <= j.taps; ++t) {
      V sum = {};
      for (int64_t chunk = 0; chunk < j.chunks; ++chunk) {
        const int64_t unit = chunk * j.groups + b / j.own;
        sum += load(a->partial + (unit * j.own + b % j.own) * share_floats(&j) + t * kLanes);
      }
      for (int64_t l = 0; l < kLanes; ++l) {
        const int64_t c = block_start(b * kLanes, a->filters) + l;
        if (t < j.taps && gw) gw[c * j.taps + t] = sum[l];
        if (t == j.taps && gb) gb[c] = sum[l];
      }
    }
}

}  // namespace

extern "C" const sep_depthwise_special_kernels SEP_TABLE(depthwise_pixels) = {
    fits, packed, pack_weight, scratch_bytes, units, partial_floats, forward, backward, finish};
