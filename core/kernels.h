// The table of functions that each instruction set fills in. Everything here works on vectors of 16 tokens.
//
// Layouts (V = vectors in a tile, 1 … kMaxVectors; lane = one token):
//   float tile   [feature][V][16]      one feature of all tokens stands together
//   byte tile    [group][V][16][4]     four neighbouring features of a token share a 32-bit word, as dot products want it
//   weight word  32 bits               four s8 weights of one output, for four neighbouring inputs
// Pointers to tiles are aligned to 64 bytes. Nothing here allocates, prints, throws or keeps state.
#pragma once

#include <cstdint>

namespace thinbert {

constexpr int kLanes = 16;      // tokens in a vector: the width of AVX-512, kept on every instruction set
constexpr int kMaxVectors = 4;  // 4 x 64 bytes x 192 groups = the 48 KB of an L1 cache; wider tiles were slower

enum class Activation : int { kGelu = 0, kGeluNew = 1, kRelu = 2 };

// Scales are steps of a range; a range of nothing but zeros counts as this wide.
constexpr float kSmallest = 1e-30f;

// One head: its queries, and the keys and values of their sequence, as quantize_key and quantize_value write them. Vectors
// of 16 tokens lie `byte_stride` bytes and `scale_stride` scales apart.
struct AttentionInput {
  const int8_t* queries;
  const float* query_scale;
  const int8_t* keys;
  const float* key_scale;
  const int32_t* key_sum;
  const int8_t* values;
  const float* value_scale;
  int byte_stride, scale_stride;
  int length;  // keys that exist
};

struct Kernels {
  const char* name;

  // Integer products, exact: acc[row][V][16] (+)= sum over kept words of word . x. Rows come in blocks of 4 for the first two.
  // dense: words [row block][group][4 rows].
  void (*dense)(const int32_t* words, int groups, const uint8_t* x, int vectors, int row_blocks, int32_t* acc);
  // Blocks of 4 outputs x 4 inputs: words [block][4 rows]; `start` [row_blocks + 1] into index and words.
  void (*block4x4)(const uint32_t* start, const uint16_t* index, const int32_t* words, const uint8_t* x, int vectors,
                   int row_blocks, int32_t* acc);
  // Blocks of 1 output x 4 inputs, lists padded with zero words to multiples of 4.
  void (*block1x4)(const uint32_t* start, const uint16_t* index, const int32_t* words, const uint8_t* x, int vectors,
                   int rows, int32_t* acc);

  // out[row] = float(acc[row] - zero * row_sum[row]) * (row_scale[row] * scale) + (first ? bias[row] : out[row])
  void (*dequantize)(const int32_t* acc, int rows, int vectors, const int32_t* row_sum, const float* row_scale,
                     const float* bias, const float* scale, const int32_t* zero, bool first, float* out);

  // In place over [rows][V][16].
  void (*activate)(Activation kind, float* x, int rows, int vectors);

  // Per token: low = min(0, x), high = max(0, x) over the rows; scale = max(high - low, kSmallest) / 255 and
  // zero = rint(-low / scale); q = clamp(rint(x / scale) + zero, 0, 255). Rows past the last, to a multiple of 4, are 0.
  void (*quantize)(const float* x, int rows, int vectors, uint8_t* q, float* scale, int32_t* zero);

  // x = normalise(x + y) * weight + bias over the rows of each lane; y may be null. eps < 0: the affine map alone.
  void (*add_norm)(float* x, const float* y, int rows, int vectors, const float* weight, const float* bias, float eps);

  // One head of 16 tokens, x [d] rows of `stride` floats apart: per token scale = max(|x|, kSmallest) / 127, s8 values.
  // keys: [d/4][16][4] with `sum` of each token's values; values: [d][16].
  void (*quantize_key)(const float* x, int stride, int d, int8_t* q, float* scale, int32_t* sum);
  void (*quantize_value)(const float* x, int stride, int d, int8_t* q, float* scale);

  // softmax(q k^T / sqrt(d)) v of one head for one or two vectors of queries; `out`: [d] rows of `out_stride` floats,
  // 16 lanes a vector. `scratch`: 16 floats for each key and vector.
  void (*attend)(const AttentionInput& in, int vectors, int d, float* scratch, float* out, int out_stride);
};

// The table of an instruction set, or null where the processor lacks it.
const Kernels* generic_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512vnni_kernels();

}  // namespace thinbert
