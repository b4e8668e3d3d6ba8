"""The weights of an encoder as plain arrays, float32 unless said otherwise. Shapes in the words of HACKING.md."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Linear:
    """y = x @ weight.T + bias."""

    weight: Array  # [outputs, inputs]
    bias: Array  # [outputs]


@dataclass(frozen=True)
class Norm:
    weight: Array  # [D]
    bias: Array  # [D]


@dataclass(frozen=True)
class Embeddings:
    token: Array  # [V, D]
    position: Array  # [positions, D]
    token_type: Array | None  # [token types, D]; None in DistilBERT
    norm: Norm


@dataclass(frozen=True)
class Layer:
    query: Linear  # [H*d, D]
    key: Linear  # [H*d, D]
    value: Linear  # [H*d, D]
    attention_output: Linear  # [D, H*d]
    attention_norm: Norm
    ffn_in: Linear  # [F, D]
    ffn_out: Linear  # [D, F]
    ffn_norm: Norm


@dataclass(frozen=True)
class ClassifyHead:
    """labels = out(activation(hidden(x[CLS])))."""

    hidden: Linear  # [D, D]: BERT's pooler, DistilBERT's pre_classifier
    activation: str  # tanh or relu
    out: Linear  # [labels, D]


@dataclass(frozen=True)
class Weights:
    embeddings: Embeddings
    layers: tuple[Layer, ...]
    span: Linear | None  # [2, D]: start and end logits; None when the model has no question-answering head
    classify: ClassifyHead | None
