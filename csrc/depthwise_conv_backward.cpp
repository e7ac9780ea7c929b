// Gradients of a depthwise convolution: of input, weight and bias, from one reading of x and of the output's gradient g.
//
// A unit is some images and some blocks of channels. Of each it copies bands of rows of g and x into scratch memory,
// channels-last and with their zeros, and makes from them the band's rows of gx and its share of the weight's gradient, in registers for
// the length of a row. Shares of the units are kept apart and added in order: the same bits for any number of threads.
#include "depthwise_conv.h"

#include "block_layout.h"
#include "depthwise_plan.h"

namespace {

typedef sep_depthwise_conv_args Args;

enum { kTileBytes = 384 * 1024, kUnits = 16, kSegment = 256 };  // a sum in registers is of at most kSegment products

typedef struct Tap {
  const float* x;  // input that output 0 meets
  float* sum;      // kLanes floats for each tap
} Tap;

// sum[k] += g[o] * x[o * S + k] for N lines of KW neighbouring taps, P outputs sharing what they read.
template <int KW, int N, int S, int P>
SEP_INLINE void accumulate(const Tap* taps, const float* g, int64_t outputs, int64_t step) {
  V sum[N][KW];
  for (int64_t o = 0, end = 0; o < outputs;) {
    for (int n = 0; n < N; ++n)
      for (int k = 0; k < KW; ++k) sum[n][k] = V{};
    end = at_most(end + kSegment, outputs);
    for (; o + P <= end; o += P) {
      V grad[P];
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) grad[p] = load(g + (o + p) * kLanes);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n)
#pragma GCC unroll 32
        for (int j = 0; j < (P - 1) * S + KW; ++j) {
          const V x = load(taps[n].x + o * S * kLanes + j * kLanes);
#pragma GCC unroll 8
          for (int p = 0; p < P; ++p)
            if (j - p * S >= 0 && j - p * S < KW) sum[n][j - p * S] = fma(grad[p], x, sum[n][j - p * S]);
        }
    }
    for (; o < end; ++o) {
      const V grad = load(g + o * kLanes);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n)
#pragma GCC unroll 8
        for (int k = 0; k < KW; ++k) sum[n][k] = fma(grad, load(taps[n].x + (o * S + k) * kLanes), sum[n][k]);
    }
    for (int n = 0; n < N; ++n)
      for (int k = 0; k < KW; ++k) store(taps[n].sum + k * kLanes, load(taps[n].sum + k * kLanes) + sum[n][k]);
  }
}

// The same for single taps, with any distance between the inputs of neighbouring outputs.
template <int N>
SEP_INLINE void accumulate_singles(const Tap* taps, const float* g, int64_t outputs, int64_t step) {
  for (int64_t o = 0, end = 0; o < outputs;) {
    V sum[N] = {};
    end = at_most(end + kSegment, outputs);
    for (; o < end; ++o) {
      const V grad = load(g + o * kLanes);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[n] = fma(grad, load(taps[n].x + o * step), sum[n]);
    }
    for (int n = 0; n < N; ++n) store(taps[n].sum, load(taps[n].sum) + sum[n]);
  }
}

typedef void (*Accumulate)(const Tap* taps, int64_t count, const float* g, int64_t outputs, int64_t step);

template <int KW, int S>
void accumulate_lines(const Tap* taps, int64_t count, const float* g, int64_t outputs, int64_t step) {
  constexpr int most = (kRegisters > 16 ? 15 : 10) / KW, N = most > 3 ? 3 : most;
  int64_t i = 0;
  for (; i + N <= count; i += N) accumulate<KW, N, S, 4>(taps + i, g, outputs, step);
  for (; i < count; ++i) accumulate<KW, 1, S, 4>(taps + i, g, outputs, step);
}

void accumulate_any(const Tap* taps, int64_t count, const float* g, int64_t outputs, int64_t step) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) accumulate_singles<8>(taps + i, g, outputs, step);
  if (i + 4 <= count) {
    accumulate_singles<4>(taps + i, g, outputs, step);
    i += 4;
  }
  for (; i < count; ++i) accumulate_singles<1>(taps + i, g, outputs, step);
}

template <int S>
Accumulate accumulate_of(int64_t length) {
  switch (length) {
    case 2: return accumulate_lines<2, S>;
    case 3: return accumulate_lines<3, S>;
    case 4: return accumulate_lines<4, S>;
    case 5: return accumulate_lines<5, S>;
    case 7: return accumulate_lines<7, S>;
    default: return accumulate_any;
  }
}

typedef struct Job {
  Plan forward, adjoint;
  int64_t rows, bands;              // of g, in each band; bands of a plane
  int64_t g_rows, x_rows;           // room for that many rows of a plane
  int64_t g_row, x_row;             // floats of a row
  int64_t images, chunks;           // of a unit; units over the batch
  int64_t blocks, groups;           // of a unit; units over the channels
  int64_t length;                   // of lines of taps
  Accumulate accumulate;
} Job;

// By the shapes alone, never by the number of threads.
Job make_job(const Args* a) {
  Job j = {};
  j.forward = make_plan(a, false);
  j.adjoint = make_plan(a, true);
  const Axis *x = &j.forward.axis[2], *g = &j.adjoint.axis[2], *y = &j.forward.axis[1];
  j.x_row = at_least(x->high - x->low, 1) * kLanes;
  j.g_row = (at_least(g->high, a->out[2]) - at_most(g->low, 0)) * kLanes;
  const int64_t S = y->phase[0].advance, reach = (y->kernel - 1) * y->phase[0].dilation;
  j.rows = at_least(kTileBytes / 4 / (a->size[0] * S * j.x_row + a->out[0] * j.g_row), 4);
  j.rows = at_most(j.rows, y->out);
  j.bands = (y->out + j.rows - 1) / j.rows;
  j.g_rows = at_most(j.rows + reach / S + 1, y->out);
  j.x_rows = at_most((j.rows - 1) * S + reach + 1, y->in);
  j.images = (a->batch + kUnits - 1) / kUnits;
  j.chunks = j.images ? (a->batch + j.images - 1) / j.images : 0;
  j.blocks = j.forward.blocks;
  while (j.blocks > 1 && j.chunks * ((j.forward.blocks + j.blocks - 1) / j.blocks) < kUnits) j.blocks = (j.blocks + 1) / 2;
  j.groups = (j.forward.blocks + j.blocks - 1) / j.blocks;
  const Phase* px = &x->phase[0];
  j.length = px->dilation > 1 && px->taps > 1 ? 0 : line_length(px->taps, px->advance);
  if (j.length == 1) j.length = 0;
  j.accumulate = px->advance == 2 ? accumulate_of<2>(j.length) : accumulate_of<1>(j.length);
  return j;
}

int64_t share_floats(const Job* j) { return (j->forward.taps + 1) * kLanes; }  // of one block: each tap's sum, and the bias's

int64_t packed_floats(const Args* a) {
  const Plan p = make_plan(a, true);
  return packed_taps(&p);
}

void pack_weight(const Args* a) {
  const Plan p = make_plan(a, true);
  pack_taps(&p, a->weight, a->packed);
}

int64_t units(const Args* a) {
  const Job j = make_job(a);
  return j.chunks * j.groups;
}

int64_t partial_floats(const Args* a) {
  const Job j = make_job(a);
  return j.blocks * share_floats(&j);
}

int64_t line_bytes(const Job* j) {
  const int64_t one = sizeof(sep_line) > sizeof(Tap) ? sizeof(sep_line) : sizeof(Tap);
  return (j->forward.taps * one + 63) / 64 * 64;
}

int64_t scratch_bytes(const Args* a) {
  const Job j = make_job(a);
  const int64_t floats = a->out[0] * j.g_rows * j.g_row + a->size[0] * j.x_rows * j.x_row + a->size[2] * kLanes;
  return line_bytes(&j) + floats * 4;
}

// One row of g against the rows of x that its taps meet.
void add_weight_row(const Job* j, Rows x, const float* g, int64_t z, int64_t y, float* share, Tap* taps) {
  const Axis *az = &j->forward.axis[0], *ay = &j->forward.axis[1];
  const Phase *pz = &az->phase[0], *py = &ay->phase[0], *px = &j->forward.axis[2].phase[0];
  const int64_t outputs = px->count, whole = j->length ? px->taps / j->length : 0;
  Tap *line = taps, *single = taps + j->forward.taps;
  for (int64_t tz = 0; tz < pz->taps; ++tz) {
    const int64_t iz = z * pz->advance + pz->start + tz * pz->dilation;
    if (iz < 0 || iz >= az->in) continue;
    for (int64_t ty = 0; ty < py->taps; ++ty) {
      const int64_t iy = y * py->advance + py->start + ty * py->dilation;
      if (iy < 0 || iy >= ay->in) continue;
      const float* from = x.data + iz * x.zs + iy * x.ys + px->start * kLanes;
      float* sum = share + (tz * ay->kernel + ty) * px->taps * kLanes;
      for (int64_t l = 0; l < whole; ++l) *line++ = Tap{from + l * j->length * kLanes, sum + l * j->length * kLanes};
      for (int64_t t = whole * j->length; t < px->taps; ++t)
        *--single = Tap{from + t * px->dilation * kLanes, sum + t * kLanes};
    }
  }
  const int64_t step = px->advance * kLanes;
  if (line > taps) j->accumulate(taps, line - taps, g, outputs, step);
  if (single < taps + j->forward.taps) accumulate_any(single, taps + j->forward.taps - single, g, outputs, step);
}

void add_bias_row(const float* g, int64_t outputs, float* share) {
  V sum[4] = {};
  int64_t o = 0;
  for (; o + 4 <= outputs; o += 4)
    for (int p = 0; p < 4; ++p) sum[p] += load(g + (o + p) * kLanes);
  for (; o < outputs; ++o) sum[0] += load(g + o * kLanes);
  store(share, load(share) + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
}

void run_band(const Args* a, const Job* j, char* scratch, int64_t n, int64_t block, int64_t band, float* share) {
  const Axis *ax = &j->forward.axis[2], *ay = &j->forward.axis[1], *gx = &j->adjoint.axis[2];
  const int64_t S = a->stride[1], P = a->padding[1], reach = (a->kernel[1] - 1) * (int64_t)a->dilation[1];
  const int64_t o0 = band * j->rows, o1 = at_most(o0 + j->rows, ay->out), last = band == j->bands - 1;
  // Rows of x whose gradient this band writes, and rows of g and x that it reads.
  const int64_t i0 = band ? at_most(at_least(o0 * S - P, 0), ay->in) : 0;
  const int64_t i1 = last ? ay->in : at_most(at_least(o1 * S - P, 0), ay->in);
  const int64_t g0 = i0 < i1 ? at_most(at_least(floor_div(i0 + P - reach, S), 0), o0) : o0, g1 = o1;
  const int64_t x0 = at_least(o0 * S - P, 0), x1 = at_most((o1 - 1) * S - P + reach + 1, ay->in);

  const int64_t wide = first_channel(&j->forward, block), m = j->forward.multiplier, used = j->forward.used;
  const int64_t mx = a->filters > a->channels ? m : 1, my = a->channels > a->filters ? m : 1;
  const Block x_block = {wide / mx, used / mx, mx}, g_block = {wide / my, used / my, my};
  float* g_rows = (float*)(scratch + line_bytes(j));
  float* x_rows = g_rows + a->out[0] * j->g_rows * j->g_row;
  float* result = x_rows + a->size[0] * j->x_rows * j->x_row;
  const int64_t g_low = at_most(gx->low, 0), g_plane = j->g_rows * j->g_row, x_plane = j->x_rows * j->x_row;
  const Rows g = {g_rows - g0 * j->g_row - g_low * kLanes, g_plane, j->g_row, kLanes, true};
  const Rows x = {x_rows - x0 * j->x_row - ax->low * kLanes, x_plane, j->x_row, kLanes, true};
  for (int64_t z = 0; z < a->out[0]; ++z)
    for (int64_t y = g0; y < g1; ++y)
      read_any_row(&a->y, a->dtype, g_block, n, z, y, a->out[2], g_low, g_low + j->g_row / kLanes,
                   g_rows + z * g_plane + (y - g0) * j->g_row);
  if (a->partial) {
    for (int64_t z = 0; z < a->size[0]; ++z)
      for (int64_t y = x0; y < x1; ++y)
        read_any_row(&a->x, a->dtype, x_block, n, z, y, a->size[2], ax->low, ax->low + j->x_row / kLanes,
                     x_rows + z * x_plane + (y - x0) * j->x_row);
    for (int64_t z = 0; z < a->out[0]; ++z)
      for (int64_t y = o0; y < o1; ++y) {
        const float* row = g.data + z * g.zs + y * g.ys;
        add_weight_row(j, x, row, z, y, share, (Tap*)scratch);
        add_bias_row(row, a->out[2], share + j->forward.taps * kLanes);
      }
  }
  if (!a->gx.data) return;
  const bool direct = a->dtype == SEP_F32 && a->gx.stride[1] == 1 && mx == 1 && used == kLanes;
  const int64_t* s = a->gx.stride;
  for (int64_t z = 0; z < a->size[0]; ++z)
    for (int64_t y = i0; y < i1; ++y) {
      Rows out = {result, 0, 0, kLanes, false};
      if (direct) out = Rows{(float*)a->gx.data + n * s[0] + wide, s[2], s[3], s[4], false};
      convolve_row(&j->adjoint, g, out, z, y, a->packed + block * j->adjoint.taps * kLanes, kNoBias, SEP_NONE, (sep_line*)scratch);
      if (!direct) write_any_row(&a->gx, a->dtype, x_block, n, z, y, a->size[2], result, V{}, SEP_NONE);
    }
}

void run(const Args* a, void* scratch, int64_t begin, int64_t end) {
  const Job j = make_job(a);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t group = unit % j.groups, chunk = unit / j.groups;
    const int64_t n1 = at_most((chunk + 1) * j.images, a->batch), b1 = at_most((group + 1) * j.blocks, j.forward.blocks);
    float* shares = a->partial ? a->partial + unit * j.blocks * share_floats(&j) : nullptr;
    for (int64_t n = chunk * j.images; n < n1; ++n)
      for (int64_t band = 0; band < j.bands; ++band)
        for (int64_t b = group * j.blocks; b < b1; ++b)
          run_band(a, &j, (char*)scratch, n, b, band, shares ? shares + (b - group * j.blocks) * share_floats(&j) : nullptr);
  }
}

void finish(const Args* a, float* gw, float* gb) {
  const Job j = make_job(a);
  const Plan* p = &j.forward;
  const int64_t my = a->channels > a->filters ? p->multiplier : 1;
  for (int64_t b = 0; b < p->blocks; ++b)
    for (int64_t tap = 0; tap <= p->taps; ++tap) {
      V sum = {};
      for (int64_t chunk = 0; chunk < j.chunks; ++chunk) {
        const int64_t unit = chunk * j.groups + b / j.blocks;
        sum += load(a->partial + (unit * j.blocks + b % j.blocks) * share_floats(&j) + tap * kLanes);
      }
      for (int64_t l = 0; l < p->used; ++l) {
        const int64_t c = first_channel(p, b) + l;
        if (tap < p->taps && gw) gw[c * p->taps + tap] = sum[l];
        if (tap == p->taps && gb && c % my == 0) gb[c / my] = sum[l];
      }
    }
}

}  // namespace

extern "C" const sep_depthwise_conv_backward_kernels SEP_TABLE(depthwise_conv_backward) = {
    kLanes, packed_floats, scratch_bytes, units, partial_floats, pack_weight, run, finish};
