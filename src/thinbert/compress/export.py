"""From a trained encoder to a portable model folder, which transformers reads and thinbert packs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thinbert.compress.encoder import Encoder, to_tensors
from thinbert.files import leftovers, write_atomic
from thinbert.model.checkpoint import (
    Checkpoint,
    copy_files,
    read_checkpoint,
    read_json,
    write_safetensors,
)

_FITTED = ("no_answer_threshold", "no_answer_calibration")
_CLASSES = ("id2label", "label2id", "num_labels", "problem_type")  # which transformers gives span heads too
# What transformers calls a model with these heads, by family and head.
_ARCHITECTURES = {
    ("bert", "span"): "BertForQuestionAnswering",
    ("bert", "classify"): "BertForSequenceClassification",
    ("bert", "mlm"): "BertForPreTraining",
    ("distilbert", "span"): "DistilBertForQuestionAnswering",
    ("distilbert", "classify"): "DistilBertForSequenceClassification",
    ("distilbert", "mlm"): "DistilBertForMaskedLM",
}


def write_portable(
    model: Encoder, heads: Mapping[str, int], source: Checkpoint, out: Path, *, as_it_was: bool = False, **config: Any
) -> Checkpoint:
    """A portable folder: float32 weights with their zeros, the source's tokenizer and configuration.

    Args:
        source: the model this one began as.
        as_it_was: the weights are the source's, and what was fitted to them still holds.
        config: fields of config.json that differ from the source's; `thinbert` for our own block.
    """
    out.mkdir(parents=True, exist_ok=True)
    for file in leftovers(out):
        file.unlink()
    write_safetensors(out / "model.safetensors", to_tensors(model, heads), {"format": "pt"})
    copy_files(source.folder, out)
    raw = read_json(source.folder / "config.json")
    kept = ("ffn", *_FITTED) if as_it_was else ("ffn",)
    own = {k: v for k, v in raw.get("thinbert", {}).items() if k in kept} | config.pop("thinbert", {})
    dropped = {"thinbert", "torch_dtype", "dtype", "architectures", *(() if "classify" in heads else _CLASSES)}
    described = {k: v for k, v in raw.items() if k not in dropped}
    architectures = [name for (f, h), name in _ARCHITECTURES.items() if f == source.config.family and h in heads]
    described |= {"architectures": architectures[:1], "torch_dtype": "float32", **config}
    if own:
        described["thinbert"] = own
    write_atomic(out / "config.json", (json.dumps(described, indent=2) + "\n").encode())
    return read_checkpoint(out)
