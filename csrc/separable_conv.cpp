// Fused chains, tile by tile: expanded rows, their depthwise output and its product, by the kernels of the same instruction set.
#include "separable_conv.h"

#include "depthwise_tile.h"
#include "vec.h"

namespace {

typedef sep_separable_conv_args Args;
typedef sep_pointwise_conv_args Pointwise;

enum {
  kTileBytes = 384 << 10,       // of scratch for the tensors between: they and the weights they meet stay in a second-level cache
  kLargeTileBytes = 768 << 10,  // where weights, which each tile reads, are larger than that, and up to kFewRows rows
  kFewRows = 4,                 // under which moving the rows that two tiles share costs as much as making new ones
  kFewPixels = 7,               // in a row, under which the registers of a product's tile would not be filled,
  kEvenPixels = 14,             // or, with more than kFewChannels to read weights of, if rows do not fall into whole tiles, which those of
  kManyPixels = 28,             // kManyPixels nearly do
  kFewChannels = 192,
  kNearBytes = 3 << 19,         // of a second-level cache
  kUnitWork = 1 << 18,          // multiply-adds of a unit worth a thread's while
};

SEP_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
SEP_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
SEP_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Sizes that follow from the arguments. Rows are rows of pixels; `in` what is read, `mid` after the first step, `deep` after the second,
// `out` the result.
struct Plan {
  bool expand, depthwise, project;
  int64_t in_channels, mid_channels, deep_channels, out_channels;
  int64_t height, width, out_height, out_width;
  int64_t left, wide;             // zeros before each row of the expanded image, and its width with those on both sides
  int64_t tile_rows, tiles;       // rows of output in a tile, tiles in an image
  int64_t group_columns, groups;  // of the product: a tile's is split where images have few tiles and weights are large
  int64_t kept_rows;              // rows of the expanded image that scratch has room for
  bool ahead;                     // fetches what the next tile reads and writes, of images that no near cache holds
};

int64_t rows_read(const Args* a, int64_t rows) {  // by `rows` rows of output
  const Step& d = a->depthwise;
  return a->depthwise.weight ? (rows - 1) * d.stride[0] + (int64_t)(d.kernel[0] - 1) * d.dilation[0] + 1 : rows;
}

// An expanded image has its border of zeros on both sides, so that no output need look where it ends. Rows of few pixels have none where
// the product would be slower for it: it goes row by row then.
void set_border(const Args* a, Plan& p) {
  const Step& d = a->depthwise;
  p.left = 0, p.wide = p.width;
  if (!p.expand || !p.depthwise || a->expand.product == SEP_BF16_TILES || p.width < kFewPixels) return;
  if (p.width % kEvenPixels && p.width < kManyPixels && a->expand.c_in > kFewChannels) return;
  const int64_t reach = (p.out_width - 1) * d.stride[1] + (int64_t)(d.kernel[1] - 1) * d.dilation[1] + 1;
  const int64_t right = most(0, reach - d.padding[1] - p.width);
  if (d.padding[1] + right <= p.width) p.left = d.padding[1], p.wide = p.left + p.width + right;
}

int64_t middle_bytes(const Args* a, const Plan& p, int64_t rows) {
  const int64_t kept = p.expand ? least(p.height, rows_read(a, rows)) * p.wide * p.mid_channels : 0;
  const int64_t deep = p.depthwise && (p.project || !p.expand) ? rows * p.out_width * p.deep_channels : 0;
  return (kept + deep) * 4;
}

int64_t weight_bytes(const Pointwise& step) { return SEP_TABLE(pointwise_conv).packed_bytes(step.c_in, step.c_out, step.product); }

Plan plan(const Args* a) {
  const Step& d = a->depthwise;
  Plan p;
  p.expand = a->expand.weight, p.depthwise = a->depthwise.weight, p.project = a->project.weight;
  p.mid_channels = p.expand ? a->expand.c_out : d.channels * d.adds;
  p.in_channels = p.expand ? a->expand.c_in : p.mid_channels;
  p.deep_channels = p.depthwise ? d.channels * d.makes : p.mid_channels;
  p.out_channels = p.project ? a->project.c_out : p.deep_channels;
  p.height = d.size[0], p.width = d.size[1], p.out_height = d.out[0], p.out_width = d.out[1];
  set_border(a, p);
  const int64_t weight = (p.expand ? weight_bytes(a->expand) : 0) + (p.project ? weight_bytes(a->project) : 0);
  int64_t rows = 1;
  while (rows < p.out_height &&
         middle_bytes(a, p, rows + 1) <= (rows < kFewRows || weight > kTileBytes ? kLargeTileBytes : kTileBytes))
    ++rows;
  p.tiles = ceil_div(p.out_height, rows);
  p.tile_rows = ceil_div(p.out_height, p.tiles);
  p.tiles = ceil_div(p.out_height, p.tile_rows);
  p.kept_rows = least(p.height, rows_read(a, p.tile_rows));
  p.ahead = d.batch * (p.height * p.width * p.in_channels + p.out_height * p.out_width * p.out_channels) * 4 > kNearBytes;
  p.group_columns = p.out_channels;
  // A second thread makes the tile's depthwise output again, which costs little beside the product; an expansion would not.
  if (p.project && !p.expand && p.tiles * d.batch < 8) {
    const int64_t panel = 2 * kLanes, work = p.tile_rows * p.out_width * p.deep_channels * panel;
    const int64_t panels = most(ceil_div(kUnitWork, most(work, 1)), ceil_div(p.out_channels, 8 * panel));
    p.group_columns = least(p.out_channels, panels * panel);
  }
  p.groups = ceil_div(p.out_channels, p.group_columns);
  return p;
}

int64_t units(const Args* a) {
  const Plan p = plan(a);
  return a->depthwise.batch * p.tiles * p.groups;
}

int64_t aligned(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

Pointwise rows_of(const Pointwise& step, int64_t rows) {
  Pointwise a = step;
  a.rows = rows, a.x_stride = step.c_in, a.y_stride = step.c_out;
  a.scale = nullptr, a.sums = nullptr, a.image_rows = a.run = a.run_stride = a.y_run = a.y_run_stride = 0;
  a.ahead = nullptr, a.ahead_bytes = 0;
  return a;
}

int64_t kept_bytes(const Plan& p) { return p.expand ? aligned(p.kept_rows * p.wide * p.mid_channels * 4) : 0; }
int64_t deep_bytes(const Plan& p) {
  return p.depthwise && p.project ? aligned(p.tile_rows * p.out_width * p.deep_channels * 4) : 0;
}

int64_t scratch_bytes(const Args* a) {
  const Plan p = plan(a);
  int64_t inner = 0;
  if (p.expand) {
    const Pointwise e = rows_of(a->expand, p.kept_rows * p.width);
    inner = SEP_TABLE(pointwise_conv).scratch_bytes(&e);
  }
  if (p.project) {
    Pointwise e = rows_of(a->project, p.tile_rows * p.out_width);
    for (int64_t column = 0; column < p.out_channels; column += p.group_columns) {
      const int64_t some[] = {p.out_channels - column, least(column + p.group_columns, p.out_channels)};  // the last groups, the first
      for (const int64_t columns : some) {
        e.c_out = columns;  // fewer columns may be multiplied in larger blocks of rows
        inner = most(inner, SEP_TABLE(pointwise_conv).scratch_bytes(&e));
      }
    }
  }
  return kept_bytes(p) + deep_bytes(p) + inner;
}

void run_pointwise(const Pointwise& a, void* scratch) {
  SEP_TABLE(pointwise_conv).run(&a, scratch, 0, SEP_TABLE(pointwise_conv).units(&a));
}

// While `step` runs: what comes after the `bytes` from p on, as much again, to `end` at most.
void fetch_next(Pointwise& step, const float* p, int64_t floats, const float* end) {
  step.ahead = p + floats;
  step.ahead_bytes = 4 * most(0, least(floats, end - (p + floats)));
}

// What one call of run() holds of the image it is in.
struct Held {
  int64_t image, first, last;  // rows [first, last) of this expanded image
  float *kept, *deep;
  void* inner;
};

// Rows [first, last) of the expanded image are in h.kept afterwards; those already there move to the front.
void expand_rows(const Args* a, const Plan& p, Held& h, int64_t image, int64_t first, int64_t last) {
  const int64_t in_row = p.width * p.in_channels, row = p.wide * p.mid_channels;
  int64_t have = first;
  if (image == h.image && first >= h.first && first < h.last) {
    have = h.last;
    if (first != h.first) __builtin_memmove(h.kept, h.kept + (first - h.first) * row, (have - first) * row * 4);
  }
  if (last > have) {
    Pointwise e = rows_of(a->expand, (last - have) * p.width);
    e.x = a->x + (image * p.height + have) * in_row;
    e.y = h.kept + (have - first) * row + p.left * p.mid_channels;
    if (p.ahead) fetch_next(e, e.x, (last - have) * in_row, a->x + a->depthwise.batch * p.height * in_row);
    if (p.wide > p.width) e.y_run = p.width, e.y_run_stride = row;
    run_pointwise(e, h.inner);
  }
  h.image = image, h.first = first, h.last = most(last, have);
}

void clear_border(const Plan& p, float* kept) {
  const int64_t C = p.mid_channels, right = p.left + p.width;
  for (int64_t r = 0; r < p.kept_rows; ++r, kept += p.wide * C) {
    for (int64_t i = 0; i < p.left * C; ++i) kept[i] = 0;
    for (int64_t i = right * C; i < p.wide * C; ++i) kept[i] = 0;
  }
}

void add_rows(const float* y, int64_t rows, int64_t channels, float* sums) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int64_t n = least(kLanes, channels - c);
    V sum = {};
    for (int64_t r = 0; r < rows; ++r) sum += load_tail(y + r * channels + c, n);
    store_tail(sums + c, sum, n);
  }
}

// The last step: the columns of groups [group, last_group) of the product of a tile's rows.
void project_rows(const Args* a, const Plan& p, const Held& h, const float* x, int64_t pixel, int64_t rows, int64_t group,
                  int64_t last_group) {
  const int64_t column = group * p.group_columns;
  Pointwise e = rows_of(a->project, rows);
  e.x = x;
  e.weight = (const char*)e.weight + SEP_TABLE(pointwise_conv).packed_bytes(e.c_in, column, e.product);
  e.c_out = least(last_group * p.group_columns, p.out_channels) - column;
  e.bias = e.bias ? e.bias + column : nullptr;
  e.y = a->y + pixel * p.out_channels + column;
  e.residual = e.residual ? e.residual + pixel * e.residual_stride + column : nullptr;
  if (p.ahead && p.expand) {
    const int64_t all = a->depthwise.batch * p.out_height * p.out_width;
    fetch_next(e, a->y + pixel * p.out_channels, rows * p.out_channels, a->y + all * p.out_channels);
  } else if (p.ahead) {
    const int64_t image = p.height * p.width * p.in_channels, read = a->depthwise.batch * image;
    const int64_t done = pixel + rows, all = a->depthwise.batch * p.out_height * p.out_width;
    const float* from = a->x + read / all * done;
    e.ahead = from, e.ahead_bytes = least(read / all * rows * 4, (a->x + read - from) * 4);
  }
  run_pointwise(e, h.inner);
}

void run(const Args* a, void* scratch, int64_t begin, int64_t end) {
  const Plan p = plan(a);
  const Step& d = a->depthwise;
  Step inner = d;  // as it sees the expanded image
  inner.size[1] = p.wide, inner.padding[1] = (int32_t)(d.padding[1] - p.left);
  char* memory = (char*)scratch;
  Held h = {-1, 0, 0, (float*)memory, (float*)(memory + kept_bytes(p)), memory + kept_bytes(p) + deep_bytes(p)};
  if (p.wide > p.width && begin < end) clear_border(p, h.kept);
  for (int64_t unit = begin, next; unit < end; unit = next) {  // unit to next: the groups of one tile
    const int64_t tile = unit / p.groups, image = tile / p.tiles;
    next = least(end, (tile + 1) * p.groups);
    const int64_t first = tile % p.tiles * p.tile_rows, last = least(p.out_height, first + p.tile_rows);
    const int64_t pixel = (image * p.out_height + first) * p.out_width, pixels = (last - first) * p.out_width;
    if (p.expand) {
      const int64_t top = p.depthwise ? first * d.stride[0] - d.padding[0] : first;
      expand_rows(a, p, h, image, least(most(0, top), p.height), least(p.height, most(0, top + rows_read(a, last - first))));
    }
    float* deep = p.project ? h.deep : a->y + pixel * p.deep_channels;
    if (p.depthwise) {
      const int64_t row = p.wide * p.mid_channels;
      const float* top = p.expand ? h.kept - h.first * row : a->x + image * p.height * row;  // the image's row 0
      convolve_rows<float>(inner, top, deep, first, last, false, p.expand);
    }
    if (!p.project && a->sums) add_rows(deep, pixels, p.deep_channels, a->sums + unit * p.deep_channels);
    if (p.project) project_rows(a, p, h, p.depthwise ? deep : h.kept, pixel, pixels, unit % p.groups, next - tile * p.groups);
  }
}

}  // namespace

extern "C" const sep_separable_conv_kernels SEP_TABLE(separable_conv) = {packed_floats, pack_depthwise, units,
                                                                          scratch_bytes, run};
