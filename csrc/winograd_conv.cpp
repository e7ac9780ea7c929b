// Winograd convolution: blocks of tiles are transformed, multiplied by groups of weights, and transformed back, all in scratch memory.
//
// A block is as many tiles, across rows and images, as keep their transformed input in the second-level cache. For each of the 36 (16)
// products of a tile's elements that is a matrix (tiles, channels); the transformed weights are as many matrices (channels, filters),
// in groups of a few panels of columns, and lie in the order in which a unit, one block by one group, reads them: group, element,
// panel, channel, column. After them lie the weights as they are, channels by filters for each tap, for what is not finite.
#include "winograd_conv.h"

#include "activation.h"
#include "winograd_product.h"
#include "winograd_tile.h"

namespace {

typedef sep_winograd_conv_args Args;

constexpr int64_t kBlockBytes = 2304 << 10;    // of transformed input: 28 tiles of 4x4 and 512 channels
constexpr int64_t kLargeWeight = 4 << 20;      // bytes worth reading for more tiles at a time, by more panels for each element
constexpr int64_t kBlockTiles[] = {28, 56};    // of a block, by small weights and large ones
constexpr int64_t kGroupPanels[] = {1, 4};     // of a group
constexpr int64_t kChunk = 256;                // channels whose panel of weights stays in the first-level cache for all tiles
constexpr int64_t kAhead = 16 << 10;           // bytes of weights

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t edge(const Args* a) { return a->tile + 2; }  // of a tile's input, and of its transform
int64_t elements(const Args* a) { return edge(a) * edge(a); }
int64_t columns_of(const Args* a) { return ceil_div(a->filters, kLanes) * kLanes; }
int64_t transformed_floats(const Args* a) { return elements(a) * a->channels * columns_of(a); }
bool is_large(const Args* a) { return transformed_floats(a) * 4 > kLargeWeight; }
int64_t group_columns(const Args* a) { return kGroupPanels[is_large(a)] * kPanel; }
int64_t odd_lines(int64_t floats) { return (ceil_div(floats, 16) | 1) * 16; }  // strides that spread over all sets of a cache

struct Grid {
  int64_t down, across, tiles;       // tiles of an image, and of all
  int64_t block_tiles, blocks, groups;
  int64_t v_row, v_matrix;           // floats from a tile of the transformed input to the next, from an element to the next
  int64_t m_row, m_matrix;           // the same of the products
};

Grid grid(const Args* a) {
  Grid g;
  g.down = ceil_div(a->out[0], a->tile), g.across = ceil_div(a->out[1], a->tile);
  g.tiles = a->batch * g.down * g.across;
  g.v_row = odd_lines(a->channels);
  const int64_t fit = kBlockBytes / (elements(a) * g.v_row * 4);
  g.blocks = ceil_div(g.tiles, most(kRows, least(fit, kBlockTiles[is_large(a)])));
  g.block_tiles = g.blocks ? ceil_div(g.tiles, g.blocks) : 0;
  g.groups = ceil_div(a->filters, group_columns(a));
  g.v_matrix = odd_lines(g.block_tiles * g.v_row);
  g.m_row = least(group_columns(a), columns_of(a));
  g.m_matrix = odd_lines(g.block_tiles * g.m_row);
  return g;
}

int64_t units(const Args* a) {
  const Grid g = grid(a);
  return g.blocks * g.groups;
}

int64_t scratch_bytes(const Args* a) {
  const Grid g = grid(a);
  return elements(a) * (g.v_matrix + g.m_matrix) * 4;
}

// ---- one tile

struct Place {
  int64_t image, top, left;  // of its outputs
};

Place place(const Args* a, const Grid& g, int64_t tile) {
  return {tile / g.across / g.down, tile / g.across % g.down * a->tile, tile % g.across * a->tile};
}

// A vector of channels of the tile's input; `n` of them exist. x: the first channel of the tile's first pixel, which may not exist.
template <class F, bool Inside>
SEP_INLINE void transform_vector(const Args* a, int64_t top, int64_t left, const float* x, int64_t n, float* to, int64_t stride) {
  V d[F::kIn][F::kIn], v[F::kIn][F::kIn];
  #pragma GCC unroll 6
  for (int i = 0; i < F::kIn; ++i)
    #pragma GCC unroll 6
    for (int j = 0; j < F::kIn; ++j) {
      const float* from = x + i * a->x_stride[2] + j * a->x_stride[3];
      if (Inside) {
        d[i][j] = load(from);
      } else {
        const bool exists = top + i >= 0 && top + i < a->size[0] && left + j >= 0 && left + j < a->size[1];
        d[i][j] = load_tail(exists ? from : a->x, exists ? n : 0);
      }
    }
  input_transform<F>(d, v);
  #pragma GCC unroll 6
  for (int i = 0; i < F::kIn; ++i)
    #pragma GCC unroll 6
    for (int j = 0; j < F::kIn; ++j) store(to + (i * F::kIn + j) * stride, v[i][j]);
}

template <class F>
void transform_tile(const Args* a, const Grid& g, int64_t tile, float* to) {
  const Place p = place(a, g, tile);
  const int64_t top = p.top - a->padding[0], left = p.left - a->padding[1], *s = a->x_stride;
  const float* x = a->x + p.image * s[0] + top * s[2] + left * s[3];
  const bool inside = top >= 0 && left >= 0 && top + F::kIn <= a->size[0] && left + F::kIn <= a->size[1];
  const int64_t whole = inside ? a->channels / kLanes * kLanes : 0;
  for (int64_t c = 0; c < whole; c += kLanes) transform_vector<F, true>(a, top, left, x + c, kLanes, to + c, g.v_matrix);
  for (int64_t c = whole; c < a->channels; c += kLanes)
    transform_vector<F, false>(a, top, left, x + c, least(kLanes, a->channels - c), to + c, g.v_matrix);
}

// ---- products

void multiply_group(const Args* a, const Grid& g, int64_t tiles, int64_t group, const float* v, float* m) {
  const int64_t first = group * group_columns(a), last = least(first + group_columns(a), columns_of(a));
  const float* w = (const float*)a->weight + first * a->channels * elements(a);
  const int64_t parts = ceil_div(tiles, kRows);
  Product p;
  p.x_stride = g.v_row, p.y_stride = g.m_row;
  for (int64_t k = 0; k < elements(a); ++k)
    for (int64_t column = first; column < last; column += kPanel) {
      const int64_t columns = least(kPanel, last - column);
      for (int64_t c = 0; c < a->channels; c += kChunk, w += p.channels * columns) {
        p.channels = least(kChunk, a->channels - c);
        p.adds = c > 0;
        p.w = w;
        p.share = columns * 4 / parts;
        for (int64_t i = 0; i < parts; ++i) {
          const int64_t row = tiles * i / parts, rows = tiles * (i + 1) / parts - row;
          p.x = v + k * g.v_matrix + row * g.v_row + c;
          p.y = m + k * g.m_matrix + row * g.m_row + (column - first);
          p.ahead = (const char*)w + kAhead + i * p.share * p.channels;
          kProducts[rows - 1][columns > kLanes](p);
        }
      }
    }
}

// ---- results

// A vector of one output pixel by plain sums.
V plain_sum(const Args* a, int64_t image, int64_t top, int64_t left, int64_t column) {
  const int64_t columns = columns_of(a);
  const float* w = (const float*)a->weight + transformed_floats(a) + column;
  V sum = {};
  for (int64_t tap = 0; tap < 9; ++tap) {
    const int64_t row = top + tap / 3 - a->padding[0], at = left + tap % 3 - a->padding[1];
    if (row < 0 || row >= a->size[0] || at < 0 || at >= a->size[1]) continue;
    const float* x = a->x + image * a->x_stride[0] + row * a->x_stride[2] + at * a->x_stride[3];
    for (int64_t c = 0; c < a->channels; ++c) sum = fma(splat(x[c]), load(w + (tap * a->channels + c) * columns), sum);
  }
  return sum;
}

template <class F>
void finish_tile(const Args* a, const Grid& g, int64_t tile, int64_t first, int64_t last, const float* m) {
  const Place p = place(a, g, tile);
  const int64_t rows = least(F::kOut, a->out[0] - p.top), pixels = least(F::kOut, a->out[1] - p.left);
  for (int64_t column = first; column < last; column += kLanes, m += kLanes) {
    const int64_t n = least(kLanes, last - column);
    V y[F::kOut][F::kOut], unfit = {};
    output_transform<F>(m, g.m_matrix, y);
    #pragma GCC unroll 4
    for (int i = 0; i < F::kOut; ++i)
      #pragma GCC unroll 4
      for (int j = 0; j < F::kOut; ++j) unfit = fma(y[i][j], V{}, unfit);  // NaN where one is NaN or infinite
    const bool plain = any((VI)(unfit != unfit));
    const V bias = a->bias ? load_tail(a->bias + column, n) : V{};
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < pixels; ++j) {
        const int64_t at = ((p.image * a->out[0] + p.top + i) * a->out[1] + p.left + j) * a->filters + column;
        V s = plain ? plain_sum(a, p.image, p.top + i, p.left + j, column) : y[i][j];
        const V added = a->residual ? load_tail(a->residual + at, n) : V{};
        s += bias;
        if (a->residual && a->residual_first) s += added;
        s = activate(s, a->activation);
        if (a->residual && !a->residual_first) s += added;
        store_tail(a->y + at, s, n);
      }
  }
}

template <class F>
void run_units(const Args* a, void* scratch, int64_t begin, int64_t end) {
  const Grid g = grid(a);
  float *v = (float*)scratch, *m = v + elements(a) * g.v_matrix;
  int64_t transformed = -1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t block = unit / g.groups, group = unit % g.groups, first = g.tiles * block / g.blocks;
    const int64_t tiles = g.tiles * (block + 1) / g.blocks - first;
    if (block != transformed)
      for (int64_t i = 0; i < tiles; ++i) transform_tile<F>(a, g, first + i, v + i * g.v_row);
    transformed = block;
    multiply_group(a, g, tiles, group, v, m);
    const int64_t from = group * group_columns(a), to = least(a->filters, from + group_columns(a));
    for (int64_t i = 0; i < tiles; ++i) finish_tile<F>(a, g, first + i, from, to, m + i * g.m_row);
  }
}

void run(const Args* a, void* scratch, int64_t begin, int64_t end) {
  if (a->tile == Four::kOut) run_units<Four>(a, scratch, begin, end);
  else run_units<Two>(a, scratch, begin, end);
}

// ---- weights

int64_t packed_bytes(const Args* a) { return (transformed_floats(a) + 9 * a->channels * columns_of(a)) * 4; }

// Weight (o, c) becomes a number of each element's matrix, and a number of each tap's.
template <class F>
void pack(const Args* a, const float* weight, float* packed) {
  const int64_t columns = columns_of(a), C = a->channels;
  float* plain = packed + transformed_floats(a);
  for (int64_t panel = 0; panel < columns; panel += kPanel) {
    const int64_t group = panel / group_columns(a) * group_columns(a), group_width = least(group_columns(a), columns - group);
    const int64_t width = least(kPanel, columns - panel);
    float* to = packed + group * C * elements(a) + (panel - group) * C;
    for (int64_t c = 0; c < C; ++c)
      for (int64_t o = panel; o < panel + width; ++o, ++to) {
        double g[3][3], u[F::kIn][F::kIn];
        for (int64_t tap = 0; tap < 9; ++tap) {
          const float w = o < a->filters ? weight[(o * 9 + tap) * C + c] : 0;
          plain[(tap * C + c) * columns + o] = w;
          g[tap / 3][tap % 3] = w;
        }
        weight_transform<F>(g, u);
        for (int64_t k = 0; k < elements(a); ++k) to[k * group_width * C] = (float)u[k / F::kIn][k % F::kIn];
      }
  }
}

void pack_weight(const Args* a, const float* weight, void* packed) {
  if (a->tile == Four::kOut) pack<Four>(a, weight, (float*)packed);
  else pack<Two>(a, weight, (float*)packed);
}

}  // namespace

extern "C" const sep_winograd_conv_kernels SEP_TABLE(winograd_conv) = {packed_bytes, pack_weight, units, scratch_bytes, run};
