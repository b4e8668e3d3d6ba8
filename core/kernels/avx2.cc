// Kernels for AVX2 with FMA. Byte products go through 16 bits, two at a time and exactly: the one-instruction shortcut
// (vpmaddubsw) saturates where 255 * 127 * 2 passes 32767, and is not used.
#include <immintrin.h>

#include "../gelu.h"
#include "../kernels.h"

namespace thinbert {
namespace {

#include "pairs.inc"

inline __m256i dot8(__m256i acc, __m256i x, __m256i w) {
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(x, _mm256_set1_epi16(0xff)),
                                         _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(x, 8), _mm256_srai_epi16(w, 8));
  return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}

#include "plain.inc"
#include "body.inc"

}  // namespace

const Kernels* avx2_kernels() {
  static constexpr Kernels table = table_of("avx2");
  return &table;
}

}  // namespace thinbert
