// Which instruction set runs: the best that this processor has, or the one that SEPARABLE_ISA or sep_isa_force names.
#include "kernels.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(SEP_HAS_TILES) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define SEP_EXPORT __attribute__((visibility("default")))

namespace {

#if defined(__x86_64__) || defined(_M_X64)
const char* const kNames[] = {"avx512", "avx2", "baseline"};
#elif defined(__aarch64__)
const char* const kNames[] = {"neon", "baseline"};
#else
const char* const kNames[] = {"baseline"};
#endif

enum { kUndecided = -2 };
std::atomic<int> chosen{kUndecided};

int best() {
  for (int isa = 0; isa < SEP_ISA_COUNT; ++isa)
    if (sep_isa_supported(isa)) return isa;
  return SEP_ISA_COUNT - 1;
}

int decide() {
  const char* wanted = std::getenv("SEPARABLE_ISA");
  if (!wanted || !*wanted) return best();
  for (int isa = 0; isa < SEP_ISA_COUNT; ++isa)
    if (!std::strcmp(wanted, kNames[isa])) return sep_isa_supported(isa) ? isa : -1;
  return -1;
}

// Whether the processor has matrix tiles for bfloat16 and this process may use them: the kernel keeps the room that
// they need in every thread's state back until it is asked for.
bool tiles_granted() {
#if defined(SEP_HAS_TILES) && defined(__linux__)
  const unsigned kBf16 = 1u << 22, kTiles = 1u << 24;         // of leaf 7, edx
  const long kRequestPermission = 0x1023, kTileData = 18;     // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (kBf16 | kTiles)) != (kBf16 | kTiles)) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

extern "C" {

SEP_EXPORT int sep_isa_count(void) { return SEP_ISA_COUNT; }

SEP_EXPORT const char* sep_isa_name(int isa) { return isa >= 0 && isa < SEP_ISA_COUNT ? kNames[isa] : "none"; }

SEP_EXPORT int sep_isa_supported(int isa) {
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == SEP_ISA_avx2) return avx2;
  if (isa == SEP_ISA_avx512)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return isa >= 0 && isa < SEP_ISA_COUNT;
}

SEP_EXPORT int sep_isa(void) {
  int isa = chosen.load(std::memory_order_relaxed);
  if (isa == kUndecided) {
    isa = decide();
    chosen.store(isa, std::memory_order_relaxed);
  }
  return isa;
}

SEP_EXPORT int sep_has_bf16(void) {
#if defined(__x86_64__) || defined(_M_X64)
  return sep_isa() == SEP_ISA_avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return 0;
#endif
}

SEP_EXPORT int sep_has_bf16_tiles(void) {
  if (!sep_has_bf16()) return 0;
  static const bool granted = tiles_granted();
  return granted;
}

SEP_EXPORT int sep_isa_force(int isa) {
  if (isa == -1) isa = best();
  if (!sep_isa_supported(isa)) return -1;
  chosen.store(isa, std::memory_order_relaxed);
  return 0;
}

}  // extern "C"
