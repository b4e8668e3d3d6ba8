"""From a trained encoder to a portable model folder, which transformers reads and thinbert packs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thinbert.compress.encoder import Encoder, to_tensors
from thinbert.files import write_atomic
from thinbert.model.checkpoint import (
    Checkpoint,
    copy_files,
    read_checkpoint,
    read_json,
    write_safetensors,
)

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
    model: Encoder, heads: Mapping[str, int], source: Checkpoint, out: Path, **config: Any
) -> Checkpoint:
    """A portable folder: float32 weights with their zeros, the source's tokenizer and configuration.

    Args:
        source: the model this one began as.
        config: fields of config.json that differ from the source's; `thinbert` for our own block.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_safetensors(out / "model.safetensors", to_tensors(model, heads), {"format": "pt"})
    copy_files(source.folder, out)
    raw = read_json(source.folder / "config.json")
    own = {k: v for k, v in raw.get("thinbert", {}).items() if k == "ffn"} | config.pop("thinbert", {})
    described = {k: v for k, v in raw.items() if k not in ("thinbert", "torch_dtype", "dtype", "architectures")}
    architectures = [name for (f, h), name in _ARCHITECTURES.items() if f == source.config.family and h in heads]
    described |= {"architectures": architectures[:1], "torch_dtype": "float32", **config}
    if own:
        described["thinbert"] = own
    write_atomic(out / "config.json", (json.dumps(described, indent=2) + "\n").encode())
    return read_checkpoint(out)
