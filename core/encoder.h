// The forward pass of a BERT-family encoder over ragged sequences, in int8.
#pragma once

#include <cstdint>
#include <vector>

#include "arena.h"
#include "threads.h"
#include "weights.h"

namespace thinbert {

// Where the time of a forward pass goes.
enum Part : int { kProducts, kAttention, kActivation, kQuantising, kNorms, kEmbeddings, kWaiting, kParts };

struct Encoder {
  const Kernels* kernels = nullptr;
  int width = 0;      // D
  int head_size = 0;  // d, 32 or 64
  int max_heads = 0;  // H of the widest layer
  Activation activation = Activation::kGelu;
  float eps = 1e-12f;  // of the layer norms; negative for NoNorm, the affine map alone

  Table token, position, token_type;  // token_type.values is null in families without
  Norm embedding_norm;
  std::vector<Layer> layers;
  Linear span;                   // [2, D]; empty without a question-answering head
  Linear pooler, classes;        // [D, D], [classes, D]; empty without a classification head
  bool pooler_is_tanh = true;    // or ReLU, in DistilBERT

  // What to compute: one of the three, or none. Tokens of all sequences stand one after another, T in all.
  struct Outputs {
    float* span = nullptr;      // [T][2] start and end logits
    float* classes = nullptr;   // [B][classes] class logits, from each sequence's first token
    float* hidden = nullptr;    // [T][D] all hidden states
    double* seconds = nullptr;  // [threads][kParts] time spent; asking for it costs about 1 %
  };

  // Inputs are checked by the caller: ids, types and lengths within range, lengths summing to T. Throws std::bad_alloc.
  void forward(const int32_t* ids, const int32_t* types, const int32_t* lengths, int batch, ThreadPool& pool, Arena& arena,
               const Outputs& outputs) const;
};

}  // namespace thinbert
