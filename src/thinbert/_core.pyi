"""thinbert's native core (core/python.cc). Arrays must be contiguous and of exactly these types."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def cpu_features() -> list[str]:
    """Instruction-set extensions usable on this machine, by their /proc/cpuinfo names."""

def instruction_sets() -> list[tuple[str, list[str], bool, bool]]:
    """(name, features needed, built, supported here) of every instruction set, best first."""

def measure_costs(isa: str) -> list[float]:
    """Nanoseconds for a block of 16 weights dense, of 16 in the 4x4 form, of 4 in the 1x4 form."""

def measure_ceiling(isa: str) -> float:
    """10^9 byte products a second on registers alone, one thread: what no product can beat; 0 where unknown."""

class Matrix:
    """An int8 matrix as a row-wise list of its occupied 1x4 blocks; see thinbert.model.blocks."""

    def __init__(
        self,
        rows: int,
        columns: int,
        start: NDArray[np.uint32],
        index: NDArray[np.uint16],
        values: NDArray[np.int8],
        scale: NDArray[np.float32],
        bias: NDArray[np.float32],
    ) -> None: ...

class Encoder:
    """An encoder in the making: embeddings, then layers, then a head, then any number of forward passes."""

    def __init__(
        self,
        isa: str,
        threads: int,
        width: int,
        head_size: int,
        activation: int,
        eps: float,
        costs: Sequence[float],
    ) -> None: ...
    def set_embeddings(
        self,
        tables: list[tuple[NDArray[np.int8], NDArray[np.float32]]],
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
    ) -> None:
        """Two or three tables of int8 rows with their scales, read in place: tokens, positions, token types."""

    def add_layer(
        self,
        heads: int,
        ffn: int,
        matrices: Sequence[Matrix],
        attention_norm_weight: NDArray[np.float32],
        attention_norm_bias: NDArray[np.float32],
        ffn_norm_weight: NDArray[np.float32],
        ffn_norm_bias: NDArray[np.float32],
        form: int = -1,
    ) -> list[int]:
        """Six matrices: query, key, value, attention output, FFN in, FFN out. Returns the form each was given, the
        cheapest unless one is forced."""

    def set_span(self, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None: ...
    def set_classes(
        self,
        pooler_weight: NDArray[np.float32],
        pooler_bias: NDArray[np.float32],
        tanh: bool,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
    ) -> None:
        """The pooler [D, D] with its activation, tanh or ReLU, and the classes [classes, D]."""

    def forward(
        self, ids: NDArray[np.int32], types: NDArray[np.int32], lengths: NDArray[np.int32], what: int = 0
    ) -> NDArray[np.float32]:
        """What: 0 span logits [T, 2], 1 class logits [B, classes], 2 hidden states [T, D]."""

    def profile(self, ids: NDArray[np.int32], types: NDArray[np.int32], lengths: NDArray[np.int32]) -> dict[str, float]:
        """Seconds of one pass by part, the mean of all threads."""

    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
