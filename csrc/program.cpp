// Reads the steps of a program into the kernels' arguments, and measures, packs or runs them.
#include "program.h"

#include <atomic>
#include <cstring>

#include "dense_conv.h"
#include "depthwise_conv.h"
#include "elementwise.h"
#include "layer_norm.h"
#include "pad.h"
#include "pointwise_conv.h"
#include "pool.h"
#include "relayout.h"
#include "resample.h"
#include "separable_conv.h"
#include "transposed_conv.h"
#include "winograd_conv.h"

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

// What a kind of step has beside its numbered fields; each kind below says what is different.
template <int64_t Number, class Arguments, auto Table>
struct Kind {
  using Args = Arguments;
  static constexpr int64_t number = Number;
  static constexpr int64_t grain = 1;  // units that are worth another thread's waking, some 10 us
  static auto table() { return Table(); }

  // A call of `visit` for each weight of a step: its packed size, where it lies, and how to pack it.
  template <class Visit>
  static void each_weight(const Args&, Visit) {}

  static int64_t scratch_bytes(const Args& a) {
    if constexpr (requires { table()->scratch_bytes(&a); })
      return table()->scratch_bytes(&a);
    else
      return 0;
  }
  static void run(const Args& a, char* scratch, int64_t begin, int64_t end) {
    if constexpr (requires { table()->scratch_bytes(&a); })
      table()->run(&a, scratch, begin, end);
    else
      table()->run(&a, begin, end);
  }
};

// Of (batch, H, W, channels).
sep_view channels_last(void* data, int64_t channels, const int64_t* size) {
  return {data, {size[1] * size[2] * channels, 1, size[1] * size[2] * channels, size[2] * channels, channels}};
}

struct Depthwise : Kind<SEP_STEP_DEPTHWISE, sep_depthwise_conv_args, sep_depthwise_conv> {
  static void read(Reader& r, Args& a) {
    r.pointers(a.x.data, a.packed, a.bias, a.y.data);
    r.numbers(a.batch, a.channels, a.filters);
    for (int64_t* size : {a.size, a.out}) size[0] = 1, r.numbers(size[1], size[2]);
    for (int32_t* of : {a.kernel, a.stride, a.padding, a.dilation}) of[0] = of != a.padding, r.numbers(of[1], of[2]);
    r.number(a.activation);
    a.x = channels_last(a.x.data, a.channels, a.size);
    a.y = channels_last(a.y.data, a.filters, a.out);
    a.dtype = SEP_F32;
  }
  template <class Visit>
  static void each_weight(const Args& a, Visit visit) {
    visit(table()->packed_floats(&a) * 4, a.packed, [&](const float* from, void* to) {
      Args b = a;
      b.weight = from;
      b.packed = static_cast<float*>(to);
      table()->pack_weight(&b);
    });
  }
};

struct Dense : Kind<SEP_STEP_DENSE, sep_dense_conv_args, sep_dense_conv> {
  static void read(Reader& r, Args& a) {
    r.pointers(a.x, a.weight, a.bias, a.residual, a.y);
    r.numbers(a.batch, a.channels, a.filters, a.groups, a.size, a.out, a.x_stride, a.kernel, a.stride, a.padding, a.dilation);
    r.numbers(a.activation, a.residual_first);
    r.product(a.product);
    r.failed |= a.groups < 1 || a.channels % a.groups || a.filters % a.groups;
  }
  template <class Visit>
  static void each_weight(const Args& a, Visit visit) {
    visit(table()->packed_bytes(&a), a.weight, [&](const float* from, void* to) { table()->pack_weight(&a, from, to); });
  }
};

struct Winograd : Kind<SEP_STEP_WINOGRAD, sep_winograd_conv_args, sep_winograd_conv> {
  static void read(Reader& r, Args& a) {
    r.pointers(a.x, a.weight, a.bias, a.residual, a.y);
    r.numbers(a.batch, a.channels, a.filters, a.size, a.out, a.x_stride, a.padding, a.activation, a.residual_first, a.tile);
    r.failed |= a.tile != 2 && a.tile != 4;
  }
  template <class Visit>
  static void each_weight(const Args& a, Visit visit) {
    visit(table()->packed_bytes(&a), a.weight, [&](const float* from, void* to) { table()->pack_weight(&a, from, to); });
  }
};

struct Pointwise : Kind<SEP_STEP_POINTWISE, sep_pointwise_conv_args, sep_pointwise_conv> {
  static constexpr int64_t grain = 2;
  static void read(Reader& r, Args& a) {
    r.pointers(a.x, a.weight, a.bias, a.scale, a.residual, a.y, a.sums);
    r.numbers(a.rows, a.c_in, a.c_out, a.x_stride, a.residual_stride, a.y_stride, a.image_rows);
    r.numbers(a.activation, a.residual_first, a.normalize);
    r.product(a.product);
    r.number(a.epsilon);
  }
  template <class Visit>
  static void each_weight(const Args& a, Visit visit) {
    visit(table()->packed_bytes(a.c_in, a.c_out, a.product), a.weight, [&](const float* from, void* to) {
      table()->pack_weight(from, a.c_in, 1, a.c_in, a.c_out, a.product, to);
    });
  }
};

struct Separable : Kind<SEP_STEP_SEPARABLE, sep_separable_conv_args, sep_separable_conv> {
  static void read(Reader& r, Args& a) {
    r.pointers(a.x, a.y, a.sums);
    Pointwise::read(r, a.expand);
    sep_depthwise_step& d = a.depthwise;
    r.pointers(d.weight, d.bias);
    r.numbers(d.batch, d.channels, d.size, d.out, d.kernel, d.stride, d.padding, d.dilation, d.activation, d.makes, d.adds);
    Pointwise::read(r, a.project);
  }
  template <class Visit>
  static void each_weight(const Args& a, Visit visit) {
    if (a.expand.weight) Pointwise::each_weight(a.expand, visit);
    if (a.depthwise.weight)
      visit(table()->packed_floats(&a.depthwise) * 4, a.depthwise.weight, [&](const float* from, void* to) {
        table()->pack_depthwise(&a.depthwise, from, static_cast<float*>(to));
      });
    if (a.project.weight) Pointwise::each_weight(a.project, visit);
  }
};

struct Elementwise : Kind<SEP_STEP_ELEMENTWISE, sep_elementwise_args, sep_elementwise> {
  static constexpr int64_t grain = 8;
  static void read(Reader& r, Args& a) {
    r.pointers(a.x, a.scale, a.other, a.y);
    r.numbers(a.rows, a.channels, a.image_rows, a.activation, a.divides, a.subtracts, a.bends, a.slope, a.low, a.high);
  }
};

struct LayerNorm : Kind<SEP_STEP_LAYER_NORM, sep_layer_norm_args, sep_layer_norm> {
  static constexpr int64_t grain = 8;
  static void read(Reader& r, Args& a) {
    r.pointers(a.x, a.weight, a.bias, a.y);
    r.numbers(a.rows, a.channels, a.epsilon);
  }
};

struct Pool : Kind<SEP_STEP_POOL, sep_pool_args, sep_pool> {
  static constexpr int64_t grain = 16;
  static void read(Reader& r, Args& a) {
    r.pointers(a.x, a.y);
    r.numbers(a.batch, a.channels, a.size, a.out, a.kernel, a.stride, a.padding, a.kind, a.factor);
  }
};

struct Relayout : Kind<SEP_STEP_RELAYOUT, sep_relayout_args, sep_relayout> {
  static constexpr int64_t grain = 4;
  static void read(Reader& r, Args& a) {
    r.pointers(a.x, a.y);
    r.numbers(a.size, a.x_stride, a.y_stride);
  }
};

struct Transposed : Kind<SEP_STEP_TRANSPOSED, sep_transposed_conv_args, sep_transposed_conv> {
  static void read(Reader& r, Args& a) {
    r.pointers(a.x, a.weight, a.bias, a.residual, a.y);
    r.numbers(a.batch, a.channels, a.filters, a.groups, a.size, a.out, a.x_stride, a.kernel, a.stride, a.padding, a.dilation);
    r.numbers(a.activation, a.residual_first);
    r.product(a.product);
    r.failed |= a.groups < 1 || a.channels % a.groups || a.filters % a.groups || a.stride[0] < 1 || a.stride[1] < 1;
  }
  template <class Visit>
  static void each_weight(const Args& a, Visit visit) {
    visit(table()->packed_bytes(&a), a.weight, [&](const float* from, void* to) { table()->pack_weight(&a, from, to); });
  }
};

struct Resample : Kind<SEP_STEP_RESAMPLE, sep_resample_args, sep_resample> {
  static void read(Reader& r, Args& a) {
    r.pointers(a.x, a.rows, a.columns, a.y);
    r.numbers(a.batch, a.channels, a.size, a.out, a.blends);
  }
};

struct Pad : Kind<SEP_STEP_PAD, sep_pad_args, sep_pad> {
  static constexpr int64_t grain = 16;
  static void read(Reader& r, Args& a) {
    r.pointers(a.x, a.y);
    r.numbers(a.size, a.out, a.before, a.x_stride, a.value);
  }
};

template <class K, class Use>
bool use(Reader& r, Use& with) {
  typename K::Args a{};
  K::read(r, a);
  if (r.failed || r.at != r.end) return false;
  with(K(), a);
  return true;
}

template <class... All>
struct Kinds {
  static_assert(sizeof...(All) == SEP_STEP_KINDS);
  template <class Use>
  static bool use_number(int64_t number, Reader& r, Use& with) {
    return ((number == All::number && use<All>(r, with)) || ...);
  }
};
typedef Kinds<Depthwise, Dense, Pointwise, Separable, Elementwise, LayerNorm, Pool, Relayout, Winograd, Transposed, Resample, Pad>
    AllKinds;

// Calls `with` on the kind and the arguments of every step.
template <class Use>
int64_t each_step(const int64_t* program, int64_t length, char* const* bases, int64_t base_count, Use with) {
  for (int64_t i = 0; i < length;) {
    const int64_t fields = i + 1 < length ? program[i + 1] : -1;
    if (fields < 0 || fields > length - i - 2) return i + 1;
    Reader r{program + i + 2, program + i + 2 + fields, bases, base_count};
    if (!AllKinds::use_number(program[i], r, with)) return i + 1;
    i += 2 + fields;
  }
  return 0;
}

// Numbers below the smallest normal one are zeros while this lives, in this thread: processors take a hundred times as long for them,
// and trained weights hold some. What the thread did with them before is restored.
struct FlushesSubnormals {
#if defined(__x86_64__)
  unsigned before = __builtin_ia32_stmxcsr();
  FlushesSubnormals() { __builtin_ia32_ldmxcsr(before | 0x8040); }  // results and operands
  ~FlushesSubnormals() { __builtin_ia32_ldmxcsr(before); }
#elif defined(__aarch64__)
  uint64_t before;
  FlushesSubnormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before));
    asm volatile("msr fpcr, %0" : : "r"(before | (uint64_t(1) << 24)));
  }
  ~FlushesSubnormals() { asm volatile("msr fpcr, %0" : : "r"(before)); }
#endif
};

// One step spread over threads; each call of `body` takes a scratch memory that no other has.
template <class K>
struct Spread {
  const typename K::Args& args;
  char* scratch;
  int64_t scratch_bytes;
  std::atomic<int64_t> taken{0};

  static void body(int64_t begin, int64_t end, void* context) {
    [[maybe_unused]] const FlushesSubnormals flushes;
    Spread& s = *static_cast<Spread*>(context);
    K::run(s.args, s.scratch + s.taken.fetch_add(1, std::memory_order_relaxed) * s.scratch_bytes, begin, end);
  }
};

}  // namespace

extern "C" {

int64_t sep_program_measure(const int64_t* program, int64_t length, int64_t* measures) {
  return each_step(program, length, nullptr, 0, [&](auto kind, auto& a) {
    measures[0] = kind.table()->units(&a);
    measures[1] = kind.scratch_bytes(a);
    int64_t weights = 0;
    kind.each_weight(a, [&](int64_t bytes, const void*, auto) { measures[2 + weights++] = bytes; });
    for (; weights < SEP_MEASURES - 2; ++weights) measures[2 + weights] = 0;
    measures += SEP_MEASURES;
  });
}

int64_t sep_program_pack(const int64_t* program, int64_t length, const float* const* weights, int64_t count, char* packed) {
  int64_t packed_count = 0;
  const int64_t failed = each_step(program, length, nullptr, 0, [&](auto kind, auto& a) {
    kind.each_weight(a, [&](int64_t, const void* to, auto pack) {
      if (packed_count < count) pack(weights[packed_count], packed + (static_cast<const char*>(to) - kNowhere));
      ++packed_count;
    });
  });
  return failed ? failed : packed_count != count;
}

int64_t sep_program_run(const int64_t* program, int64_t length, char* const* bases, int64_t base_count, char* scratch,
                        int64_t scratch_bytes, int64_t threads, sep_parallel parallel) {
  [[maybe_unused]] const FlushesSubnormals flushes;
  return each_step(program, length, bases, base_count, [&](auto kind, auto& a) {
    using K = decltype(kind);
    const int64_t units = kind.table()->units(&a);
    const int64_t fair = (units + threads - 1) / threads, part = fair < K::grain ? K::grain : fair;
    if (units <= part) {
      kind.run(a, scratch, 0, units);
      return;
    }
    Spread<K> spread{a, scratch, scratch_bytes};
    parallel(units, part, Spread<K>::body, &spread);
  });
}

}  // extern "C"
