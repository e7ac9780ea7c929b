// Batch norm of a training step: rows are walked in memory's order, the sums of a unit's rows lie in the first-level cache.
#include "batch_norm.h"

#include "activation_derivative.h"
#include "vec.h"

namespace {

typedef sep_batch_norm_args Args;

enum {
  kUnitNumbers = 16384,  // 64 KiB of x: moments() reads them a second time from the cache
  kGroup = 64,           // channels whose sums of all units are added at once
};

SEP_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t unit_rows(const Args* a) { return a->channels < kUnitNumbers ? kUnitNumbers / a->channels : 1; }
int64_t units(const Args* a) { return (a->rows + unit_rows(a) - 1) / unit_rows(a); }

// Calls step(c, n) for each vector of channels; n is a constant but for the last, so that whole vectors cost no mask.
template <class Step>
SEP_INLINE void each_vector(int64_t channels, const Step& step) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) step(c, kLanes);
  if (c < channels) step(c, channels - c);
}

struct Rows {  // of a unit
  int64_t begin, end;
};
Rows rows_of(const Args* a, int64_t unit) { return {unit * unit_rows(a), least(a->rows, (unit + 1) * unit_rows(a))}; }

template <int R>
SEP_INLINE void add_rows(const float* x, int64_t channels, float* sum) {
  each_vector(channels, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
    V part = load_tail(x + c, n);
    for (int r = 1; r < R; ++r) part += load_tail(x + r * channels + c, n);
    store_tail(sum + c, load_tail(sum + c, n) + part, n);
  });
}

template <int R>
SEP_INLINE void add_squares(const float* x, int64_t channels, const float* mean, float* squares) {
  each_vector(channels, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
    const V m = load_tail(mean + c, n);
    V part = load_tail(squares + c, n);
    for (int r = 0; r < R; ++r) {
      const V d = load_tail(x + r * channels + c, n) - m;
      part = fma(d, d, part);
    }
    store_tail(squares + c, part, n);
  });
}

// Mean and sum of squared deviations of each unit: two passes over what the first has brought into the cache.
void moments(const Args* a, int64_t begin, int64_t end) {
  const int64_t channels = a->channels;
  for (int64_t unit = begin; unit < end; ++unit) {
    const Rows rows = rows_of(a, unit);
    float *mean = a->partial + unit * 2 * channels, *squares = mean + channels;
    for (int64_t c = 0; c < 2 * channels; ++c) mean[c] = 0;
    int64_t r = rows.begin;
    for (; r + 4 <= rows.end; r += 4) add_rows<4>(a->x + r * channels, channels, mean);
    for (; r < rows.end; ++r) add_rows<1>(a->x + r * channels, channels, mean);
    const float share = 1.0f / (float)(rows.end - rows.begin);
    for (int64_t c = 0; c < channels; ++c) mean[c] *= share;
    for (r = rows.begin; r + 4 <= rows.end; r += 4) add_squares<4>(a->x + r * channels, channels, mean, squares);
    for (; r < rows.end; ++r) add_squares<1>(a->x + r * channels, channels, mean, squares);
  }
}

// The first two coefficients: y = act(x * scale + shift).
void set_coefficients(const Args* a) {
  for (int64_t c = 0; c < a->channels; ++c) {
    const float scale = (a->weight ? a->weight[c] : 1.0f) / __builtin_sqrtf(a->variance[c] + a->epsilon);
    a->coefficients[c] = scale;
    a->coefficients[a->channels + c] = (a->bias ? a->bias[c] : 0.0f) - a->mean[c] * scale;
  }
}

void finish_moments(const Args* a) {
  const int64_t channels = a->channels, count = units(a);
  for (int64_t first = 0; first < channels; first += kGroup) {  // units outside, so that partial is read in its own order
    const int64_t size = least(kGroup, channels - first);
    double mean[kGroup] = {}, squares[kGroup] = {};
    for (int64_t unit = 0; unit < count; ++unit) {
      const Rows rows = rows_of(a, unit);
      const float* own = a->partial + unit * 2 * channels + first;
      const double n = (double)(rows.end - rows.begin), before = (double)rows.begin;
      const double share = n / (before + n), weight = before * share;
      for (int64_t c = 0; c < size; ++c) {
        const double difference = own[c] - mean[c];
        mean[c] += difference * share;
        squares[c] += own[channels + c] + difference * difference * weight;
      }
    }
    for (int64_t c = 0; c < size; ++c) {
      a->mean[first + c] = (float)mean[c];
      a->variance[first + c] = (float)(squares[c] / (double)a->rows);
    }
  }
  set_coefficients(a);
}

template <int A>
void normalize_rows(const Args* a, int64_t begin, int64_t end) {
  const float *scale = a->coefficients, *shift = scale + a->channels;
  for (int64_t r = begin; r < end; ++r) {
    const float* x = a->x + r * a->channels;
    float* y = a->y + r * a->channels;
    each_vector(a->channels, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
      store_tail(y + c, activate(fma(load_tail(x + c, n), load_tail(scale + c, n), load_tail(shift + c, n)), A), n);
    });
  }
}

// sum of gz and of gz * (x - mean) over R rows, where gz is g through the activation.
template <int A, int R>
SEP_INLINE void add_products(const Args* a, int64_t row, float* sum, float* products) {
  const int64_t channels = a->channels;
  const float *x = a->x + row * channels, *g = a->g + row * channels, *scale = a->coefficients, *shift = scale + channels;
  each_vector(channels, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
    const V factor = load_tail(scale + c, n), offset = load_tail(shift + c, n), mean = load_tail(a->mean + c, n);
    V s = load_tail(sum + c, n), p = load_tail(products + c, n);
    for (int r = 0; r < R; ++r) {
      const V value = load_tail(x + r * channels + c, n);
      const V gz = through_activation(load_tail(g + r * channels + c, n), fma(value, factor, offset), A);
      s += gz;
      p = fma(gz, value - mean, p);
    }
    store_tail(sum + c, s, n);
    store_tail(products + c, p, n);
  });
}

template <int A>
void sum_rows(const Args* a, int64_t begin, int64_t end, float* sum, float* products) {
  int64_t r = begin;
  for (; r + 2 <= end; r += 2) add_products<A, 2>(a, r, sum, products);
  for (; r < end; ++r) add_products<A, 1>(a, r, sum, products);
}

template <int A>
void gradient_rows(const Args* a, int64_t begin, int64_t end) {
  const int64_t channels = a->channels;
  const float *scale = a->coefficients, *shift = scale + channels, *slope = shift + channels, *constant = slope + channels;
  for (int64_t r = begin; r < end; ++r) {
    const float *x = a->x + r * channels, *g = a->g + r * channels;
    float* y = a->y + r * channels;
    each_vector(channels, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
      const V value = load_tail(x + c, n), factor = load_tail(scale + c, n);
      const V gz = through_activation(load_tail(g + c, n), fma(value, factor, load_tail(shift + c, n)), A);
      const V same = fma(value - load_tail(a->mean + c, n), load_tail(slope + c, n), load_tail(constant + c, n));
      store_tail(y + c, fma(gz, factor, same), n);
    });
  }
}

typedef void (*RowsFunction)(const Args*, int64_t, int64_t);
typedef void (*SumFunction)(const Args*, int64_t, int64_t, float*, float*);
#define SEP_EACH(f) {f<SEP_NONE>, f<SEP_RELU>, f<SEP_RELU6>, f<SEP_SILU>, f<SEP_HARD_SWISH>, f<SEP_GELU>}
RowsFunction const kNormalize[] = SEP_EACH(normalize_rows), kGradient[] = SEP_EACH(gradient_rows);
SumFunction const kSum[] = SEP_EACH(sum_rows);

void normalize(const Args* a, int64_t begin, int64_t end) {
  kNormalize[a->activation](a, begin * unit_rows(a), least(a->rows, end * unit_rows(a)));
}

void gradient(const Args* a, int64_t begin, int64_t end) {
  kGradient[a->activation](a, begin * unit_rows(a), least(a->rows, end * unit_rows(a)));
}

void sums(const Args* a, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    float* own = a->partial + unit * 2 * a->channels;
    for (int64_t c = 0; c < 2 * a->channels; ++c) own[c] = 0;
    const Rows rows = rows_of(a, unit);
    kSum[a->activation](a, rows.begin, rows.end, own, own + a->channels);
  }
}

// Gradients of weight and bias, and those of x: scale * (gz - mean(gz) - xhat * mean(gz * xhat)), xhat the normalized x.
void finish_sums(const Args* a) {
  const int64_t channels = a->channels, count = units(a);
  for (int64_t first = 0; first < channels; first += kGroup) {
    const int64_t size = least(kGroup, channels - first);
    double sum[kGroup] = {}, products[kGroup] = {};
    for (int64_t unit = 0; unit < count; ++unit) {
      const float* own = a->partial + unit * 2 * channels + first;
      for (int64_t c = 0; c < size; ++c) sum[c] += own[c], products[c] += own[channels + c];
    }
    for (int64_t c = 0; c < size; ++c) {
      const double variance = (double)a->variance[first + c] + a->epsilon, scale = a->coefficients[first + c];
      a->weight_grad[first + c] = (float)(products[c] / __builtin_sqrt(variance));
      a->bias_grad[first + c] = (float)sum[c];
      a->coefficients[2 * channels + first + c] = (float)(-scale * products[c] / variance / (double)a->rows);
      a->coefficients[3 * channels + first + c] = (float)(-scale * sum[c] / (double)a->rows);
    }
  }
}

}  // namespace

extern "C" const sep_batch_norm_kernels SEP_TABLE(batch_norm) = {units, moments, finish_moments, normalize,
                                                                 set_coefficients, sums, finish_sums, gradient};
