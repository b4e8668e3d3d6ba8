// Kernels in plain C++: the definition of correct for all others, and what runs where nothing better is there.
#include <cmath>

#include "../gelu.h"
#include "../kernels.h"

namespace thinbert {
namespace {

struct F {
  float lane[16];
};
struct I {
  int32_t lane[16];
};

template <typename R, typename Op>
inline R each(Op op) {
  R r;
  for (int i = 0; i < 16; ++i) r.lane[i] = op(i);
  return r;
}

inline F load(const float* p) { return each<F>([&](int i) { return p[i]; }); }
inline void store(float* p, const F& x) { __builtin_memcpy(p, x.lane, 64); }
inline F set(float x) { return each<F>([&](int) { return x; }); }
inline F add(const F& x, const F& y) { return each<F>([&](int i) { return x.lane[i] + y.lane[i]; }); }
inline F sub(const F& x, const F& y) { return each<F>([&](int i) { return x.lane[i] - y.lane[i]; }); }
inline F mul(const F& x, const F& y) { return each<F>([&](int i) { return x.lane[i] * y.lane[i]; }); }
inline F div(const F& x, const F& y) { return each<F>([&](int i) { return x.lane[i] / y.lane[i]; }); }
inline F fma(const F& x, const F& y, const F& z) {
  return each<F>([&](int i) { return std::fma(x.lane[i], y.lane[i], z.lane[i]); });
}
// min, max and to_int as the vector instructions do them: the second operand unless the first is smaller, and the lowest
// integer for what is no number or out of range
inline F min(const F& x, const F& y) { return each<F>([&](int i) { return x.lane[i] < y.lane[i] ? x.lane[i] : y.lane[i]; }); }
inline F max(const F& x, const F& y) { return each<F>([&](int i) { return x.lane[i] > y.lane[i] ? x.lane[i] : y.lane[i]; }); }
inline F sqrt(const F& x) { return each<F>([&](int i) { return std::sqrt(x.lane[i]); }); }
inline F floor(const F& x) { return each<F>([&](int i) { return std::floor(x.lane[i]); }); }

inline I loadi(const void* p) {
  I r;
  __builtin_memcpy(r.lane, p, 64);
  return r;
}
inline void storei(void* p, const I& x) { __builtin_memcpy(p, x.lane, 64); }
inline I seti(int32_t x) { return each<I>([&](int) { return x; }); }
inline uint32_t u(int32_t x) { return static_cast<uint32_t>(x); }
inline int32_t s(uint32_t x) { return static_cast<int32_t>(x); }
inline I addi(const I& x, const I& y) { return each<I>([&](int i) { return s(u(x.lane[i]) + u(y.lane[i])); }); }
inline I subi(const I& x, const I& y) { return each<I>([&](int i) { return s(u(x.lane[i]) - u(y.lane[i])); }); }
inline I muli(const I& x, const I& y) { return each<I>([&](int i) { return s(u(x.lane[i]) * u(y.lane[i])); }); }
inline I andi(const I& x, const I& y) { return each<I>([&](int i) { return x.lane[i] & y.lane[i]; }); }
inline I xori(const I& x, const I& y) { return each<I>([&](int i) { return x.lane[i] ^ y.lane[i]; }); }
inline I shl(const I& x, int n) { return each<I>([&](int i) { return s(u(x.lane[i]) << n); }); }
inline I to_int(const F& x) {
  return each<I>([&](int i) {
    const float whole = std::nearbyintf(x.lane[i]);
    return whole >= -0x1p31f && whole < 0x1p31f ? static_cast<int32_t>(whole) : INT32_MIN;
  });
}
inline F to_float(const I& x) { return each<F>([&](int i) { return static_cast<float>(x.lane[i]); }); }
inline I bits(const F& x) {
  I r;
  __builtin_memcpy(r.lane, x.lane, 64);
  return r;
}
inline F from_bits(const I& x) {
  F r;
  __builtin_memcpy(r.lane, x.lane, 64);
  return r;
}
inline void store_bytes(int8_t* p, const I& x) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(x.lane[i]);
}

// The j-th byte of a word, unsigned and signed. By shifts, which compilers do for several lanes at once.
inline int32_t u8(int32_t word, int j) { return (word >> (8 * j)) & 255; }
inline int32_t s8(int32_t word, int j) { return s(u(word) << (24 - 8 * j)) >> 24; }
inline void dot(I& acc, const I& x, const I& w) {
  for (int i = 0; i < 16; ++i) {
    const int32_t a = x.lane[i], b = w.lane[i];
    acc.lane[i] += u8(a, 0) * s8(b, 0) + u8(a, 1) * s8(b, 1) + u8(a, 2) * s8(b, 2) + u8(a, 3) * s8(b, 3);
  }
}

constexpr int kAtOnce = 1, kRows = 4, kSums = 4;

#include "plain.inc"
#include "body.inc"

}  // namespace

const Kernels* generic_kernels() {
  static constexpr Kernels table = table_of("generic");
  return &table;
}

}  // namespace thinbert
