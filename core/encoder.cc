// Tokens live in vectors of 16; every sequence begins a new vector, so that no vector holds two and the only padding is the
// rest of a sequence's last vector. Each thread has a run of vectors and carries them through all layers in tiles of up to
// kMaxVectors; threads meet once a layer, when all keys and values are there. A thread that is done takes tiles of one that
// is slower, or has lost its core. Where what does not fill whole tiles for all threads is at most one tile, that is
// shared: each thread takes some of the heads and rows of every product. A classifier reads first tokens alone: its last
// layer computes the keys and values of all, and the rest for vectors of 16 first tokens, in shared tiles.
#include "encoder.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <memory>
#include <utility>

namespace thinbert {
namespace {

// The time since the last lap goes to a part, on threads that were given a place for it.
struct Clock {
  using Steady = std::chrono::steady_clock;
  double* seconds = nullptr;
  Steady::time_point last;

  void start(double* place) {
    seconds = place;
    if (seconds) last = Steady::now();
  }
  void lap(Part part) {
    if (!seconds) return;
    const Steady::time_point now = Steady::now();
    seconds[part] += std::chrono::duration<double>(now - last).count();
    last = now;
  }
};
thread_local Clock clock_of_thread;
inline void lap(Part part) { clock_of_thread.lap(part); }

struct Vector {
  int sequence, first, count;  // tokens of the sequence in this vector: first … first + count - 1
};

struct Tile {
  int first, vectors;
};

struct Sequence {
  int first_vector, first_token, length;
};

struct Range {
  int begin, end;
};

constexpr Range kQueries = {0, 1}, kKeysValues = {1, 3}, kQueriesKeysValues = {0, 3};  // what to project

// A float tile quantised piece by piece (see Pieces): bytes, and scale and zero point per piece and token.
struct ByteTile {
  uint8_t* bytes = nullptr;
  float* scale = nullptr;
  int32_t* zero = nullptr;

  ByteTile() = default;
  ByteTile(Arena& arena, int columns)
      : bytes(arena.take<uint8_t>((static_cast<size_t>(pieces(columns).count) * pieces(columns).size + 4 * kMaxGroups) *
                                  kMaxVectors * kLanes)),
        scale(arena.take<float>(static_cast<size_t>(pieces(columns).count) * kMaxVectors * kLanes)),
        zero(arena.take<int32_t>(static_cast<size_t>(pieces(columns).count) * kMaxVectors * kLanes)) {}

  uint8_t* bytes_of(int piece, int size, int vectors) const {
    return bytes + static_cast<size_t>(piece) * size * vectors * kLanes;
  }
  float* scale_of(int piece) const { return scale + piece * kMaxVectors * kLanes; }
  int32_t* zero_of(int piece) const { return zero + piece * kMaxVectors * kLanes; }

  void fill(const Kernels& k, const float* x, int columns, int vectors) const {
    const Pieces cut = pieces(columns);
    for (int p = 0; p < cut.count; ++p)
      k.quantize(x + static_cast<size_t>(p) * cut.size * vectors * kLanes, std::min(cut.size, columns - p * cut.size), vectors,
                 bytes_of(p, cut.size, vectors), scale_of(p), zero_of(p));
    lap(kQuantising);
  }
};

// What one thread works with.
struct Scratch {
  ByteTile input;   // of a width
  ByteTile inner;   // of one piece of the FFN
  float* rows;      // [widest of heads, width, FFN piece][V][16]
  float* result;    // [D][V][16]
  float* scores;    // of two vectors of queries with every key
  float* shared_x;  // the shared tile's: what lies between its products every thread does for itself

  Scratch(Arena& arena, int width, int inner_columns, int keys, size_t shared)
      : input(arena, width),
        inner(arena, inner_columns),
        rows(arena.take<float>(static_cast<size_t>(std::max(width, inner_columns)) * kMaxVectors * 16)),
        result(arena.take<float>(static_cast<size_t>(width) * kMaxVectors * 16)),
        scores(arena.take<float>(static_cast<size_t>(keys) * 2 * kLanes)),
        shared_x(arena.take<float>(shared)) {}
};

// Queries, keys or values of all heads and vectors: bytes [head][vector][d][16], a scale (and sum) per token and head. What a
// query of one head reads stands together: apart by a multiple of 4 KB, it would crowd into a few sets of the L1 cache.
struct Heads {
  int8_t* bytes = nullptr;
  float* scale = nullptr;
  int32_t* sum = nullptr;

  Heads() = default;
  Heads(Arena& arena, size_t vectors, int heads, int d)
      : bytes(arena.take<int8_t>(vectors * heads * d * 16)),
        scale(arena.take<float>(vectors * heads * 16)),
        sum(arena.take<int32_t>(vectors * heads * 16)) {}
};

// Tiles first … last - 1 are a thread's. Each step of a pass has a counter of those that were taken.
struct Run {
  int first, last;
};
struct alignas(64) Counter {  // on a line of its own: every thread writes to its own most of the time
  std::atomic<int> value{0};
};

// One forward pass. Its memory is taken before threads begin: there, nobody could be told that there is none.
class Pass {
 public:
  Pass(const Encoder& encoder, const int32_t* ids, const int32_t* types, const int32_t* lengths, int batch, int threads,
       Arena& arena, const Encoder::Outputs& outputs)
      : e_(encoder), k_(*encoder.kernels), ids_(ids), types_(types), outputs_(outputs), barrier_(threads), threads_(threads) {
    int token = 0;
    for (int s = 0; s < batch; ++s) {
      sequences_.push_back({static_cast<int>(vectors_.size()), token, lengths[s]});
      for (int first = 0; first < lengths[s]; first += kLanes)
        vectors_.push_back({s, first, std::min(kLanes, lengths[s] - first)});
      token += lengths[s];
      longest_ = std::max(longest_, lengths[s]);
    }
    const size_t n = vectors_.size();
    queries_ = Heads(arena, n, e_.max_heads, e_.head_size);
    for (int parity = 0; parity < 2; ++parity) {
      keys_[parity] = Heads(arena, n, e_.max_heads, e_.head_size);
      values_[parity] = Heads(arena, n, e_.max_heads, e_.head_size);
    }
    const int left = static_cast<int>(n % (static_cast<size_t>(kMaxVectors) * threads));
    if (threads > 1 && left <= kMaxVectors) shared_ = {static_cast<int>(n) - left, left};
    int ffn = 0, piece = 16;
    for (const Layer& layer : e_.layers) {
      ffn = std::max(ffn, layer.ffn);
      piece = std::max(piece, pieces(layer.ffn).size);
    }
    const int columns = std::max(e_.width, e_.max_heads * e_.head_size);
    if (outputs.classes) first_ = arena.take<float>(static_cast<size_t>(batch) * e_.width);
    const int together = first_ ? kMaxVectors : shared_.vectors;  // of a shared tile, at most
    if (together) {
      shared_rows_ = arena.take<float>(static_cast<size_t>(std::max(columns, ffn)) * kMaxVectors * kLanes);
      shared_result_ = arena.take<float>(static_cast<size_t>(e_.width) * kMaxVectors * kLanes);
      shared_inner_ = ByteTile(arena, ffn);
    }
    const int keys = (longest_ + kLanes - 1) / kLanes * kLanes;
    for (int t = 0; t < threads; ++t) {
      add_tiles(static_cast<int64_t>(n) - shared_.vectors, t);
      scratch_.emplace_back(arena, columns, piece, keys, static_cast<size_t>(together) * e_.width * kLanes);
    }
    x_ = arena.take<float>(n * e_.width * kLanes);
    taken_ = std::make_unique<Counter[]>((2 * e_.layers.size() + 1) * static_cast<size_t>(threads));
    done_ = std::make_unique<std::atomic<int>[]>(tiles_.size());
  }

  void run(int thread) {
    clock_of_thread.start(outputs_.seconds ? outputs_.seconds + thread * kParts : nullptr);
    const Scratch& s = scratch_[static_cast<size_t>(thread)];
    const int layers = static_cast<int>(e_.layers.size());
    if (shared_.vectors) embed(shared_, s.shared_x);
    for (int i = 0; i < layers; ++i) {
      const Layer& layer = e_.layers[static_cast<size_t>(i)];
      // Two sets of keys and values take turns: a thread may fill the next layer's while another still reads this one's.
      const Heads &keys = keys_[i % 2], &values = values_[i % 2];
      const Range heads = share(layer.heads, 1, thread);
      const bool last = first_ && i == layers - 1;
      const Range which = last ? kKeysValues : kQueriesKeysValues;
      for (int t; (t = take(2 * i, thread)) >= 0;) {
        if (i == 0) embed(tiles_[t], x(t));
        await(t, i);
        project(layer, which, tiles_[t], {0, layer.heads}, x(t), keys, values, s);
        if (last) write(tiles_[t], x(t));
      }
      if (shared_.vectors) {
        project(layer, which, shared_, heads, s.shared_x, keys, values, s);
        if (last && thread == 0) write(shared_, s.shared_x);
      }
      meet();
      if (last) return classify(layer, thread, keys, values, s);
      for (int t; (t = take(2 * i + 1, thread)) >= 0;) {
        const Tile& tile = tiles_[t];
        attend(tile, {0, layer.heads}, keys, values, s, s.rows);
        s.input.fill(k_, s.rows, layer.heads * e_.head_size, tile.vectors);
        multiply(layer.output, {0, e_.width}, s.input, tile.vectors, s.result);
        add_norm(layer.attention_norm, x(t), s.result, tile.vectors);
        feed_forward(layer, x(t), tile.vectors, s);
        add_norm(layer.ffn_norm, x(t), s.result, tile.vectors);
        done_[t].store(i + 1, std::memory_order_release);
      }
      if (shared_.vectors) {
        attend(shared_, heads, keys, values, s, shared_rows_);
        finish_shared(layer, thread, shared_.vectors, s.shared_x, s);
      }
    }
    for (int t; (t = take(2 * layers, thread)) >= 0;) {
      await(t, layers);
      write(tiles_[t], x(t));
    }
    if (thread == 0) write(shared_, s.shared_x);
    lap(kEmbeddings);
  }

 private:
  // A thread's part of n vectors, in tiles: as few as can be, of about equal size.
  void add_tiles(int64_t n, int thread) {
    const int64_t begin = n * thread / threads_, end = n * (thread + 1) / threads_;
    const int64_t count = (end - begin + kMaxVectors - 1) / kMaxVectors;
    const int before = static_cast<int>(tiles_.size());
    for (int64_t t = 0, first = begin; t < count; ++t) {
      const int64_t last = begin + (end - begin) * (t + 1) / count;
      tiles_.push_back({static_cast<int>(first), static_cast<int>(last - first)});
      first = last;
    }
    runs_.push_back({before, static_cast<int>(tiles_.size())});
  }

  float* x(int tile) const { return x_ + static_cast<size_t>(tiles_[tile].first) * e_.width * kLanes; }

  // The next tile of a step, of one's own run or then of another's; -1 when all are taken.
  int take(int step, int thread) {
    for (int k = 0; k < threads_; ++k) {
      const int owner = (thread + k) % threads_;
      const Run& run = runs_[owner];
      std::atomic<int>& taken = taken_[step * threads_ + owner].value;
      if (run.first + taken.load(std::memory_order_relaxed) >= run.last) continue;
      const int t = run.first + taken.fetch_add(1, std::memory_order_relaxed);
      if (t < run.last) return t;
    }
    return -1;
  }

  // Waits until whoever took the tile has carried it through so many layers.
  void await(int tile, int layers) {
    spin_until([&] { return done_[tile].load(std::memory_order_acquire) >= layers; });
    lap(kWaiting);
  }

  void meet() {
    barrier_.wait();
    lap(kWaiting);
  }

  // A thread's part of `count` things, dealt out in units.
  Range share(int count, int unit, int thread) const {
    const auto at = [&](int t) { return std::min(count, (count + unit - 1) / unit * t / threads_ * unit); };
    return {at(thread), at(thread + 1)};
  }

  // The rest of the last layer for first tokens alone, whose states before it were kept, and the logits of their classes.
  void classify(const Layer& layer, int thread, const Heads& keys, const Heads& values, const Scratch& s) {
    const int d = e_.head_size, D = e_.width, batch = static_cast<int>(sequences_.size());
    const int vectors = (batch + kLanes - 1) / kLanes;
    const Range heads = share(layer.heads, 1, thread), dims = share(D, 1, thread), classes = share(e_.classes.rows(), 1, thread);
    for (Tile tile = {0, 0}; tile.first < vectors; tile.first += tile.vectors) {
      tile.vectors = std::min(kMaxVectors, vectors - tile.first);
      const int stride = tile.vectors * kLanes, first = tile.first * kLanes, count = std::min(stride, batch - first);
      const float* states = first_ + static_cast<size_t>(first) * D;
      for (int f = 0; f < D; ++f)
        for (int n = 0; n < stride; ++n)
          s.shared_x[static_cast<size_t>(f) * stride + n] = n < count ? states[static_cast<size_t>(n) * D + f] : 0.0f;
      lap(kEmbeddings);
      project(layer, kQueries, tile, heads, s.shared_x, keys, values, s);
      for (int h = heads.begin; h < heads.end; ++h) {
        float* rows = shared_rows_ + static_cast<size_t>(h) * d * stride;
        std::fill(rows, rows + static_cast<size_t>(d) * stride, 0.0f);
        for (int n = 0; n < count; ++n) {  // the queries of 16 sequences look at the keys of one, and what is its own is taken
          const size_t vector = static_cast<size_t>(tile.first + n / kLanes);
          k_.attend(attention(h, vector, sequences_[static_cast<size_t>(first + n)], keys, values), 1, d, s.scores, s.result,
                    kLanes);
          for (int f = 0; f < d; ++f) rows[f * stride + n] = s.result[f * kLanes + n % kLanes];
        }
      }
      lap(kAttention);
      finish_shared(layer, thread, tile.vectors, s.shared_x, s);
      float* pooled = shared_rows_ + dims.begin * stride;
      linear(e_.pooler, dims, s.shared_x, tile.vectors, pooled);
      for (int i = 0; i < (dims.end - dims.begin) * stride; ++i)
        pooled[i] = e_.pooler_is_tanh ? std::tanh(pooled[i]) : std::max(pooled[i], 0.0f);
      lap(kEmbeddings);
      meet();
      for (int c = classes.begin; c < classes.end; ++c) {
        linear(e_.classes, {c, c + 1}, shared_rows_, tile.vectors, s.result);
        for (int n = 0; n < count; ++n)
          outputs_.classes[static_cast<size_t>(first + n) * e_.classes.bias.size() + static_cast<size_t>(c)] = s.result[n];
      }
      lap(kEmbeddings);
      meet();  // before the next tile's rows overwrite these
    }
  }

  // Some rows of a head, out [rows][V][16].
  void linear(const Linear& head, Range rows, const float* x, int vectors, float* out) const {
    k_.linear(head.weight.data() + static_cast<size_t>(rows.begin) * e_.width, head.bias.data() + rows.begin,
              rows.end - rows.begin, e_.width, x, vectors, out);
  }

  // The rest of a layer for a shared tile of V vectors, once all heads are in shared_rows_: the same sums in the same order as
  // for a tile of one's own.
  void finish_shared(const Layer& layer, int thread, int V, float* x, const Scratch& s) {
    const int stride = V * kLanes;
    const Range mine = share(e_.width, kRowGroup, thread), neurons = share(layer.ffn, kRowGroup, thread);
    float *rows = shared_rows_, *result = shared_result_;
    meet();
    s.input.fill(k_, rows, layer.heads * e_.head_size, V);
    multiply(layer.output, mine, s.input, V, result + mine.begin * stride);
    meet();
    add_norm(layer.attention_norm, x, result, V);
    s.input.fill(k_, x, e_.width, V);
    multiply(layer.ffn_in, neurons, s.input, V, rows + static_cast<size_t>(neurons.begin) * stride);
    meet();
    const Pieces cut = pieces(layer.ffn);
    const Range parts = share(cut.count, 1, thread);
    for (int p = parts.begin; p < parts.end; ++p)
      k_.activate_quantize(e_.activation, rows + static_cast<size_t>(p) * cut.size * stride,
                           std::min(cut.size, layer.ffn - p * cut.size), V, shared_inner_.bytes_of(p, cut.size, V),
                           shared_inner_.scale_of(p), shared_inner_.zero_of(p));
    lap(kActivation);
    meet();
    multiply(layer.ffn_out, mine, shared_inner_, V, result + mine.begin * stride);
    meet();
    add_norm(layer.ffn_norm, x, result, V);
  }

  // Sum of the token's, its position's and its type's embedding, normalised. Lanes past a sequence's end are zero.
  void embed(const Tile& tile, float* out) const {
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
    lap(kEmbeddings);
    add_norm(e_.embedding_norm, out, nullptr, tile.vectors);
  }

  // Some rows of one piece of a matrix times a piece of input: out [rows][V][16] = bias + … of the first piece, and the
  // others added to it.
  void multiply(const Matrix& m, int piece, Range range, const uint8_t* bytes, const float* scale, const int32_t* zero,
                int vectors, float* out) const {
    const int row0 = range.begin;
    const Matrix::Piece& p = m.parts[static_cast<size_t>(piece)];
    const Rows rows = {range.end - row0, p.row_sum.data() + row0, m.scale.data() + row0, m.bias.data() + row0,
                       scale,            zero,                    piece == 0,            out};
    const int groups = (p.columns + 3) / 4;
    switch (m.form) {
      case Form::kDense: {
        const int across = (groups + k_.dense_groups - 1) / k_.dense_groups * k_.dense_groups;
        k_.dense(p.words.data() + static_cast<size_t>(row0) * across, groups, bytes, vectors, rows);
        break;
      }
      case Form::kBlock4x4:
        k_.block4x4(p.start.data() + row0 / 4, p.index.data(), p.words.data(), bytes, vectors, rows);
        break;
      case Form::kBlock1x4:
        k_.block1x4(p.start.data() + row0, p.order.data() + row0, p.quads.data(), bytes, vectors, rows);
        break;
    }
    lap(kProducts);
  }

  void multiply(const Matrix& m, Range rows, const ByteTile& input, int vectors, float* out) const {
    for (int p = 0; p < static_cast<int>(m.parts.size()); ++p)
      multiply(m, p, rows, input.bytes_of(p, m.parts[0].columns, vectors), input.scale_of(p), input.zero_of(p), vectors, out);
  }

  // Queries, keys and values of a tile, or some of them, head by head, rounded to s8 with a scale per token and head.
  void project(const Layer& layer, Range what, const Tile& tile, Range heads, const float* x, const Heads& keys,
               const Heads& values, const Scratch& s) {
    const int d = e_.head_size, V = tile.vectors, stride = V * kLanes;
    s.input.fill(k_, x, e_.width, V);
    for (int h = heads.begin; h < heads.end; ++h) {
      const Matrix* matrices[] = {&layer.query, &layer.key, &layer.value};
      const Heads* targets[] = {&queries_, &keys, &values};
      for (int which = what.begin; which < what.end; ++which) {
        multiply(*matrices[which], {h * d, (h + 1) * d}, s.input, V, s.result);
        for (int v = 0; v < V; ++v) {
          const size_t place = h * vectors_.size() + static_cast<size_t>(tile.first + v);
          int8_t* bytes = targets[which]->bytes + place * d * kLanes;
          float* scale = targets[which]->scale + place * kLanes;
          const float* rows = s.result + v * kLanes;
          if (which == 2)
            k_.quantize_value(rows, stride, d, bytes, scale);
          else
            k_.quantize_key(rows, stride, d, bytes, scale, targets[which]->sum + place * kLanes);
        }
        lap(kQuantising);
      }
    }
  }

  // What a vector of queries of one head needs to look at a sequence.
  AttentionInput attention(int head, size_t vector, const Sequence& sequence, const Heads& keys, const Heads& values) const {
    const size_t first = head * vectors_.size(), mine = first + vector;
    const size_t theirs = first + static_cast<size_t>(sequence.first_vector), row = static_cast<size_t>(e_.head_size) * kLanes;
    return {queries_.bytes + mine * row,
            queries_.scale + mine * kLanes,
            keys.bytes + theirs * row,
            keys.scale + theirs * kLanes,
            keys.sum + theirs * kLanes,
            values.bytes + theirs * row,
            values.scale + theirs * kLanes,
            sequence.length};
  }

  // out [H d][V][16] = softmax(q k^T / sqrt(d)) v of some heads
  void attend(const Tile& tile, Range heads, const Heads& keys, const Heads& values, const Scratch& s, float* out) const {
    const int d = e_.head_size, V = tile.vectors, stride = V * kLanes;
    for (int v = 0, together; v < V; v += together) {
      const size_t vector = static_cast<size_t>(tile.first + v);
      const Sequence& sequence = sequences_[static_cast<size_t>(vectors_[vector].sequence)];
      together = v + 1 < V && vectors_[vector + 1].sequence == vectors_[vector].sequence ? 2 : 1;
      for (int h = heads.begin; h < heads.end; ++h) {
        const AttentionInput in = attention(h, vector, sequence, keys, values);
        k_.attend(in, together, d, s.scores, out + static_cast<size_t>(h) * d * stride + v * kLanes, stride);
      }
    }
    lap(kAttention);
  }

  // result = out(activation(in(x))), the FFN's neurons a piece at a time so that they never leave the cache.
  void feed_forward(const Layer& layer, const float* x, int vectors, const Scratch& s) const {
    s.input.fill(k_, x, e_.width, vectors);
    const Pieces cut = pieces(layer.ffn);
    for (int p = 0; p < cut.count; ++p) {
      const Range rows = {p * cut.size, std::min(layer.ffn, (p + 1) * cut.size)};
      multiply(layer.ffn_in, rows, s.input, vectors, s.rows);
      k_.activate_quantize(e_.activation, s.rows, rows.end - rows.begin, vectors, s.inner.bytes, s.inner.scale, s.inner.zero);
      lap(kActivation);
      multiply(layer.ffn_out, p, {0, e_.width}, s.inner.bytes, s.inner.scale, s.inner.zero, vectors, s.result);
    }
  }

  // x = norm(x + y)
  void add_norm(const Norm& norm, float* x, const float* y, int vectors) const {
    k_.add_norm(x, y, e_.width, vectors, norm.weight.data(), norm.bias.data(), e_.eps);
    lap(kNorms);
  }

  void write(const Tile& tile, const float* x) const {
    const int D = e_.width, stride = tile.vectors * kLanes;
    float spans[2 * kMaxVectors * kLanes];
    if (outputs_.span) linear(e_.span, {0, 2}, x, tile.vectors, spans);
    for (int v = 0; v < tile.vectors; ++v) {
      const Vector& at = vectors_[static_cast<size_t>(tile.first + v)];
      const size_t token = static_cast<size_t>(sequences_[static_cast<size_t>(at.sequence)].first_token + at.first);
      const float* in = x + v * kLanes;
      if (outputs_.hidden)
        for (int f = 0; f < D; ++f)
          for (int lane = 0; lane < at.count; ++lane)
            outputs_.hidden[(token + static_cast<size_t>(lane)) * D + f] = in[static_cast<size_t>(f) * stride + lane];
      if (first_ && at.first == 0)
        for (int f = 0; f < D; ++f)
          first_[static_cast<size_t>(at.sequence) * D + f] = in[static_cast<size_t>(f) * stride];
      if (outputs_.span)
        for (int which = 0; which < 2; ++which)
          for (int lane = 0; lane < at.count; ++lane)
            outputs_.span[(token + static_cast<size_t>(lane)) * 2 + which] = spans[which * stride + v * kLanes + lane];
    }
  }

  const Encoder& e_;
  const Kernels& k_;
  const int32_t* ids_;
  const int32_t* types_;
  const Encoder::Outputs outputs_;
  Barrier barrier_;
  const int threads_;
  int longest_ = 0;
  Tile shared_ = {0, 0};
  std::vector<Vector> vectors_;
  std::vector<Sequence> sequences_;
  Heads queries_, keys_[2], values_[2];
  std::vector<Tile> tiles_;
  std::vector<Run> runs_;                     // of each thread
  std::vector<Scratch> scratch_;              // of each thread
  std::unique_ptr<Counter[]> taken_;          // [step][thread]; a layer has two steps, and the output is the last
  std::unique_ptr<std::atomic<int>[]> done_;  // layers that each tile has behind it
  float* x_ = nullptr;                        // of each tile [D][V][16]
  float* shared_rows_ = nullptr;              // of a shared tile [widest of heads and FFN][V][16]
  float* shared_result_ = nullptr;            // [D][V][16]
  ByteTile shared_inner_;                     // of the FFN
  float* first_ = nullptr;                    // of a classifier [B][D]: first tokens before the last layer
};

}  // namespace

void Encoder::forward(const int32_t* ids, const int32_t* types, const int32_t* lengths, int batch, ThreadPool& pool,
                      Arena& arena, const Outputs& outputs) const {
  arena.reset();
  Pass pass(*this, ids, types, lengths, batch, pool.size(), arena, outputs);
  pool.run([](void* context, int thread) { static_cast<Pass*>(context)->run(thread); }, &pass);
  arena.trim();
}

}  // namespace thinbert
