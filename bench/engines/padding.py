"""Inputs as the peers want them: one row, 64-bit, a mask, and padding where they are to be padded."""

import numpy as np

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def feed(ids: np.ndarray, types: np.ndarray, pad_to: int | None = None) -> dict[str, np.ndarray]:
    """Arrays [1, L] by name, where L is the number of tokens or `pad_to`."""
    given = (ids, np.ones(len(ids)), types)
    length = pad_to or len(ids)
    rows = {name: np.zeros((1, length), np.int64) for name in INPUTS}
    for name, values in zip(INPUTS, given, strict=True):
        rows[name][0, : len(values)] = values
    return rows
