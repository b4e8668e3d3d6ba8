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
constexpr int kMaxGroups = 16;  // most of Kernels::dense_groups
constexpr int kMaxVectors = 4;  // 4 x 64 bytes x 192 groups = the 48 KB of an L1 cache; wider tiles were slower

enum class Activation : int { kGelu = 0, kGeluNew = 1, kRelu = 2 };

// Scales are steps of a range; a range of nothing but zeros counts as this wide.
constexpr float kSmallest = 1e-30f;

// Four blocks of 1 output x 4 inputs: their groups of columns and their weight words. Lists of blocks are padded to whole
// quads with words of zero.
struct Quad {
  uint16_t index[4];
  int32_t words[4];
};

// In the 1x4 form, rows are worked off group by group, those of a group by the length of their lists: the end of a list is
// mispredicted less often. What a product takes of a matrix (a head, a piece of the FFN, a thread's share) begins at a
// multiple of this many rows.
constexpr int kRowGroup = 16;

// The rows of a product and what their integer sums become:
//   out[row] = float(sum - input_zero * sum of the row's weights) * (scale[row] * input_scale) + (first ? bias : out)[row]
struct Rows {
  int count;
  const int32_t* sum;         // [count] of each row's weights
  const float* scale;         // [count]
  const float* bias;          // [count]
  const float* input_scale;   // [V][16]
  const int32_t* input_zero;  // [V][16]
  bool first;                 // of the pieces that a product is cut into
  float* out;                 // [count][V][16]
};

// One head: its queries, and the keys and values of their sequence, as quantize_key and quantize_value write them, vector
// after vector of 16 tokens.
struct AttentionInput {
  const int8_t* queries;
  const float* query_scale;
  const int8_t* keys;
  const float* key_scale;
  const int32_t* key_sum;
  const int8_t* values;
  const float* value_scale;
  int length;  // keys that exist
};

struct Kernels {
  const char* name;

  // rounds * 16 * 64 byte products on registers alone: what no product can beat. Null where one takes several instructions.
  // Returns something made of the sums.
  int32_t (*spin)(int rounds);

  // Products of a byte tile with rows of weights, by exact integer sums (see Rows for what becomes of them).
  // dense: words [block of rows][block of groups][rows][groups], with so many of each in a block, rows a divisor of kRowGroup.
  // What a block lacks is zero, and x is read as far as the last block of groups goes.
  int dense_rows, dense_groups;
  void (*dense)(const int32_t* words, int groups, const uint8_t* x, int vectors, const Rows& rows);
  // Blocks of 4 outputs x 4 inputs: words [block][4 rows]; `start` [row blocks + 1] into index and words.
  void (*block4x4)(const uint32_t* start, const uint16_t* index, const int32_t* words, const uint8_t* x, int vectors,
                   const Rows& rows);
  // Blocks of 1 output x 4 inputs; `start` [rows + 1] into quads. Rows come in the `order` of their group (see kRowGroup).
  void (*block1x4)(const uint32_t* start, const uint8_t* order, const Quad* quads, const uint8_t* x, int vectors,
                   const Rows& rows);

  // Bytes of each token with a scale and a zero point (docs/format.md has the formulas). Rows past the last, to a multiple of
  // 4, are x = 0, which is the zero point: so they cancel against the weights' row sums, whatever padding the weights have.
  void (*quantize)(const float* x, int rows, int vectors, uint8_t* q, float* scale, int32_t* zero);
  // The same of activation(x), which replaces x.
  void (*activate_quantize)(Activation kind, float* x, int rows, int vectors, uint8_t* q, float* scale, int32_t* zero);

  // x = normalise(x + y) * weight + bias over the rows of each lane; y may be null. eps < 0: the affine map alone.
  void (*add_norm)(float* x, const float* y, int rows, int vectors, const float* weight, const float* bias, float eps);

  // out [rows][V][16] = weight [rows][columns] x + bias, in float: the heads of tasks. x [columns][V][16]
  void (*linear)(const float* weight, const float* bias, int rows, int columns, const float* x, int vectors, float* out);

  // One head of 16 tokens, x [d] rows of `stride` floats apart, to s8 with a scale per token.
  // keys: [d/4][16][4] with `sum` of each token's values; values: [d][16].
  void (*quantize_key)(const float* x, int stride, int d, int8_t* q, float* scale, int32_t* sum);
  void (*quantize_value)(const float* x, int stride, int d, int8_t* q, float* scale);

  // softmax(q k^T / sqrt(d)) v of one head for one or two vectors of queries; `out`: [d] rows of `out_stride` floats,
  // 16 lanes a vector. `scratch`: 16 floats for each key, rounded up to 16, and vector.
  void (*attend)(const AttentionInput& in, int vectors, int d, float* scratch, float* out, int out_stride);
};

// The table of an instruction set. Who may use which: instruction_sets() in dispatch.h.
const Kernels* generic_kernels();
const Kernels* avx2_kernels();
const Kernels* avxvnni_kernels();
const Kernels* avx512vnni_kernels();
const Kernels* amx_kernels();

}  // namespace thinbert
