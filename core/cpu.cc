// CPU detection. Only features that some kernel depends on are listed, each on its own: one never implies another (Alder Lake
// has AVX-VNNI without AVX-512, Cascade Lake AVX-512 VNNI without AVX-VNNI).
#include "cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace thinbert {

std::vector<CpuFeature> cpu_features() {
#if defined(__x86_64__)
  // The builtin also checks, through XGETBV, that the operating system saves the wide registers.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") != 0;
  unsigned a = 0, b = 0, c = 0, d = 0;  // compilers before 2021 have no name for the one that is asked for here
  const bool avx_vnni = avx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
  return {
      {"avx2", avx2},
      {"fma", __builtin_cpu_supports("fma") != 0},
      {"avx_vnni", avx_vnni},
      {"avx512f", __builtin_cpu_supports("avx512f") != 0},
      {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
      {"avx512vl", __builtin_cpu_supports("avx512vl") != 0},
      {"avx512_vnni", __builtin_cpu_supports("avx512vnni") != 0},
  };
#else
  return {};
#endif
}

}  // namespace thinbert
