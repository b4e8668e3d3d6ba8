// Weights as the engine uses them: matrices in the form their kernel reads; tables of embeddings where they lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include "kernels.h"

namespace thinbert {

// How a matrix is multiplied. Chosen per matrix by what it costs on this machine (see plan).
enum class Form : int { kDense = 0, kBlock4x4 = 1, kBlock1x4 = 2 };

// Columns of a matrix [N, K] that share one quantisation of their inputs: a piece of K small enough that its byte tile stays
// in the L1 cache, with its own scale and zero point per token. A finer scale costs nothing and rounds less.
constexpr int kGroupColumns = 768;

// Pieces of K columns: as few as fit, of equal size, each a multiple of 16.
struct Pieces {
  int count, size;
};
inline Pieces pieces(int columns) {
  const int count = columns > 0 ? (columns + kGroupColumns - 1) / kGroupColumns : 1;
  static_assert(16 % kRowGroup == 0, "the FFN's rows are taken piece by piece");
  const int size = ((columns + count - 1) / count + 15) / 16 * 16;
  return {count, size};
}

// Weight words from the beginning of a cache line on: a row of a tile is one.
template <typename T>
struct Lines {
  using value_type = T;
  Lines() = default;
  template <typename U>
  Lines(const Lines<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t{64})); }
  void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t{64}); }
  bool operator==(const Lines&) const { return true; }
  bool operator!=(const Lines&) const { return false; }
};
using Words = std::vector<int32_t, Lines<int32_t>>;

// A matrix [N, K] of s8 weights, planned for one instruction set. Rows are padded to whole blocks with zeros.
struct Matrix {
  struct Piece {
    int columns = 0;                // of K, up to `Pieces::size`
    std::vector<uint32_t> start;    // sparse: first quad of each row (1x4, in `order`) or block of each row block (4x4),
                                    // and the end
    std::vector<uint8_t> order;     // 1x4: [N] which row of its group each one is
    std::vector<Quad> quads;        // 1x4
    std::vector<uint16_t> index;    // 4x4: group of four columns of each block
    Words words;                    // dense and 4x4: weights, in the order of the kernel
    std::vector<int32_t> row_sum;   // [N] sum of the piece's weights
  };
  Form form = Form::kDense;
  std::vector<Piece> parts;
  std::vector<float> scale, bias;  // [N]
};

// Row-wise list of the occupied 1x4 blocks of a matrix: the form of the packed file.
struct BlockList {
  const uint32_t* start;   // [N + 1]
  const uint16_t* index;   // [blocks] group of four columns, rising within a row
  const int8_t* values;    // [blocks][4]
};

// Nanoseconds for one vector of 16 tokens and one block: 16 weights dense or 4x4, 4 weights 1x4. Only ratios matter.
struct Costs {
  double dense, block4x4, block1x4;
};

// The cheapest form for a matrix with so many occupied blocks.
Form plan(const Costs& costs, int rows, int columns, size_t blocks4x4, size_t blocks1x4);

Matrix make_matrix(int rows, int columns, const BlockList& blocks, const float* scale, const float* bias, Form form,
                   const Kernels& kernels);
size_t count_blocks4x4(int rows, const BlockList& blocks);

// Embedding table of s8 rows with one scale each.
struct Table {
  const int8_t* values = nullptr;
  const float* scale = nullptr;
  int rows = 0;
};

struct Norm {
  std::vector<float> weight, bias;
};

// A head, in float: they are small.
struct Linear {
  std::vector<float> weight, bias;  // [N][K], [N]
  int rows() const { return static_cast<int>(bias.size()); }
};

struct Layer {
  Matrix query, key, value, output, ffn_in, ffn_out;
  Norm attention_norm, ffn_norm;
  int heads = 0, ffn = 0;
};

}  // namespace thinbert
