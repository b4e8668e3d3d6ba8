"""What is left of a pruned model: density of every matrix, the pattern of its zeros, heads and neurons still alive.

Counting. Densities are kept / original, against the shapes of the dense model this one was cut from: heads in
`pruned_heads` are absent from the file, yet count as zeros. `linear_density` covers the six matrices of each encoder
layer (their weights, not their biases) and leaves the pooler out, which no question-answering model uses.
`overall_density` covers every parameter of encoder and head, and the pooler where the file has one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinbert.model.blocks import to_dense
from thinbert.model.checkpoint import Checkpoint
from thinbert.model.families import FAMILIES

Mask = NDArray[np.bool_]  # True where a weight is kept

# Sides of the blocks R x C that are looked for (R outputs x C inputs of a weight [outputs, inputs]).
_SIDES = (1, 2, 4, 8, 16, 32, 64)

# A pattern is there when all but this share of the zeros lie in whole zero blocks, and of the weights in kept blocks
# all but this share are not zero. The slack is for zeros of another origin: int8 rounds about 2 % of normally
# distributed weights to zero. Chance does not reach it: at 80 % independent zeros, 0.8^4 / 0.8 = 51 % of them fill
# 1x4 blocks.
_SLACK = 0.05

# Fewer zeros than this (underflow, rounding) are not pruning.
_DENSE = 0.95


@dataclass(frozen=True)
class TensorSparsity:
    """One matrix of the encoder."""

    name: str
    layer: int
    in_ffn: bool  # else in the attention
    shape: tuple[int, int]  # stored [outputs, inputs]
    original_shape: tuple[int, int]  # of the dense model
    density: float  # kept / original
    pattern: str  # dense, unstructured, RxC, rows, columns, or empty; of the stored matrix


@dataclass(frozen=True)
class Sparsity:
    """A model's sparsity. Field names are the keys of `thinbert inspect --json`."""

    model: str
    family: str
    layers: int
    width: int
    pattern: str  # that of most pruned weights; several are joined by +
    linear_density: float
    overall_density: float
    heads_removed: int  # absent from the file, or without effect on the output
    heads_total: int
    heads_alive: list[int]  # per layer
    neurons_removed: int
    neurons_total: int
    neurons_alive: list[int]  # per layer
    parameters: int  # kept
    parameters_original: int
    file_bytes: int
    heads: list[str]  # task heads: question-answering, classification
    ignored: list[str]  # tensors no forward pass reads
    tensors: list[TensorSparsity]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(checkpoint: Checkpoint) -> Sparsity:
    """Everything about a checkpoint's sparsity. Dead heads and neurons are counted by what they can contribute:

    * a neuron is dead when its row in the first FFN matrix is zero (it then adds a constant) or its column in the
      second;
    * a head is dead when its rows in the value matrix are zero (it then adds a constant) or its columns in the output
      matrix. Zero queries or keys do not kill a head: it still averages its values.

    Both kinds can be cut out exactly, with their constants folded into the bias.
    """
    config, family = checkpoint.config, FAMILIES[checkpoint.config.family]
    D, d = config.width, config.head_size
    A, F = config.original_heads * d, config.original_ffn
    original = {
        "query": (A, D),
        "key": (A, D),
        "value": (A, D),
        "attention_output": (D, A),
        "ffn_in": (F, D),
        "ffn_out": (D, F),
    }
    tensors = []
    linear_kept = 0
    heads_alive, neurons_alive = [], []
    for i in range(config.layers):
        masks = {}
        for field, shape in original.items():
            name = f"{family.prefix}{family.layer[field].format(i=i)}.weight"
            masks[field] = mask = _mask(checkpoint, name)
            kept = int(np.count_nonzero(mask))
            linear_kept += kept
            tensors.append(
                TensorSparsity(
                    name=name,
                    layer=i,
                    in_ffn=field.startswith("ffn"),
                    shape=(mask.shape[0], mask.shape[1]),
                    original_shape=shape,
                    density=kept / (shape[0] * shape[1]),
                    pattern=find_pattern(mask),
                )
            )
        values = masks["value"].reshape(-1, d, D).any(axis=(1, 2))
        outputs = masks["attention_output"].reshape(D, -1, d).any(axis=(0, 2))
        heads_alive.append(int(np.count_nonzero(values & outputs)))
        neurons = masks["ffn_in"].any(axis=1) & masks["ffn_out"].any(axis=0)
        neurons_alive.append(int(np.count_nonzero(neurons)))

    linear_original = config.layers * sum(r * c for r, c in original.values())
    linear_names = {t.name for t in tensors}
    other = _other_parameters(checkpoint, linear_names)
    # biases of heads and neurons that are absent from the file
    absent = sum(3 * (A - h * d) + (F - f) for h, f in zip(config.heads, config.ffn, strict=True))
    heads = [
        n
        for n, has in (("question-answering", checkpoint.has_span), ("classification", checkpoint.has_classify))
        if has
    ]
    return Sparsity(
        model=checkpoint.name,
        family=config.family,
        layers=config.layers,
        width=D,
        pattern=_main_pattern(tensors),
        linear_density=linear_kept / linear_original,
        overall_density=(linear_kept + other) / (linear_original + other + absent),
        heads_removed=config.layers * config.original_heads - sum(heads_alive),
        heads_total=config.layers * config.original_heads,
        heads_alive=heads_alive,
        neurons_removed=config.layers * F - sum(neurons_alive),
        neurons_total=config.layers * F,
        neurons_alive=neurons_alive,
        parameters=linear_kept + other,
        parameters_original=linear_original + other + absent,
        file_bytes=sum(f.stat().st_size for f in checkpoint.files),
        heads=heads,
        ignored=sorted(checkpoint.ignored),
        tensors=tensors,
    )


def _mask(checkpoint: Checkpoint, name: str) -> Mask:
    if name in checkpoint.tensors:
        return np.asarray(checkpoint.tensors[name] != 0)
    return np.asarray(to_dense(checkpoint.blocks(name)) != 0)


def _other_parameters(checkpoint: Checkpoint, linear: set[str]) -> int:
    """Parameters that are not pruned: embeddings, norms, biases, heads, and an unused pooler."""
    mine = sum(math.prod(shape) for n, shape in checkpoint.shapes.items() if n not in linear)
    pooler = sum(t.size for n, t in checkpoint.ignored.items() if "pooler." in n)
    return mine + pooler


def find_pattern(kept: Mask) -> str:
    """The pattern of the zeros in a matrix [outputs, inputs], as a word.

    The most structured one that explains (nearly) all zeros: whole rows, whole columns, both, then aligned blocks RxC
    from the largest to the smallest ("1x4" = 1 output x 4 consecutive inputs), else "unstructured". The axis is
    found, not assumed: publications disagree on which way round "1x4" is meant.
    """
    count = int(np.count_nonzero(kept))
    if not count:
        return "empty"
    if count >= _DENSE * kept.size:
        return "dense"
    outputs, inputs = kept.shape
    rows, columns = (int(np.count_nonzero(kept.any(axis=axis))) for axis in (1, 0))
    if _explains(count, rows * inputs, kept.size):
        return "rows"
    if _explains(count, outputs * columns, kept.size):
        return "columns"
    if _explains(count, rows * columns, kept.size):
        return "rows+columns"
    for r, c, covered in sorted(_coverings(kept), key=lambda block: (-block[0] * block[1], block)):
        if _explains(count, covered, kept.size):
            return f"{r}x{c}"
    return "unstructured"


def _explains(kept: int, covered: int, size: int) -> bool:
    """Whether a structure that covers all kept weights, and `covered` of the matrix, (nearly) ends where they do."""
    zeros, zeros_explained = size - kept, size - covered
    return zeros_explained >= (1 - _SLACK) * zeros and kept >= (1 - _SLACK) * covered


def _coverings(kept: Mask) -> Iterator[tuple[int, int, int]]:
    """(R, C, weights in blocks RxC that keep one) for every block shape that tiles the matrix. Rows and columns that
    keep nothing do not count: a neuron that is gone leaves holes in the blocks of its neighbours.

    Each shape is folded from one of half its size, so that all of them cost little more than the first.
    """
    tall, rows = kept, _alive(kept, 1)
    for r in _SIDES:
        wide, columns = tall, _alive(kept, 0)
        for c in _SIDES:
            if r * c > 1:
                yield r, c, int((rows @ wide) @ columns)
            if wide.shape[1] % 2:
                break
            wide, columns = wide[:, ::2] | wide[:, 1::2], columns[::2] + columns[1::2]
        if tall.shape[0] % 2:
            return
        tall, rows = tall[::2] | tall[1::2], rows[::2] + rows[1::2]


def _alive(kept: Mask, axis: int) -> NDArray[np.int64]:
    """1 for each row (axis 1) or column (axis 0) that keeps a weight; for all of them where most keep none: what is
    left then stands alone wherever it is, and would look like blocks of any shape."""
    alive: Mask = np.asarray(kept.any(axis=axis))
    return (alive if 2 * np.count_nonzero(alive) >= len(alive) else np.ones_like(alive)).astype(np.int64)


def _main_pattern(tensors: Sequence[TensorSparsity]) -> str:
    """Patterns of all pruned matrices joined by +, those that hold most zeros first; a cut matrix counts too, as heads
    or neurons. Rare ones (under 5 % of zeros, such as a matrix whose few blocks happen to fill rows) are left out."""
    zeros: dict[str, float] = {}
    for pattern, count in _zeros(tensors):
        zeros[pattern] = zeros.get(pattern, 0) + count
    total = sum(zeros.values())
    ranked = sorted(zeros, key=lambda p: -zeros[p])
    return "+".join(p for p in ranked if zeros[p] >= _SLACK * total) or "dense"


def _zeros(tensors: Sequence[TensorSparsity]) -> Iterator[tuple[str, int]]:
    for t in tensors:
        stored, original = t.shape[0] * t.shape[1], t.original_shape[0] * t.original_shape[1]
        if stored < original:
            yield ("neurons" if t.in_ffn else "heads"), original - stored
        if t.pattern != "dense":
            yield t.pattern, stored - round(t.density * original)
