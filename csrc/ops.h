// What the entry points of torch share: memory, and tensors that lie as a result should. Included by ops*.cpp only.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <new>
#include <optional>
#include <vector>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;
using Optional = std::optional<Tensor>;

// Memory that starts on a cache line; not initialised.
struct Buffer {
  explicit Buffer(int64_t bytes) : data(::operator new(static_cast<size_t>(bytes) + 64, std::align_val_t(64))) {}
  ~Buffer() { ::operator delete(data, std::align_val_t(64)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  float* floats() const { return static_cast<float*>(data); }
  void* data;
};

// A large result is fresh memory, whose pages the kernel maps at the first touch, one by one: 45 ms for 77 MB in pages of
// 4 KiB, of which the convolution itself takes 10. Where the system allows it we ask for pages of 2 MiB.
void ask_for_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) & ~(kHuge - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kHuge - 1);
  if (end >= begin + kHuge) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a wish: may fail
#endif
}

Tensor empty_strided(const Ints& sizes, const Ints& strides, ScalarType dtype) {
  AtenTensorHandle handle;
  const int32_t code = dtype == ScalarType::Float ? aoti_torch_dtype_float32() : aoti_torch_dtype_bfloat16();
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), code,
                                                  aoti_torch_device_type_cpu(), -1, &handle));
  void* data;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(handle, &data));
  int64_t bytes = dtype == ScalarType::Float ? 4 : 2;
  for (const int64_t size : sizes) bytes *= size;
  ask_for_huge_pages(data, static_cast<size_t>(bytes));
  return Tensor(handle);
}

// A result lies in memory as the input does; functional/*_operator.py say the same.
bool is_channels_last(const Tensor& t) { return t.stride(1) == 1 && t.size(1) > 1; }

Tensor empty_like_layout(const Ints& sizes, bool channels_last, ScalarType dtype) {
  Ints strides(sizes.size());
  int64_t step = channels_last ? sizes[1] : 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    if (channels_last && i == 1) {
      strides[i] = 1;
      continue;
    }
    strides[i] = step;
    step *= sizes[i];
  }
  return empty_strided(sizes, strides, dtype);
}

}  // namespace
