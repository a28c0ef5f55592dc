// Chooses the build for this processor, once.
#include <cstdlib>
#include <cstring>

#include "tables.h"

namespace vaekern {

namespace {

#define VAEKERN_KERNELS(ISA)                                                        \
  Kernels {                                                                         \
    #ISA, ISA::loss, ISA::sample, ISA::sample_backward, ISA::scale, ISA::right_svd, \
        ISA::assignment                                                             \
  }

Kernels choose() {
  const char* wanted = std::getenv("VAEKERN_ISA");
#if defined(VAEKERN_HAVE_AVX512) || defined(VAEKERN_HAVE_AVX2)
  __builtin_cpu_init();
  auto asked = [&](const char* name) { return !wanted || !std::strcmp(wanted, name); };
#endif
#ifdef VAEKERN_HAVE_AVX512
  if (asked("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    return VAEKERN_KERNELS(avx512);
#endif
#ifdef VAEKERN_HAVE_AVX2
  if (asked("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    return VAEKERN_KERNELS(avx2);
#endif
  (void)wanted;
  return VAEKERN_KERNELS(baseline);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

}  // namespace vaekern
