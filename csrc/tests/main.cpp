// Runs the tests of every operation on every instruction set that this processor has, or on the one named.
#include "../kernels.h"

#include <cstdio>
#include <cstring>
#include <initializer_list>

bool test_depthwise_conv();
bool test_depthwise_conv_backward();
bool test_pointwise_conv();
bool test_pointwise_conv_bfloat16();
bool test_separable_conv();
bool test_dense_conv();
bool test_winograd_conv();
bool test_rowwise();
bool test_activation_gradient();
bool test_batch_norm();
bool test_relayout();
bool test_transposed_conv();
bool test_resample();
bool test_program();

int main(int count, char** words) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // what was reported stays, even where a sanitizer ends the process
  bool good = true, known = count < 2;
  for (int isa = 0; isa < sep_isa_count(); ++isa) {
    if (count > 1 && std::strcmp(words[1], sep_isa_name(isa))) continue;
    known = true;
    if (sep_isa_force(isa)) {
      std::printf("%s: skipped, this processor does not have it\n", sep_isa_name(isa));
      continue;
    }
    for (auto test : {test_depthwise_conv, test_depthwise_conv_backward, test_pointwise_conv, test_pointwise_conv_bfloat16,
                      test_separable_conv, test_dense_conv, test_winograd_conv, test_rowwise, test_activation_gradient, test_batch_norm,
                      test_relayout, test_transposed_conv, test_resample, test_program})
      good = test() && good;
  }
  if (!known) std::printf("%s: no instruction set that was compiled\n", words[1]);
  return good && known ? 0 : 1;
}
