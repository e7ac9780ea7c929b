// Depthwise convolution forward. What most networks are made of has kernels of its own (depthwise_special.h); other
// channels-last float32 without a multiplier is read and written in place, and anything else goes block by block through
// scratch memory that stays in the cache.
//
// A unit is some output rows of one image, for some blocks of channels.
#include "depthwise_conv.h"

#include "block_layout.h"
#include "depthwise_plan.h"
#include "depthwise_special.h"

namespace {

typedef sep_depthwise_conv_args Args;

enum { kTileBytes = 192 * 1024 };  // of scratch memory for input rows: well inside the second-level cache

typedef struct Tiling {
  bool direct;
  int64_t rows, bands;    // output rows of a unit; units in one plane
  int64_t blocks, groups;  // blocks of a unit; units beside each other
  int64_t width;          // pixels of a scratch row
  int64_t input_rows;     // of a band
} Tiling;

// Input planes between the first and the last that an output plane reads.
int64_t depth(const Plan* p) { return (p->axis[0].kernel - 1) * p->axis[0].phase[0].dilation + 1; }

// By the shapes alone: the split decides nothing about any result, but the same call always splits in the same way.
Tiling make_tiling(const Args* a, const Plan* p) {
  Tiling t = {};
  const Axis *y = &p->axis[1], *x = &p->axis[2];
  t.direct = a->dtype == SEP_F32 && p->multiplier == 1 && a->x.stride[1] == 1 && a->y.stride[1] == 1 && p->used == kLanes;
  t.width = at_least(x->high - x->low, 1);
  const int64_t row_bytes = t.width * kLanes * 4, reach = (y->kernel - 1) * y->phase[0].dilation;
  const int64_t fit = kTileBytes / row_bytes / depth(p) - reach;
  t.rows = t.direct ? 4 : at_least(fit / y->phase[0].advance, 4);
  t.rows = at_most(t.rows, y->out);
  t.bands = (y->out + t.rows - 1) / t.rows;
  t.input_rows = (t.rows - 1) * y->phase[0].advance + reach + 1;
  t.blocks = p->blocks;
  const int64_t planes = a->batch * p->axis[0].out * t.bands;
  while (t.blocks > 1 && planes * ((p->blocks + t.blocks - 1) / t.blocks) < 16) t.blocks = (t.blocks + 1) / 2;
  t.groups = (p->blocks + t.blocks - 1) / t.blocks;
  return t;
}

const sep_depthwise_special_kernels* special(const Args* a) { return depthwise_special(a, false); }

int64_t packed_floats(const Args* a) {
  if (const auto* s = special(a)) return s->packed_floats(a);
  const Plan p = make_plan(a, false);
  return packed_taps(&p);
}

void pack_weight(const Args* a) {
  if (const auto* s = special(a)) return s->pack_weight(a);
  const Plan p = make_plan(a, false);
  pack_taps(&p, a->weight, a->packed);
}

int64_t units(const Args* a) {
  if (const auto* s = special(a)) return s->units(a, false);
  const Plan p = make_plan(a, false);
  const Tiling t = make_tiling(a, &p);
  return a->batch * p.axis[0].out * t.bands * t.groups;
}

int64_t input_floats(const Plan* p, const Tiling* t) { return depth(p) * t->input_rows * t->width * kLanes; }

int64_t scratch_bytes(const Args* a) {
  if (const auto* s = special(a)) return s->scratch_bytes(a, false);
  const Plan p = make_plan(a, false);
  const Tiling t = make_tiling(a, &p);
  const int64_t lines = (p.taps * (int64_t)sizeof(sep_line) + 63) / 64 * 64;
  return lines + (t.direct ? 0 : (input_floats(&p, &t) + p.axis[2].out * kLanes) * 4);
}

void run_direct(const Args* a, const Plan* p, sep_line* lines, int64_t n, int64_t z, int64_t y0, int64_t y1, int64_t b0, int64_t b1) {
  const int64_t *xs = a->x.stride, *ys = a->y.stride;
  const Phase* py = &p->axis[1].phase[0];
  const int64_t ahead = py->start + (py->taps - 1) * py->dilation + 1, all = b0 == 0 && b1 == p->blocks;
  for (int64_t y = y0; y < y1; ++y)
    for (int64_t b = b0; b < b1; ++b) {
      if (all && p->axis[0].kernel == 1 && y + 1 < p->axis[1].out) {
        const int64_t first = y * py->advance + ahead, in_bytes = p->axis[2].in * xs[4] * 4;
        for (int64_t iy = at_least(first, 0); iy < at_most(first + py->advance, p->axis[1].in); ++iy)
          prefetch((float*)a->x.data + n * xs[0] + z * xs[2] + iy * xs[3], in_bytes, b, b1, false);
        prefetch((float*)a->y.data + n * ys[0] + z * ys[2] + (y + 1) * ys[3], p->axis[2].out * ys[4] * 4, b, b1, true);
      }
      const int64_t c = first_channel(p, b);
      const Rows in = {(float*)a->x.data + n * xs[0] + c, xs[2], xs[3], xs[4], false};
      const Rows out = {(float*)a->y.data + n * ys[0] + c, ys[2], ys[3], ys[4], false};
      const float* bias = a->bias ? a->bias + c : kNoBias;
      convolve_row(p, in, out, z, y, a->packed + b * p->taps * kLanes, bias, a->activation, lines);
    }
}

void run_packed(const Args* a, const Plan* p, const Tiling* t, sep_line* lines, float* scratch, int64_t n, int64_t z, int64_t y0,
                int64_t y1, int64_t block) {
  const Axis *az = &p->axis[0], *ay = &p->axis[1], *ax = &p->axis[2];
  const int64_t wide = first_channel(p, block), m = p->multiplier;
  const int64_t mx = a->filters > a->channels ? m : 1, my = a->channels > a->filters ? m : 1;
  const Block from = {wide / mx, p->used / mx, mx}, to = {wide / my, p->used / my, my};
  const int64_t top = y0 * ay->phase[0].advance + ay->phase[0].start, front = z * az->phase[0].advance + az->phase[0].start;
  const int64_t row = t->width * kLanes, plane = t->input_rows * row;
  for (int64_t k = 0; k < az->kernel; ++k) {
    const int64_t iz = front + k * az->phase[0].dilation;
    if (iz < 0 || iz >= az->in) continue;
    const int64_t bottom = (y1 - 1) * ay->phase[0].advance + ay->phase[0].start + (ay->kernel - 1) * ay->phase[0].dilation;
    for (int64_t iy = at_least(top, 0); iy <= at_most(bottom, ay->in - 1); ++iy)
      read_any_row(&a->x, a->dtype, from, n, iz, iy, ax->in, ax->low, ax->high, scratch + (iz - front) * plane + (iy - top) * row);
  }
  const Rows in = {scratch - front * plane - top * row - ax->low * kLanes, plane, row, kLanes, true};
  float* result = scratch + input_floats(p, t);
  const V bias = a->bias ? load_tail(a->bias + to.first, to.used) : V{};
  for (int64_t y = y0; y < y1; ++y) {
    const Rows out = {result, 0, 0, kLanes, false};
    convolve_row(p, in, out, z, y, a->packed + block * p->taps * kLanes, kNoBias, SEP_NONE, lines);
    write_any_row(&a->y, a->dtype, to, n, z, y, ax->out, result, bias, a->activation);
  }
}

void run(const Args* a, void* scratch, int64_t begin, int64_t end) {
  if (const auto* s = special(a)) return s->forward(a, scratch, begin, end);
  const Plan p = make_plan(a, false);
  const Tiling t = make_tiling(a, &p);
  sep_line* lines = (sep_line*)scratch;
  float* rows = (float*)((char*)scratch + (p.taps * (int64_t)sizeof(sep_line) + 63) / 64 * 64);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t group = unit % t.groups, band = unit / t.groups % t.bands;
    const int64_t z = unit / t.groups / t.bands % p.axis[0].out, n = unit / t.groups / t.bands / p.axis[0].out;
    const int64_t y0 = band * t.rows, y1 = at_most(y0 + t.rows, p.axis[1].out);
    const int64_t b0 = group * t.blocks, b1 = at_most(b0 + t.blocks, p.blocks);
    if (t.direct)
      run_direct(a, &p, lines, n, z, y0, y1, b0, b1);
    else
      for (int64_t b = b0; b < b1; ++b) run_packed(a, &p, &t, lines, rows, n, z, y0, y1, b);
  }
}

}  // namespace

extern "C" const sep_depthwise_conv_kernels SEP_TABLE(depthwise_conv) = {
    kLanes, packed_floats, scratch_bytes, units, pack_weight, run};
