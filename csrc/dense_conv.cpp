// Dense convolution, group by group: by windows on rows of the input, or where these do not fit by patches; then pointwise_conv.
#include "dense_conv.h"

#include "dense_patches.h"
#include "dense_windows.h"

namespace {

typedef sep_dense_conv_args Args;

int64_t all_packed_bytes(const Args* a) { return packed_bytes(group_of(a, 0)) * a->groups; }

void pack_weight(const Args* a, const float* weight, void* packed) {
  const Group g = group_of(a, 0);
  const int64_t patch = patch_floats(g);
  for (int64_t group = 0; group < a->groups; ++group, weight += patch * g.filters)
    SEP_TABLE(pointwise_conv)
        .pack_weight(weight, patch, 1, patch, g.filters, a->product, (char*)packed + group * packed_bytes(g));
}

int64_t group_units(const Group& a) { return has_windows(a) ? windows_units(a) : patches_units(a); }
int64_t units(const Args* a) { return group_units(group_of(a, 0)) * a->groups; }

int64_t scratch_bytes(const Args* a) {
  const Group g = group_of(a, 0);
  return has_windows(g) ? windows_scratch_bytes(g) : patches_scratch_bytes(g);
}

void run(const Args* a, void* scratch, int64_t begin, int64_t end) {
  const int64_t each = group_units(group_of(a, 0));
  for (int64_t unit = begin; unit < end; ++unit) {
    const Group g = group_of(a, unit / each);
    if (has_windows(g)) run_windows(g, unit % each, unit > begin && unit % each > 0, scratch);
    else run_patches(g, unit % each, scratch);
  }
}

}  // namespace

extern "C" const sep_dense_conv_kernels SEP_TABLE(dense_conv) = {all_packed_bytes, pack_weight, units, scratch_bytes, run};
