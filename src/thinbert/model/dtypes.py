"""The dtypes weight files use, in the spelling of safetensors, and what numpy calls them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_NUMPY = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # numpy has no bfloat16: its bits, see widen_bfloat16
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "<u1",
    "BOOL": "?",
}


def to_numpy(dtype: str) -> np.dtype[Any]:
    """The numpy dtype that holds values of `dtype`. Raises KeyError for one that no encoder uses (FP8, complex, …)."""
    return np.dtype(_NUMPY[dtype])


def unknown(dtype: str) -> NDArray[Any]:
    """One value of a dtype that numpy does not have: nothing of it but the name."""
    return np.zeros((), [(dtype, "V1")])


def type_name(tensor: NDArray[Any]) -> str:
    return tensor.dtype.names[0] if tensor.dtype.names else str(tensor.dtype)


def widen_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 is the upper half of a float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
