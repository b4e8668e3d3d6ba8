"""Inputs as the peers want them: rows, 64-bit, a mask, and padding to one length."""

from collections.abc import Sequence

import numpy as np

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
Row = tuple[np.ndarray, np.ndarray]  # ids and types of a sequence


def feed(rows: Sequence[Row], length: int) -> dict[str, np.ndarray]:
    """Arrays [B, length] by name."""
    out = {name: np.zeros((len(rows), length), np.int64) for name in INPUTS}
    for number, (ids, types) in enumerate(rows):
        for name, values in zip(INPUTS, (ids, np.ones_like(ids), types), strict=True):
            out[name][number, : len(ids)] = values
    return out


def spans(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """[B, L, 2] from the start and end logits of a question-answering model."""
    start, end = outputs
    return np.stack([start, end], axis=2).astype(np.float32)
