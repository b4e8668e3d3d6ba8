// Kernels for AVX-512 with VNNI (Cascade Lake, Zen 4 and later). Needs F, BW, VL and VNNI; no VBMI, no BF16.
#include <immintrin.h>

#include "../gelu.h"
#include "../kernels.h"

namespace thinbert {
namespace {

#include "avx512.inc"
#include "body.inc"

int32_t spin(int rounds) {
  I a[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = seti(i);
  const I x = seti(0x01020304), w = seti(0x01010101);
  for (int round = 0; round < rounds; ++round)
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) dot(a[i], x, w);
#pragma GCC unroll 16
  for (int i = 1; i < 16; ++i) a[0] = xori(a[0], a[i]);
  int32_t lanes[16];
  storei(lanes, a[0]);
  return lanes[0];
}

}  // namespace

const Kernels* avx512vnni_kernels() {
  static constexpr Kernels table = table_of("avx512vnni", spin);
  return &table;
}

}  // namespace thinbert
