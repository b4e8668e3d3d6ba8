"""What the peers share: inputs as they want them (rows, 64-bit, a mask, padded to one length), and files made once."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

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


def export(model: str, name: str, write: Callable[[Path], object], libraries: Sequence[str], made_of: str = "") -> Path:
    """A file in a model's folder of exports, written once by these versions of libraries from this.

    An exporter may put other files beside it; they are moved first, so that what is there is whole.
    """
    key = hashlib.sha256("\n".join([made_of, *map(version, libraries)]).encode()).hexdigest()[:8]
    path = Path(model) / "exported" / key / name
    if not path.exists():
        unfinished = path.parent.with_name(f"{key}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write(unfinished / name)
        path.parent.mkdir(exist_ok=True)
        for file in sorted(unfinished.iterdir(), key=lambda f: f.name == name):
            file.replace(path.parent / file.name)
        unfinished.rmdir()
    return path
