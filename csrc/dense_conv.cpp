// Dense convolution, share by share of its filters: by windows on rows of the input, or where these do not fit by patches.
#include "dense_conv.h"

#include "dense_patches.h"
#include "dense_windows.h"

namespace {

typedef sep_dense_conv_args Args;

int64_t all_packed_bytes(const Args* a) {
  const int64_t last = shares_of(a) - 1;
  if (last < 0) return 0;
  const Group g = share_of(a, last);
  return (const char*)g.weight - (const char*)a->weight + packed_bytes(g);
}

void pack_weight(const Args* given, const float* weight, void* packed) {
  Args a = *given;
  a.weight = packed;
  for (int64_t share = 0; share < shares_of(&a); ++share) {
    const Group g = share_of(&a, share);
    const int64_t patch = patch_floats(g);
    if (is_shared(g)) pack_shared(g, weight, (float*)g.weight);
    else SEP_TABLE(pointwise_conv).pack_weight(weight, patch, 1, patch, g.filters, a.product, (void*)g.weight);
    weight += patch * g.filters;
  }
}

int64_t units(const Args* a) {
  const Group g = share_of(a, 0);
  return has_windows(g) ? windows_units(g) : patches_units(g) * g.shares;
}

int64_t scratch_bytes(const Args* a) {
  const Group g = share_of(a, 0);
  return has_windows(g) ? windows_scratch_bytes(g) : patches_scratch_bytes(g);
}

void run(const Args* a, void* scratch, int64_t begin, int64_t end) {
  const Group g = share_of(a, 0);
  const bool windows = has_windows(g);
  const int64_t each = windows ? 1 : patches_units(g);
  for (int64_t unit = begin; unit < end; ++unit) {
    if (windows) run_windows(a, unit, unit > begin, (char*)scratch);
    else run_patches(share_of(a, unit / each), unit % each, scratch);
  }
}

}  // namespace

extern "C" const sep_dense_conv_kernels SEP_TABLE(dense_conv) = {all_packed_bytes, pack_weight, units, scratch_bytes, run};
