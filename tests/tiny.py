"""Tiny models for tests, made here from fixed seeds: small in every dimension, exact in form.

RandomState, unlike Generator, is guaranteed to give the same numbers under every numpy.
"""

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = list(string.ascii_lowercase + string.digits + string.punctuation + "–’é")
WORDS = ["the", "tower", "is", "named", "after", "who", "built", "in", "paris", "born", "composer", "##ing", "##ed"]
VOCABULARY = [*SPECIAL, *LETTERS, *("##" + c for c in LETTERS if c.isalnum()), *WORDS]

Tensors = dict[str, np.ndarray]


def bert_config(**changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["BertForQuestionAnswering"],
        "model_type": "bert",
        "vocab_size": len(VOCABULARY),
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        **changes,
    }


def distilbert_config(**changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["DistilBertForQuestionAnswering"],
        "model_type": "distilbert",
        "vocab_size": len(VOCABULARY),
        "dim": 128,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 256,
        "max_position_embeddings": 64,
        "activation": "gelu",
        **changes,
    }


class Maker:
    """Draws weights of a plausible size: matrices near 1/sqrt(inputs), norms near 1."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.RandomState(seed)
        self.tensors: Tensors = {}

    def matrix(self, name: str, outputs: int, inputs: int, scale: float = 1.0) -> None:
        values = self._random.standard_normal((outputs, inputs)) * scale / np.sqrt(inputs)
        self.tensors[name] = values.astype(np.float32)

    def linear(self, stem: str, outputs: int, inputs: int) -> None:
        self.matrix(f"{stem}.weight", outputs, inputs)
        self.tensors[f"{stem}.bias"] = (self._random.standard_normal(outputs) * 0.1).astype(np.float32)

    def norm(self, stem: str, width: int) -> None:
        self.tensors[f"{stem}.weight"] = (1 + self._random.standard_normal(width) * 0.1).astype(np.float32)
        self.tensors[f"{stem}.bias"] = (self._random.standard_normal(width) * 0.1).astype(np.float32)


def bert_tensors(config: dict[str, Any], seed: int = 0, *, prefix: str = "bert.", head: str | None = "span") -> Tensors:
    D, F = config["hidden_size"], config["intermediate_size"]
    make = Maker(seed)
    e = f"{prefix}embeddings"
    make.matrix(f"{e}.word_embeddings.weight", config["vocab_size"], D, scale=4)
    make.matrix(f"{e}.position_embeddings.weight", config["max_position_embeddings"], D, scale=2)
    make.matrix(f"{e}.token_type_embeddings.weight", config["type_vocab_size"], D)
    make.norm(f"{e}.LayerNorm", D)
    for i in range(config["num_hidden_layers"]):
        layer = f"{prefix}encoder.layer.{i}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            make.linear(f"{layer}.attention.{name}", D, D)
        make.norm(f"{layer}.attention.output.LayerNorm", D)
        make.linear(f"{layer}.intermediate.dense", F, D)
        make.linear(f"{layer}.output.dense", D, F)
        make.norm(f"{layer}.output.LayerNorm", D)
    if head == "span":
        make.linear("qa_outputs", 2, D)
    elif head == "classify":
        make.linear(f"{prefix}pooler.dense", D, D)
        make.linear("classifier", len(config["id2label"]), D)
    return make.tensors


def distilbert_tensors(config: dict[str, Any], seed: int = 0, *, head: str = "span") -> Tensors:
    D, F = config["dim"], config["hidden_dim"]
    make = Maker(seed)
    make.matrix("distilbert.embeddings.word_embeddings.weight", config["vocab_size"], D, scale=4)
    make.matrix("distilbert.embeddings.position_embeddings.weight", config["max_position_embeddings"], D, scale=2)
    make.norm("distilbert.embeddings.LayerNorm", D)
    for i in range(config["n_layers"]):
        layer = f"distilbert.transformer.layer.{i}"
        for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
            make.linear(f"{layer}.attention.{name}", D, D)
        make.norm(f"{layer}.sa_layer_norm", D)
        make.linear(f"{layer}.ffn.lin1", F, D)
        make.linear(f"{layer}.ffn.lin2", D, F)
        make.norm(f"{layer}.output_layer_norm", D)
    if head == "span":
        make.linear("qa_outputs", 2, D)
    else:
        make.linear("pre_classifier", D, D)
        make.linear("classifier", len(config["id2label"]), D)
    return make.tensors


def write_tokenizer(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")


def write_model(folder: Path, config: dict[str, Any], tensors: Tensors | None) -> Path:
    """A model folder with config.json, vocab.txt and, where tensors are given, model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    if tensors is not None:
        save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, folder / "model.safetensors")
    return folder


def prune(tensors: Tensors, stem: str, density: float, block: tuple[int, int], seed: int = 1) -> None:
    """Zeroes whole blocks of one weight so that exactly round(density * blocks) of them are kept."""
    weight = tensors[f"{stem}.weight"]
    r, c = block
    grid = (weight.shape[0] // r, weight.shape[1] // c)
    order = np.random.RandomState(seed).permutation(grid[0] * grid[1])
    kept = np.zeros(grid, bool)
    kept.reshape(-1)[order[: round(density * order.size)]] = True
    tensors[f"{stem}.weight"] = weight * kept.repeat(r, axis=0).repeat(c, axis=1)


def linear_stems(config: dict[str, Any], prefix: str = "bert.") -> list[str]:
    names = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    names += ("intermediate.dense", "output.dense")
    return [f"{prefix}encoder.layer.{i}.{n}" for i in range(config["num_hidden_layers"]) for n in names]


def cut_heads(tensors: Tensors, config: dict[str, Any], pruned: dict[int, list[int]]) -> tuple[Tensors, Tensors]:
    """A model without some heads in two forms: as transformers 4 stores it (rows and columns absent), and as a dense
    twin that any library runs (value rows and output columns zero)."""
    d = config["hidden_size"] // config["num_attention_heads"]
    cut, dense = dict(tensors), dict(tensors)
    for layer, heads in pruned.items():
        keep = np.ones(config["hidden_size"], bool)
        for h in heads:
            keep[h * d : (h + 1) * d] = False
        stem = f"bert.encoder.layer.{layer}.attention"
        for name in ("query", "key", "value"):
            for part in ("weight", "bias"):
                cut[f"{stem}.self.{name}.{part}"] = tensors[f"{stem}.self.{name}.{part}"][keep]
        cut[f"{stem}.output.dense.weight"] = tensors[f"{stem}.output.dense.weight"][:, keep]
        dense[f"{stem}.output.dense.weight"] = tensors[f"{stem}.output.dense.weight"] * keep
    return cut, dense


def ragged(lengths: list[int], seed: int = 3, token_types: bool = True) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Token ids, types and lengths of random sequences that stand one after another."""
    random = np.random.RandomState(seed)
    ids = random.randint(len(SPECIAL), len(VOCABULARY), sum(lengths)).astype(np.int32)
    types = np.concatenate([(np.arange(n) >= n // 3) for n in lengths]).astype(np.int32)
    return ids, types if token_types else np.zeros_like(types), lengths
