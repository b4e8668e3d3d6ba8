"""Densities, patterns and dead parts, on the five published forms and on the numbers their cards print."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from thinbert.model.checkpoint import Checkpoint, read_checkpoint
from thinbert.model.config import parse_config
from thinbert.model.pack import pack
from thinbert.model.sparsity import find_pattern, measure


def blocks(shape: tuple[int, int], block: tuple[int, int], density: float, seed: int = 0) -> np.ndarray:
    tensors = {"w.weight": np.ones(shape, np.float32)}
    tiny.prune(tensors, "w", density, block, seed)
    return tensors["w.weight"] != 0


@pytest.mark.parametrize("density", [0.05, 0.1, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("block", [(1, 4), (4, 1), (4, 4), (1, 16), (32, 32), (8, 2), (2, 1)])
def test_blocks_are_named_with_their_axis(block: tuple[int, int], density: float) -> None:
    assert find_pattern(blocks((256, 512), block, density)) == f"{block[0]}x{block[1]}"


@pytest.mark.parametrize("density", [0.003, 0.01, 0.1, 0.2, 0.5, 0.9])
def test_independent_zeros_are_unstructured(density: float) -> None:
    kept = np.random.RandomState(0).uniform(size=(256, 512)) < density
    assert find_pattern(kept) == "unstructured"


def test_neurons_that_are_gone_leave_their_neighbours_pattern() -> None:
    """A column here and there goes with its neuron, and the blocks it stood in are blocks all the same."""
    gone = np.random.RandomState(1).permutation(384)
    kept = blocks((96, 384), (1, 4), 0.2)
    kept[:, gone[:60]] = False
    assert find_pattern(kept) == "1x4"
    assert find_pattern(kept.T) == "4x1"
    for count in (60, 200, 380):
        loose = blocks((96, 384), (1, 1), 0.2)
        loose[:, gone[:count]] = False
        assert find_pattern(loose) == "unstructured"


def test_rows_columns_and_both() -> None:
    random = np.random.RandomState(0)
    rows, columns = random.uniform(size=256) < 0.4, random.uniform(size=128) < 0.7
    assert find_pattern(np.broadcast_to(rows[:, None], (256, 128))) == "rows"
    assert find_pattern(np.broadcast_to(columns, (256, 128))) == "columns"
    assert find_pattern(rows[:, None] & columns) == "rows+columns"


def test_dense_and_empty() -> None:
    random = np.random.RandomState(0)
    assert find_pattern(np.ones((64, 64), bool)) == "dense"
    assert find_pattern(random.uniform(size=(64, 64)) < 0.98) == "dense"  # int8 rounding
    assert find_pattern(np.zeros((64, 64), bool)) == "empty"
    assert find_pattern(np.zeros((0, 64), bool)) == "empty"


@pytest.mark.parametrize("block", [(1, 4), (4, 4), (32, 32)])
def test_int8_rounding_does_not_hide_a_pattern(block: tuple[int, int]) -> None:
    kept = blocks((256, 512), block, 0.2) & (np.random.RandomState(1).uniform(size=(256, 512)) < 0.98)
    assert find_pattern(kept) == f"{block[0]}x{block[1]}"


@given(
    block=st.sampled_from([(1, 4), (4, 1), (2, 2), (4, 4), (8, 8)]),
    density=st.floats(0.05, 0.85),
    seed=st.integers(0, 2**31),
)
def test_the_transpose_has_the_transposed_pattern(block: tuple[int, int], density: float, seed: int) -> None:
    kept = blocks((64, 128), block, density, seed)
    pattern = find_pattern(kept)
    if "x" in pattern:
        r, c = pattern.split("x")
        assert find_pattern(kept.T) == f"{c}x{r}"


# --- the five published forms -----------------------------------------------------------------------------------------


def measured(folder: Path, config: dict[str, Any], tensors: tiny.Tensors) -> dict[str, Any]:
    return measure(read_checkpoint(tiny.write_model(folder / "m", config, tensors))).as_json()


@pytest.mark.parametrize(("block", "density"), [((1, 4), 0.2), ((1, 1), 0.1), ((4, 1), 0.2)])
def test_zero_filled(tmp_path: Path, block: tuple[int, int], density: float) -> None:
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    for seed, stem in enumerate(tiny.linear_stems(config)):
        tiny.prune(tensors, stem, density, block, seed)
    s = measured(tmp_path, config, tensors)
    name = f"{block[0]}x{block[1]}" if block != (1, 1) else "unstructured"
    assert s["pattern"] == name
    assert {t["pattern"] for t in s["tensors"]} == {name}
    assert s["linear_density"] == pytest.approx(density, abs=1e-3)
    assert (s["heads_removed"], s["heads_total"], s["neurons_removed"]) == (0, 8, 0)
    assert s["parameters_original"] == sum(t.size for t in tensors.values())
    assert s["parameters"] == sum(np.count_nonzero(t) for t in tensors.values())
    assert s["overall_density"] == s["parameters"] / s["parameters_original"]


def test_pruned_heads_count_as_zeros(tmp_path: Path) -> None:
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    for seed, stem in enumerate(tiny.linear_stems(config)):
        tiny.prune(tensors, stem, 0.5, (32, 32), seed)
    pruned = {0: [1, 3], 1: [0]}
    cut, dense = tiny.cut_heads(tensors, config, pruned)
    s = measured(tmp_path, {**config, "pruned_heads": {str(k): v for k, v in pruned.items()}}, cut)
    assert (s["heads_removed"], s["heads_alive"]) == (3, [2, 3])
    kept = sum(np.count_nonzero(cut[f"{stem}.weight"]) for stem in tiny.linear_stems(config))
    assert s["linear_density"] == kept / (2 * (4 * 128 * 128 + 2 * 128 * 256))
    assert s["parameters_original"] == sum(t.size for t in dense.values())
    assert "32x32" in s["pattern"]
    assert "heads" in s["pattern"]
    query = next(t for t in s["tensors"] if t["name"].endswith("0.attention.self.query.weight"))
    assert query["shape"] == (64, 128)
    assert query["original_shape"] == (128, 128)


def test_hybrid(tmp_path: Path) -> None:
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    for layer in range(2):
        stem = f"bert.encoder.layer.{layer}"
        for seed, name in enumerate(("self.query", "self.key", "self.value", "output.dense")):
            tiny.prune(tensors, f"{stem}.attention.{name}", 0.5, (32, 32), seed)
        dead = np.random.RandomState(layer).permutation(256)[: 200 + layer]
        tensors[f"{stem}.intermediate.dense.weight"][dead] = 0
        tensors[f"{stem}.output.dense.weight"][:, dead] = 0
    s = measured(tmp_path, config, tensors)
    assert s["neurons_alive"] == [56, 55]
    assert s["neurons_removed"] == 401
    patterns = {t["name"].split(".", 4)[4]: t["pattern"] for t in s["tensors"] if t["layer"] == 0}
    assert patterns["intermediate.dense.weight"] == "rows"
    assert patterns["output.dense.weight"] == "columns"
    assert set(s["pattern"].split("+")) == {"rows", "columns", "32x32"}


def test_embeddings_stored_as_blocks_are_counted_whole(tmp_path: Path) -> None:
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    tensors["bert.embeddings.position_embeddings.weight"][4:] = 0  # so many that packing stores the rest as blocks
    portable = read_checkpoint(tiny.write_model(tmp_path / "m", config, tensors))
    pack(portable, tmp_path / "packed")
    packed = read_checkpoint(tmp_path / "packed")
    assert "bert.embeddings.position_embeddings.weight_index" in packed.tensors
    assert measure(packed).parameters_original == measure(portable).parameters_original


def test_dead_heads_are_those_without_effect(tmp_path: Path) -> None:
    """Zero values or outputs kill a head; zero queries and keys leave it averaging its values."""
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    stem = "bert.encoder.layer.0.attention"
    tensors[f"{stem}.self.value.weight"][:32] = 0
    tensors[f"{stem}.output.dense.weight"][:, 32:64] = 0
    tensors[f"{stem}.self.query.weight"][64:96] = 0
    tensors[f"{stem}.self.key.weight"][64:96] = 0
    s = measured(tmp_path, config, tensors)
    assert s["heads_alive"] == [2, 4]
    assert s["heads_removed"] == 2


# --- the numbers on the published cards -------------------------------------------------------------------------------


def published(config: dict[str, Any], heads_gone: int, linear_density: float, pooler: bool) -> Checkpoint:
    """A checkpoint of a published shape, with ones in so many places that the linear density comes out as published."""
    layers, D, F = config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]
    gone = np.bincount(np.arange(heads_gone) % layers, minlength=layers)
    pruned = {str(i): list(range(n)) for i, n in enumerate(gone)}
    parsed = parse_config({**config, "pruned_heads": pruned}, where="published")
    tensors: dict[str, np.ndarray] = {
        "bert.embeddings.word_embeddings.weight": np.ones((config["vocab_size"], D), np.int8),
        "bert.embeddings.position_embeddings.weight": np.ones((512, D), np.int8),
        "bert.embeddings.token_type_embeddings.weight": np.ones((2, D), np.int8),
        "bert.embeddings.LayerNorm.weight": np.ones(D, np.int8),
        "bert.embeddings.LayerNorm.bias": np.ones(D, np.int8),
        "qa_outputs.weight": np.ones((2, D), np.int8),
        "qa_outputs.bias": np.ones(2, np.int8),
    }
    wanted = linear_density * layers * (4 * D * D + 2 * D * F)
    shapes = [
        shape
        for i in range(layers)
        for A in [parsed.heads[i] * parsed.head_size]
        for shape in ((A, D), (A, D), (A, D), (D, A), (F, D), (D, F))
    ]
    stored = sum(r * c for r, c in shapes)
    for stem, (r, c) in zip(tiny.linear_stems(config), shapes, strict=True):
        weight = np.zeros(r * c, np.int8)
        weight[np.linspace(0, r * c - 1, round(wanted * r * c / stored)).astype(int)] = 1  # in every row and column
        tensors[f"{stem}.weight"] = weight.reshape(r, c)
        tensors[f"{stem}.bias"] = np.ones(r, np.int8)
    for i in range(layers):
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            for part in ("weight", "bias"):
                tensors[f"bert.encoder.layer.{i}.{norm}.{part}"] = np.ones(D, np.int8)
    ignored = {"bert.pooler.dense.weight": np.ones((D, D)), "bert.pooler.dense.bias": np.ones(D)} if pooler else {}
    all_shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return Checkpoint(
        "published", Path(), (), parsed, tensors, ignored, all_shapes, has_span=True, has_classify=False, stamps=()
    )


def test_published_block_sparse_base() -> None:
    """madlag/bert-base-uncased-squad1.1-block-sparse-0.32-v1: 31.7 % linear, 47.0 % overall, 80 of 144 heads gone."""
    base = tiny.bert_config(
        vocab_size=30522,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        max_position_embeddings=512,
    )
    s = measure(published(base, 80, 0.317, pooler=True))
    assert (s.heads_removed, s.heads_total) == (80, 144)
    assert round(100 * s.linear_density, 1) == 31.7
    assert round(100 * s.overall_density, 1) == 47.0


def test_published_hybrid_large() -> None:
    """madlag/bert-large-uncased-wwm-squadv2-x2.63-f82.6-d16-hybrid-v1: 16 % linear, 24 % overall, 190 of 384 heads."""
    large = tiny.bert_config(
        vocab_size=30522,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=512,
    )
    s = measure(published(large, 190, 0.16, pooler=False))
    assert (s.heads_removed, s.heads_total) == (190, 384)
    assert round(100 * s.linear_density) == 16
    assert round(100 * s.overall_density) == 24
