// CPU detection. Only features that some kernel may depend on are listed, each on its own: one never implies another
// (Cascade Lake has VNNI without VBMI or BF16, Ice Lake both of the first two without BF16).
#include "cpu.h"

namespace thinbert {

std::vector<CpuFeature> cpu_features() {
#if defined(__x86_64__)
  // The builtin also checks, through XGETBV, that the operating system saves the wide registers.
  __builtin_cpu_init();
  return {
      {"avx2", __builtin_cpu_supports("avx2") != 0},
      {"fma", __builtin_cpu_supports("fma") != 0},
      {"avx512f", __builtin_cpu_supports("avx512f") != 0},
      {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
      {"avx512vl", __builtin_cpu_supports("avx512vl") != 0},
      {"avx512_vnni", __builtin_cpu_supports("avx512vnni") != 0},
      {"avx512vbmi", __builtin_cpu_supports("avx512vbmi") != 0},
      {"avx512_bf16", __builtin_cpu_supports("avx512bf16") != 0},
  };
#else
  return {};
#endif
}

}  // namespace thinbert
