"""Models to time: BERT-base with random weights and the zeros of each published pattern, made once under bench/made."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

WORK = Path(__file__).parent / "made"
VOCABULARY = 1000  # rows that random tokens touch; embeddings cost no time worth measuring

# name -> block (R, C) and the share of blocks kept
PATTERNS = {
    "base-dense": ((1, 1), 1.0),
    "base-1x4-80": ((1, 4), 0.2),
    "base-4x4-80": ((4, 4), 0.2),
    "base-unstructured-90": ((1, 1), 0.1),
    "base-32x32-68": ((32, 32), 0.317),
}


def make(name: str) -> Path:
    """The folder of a model, written if it is not there yet."""
    folder = WORK / name
    if (folder / "config.json").exists():
        return folder
    (r, c), kept = PATTERNS[name]
    D, F, layers = 768, 3072, 12
    random = np.random.RandomState(0)

    def matrix(rows: int, columns: int, density: float = 1.0) -> np.ndarray:
        weight = random.standard_normal((rows, columns)).astype(np.float32) / np.float32(np.sqrt(columns * density))
        if density < 1:
            mask = random.uniform(size=(rows // r, columns // c)) < density
            weight *= mask.repeat(r, axis=0).repeat(c, axis=1)
        return weight

    tensors = {
        "bert.embeddings.word_embeddings.weight": matrix(VOCABULARY, D),
        "bert.embeddings.position_embeddings.weight": matrix(512, D),
        "bert.embeddings.token_type_embeddings.weight": matrix(2, D),
        "qa_outputs.weight": matrix(2, D),
        "qa_outputs.bias": np.zeros(2, np.float32),
    }
    norms = ["bert.embeddings.LayerNorm"]
    for i in range(layers):
        stem = f"bert.encoder.layer.{i}"
        norms += [f"{stem}.attention.output.LayerNorm", f"{stem}.output.LayerNorm"]
        shapes = {f"attention.self.{n}": (D, D) for n in ("query", "key", "value")}
        shapes |= {"attention.output.dense": (D, D), "intermediate.dense": (F, D), "output.dense": (D, F)}
        for part, (rows, columns) in shapes.items():
            tensors[f"{stem}.{part}.weight"] = matrix(rows, columns, kept)
            tensors[f"{stem}.{part}.bias"] = np.zeros(rows, np.float32)
    for norm in norms:
        tensors |= {f"{norm}.weight": np.ones(D, np.float32), f"{norm}.bias": np.zeros(D, np.float32)}
    config = {
        "model_type": "bert",
        "vocab_size": VOCABULARY,
        "hidden_size": D,
        "num_hidden_layers": layers,
        "num_attention_heads": 12,
        "intermediate_size": F,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
    }
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(VOCABULARY - 5))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def as_float(model: str) -> Path:
    """A model's weights as a float32 folder that other libraries read."""
    from thinbert.model.checkpoint import read_checkpoint

    folder = WORK / f"{Path(model).name}-float32"
    if not (folder / "config.json").exists():
        source = read_checkpoint(model)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({n: source.array(n) for n in source.shapes}, folder / "model.safetensors")
        (folder / "tokenizer.json").write_bytes((source.folder / "tokenizer.json").read_bytes())
        config = json.loads((source.folder / "config.json").read_text())
        for own in ("thinbert", "pruned_heads"):
            config.pop(own, None)
        (folder / "config.json").write_text(json.dumps(config))
    return folder
