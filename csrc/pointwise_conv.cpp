// Pointwise convolution: a tile of rows by two vectors of columns stays in registers over the whole sum.
//
// Weights lie in panels of two vectors of columns, panel after panel, channel after channel; what is left over at the end
// is one panel of one vector where that suffices. One step of a tile loads two vectors and multiplies them by one channel of each row.
#include "pointwise_conv.h"

#include "activation.h"
#include "reduce.h"
#include "vec.h"

namespace {

typedef sep_pointwise_conv_args Args;

enum {
  kRows = kRegisters == 32 ? 14 : 6,  // 14 * 2 sums, 2 weights, 1 input in 32 registers; 6 * 2, 2 and 1 in 16
  kPanel = 2 * kLanes,
  kBlockBytes = 224 << 10,    // of x that one unit reads again for each panel
  kUnitWork = 1 << 18,        // multiply-adds
  kLargeWeight = 256 << 10,   // bytes of weight worth reading for many rows at a time
};

SEP_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
SEP_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
SEP_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- products: float32, or pairs of bfloat16 whose two products go into one float32 sum

struct Single {
  enum { kChannels = 1 };  // in one step
  SEP_INLINE V step(V sum, uint32_t x, V w) { return fma((V)(VU{} + x), w, sum); }
};

#if defined(__AVX512F__)
struct Pairs {
  enum { kChannels = 2 };
  // The assembler's own words, so that no other code of this file may be compiled to what the processor may lack.
  SEP_INLINE V step(V sum, uint32_t x, V w) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(w), "v"(VU{} + x));
    return sum;
  }
};
SEP_INLINE void store_bf16(uint16_t* p, V a) {
  typedef uint16_t Half __attribute__((vector_size(kLanes * 2)));
  Half h;
  asm("vcvtneps2bf16 %1, %0" : "=v"(h) : "v"(a));
  *(VHalf*)p = h;
}
#endif

// ---- the tile

struct Tile {
  const uint32_t* x;  // rows of floats or of pairs
  int64_t x_stride;
  const float* w;
  int64_t steps;
  float* y;
  int64_t y_stride, columns;
  const float *bias, *residual;
  int64_t residual_stride;
  int32_t activation, residual_first;
};

// What is not max and min: over the tile just written, so that the tile's code stays small.
void finish(const Tile& t, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    float* y = t.y + r * t.y_stride;
    const float* residual = t.residual ? t.residual + r * t.residual_stride : nullptr;
    for (int64_t c = 0; c < t.columns; c += kLanes) {
      const int64_t n = least(kLanes, t.columns - c);
      V v = load_tail(y + c, n);
      const V added = residual ? load_tail(residual + c, n) : V{};
      if (residual && t.residual_first) v += added;
      v = activate(v, t.activation);
      if (residual && !t.residual_first) v += added;
      store_tail(y + c, v, n);
    }
  }
}

template <class Product, int R, int N>
void tile(const Tile& t) {
  V sum[R][N];
  #pragma GCC unroll 2
  for (int v = 0; v < N; ++v) {
    const V first = t.bias ? load_tail(t.bias + v * kLanes, most(0, least(kLanes, t.columns - v * kLanes))) : V{};
    #pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[r][v] = first;
  }
  const uint32_t* x = t.x;
  const float* w = t.w;
  for (int64_t i = 0; i < t.steps; ++i, w += N * kLanes) {
    V weight[N];
    #pragma GCC unroll 2
    for (int v = 0; v < N; ++v) weight[v] = load(w + v * kLanes);
    #pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const uint32_t a = x[r * t.x_stride + i];
      #pragma GCC unroll 2
      for (int v = 0; v < N; ++v) sum[r][v] = Product::step(sum[r][v], a, weight[v]);
    }
  }
  const bool simple = is_clamp(t.activation), before = t.residual && simple && t.residual_first;
  const bool after = t.residual && simple && !t.residual_first;
  const V low = clamp_low(simple ? t.activation : SEP_NONE), high = clamp_high(simple ? t.activation : SEP_NONE);
  #pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    #pragma GCC unroll 2
    for (int v = 0; v < N; ++v) {
      const int64_t n = least(kLanes, t.columns - v * kLanes);
      float* y = t.y + r * t.y_stride + v * kLanes;
      const float* residual = t.residual + r * t.residual_stride + v * kLanes;
      V s = sum[r][v];
      if (n == kLanes) {
        if (before) s += load(residual);
        s = clamp(s, low, high);
        if (after) s += load(residual);
        store(y, s);
      } else {
        if (before) s += load_tail(residual, n);
        s = clamp(s, low, high);
        if (after) s += load_tail(residual, n);
        store_tail(y, s, n);
      }
    }
  }
  if (!simple) finish(t, R);
}

typedef void (*TileFunction)(const Tile&);
#define SEP_TILES(P, r) {tile<P, r, 1>, tile<P, r, 2>}
#define SEP_FEW(P) SEP_TILES(P, 1), SEP_TILES(P, 2), SEP_TILES(P, 3), SEP_TILES(P, 4), SEP_TILES(P, 5), SEP_TILES(P, 6)
#define SEP_MANY(P) SEP_TILES(P, 7), SEP_TILES(P, 8), SEP_TILES(P, 9), SEP_TILES(P, 10), SEP_TILES(P, 11), SEP_TILES(P, 12), SEP_TILES(P, 13), SEP_TILES(P, 14)
#if defined(__AVX512F__)
TileFunction const kTiles[2][kRows][2] = {{SEP_FEW(Single), SEP_MANY(Single)}, {SEP_FEW(Pairs), SEP_MANY(Pairs)}};
#elif defined(__aarch64__)
TileFunction const kTiles[1][kRows][2] = {{SEP_FEW(Single), SEP_MANY(Single)}};
#else
TileFunction const kTiles[1][kRows][2] = {{SEP_FEW(Single)}};
#endif

// ---- rows that are copied first: normalized, scaled, rounded, or only moved apart

// One image of more rows than there are columns: its scale goes into a copy of the weights, which is the smaller of the two.
bool scales_weight(const Args* a) {
  return a->scale && a->image_rows == a->rows && a->rows > a->c_out && !a->normalize && a->product == SEP_F32;
}

// Rows a multiple of 4 KiB apart fall into the same few lines of a first-level cache: a tile of them would be read from the second.
bool is_copied(const Args* a) {
  return (a->scale && !scales_weight(a)) || a->normalize || a->product == SEP_BF16 || (a->rows > 4 && a->x_stride % 512 == 0 && a->c_in >= 256);
}

int64_t copied_stride(const Args* a) {  // in steps; an odd number of cache lines
  const int64_t steps = a->product == SEP_BF16 ? ceil_div(a->c_in, 2) : a->c_in;
  return (ceil_div(steps, 16) | 1) * 16;
}

void copy_row(const Args* a, int64_t row, uint32_t* to) {
  const float* x = a->x + row * a->x_stride;
  const float* scale = a->scale && !scales_weight(a) ? a->scale + row / a->image_rows * a->c_in : nullptr;
  const Moments m = a->normalize ? moments(x, a->c_in, a->epsilon) : Moments{0, 1};
  for (int64_t c = 0; c < a->c_in; c += kLanes) {
    const int64_t n = least(kLanes, a->c_in - c);
    V v = load_tail(x + c, n);
    if (a->normalize) v = (v - splat(m.mean)) * splat(m.factor);
    if (scale) v *= load_tail(scale + c, n);
#if defined(__AVX512F__)
    if (a->product == SEP_BF16) {
      store_bf16((uint16_t*)to + c, first_lanes(v, n));  // an odd last channel is paired with zero
      continue;
    }
#endif
    store((float*)to + c, v);
  }
}

int64_t packed_columns(int64_t c_out) { return ceil_div(c_out, kLanes) * kLanes; }

int64_t packed_bytes(int64_t c_in, int64_t c_out, int32_t product) {
  return (product == SEP_BF16 ? ceil_div(c_in, 2) : c_in) * packed_columns(c_out) * 4;
}

// ---- units: blocks of rows, and where these are few or the weights many, groups of panels

struct Grid {
  int64_t block_rows, blocks, group_panels, groups;
};

Grid grid(const Args* a) {
  Grid g;
  const int64_t panels = ceil_div(a->c_out, kPanel), work = a->c_in * a->c_out;
  int64_t rows = least(ceil_div(kUnitWork, work), kBlockBytes / (4 * a->c_in));
  if (work * 4 > kLargeWeight) rows = most(rows, least(8 * kRows, kBlockBytes / (4 * a->c_in)));
  rows = ceil_div(most(rows, 1), kRows) * kRows;
  if (a->sums) rows = a->image_rows;  // one unit sees all of an image, so that its sum has one order
  g.block_rows = least(rows, a->rows);
  g.blocks = g.block_rows ? ceil_div(a->rows, g.block_rows) : 0;
  g.group_panels = least(panels, ceil_div(kUnitWork, most(1, g.block_rows * a->c_in * kPanel)));
  g.groups = ceil_div(panels, g.group_panels);
  return g;
}

int64_t units(const Args* a) {
  const Grid g = grid(a);
  return g.blocks * g.groups;
}

int64_t scratch_bytes(const Args* a) {
  const int64_t copied = is_copied(a) ? grid(a).block_rows * copied_stride(a) * 4 : 0;
  const int64_t scaled = scales_weight(a) ? packed_bytes(a->c_in, a->c_out, SEP_F32) : 0;
  return copied + scaled + (a->sums ? kRows * kPanel * 4 : 0);
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

// Rows [first, last) by the panels of one group; x points at the first row, whether copied or not.
void run_unit(const Args* a, const Grid& g, const uint32_t* x, int64_t x_stride, int64_t first, int64_t last, int64_t group,
              float* unwritten) {
  const int64_t steps = a->product == SEP_BF16 ? ceil_div(a->c_in, 2) : a->c_in;
  const int64_t from = group * g.group_panels * kPanel, to = least(a->c_out, from + g.group_panels * kPanel);
  const int64_t tiles = ceil_div(last - first, kRows);
  for (int64_t column = from; column < to; column += kPanel) {
    const int64_t columns = least(kPanel, to - column), image = a->image_rows ? first / a->image_rows : 0;
    float* sums = a->sums ? a->sums + image * a->c_out + column : nullptr;
    for (int64_t c = 0; sums && c < columns; ++c) sums[c] = 0;
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t row = (last - first) * i / tiles, rows = (last - first) * (i + 1) / tiles - row;
      Tile t;
      t.x = x + row * x_stride;
      t.x_stride = x_stride;
      t.w = (const float*)a->weight + column * steps;
      t.steps = steps;
      t.y = a->y ? a->y + (first + row) * a->y_stride + column : unwritten;
      t.y_stride = a->y ? a->y_stride : (int64_t)kPanel;
      t.columns = columns;
      t.bias = a->bias ? a->bias + column : nullptr;
      t.residual = a->residual ? a->residual + (first + row) * a->residual_stride + column : nullptr;
      t.residual_stride = a->residual_stride;
      t.activation = a->activation;
      t.residual_first = a->residual_first;
      kTiles[a->product][rows - 1][columns > kLanes](t);
      if (sums) add_rows(t.y, t.y_stride, rows, columns, sums);
    }
  }
}

void run(const Args* given, void* scratch, int64_t begin, int64_t end) {
  const Args* a = given;
  const Grid g = grid(a);
  const bool copied = is_copied(a);
  const int64_t x_stride = copied ? copied_stride(a) : a->x_stride;
  uint32_t* copy = (uint32_t*)scratch;
  float* unwritten = (float*)scratch + (copied ? g.block_rows * x_stride : 0);
  Args scaled = *given;
  if (scales_weight(a)) {
    float* weight = unwritten + (a->sums ? kRows * kPanel : 0);
    scale_weight(a, weight);
    scaled.weight = weight;
    a = &scaled;
  }
  int64_t copied_block = -1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t block = unit / g.groups, first = block * g.block_rows, last = least(a->rows, first + g.block_rows);
    if (copied && block != copied_block) {
      for (int64_t row = first; row < last; ++row) copy_row(a, row, copy + (row - first) * x_stride);
      copied_block = block;
    }
    const uint32_t* x = copied ? copy : (const uint32_t*)(a->x + first * a->x_stride);
    run_unit(a, g, x, x_stride, first, last, unit % g.groups, unwritten);
  }
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
  const int64_t each = product == SEP_BF16 ? 2 : 1, steps = ceil_div(c_in, each), all = packed_columns(c_out);
  for (int64_t column = 0; column < all; column += kPanel) {
    const int64_t width = least(kPanel, all - column);
    for (int64_t i = 0; i < steps * each; ++i)
      for (int64_t o = 0; o < width; ++o) {
        const float w = i < c_in && column + o < c_out ? weight[(column + o) * out_stride + i * in_stride] : 0;
        const int64_t at = (column * steps + i / each * width + o) * each + i % each;
        if (product == SEP_BF16) ((uint16_t*)packed)[at] = rounded(w);
        else ((float*)packed)[at] = w;
      }
  }
}

#if defined(__AVX512F__)
enum { kHasPairs = 1 };
#else
enum { kHasPairs = 0 };
#endif

}  // namespace

extern "C" const sep_pointwise_conv_kernels SEP_TABLE(pointwise_conv) = {kHasPairs, packed_bytes, pack_weight, units,
                                                                          scratch_bytes, run};
