"""Inputs as the peers want them: rows, 64-bit, a mask, and padding where they are to be padded."""

import numpy as np

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def feed(ids: np.ndarray, types: np.ndarray, pad_to: int | None = None) -> dict[str, np.ndarray]:
    """Arrays [B, L] by name from ids and types [B, l], where L is l or `pad_to`."""
    batch, length = ids.shape
    rows = {name: np.zeros((batch, pad_to or length), np.int64) for name in INPUTS}
    for name, values in zip(INPUTS, (ids, np.ones_like(ids), types), strict=True):
        rows[name][:, :length] = values
    return rows
