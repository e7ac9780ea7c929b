// What every kernel file shares, and the rules it keeps.
//
// One operation, one stem: <op>.h declares its arguments (a C struct) and its table of functions; <op>.cpp defines them,
// is compiled once for each instruction set with -DSEP_ISA=<name>, and exports one symbol,
//     extern "C" const sep_<op>_kernels SEP_TABLE(<op>) = {...};
// everything else in it stands in an anonymous namespace or is static. dispatch.cpp chooses the instruction set once;
// `sep_<op>()`, which SEP_OPERATION(<op>) at the end of <op>.h makes, is the table for it. ops.cpp, or ops_<op>.cpp where an
// operation has more than a few entry points, is compiled with torch's headers and holds what torch calls.
//
// - A kernel file includes this, vec.h, its own header and no standard header; no template with external linkage, no static
//   initialiser, no exception: the linker would keep one copy for all instruction sets and an old processor would die of it.
// - A kernel takes its arguments, scratch memory of the size that its table asks for, and a range [begin, end) of work
//   units; the caller splits the units over threads. What a unit computes depends on the arguments alone, so that any number of
//   threads gives the same bits; sums over units are kept apart and added in a fixed order.
// - Layouts: channels-last (N, ..., C) inside; pointers are aligned to their element only; sizes and offsets are int64_t.
// - float32 sums always; NaN and infinity go through as in torch: relu(NaN) is NaN.
#pragma once
#include <stdint.h>

#define SEP_JOIN2(a, b) a##b
#define SEP_JOIN(a, b) SEP_JOIN2(a, b)
#define SEP_TEXT2(a) #a
#define SEP_TEXT(a) SEP_TEXT2(a)
#define SEP_TABLE(op) SEP_JOIN(sep_##op##_, SEP_ISA)

// The instruction sets of this build, best first. The numbers are indices into dispatch.cpp's list.
#if defined(__x86_64__) || defined(_M_X64)
enum { SEP_ISA_avx512, SEP_ISA_avx2, SEP_ISA_baseline, SEP_ISA_COUNT };
#define SEP_OPERATION(op)                                                                                            \
  extern "C" const sep_##op##_kernels sep_##op##_avx512, sep_##op##_avx2, sep_##op##_baseline;                        \
  static inline const sep_##op##_kernels* sep_##op(void) {                                                            \
    int isa = sep_isa();                                                                                              \
    return isa == SEP_ISA_avx512 ? &sep_##op##_avx512 : isa == SEP_ISA_avx2 ? &sep_##op##_avx2 : &sep_##op##_baseline; \
  }
#elif defined(__aarch64__)
enum { SEP_ISA_neon, SEP_ISA_baseline, SEP_ISA_COUNT };
#define SEP_OPERATION(op)                                                            \
  extern "C" const sep_##op##_kernels sep_##op##_neon, sep_##op##_baseline;           \
  static inline const sep_##op##_kernels* sep_##op(void) {                            \
    return sep_isa() == SEP_ISA_neon ? &sep_##op##_neon : &sep_##op##_baseline;       \
  }
#else
enum { SEP_ISA_baseline, SEP_ISA_COUNT };
#define SEP_OPERATION(op)                                 \
  extern "C" const sep_##op##_kernels sep_##op##_baseline; \
  static inline const sep_##op##_kernels* sep_##op(void) { return &sep_##op##_baseline; }
#endif

// Element types of tensors, and what the factors of a matrix product are rounded to; sums are float32. The last is a product's alone:
// as SEP_BF16, by matrix tiles.
enum { SEP_F32 = 0, SEP_BF16 = 1, SEP_BF16_TILES = 2 };

// Whether the compiler, and with it the assembler, knows matrix tiles (AMX).
#if defined(__x86_64__) && __has_include(<amxbf16intrin.h>)
#define SEP_HAS_TILES
#endif

// Activations, in the order of separable.functional.arguments.ACTIVATIONS; gelu is the erf form.
enum { SEP_NONE = 0, SEP_RELU, SEP_RELU6, SEP_SILU, SEP_HARD_SWISH, SEP_GELU, SEP_SIGMOID, SEP_HARD_SIGMOID, SEP_TANH };

extern "C" {
// dispatch.cpp; exported for Python, which calls them through ctypes.
int sep_isa(void);                      // the chosen instruction set; -1 where SEPARABLE_ISA asks for what is not there
int sep_isa_count(void);                // how many this build has
const char* sep_isa_name(int isa);      // "avx512", "avx2", "neon", "baseline"
int sep_isa_supported(int isa);         // 1 where this processor runs it
int sep_has_bf16(void);                 // 1 where the chosen instruction set multiplies bfloat16 pairs (avx512 with AVX512-BF16)
int sep_has_bf16_tiles(void);           // 1 where it also has matrix tiles (AMX-BF16) and the system, which this asks, grants them
int sep_isa_force(int isa);             // use this one from now on (-1: the best); 0, or -1 where it is not supported
}
