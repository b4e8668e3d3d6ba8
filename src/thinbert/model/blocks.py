"""Sparse int8 matrices as row-wise lists of their occupied 1x4 blocks: the form of packed files and of the engine."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinbert.model.weights import Array

# A matrix `X.weight` [N, K] is stored as four tensors with these endings after "X.weight".
START, INDEX, VALUES = "_start", "_index", "_values"
ENDINGS = (START, INDEX, VALUES)


@dataclass(frozen=True)
class Blocks:
    """An int8 matrix [N, K]. Row r is `scale[r]` times its blocks; block b covers the 4 columns from 4 * index[b]."""

    columns: int  # K
    start: NDArray[np.uint32]  # [N + 1] first block of each row, and their number
    index: NDArray[np.uint16]  # [blocks] rising within a row
    values: NDArray[np.int8]  # [blocks, 4]
    scale: Array  # [N]

    @property
    def rows(self) -> int:
        return len(self.start) - 1


def to_blocks(values: NDArray[np.int8], scale: Array) -> Blocks:
    """The occupied 1x4 blocks of an int8 matrix [N, K]; columns past K, up to a multiple of 4, count as zero."""
    N, K = values.shape
    groups = (K + 3) // 4
    padded = values
    if K % 4:
        padded = np.zeros((N, groups * 4), np.int8)
        padded[:, :K] = values
    blocks = np.ascontiguousarray(padded).view(np.int32)  # [N, groups]: four bytes are looked at and moved as one
    occupied = blocks != 0
    start = np.zeros(N + 1, np.uint32)
    np.cumsum(occupied.sum(axis=1), out=start[1:])
    if start[-1] == blocks.size:
        index, kept = np.tile(np.arange(groups, dtype=np.uint16), N), blocks.ravel()
    else:
        index, kept = np.nonzero(occupied)[1].astype(np.uint16), blocks[occupied]
    return Blocks(K, start, index, kept.view(np.int8).reshape(-1, 4), np.ascontiguousarray(scale))


def to_dense(blocks: Blocks) -> NDArray[np.int8]:
    """The int8 matrix [N, K]."""
    groups = (blocks.columns + 3) // 4
    dense = np.zeros((blocks.rows, groups, 4), np.int8)
    rows = np.repeat(np.arange(blocks.rows), blocks.start[1:] - blocks.start[:-1])
    dense[rows, blocks.index] = blocks.values
    return np.ascontiguousarray(dense.reshape(blocks.rows, groups * 4)[:, : blocks.columns])


def fault(start: NDArray[Any], index: NDArray[Any], values: NDArray[Any], *, rows: int, columns: int) -> str | None:
    """What is wrong with a list read from a file, or None. The engine trusts a list that passed."""
    if start.dtype != np.uint32 or index.dtype != np.uint16 or values.dtype != np.int8:
        return f"types {start.dtype}, {index.dtype}, {values.dtype}; expected uint32, uint16, int8"
    if start.shape != (rows + 1,) or index.ndim != 1 or values.shape != (len(index), 4):
        return f"shapes {start.shape}, {index.shape}, {values.shape}; expected ({rows + 1},), (blocks,), (blocks, 4)"
    begins = start.astype(np.int64)
    if begins[0] != 0 or begins[-1] != len(index) or (np.diff(begins) < 0).any():
        return f"rows do not partition the {len(index)} blocks"
    if len(index) and int(index.max()) >= (columns + 3) // 4:
        return f"block index {int(index.max())} past the last, {(columns + 3) // 4 - 1}"
    rises = np.diff(index.astype(np.int64)) > 0
    first_of_row = begins[1:-1]
    rises[first_of_row[(first_of_row > 0) & (first_of_row < len(index))] - 1] = True
    if not rises.all():
        return "block indices do not rise within a row"
    return None
