// What the tests of all operations share: the grid of shapes, buffers of exact size, judgement, and the list of instruction sets.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include "../kernels.h"

struct Case {
  const char* name;
  int64_t batch, channels, multiplier, out_channels;
  int64_t size[3];
  int32_t kernel[3], stride[3], before[3], after[3], dilation[3];

  int64_t out(int i) const {
    return (size[i] + before[i] + after[i] - dilation[i] * (kernel[i] - 1) - 1) / stride[i] + 1;
  }
  int64_t filters() const { return channels * multiplier; }
  int64_t taps() const { return (int64_t)kernel[0] * kernel[1] * kernel[2]; }
};

// The rows of tests/cases.py that shapes alone make, two dimensions as D = 1, one as D = H = 1.
inline const std::vector<Case>& grid() {
  static const std::vector<Case> cases = {
      {"plain", 2, 16, 1, 24, {1, 14, 14}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
      {"lanes-1", 1, 15, 1, 31, {1, 7, 9}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
      {"lanes", 1, 16, 1, 32, {1, 7, 9}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
      {"lanes+1", 1, 17, 1, 33, {1, 7, 9}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
      {"one channel", 1, 1, 1, 1, {1, 7, 7}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
      {"many channels", 1, 960, 1, 160, {1, 7, 7}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
      {"multiplier 2", 2, 12, 2, 20, {1, 10, 11}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
      {"multiplier 3", 2, 12, 3, 20, {1, 10, 11}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
      {"multiplier 4", 2, 12, 4, 20, {1, 10, 11}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
      {"multiplier 6", 2, 12, 6, 20, {1, 10, 11}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
      {"stride 2", 2, 24, 1, 40, {1, 15, 16}, {1, 3, 3}, {1, 2, 2}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
      {"stride 1 2", 2, 24, 1, 40, {1, 15, 16}, {1, 3, 3}, {1, 1, 2}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
      {"stride 3", 2, 24, 1, 40, {1, 15, 16}, {1, 3, 3}, {1, 3, 3}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
      {"dilation", 1, 8, 1, 8, {1, 17, 15}, {1, 3, 3}, {1, 1, 1}, {0, 2, 2}, {0, 2, 2}, {1, 2, 2}},
      {"stride and dilation", 1, 8, 1, 8, {1, 17, 15}, {1, 3, 3}, {1, 2, 2}, {0, 2, 2}, {0, 2, 2}, {1, 2, 3}},
      {"five", 1, 20, 1, 20, {1, 12, 12}, {1, 5, 5}, {1, 1, 1}, {0, 2, 2}, {0, 2, 2}, {1, 1, 1}},
      {"seven", 1, 20, 1, 20, {1, 12, 12}, {1, 7, 7}, {1, 1, 1}, {0, 3, 3}, {0, 3, 3}, {1, 1, 1}},
      {"thirty-one", 1, 20, 1, 20, {1, 12, 12}, {1, 31, 31}, {1, 1, 1}, {0, 15, 15}, {0, 15, 15}, {1, 1, 1}},
      {"even kernel", 1, 6, 1, 6, {1, 9, 8}, {1, 2, 4}, {1, 1, 1}, {0, 0, 1}, {0, 1, 2}, {1, 1, 1}},
      {"even kernel, stride 2", 1, 6, 1, 6, {1, 9, 8}, {1, 2, 4}, {1, 2, 2}, {0, 0, 1}, {0, 1, 1}, {1, 1, 1}},
      {"asymmetric", 1, 6, 1, 6, {1, 9, 8}, {1, 3, 5}, {1, 1, 1}, {0, 2, 1}, {0, 0, 3}, {1, 1, 1}},
      {"valid", 1, 6, 1, 6, {1, 9, 8}, {1, 3, 5}, {1, 1, 1}, {0, 0, 0}, {0, 0, 0}, {1, 1, 1}},
      {"one row", 1, 8, 1, 8, {1, 1, 9}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
      {"one pixel", 1, 8, 1, 8, {1, 1, 1}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
      {"kernel larger than input", 1, 8, 1, 8, {1, 2, 2}, {1, 7, 7}, {1, 1, 1}, {0, 3, 3}, {0, 3, 3}, {1, 1, 1}},
      {"padding beyond the kernel", 1, 8, 1, 8, {1, 5, 5}, {1, 3, 3}, {1, 1, 1}, {0, 4, 4}, {0, 4, 4}, {1, 1, 1}},
      {"stride 2, five", 1, 24, 1, 8, {1, 13, 22}, {1, 5, 5}, {1, 2, 2}, {0, 1, 3}, {0, 2, 0}, {1, 1, 1}},
      {"stride 2, seven", 1, 24, 1, 8, {1, 16, 17}, {1, 7, 7}, {1, 2, 2}, {0, 3, 3}, {0, 3, 3}, {1, 1, 1}},
      {"kernel larger than input, more channels", 1, 24, 1, 8, {1, 2, 2}, {1, 7, 7}, {1, 1, 1}, {0, 3, 3}, {0, 3, 3}, {1, 1, 1}},
      {"padding beyond the kernel, more channels", 1, 24, 1, 8, {1, 5, 5}, {1, 3, 3}, {1, 2, 2}, {0, 4, 4}, {0, 4, 4}, {1, 1, 1}},
      {"multiplier 2, more channels", 2, 20, 2, 8, {1, 8, 18}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
      {"multiplier 4, stride 2", 1, 20, 4, 8, {1, 8, 17}, {1, 3, 3}, {1, 2, 2}, {0, 0, 1}, {0, 1, 1}, {1, 1, 1}},
      {"causal", 2, 48, 1, 32, {1, 1, 65}, {1, 1, 4}, {1, 1, 1}, {0, 0, 3}, {0, 0, 0}, {1, 1, 1}},
      {"causal, dilation 8", 2, 48, 1, 32, {1, 1, 65}, {1, 1, 4}, {1, 1, 1}, {0, 0, 24}, {0, 0, 0}, {1, 1, 8}},
      {"long", 1, 48, 1, 32, {1, 1, 2048}, {1, 1, 31}, {1, 1, 1}, {0, 0, 30}, {0, 0, 0}, {1, 1, 1}},
      {"volume", 1, 10, 2, 12, {6, 7, 8}, {3, 3, 3}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}},
      {"volume, flat kernel", 1, 10, 2, 12, {6, 7, 8}, {1, 3, 5}, {1, 2, 2}, {0, 0, 0}, {0, 0, 0}, {1, 1, 1}},
      {"batch 0", 0, 8, 1, 8, {1, 8, 8}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}},
  };
  return cases;
}

// A heap buffer of exactly `n` elements, so that AddressSanitizer sees one element too many. What is large enough to be
// written past the caches is aligned for that.
template <class T>
struct Buffer {
  int64_t n;
  std::align_val_t alignment;
  T* p;
  explicit Buffer(int64_t n)
      : n(n), alignment{n >= 1 << 20 ? 64 : alignof(T)}, p((T*)::operator new(n * sizeof(T), alignment)) {}
  Buffer(const Buffer&) = delete;
  ~Buffer() { ::operator delete(p, alignment); }
  T& operator[](int64_t i) { return p[i]; }
};

using Floats = Buffer<float>;

// What kernels ask to have aligned, its end known to AddressSanitizer as well; full of NaN, so that what was never written shows. After
// the last cache line there is no memory: a read past it by an instruction that the sanitizer does not see ends the process too.
struct Aligned {
  int64_t size, guard = 1 << 16;  // a multiple of every page size
  char *all, *p;
  explicit Aligned(int64_t bytes) : size((bytes + 63) / 64 * 64), all(nullptr), p(nullptr) {
    const int64_t room = (size + guard - 1) / guard * guard;
    all = (char*)mmap(nullptr, room + guard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED || mprotect(all + room, guard, PROT_NONE)) std::abort();
    p = all + room - size;
    std::memset(p, 0xff, size);
    ASAN_POISON_MEMORY_REGION(all, p - all);
    ASAN_POISON_MEMORY_REGION(p + bytes, size - bytes);
  }
  Aligned(const Aligned&) = delete;
  ~Aligned() {
    const int64_t room = (size + guard - 1) / guard * guard;
    ASAN_UNPOISON_MEMORY_REGION(all, room);
    munmap(all, room + guard);
  }
};

inline float from_bfloat16(uint16_t h) {
  const uint32_t bits = (uint32_t)h << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// The nearest bfloat16: the product of two is exact in float32.
inline double as_product(double x, int product) { return product == SEP_F32 ? x : from_bfloat16(to_bfloat16((float)x)); }

// The products of bfloat16 that the instruction set chosen has on this processor.
inline std::vector<int> bfloat16_products() {
  std::vector<int> found;
  if (sep_has_bf16()) found.push_back(SEP_BF16);
  if (sep_has_bf16_tiles()) found.push_back(SEP_BF16_TILES);
  return found;
}

inline void fill(Floats& b, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < b.n; ++i) b[i] = normal(random);
}

inline void unwritten(Floats& b) {
  for (int64_t i = 0; i < b.n; ++i) b[i] = std::numeric_limits<float>::quiet_NaN();
}

// The activation in double precision.
inline double activated(double x, int activation) {
  const double hard = std::fmin(std::fmax(x + 3, 0), 6) / 6;
  switch (activation) {
    case SEP_RELU: return x > 0 ? x : 0;
    case SEP_RELU6: return std::fmin(x > 0 ? x : 0, 6);
    case SEP_SILU: return x / (1 + std::exp(-x));
    case SEP_HARD_SWISH: return x * hard;
    case SEP_GELU: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case SEP_SIGMOID: return 1 / (1 + std::exp(-x));
    case SEP_HARD_SIGMOID: return hard;
    case SEP_TANH: return std::tanh(x);
    default: return x;
  }
}

// Its derivative in double precision; at a corner torch's own choice.
inline double derivative(double x, int activation) {
  const double logistic = 1 / (1 + std::exp(-x));
  switch (activation) {
    case SEP_RELU: return x <= 0 ? 0 : 1;
    case SEP_RELU6: return x <= 0 || x >= 6 ? 0 : 1;
    case SEP_SILU: return logistic * (1 + x * (1 - logistic));
    case SEP_HARD_SWISH: return x <= -3 ? 0 : x < 3 ? x / 3 + 0.5 : 1;
    case SEP_GELU: return 0.5 * (1 + std::erf(x / std::sqrt(2.0))) + x * std::exp(-x * x / 2) / std::sqrt(2 * std::acos(-1.0));
    default: return 1;
  }
}

// Largest error of one operation on one instruction set, in units of what rounding may cost.
struct Judge {
  const char* operation;
  int cases = 0, failures = 0;
  double worst = 0;

  // `bound`: what float32 rounding may change in `wanted`; infinity and NaN must be what comes out, and nothing else.
  void value(const char* name, double got, double wanted, double bound) {
    if (got == wanted || (std::isnan(got) && std::isnan(wanted))) return;
    const double error = std::fabs(got - wanted) / (bound + 1e-30);
    if (error > worst) worst = error;
    if (error <= 1) return;
    if (++failures <= 10)
      std::printf("  %s %s, %s: %.9g, not %.9g within %.3g\n", operation, sep_isa_name(sep_isa()), name, got, wanted, bound);
  }

  bool report() const {
    std::printf("%-16s %-9s %4d cases, worst error %.2f of its bound%s\n", operation, sep_isa_name(sep_isa()), cases, worst,
                failures ? "  FAILED" : "");
    return failures == 0;
  }
};

// A sum of n float32 products with terms of total size `magnitude`, summed in any order, then an activation of slope <= 1.13.
inline double rounding(int64_t n, double magnitude) { return 1.2e-7 * ((double)n + 4) * magnitude * 1.13 + 1e-6; }
