// Pointwise convolution: which rows meet which weights when, and how both lie; pointwise_tile.h multiplies.
//
// Weights lie in panels of two vectors of columns, panel after panel, channel after channel; what is left over at the end
// is one panel of one vector where that suffices. While the tiles of one panel are multiplied the next one is fetched.
#include "pointwise_conv.h"

#include "pointwise_tile.h"
#include "reduce.h"

namespace {

typedef sep_pointwise_conv_args Args;

enum {
  kBlockBytes = 224 << 10,    // of x that one unit reads again for each panel
  kUnitWork = 1 << 18,        // multiply-adds
  kTilesUnitWork = 1 << 21,   // the same, by matrix tiles
  kLargeWeight = 256 << 10,   // bytes of weight worth reading for many rows at a time
  kFarBytes = 1 << 20,        // of results that are no longer in a second-level cache
};

// ---- rows that are copied first: normalized, scaled, rounded, or only moved apart

// One image of more rows than there are columns: its scale goes into a copy of the weights, which is the smaller of the two.
bool scales_weight(const Args* a) {
  return a->scale && a->image_rows == a->rows && a->rows > a->c_out && !a->normalize && a->product == SEP_F32;
}

// Rows a multiple of 4 KiB apart fall into the same few lines of a first-level cache: a tile of them would be read from the second.
bool is_copied(const Args* a) {
  const bool collides = a->rows > 4 && a->x_stride % 512 == 0 && a->c_in >= 256;
  if (a->run) return false;
  return (a->scale && !scales_weight(a)) || a->normalize || a->product != SEP_F32 || collides;
}

int64_t copied_stride(const Args* a) {  // in steps; an odd number of cache lines
  return (ceil_div(steps_of(a->c_in, a->product), 16) | 1) * 16;
}

#if defined(__AVX512F__)
SEP_INLINE void store_bf16(uint16_t* p, V a) {
  typedef uint16_t Half __attribute__((vector_size(kLanes * 2)));
  Half h;
  asm("vcvtneps2bf16 %1, %0" : "=v"(h) : "v"(a));
  *(VHalf*)p = h;
}
#endif

int64_t offset_of(const Args* a, int64_t row) {
  return a->x_run_stride ? row / a->y_run * a->x_run_stride + row % a->y_run * a->x_stride : row * a->x_stride;
}

void copy_row(const Args* a, int64_t row, Word* to) {
  const float* x = a->x + offset_of(a, row);
  const float* scale = a->scale && !scales_weight(a) ? a->scale + row / a->image_rows * a->c_in : nullptr;
  const Moments m = a->normalize ? moments(x, a->c_in, a->epsilon) : Moments{0, 1};
  const int64_t channels = a->product == SEP_F32 ? a->c_in : 2 * steps_of(a->c_in, a->product);  // those after c_in are zeros
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int64_t n = most(0, least(kLanes, a->c_in - c));
    V v = load_tail(x + c, n);
    if (a->normalize) v = (v - splat(m.mean)) * splat(m.factor);
    if (scale) v *= load_tail(scale + c, n);
#if defined(__AVX512F__)
    if (a->product != SEP_F32) {
      store_bf16((uint16_t*)to + c, first_lanes(v, n));
      continue;
    }
#endif
    store((float*)to + c, v);
  }
}

int64_t packed_columns(int64_t c_out) { return ceil_div(c_out, kLanes) * kLanes; }

int64_t packed_bytes(int64_t c_in, int64_t c_out, int32_t product) {
  return steps_of(c_in, product) * packed_columns(c_out) * 4;
}

// ---- units: blocks of rows, and where these are few or the weights many, groups of panels

struct Grid {
  int64_t block_rows, blocks, group_panels, groups;
};

Grid grid(const Args* a) {
  Grid g;
  const int64_t panels = ceil_div(a->c_out, kPanel);
  if (a->run) return {a->rows, a->rows > 0, panels, 1};
  const int64_t work = a->c_in * a->c_out, height = height_of(a->product);
  const int64_t unit_work = a->product == SEP_BF16_TILES ? kTilesUnitWork : kUnitWork;
  const int64_t fit = kBlockBytes / (4 * steps_of(a->c_in, a->product));
  int64_t rows = least(ceil_div(unit_work, work), fit);
  if (packed_bytes(a->c_in, a->c_out, a->product) > kLargeWeight) rows = most(rows, least(8 * height, fit));
  rows = ceil_div(most(rows, 1), height) * height;
  if (a->sums) rows = a->image_rows;  // one unit sees all of an image, so that its sum has one order
  g.block_rows = least(rows, a->rows);
  g.blocks = g.block_rows ? ceil_div(a->rows, g.block_rows) : 0;
  g.group_panels = least(panels, ceil_div(unit_work, most(1, g.block_rows * a->c_in * kPanel)));
  g.groups = ceil_div(panels, g.group_panels);
  return g;
}

int64_t units(const Args* a) {
  const Grid g = grid(a);
  return g.blocks * g.groups;
}

// Room of the copy; matrix tiles read rows 16 at a time, and do nothing with those after the last.
int64_t copied_rows(const Args* a, const Grid& g) {
  return a->product == SEP_BF16_TILES ? ceil_div(g.block_rows, kTileRows) * kTileRows : g.block_rows;
}

int64_t scratch_bytes(const Args* a) {
  const int64_t copied = is_copied(a) ? copied_rows(a, grid(a)) * copied_stride(a) * 4 : 0;
  const int64_t scaled = scales_weight(a) ? packed_bytes(a->c_in, a->c_out, SEP_F32) : 0;
  return copied + scaled + (a->sums ? height_of(a->product) * kPanel * 4 : 0);
}

void scale_weight(const Args* a, float* to) {
  const float* from = (const float*)a->weight;
  for (int64_t column = 0; column < packed_columns(a->c_out); column += kPanel) {
    const int64_t vectors = least(kPanel, packed_columns(a->c_out) - column) / kLanes;
    for (int64_t c = 0; c < a->c_in; ++c)
      for (int64_t v = 0; v < vectors; ++v, from += kLanes, to += kLanes) store(to, load(from) * splat(a->scale[c]));
  }
}

void add_rows(const float* y, int64_t y_stride, int64_t rows, int64_t columns, float* sums) {
  for (int64_t c = 0; c < columns; c += kLanes) {
    const int64_t n = least(kLanes, columns - c);
    V sum = load_tail(sums + c, n);
    for (int64_t r = 0; r < rows; ++r) sum += load_tail(y + r * y_stride + c, n);
    store_tail(sums + c, sum, n);
  }
}

// What the tile after this one will write: so many rows, `ahead` rows on. A line that is not there is read before it is written.
void fetch_results(const Tile& t, int64_t rows, int64_t ahead) {
  for (int64_t r = ahead; r < ahead + rows; ++r)
    for (int64_t c = 0; c < t.columns; c += 16) __builtin_prefetch(t.y + r * t.y_stride + c, 1, 2);
}

// Rows [first, last) by the panels of one group. copy: of the first row on, or null.
void run_unit(const Args* a, const Grid& g, const Word* copy, int64_t x_stride, int64_t first, int64_t last, int64_t group,
              float* unwritten) {
  const int64_t steps = steps_of(a->c_in, a->product), height = height_of(a->product), all = packed_columns(a->c_out);
  const int64_t from = group * g.group_panels * kPanel, to = least(a->c_out, from + g.group_panels * kPanel);
  const bool matrix = a->product == SEP_BF16_TILES;  // in whole tiles but the last, else in tiles of like height
  const bool far = a->y && a->rows * a->y_stride * 4 > kFarBytes;
  for (int64_t column = from; column < to; column += kPanel) {
    const int64_t columns = least(kPanel, to - column), image = a->image_rows ? first / a->image_rows : 0;
    float* sums = a->sums ? a->sums + image * a->c_out + column : nullptr;
    for (int64_t c = 0; sums && c < columns; ++c) sums[c] = 0;
    const int64_t next = column + kPanel < all ? column + kPanel : 0;
    // Fetched with each row of this panel: of the next one, unless it is the same, or the processor finds it in time, as it does behind
    // the long panels of windows.
    int64_t share = all > kPanel && !(a->run && a->product == SEP_F32) ? least(kPanel, all - next) * steps * 4 / (last - first) : 0;
    const char* ahead = (const char*)a->weight + next * steps * 4;
    if (a->ahead) {
      share = a->ahead_bytes / (a->rows * ceil_div(a->c_out, kPanel));
      ahead = (const char*)a->ahead + (first * ceil_div(a->c_out, kPanel) + column / kPanel * (last - first)) * share;
    }
    Tile t;
    t.x_stride = x_stride;
    t.run = a->run ? a->run : steps;
    t.run_stride = a->run_stride;
    t.w = (const float*)a->weight + column * steps;
    t.steps = steps;
    t.y_stride = a->y ? a->y_stride : (int64_t)kPanel;
    t.columns = columns;
    t.bias = a->bias ? a->bias + column : nullptr;
    t.residual_stride = a->residual_stride;
    t.activation = a->activation;
    t.residual_first = a->residual_first;
    for (int64_t begin = first, end; begin < last; begin = end) {  // rows whose results lie evenly apart
      end = a->y_run ? least(last, (begin / a->y_run + 1) * a->y_run) : last;
      const int64_t tiles = ceil_div(end - begin, height), low = (end - begin) / tiles, higher = (end - begin) % tiles;
      const int64_t runs = a->y_run ? begin / a->y_run : 0, at = runs * a->y_run_stride + (begin - runs * a->y_run) * a->y_stride;
      float* y = a->y ? a->y + column + at : unwritten;
      const Word* x = copy ? copy + (begin - first) * x_stride : (const Word*)a->x + offset_of(a, begin);
      for (int64_t row = begin, rows, i = 0; row < end; row += rows, ++i) {
        rows = matrix ? least(end - row, height) : low + (i < higher);
        t.x = x + (row - begin) * x_stride;
        t.ahead = ahead + (row - first) * share;
        t.ahead_bytes = rows * share;
        t.ahead_step = least(t.ahead_bytes / steps, 128);
        t.y = a->y ? y + (row - begin) * a->y_stride : unwritten;
        const int64_t residual_at = a->y_run ? at + (row - begin) * a->y_stride : row * a->residual_stride;
        t.residual = a->residual ? a->residual + residual_at + column : nullptr;
        if (far) fetch_results(t, least(rows, end - row - rows), rows);
        multiply(t, a->product, rows);
        if (sums) add_rows(t.y, t.y_stride, rows, columns, sums);
      }
    }
  }
}

void run(const Args* given, void* scratch, int64_t begin, int64_t end) {
  const Args* a = given;
  const Grid g = grid(a);
  const bool copied = is_copied(a);
  const int64_t x_stride = copied ? copied_stride(a) : a->x_stride;
  Word* copy = (Word*)scratch;
  float* unwritten = (float*)scratch + (copied ? copied_rows(a, g) * x_stride : 0);
  Args scaled = *given;
  if (scales_weight(a)) {
    float* weight = unwritten + (a->sums ? height_of(a->product) * kPanel : 0);
    scale_weight(a, weight);
    scaled.weight = weight;
    a = &scaled;
  }
  begin_product(a->product);
  int64_t copied_block = -1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t block = unit / g.groups, first = block * g.block_rows, last = least(a->rows, first + g.block_rows);
    if (copied && block != copied_block) {
      for (int64_t row = first; row < last; ++row) copy_row(a, row, copy + (row - first) * x_stride);
      copied_block = block;
    }
    run_unit(a, g, copied ? copy : nullptr, x_stride, first, last, unit % g.groups, unwritten);
  }
  end_product(a->product);
}

// ---- weights

uint16_t rounded(float a) {
  uint16_t all[kLanes];
  store(all, splat(a));
  return all[0];
}

// Rows of weights as torch has them, kLanes outputs by kLanes channels at a time: a few bytes a cycle, so that a call may pack.
void pack_rows(const float* weight, int64_t out_stride, int64_t c_in, int64_t c_out, float* packed) {
  for (int64_t column = 0; column < packed_columns(c_out); column += kLanes) {
    const int64_t panel = column / kPanel * kPanel, width = least(kPanel, packed_columns(c_out) - panel);
    float* to = packed + panel * c_in + (column - panel);
    for (int64_t c = 0; c < c_in; c += kLanes) {
      const int64_t n = least(kLanes, c_in - c);
      V rows[kLanes];
      for (int64_t l = 0; l < kLanes; ++l)
        rows[l] = column + l < c_out ? load_tail(weight + (column + l) * out_stride + c, n) : V{};
      transpose(rows);
      for (int64_t i = 0; i < n; ++i) store(to + (c + i) * width, rows[i]);
    }
  }
}

// Weights whose outputs lie together, as those of a transposed product do: whole vectors, moved.
void pack_columns(const float* weight, int64_t in_stride, int64_t c_in, int64_t c_out, float* to) {
  for (int64_t panel = 0; panel < packed_columns(c_out); panel += kPanel) {
    const int64_t width = least(kPanel, packed_columns(c_out) - panel);
    for (int64_t i = 0; i < c_in; ++i, to += width)
      for (int64_t o = 0; o < width; o += kLanes)
        store(to + o, load_tail(weight + panel + o + i * in_stride, most(0, least(kLanes, c_out - panel - o))));
  }
}

void pack_weight(const float* weight, int64_t out_stride, int64_t in_stride, int64_t c_in, int64_t c_out, int32_t product,
                 void* packed) {
  if (product == SEP_F32 && in_stride == 1) return pack_rows(weight, out_stride, c_in, c_out, (float*)packed);
  if (product == SEP_F32 && out_stride == 1) return pack_columns(weight, in_stride, c_in, c_out, (float*)packed);
  const int64_t each = product == SEP_F32 ? 1 : 2, steps = steps_of(c_in, product), all = packed_columns(c_out);
  for (int64_t column = 0; column < all; column += kPanel) {
    const int64_t width = least(kPanel, all - column);
    for (int64_t i = 0; i < steps * each; ++i)
      for (int64_t o = 0; o < width; ++o) {
        const float w = i < c_in && column + o < c_out ? weight[(column + o) * out_stride + i * in_stride] : 0;
        const int64_t at = (column * steps + i / each * width + o) * each + i % each;
        if (product != SEP_F32) ((uint16_t*)packed)[at] = rounded(w);
        else ((float*)packed)[at] = w;
      }
  }
}

}  // namespace

extern "C" const sep_pointwise_conv_kernels SEP_TABLE(pointwise_conv) = {packed_bytes, pack_weight, units,
                                                                          scratch_bytes, run};
