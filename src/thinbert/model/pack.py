"""Packing: a portable model folder to the folder people ship and the engine runs. Format and rules: docs/format.md."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinbert.errors import ModelError
from thinbert.files import leftovers, write_atomic
from thinbert.model.blocks import INDEX, START, VALUES, to_blocks
from thinbert.model.checkpoint import (
    TOKENIZER_FILES,
    TRAINING_FILE,
    Checkpoint,
    copy_files,
    read_checkpoint,
    read_json,
    write_safetensors,
)
from thinbert.model.compact import Compacted, compact
from thinbert.model.config import PACKED_VERSION, UNFINISHED
from thinbert.model.families import FAMILIES, Family
from thinbert.model.quantize import SCALE_SUFFIX, quantize_rows
from thinbert.model.tokenizer import read_tokenizer
from thinbert.model.weights import Linear

# A block costs 4 bytes and an index of 2; whole rows cost 4 bytes for every four columns, kept or not.
_DENSE_FROM = 2 / 3

# Fields that say how a model was trained or by what it was written.
_DROPPED = ("dtype", "torch_dtype", "transformers_version", "use_cache", "gradient_checkpointing", "_name_or_path")

Tensors = dict[str, NDArray[Any]]


def is_packed(config: Mapping[str, Any]) -> bool:
    """Whether a config.json belongs to a packed folder. The version was checked when it was parsed."""
    own = config.get("thinbert")
    return isinstance(own, Mapping) and "packed" in own


def pack(checkpoint: Checkpoint, out: Path) -> None:
    """Writes `checkpoint` as a packed folder: dead heads and neurons cut out exactly, matrices in int8 with one scale a
    row, sparse ones as lists of their 1x4 blocks.

    Raises:
        ModelError: `out` is the model's own folder, or holds what is no packed model; or the model has no tokenizer.
    """
    if out.exists() and out.samefile(checkpoint.folder):
        raise ModelError(f"{out}: is the model's own folder; give another to pack into")
    unfinished = leftovers(out) if out.is_dir() else []
    if out.is_dir() and set(out.iterdir()) - set(unfinished):
        config_file = out / "config.json"
        if not (config_file.is_file() and is_packed(read_json(config_file))):
            raise ModelError(f"{out}: is not empty and no packed model; give another folder")
    read_tokenizer(checkpoint.folder, vocabulary=checkpoint.config.vocabulary)  # without which it reads nothing
    family, config = FAMILIES[checkpoint.config.family], checkpoint.config
    compacted = compact(config, checkpoint.weights().layers)
    tensors: Tensors = {}
    for i, layer in enumerate(compacted.layers):
        for field, stem in family.layer.items():
            stem = family.prefix + stem.format(i=i)
            part = getattr(layer, field)
            if isinstance(part, Linear):
                tensors |= _matrix(f"{stem}.weight", part.weight)
                tensors[f"{stem}.bias"] = part.bias
    for name in checkpoint.shapes:
        if f"{name}{SCALE_SUFFIX}" in tensors or name in tensors:
            continue  # a matrix or bias of a layer
        weight = checkpoint.array(name)
        whole = weight.ndim == 1 or name.startswith((family.classify_hidden, family.classify_out))
        # the head of classes is small, and computed in float32: a packed model answers as one that is packed on loading
        tensors |= {name: weight} if whole else _matrix(name, weight)

    described = _config(read_json(checkpoint.folder / "config.json"), compacted, family)

    def describe(version: int | str) -> None:
        described["thinbert"]["packed"] = version
        write_atomic(out / "config.json", (json.dumps(described, indent=2) + "\n").encode())

    out.mkdir(parents=True, exist_ok=True)
    for file in unfinished:
        file.unlink(missing_ok=True)
    describe(UNFINISHED)  # so that what a crash leaves is no model, and may be packed into again
    write_safetensors(out / "model.safetensors", tensors, {"format": f"thinbert-packed-{PACKED_VERSION}"})
    copy_files(checkpoint.folder, out, (*TOKENIZER_FILES, TRAINING_FILE))
    describe(PACKED_VERSION)
    read_checkpoint(out)  # what was written must pass the same checks as anything from outside


def _matrix(name: str, weight: NDArray[np.float32]) -> Tensors:
    values, scale = quantize_rows(weight)
    blocks = to_blocks(values, scale)
    if len(blocks.index) * 4 >= _DENSE_FROM * max(values.size, 1):
        return {name: values, name + SCALE_SUFFIX: scale}
    return {
        name + START: blocks.start,
        name + INDEX: blocks.index,
        name + VALUES: blocks.values,
        name + SCALE_SUFFIX: scale,
    }


def _config(raw: dict[str, Any], compacted: Compacted, family: Family) -> dict[str, Any]:
    """config.json of the packed folder: heads that are gone, by their original numbers, and neurons that are left."""
    described = {k: v for k, v in raw.items() if k not in _DROPPED}
    all_heads = range(raw[family.config_keys.get("num_attention_heads", "num_attention_heads")])
    pruned: dict[str, list[int]] = {}
    before = {int(k): set(v) for k, v in (raw.get("pruned_heads") or {}).items()}
    for i, kept in enumerate(compacted.heads):
        present = [h for h in all_heads if h not in before.get(i, set())]
        alive = {h for h, keep in zip(present, kept, strict=True) if keep}
        if len(alive) < len(all_heads):
            pruned[str(i)] = [h for h in all_heads if h not in alive]
    described["pruned_heads"] = pruned
    ffn = [int(np.count_nonzero(kept)) for kept in compacted.neurons]
    described["thinbert"] = {**raw.get("thinbert", {}), "ffn": ffn}
    return described
