"""Models to time: BERTs with random weights and the zeros of each published pattern, made once under bench/made."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

WORK = Path(__file__).parent / "made"
VOCABULARY = 1000  # rows that random tokens touch; embeddings cost no time worth measuring


@dataclass(frozen=True)
class Spec:
    """A BERT of this shape, and what is left of it."""

    block: tuple[int, int] = (1, 1)  # zeros come in blocks of R outputs x C inputs
    kept: float = 1.0  # share of blocks
    layers: int = 12
    width: int = 768
    head_size: int = 64
    heads_zero: int = 0  # of all layers together, as zeros in the file
    ffn_kept: float = 1.0  # share of neurons; the others are zero, and the blocks are then in attention alone


PATTERNS = {
    "base-dense": Spec(),
    "base-1x4-80": Spec((1, 4), 0.2),
    "base-4x4-80": Spec((4, 4), 0.2),
    "base-unstructured-90": Spec((1, 1), 0.1),
    "base-32x32-68": Spec((32, 32), 0.317),
    "minilm-dense": Spec(layers=6, width=384, head_size=32),
    "minilm-1x4-80": Spec((1, 4), 0.2, layers=6, width=384, head_size=32),
    "distil-1x4-80": Spec((1, 4), 0.2, layers=6),
    "distil-unstructured-90": Spec((1, 1), 0.1, layers=6),
    "large-1x4-80": Spec((1, 4), 0.2, layers=24, width=1024),
    # madlag's hybrid BERT-large: 16 % of linear weights
    "large-hybrid-84": Spec((32, 32), 0.5, layers=24, width=1024, heads_zero=190, ffn_kept=0.11),
}


def make(name: str) -> Path:
    """The folder of a model, written if it is not there yet."""
    spec = PATTERNS[name]
    folder = WORK / f"{name}-{hashlib.sha256(repr(spec).encode()).hexdigest()[:8]}"
    if (folder / "config.json").exists():  # which is written last
        return folder
    D, F, layers, heads = spec.width, 4 * spec.width, spec.layers, spec.width // spec.head_size
    random = np.random.RandomState(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return random.standard_normal((rows, columns)).astype(np.float32) / np.float32(np.sqrt(columns * spec.kept))

    def sparse(rows: int, columns: int) -> np.ndarray:
        r, c = spec.block
        mask = random.uniform(size=(rows // r, columns // c)) < spec.kept
        return matrix(rows, columns) * mask.repeat(r, axis=0).repeat(c, axis=1)

    tensors = {
        "bert.embeddings.word_embeddings.weight": matrix(VOCABULARY, D),
        "bert.embeddings.position_embeddings.weight": matrix(512, D),
        "bert.embeddings.token_type_embeddings.weight": matrix(2, D),
        "qa_outputs.weight": matrix(2, D),
        "qa_outputs.bias": np.zeros(2, np.float32),
    }
    norms = ["bert.embeddings.LayerNorm"]
    dead = np.zeros(layers * heads, bool)
    dead[random.permutation(layers * heads)[: spec.heads_zero]] = True
    for i in range(layers):
        stem = f"bert.encoder.layer.{i}"
        norms += [f"{stem}.attention.output.LayerNorm", f"{stem}.output.LayerNorm"]
        made = {f"attention.self.{n}": sparse(D, D) for n in ("query", "key", "value")}
        made["attention.output.dense"] = sparse(D, D)
        alive = ~dead[i * heads : (i + 1) * heads].repeat(spec.head_size)
        for n in ("query", "key", "value"):
            made[f"attention.self.{n}"] *= alive[:, None]
        made["attention.output.dense"] *= alive
        if spec.ffn_kept < 1:
            neurons = random.uniform(size=F) < spec.ffn_kept
            made["intermediate.dense"] = matrix(F, D) * neurons[:, None]
            made["output.dense"] = matrix(D, F) * neurons
        else:
            made["intermediate.dense"], made["output.dense"] = sparse(F, D), sparse(D, F)
        for part, weight in made.items():
            tensors[f"{stem}.{part}.weight"] = np.ascontiguousarray(weight, np.float32)
            tensors[f"{stem}.{part}.bias"] = np.zeros(len(weight), np.float32)
    for norm in norms:
        tensors |= {f"{norm}.weight": np.ones(D, np.float32), f"{norm}.bias": np.zeros(D, np.float32)}
    config = {
        "model_type": "bert",
        "vocab_size": VOCABULARY,
        "hidden_size": D,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
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
    """A model's weights as a float32 folder that other libraries read: heads and neurons that were cut out are there
    again, as zeros at the end."""
    from thinbert.model.checkpoint import copy_files, read_checkpoint
    from thinbert.model.families import FAMILIES

    source = read_checkpoint(model)
    folder = WORK / f"{Path(model).name}-{source.sha256[:8]}-float32"
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {n: source.array(n) for n in source.shapes}
        family, c = FAMILIES[source.config.family], source.config
        attention, neurons, width = c.original_heads * c.head_size, c.original_ffn, c.width
        inner = dict.fromkeys(("query", "key", "value"), (attention, width)) | {"ffn_in": (neurons, width)}
        outer = {"attention_output": (width, attention), "ffn_out": (width, neurons)}
        for i in range(c.layers):
            for field, shape in (inner | outer).items():
                stem = family.prefix + family.layer[field].format(i=i)
                tensors[f"{stem}.weight"] = widened(tensors[f"{stem}.weight"], shape)
                tensors[f"{stem}.bias"] = widened(tensors[f"{stem}.bias"], shape[:1])
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        copy_files(source.folder, folder)
        config = json.loads((source.folder / "config.json").read_text())
        for own in ("thinbert", "pruned_heads"):
            config.pop(own, None)
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def keep_samples(folder: Path, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Ids and types of real inputs, where a peer that is quantised by example looks for them."""
    (folder / "calibration.json").write_text(json.dumps([[ids.tolist(), types.tolist()] for ids, types in rows]))


def widened(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.pad(array, [(0, to - n) for n, to in zip(array.shape, shape, strict=True)])
