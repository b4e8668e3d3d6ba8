// CPU detection. Only features that some kernel depends on are listed, each on its own: one never implies another (Alder Lake
// has AVX-VNNI without AVX-512, Cascade Lake AVX-512 VNNI without AVX-VNNI).
#include "cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace thinbert {

#if defined(__x86_64__)
// Linux lets a process use tiles only once it has asked, and says no where they are not saved.
static bool may_use_tiles() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

std::vector<CpuFeature> cpu_features() {
#if defined(__x86_64__)
  // The builtin also checks, through XGETBV, that the operating system saves the wide registers.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") != 0;
  unsigned a = 0, b = 0, c = 0, d = 0;  // compilers before 2021 have no name for the one that is asked for here
  const bool avx_vnni = avx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
  a = b = c = d = 0;
  const bool leaf7 = __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0;
  const bool amx_tile = leaf7 && (d >> 24 & 1) && may_use_tiles(), amx_int8 = amx_tile && (d >> 25 & 1);
  return {
      {"avx2", avx2},
      {"fma", __builtin_cpu_supports("fma") != 0},
      {"avx_vnni", avx_vnni},
      {"avx512f", __builtin_cpu_supports("avx512f") != 0},
      {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
      {"avx512vl", __builtin_cpu_supports("avx512vl") != 0},
      {"avx512_vnni", __builtin_cpu_supports("avx512vnni") != 0},
      {"amx_tile", amx_tile},
      {"amx_int8", amx_int8},
  };
#else
  return {};
#endif
}

}  // namespace thinbert
