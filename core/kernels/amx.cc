// Kernels for AMX (Intel's servers from Sapphire Rapids on): dense products on tiles, all else as in avx512vnni.cc.
//
// A tile of weights is 16 outputs x 64 inputs. A byte tile (see kernels.h) stands as the processor wants the other side: 16
// groups of four inputs x 16 tokens. Their product is the sums of 16 outputs x 16 tokens. Tile instructions are assembly:
// the compiler's names for them take no template arguments.
#include <immintrin.h>

#include <utility>

#include "../gelu.h"
#include "../kernels.h"

namespace thinbert {
namespace {

#include "avx512.inc"
#include "body.inc"

constexpr int kSide = 16, kWords = kSide * kSide;  // rows of a tile, and words of 32 bits in it
constexpr int kTiles = 8;                          // registers

// What the processor is told of its registers: each is a tile of 16 rows of 64 bytes.
struct alignas(64) Shapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
  constexpr Shapes() {
    for (int t = 0; t < kTiles; ++t) bytes[t] = 64, rows[t] = kSide;
  }
};
constexpr Shapes kShapes;
inline void take_tiles() { __asm__ volatile("ldtilecfg %0" : : "m"(kShapes)); }
inline void release_tiles() { __asm__ volatile("tilerelease"); }

template <int tile>
inline void zero_tile() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(tile));
}
template <int tile>
inline void load_tile(const void* p, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(tile) : "memory");
}
template <int tile>
inline void store_tile(int32_t* p) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(int64_t{64}), "i"(tile) : "memory");
}
template <int sums, int weights, int inputs>
inline void dot_tile() {
  __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(weights), "i"(inputs));
}

// sums [V][R][16 rows][16] of R blocks of rows, each `depth` tiles of weights; n counts the tiles of sums.
template <int V, int R, int... n>
inline void multiply_tiles(const int32_t* words, int depth, const uint8_t* x, int32_t* sums,
                           std::integer_sequence<int, n...>) {
  constexpr int weights = V * R, inputs = weights + R, spare = kTiles - inputs;  // registers
  (zero_tile<n>(), ...);
  for (int k = 0; k < depth; ++k, words += kWords, x += kSide * V * 64) {
    for (int line = 0; line < R * kSide; ++line)
      __builtin_prefetch(words + line / kSide * depth * kWords + line % kSide * kSide + kAhead / 4, 0, 3);
    load_tile<weights>(words, 64);
    if constexpr (R == 2) load_tile<weights + 1>(words + depth * kWords, 64);
    ((n % R == 0 ? load_tile<inputs + n / R % spare>(x + n / R * 64, V * 64) : void(),
      dot_tile<n, weights + n % R, inputs + n / R % spare>()),
     ...);
  }
  (store_tile<n>(sums + n * kWords), ...);
}

template <int V, int R>
inline void rows_of_tiles(const int32_t* words, int depth, const uint8_t* x, const Common<V>& c, int first) {
  alignas(64) int32_t sums[V * R * kWords];
  multiply_tiles<V, R>(words, depth, x, sums, std::make_integer_sequence<int, V * R>());
  for (int i = 0; i < R * kSide && first + i < c.r.count; ++i) {
    I a[V];
    for (int v = 0; v < V; ++v) a[v] = loadi(sums + ((v * R + i / kSide) * kSide + i % kSide) * kSide);
    finish<V, V>(a, c, first + i, 0);
  }
}

template <int V>
inline void dense_tiles_v(const int32_t* words, int depth, const uint8_t* x, const Rows& r) {
  constexpr int R = V <= 2 ? 2 : 1;  // a sum is ready for its next product only after three others
  const Common<V> c = common<V>(r);
  int row = 0;
  for (; row + (R - 1) * kSide < c.r.count; row += R * kSide, words += R * depth * kWords)
    rows_of_tiles<V, R>(words, depth, x, c, row);
  if (R > 1 && row < c.r.count) rows_of_tiles<V, 1>(words, depth, x, c, row);
}

void dense_tiles(const int32_t* words, int groups, const uint8_t* x, int vectors, const Rows& r) {
  const int depth = (groups + kSide - 1) / kSide;
  take_tiles();
  with_vectors(vectors, [&](auto V) { dense_tiles_v<V.value>(words, depth, x, r); });
  release_tiles();
}

int32_t spin_tiles(int rounds) {
  alignas(64) int32_t sums[kWords];
  take_tiles();
  for (int round = 0; round < rounds; round += 4 * kSide)  // 16 rounds' products each
    dot_tile<0, 4, 5>(), dot_tile<1, 4, 5>(), dot_tile<2, 4, 5>(), dot_tile<3, 4, 5>();
  store_tile<0>(sums);
  release_tiles();
  return sums[0];
}

constexpr Kernels with_tiles(Kernels k) {
  k.dense = dense_tiles;
  k.dense_rows = k.dense_groups = kSide;
  return k;
}

}  // namespace

const Kernels* amx_kernels() {
  static constexpr Kernels table = with_tiles(table_of("amx", spin_tiles));
  return &table;
}

}  // namespace thinbert
