// What torch calls to measure, pack and run a program (program.h); schemas stand in separable/acceleration/program.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "program.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const int64_t* ints(const Tensor& t) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long && t.dim() == 1 && (t.size(0) < 2 || t.stride(0) == 1),
                  "a program is a dense vector of int64");
  return t.const_data_ptr<int64_t>();
}

void check(int64_t failed, const char* what) {
  STD_TORCH_CHECK(failed == 0, what, ": the program makes no sense at ", failed - 1);
}

char* memory(const Tensor& t) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, "programs work on float32");
  return reinterpret_cast<char*>(t.mutable_data_ptr<float>());
}

char* aligned(char* p) { return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(p) + 63) / 64 * 64); }

void program_measure(const Tensor& program, const Tensor& measures) {
  const int64_t* p = ints(program);
  ints(measures);
  int64_t steps = 0;
  for (int64_t i = 0; i + 1 < program.size(0); i += 2 + p[i + 1]) ++steps;
  STD_TORCH_CHECK(measures.size(0) == steps * SEP_MEASURES, "program_measure: wrong number of measures");
  check(sep_program_measure(p, program.size(0), measures.mutable_data_ptr<int64_t>()), "program_measure");
}

void program_pack(const Tensor& program, const std::vector<Tensor>& weights, const Tensor& packed) {
  std::vector<const float*> pointers;
  for (const Tensor& w : weights) {
    STD_TORCH_CHECK(w.is_contiguous(), "program_pack: weights are dense");
    pointers.push_back(reinterpret_cast<const float*>(memory(w)));
  }
  const int64_t count = static_cast<int64_t>(pointers.size());
  check(sep_program_pack(ints(program), program.size(0), pointers.data(), count, aligned(memory(packed))), "program_pack");
}

void spread(int64_t end, int64_t grain, sep_body body, void* context) {
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, end, grain, body, context));
}

// tensors: the constants, then inputs and outputs as the program numbers them from 1. The workspace holds `floats` floats
// for the steps' results, then scratch memory for as many threads as it has room for; both begin at multiples of 64 bytes.
void program_run(const Tensor& program, const Tensor& workspace, int64_t floats, int64_t scratch_bytes,
                 const std::vector<Tensor>& tensors) {
  std::vector<char*> bases{aligned(memory(workspace))};
  for (const Tensor& t : tensors) bases.push_back(memory(t));
  if (!tensors.empty()) bases[1] = aligned(bases[1]);
  char* scratch = bases[0] + floats * 4;
  const int64_t room = workspace.numel() * 4 - floats * 4 - 64;
  const int64_t threads = scratch_bytes > 0 ? room / scratch_bytes : torch::stable::get_num_threads();
  STD_TORCH_CHECK(threads >= 1, "program_run: the workspace is too small");
  const int64_t* p = ints(program);
  check(sep_program_run(p, program.size(0), bases.data(), static_cast<int64_t>(bases.size()), scratch, scratch_bytes, threads, spread),
        "program_run");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(separable, CPU, m) {
  m.impl("program_measure", TORCH_BOX(&program_measure));
  m.impl("program_pack", TORCH_BOX(&program_pack));
  m.impl("program_run", TORCH_BOX(&program_run));
}
