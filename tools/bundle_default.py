"""Writes the model bundled with thinbert: a checkpoint's weights as int8, one scale per row, with its tokenizer.

    python tools/bundle_default.py SOURCE_FOLDER CARD.md [--threshold P]

Matrices (embeddings too) become int8; biases and norms stay float32. The result replaces src/thinbert/models/default.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinbert.model.checkpoint import find_model, read_checkpoint, read_json, write_atomic, write_safetensors
from thinbert.model.quantize import SCALE_SUFFIX, quantize_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("card", type=Path)
    parser.add_argument("--threshold", type=float, help="no-answer threshold, calibrated on held-out data")
    args = parser.parse_args()

    checkpoint = read_checkpoint(args.source)
    tensors: dict[str, NDArray[Any]] = {}
    for name in checkpoint.tensors:
        weight = checkpoint.array(name)
        if weight.ndim == 2:
            tensors[name], tensors[name + SCALE_SUFFIX] = quantize_rows(weight)
        else:
            tensors[name] = weight.astype(np.float32)

    config = read_json(checkpoint.folder / "config.json")
    for training_only in ("dtype", "torch_dtype", "transformers_version", "use_cache", "gradient_checkpointing"):
        config.pop(training_only, None)
    if args.threshold is not None:
        config["thinbert"] = {**config.get("thinbert", {}), "no_answer_threshold": args.threshold}

    folder = find_model("default")
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "thinbert-int8-rows"})
    write_atomic(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    # compact: the vocabulary one token a line would triple the file
    tokenizer = json.loads((checkpoint.folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer |= {"truncation": None, "padding": None}
    write_atomic(folder / "tokenizer.json", json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")).encode())
    write_atomic(folder / "README.md", args.card.read_bytes())
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
