// Maps in torch's default layout: one vector holds neighbouring columns of a row, and where rows are shorter than half a
// vector, the same row of several channels side by side, zeros between them.
//
// Rows come with their zeros into scratch memory of the first-level cache. From there R rows by one vector are summed in
// registers, a column of taps at a time: R + K - 1 loads for R * K products. Backward the same loads make both gradients: input's
// and weight's are sums over g[row + ky][column + kx], one weighted by the taps, the other by x.
// A unit is some images of some channels; sums of a unit are kept apart and added in order.
#include "depthwise_special.h"

#include "activation.h"
#include "depthwise_rows.h"

namespace {

typedef sep_depthwise_conv_args Args;

enum { kBandBytes = 16 * 1024, kForwardUnits = 64, kBackwardUnits = 16 };
enum { kRows = 7, kBackwardRows = kRegisters > 16 ? 7 : 4 };  // summed at once: 7 divides the heights of most networks

// One direction: what is read with zeros around it, and what comes out. Backward reads g and writes gx.
typedef struct Job {
  int64_t K;
  int64_t in_rows, in_columns, out_rows, out_columns;
  int64_t top, left;       // zeros before
  int64_t slots, slot;     // channels in one vector; floats from one to the next
  int64_t vectors, tail;   // of an output row; floats of the last
  int64_t pitch, band;     // floats of a scratch row; output rows of a band
  int64_t groups, blocks;  // of `slots` channels, in a unit; units beside each other
  int64_t images, chunks;  // of a unit; units over the batch
} Job;

Job make_job(const Args* a, bool gradients) {
  Job j = {};
  j.K = a->kernel[2];
  const int64_t *in = gradients ? a->out : a->size, *out = gradients ? a->size : a->out;
  j.in_rows = in[1], j.in_columns = in[2], j.out_rows = out[1], j.out_columns = out[2];
  j.top = gradients ? j.K - 1 - a->padding[1] : a->padding[1];
  j.left = gradients ? j.K - 1 - a->padding[2] : a->padding[2];
  const int64_t right = j.out_columns + j.K - 1 - j.in_columns - j.left;
  j.slot = at_least(at_least(j.left, right) + j.in_columns, j.out_columns);
  j.slots = at_least(at_most(kLanes / j.slot, a->channels), 1);
  j.vectors = j.slots > 1 ? 1 : (j.out_columns + kLanes - 1) / kLanes;
  j.tail = j.slots > 1 ? (int64_t)kLanes : j.out_columns - (j.vectors - 1) * kLanes;
  const int64_t most = at_least(j.in_columns, j.out_columns);
  const int64_t floats = (j.slots > 1 ? 2 * kLanes : (most + kLanes - 1) / kLanes * kLanes) + j.K - 1;
  j.pitch = (floats + kLanes - 1) / kLanes * kLanes;
  j.band = at_least((kBandBytes / 4 / j.pitch - j.K + 1) / kRows * kRows, kRows);
  j.band = at_most(j.band, j.out_rows);
  const int64_t all = (a->channels + j.slots - 1) / j.slots, units = gradients ? kBackwardUnits : kForwardUnits;
  j.groups = at_most(j.K == 3 ? 16 : 4, at_least(all, 1));
  while (j.groups > 1 && a->batch * ((all + j.groups - 1) / j.groups) < units) j.groups = (j.groups + 1) / 2;
  j.blocks = (all + j.groups - 1) / j.groups;
  j.chunks = at_most(at_least(j.blocks ? (units + j.blocks - 1) / j.blocks : 1, 1), a->batch);
  j.images = j.chunks ? (a->batch + j.chunks - 1) / j.chunks : 0;
  j.chunks = j.images ? (a->batch + j.images - 1) / j.images : 0;
  return j;
}

int64_t group_floats(const Job* j) { return (j->K * j->K + 1) * kLanes; }  // taps, and the bias or its gradient
int64_t input_floats(const Job* j) { return (j->band + j->K - 1) * j->pitch; }

int fits(const Args* a, int) {
  const int32_t K = a->kernel[2];
  if (a->dtype != SEP_F32 || a->channels != a->filters || a->size[0] != 1 || a->kernel[0] != 1 || a->kernel[1] != K) return 0;
  if (K != 3 && K != 5 && K != 7) return 0;
  for (int i = 1; i < 3; ++i) {
    const int64_t after = a->out[i] + K - 1 - a->size[i] - a->padding[i];
    if (a->stride[i] != 1 || a->dilation[i] != 1 || a->padding[i] >= K || after >= K || after < 0) return 0;
  }
  if (a->padding[0] || a->out[0] != 1 || a->size[2] < 2 || a->out[2] < 2) return 0;
  return a->x.stride[4] == 1 && a->y.stride[4] == 1 && (!a->gx.data || a->gx.stride[4] == 1);
}

int64_t packed_floats(const Args* a) { return a->channels * a->kernel[1] * a->kernel[2]; }

// As they are: a few channels' at a time are brought into vectors when their unit comes.
void pack_weight(const Args* a) {
  for (int64_t i = 0; i < packed_floats(a); ++i) a->packed[i] = a->weight[i];
}

int64_t units(const Args* a, int gradients) {
  const Job j = make_job(a, gradients);
  return j.blocks * j.chunks;
}

int64_t partial_floats(const Args* a) {
  const Job j = make_job(a, true);
  return j.groups * group_floats(&j);
}

// Input rows, rows of x and of the result where channels share a vector, taps, and a band's share of the weight's gradient.
int64_t scratch_bytes(const Args* a, int gradients) {
  const Job j = make_job(a, gradients);
  return (input_floats(&j) + 2 * j.band * j.vectors * kLanes + (j.groups + 1) * group_floats(&j)) * 4;
}

SEP_INLINE float* row_of(const sep_view* v, int64_t n, int64_t c, int64_t y) {
  return (float*)v->data + n * v->stride[0] + c * v->stride[1] + y * v->stride[3];
}

// Rows [first, first + count) of `used` channels side by side at column `left`; zeros where there is no row. A vector that
// passes a row's end writes zeros, which the next channel then overwrites as far as it reaches.
void read_rows(const Job* j, const sep_view* v, int64_t n, int64_t c, int64_t used, int64_t first, int64_t count, int64_t rows,
               int64_t columns, int64_t left, int64_t pitch, float* to) {
  const int64_t begin = at_most(at_least(-first, 0), count), end = at_least(at_most(rows - first, count), begin);
  const int64_t whole = columns / kLanes * kLanes, rest = columns - whole, step = v->stride[3];
  for (float* p = to; p < to + begin * pitch; p += kLanes) store(p, V{});
  for (float* p = to + end * pitch; p < to + count * pitch; p += kLanes) store(p, V{});
  const float* from = row_of(v, n, c, first + begin);
  float* out = to + begin * pitch + left;
  for (int64_t i = begin; i < end; ++i, from += step, out += pitch) {
    for (int64_t k = 0; k < whole; k += kLanes) store(out + k, load(from + k));
    if (rest) store(out + whole, load_tail(from + whole, rest));
    for (int64_t s = 1; s < used; ++s) store(out + s * j->slot, load_tail(from + s * v->stride[1], rest));
  }
}

// Results of a vector's channels from scratch memory to their rows.
void write_rows(const Job* j, const sep_view* v, int64_t n, int64_t c, int64_t used, int64_t first, int64_t count,
                const float* from) {
  const int64_t columns = j->out_columns, step = v->stride[3];
  for (int64_t s = 0; s < used; ++s) {
    float* to = row_of(v, n, c + s, first);
    for (int64_t i = 0; i < count; ++i) store_tail(to + i * step, load(from + i * kLanes + s * j->slot), columns);
  }
}

typedef struct Tile {
  const float* in;       // scratch: tap (0, 0) of output (0, 0)
  const float* taps;     // kLanes floats each, row by row; then the bias
  const float* x;        // backward: what the weight's gradient is weighted by
  float *out, *sums;     // backward: kLanes floats for each tap
  int64_t pitch, x_row, out_row;
  int64_t vectors, tail;
  VI valid;  // lanes of the last vector that hold results
  const float* ahead;  // input rows of the next band, in memory; or null
  int64_t ahead_row;
} Tile;

template <int R>
SEP_INLINE void write_sums(const Tile* t, int64_t v, const V* sum, bool last) {
  const int64_t row = t->out_row, tail = last ? t->tail : (int64_t)kLanes;
  float* out = t->out + v * kLanes;
  if (tail == kLanes)
    for (int r = 0; r < R; ++r) store(out + r * row, sum[r]);
  else
    for (int r = 0; r < R; ++r) store_tail(out + r * row, sum[r], tail);
}

template <int K, int R>
void forward_rows(const Tile* t) {
  for (int64_t v = 0; v < t->vectors; ++v) {
    V sum[R];
    for (int r = 0; r < R; ++r) sum[r] = load(t->taps + K * K * kLanes);
    const float* in = t->in + v * kLanes;
#pragma GCC unroll 1
    for (int kx = 0; kx < K; ++kx) {
      V tap[K];
#pragma GCC unroll 8
      for (int ky = 0; ky < K; ++ky) tap[ky] = load(t->taps + (ky * K + kx) * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < R + K - 1; ++i) {
        const V a = held(load(in + i * t->pitch + kx));
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
          if (i - r >= 0 && i - r < K) sum[r] = fma(a, tap[i - r], sum[r]);
      }
    }
    write_sums<R>(t, v, sum, v + 1 == t->vectors);
  }
}

// LAST: lanes without a result must not reach the weight's gradient, not even as zero times NaN.
template <int K, int R, bool LAST>
SEP_INLINE void backward_vector(const Tile* t, int64_t v) {
  const int64_t x_row = t->x_row, tail = t->tail;
  V sum[R], x[R];
  for (int r = 0; r < R; ++r) {
    sum[r] = V{};
    x[r] = LAST ? load_tail(t->x + r * x_row + v * kLanes, tail) : load(t->x + r * x_row + v * kLanes);
  }
  const float* in = t->in + v * kLanes;
#pragma GCC unroll 1
  for (int kx = 0; kx < K; ++kx) {
    V tap[K], share[K];
#pragma GCC unroll 8
    for (int ky = 0; ky < K; ++ky) {
      tap[ky] = load(t->taps + (ky * K + kx) * kLanes);
      share[ky] = load(t->sums + (ky * K + kx) * kLanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < R + K - 1; ++i) {
      const V read = load(in + i * t->pitch + kx);
      const V a = held(LAST ? (V)((VI)read & t->valid) : read);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        if (i - r >= 0 && i - r < K) {
          sum[r] = fma(a, tap[i - r], sum[r]);
          share[i - r] = fma(a, x[r], share[i - r]);
        }
    }
#pragma GCC unroll 8
    for (int ky = 0; ky < K; ++ky) store(t->sums + (ky * K + kx) * kLanes, share[ky]);
  }
  write_sums<R>(t, v, sum, LAST);
}

template <int K, int R>
void backward_rows(const Tile* t) {
  for (int64_t v = 0; v + 1 < t->vectors; ++v) backward_vector<K, R, false>(t, v);
  backward_vector<K, R, true>(t, t->vectors - 1);
}

typedef void (*RowsFunction)(const Tile*);
typedef struct Rows {
  int64_t most;
  RowsFunction whole, four, two, one;
} Rows;
#define SEP_FORWARD_ROWS(K) \
  Rows { kRows, forward_rows<K, kRows>, forward_rows<K, 4>, forward_rows<K, 2>, forward_rows<K, 1> }
#define SEP_BACKWARD_ROWS(K) \
  Rows { kBackwardRows, backward_rows<K, kBackwardRows>, backward_rows<K, 4>, backward_rows<K, 2>, backward_rows<K, 1> }
const Rows kForward[3] = {SEP_FORWARD_ROWS(3), SEP_FORWARD_ROWS(5), SEP_FORWARD_ROWS(7)};
const Rows kBackward[3] = {SEP_BACKWARD_ROWS(3), SEP_BACKWARD_ROWS(5), SEP_BACKWARD_ROWS(7)};

void each_tile(const Rows* f, Tile t, int64_t rows, bool backward) {
  while (rows > 0) {
    const int64_t now = rows >= f->most ? f->most : rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
    // Memory is touched tile by tile, which no prefetcher in hardware follows: 32 maps of 112x112 take 5.1 ms without this,
    // 2.9 with it.
    if (t.ahead) {
      prefetch(t.ahead, now * t.ahead_row * 4, 0, 1, false);
      t.ahead += now * t.ahead_row;
      prefetch(t.out + now * t.out_row, now * t.out_row * 4, 0, 1, true);
      if (backward) prefetch(t.x + now * t.x_row, now * t.x_row * 4, 0, 1, false);
    }
    (now == f->most ? f->whole : now == 4 ? f->four : now == 2 ? f->two : f->one)(&t);
    t.in += now * t.pitch, t.out += now * t.out_row, t.x += now * t.x_row;
    rows -= now;
  }
}

// Taps of each group of a unit, in every lane those of its channel; turned round for the adjoint.
void pack(const Args* a, const Job* j, bool gradients, int64_t first, float* packed) {
  const int64_t taps = j->K * j->K;
  for (int64_t c = first; c < at_most(first + j->groups * j->slots, a->channels); ++c) {
    const int64_t slot = (c - first) % j->slots * j->slot;
    float* to = packed + (c - first) / j->slots * group_floats(j) + slot;
    for (int64_t t = 0; t <= taps; ++t, to += kLanes) {
      const float w = t < taps ? a->packed[c * taps + (gradients ? taps - 1 - t : t)] : a->bias && !gradients ? a->bias[c] : 0;
      store_tail(to, splat(w), kLanes - slot);  // the next channel writes over what is not this one's
    }
  }
}

VI valid_lanes(const Job* j) {
  VI valid;
  for (int l = 0; l < kLanes; ++l) valid[l] = (j->slots > 1 ? l % j->slot < j->out_columns : l < j->tail) ? -1 : 0;
  return valid;
}

typedef struct Room {
  float *in, *x, *out, *packed, *sums;
} Room;

Room room_of(const Job* j, void* scratch) {
  const int64_t vectors = j->band * j->vectors * kLanes;
  Room r;
  r.in = (float*)scratch;
  r.x = r.in + input_floats(j);
  r.out = r.x + vectors;
  r.packed = r.out + vectors;
  r.sums = r.packed + j->groups * group_floats(j);
  for (float* p = r.in; p < r.packed; p += kLanes) store(p, V{});
  return r;
}

Tile tile_of(const Job* j, const Room* room, const float* taps) {
  return Tile{room->in, taps, room->x, room->out, room->sums, j->pitch, kLanes, j->vectors * kLanes, j->vectors, j->tail,
              valid_lanes(j), nullptr, 0};
}

void activate_rows(const Tile* t, int64_t rows, int32_t activation) {
  for (int64_t y = 0; y < rows; ++y)
    for (int64_t v = 0; v < t->vectors; ++v) {
      float* p = t->out + y * t->out_row + v * kLanes;
      const int64_t n = v + 1 < t->vectors ? (int64_t)kLanes : t->tail;
      store_tail(p, activate(load_tail(p, n), activation), n);
    }
}

void forward_plane(const Args* a, const Job* j, const Room* room, int64_t n, int64_t c, const float* taps) {
  const int64_t used = at_most(j->slots, a->channels - c);
  Tile t = tile_of(j, room, taps);
  for (int64_t y = 0; y < j->out_rows; y += j->band) {
    const int64_t rows = at_most(j->band, j->out_rows - y);
    read_rows(j, &a->x, n, c, used, y - j->top, rows + j->K - 1, j->in_rows, j->in_columns, j->left, j->pitch, room->in);
    if (j->slots == 1) {
      t.out = row_of(&a->y, n, c, y), t.out_row = a->y.stride[3];
      t.ahead = row_of(&a->x, n, c, y + rows + j->K - 1 - j->top), t.ahead_row = a->x.stride[3];
    }
    each_tile(&kForward[j->K / 2 - 1], t, rows, false);
    if (a->activation) activate_rows(&t, rows, a->activation);
    if (j->slots > 1) write_rows(j, &a->y, n, c, used, y, rows, room->out);
  }
}

void forward(const Args* a, void* scratch, int64_t begin, int64_t end) {
  const Job j = make_job(a, false);
  const Room room = room_of(&j, scratch);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t chunk = unit / j.blocks, first = unit % j.blocks * j.groups * j.slots;
    pack(a, &j, false, first, room.packed);
    for (int64_t n = chunk * j.images; n < at_most((chunk + 1) * j.images, a->batch); ++n)
      for (int64_t g = 0; g < j.groups && first + g * j.slots < a->channels; ++g)
        forward_plane(a, &j, &room, n, first + g * j.slots, room.packed + g * group_floats(&j));
  }
}

// The bias's gradient from the rows of g that no band before this one had, as they lie in scratch memory.
void add_bias(const Job* j, const float* in, int64_t y, int64_t rows, float* sum) {
  const int64_t first = y ? at_most(y - j->top + j->K - 1, j->in_rows) : 0;
  const int64_t last = at_most(y + rows - j->top + j->K - 1, j->in_rows);
  V all = {};
  for (int64_t i = first; i < last; ++i)
    for (int64_t k = 0; k < (j->slots > 1 ? 1 : j->in_columns); k += kLanes)
      all += load(in + (i - y + j->top) * j->pitch + j->left + k);
  store(sum, load(sum) + all);
}

void backward_plane(const Args* a, const Job* j, const Room* room, int64_t n, int64_t c, const float* taps, float* share) {
  const int64_t used = at_most(j->slots, a->channels - c), K2 = j->K * j->K;
  const bool alone = j->slots == 1, both = share != nullptr;
  Tile t = tile_of(j, room, taps);
  for (int64_t y = 0; y < j->out_rows; y += j->band) {
    const int64_t rows = at_most(j->band, j->out_rows - y);
    read_rows(j, &a->y, n, c, used, y - j->top, rows + j->K - 1, j->in_rows, j->in_columns, j->left, j->pitch, room->in);
    if (alone && a->gx.data) {
      t.out = row_of(&a->gx, n, c, y), t.out_row = a->gx.stride[3];
      t.ahead = row_of(&a->y, n, c, y + rows + j->K - 1 - j->top), t.ahead_row = a->y.stride[3];
    }
    if (both) {
      if (alone) t.x = row_of(&a->x, n, c, y), t.x_row = a->x.stride[3];
      else read_rows(j, &a->x, n, c, used, y, rows, j->out_rows, j->out_columns, 0, kLanes, room->x);
      for (int64_t k = 0; k < K2; ++k) store(room->sums + k * kLanes, V{});
      each_tile(&kBackward[j->K / 2 - 1], t, rows, true);
      for (int64_t k = 0; k < K2; ++k) store(share + k * kLanes, load(share + k * kLanes) + load(room->sums + k * kLanes));
      if (!a->without_bias) add_bias(j, room->in, y, rows, share + K2 * kLanes);
    } else {
      each_tile(&kForward[j->K / 2 - 1], t, rows, false);
    }
    if (!alone && a->gx.data) write_rows(j, &a->gx, n, c, used, y, rows, room->out);
  }
}

void backward(const Args* a, void* scratch, int64_t begin, int64_t end) {
  const Job j = make_job(a, true);
  const Room room = room_of(&j, scratch);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t chunk = unit / j.blocks, first = unit % j.blocks * j.groups * j.slots, size = group_floats(&j);
    float* shares = a->partial ? a->partial + unit * j.groups * size : nullptr;
    pack(a, &j, true, first, room.packed);
    for (int64_t n = chunk * j.images; n < at_most((chunk + 1) * j.images, a->batch); ++n)
      for (int64_t g = 0; g < j.groups && first + g * j.slots < a->channels; ++g)
        backward_plane(a, &j, &room, n, first + g * j.slots, room.packed + g * size, shares ? shares + g * size : nullptr);
  }
}

// A sum at tap (ky, kx) of the turned kernel belongs to the weight at the opposite place.
void finish(const Args* a, float* gw, float* gb) {
  const Job j = make_job(a, true);
  const int64_t taps = j.K * j.K, lanes = j.slots > 1 ? j.slot : (int64_t)kLanes;
  for (int64_t c = 0; c < a->channels; ++c) {
    const int64_t group = c / j.slots, first = c % j.slots * j.slot;
    for (int64_t tap = 0; tap <= taps; ++tap) {
      float sum = 0;
      for (int64_t chunk = 0; chunk < j.chunks; ++chunk) {
        const int64_t unit = chunk * j.blocks + group / j.groups;
        const float* share = a->partial + (unit * j.groups + group % j.groups) * group_floats(&j) + tap * kLanes + first;
        float part = 0;
        for (int64_t l = 0; l < lanes; ++l) part += share[l];
        sum += part;
      }
      if (tap < taps && gw) gw[c * taps + taps - 1 - tap] = sum;
      if (tap == taps && gb) gb[c] = sum;
    }
  }
}

}  // namespace

extern "C" const sep_depthwise_special_kernels SEP_TABLE(depthwise_planes) = {
    fits, packed_floats, pack_weight, scratch_bytes, units, partial_floats, forward, backward, finish};
