"""Exact removal of heads and neurons that cannot matter: what they add is constant, and constants belong in a bias.

A head whose value rows are zero adds its value bias times its output columns, whatever it attends to (probabilities
sum to one); one whose output columns are zero adds nothing. A neuron whose input row is zero adds activation(bias)
times its output column; one whose output column is zero adds nothing. A head with zero queries or keys stays: it
averages its values.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from thinbert.model import reference
from thinbert.model.config import EncoderConfig
from thinbert.model.weights import Layer, Linear

Kept = NDArray[np.bool_]
BLOCK = 4  # columns of a block, as the packed form stores them


@dataclass(frozen=True)
class Compacted:
    layers: tuple[Layer, ...]
    heads: tuple[Kept, ...]  # per layer: which of the heads given are kept
    neurons: tuple[Kept, ...]


def compact(config: EncoderConfig, layers: tuple[Layer, ...]) -> Compacted:
    """The same function with fewer heads and neurons, up to the rounding of the biases that take over constants."""
    done, heads, neurons = [], [], []
    for layer in layers:
        layer, kept_heads = _cut_heads(layer, config.head_size)
        layer, kept_neurons = _cut_neurons(layer, config.activation)
        done.append(layer)
        heads.append(kept_heads)
        neurons.append(kept_neurons)
    return Compacted(tuple(done), tuple(heads), tuple(neurons))


def _cut_heads(layer: Layer, d: int) -> tuple[Layer, Kept]:
    H, D = len(layer.value.weight) // d, layer.value.weight.shape[1]
    varies = layer.value.weight.reshape(H, d * D).any(axis=1)
    heard = layer.attention_output.weight.reshape(D, H, d).any(axis=(0, 2))
    kept = np.asarray(varies & heard)
    rows = kept.repeat(d)
    # what the cut heads add is their value bias: zero through columns that are zero
    constant = layer.attention_output.weight[:, ~rows].astype(np.float64) @ layer.value.bias[~rows]
    return (
        replace(
            layer,
            query=_rows(layer.query, rows),
            key=_rows(layer.key, rows),
            value=_rows(layer.value, rows),
            attention_output=_columns(layer.attention_output, rows, constant),
        ),
        kept,
    )


def _cut_neurons(layer: Layer, activation: str) -> tuple[Layer, Kept]:
    """Of neurons that cannot matter all go, or only whole groups of the four that share blocks of the second matrix:
    where its zeros are in blocks, a single one that goes would move all behind it across their edges. Those that stay
    lose what weights they have left."""
    alive = np.asarray(layer.ffn_in.weight.any(axis=1) & layer.ffn_out.weight.any(axis=0))
    value = layer.ffn_in.bias[~alive].copy()
    reference.ACTIVATIONS[activation](value)
    constant = layer.ffn_out.weight[:, ~alive].astype(np.float64) @ value
    ffn_in = Linear(layer.ffn_in.weight * alive[:, None], layer.ffn_in.bias)
    ffn_out = Linear(layer.ffn_out.weight * alive, layer.ffn_out.bias)
    groups = np.logical_or.reduceat(alive, np.arange(0, len(alive), BLOCK)) if len(alive) else alive
    kept = min(alive, groups.repeat(BLOCK)[: len(alive)], key=lambda keep: _blocks(ffn_out.weight[:, keep]))
    return replace(layer, ffn_in=_rows(ffn_in, kept), ffn_out=_columns(ffn_out, kept, constant)), kept


def _blocks(weight: NDArray[np.float32]) -> int:
    """Occupied 1x4 blocks of a matrix [N, K]."""
    padded = np.pad(weight != 0, ((0, 0), (0, -weight.shape[1] % BLOCK)))
    return int(padded.reshape(len(weight), -1, BLOCK).any(axis=2).sum())


def _rows(linear: Linear, kept: Kept) -> Linear:
    return Linear(np.ascontiguousarray(linear.weight[kept]), linear.bias[kept])


def _columns(linear: Linear, kept: Kept, constant: NDArray[np.float64]) -> Linear:
    bias = (linear.bias.astype(np.float64) + constant).astype(np.float32)
    return Linear(np.ascontiguousarray(linear.weight[:, kept]), bias)
