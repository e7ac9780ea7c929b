// A program of every kind of step against loops in double precision, over any split of its work; and programs that make no sense.
#include "../program.h"

#include "../pool.h"
#include "grid.h"

namespace {

typedef std::vector<int64_t> Ints;
enum : int64_t { kWorkspace, kPacked, kInput, kOutput, kNull = -1 };

int64_t at(int64_t base, int64_t floats = 0) { return (base << 48) + floats * 4; }

int64_t bits(float f) {
  int32_t i;
  std::memcpy(&i, &f, 4);
  return i;
}

// A (height, width, channels) image in double precision.
struct Image {
  int64_t height, width, channels;
  std::vector<double> values;
  Image(int64_t h, int64_t w, int64_t c) : height(h), width(w), channels(c), values(h * w * c) {}
  double& operator()(int64_t i, int64_t j, int64_t c) { return values[(i * width + j) * channels + c]; }
};

// weight (filters, kernel, kernel, channels of a group); stride 1, padding "same", relu where asked.
Image convolution(Image& x, Floats& weight, Floats& bias, int64_t kernel, bool depthwise, bool relu) {
  Image y(x.height, x.width, bias.n);
  const int64_t group = depthwise ? 1 : x.channels, pad = kernel / 2;
  for (int64_t i = 0; i < y.height; ++i)
    for (int64_t j = 0; j < y.width; ++j)
      for (int64_t f = 0; f < y.channels; ++f) {
        double sum = bias[f];
        for (int64_t t = 0; t < kernel * kernel; ++t) {
          const int64_t row = i + t / kernel - pad, column = j + t % kernel - pad;
          if (row < 0 || row >= x.height || column < 0 || column >= x.width) continue;
          for (int64_t c = 0; c < group; ++c)
            sum += x(row, column, depthwise ? f : c) * weight[(f * kernel * kernel + t) * group + c];
        }
        y(i, j, f) = relu ? std::fmax(sum, 0) : sum;
      }
  return y;
}

const int64_t kH = 40, kW = 33, kPixels = kH * kW, kC = 20, kWide = 24, kSteps = 12;
// After the elementwise step: cut and padded, resized, then spread by a transposed convolution of stride 2.
const int64_t kPadH = kH - 5, kPadW = kW + 2, kSmallH = 15, kSmallW = 20, kSpreadH = 29, kSpreadW = 39;

// One network: relayout, dense 3x3, the same by tiles, depthwise 3x3, pointwise with a residual, depthwise and pointwise as one, add, pad,
// resize, transposed 3x3, norm, mean.
struct Network {
  Floats input{3 * kPixels}, stem{kC * 27}, stem_bias{kC}, second{kC * 9 * kC}, second_bias{kC};
  Floats deep{kC * 9}, deep_bias{kC}, mix{kC * kC}, mix_bias{kC};
  Floats last_deep{kC * 9}, last_deep_bias{kC}, widen{kWide * kC}, widen_bias{kWide}, gain{kWide}, offset{kWide};
  Floats rows{3 * kSmallH}, columns{3 * kSmallW}, spread{kWide * 9 * kWide}, spread_bias{kWide};
  Ints program, weight_at;                  // where in the program a packed weight's pointer stands
  std::vector<const float*> weights;
  std::vector<Floats*> constants{&stem_bias, &second_bias, &deep_bias, &mix_bias, &last_deep_bias, &widen_bias, &gain, &offset,
                                 &rows, &columns, &spread_bias};
  int64_t packed_bytes = 0;

  Network() {
    unsigned seed = 1;
    fill(input, seed);
    for (Floats* of : {&stem, &second, &deep, &mix, &last_deep, &widen, &spread}) {
      fill(*of, ++seed);
      for (int64_t i = 0; i < of->n; ++i) (*of)[i] /= of == &stem ? 5 : of == &second || of == &spread ? 13 : of->n == kC * 9 ? 3 : 4;
    }
    for (Floats* of : constants) fill(*of, ++seed);
    place(rows, kSmallH, kPadH), place(columns, kSmallW, kPadW);
    write();
    place_weights();
  }

  // Indices and weights of a resizing from `size` to `out`.
  static void place(Floats& table, int64_t out, int64_t size) {
    for (int64_t i = 0; i < out; ++i) {
      const double at = i * (size - 1.0) / (out - 1), first = std::fmin(std::floor(at), size - 1.0);
      table[i] = first, table[out + i] = std::fmin(first + 1, size - 1.0), table[2 * out + i] = at - first;
    }
  }

  int64_t constant(const Floats& of) const {  // constants lie before the packed weights
    int64_t before = 0;
    for (const Floats* c : constants) {
      if (c == &of) break;
      before += c->n;
    }
    return at(kPacked, before);
  }

  // `weights` of a step are placed later: their pointers are -2 here.
  void step(int64_t kind, const Ints& fields, std::vector<Floats*> packed = {}) {
    program.push_back(kind), program.push_back(fields.size());
    for (int64_t field : fields) {
      if (field == -2) weight_at.push_back(program.size());
      program.push_back(field);
    }
    for (Floats* w : packed) weights.push_back(w->p);
  }

  void write() {
    const int64_t a = at(kWorkspace), b = at(kWorkspace, kPixels * kWide), c = at(kWorkspace, 2 * kPixels * kWide);
    step(SEP_STEP_RELAYOUT, {at(kInput), a, 1, 1, 1, 3, kH, kW, 0, 0, 0, kPixels, kW, 1, 0, 0, 0, 1, kW * 3, 3});
    step(SEP_STEP_DENSE, {a, -2, constant(stem_bias), kNull, c, 1, 3, kC, 1, kH, kW, kH, kW, kPixels * 3, 1, kW * 3, 3,
                          3, 3, 1, 1, 1, 1, 1, 1, SEP_RELU, 0, SEP_F32}, {&stem});
    step(SEP_STEP_WINOGRAD, {c, -2, constant(second_bias), kNull, b, 1, kC, kC, kH, kW, kH, kW, kPixels * kC, 1, kW * kC, kC,
                             1, 1, SEP_RELU, 0, 4}, {&second});
    step(SEP_STEP_DEPTHWISE, {b, -2, constant(deep_bias), c, 1, kC, kC, kH, kW, kH, kW, 3, 3, 1, 1, 1, 1, 1, 1, SEP_RELU}, {&deep});
    step(SEP_STEP_POINTWISE, {c, -2, constant(mix_bias), kNull, b, a, kNull, kPixels, kC, kC, kC, kC, kC, kPixels,
                              SEP_RELU, 0, 0, SEP_F32, bits(0)}, {&mix});
    Ints chain = {a, b, kNull};
    for (int64_t p = 0; p < 19; ++p) chain.push_back(p < 7 ? kNull : 0);
    for (int64_t field : {int64_t(-2), constant(last_deep_bias), int64_t(1), kC, kH, kW, kH, kW}) chain.push_back(field);
    for (int64_t field : {3, 3, 1, 1, 1, 1, 1, 1, (int)SEP_NONE, 1, 1}) chain.push_back(field);
    const Ints project = {kNull, -2, constant(widen_bias), kNull, kNull, kNull, kNull, 0, kC, kWide, 0, 0, 0, 0, SEP_NONE, 0, 0, SEP_F32, 0};
    chain.insert(chain.end(), project.begin(), project.end());
    step(SEP_STEP_SEPARABLE, chain, {&last_deep, &widen});
    step(SEP_STEP_ELEMENTWISE, {b, kNull, b, c, kPixels, kWide, kPixels, SEP_RELU, 0, 0, 1, bits(-1), bits(0.25f), bits(3)});
    step(SEP_STEP_PAD, {c, b, 1, kH, kW, kWide, 1, kPadH, kPadW, kWide, 0, -3, 1, 0, 0, kW * kWide, kWide, 1, bits(0.5f)});
    step(SEP_STEP_RESAMPLE, {b, constant(rows), constant(columns), c, 1, kWide, kPadH, kPadW, kSmallH, kSmallW, 1});
    step(SEP_STEP_TRANSPOSED, {c, -2, constant(spread_bias), kNull, b, 1, kWide, kWide, 1, kSmallH, kSmallW, kSpreadH, kSpreadW,
                               0, 1, kSmallW * kWide, kWide, 3, 3, 2, 2, 1, 1, 1, 1, SEP_NONE, 0, SEP_F32}, {&spread});
    step(SEP_STEP_LAYER_NORM, {b, constant(gain), constant(offset), a, kSpreadH * kSpreadW, kWide, bits(1e-5f)});
    step(SEP_STEP_POOL, {a, at(kOutput), 1, kWide, kSpreadH, kSpreadW, 1, 1, kSpreadH, kSpreadW, 1, 1, 0, 0, SEP_POOL_MEAN, bits(0)});
  }

  // Packed weights one after another, each at a multiple of 64 bytes, after the constants.
  void place_weights() {
    for (int64_t i : weight_at) program[i] = at(kPacked);
    Ints measures(kSteps * SEP_MEASURES);
    sep_program_measure(program.data(), program.size(), measures.data());
    for (const Floats* c : constants) packed_bytes += c->n * 4;
    size_t weight = 0;
    for (int64_t step = 0; step < kSteps; ++step)
      for (int64_t i = 2; i < SEP_MEASURES; ++i)
        if (const int64_t bytes = measures[step * SEP_MEASURES + i]) {
          packed_bytes = (packed_bytes + 63) / 64 * 64;
          program[weight_at[weight++]] = (kPacked << 48) + packed_bytes;
          packed_bytes += bytes;
        }
  }

  int64_t pack(char* packed) {
    char* to = packed;
    for (const Floats* c : constants) std::memcpy(to, c->p, c->n * 4), to += c->n * 4;
    return sep_program_pack(program.data(), program.size(), weights.data(), weights.size(), packed);
  }

  Image padded(Image x) {
    Image y(kPadH, kPadW, kWide);
    for (int64_t i = 0; i < kPadH; ++i)
      for (int64_t j = 0; j < kPadW; ++j)
        for (int64_t c = 0; c < kWide; ++c) y(i, j, c) = j < 1 || j > kW ? 0.5 : x(i + 3, j - 1, c);
    return y;
  }

  Image resized(Image x) {
    Image y(kSmallH, kSmallW, kWide);
    for (int64_t i = 0; i < kSmallH; ++i)
      for (int64_t j = 0; j < kSmallW; ++j)
        for (int64_t c = 0; c < kWide; ++c)
          for (int64_t corner = 0; corner < 4; ++corner) {
            const double down = rows[2 * kSmallH + i], right = columns[2 * kSmallW + j];
            y(i, j, c) += (corner / 2 ? down : 1 - down) * (corner % 2 ? right : 1 - right) *
                          x(rows[corner / 2 * kSmallH + i], columns[corner % 2 * kSmallW + j], c);
          }
    return y;
  }

  // Each pixel spread over 3x3 results, 2 apart. The packed weight holds one tap for even rows (the middle one), two for odd ones.
  Image transposed(Image x) {
    Image y(kSpreadH, kSpreadW, kWide);
    for (int64_t i = 0; i < kSpreadH; ++i)
      for (int64_t j = 0; j < kSpreadW; ++j)
        for (int64_t f = 0; f < kWide; ++f) {
          y(i, j, f) = spread_bias[f];
          const int64_t down = i % 2 + 1, across = j % 2 + 1, before[] = {0, 1, 3, 5};  // taps of this phase, and of those before
          const float* weight = spread.p + before[i % 2 * 2 + j % 2] * kWide * kWide;
          for (int64_t t = 0; t < down * across; ++t)
            for (int64_t c = 0; c < kWide; ++c)
              y(i, j, f) += x(i / 2 + t / across, j / 2 + t % across, c) * weight[(f * down * across + t) * kWide + c];
        }
    return y;
  }

  std::vector<double> expected() {
    Image x(kH, kW, 3);
    for (int64_t i = 0; i < input.n; ++i) x.values[i % kPixels * 3 + i / kPixels] = input[i];
    Image first = convolution(x, stem, stem_bias, 3, false, true), wide = convolution(first, second, second_bias, 3, false, true);
    Image filtered = convolution(wide, deep, deep_bias, 3, true, true);
    Image mixed = convolution(filtered, mix, mix_bias, 1, false, true);
    for (size_t i = 0; i < mixed.values.size(); ++i) mixed.values[i] += wide.values[i];
    Image again = convolution(mixed, last_deep, last_deep_bias, 3, true, false);
    Image wider = convolution(again, widen, widen_bias, 1, false, false);
    for (double& v : wider.values) v = std::fmax(std::fmin(std::fmax(2 * v < 0 ? -2 * v : 2 * v, 0.25), 3), 0);
    Image y = transposed(resized(padded(wider)));
    std::vector<double> mean(kWide);
    const int64_t pixels = kSpreadH * kSpreadW;
    for (int64_t p = 0; p < pixels; ++p) {
      double* row = &y.values[p * kWide];
      double middle = 0, variance = 0;
      for (int64_t c = 0; c < kWide; ++c) middle += row[c] / kWide;
      for (int64_t c = 0; c < kWide; ++c) variance += std::pow(row[c] - middle, 2) / kWide;
      for (int64_t c = 0; c < kWide; ++c)
        mean[c] += ((row[c] - middle) / std::sqrt(variance + 1e-5) * gain[c] + offset[c]) / pixels;
    }
    return mean;
  }
};

int64_t parts;  // of one call of `last_part_first`, at most one a thread: each has scratch memory of its own

void last_part_first(int64_t end, int64_t grain, sep_body body, void* context) {
  const int64_t count = (end + grain - 1) / grain;
  parts = std::max(parts, count);
  for (int64_t part = count - 1; part >= 0; --part) body(part * grain, std::min(end, (part + 1) * grain), context);
}

std::vector<float> run(Network& network, char* packed, int64_t threads, Judge& judge) {
  Ints measures(kSteps * SEP_MEASURES);
  const auto [program, length] = std::pair((const int64_t*)network.program.data(), (int64_t)network.program.size());
  judge.value("measure", sep_program_measure(program, length, measures.data()), 0, 0);
  int64_t scratch_bytes = 0;
  for (int64_t step = 0; step < kSteps; ++step) scratch_bytes = std::max(scratch_bytes, (measures[step * SEP_MEASURES + 1] + 63) / 64 * 64);
  Aligned scratch(scratch_bytes * threads), workspace(3 * kPixels * kWide * 4);
  Floats output(kWide);
  unwritten(output);
  char* bases[] = {workspace.p, packed, (char*)network.input.p, (char*)output.p};
  parts = 0;
  judge.value("run", sep_program_run(program, length, bases, 4, scratch.p, scratch_bytes, threads, last_part_first), 0, 0);
  judge.value("as many parts as threads", parts, threads > 1 ? threads : 0, 0);
  ++judge.cases;
  return {output.p, output.p + kWide};
}

// What measuring says of a copy of exact size, in which AddressSanitizer sees one int too many.
int64_t measured(const int64_t* program, int64_t length) {
  Buffer<int64_t> copy(length);
  std::copy(program, program + length, copy.p);
  Ints measures(kSteps * SEP_MEASURES);
  return sep_program_measure(copy.p, length, measures.data());
}

void judge_nonsense(const Network& network, char* packed, Judge& judge) {
  Ints program = network.program;
  const int64_t all = program.size(), fields = program[1];
  for (int64_t length = 1; length < all; ++length) {
    int64_t start = 0;
    while (start + 2 <= length && start + 2 + program[start + 1] <= length) start += 2 + program[start + 1];
    judge.value("cut short", measured(program.data(), length), start == length ? 0 : start + 1, 0);
  }
  for (int64_t kind : {int64_t(-1), int64_t(SEP_STEP_KINDS), INT64_MAX}) {
    program[0] = kind;
    judge.value("no such kind", measured(program.data(), all), 1, 0);
  }
  program[0] = network.program[0];
  for (int64_t count : {fields - 1, fields + 1, int64_t(0), int64_t(-1), INT64_MAX, INT64_MIN}) {
    program[1] = count;
    judge.value("wrong number of fields", measured(program.data(), all), 1, 0);
  }
  program[1] = fields;
  Floats output(1);
  char* bases[] = {packed, packed, (char*)network.input.p, (char*)output.p};
  for (int64_t base : {int64_t(4), int64_t(-2), int64_t(SEP_ADDRESS) - 1}) {
    program[2] = (int64_t)((uint64_t)base << 48);
    judge.value("no such memory", sep_program_run(program.data(), all, bases, 4, nullptr, 0, 1, last_part_first), 1, 0);
  }
  const auto& weights = network.weights;
  const int64_t fewer = sep_program_pack(network.program.data(), all, weights.data(), weights.size() - 1, packed);
  judge.value("a weight too few", fewer != 0, 1, 0);
  judge.cases += 4;
}

}  // namespace

bool test_program() {
  Judge judge{"program"};
  Network network;
  Aligned packed(network.packed_bytes);
  judge.value("pack", network.pack(packed.p), 0, 0);
  const std::vector<double> wanted = network.expected();
  const std::vector<float> alone = run(network, packed.p, 1, judge), shared = run(network, packed.p, 3, judge);
  for (int64_t c = 0; c < kWide; ++c) {
    judge.value("every step", alone[c], wanted[c], 1e-5 * (1 + std::fabs(wanted[c])));
    judge.value("three threads", shared[c], alone[c], 0);
  }
  judge_nonsense(network, packed.p, judge);
  const int64_t offset = (int64_t(1) << 48) - 1;
  for (int64_t i : network.weight_at)  // the same weights by their addresses
    network.program[i] = (int64_t(SEP_ADDRESS) << 48) + (int64_t)packed.p + (network.program[i] & offset);
  const std::vector<float> addressed = run(network, packed.p, 1, judge);
  for (int64_t c = 0; c < kWide; ++c) judge.value("weights by address", addressed[c], alone[c], 0);
  return judge.report();
}
