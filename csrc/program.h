// A whole network, or a part of one, as a list of steps that one call runs; no torch, no allocation.
//
// A program is a list of int64: for each step its kind, the number of its fields, its fields. Fields are the members of the kernel's
// argument struct in their order (program.cpp reads them, separable/acceleration/operations write them). A pointer is
// (base << 48) + offset in bytes, -1 for null; a float is its bits. Bases are runs of memory: 0 the workspace, 1 constants, then the
// inputs and outputs; 0x7fff, SEP_ADDRESS, stands for memory from address 0 on: what follows is an address, of packed weights.
#pragma once
#include "kernels.h"

enum {
  SEP_STEP_DEPTHWISE,
  SEP_STEP_DENSE,
  SEP_STEP_POINTWISE,
  SEP_STEP_SEPARABLE,
  SEP_STEP_ELEMENTWISE,
  SEP_STEP_LAYER_NORM,
  SEP_STEP_POOL,
  SEP_STEP_RELAYOUT,
  SEP_STEP_WINOGRAD,
  SEP_STEP_TRANSPOSED,
  SEP_STEP_RESAMPLE,
  SEP_STEP_PAD,
  SEP_STEP_KINDS
};

enum { SEP_ADDRESS = 0x7fff };

// What measuring tells of each step: work units, bytes of scratch memory for each thread, bytes of up to three packed weights.
enum { SEP_MEASURES = 5 };

typedef void (*sep_body)(int64_t begin, int64_t end, void* context);
// Calls body on parts of [0, end), perhaps at the same time, none shorter than `grain` but the last.
typedef void (*sep_parallel)(int64_t end, int64_t grain, sep_body body, void* context);

extern "C" {
// All return 0, or 1 + the index of the first int that makes no sense.
int64_t sep_program_measure(const int64_t* program, int64_t length, int64_t* measures);
// weights: one pointer for each weight, in the order of the steps and of the maps in each.
int64_t sep_program_pack(const int64_t* program, int64_t length, const float* const* weights, int64_t count, char* packed);
// scratch: `threads` runs of `scratch_bytes` bytes, aligned to 64.
int64_t sep_program_run(const int64_t* program, int64_t length, char* const* bases, int64_t base_count, char* scratch,
                        int64_t scratch_bytes, int64_t threads, sep_parallel parallel);
}
