// Tokens live in vectors of 16; every sequence begins a new vector, so that no vector holds two and the only padding is the
// rest of a sequence's last vector. Each thread owns a run of vectors and carries them through all layers in tiles of up to
// kMaxVectors; threads meet once a layer, when all keys and values are there.
#include "encoder.h"

#include <algorithm>
#include <cstdlib>
#include <memory>

namespace thinbert {
namespace {

template <typename T>
class Buffer {
 public:
  explicit Buffer(size_t count) {
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes ? bytes : 64)));
  }
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
};

struct Vector {
  int sequence, first, count;  // tokens of the sequence in this vector: first … first + count - 1
};

struct Tile {
  int first, vectors;
};

struct Sequence {
  int first_vector, first_token, length;
};

// A float tile quantised piece by piece (see Pieces): bytes, and scale and zero point per piece and token.
struct ByteTile {
  Buffer<uint8_t> bytes;
  Buffer<float> scale;
  Buffer<int32_t> zero;
  int piece_bytes;

  explicit ByteTile(int columns)
      : bytes(static_cast<size_t>(pieces(columns).count) * pieces(columns).size * kMaxVectors * 16),
        scale(static_cast<size_t>(pieces(columns).count) * kMaxVectors * 16),
        zero(static_cast<size_t>(pieces(columns).count) * kMaxVectors * 16),
        piece_bytes(0) {}

  void fill(const Kernels& k, const float* x, int columns, int vectors) {
    const Pieces cut = pieces(columns);
    piece_bytes = cut.size * vectors * 16;
    for (int p = 0; p < cut.count; ++p) {
      const int rows = std::min(cut.size, columns - p * cut.size);
      k.quantize(x + static_cast<size_t>(p) * cut.size * vectors * 16, rows, vectors, bytes.get() + p * piece_bytes,
                 scale.get() + p * kMaxVectors * 16, zero.get() + p * kMaxVectors * 16);
    }
  }
};

struct Scratch {
  ByteTile input;        // of a width
  ByteTile inner;        // of one piece of the FFN
  Buffer<float> rows;    // [widest of heads, width, FFN piece][V][16]
  Buffer<float> result;  // [D][V][16]
  Buffer<float> scores;  // of two vectors of queries with every key

  Scratch(int width, int inner_columns, int keys)
      : input(width),
        inner(inner_columns),
        rows(static_cast<size_t>(std::max(width, inner_columns)) * kMaxVectors * 16),
        result(static_cast<size_t>(width) * kMaxVectors * 16),
        scores(static_cast<size_t>(keys) * 2 * kLanes) {}
};

// Queries, keys or values of all heads and vectors: bytes [head][vector][d][16], a scale (and sum) per token and head. What a
// query of one head reads stands together: apart by a power of two, it would crowd into a few sets of the L1 cache.
struct Heads {
  Buffer<int8_t> bytes;
  Buffer<float> scale;
  Buffer<int32_t> sum;

  Heads(size_t vectors, int heads, int d)
      : bytes(vectors * heads * d * 16), scale(vectors * heads * 16), sum(vectors * heads * 16) {}
};

// One forward pass: what all threads share.
class Pass {
 public:
  Pass(const Encoder& encoder, const int32_t* ids, const int32_t* types, const int32_t* lengths, int batch, int threads,
       const Encoder::Outputs& outputs)
      : e_(encoder), k_(*encoder.kernels), ids_(ids), types_(types), outputs_(outputs), barrier_(threads) {
    int token = 0;
    for (int s = 0; s < batch; ++s) {
      sequences_.push_back({static_cast<int>(vectors_.size()), token, lengths[s]});
      for (int first = 0; first < lengths[s]; first += kLanes)
        vectors_.push_back({s, first, std::min(kLanes, lengths[s] - first)});
      token += lengths[s];
      longest_ = std::max(longest_, lengths[s]);
    }
    const size_t n = vectors_.size();
    x_ = std::make_unique<Buffer<float>>(n * e_.width * kLanes);
    queries_ = std::make_unique<Heads>(n, e_.max_heads, e_.head_size);
    for (int parity = 0; parity < 2; ++parity) {
      keys_[parity] = std::make_unique<Heads>(n, e_.max_heads, e_.head_size);
      values_[parity] = std::make_unique<Heads>(n, e_.max_heads, e_.head_size);
    }
    threads_ = threads;
  }

  void run(int thread) {
    const int n = static_cast<int>(vectors_.size());
    const int begin = static_cast<int>(static_cast<int64_t>(n) * thread / threads_);
    const int end = static_cast<int>(static_cast<int64_t>(n) * (thread + 1) / threads_);
    std::vector<Tile> tiles;
    for (int v = begin; v < end; v += kMaxVectors) tiles.push_back({v, std::min(kMaxVectors, end - v)});
    int inner = 16;
    for (const Layer& layer : e_.layers) inner = std::max(inner, pieces(layer.ffn).size);
    const int columns = std::max(e_.width, e_.max_heads * e_.head_size);
    Scratch s(columns, inner, (longest_ + kLanes - 1) / kLanes * kLanes);

    for (const Tile& tile : tiles) embed(tile);
    for (size_t i = 0; i < e_.layers.size(); ++i) {
      const Layer& layer = e_.layers[i];
      // Two sets of keys and values take turns: a thread may fill the next layer's while another still reads this one's.
      Heads &keys = *keys_[i % 2], &values = *values_[i % 2];
      for (const Tile& tile : tiles) project(layer, tile, keys, values, s);
      barrier_.wait();
      for (const Tile& tile : tiles) {
        attend(layer, tile, keys, values, s);
        feed_forward(layer, tile, s);
      }
    }
    for (const Tile& tile : tiles) write(tile);
  }

 private:
  float* x(const Tile& tile) const { return x_->get() + static_cast<size_t>(tile.first) * e_.width * kLanes; }

  // Sum of the token's, its position's and its type's embedding, normalised. Lanes past a sequence's end are zero.
  void embed(const Tile& tile) {
    float* out = x(tile);
    const int D = e_.width, stride = tile.vectors * kLanes;
    for (int v = 0; v < tile.vectors; ++v) {
      const Vector& at = vectors_[static_cast<size_t>(tile.first + v)];
      const Sequence& sequence = sequences_[static_cast<size_t>(at.sequence)];
      const Table* tables[] = {&e_.token, &e_.position, &e_.token_type};
      const int count = e_.token_type.values ? 3 : 2;
      const int8_t* rows[3][kLanes];
      float scale[3][kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        const int place = at.first + std::min(lane, at.count - 1), token = sequence.first_token + place;
        const int32_t numbers[] = {ids_[token], place, types_[token]};
        for (int t = 0; t < count; ++t) {
          rows[t][lane] = tables[t]->values + static_cast<size_t>(numbers[t]) * D;
          scale[t][lane] = lane < at.count ? tables[t]->scale[numbers[t]] : 0.0f;
        }
      }
      // 16 features of each token, then turned: D is a multiple of the head size, so of 16
      for (int first = 0; first < D; first += 16) {
        float sum[kLanes][16];
        for (int lane = 0; lane < kLanes; ++lane) {
          for (int f = 0; f < 16; ++f)
            sum[lane][f] = rows[0][lane][first + f] * scale[0][lane] + rows[1][lane][first + f] * scale[1][lane];
          if (count == 3)
            for (int f = 0; f < 16; ++f) sum[lane][f] += rows[2][lane][first + f] * scale[2][lane];
        }
        for (int f = 0; f < 16; ++f)
          for (int lane = 0; lane < kLanes; ++lane)
            out[static_cast<size_t>(first + f) * stride + v * kLanes + lane] = sum[lane][f];
      }
    }
    k_.add_norm(out, nullptr, D, tile.vectors, e_.embedding_norm.weight.data(), e_.embedding_norm.bias.data(), e_.eps);
  }

  // Rows row0 … row1 of one piece of a matrix times a piece of input: out = (first ? bias : out) + …, [row - row0][V][16].
  void multiply(const Matrix& m, int piece, int row0, int row1, const uint8_t* bytes, const float* scale,
                const int32_t* zero, int vectors, bool first, float* out) const {
    const Matrix::Piece& p = m.parts[static_cast<size_t>(piece)];
    const Rows rows = {row1 - row0,          p.row_sum.data() + row0, m.scale.data() + row0, m.bias.data() + row0, scale, zero,
                       first,                out};
    const int groups = (p.columns + 3) / 4;
    switch (m.form) {
      case Form::kDense:
        return k_.dense(p.words.data() + static_cast<size_t>(row0) * groups, groups, bytes, vectors, rows);
      case Form::kBlock4x4:
        return k_.block4x4(p.start.data() + row0 / 4, p.index.data(), p.words.data(), bytes, vectors, rows);
      case Form::kBlock1x4:
        return k_.block1x4(p.start.data() + row0, p.quads.data(), bytes, vectors, rows);
    }
  }

  void multiply(const Matrix& m, int row0, int row1, const ByteTile& input, int vectors, float* out) const {
    for (int p = 0; p < static_cast<int>(m.parts.size()); ++p)
      multiply(m, p, row0, row1, input.bytes.get() + p * input.piece_bytes, input.scale.get() + p * kMaxVectors * 16,
               input.zero.get() + p * kMaxVectors * 16, vectors, p == 0, out);
  }

  // Queries, keys and values of a tile, head by head, rounded to s8 with a scale per token and head.
  void project(const Layer& layer, const Tile& tile, Heads& keys, Heads& values, Scratch& s) {
    const int d = e_.head_size, V = tile.vectors, stride = V * kLanes;
    s.input.fill(k_, x(tile), e_.width, V);
    for (int h = 0; h < layer.heads; ++h) {
      const Matrix* matrices[] = {&layer.query, &layer.key, &layer.value};
      Heads* targets[] = {queries_.get(), &keys, &values};
      for (int which = 0; which < 3; ++which) {
        multiply(*matrices[which], h * d, (h + 1) * d, s.input, V, s.rows.get());
        for (int v = 0; v < V; ++v) {
          const size_t place = h * vectors_.size() + static_cast<size_t>(tile.first + v);
          int8_t* bytes = targets[which]->bytes.get() + place * d * kLanes;
          float* scale = targets[which]->scale.get() + place * kLanes;
          const float* rows = s.rows.get() + v * kLanes;
          if (which == 2)
            k_.quantize_value(rows, stride, d, bytes, scale);
          else
            k_.quantize_key(rows, stride, d, bytes, scale, targets[which]->sum.get() + place * kLanes);
        }
      }
    }
  }

  // x = norm(x + output(softmax(q k^T / sqrt(d)) v))
  void attend(const Layer& layer, const Tile& tile, const Heads& keys, const Heads& values, Scratch& s) {
    const int d = e_.head_size, V = tile.vectors, stride = V * kLanes;
    for (int v = 0, together; v < V; v += together) {
      const size_t vector = static_cast<size_t>(tile.first + v);
      const Sequence& sequence = sequences_[static_cast<size_t>(vectors_[vector].sequence)];
      together = v + 1 < V && vectors_[vector + 1].sequence == vectors_[vector].sequence ? 2 : 1;
      for (int h = 0; h < layer.heads; ++h) {
        const size_t first = h * vectors_.size(), mine = first + vector;
        const size_t theirs = first + static_cast<size_t>(sequence.first_vector);
        const AttentionInput in = {queries_->bytes.get() + mine * d * kLanes,
                                   queries_->scale.get() + mine * kLanes,
                                   keys.bytes.get() + theirs * d * kLanes,
                                   keys.scale.get() + theirs * kLanes,
                                   keys.sum.get() + theirs * kLanes,
                                   values.bytes.get() + theirs * d * kLanes,
                                   values.scale.get() + theirs * kLanes,
                                   sequence.length};
        k_.attend(in, together, d, s.scores.get(), s.rows.get() + static_cast<size_t>(h) * d * stride + v * kLanes, stride);
      }
    }
    s.input.fill(k_, s.rows.get(), layer.heads * d, V);
    multiply(layer.output, 0, e_.width, s.input, V, s.result.get());
    k_.add_norm(x(tile), s.result.get(), e_.width, V, layer.attention_norm.weight.data(),
                layer.attention_norm.bias.data(), e_.eps);
  }

  // x = norm(x + out(activation(in(x)))), the FFN's neurons a piece at a time so that they never leave the cache.
  void feed_forward(const Layer& layer, const Tile& tile, Scratch& s) {
    const int V = tile.vectors;
    s.input.fill(k_, x(tile), e_.width, V);
    const Pieces cut = pieces(layer.ffn);
    for (int p = 0; p < cut.count; ++p) {
      const int row0 = p * cut.size, row1 = std::min(layer.ffn, row0 + cut.size);
      multiply(layer.ffn_in, row0, row1, s.input, V, s.rows.get());
      k_.activate_quantize(e_.activation, s.rows.get(), row1 - row0, V, s.inner.bytes.get(), s.inner.scale.get(),
                           s.inner.zero.get());
      multiply(layer.ffn_out, p, 0, e_.width, s.inner.bytes.get(), s.inner.scale.get(), s.inner.zero.get(), V, p == 0,
               s.result.get());
    }
    k_.add_norm(x(tile), s.result.get(), e_.width, V, layer.ffn_norm.weight.data(), layer.ffn_norm.bias.data(), e_.eps);
  }

  void write(const Tile& tile) {
    const int D = e_.width, stride = tile.vectors * kLanes;
    for (int v = 0; v < tile.vectors; ++v) {
      const Vector& at = vectors_[static_cast<size_t>(tile.first + v)];
      const size_t token = static_cast<size_t>(sequences_[static_cast<size_t>(at.sequence)].first_token + at.first);
      const float* in = x(tile) + v * kLanes;
      if (outputs_.hidden)
        for (int f = 0; f < D; ++f)
          for (int lane = 0; lane < at.count; ++lane)
            outputs_.hidden[(token + static_cast<size_t>(lane)) * D + f] = in[static_cast<size_t>(f) * stride + lane];
      if (outputs_.first && at.first == 0)
        for (int f = 0; f < D; ++f)
          outputs_.first[static_cast<size_t>(at.sequence) * D + f] = in[static_cast<size_t>(f) * stride];
      if (outputs_.span)
        for (int which = 0; which < 2; ++which) {
          float sum[kLanes];
          std::fill(sum, sum + kLanes, e_.span_bias[static_cast<size_t>(which)]);
          const float* weight = e_.span_weight.data() + static_cast<size_t>(which) * D;
          for (int f = 0; f < D; ++f)
            for (int lane = 0; lane < kLanes; ++lane) sum[lane] += weight[f] * in[static_cast<size_t>(f) * stride + lane];
          for (int lane = 0; lane < at.count; ++lane)
            outputs_.span[(token + static_cast<size_t>(lane)) * 2 + which] = sum[lane];
        }
    }
  }

  const Encoder& e_;
  const Kernels& k_;
  const int32_t* ids_;
  const int32_t* types_;
  const Encoder::Outputs outputs_;
  Barrier barrier_;
  int threads_ = 1, longest_ = 0;
  std::vector<Vector> vectors_;
  std::vector<Sequence> sequences_;
  std::unique_ptr<Buffer<float>> x_;
  std::unique_ptr<Heads> queries_, keys_[2], values_[2];
};

}  // namespace

void Encoder::forward(const int32_t* ids, const int32_t* types, const int32_t* lengths, int batch, ThreadPool& pool,
                      const Outputs& outputs) const {
  Pass pass(*this, ids, types, lengths, batch, pool.size(), outputs);
  pool.run([](void* context, int thread) { static_cast<Pass*>(context)->run(thread); }, &pass);
}

}  // namespace thinbert
