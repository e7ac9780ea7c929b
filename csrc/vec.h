// The one place where instruction sets differ: a vector of kLanes floats and what can be done with it.
#pragma once
#include <stdint.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define SEP_INLINE static inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
enum { kLanes = 16, kRegisters = 32 };
#elif defined(__AVX2__)
enum { kLanes = 8, kRegisters = 16 };
#elif defined(__aarch64__)
enum { kLanes = 4, kRegisters = 32 };
#else
enum { kLanes = 4, kRegisters = 16 };
#endif

typedef float V __attribute__((vector_size(kLanes * 4)));                            // in a register
typedef int32_t VI __attribute__((vector_size(kLanes * 4)));
typedef float VMemory __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));  // anywhere in memory
typedef int32_t VIMemory __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef uint16_t VHalf __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));  // kLanes bfloat16
typedef uint32_t VU __attribute__((vector_size(kLanes * 4)));

SEP_INLINE V splat(float a) { return a - V{}; }
SEP_INLINE V load(const float* p) { return *(const VMemory*)p; }
SEP_INLINE void store(float* p, V a) { *(VMemory*)p = a; }

// Past the caches: a result larger than they are, were it written through them, would be read first and drive out what is needed
// next. p is aligned to the vector; end_stream() comes before any other thread reads.
SEP_INLINE void stream(float* p, V a) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)a);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, (__m256)a);
#else
  store(p, a);
#endif
}
SEP_INLINE void end_stream() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Part `part` of `parts` of a stretch of memory towards the second-level cache, in order. Kernels walk through channels-last
// memory by the width of a vector, pixel after pixel, which no prefetcher in hardware follows; this runs ahead of them.
SEP_INLINE void prefetch(const void* p, int64_t bytes, int64_t part, int64_t parts, bool for_writing) {
  const char *begin = (const char*)p + bytes * part / parts, *end = (const char*)p + bytes * (part + 1) / parts;
  for (; begin < end; begin += 64)
    if (for_writing)
      __builtin_prefetch(begin, 1, 2);
    else
      __builtin_prefetch(begin, 0, 2);
  asm volatile("");  // or the compiler takes a function that only prefetches for one that does nothing
}

// a in a register: the compiler else reads memory again for every use, which costs two reads where a cache line ends.
SEP_INLINE V held(V a) {
#if defined(__AVX512F__)
  asm("" : "+v"(a));
#elif defined(__x86_64__)
  asm("" : "+x"(a));
#elif defined(__aarch64__)
  asm("" : "+w"(a));
#endif
  return a;
}

// a * b + c, rounded once where the processor can.
SEP_INLINE V fma(V a, V b, V c) {
#if defined(__AVX512F__)
  return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

// To the nearest whole number, for |a| < 2^22.
SEP_INLINE V nearest(V a) {
#if defined(__AVX512F__)
  return (V)_mm512_roundscale_ps((__m512)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  return (a + splat(12582912.0f)) - splat(12582912.0f);  // 1.5 * 2^23: no bits are left for a fraction
#endif
}

// a * 2^n for whole |n| < 252; infinity or zero where float32 ends.
SEP_INLINE V times_power_of_two(V a, V n) {
#if defined(__AVX512F__)
  return (V)_mm512_scalef_ps((__m512)a, (__m512)n);
#else
  const VI whole = __builtin_convertvector(n, VI), half = whole >> 1, rest = whole - half;
  return a * (V)((half + 127) << 23) * (V)((rest + 127) << 23);
#endif
}

// 1 / a within 2 units in the last place, for 2^-120 < |a| < 2^120.
SEP_INLINE V reciprocal(V a) {
#if defined(__AVX512F__)
  const V r = (V)_mm512_rcp14_ps((__m512)a);
  return fma(fma(-a, r, splat(1.0f)), r, r);
#else
  return splat(1.0f) / a;
#endif
}

// The first n (0 <= n <= kLanes) floats; zeros after them. Memory after them is not touched.
SEP_INLINE V load_tail(const float* p, int64_t n) {
#if defined(__AVX512F__)
  return (V)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
  if (n == kLanes) return load(p);
  V a = {};
  for (int64_t i = 0; i < n; ++i) a[i] = p[i];
  return a;
#endif
}
SEP_INLINE void store_tail(float* p, V a, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)a);
#else
  if (n == kLanes) return store(p, a);
  for (int64_t i = 0; i < n; ++i) p[i] = a[i];
#endif
}

// bfloat16 is the upper half of a float32; rounding to nearest, ties to even, NaN kept.
SEP_INLINE V from_half(VHalf h) { return (V)(__builtin_convertvector(h, VU) << 16); }
SEP_INLINE V load(const uint16_t* p) { return from_half(*(const VHalf*)p); }
SEP_INLINE void store(uint16_t* p, V a) {
  VU bits = (VU)a;
  VU rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  VU nan = (VU)(a != a);
  *(VHalf*)p = __builtin_convertvector((rounded & ~nan) | (((bits >> 16) | 0x40u) & nan), VHalf);
}
SEP_INLINE V load_tail(const uint16_t* p, int64_t n) {
#if defined(__AVX512F__)
  return from_half((VHalf)_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p));
#else
  uint16_t all[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) all[i] = p[i];
  return load(all);
#endif
}
SEP_INLINE void store_tail(uint16_t* p, V a, int64_t n) {
  uint16_t all[kLanes];
  store(all, a);
  for (int64_t i = 0; i < n; ++i) p[i] = all[i];
}

// Lane l gets p[index[l]].
SEP_INLINE V gather(const float* p, VI index) {
#if defined(__AVX512F__)
  return (V)_mm512_i32gather_ps((__m512i)index, p, 4);
#elif defined(__AVX2__)
  return (V)_mm256_i32gather_ps(p, (__m256i)index, 4);
#else
  V a;
  for (int i = 0; i < kLanes; ++i) a[i] = p[index[i]];
  return a;
#endif
}

// Whether the next is an instruction, or a few.
#if defined(__AVX2__) || defined(__aarch64__)
enum { kPermutes = 1 };
#else
enum { kPermutes = 0 };
#endif

// Lane l gets a[index[l]]; 0 <= index < kLanes.
SEP_INLINE V permute(V a, VI index) {
#if defined(__AVX512F__)
  return (V)_mm512_permutexvar_ps((__m512i)index, (__m512)a);
#elif defined(__AVX2__)
  return (V)_mm256_permutevar8x32_ps((__m256)a, (__m256i)index);
#else
  return __builtin_shuffle(a, index);
#endif
}

SEP_INLINE VI iota() {
  VI a;
  for (int i = 0; i < kLanes; ++i) a[i] = i;
  return a;
}

// Sums of `share` neighbouring lanes each, in the first lanes.
SEP_INLINE V add_shares(V a, int64_t share) {
  if (share == 1) return a;
  V sum = {};
  for (int64_t j = 0; j < share; ++j) sum += permute(a, (iota() * (int)share + (int)j) & (kLanes - 1));
  return sum;
}

// rows[i][j] <-> rows[j][i]: each of log2(kLanes) rounds is a perfect shuffle of the rows.
SEP_INLINE void transpose(V rows[kLanes]) {
  VI low, high;  // the halves of two vectors, interleaved
  for (int i = 0; i < kLanes; ++i) {
    low[i] = i / 2 + (i % 2) * kLanes;
    high[i] = kLanes / 2 + i / 2 + (i % 2) * kLanes;
  }
  for (int round = 1; round < kLanes; round *= 2) {
    V next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], low);
      next[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], high);
    }
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

// Where the condition (all bits or none, from a comparison of vectors) holds, a, else b.
SEP_INLINE V select(VI condition, V a, V b) { return (V)((condition & (VI)a) | (~condition & (VI)b)); }
// Whether the condition holds anywhere.
SEP_INLINE bool any(VI condition) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)condition, (__m512i)condition) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)condition, (__m256i)condition);
#else
  int32_t all = 0;
  for (int i = 0; i < kLanes; ++i) all |= condition[i];
  return all != 0;
#endif
}
#if defined(__AVX512F__)  // where either is NaN these give the second, which is a
SEP_INLINE V maximum(V a, V b) { return (V)_mm512_max_ps((__m512)b, (__m512)a); }
SEP_INLINE V minimum(V a, V b) { return (V)_mm512_min_ps((__m512)b, (__m512)a); }
#elif defined(__AVX2__)
SEP_INLINE V maximum(V a, V b) { return (V)_mm256_max_ps((__m256)b, (__m256)a); }
SEP_INLINE V minimum(V a, V b) { return (V)_mm256_min_ps((__m256)b, (__m256)a); }
#else
SEP_INLINE V maximum(V a, V b) { return select((VI)(a < b), b, a); }  // a's NaN stays
SEP_INLINE V minimum(V a, V b) { return select((VI)(a > b), b, a); }
#endif

}  // namespace
