// Kernels for AVX-512 with VNNI (Cascade Lake, Zen 4 and later). Needs F, BW, VL and VNNI; no VBMI, no BF16.
#include <immintrin.h>

#include "../gelu.h"
#include "../kernels.h"

namespace thinbert {
namespace {

using F = __m512;
using I = __m512i;
using W = __m512i;

inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F a) { _mm512_storeu_ps(p, a); }
inline F set(float a) { return _mm512_set1_ps(a); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F min(F a, F b) { return _mm512_min_ps(a, b); }
inline F max(F a, F b) { return _mm512_max_ps(a, b); }
inline F sqrt(F a) { return _mm512_sqrt_ps(a); }
inline F floor(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
inline F times_power(F p, F a) { return _mm512_scalef_ps(p, a); }

inline I loadi(const void* p) { return _mm512_loadu_si512(p); }
inline void storei(void* p, I a) { _mm512_storeu_si512(p, a); }
inline I seti(int32_t a) { return _mm512_set1_epi32(a); }
inline I addi(I a, I b) { return _mm512_add_epi32(a, b); }
inline I subi(I a, I b) { return _mm512_sub_epi32(a, b); }
inline I muli(I a, I b) { return _mm512_mullo_epi32(a, b); }
inline I andi(I a, I b) { return _mm512_and_si512(a, b); }
inline I xori(I a, I b) { return _mm512_xor_si512(a, b); }
inline I xor3(I a, I b, I c) { return _mm512_ternarylogic_epi32(a, b, c, 0x96); }
inline I shl(I a, int n) { return _mm512_slli_epi32(a, static_cast<unsigned>(n)); }
inline I to_int(F a) { return _mm512_cvtps_epi32(a); }
inline F to_float(I a) { return _mm512_cvtepi32_ps(a); }
inline I bits(F a) { return _mm512_castps_si512(a); }
inline F from_bits(I a) { return _mm512_castsi512_ps(a); }
inline void store_bytes(int8_t* p, I a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
}

// As assembly, because GCC copies every accumulator to another register before the intrinsic and back after it, which costs
// as much as the product. `dot_word` multiplies by the same four weights in every lane, spread while they are loaded.
inline void dot(I& acc, I x, I w) { __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(w)); }
inline void dot_word(I& acc, I x, const int8_t* w) {
  __asm__("vpdpbusd (%2)%{1to16%}, %1, %0" : "+v"(acc) : "v"(x), "r"(w), "m"(*reinterpret_cast<const int8_t(*)[4]>(w)));
}

inline W words_at(const int32_t* p) {
  return _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline I word(W four, int j) { return _mm512_permutexvar_epi32(_mm512_set1_epi32(j), four); }

constexpr int kAtOnce = 4, kRows = 8, kSums = 8;

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
