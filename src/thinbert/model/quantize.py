"""int8 weights with one scale per row: the storage form of the bundled model (rules in docs/format.md)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinbert.model.weights import Array

SCALE_SUFFIX = "_scale"  # X.weight int8 [R, C] travels with X.weight_scale float32 [R]
LEVELS = 127  # symmetric: -127 … 127, so that negation is exact


def quantize_rows(weight: NDArray[Any]) -> tuple[NDArray[np.int8], Array]:
    """int8 values and float32 scales of a matrix [R, C]: row r is `values[r] * scales[r]`.

    scale = max|row| / 127; values round half to even; a row of zeros has scale 1.
    """
    w = np.asarray(weight, np.float32)
    scale = np.abs(w).max(axis=1, initial=0.0) / np.float32(LEVELS)
    scale[scale == 0] = 1
    values = np.rint(w / scale[:, None]).clip(-LEVELS, LEVELS).astype(np.int8)
    return values, scale.astype(np.float32)


def dequantize_rows(values: NDArray[np.int8], scale: Array) -> Array:
    """The float32 matrix [R, C] that `quantize_rows` stored."""
    return np.multiply(values, scale[:, None], dtype=np.float32)
