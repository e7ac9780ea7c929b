// Reads the steps of a program into the kernels' arguments, and measures, packs or runs them.
#include "program.h"

#include <atomic>
#include <cstring>
#include <type_traits>

#include "dense_conv.h"
#include "depthwise_conv.h"
#include "elementwise.h"
#include "layer_norm.h"
#include "pointwise_conv.h"
#include "pool.h"
#include "relayout.h"
#include "separable_conv.h"

namespace {

// Where pointers point while no memory is there yet: anywhere but null.
char* const kNowhere = reinterpret_cast<char*>(4096);

struct Reader {
  const int64_t *at, *end;
  char* const* bases;  // null while no memory is there yet
  int64_t base_count;
  bool failed = false;

  int64_t next() {
    if (at == end) failed = true;
    return failed ? 0 : *at++;
  }
  template <class T>
  void pointer(T*& p) {
    const int64_t code = next(), base = code >> 48;
    p = nullptr;
    if (code == -1 || failed) return;
    if (bases && base != SEP_ADDRESS && (base < 0 || base >= base_count)) {
      failed = true;
      return;
    }
    char* start = base == SEP_ADDRESS ? nullptr : bases ? bases[base] : kNowhere;
    p = reinterpret_cast<T*>(start + (code & ((int64_t(1) << 48) - 1)));
  }
  void product(int32_t& p) {  // one that this processor has
    number(p);
    failed |= p != SEP_F32 && !(p == SEP_BF16 && sep_has_bf16()) && !(p == SEP_BF16_TILES && sep_has_bf16_tiles());
  }
  void number(int64_t& n) { n = next(); }
  void number(int32_t& n) { n = static_cast<int32_t>(next()); }
  void number(float& f) {
    const int32_t bits = static_cast<int32_t>(next());
    std::memcpy(&f, &bits, sizeof f);
  }
  template <class... T>
  void pointers(T&... p) {
    (pointer(p), ...);
  }
  template <class... T>
  void numbers(T&... n) {
    (number(n), ...);
  }
  template <class T, size_t N>
  void number(T (&all)[N]) {
    for (T& n : all) number(n);
  }
};

// Of (batch, H, W, channels).
sep_view channels_last(void* data, int64_t channels, const int64_t* size) {
  return {data, {size[1] * size[2] * channels, 1, size[1] * size[2] * channels, size[2] * channels, channels}};
}

void read(Reader& r, sep_depthwise_conv_args& a) {
  r.pointers(a.x.data, a.packed, a.bias, a.y.data);
  r.numbers(a.batch, a.channels, a.filters);
  for (int64_t* size : {a.size, a.out}) size[0] = 1, r.numbers(size[1], size[2]);
  for (int32_t* of : {a.kernel, a.stride, a.padding, a.dilation}) of[0] = of != a.padding, r.numbers(of[1], of[2]);
  r.number(a.activation);
  a.x = channels_last(a.x.data, a.channels, a.size);
  a.y = channels_last(a.y.data, a.filters, a.out);
  a.dtype = SEP_F32;
}

void read(Reader& r, sep_dense_conv_args& a) {
  r.pointers(a.x, a.weight, a.bias, a.residual, a.y);
  r.numbers(a.batch, a.channels, a.filters, a.size, a.out, a.x_stride, a.kernel, a.stride, a.padding, a.dilation);
  r.numbers(a.activation, a.residual_first);
  r.product(a.product);
}

void read(Reader& r, sep_pointwise_conv_args& a) {
  r.pointers(a.x, a.weight, a.bias, a.scale, a.residual, a.y, a.sums);
  r.numbers(a.rows, a.c_in, a.c_out, a.x_stride, a.residual_stride, a.y_stride, a.image_rows);
  r.numbers(a.activation, a.residual_first, a.normalize);
  r.product(a.product);
  r.number(a.epsilon);
}

void read(Reader& r, sep_depthwise_step& a) {
  r.pointers(a.weight, a.bias);
  r.numbers(a.batch, a.channels, a.size, a.out, a.kernel, a.stride, a.padding, a.dilation, a.activation);
}

void read(Reader& r, sep_separable_conv_args& a) {
  r.pointers(a.x, a.y, a.sums);
  read(r, a.expand);
  read(r, a.depthwise);
  read(r, a.project);
}

void read(Reader& r, sep_elementwise_args& a) {
  r.pointers(a.x, a.scale, a.other, a.y);
  r.numbers(a.rows, a.channels, a.image_rows, a.activation);
}

void read(Reader& r, sep_layer_norm_args& a) {
  r.pointers(a.x, a.weight, a.bias, a.y);
  r.numbers(a.rows, a.channels, a.epsilon);
}

void read(Reader& r, sep_pool_args& a) {
  r.pointers(a.x, a.y);
  r.numbers(a.batch, a.channels, a.size, a.out, a.kernel, a.stride, a.padding, a.kind, a.factor);
}

void read(Reader& r, sep_relayout_args& a) {
  r.pointers(a.x, a.y);
  r.numbers(a.size, a.x_stride, a.y_stride);
}

// The next few functions give every kind one face: its table, its units, its scratch memory, one call of it, its weights.
const sep_depthwise_conv_kernels* table(const sep_depthwise_conv_args&) { return sep_depthwise_conv(); }
const sep_dense_conv_kernels* table(const sep_dense_conv_args&) { return sep_dense_conv(); }
const sep_pointwise_conv_kernels* table(const sep_pointwise_conv_args&) { return sep_pointwise_conv(); }
const sep_separable_conv_kernels* table(const sep_separable_conv_args&) { return sep_separable_conv(); }
const sep_elementwise_kernels* table(const sep_elementwise_args&) { return sep_elementwise(); }
const sep_layer_norm_kernels* table(const sep_layer_norm_args&) { return sep_layer_norm(); }
const sep_pool_kernels* table(const sep_pool_args&) { return sep_pool(); }
const sep_relayout_kernels* table(const sep_relayout_args&) { return sep_relayout(); }

template <class Args>
int64_t scratch_bytes(const Args& a) {
  if constexpr (requires { table(a)->scratch_bytes(&a); })
    return table(a)->scratch_bytes(&a);
  else
    return 0;
}

template <class Args>
void run_part(const Args& a, char* scratch, int64_t begin, int64_t end) {
  if constexpr (requires { table(a)->scratch_bytes(&a); })
    table(a)->run(&a, scratch, begin, end);
  else
    table(a)->run(&a, begin, end);
}

// Units that are worth another thread's waking, some 10 us: those of a chain are tiles, those of the simple kernels small.
int64_t grain(const sep_pointwise_conv_args&) { return 2; }
int64_t grain(const sep_elementwise_args&) { return 8; }
int64_t grain(const sep_layer_norm_args&) { return 8; }
int64_t grain(const sep_pool_args&) { return 16; }
int64_t grain(const sep_relayout_args&) { return 4; }
template <class Args>
int64_t grain(const Args&) {
  return 1;
}

// A call of `visit` for each weight of a step: its packed size and how to pack it.
template <class Visit>
void each_weight(const sep_depthwise_conv_args& a, Visit visit) {
  visit(table(a)->packed_floats(&a) * 4, a.packed, [&](const float* from, void* to) {
    sep_depthwise_conv_args b = a;
    b.weight = from;
    b.packed = static_cast<float*>(to);
    table(a)->pack_weight(&b);
  });
}
template <class Visit>
void each_weight(const sep_dense_conv_args& a, Visit visit) {
  visit(table(a)->packed_bytes(&a), a.weight, [&](const float* from, void* to) { table(a)->pack_weight(&a, from, to); });
}
template <class Visit>
void each_weight(const sep_pointwise_conv_args& a, Visit visit) {
  visit(table(a)->packed_bytes(a.c_in, a.c_out, a.product), a.weight, [&](const float* from, void* to) {
    table(a)->pack_weight(from, a.c_in, 1, a.c_in, a.c_out, a.product, to);
  });
}
template <class Visit>
void each_weight(const sep_separable_conv_args& a, Visit visit) {
  if (a.expand.weight) each_weight(a.expand, visit);
  if (a.depthwise.weight)
    visit(table(a)->packed_floats(&a.depthwise) * 4, a.depthwise.weight, [&](const float* from, void* to) {
      table(a)->pack_depthwise(&a.depthwise, from, static_cast<float*>(to));
    });
  if (a.project.weight) each_weight(a.project, visit);
}
template <class Args, class Visit>
void each_weight(const Args&, Visit) {}

template <class Args, class Use>
bool use(Reader& r, Use& with) {
  Args a{};
  read(r, a);
  if (r.failed || r.at != r.end) return false;
  with(a);
  return true;
}

// Calls `with` on the arguments of every step.
template <class Use>
int64_t each_step(const int64_t* program, int64_t length, char* const* bases, int64_t base_count, Use with) {
  for (int64_t i = 0; i < length;) {
    const int64_t fields = i + 1 < length ? program[i + 1] : -1;
    if (fields < 0 || fields > length - i - 2) return i + 1;
    Reader r{program + i + 2, program + i + 2 + fields, bases, base_count};
    bool good = false;
    switch (program[i]) {
      case SEP_STEP_DEPTHWISE: good = use<sep_depthwise_conv_args>(r, with); break;
      case SEP_STEP_DENSE: good = use<sep_dense_conv_args>(r, with); break;
      case SEP_STEP_POINTWISE: good = use<sep_pointwise_conv_args>(r, with); break;
      case SEP_STEP_SEPARABLE: good = use<sep_separable_conv_args>(r, with); break;
      case SEP_STEP_ELEMENTWISE: good = use<sep_elementwise_args>(r, with); break;
      case SEP_STEP_LAYER_NORM: good = use<sep_layer_norm_args>(r, with); break;
      case SEP_STEP_POOL: good = use<sep_pool_args>(r, with); break;
      case SEP_STEP_RELAYOUT: good = use<sep_relayout_args>(r, with); break;
    }
    if (!good) return i + 1;
    i += 2 + fields;
  }
  return 0;
}

// One step spread over threads; each call of `body` takes a scratch memory that no other has.
template <class Args>
struct Spread {
  const Args& args;
  char* scratch;
  int64_t scratch_bytes;
  std::atomic<int64_t> taken{0};

  static void body(int64_t begin, int64_t end, void* context) {
    Spread& s = *static_cast<Spread*>(context);
    run_part(s.args, s.scratch + s.taken.fetch_add(1, std::memory_order_relaxed) * s.scratch_bytes, begin, end);
  }
};

}  // namespace

extern "C" {

int64_t sep_program_measure(const int64_t* program, int64_t length, int64_t* measures) {
  return each_step(program, length, nullptr, 0, [&](auto& a) {
    measures[0] = table(a)->units(&a);
    measures[1] = scratch_bytes(a);
    int64_t weights = 0;
    each_weight(a, [&](int64_t bytes, const void*, auto) { measures[2 + weights++] = bytes; });
    for (; weights < SEP_MEASURES - 2; ++weights) measures[2 + weights] = 0;
    measures += SEP_MEASURES;
  });
}

int64_t sep_program_pack(const int64_t* program, int64_t length, const float* const* weights, int64_t count, char* packed) {
  int64_t packed_count = 0;
  const int64_t failed = each_step(program, length, nullptr, 0, [&](auto& a) {
    each_weight(a, [&](int64_t, const void* to, auto pack) {
      if (packed_count < count) pack(weights[packed_count], packed + (static_cast<const char*>(to) - kNowhere));
      ++packed_count;
    });
  });
  return failed ? failed : packed_count != count;
}

int64_t sep_program_run(const int64_t* program, int64_t length, char* const* bases, int64_t base_count, char* scratch,
                        int64_t scratch_bytes, int64_t threads, sep_parallel parallel) {
  return each_step(program, length, bases, base_count, [&](auto& a) {
    using Args = std::remove_reference_t<decltype(a)>;
    const int64_t units = table(a)->units(&a);
    const int64_t fair = (units + threads - 1) / threads, part = fair < grain(a) ? grain(a) : fair;
    if (units <= part) {
      run_part(a, scratch, 0, units);
      return;
    }
    Spread<Args> spread{a, scratch, scratch_bytes};
    parallel(units, part, Spread<Args>::body, &spread);
  });
}

}  // extern "C"
