// An activation and its gradient over dense memory against double precision; corners, infinity and NaN as in torch.
#include "../activation_gradient.h"

#include "grid.h"

namespace {

struct Both {
  Floats z, before, g, y;  // g: `before` through the activation at z; y: act(z)

  explicit Both(int64_t count) : z(count), before(count), g(count), y(count) { fill(z, 1), fill(before, 2); }
  void run(int activation) {
    std::copy(before.p, before.p + before.n, g.p), unwritten(y);
    const sep_activation_gradient_args to_g{g.p, z.p, z.n, activation}, to_y{y.p, z.p, z.n, activation};
    sep_activation_gradient()->run(&to_g), sep_activation_gradient()->activate(&to_y);
  }
};

void judge_count(int64_t count, int activation, Judge& judge) {
  const float corners[] = {0, 6, 3, -3, 50, -50};
  Both b(count);
  for (int64_t i = 0; i < count; ++i) b.z[i] = i % 3 ? b.z[i] * 4 : corners[i / 3 % 6];
  b.run(activation);
  ++judge.cases;
  for (int64_t i = 0; i < count; ++i) {
    judge.value("gradient", b.g[i], b.before[i] * derivative(b.z[i], activation), rounding(4, std::fabs(b.before[i])));
    judge.value("activation", b.y[i], activated(b.z[i], activation), rounding(4, std::fabs(b.z[i])));
  }
}

// The same numbers at one place after another, in each lane and in the tail; places beside it do not see them.
void judge_place(float g, float z, int activation, double wanted_g, Judge& judge) {
  const double wanted_y = std::isnan(z) ? NAN : activated(z, activation);
  for (int64_t place = 0; place < 35; ++place) {
    Both b(35);
    b.before[place] = g, b.z[place] = z;
    b.run(activation);
    judge.value("gradient at one place", b.g[place], wanted_g, 0);
    judge.value("activation at one place", b.y[place], wanted_y, 1e-6);
    for (int64_t i = 0; i < 35; ++i)
      if (i != place) judge.value("places beside it are numbers", std::isfinite(b.g[i] + b.y[i]), 1, 0);
  }
  ++judge.cases;
}

}  // namespace

bool test_activation_gradient() {
  Judge judge{"act gradient"};
  for (int activation = SEP_NONE; activation <= SEP_GELU; ++activation) {
    for (int64_t count : {0, 1, 3, 4, 15, 16, 17, 1000}) judge_count(count, activation, judge);
    const bool clamps = activation == SEP_RELU || activation == SEP_RELU6;
    for (float g : {NAN, INFINITY}) {
      judge_place(g, 1, activation, g, judge);
      judge_place(g, -1, activation, clamps ? 0 : g * derivative(-1, activation), judge);
    }
    judge_place(2, NAN, activation, clamps || activation == SEP_NONE ? 2 : NAN, judge);
    for (float z : {INFINITY, -INFINITY})  // where torch's gelu has NaN, ours has infinity
      judge_place(2, z, activation, activation == SEP_GELU ? z : 2 * derivative(z, activation), judge);
  }
  return judge.report();
}
