// Gradients of a depthwise convolution: of input, weight and bias, from one reading of x and of the output's gradient g.
//
// A unit is some images and some blocks of channels. Of each it copies bands of rows of g and x into scratch memory,
// channels-last and with their zeros, and makes from them the band's rows of gx and its share of the weight's gradient, in registers for
// the length of a row. Shares of the units are kept apart and added in order: the same bits for any number of threads.
#include "depthwise_conv.h"

#include "block_layout.h"
#include "depthwise_plan.h"
#include "depthwise_special.h"

namespace {

typedef sep_depthwise_conv_args Args;

enum { kTileBytes = 256 * 1024, kUnits = 16, kSegment = 256 };  // a sum in registers is of at most kSegment products

typedef struct Tap {
  const float* x;  // input that output 0 meets
  float* sum;      // kLanes floats for each tap
} Tap;

typedef struct Gradient {
  const float* data;  // g, kLanes floats an output
  int64_t rows, outputs;
  int64_t row, x_row;  // floats from one row to the next, of g and of the input
  int64_t step;        // floats of the input from one output to the next
} Gradient;

// sum[k] += g[o] * x[o * S + k] for N lines of KW neighbouring taps, P outputs sharing what they read.
template <int KW, int N, int S, int P>
SEP_INLINE void accumulate(const Tap* taps, const Gradient* grad) {
  for (int64_t begin = 0; begin < grad->outputs; begin += kSegment) {
    const int64_t end = at_most(begin + kSegment, grad->outputs);
    V sum[N][KW];
    for (int n = 0; n < N; ++n)
      for (int k = 0; k < KW; ++k) sum[n][k] = V{};
    for (int64_t r = 0; r < grad->rows; ++r) {
      const float* g = grad->data + r * grad->row;
      const float* x[N];
      for (int n = 0; n < N; ++n) x[n] = taps[n].x + r * grad->x_row;
      int64_t o = begin;
      for (; o + P <= end; o += P) {
        V parts[P];
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) parts[p] = load(g + (o + p) * kLanes);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n)
#pragma GCC unroll 32
          for (int j = 0; j < (P - 1) * S + KW; ++j) {
            const V a = load(x[n] + o * S * kLanes + j * kLanes);
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p)
              if (j - p * S >= 0 && j - p * S < KW) sum[n][j - p * S] = fma(parts[p], a, sum[n][j - p * S]);
          }
      }
      for (; o < end; ++o) {
        const V part = load(g + o * kLanes);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n)
#pragma GCC unroll 8
          for (int k = 0; k < KW; ++k) sum[n][k] = fma(part, load(x[n] + (o * S + k) * kLanes), sum[n][k]);
      }
    }
    for (int n = 0; n < N; ++n)
      for (int k = 0; k < KW; ++k) store(taps[n].sum + k * kLanes, load(taps[n].sum + k * kLanes) + sum[n][k]);
  }
}

// The same for single taps, with any distance between the inputs of neighbouring outputs.
template <int N>
SEP_INLINE void accumulate_singles(const Tap* taps, const Gradient* grad) {
  for (int64_t begin = 0; begin < grad->outputs; begin += kSegment) {
    const int64_t end = at_most(begin + kSegment, grad->outputs);
    V sum[N] = {};
    for (int64_t r = 0; r < grad->rows; ++r)
      for (int64_t o = begin; o < end; ++o) {
        const V part = load(grad->data + r * grad->row + o * kLanes);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) sum[n] = fma(part, load(taps[n].x + r * grad->x_row + o * grad->step), sum[n]);
      }
    for (int n = 0; n < N; ++n) store(taps[n].sum, load(taps[n].sum) + sum[n]);
  }
}

typedef void (*Accumulate)(const Tap* taps, int64_t count, const Gradient* grad);

template <int KW, int S>
void accumulate_lines(const Tap* taps, int64_t count, const Gradient* grad) {
  constexpr int most = (kRegisters > 16 ? 15 : 10) / KW, N = most > 3 ? 3 : most;
  int64_t i = 0;
  for (; i + N <= count; i += N) accumulate<KW, N, S, 4>(taps + i, grad);
  for (; i < count; ++i) accumulate<KW, 1, S, 4>(taps + i, grad);
}

void accumulate_any(const Tap* taps, int64_t count, const Gradient* grad) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) accumulate_singles<8>(taps + i, grad);
  if (i + 4 <= count) {
    accumulate_singles<4>(taps + i, grad);
    i += 4;
  }
  for (; i < count; ++i) accumulate_singles<1>(taps + i, grad);
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
  bool together;                    // all blocks of a unit are read before the first is computed
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
  // Channels-last the rows of all channels come along with one block's: a band of them fits the second-level cache, twice.
  j.together = a->x.stride[1] == 1 && a->y.stride[1] == 1;
  const int64_t blocks = j.together ? j.forward.blocks : 1;
  j.rows = at_least(kTileBytes / 4 / (a->size[0] * S * j.x_row + a->out[0] * j.g_row) / blocks, at_least(4, reach));
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

const sep_depthwise_special_kernels* special(const Args* a) { return depthwise_special(a, true); }

int64_t packed_floats(const Args* a) {
  if (const auto* s = special(a)) return s->packed_floats(a);
  const Plan p = make_plan(a, true);
  return packed_taps(&p);
}

void pack_weight(const Args* a) {
  if (const auto* s = special(a)) return s->pack_weight(a);
  const Plan p = make_plan(a, true);
  pack_taps(&p, a->weight, a->packed);
}

int64_t units(const Args* a) {
  if (const auto* s = special(a)) return s->units(a, true);
  const Job j = make_job(a);
  return j.chunks * j.groups;
}

int64_t partial_floats(const Args* a) {
  if (const auto* s = special(a)) return s->partial_floats(a);
  const Job j = make_job(a);
  return j.blocks * share_floats(&j);
}

int64_t line_bytes(const Job* j) {
  const int64_t one = sizeof(sep_line) > sizeof(Tap) ? sizeof(sep_line) : sizeof(Tap);
  return (j->forward.taps * one + 63) / 64 * 64;
}

// Scratch memory for the rows of g and x of one block.
int64_t band_floats(const Args* a, const Job* j) {
  return a->out[0] * j->g_rows * j->g_row + a->size[0] * j->x_rows * j->x_row;
}

int64_t scratch_bytes(const Args* a) {
  if (const auto* s = special(a)) return s->scratch_bytes(a, true);
  const Job j = make_job(a);
  return line_bytes(&j) + (band_floats(a, &j) * (j.together ? j.blocks : 1) + a->size[2] * kLanes) * 4;
}

// The taps along an axis that output o's window has inside the input; the others meet zeros.
typedef struct Span {
  int64_t begin, end;
} Span;

Span taps_inside(const Axis* a, int64_t o) {
  const Phase* f = &a->phase[0];
  const int64_t start = o * f->advance + f->start;
  if (start >= 0 && start + (f->taps - 1) * f->dilation < a->in) return Span{0, f->taps};
  const int64_t begin = at_least(ceil_div(-start, f->dilation), 0);
  return Span{begin, at_least(at_most(ceil_div(a->in - start, f->dilation), f->taps), begin)};
}

// Rows of g from (z, y) on, all of which meet the same taps, against the rows of x.
void add_weight_rows(const Job* j, Rows x, const float* g, int64_t rows, int64_t z, int64_t y, float* share, Tap* taps) {
  const Axis *az = &j->forward.axis[0], *ay = &j->forward.axis[1];
  const Phase *pz = &az->phase[0], *py = &ay->phase[0], *px = &j->forward.axis[2].phase[0];
  const Span sz = taps_inside(az, z), sy = taps_inside(ay, y);
  const int64_t whole = j->length ? px->taps / j->length : 0;
  Tap *line = taps, *single = taps + j->forward.taps;
  for (int64_t tz = sz.begin; tz < sz.end; ++tz)
    for (int64_t ty = sy.begin; ty < sy.end; ++ty) {
      const int64_t iz = z * pz->advance + pz->start + tz * pz->dilation, iy = y * py->advance + py->start + ty * py->dilation;
      const float* from = x.data + iz * x.zs + iy * x.ys + px->start * kLanes;
      float* sum = share + (tz * ay->kernel + ty) * px->taps * kLanes;
      for (int64_t l = 0; l < whole; ++l) *line++ = Tap{from + l * j->length * kLanes, sum + l * j->length * kLanes};
      for (int64_t t = whole * j->length; t < px->taps; ++t)
        *--single = Tap{from + t * px->dilation * kLanes, sum + t * kLanes};
    }
  const Gradient grad = {g, rows, px->count, j->g_row, j->x_row * py->advance, px->advance * kLanes};
  if (line > taps) j->accumulate(taps, line - taps, &grad);
  if (single < taps + j->forward.taps) accumulate_any(single, taps + j->forward.taps - single, &grad);
}

void add_bias_row(const float* g, int64_t outputs, float* share) {
  for (int64_t begin = 0; begin < outputs; begin += kSegment) {
    V sum[4] = {};
    const int64_t end = at_most(begin + kSegment, outputs);
    int64_t o = begin;
    for (; o + 4 <= end; o += 4)
      for (int p = 0; p < 4; ++p) sum[p] += load(g + (o + p) * kLanes);
    for (; o < end; ++o) sum[0] += load(g + o * kLanes);
    store(share, load(share) + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
  }
}

typedef struct Band {
  int64_t o0, o1;  // rows of g whose share of the weight's gradient it adds
  int64_t i0, i1;  // rows of x whose gradient it writes
  int64_t g0, x0, x1;  // first row of g, and the rows of x, that it reads
} Band;

Band band_of(const Args* a, const Job* j, int64_t band) {
  const int64_t S = a->stride[1], P = a->padding[1], reach = (a->kernel[1] - 1) * (int64_t)a->dilation[1];
  Band r;
  r.o0 = band * j->rows;
  r.o1 = at_most(r.o0 + j->rows, a->out[1]);
  r.i0 = band ? at_most(at_least(r.o0 * S - P, 0), a->size[1]) : 0;
  r.i1 = band == j->bands - 1 ? a->size[1] : at_most(at_least(r.o1 * S - P, 0), a->size[1]);
  r.g0 = r.i0 < r.i1 ? at_most(at_least(floor_div(r.i0 + P - reach, S), 0), r.o0) : r.o0;
  r.x0 = at_least(r.o0 * S - P, 0);
  r.x1 = at_most((r.o1 - 1) * S - P + reach + 1, a->size[1]);
  return r;
}

// Row `y` of a view that lies channels-last, a part of it, towards the cache.
SEP_INLINE void prefetch_row(const sep_view* v, int64_t n, int64_t z, int64_t y, int64_t height, int64_t width, int64_t part,
                             int64_t parts, bool for_writing) {
  if (v->data && v->stride[1] == 1 && y < height)
    prefetch((float*)v->data + n * v->stride[0] + z * v->stride[2] + y * v->stride[3], width * v->stride[4] * 4, part, parts,
             for_writing);
}

typedef struct Channels {
  Block x, g;
  int64_t wide;
} Channels;

Channels channels_of(const Args* a, const Job* j, int64_t block) {
  const int64_t wide = first_channel(&j->forward, block), m = j->forward.multiplier, used = j->forward.used;
  const int64_t mx = a->filters > a->channels ? m : 1, my = a->channels > a->filters ? m : 1;
  return Channels{{wide / mx, used / mx, mx}, {wide / my, used / my, my}, wide};
}

// Rows of g and x that a band of blocks b0 ... b1 - 1 reads, each block's into its own scratch memory. Row by row through
// all blocks: memory is read in its own order, and the next row is on its way.
void read_band(const Args* a, const Job* j, float* rows, int64_t n, const Band* r, int64_t b0, int64_t b1) {
  const Axis *ax = &j->forward.axis[2], *gx = &j->adjoint.axis[2];
  const int64_t g_low = at_most(gx->low, 0), size = band_floats(a, j), parts = b1 - b0;
  for (int64_t z = 0; z < a->out[0]; ++z)
    for (int64_t y = r->g0; y < r->o1; ++y)
      for (int64_t b = b0; b < b1; ++b) {
        prefetch_row(&a->y, n, z, y + 1, a->out[1], a->out[2], b - b0, parts, false);
        float* to = rows + (b - b0) * size + (z * j->g_rows + y - r->g0) * j->g_row;
        read_any_row(&a->y, a->dtype, channels_of(a, j, b).g, n, z, y, a->out[2], g_low, g_low + j->g_row / kLanes, to);
      }
  if (!a->partial) return;
  for (int64_t z = 0; z < a->size[0]; ++z)
    for (int64_t y = r->x0; y < r->x1; ++y)
      for (int64_t b = b0; b < b1; ++b) {
        prefetch_row(&a->x, n, z, y + 1, a->size[1], a->size[2], b - b0, parts, false);
        prefetch_row(&a->gx, n, z, y, a->size[1], a->size[2], b - b0, parts, true);
        float* to = rows + (b - b0) * size + a->out[0] * j->g_rows * j->g_row + (z * j->x_rows + y - r->x0) * j->x_row;
        read_any_row(&a->x, a->dtype, channels_of(a, j, b).x, n, z, y, a->size[2], ax->low, ax->low + j->x_row / kLanes, to);
      }
}

void run_band(const Args* a, const Job* j, void* lines, float* rows, float* result, int64_t n, const Band* r, int64_t block,
              float* share) {
  const Axis *ax = &j->forward.axis[2], *ay = &j->forward.axis[1], *gx = &j->adjoint.axis[2];
  const Channels channels = channels_of(a, j, block);
  float* x_rows = rows + a->out[0] * j->g_rows * j->g_row;
  const int64_t g_low = at_most(gx->low, 0), g_plane = j->g_rows * j->g_row, x_plane = j->x_rows * j->x_row;
  const Rows g = {rows - r->g0 * j->g_row - g_low * kLanes, g_plane, j->g_row, kLanes, true};
  const Rows x = {x_rows - r->x0 * j->x_row - ax->low * kLanes, x_plane, j->x_row, kLanes, true};
  for (int64_t z = 0; share && z < a->out[0]; ++z)
    for (int64_t y = r->o0; y < r->o1;) {
      const float* row = g.data + z * g.zs + y * g.ys;
      const Span taps = taps_inside(ay, y);
      int64_t count = 1;  // as many as stay in registers within kSegment products
      for (; y + count < r->o1 && (count + 1) * a->out[2] <= kSegment; ++count) {
        const Span more = taps_inside(ay, y + count);
        if (more.begin != taps.begin || more.end != taps.end) break;
      }
      add_weight_rows(j, x, row, count, z, y, share, (Tap*)lines);
      for (int64_t i = 0; i < count && !a->without_bias; ++i)
        add_bias_row(row + i * g.ys, a->out[2], share + j->forward.taps * kLanes);
      y += count;
    }
  if (!a->gx.data) return;
  const bool direct = a->dtype == SEP_F32 && a->gx.stride[1] == 1 && channels.x.used == kLanes;
  const int64_t* s = a->gx.stride;
  for (int64_t z = 0; z < a->size[0]; ++z)
    for (int64_t y = r->i0; y < r->i1; ++y) {
      Rows out = {result, 0, 0, kLanes, false};
      if (direct) out = Rows{(float*)a->gx.data + n * s[0] + channels.wide, s[2], s[3], s[4], false};
      const float* packed = a->packed + block * j->adjoint.taps * kLanes;
      convolve_row(&j->adjoint, g, out, z, y, packed, kNoBias, SEP_NONE, (sep_line*)lines);
      if (!direct) write_any_row(&a->gx, a->dtype, channels.x, n, z, y, a->size[2], result, V{}, SEP_NONE);
    }
}

void run(const Args* a, void* scratch, int64_t begin, int64_t end) {
  if (const auto* s = special(a)) return s->backward(a, scratch, begin, end);
  const Job j = make_job(a);
  float* rows = (float*)((char*)scratch + line_bytes(&j));
  float* result = rows + band_floats(a, &j) * (j.together ? j.blocks : 1);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t group = unit % j.groups, chunk = unit / j.groups, b0 = group * j.blocks;
    const int64_t n1 = at_most((chunk + 1) * j.images, a->batch), b1 = at_most(b0 + j.blocks, j.forward.blocks);
    float* shares = a->partial ? a->partial + unit * j.blocks * share_floats(&j) : nullptr;
    for (int64_t n = chunk * j.images; n < n1; ++n)
      for (int64_t band = 0; band < j.bands; ++band) {
        const Band r = band_of(a, &j, band);
        if (j.together) read_band(a, &j, rows, n, &r, b0, b1);
        for (int64_t b = b0; b < b1; ++b) {
          if (!j.together) read_band(a, &j, rows, n, &r, b, b + 1);
          float* own = rows + (j.together ? (b - b0) * band_floats(a, &j) : 0);
          run_band(a, &j, scratch, own, result, n, &r, b, shares ? shares + (b - b0) * share_floats(&j) : nullptr);
        }
      }
  }
}

void finish(const Args* a, float* gw, float* gb) {
  if (const auto* s = special(a)) return s->finish(a, gw, gb);
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
