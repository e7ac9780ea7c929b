// Which inputs and taps make an output, along each axis: for the convolution itself, and for its adjoint.
//
// Outputs of an axis fall into phases, in each of which the taps are the same: one phase for the convolution, one for each
// remainder of the stride for the adjoint (the input's gradient), which thereby becomes `stride` convolutions of stride 1.
#pragma once
#include "depthwise_conv.h"
#include "depthwise_rows.h"

namespace {

typedef struct Phase {
  int64_t first, step, count;  // outputs first + step * j, j < count
  int64_t start, advance;      // tap t of output j reads input start + advance * j + dilation * t
  int64_t taps, dilation;
  int64_t position;  // of tap 0 among the packed taps of this axis
} Phase;

typedef struct Axis {
  int64_t in, out, kernel;
  int64_t phases, shift;  // output o belongs to phase (o + shift) % phases
  int64_t low, high;      // inputs low ... high - 1 are read, some of them outside 0 ... in - 1
  Phase phase[SEP_MAX_STRIDE];
  uint8_t order[SEP_MAX_KERNEL];  // tap at each packed position
} Axis;

typedef struct Plan {
  Axis axis[3];
  int64_t taps;
  int64_t wide, used, blocks;  // channels; how many of them a block of kLanes holds; how many blocks
  int64_t multiplier, lines;   // lines: the most that a row has
} Plan;

void find_bounds(Axis* a) {
  a->low = a->in;
  a->high = 0;
  for (int64_t p = 0; p < a->phases; ++p) {
    const Phase* f = &a->phase[p];
    if (!f->count || !f->taps) continue;
    const int64_t last = f->start + f->advance * (f->count - 1) + f->dilation * (f->taps - 1) + 1;
    if (f->start < a->low) a->low = f->start;
    if (last > a->high) a->high = last;
  }
}

Axis forward_axis(const sep_depthwise_conv_args* g, int i) {
  Axis a = {};
  a.in = g->size[i];
  a.out = g->out[i];
  a.kernel = g->kernel[i];
  a.phases = 1;
  a.phase[0] = Phase{0, 1, a.out, -g->padding[i], g->stride[i], a.kernel, g->dilation[i], 0};
  for (int64_t k = 0; k < a.kernel; ++k) a.order[k] = (uint8_t)k;
  find_bounds(&a);
  return a;
}

// Input i gets tap k of output o where i + padding = o * stride + k * dilation.
Axis adjoint_axis(const sep_depthwise_conv_args* g, int i) {
  const int64_t S = g->stride[i], D = g->dilation[i], P = g->padding[i], K = g->kernel[i];
  int64_t common = D;  // greatest common divisor of S and D
  for (int64_t b = S; b;) {
    const int64_t rest = common % b;
    common = b;
    b = rest;
  }
  Axis a = {};
  a.in = g->out[i];
  a.out = g->size[i];
  a.kernel = K;
  a.phases = S;
  a.shift = P;
  int64_t position = 0;
  for (int64_t r = 0; r < S; ++r) {
    Phase f = {};
    f.first = ((r - P) % S + S) % S;
    f.step = S;
    f.count = f.first < a.out ? (a.out - f.first + S - 1) / S : 0;
    f.advance = 1;
    f.dilation = D / common;
    f.position = position;
    int64_t k = 0;
    while (k < K && ((r - k * D) % S + S) % S) ++k;
    const int64_t step = S / common;
    f.taps = k < K ? (K - 1 - k) / step + 1 : 0;
    const int64_t last = k + (f.taps - 1) * step;  // the last tap reads the first input
    f.start = f.taps ? (f.first + P - last * D) / S : 0;
    for (int64_t t = 0; t < f.taps; ++t) a.order[position++] = (uint8_t)(last - t * step);
    a.phase[r] = f;
  }
  find_bounds(&a);
  return a;
}

Plan make_plan(const sep_depthwise_conv_args* g, bool adjoint) {
  Plan p = {};
  p.taps = p.lines = 1;
  for (int i = 0; i < 3; ++i) {
    p.axis[i] = adjoint ? adjoint_axis(g, i) : forward_axis(g, i);
    p.taps *= g->kernel[i];
  }
  p.lines = p.taps;
  p.wide = g->channels > g->filters ? g->channels : g->filters;
  p.multiplier = p.wide / (g->channels > g->filters ? g->filters : g->channels);
  p.used = p.multiplier == 1 ? kLanes : kLanes / p.multiplier * p.multiplier;
  if (p.wide < p.used) p.used = p.wide;
  p.blocks = (p.wide + p.used - 1) / p.used;
  return p;
}

// The last block overlaps the one before rather than being shorter.
int64_t first_channel(const Plan* p, int64_t block) {
  const int64_t c = block * p->used;
  return c + p->used <= p->wide ? c : p->wide - p->used;
}

int64_t packed_taps(const Plan* p) { return p->blocks * p->taps * kLanes; }

// (wide, taps) -> (block, packed taps, kLanes), zeros in the lanes that a block does not use.
void pack_taps(const Plan* p, const float* weight, float* packed) {
  const Axis* a = p->axis;
  for (int64_t b = 0; b < p->blocks; ++b) {
    const float* w = weight + first_channel(p, b) * p->taps;
    for (int64_t z = 0; z < a[0].kernel; ++z)
      for (int64_t y = 0; y < a[1].kernel; ++y)
        for (int64_t x = 0; x < a[2].kernel; ++x) {
          const int64_t tap = (a[0].order[z] * a[1].kernel + a[1].order[y]) * a[2].kernel + a[2].order[x];
          for (int64_t l = 0; l < kLanes; ++l) *packed++ = l < p->used ? w[l * p->taps + tap] : 0;
        }
  }
}

// Rows of one block of channels as the kernels read or write them: (z, y) lies at data + z * zs + y * ys.
typedef struct Rows {
  float* data;
  int64_t zs, ys, xs;
  bool padded;  // zeros lie where a row is read beyond its ends
} Rows;

alignas(64) const float kNoBias[kLanes] = {};

// Without a division where there is one phase: a short row takes no longer than two of them.
SEP_INLINE const Phase* phase_of(const Axis* a, int64_t o) { return &a->phase[a->phases == 1 ? 0 : (o + a->shift) % a->phases]; }
SEP_INLINE int64_t first_input(const Phase* f, int64_t o) {
  return f->start + f->advance * (f->step == 1 ? o - f->first : (o - f->first) / f->step);
}

// One output row: z and y are the output's own. `taps` are the block's packed taps, `lines` room for plan->lines.
void convolve_row(const Plan* plan, Rows in, Rows out, int64_t z, int64_t y, const float* taps, const float* bias, int32_t activation,
                  sep_line* lines) {
  const Axis *az = &plan->axis[0], *ay = &plan->axis[1], *ax = &plan->axis[2];
  const Phase *pz = phase_of(az, z), *py = phase_of(ay, y);
  const int64_t z0 = first_input(pz, z), y0 = first_input(py, y);
  float* out_row = out.data + z * out.zs + y * out.ys;
  for (int64_t f = 0; f < ax->phases; ++f) {
    const Phase* px = &ax->phase[f];
    const bool interleaved = px->advance == 1 && px->dilation > 1;  // dilation d: d rows of their own, without dilation
    const int64_t rows = interleaved ? px->dilation : 1, gap = interleaved ? 1 : px->dilation;
    const int64_t length = gap > 1 && px->taps > 1 ? 0 : line_length(px->taps, px->advance);
    const sep_compute_row compute = SEP_TABLE(depthwise_rows).choose(length, px->advance);
    const int64_t whole = length ? px->taps / length : 0;
    for (int64_t d = 0; d < rows && d < px->count; ++d) {
      sep_row r;
      r.xs = in.xs * rows;
      r.advance = px->advance;
      r.reach = (px->taps - 1) * gap;
      const int64_t start = px->start + d;
      r.low = in.padded ? -(1LL << 40) : rows == 1 ? -start : ceil_div(-start, rows);
      r.high = in.padded ? 1LL << 40 : rows == 1 ? ax->in - start : ceil_div(ax->in - start, rows);
      r.y = out_row + (px->first + px->step * d) * out.xs;
      r.ys = px->step * rows * out.xs;
      r.outputs = rows == 1 ? px->count : (px->count - d + rows - 1) / rows;
      r.bias = bias;
      r.activation = activation;
      sep_line *line = lines, *single = lines + plan->taps;
      for (int64_t tz = 0; tz < pz->taps; ++tz) {
        const int64_t iz = z0 + tz * pz->dilation;
        if (iz < 0 || iz >= az->in) continue;
        for (int64_t ty = 0; ty < py->taps; ++ty) {
          const int64_t iy = y0 + ty * py->dilation;
          if (iy < 0 || iy >= ay->in) continue;
          const float* x = in.data + iz * in.zs + iy * in.ys + start * in.xs;
          const float* w = taps + (((pz->position + tz) * ay->kernel + py->position + ty) * ax->kernel + px->position) * kLanes;
          for (int64_t l = 0; l < whole; ++l) *line++ = sep_line{x, w + l * length * kLanes, l * length};
          for (int64_t t = whole * length; t < px->taps; ++t) *--single = sep_line{x, w + t * kLanes, t * gap};
        }
      }
      r.lines = lines;
      r.line_count = line - lines;
      r.singles = single;
      r.single_count = lines + plan->taps - single;
      compute(&r);
      if (activation) SEP_TABLE(depthwise_rows).activate(&r);
    }
  }
}

}  // namespace
