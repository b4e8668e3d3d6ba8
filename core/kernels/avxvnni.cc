// Kernels for AVX-VNNI: the byte products of AVX-512 VNNI on processors without AVX-512 (Intel's from Alder Lake on).
#include <immintrin.h>

#include "../gelu.h"
#include "../kernels.h"

namespace thinbert {
namespace {

#include "pairs.inc"

// As assembly for the reason given in avx512.inc.
inline __m256i dot8(__m256i acc, __m256i x, __m256i w) {
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(x), "x"(w));
  return acc;
}

#include "plain.inc"
#include "body.inc"

}  // namespace

const Kernels* avxvnni_kernels() {
  static constexpr Kernels table = table_of("avxvnni");
  return &table;
}

}  // namespace thinbert
