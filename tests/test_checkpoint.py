"""Reading model folders: the forms the published models come in, and everything that must be refused."""

import copy
import json
import os
import pickle
import re
import shutil
import struct
import tempfile
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

import tiny
from test_twins import TOLERANCE, padded, transformers_model, unpad
from thinbert.api import load
from thinbert.errors import ModelError
from thinbert.model.blocks import ENDINGS
from thinbert.model.checkpoint import expected_shapes, read_checkpoint
from thinbert.model.config import parse_config
from thinbert.model.families import FAMILIES
from thinbert.model.pack import pack
from thinbert.model.quantize import SCALE_SUFFIX, dequantize_rows, quantize_rows
from thinbert.model.tokenizer import read_tokenizer
from thinbert.model.torchfile import read_torch


def torch_save(path: Path, tensors: dict[str, Any], **options: Any) -> None:
    torch.save(OrderedDict((n, torch.from_numpy(np.array(t))) for n, t in tensors.items()), path, **options)


def expected_span(config: dict[str, Any], tensors: tiny.Tensors, lengths: list[int]) -> np.ndarray:
    """Logits of the dense twin, by transformers."""
    ids, types, lengths = tiny.ragged(lengths)
    with torch.inference_mode():
        out = transformers_model("BertForQuestionAnswering", config, tensors)(**padded(ids, types, lengths))
    return np.stack([unpad(out.start_logits, lengths), unpad(out.end_logits, lengths)], axis=1)


def assert_same_logits(folder: Path, expected: np.ndarray, lengths: list[int]) -> None:
    logits = load(folder, precision="float32").forward(*tiny.ragged(lengths))
    assert np.abs(logits - expected).max() < TOLERANCE * max(1, np.abs(expected).max())


# --- the five published forms -----------------------------------------------------------------------------------------


def test_1x4_block_sparse_zero_filled(tmp_path: Path) -> None:
    """Intel/bert-base-uncased-squadv1.1-sparse-80-1x4-block-pruneofa: dense tensors with zeros, in a .bin."""
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    for seed, stem in enumerate(tiny.linear_stems(config)):
        tiny.prune(tensors, stem, 0.2, (1, 4), seed)
    folder = tiny.write_model(tmp_path / "m", config, None)
    torch_save(folder / "pytorch_model.bin", {**tensors, "bert.embeddings.position_ids": np.arange(64)[None]})
    assert_same_logits(folder, expected_span(config, tensors, [20, 5]), [20, 5])


def test_unstructured_without_a_head(tmp_path: Path) -> None:
    """Intel/bert-large-uncased-sparse-90-unstructured-pruneofa: a pre-trained model with MLM and NSP heads."""
    config = tiny.bert_config(architectures=["BertForPreTraining"])
    tensors = tiny.bert_tensors(config, head=None)
    for seed, stem in enumerate(tiny.linear_stems(config)):
        tiny.prune(tensors, stem, 0.1, (1, 1), seed)
    D, V = 128, config["vocab_size"]
    extra = {
        "bert.pooler.dense.weight": np.zeros((D, D), np.float32),
        "bert.pooler.dense.bias": np.zeros(D, np.float32),
        "cls.predictions.bias": np.zeros(V, np.float32),
        "cls.predictions.decoder.weight": np.zeros((V, D), np.float32),
        "cls.predictions.transform.LayerNorm.weight": np.ones(D, np.float32),
        "cls.seq_relationship.weight": np.zeros((2, D), np.float32),
    }
    folder = tiny.write_model(tmp_path / "m", config, None)
    torch_save(folder / "pytorch_model.bin", {**tensors, **extra})
    model = load(folder)
    message = "cannot answer questions: it holds a masked-language-model head .*Fine-tune it"
    with pytest.raises(ModelError, match=message):
        model.answer("who?", "the tower")
    # the encoder itself is right: give it a head and compare
    head = tiny.bert_tensors(config, seed=9)
    tensors |= {n: t for n, t in head.items() if n.startswith("qa_outputs")}
    torch_save(folder / "pytorch_model.bin", {**tensors, **extra})
    assert_same_logits(folder, expected_span(config, tensors, [17]), [17])


def test_pruned_heads_in_a_bin(tmp_path: Path) -> None:
    """madlag/bert-base-uncased-squad1.1-block-sparse-0.32-v1: heads absent, 32x32 blocks of zeros in what is left."""
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    for seed, stem in enumerate(tiny.linear_stems(config)):
        tiny.prune(tensors, stem, 0.5, (32, 32), seed)
    pruned = {0: [1, 3], 1: [0]}
    cut, dense = tiny.cut_heads(tensors, config, pruned)
    folder = tiny.write_model(tmp_path / "m", {**config, "pruned_heads": {str(k): v for k, v in pruned.items()}}, None)
    torch_save(folder / "pytorch_model.bin", cut)
    assert load(folder).config.heads == (2, 3)
    assert_same_logits(folder, expected_span(config, dense, [30, 2]), [30, 2])


def test_all_heads_of_a_layer_pruned(tmp_path: Path) -> None:
    config = tiny.bert_config()
    cut, dense = tiny.cut_heads(tiny.bert_tensors(config), config, {1: [0, 1, 2, 3]})
    folder = tiny.write_model(tmp_path / "m", {**config, "pruned_heads": {"1": [0, 1, 2, 3]}}, cut)
    assert_same_logits(folder, expected_span(config, dense, [12]), [12])


def test_six_layers_relu(tmp_path: Path) -> None:
    """Intel/dynamic_tinybert: six layers, ReLU, a stale head size in the config, TinyBERT's projection in the file."""
    config = tiny.bert_config(num_hidden_layers=6, hidden_act="relu")
    tensors = tiny.bert_tensors(config)
    folder = tiny.write_model(tmp_path / "m", {**config, "attention_head_size": 26}, None)
    extra = {"fit_dense.weight": np.ones((128, 128), np.float32), "fit_dense.bias": np.ones(128, np.float32)}
    torch_save(folder / "pytorch_model.bin", {**tensors, **extra})
    assert_same_logits(folder, expected_span(config, tensors, [40]), [40])


def test_hybrid_with_dead_neurons(tmp_path: Path) -> None:
    """madlag/bert-large-uncased-wwm-squadv2-x2.63-f82.6-d16-hybrid-v1: heads absent, dead neurons stored as zeros."""
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    for layer in range(2):
        stem = f"bert.encoder.layer.{layer}"
        for seed, name in enumerate(("self.query", "self.key", "self.value", "output.dense")):
            tiny.prune(tensors, f"{stem}.attention.{name}", 0.5, (32, 32), seed)
        dead = np.random.RandomState(layer).permutation(256)[:200]
        tensors[f"{stem}.intermediate.dense.weight"][dead] = 0
        tensors[f"{stem}.intermediate.dense.bias"][dead] = 0
        tensors[f"{stem}.output.dense.weight"][:, dead] = 0
    cut, dense = tiny.cut_heads(tensors, config, {0: [2], 1: [0, 3]})
    folder = tiny.write_model(tmp_path / "m", {**config, "pruned_heads": {"0": [2], "1": [0, 3]}}, None)
    torch_save(folder / "pytorch_model.bin", cut)
    assert_same_logits(folder, expected_span(config, dense, [25, 25]), [25, 25])


# --- other spellings and containers -----------------------------------------------------------------------------------


def test_first_bert_spellings_and_flat_container(tmp_path: Path) -> None:
    """gamma and beta, and the file format of torch before 1.6."""
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    old = {re.sub("LayerNorm.weight", "LayerNorm.gamma", n): t for n, t in tensors.items()}
    old = {re.sub("LayerNorm.bias", "LayerNorm.beta", n): t for n, t in old.items()}
    assert sum("gamma" in n for n in old) == 5
    folder = tiny.write_model(tmp_path / "m", config, None)
    torch_save(folder / "pytorch_model.bin", old, _use_new_zipfile_serialization=False)
    assert_same_logits(folder, expected_span(config, tensors, [20]), [20])


def test_bare_encoder_names(tmp_path: Path) -> None:
    """A BertModel saved by itself has no "bert." prefix."""
    config = tiny.bert_config()
    bare = tiny.bert_tensors(config, prefix="", head=None)
    span = {n: t for n, t in tiny.bert_tensors(config).items() if n.startswith("qa_outputs")}
    folder = tiny.write_model(tmp_path / "m", config, {**bare, **span})
    assert_same_logits(folder, expected_span(config, tiny.bert_tensors(config), [20]), [20])


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_sharded(tmp_path: Path, ending: str) -> None:
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    folder = tiny.write_model(tmp_path / "m", config, None)
    stem = "model" if ending == "safetensors" else "pytorch_model"
    weight_map = {}
    for part in (1, 2):
        name = f"{stem}-0000{part}-of-00002.{ending}"
        mine = {n: t for i, (n, t) in enumerate(tensors.items()) if i % 2 == part - 1}
        weight_map |= dict.fromkeys(mine, name)
        save_file(mine, folder / name) if ending == "safetensors" else torch_save(folder / name, mine)
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same_logits(folder, expected_span(config, tensors, [20]), [20])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("container", ["safetensors", "bin"])
def test_stored_precisions(tmp_path: Path, dtype: torch.dtype, container: str) -> None:
    from safetensors.torch import save_file as save_torch_file

    config = tiny.bert_config(num_hidden_layers=1)
    stored = {n: torch.from_numpy(t).to(dtype) for n, t in tiny.bert_tensors(config).items()}
    folder = tiny.write_model(tmp_path / "m", config, None)
    if container == "bin":
        torch.save(stored, folder / "pytorch_model.bin")
    else:
        save_torch_file(stored, folder / "model.safetensors")
    checkpoint = read_checkpoint(folder)
    for name, tensor in stored.items():
        np.testing.assert_array_equal(checkpoint.array(name), tensor.float().numpy())


def test_int8_rows(tmp_path: Path) -> None:
    """The storage form of the bundled model: exact values by the rules of docs/format.md."""
    weight = np.array([[1.0, -0.5, 0.25, 127.0], [0, 0, 0, 0], [-3.0, 1.5, 0.01, 0.0]], np.float32)
    values, scale = quantize_rows(weight)
    np.testing.assert_array_equal(scale, np.array([1.0, 1.0, 3.0 / 127], np.float32))
    # 0.5 and 63.5 lie between two values: to the even one
    np.testing.assert_array_equal(values, [[1, 0, 0, 127], [0, 0, 0, 0], [-127, 64, 0, 0]])
    assert np.abs(dequantize_rows(values, scale) - weight).max() <= 0.5 * scale.max()

    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    packed: dict[str, np.ndarray] = {}
    for name, t in tensors.items():
        if t.ndim == 2:
            packed[name], packed[name + SCALE_SUFFIX] = quantize_rows(t)
        else:
            packed[name] = t
    folder = tiny.write_model(tmp_path / "m", config, packed)
    rounded = {n: dequantize_rows(*quantize_rows(t)) if t.ndim == 2 else t for n, t in tensors.items()}
    assert_same_logits(folder, expected_span(config, rounded, [20]), [20])


def test_own_ffn_widths(tmp_path: Path) -> None:
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    dense = dict(tensors)
    for layer, width in enumerate((200, 8)):
        stem = f"bert.encoder.layer.{layer}"
        dense[f"{stem}.output.dense.weight"] = tensors[f"{stem}.output.dense.weight"] * (np.arange(256) < width)
        for name in ("intermediate.dense.weight", "intermediate.dense.bias"):
            tensors[f"{stem}.{name}"] = tensors[f"{stem}.{name}"][:width]
        tensors[f"{stem}.output.dense.weight"] = tensors[f"{stem}.output.dense.weight"][:, :width]
    folder = tiny.write_model(tmp_path / "m", {**config, "thinbert": {"ffn": [200, 8]}}, tensors)
    assert_same_logits(folder, expected_span(config, dense, [20]), [20])


# --- tensors that do not fit ------------------------------------------------------------------------------------------


def test_faults_are_listed_by_name_and_shape(tmp_path: Path) -> None:
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    del tensors["bert.encoder.layer.1.output.dense.weight"]
    tensors["bert.encoder.layer.0.attention.self.key.weight"] = np.zeros((96, 128), np.float32)
    tensors["bert.encoder.layer.7.output.dense.bias"] = np.zeros(128, np.float32)
    tensors["qa_outputs.bias"] = np.zeros(2, np.int32)
    folder = tiny.write_model(tmp_path / "m", config, tensors)
    with pytest.raises(ModelError) as e:
        load(folder)
    for part in (
        "missing bert.encoder.layer.1.output.dense.weight [128, 256]",
        "misshapen bert.encoder.layer.0.attention.self.key.weight: found [96, 128], expected [128, 128]",
        "unexpected bert.encoder.layer.7.output.dense.bias [128]",
        "qa_outputs.bias is of type int32; expected floating point, or int8 for a matrix",
    ):
        assert part in str(e.value)


def test_long_lists_of_faults_are_cut(tmp_path: Path) -> None:
    config = tiny.bert_config()
    folder = tiny.write_model(tmp_path / "m", {**config, "hidden_size": 64}, tiny.bert_tensors(config))
    with pytest.raises(ModelError, match=r"misshapen .*; and \d+ more"):
        load(folder)


def test_heads_of_other_tasks_are_ignored(tmp_path: Path) -> None:
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    folder = tiny.write_model(tmp_path / "m", config, {**tensors, "answer_class.weight": np.ones((3, 128), np.float32)})
    checkpoint = read_checkpoint(folder)
    assert set(checkpoint.ignored) == {"answer_class.weight"}


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_damaged_numbers(tmp_path: Path, bad: float) -> None:
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    tensors["qa_outputs.weight"] = tensors["qa_outputs.weight"].astype(np.float64)
    tensors["qa_outputs.weight"][0, 0] = bad
    with pytest.raises(ModelError, match=r"tensor qa_outputs\.weight holds NaN or infinity"):
        load(tiny.write_model(tmp_path / "m", config, tensors), precision="float32")


def test_numbers_too_large_to_compute_with(tmp_path: Path) -> None:
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    tensors["bert.encoder.layer.0.intermediate.dense.weight"] *= np.float32(1e30)
    tensors["bert.encoder.layer.0.output.dense.weight"] *= np.float32(1e30)
    model = load(tiny.write_model(tmp_path / "m", config, tensors), precision="float32")
    with pytest.raises(ModelError, match="computes NaN or infinity; its weights are damaged or out of range"):
        model.answer("who", "the tower")


def test_tagging_models_have_no_classification_head(tmp_path: Path) -> None:
    """Their `classifier` reads every token, without the layer that sentence classification has before it, or with one
    that stayed there from pre-training."""
    config = tiny.bert_config()
    tagger = {"classifier.weight": np.ones((9, 128), np.float32), "classifier.bias": np.ones(9, np.float32)}
    checkpoint = read_checkpoint(tiny.write_model(tmp_path / "m", config, {**tiny.bert_tensors(config), **tagger}))
    assert (checkpoint.has_span, checkpoint.has_classify) == (True, False)
    assert set(checkpoint.ignored) == set(tagger)
    for kind, classifies in (("ForTokenClassification", False), ("ForSequenceClassification", True)):
        config = tiny.bert_config(architectures=[f"Bert{kind}"], id2label={"0": "no", "1": "yes"})
        folder = tiny.write_model(tmp_path / kind, config, tiny.bert_tensors(config, head="classify"))
        assert read_checkpoint(folder).has_classify == classifies


def test_distilbert_has_its_own_eps(tmp_path: Path) -> None:
    parsed = parse_config(tiny.distilbert_config(layer_norm_eps=0.05), where="config.json")
    assert parsed.norm_eps == 1e-12


def test_int8_is_for_matrices(tmp_path: Path) -> None:
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    tensors["qa_outputs.bias"] = np.ones(2, np.int8)
    tensors["qa_outputs.bias_scale"] = np.ones(2, np.float32)
    with pytest.raises(
        ModelError, match=r"qa_outputs\.bias is of type int8; expected floating point, or int8 for a matrix"
    ):
        load(tiny.write_model(tmp_path / "m", config, tensors), precision="float32")


def test_scales_must_fit(tmp_path: Path) -> None:
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    tensors["qa_outputs.weight"] = np.ones((2, 128), np.int8)
    with pytest.raises(ModelError, match=r"int8 qa_outputs\.weight: found scales none, expected \[2\] of float32"):
        load(tiny.write_model(tmp_path / "a", config, tensors), precision="float32")
    tensors["qa_outputs.weight_scale"] = np.ones(3, np.float32)
    with pytest.raises(ModelError, match=r"found scales \[3\] of float32, expected \[2\]"):
        load(tiny.write_model(tmp_path / "b", config, tensors), precision="float32")
    tensors["qa_outputs.weight_scale"] = np.array([1, np.nan], np.float32)
    with pytest.raises(ModelError, match=r"int8 qa_outputs\.weight: its scales hold NaN or infinity"):
        load(tiny.write_model(tmp_path / "c", config, tensors))


# --- config.json ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta'; thinbert reads bert, distilbert"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu'; thinbert computes gelu, gelu_new, relu"),
        ({"layer_norm_type": "rms"}, "layer_norm_type is 'rms'; thinbert computes layer_norm, no_norm"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is true"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; expected a whole number from 1 to 256"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"hidden_size": "128"}, "hidden_size is '128'"),
        ({"hidden_size": 130}, "width 130 is not a multiple of 4 heads"),
        ({"vocab_size": None}, "vocab_size is None"),
        ({"layer_norm_eps": 0}, "layer_norm_eps is 0; expected a number between 0 and 1"),
        ({"pruned_heads": {"9" * 5000: [0]}}, "pruned_heads names layer '999"),
        ({"layer_norm_eps": "tiny"}, "layer_norm_eps is 'tiny'"),
        ({"pruned_heads": {"2": [0]}}, "pruned_heads names layer '2'; the model has layers 0 to 1"),
        ({"pruned_heads": {"x": [0]}}, "pruned_heads names layer 'x'"),
        ({"pruned_heads": {"0": [4]}}, r"pruned_heads of layer 0 is \[4\]; expected head numbers below 4"),
        ({"pruned_heads": [1]}, "pruned_heads is list; expected layer -> list of heads"),
        ({"thinbert": []}, "the thinbert block is list; expected an object"),
        ({"thinbert": {"ffn": [1, 2, 3]}}, r"thinbert.ffn is \[1, 2, 3\]; expected 2 widths from 0 to 256"),
        ({"thinbert": {"no_answer_threshold": 2}}, "no_answer_threshold is 2; expected a probability"),
        ({"thinbert": {"no_answer_calibration": [1]}}, r"no_answer_calibration is \[1\]; expected \[slope above 0"),
        ({"thinbert": {"no_answer_calibration": [-1, 0]}}, r"calibration is \[-1, 0\]; expected \[slope above 0"),
        ({"thinbert": {"no_answer_calibration": "x"}}, "calibration is 'x'; expected"),
        ({"intermediate_size": (1 << 18) + 4}, "intermediate_size is 262148; expected a whole number from 1 to 262144"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label is .*; expected class numbers"),
    ],
)
def test_config_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse_config(tiny.bert_config(**changes), where="config.json")


def test_older_configs_have_no_newer_fields() -> None:
    config = tiny.bert_config()
    del config["layer_norm_eps"], config["type_vocab_size"]
    parsed = parse_config(config, where="config.json")
    assert (parsed.norm_eps, parsed.token_types, parsed.heads, parsed.ffn) == (1e-12, 2, (4, 4), (256, 256))


# --- folders and files ------------------------------------------------------------------------------------------------


def test_folder_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = tiny.bert_config()
    cases = {
        "./nowhere": "model './nowhere': no such folder",
        str(tmp_path / "void"): "no such folder",
    }
    for name, message in cases.items():
        with pytest.raises(ModelError, match=re.escape(message)):
            load(name)
    file = tmp_path / "file.bin"
    file.write_bytes(b"")
    with pytest.raises(ModelError, match="is a file; a model is a folder"):
        load(file)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelError, match=r"config\.json: no such file; a model folder needs it"):
        load(empty)
    (empty / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        load(empty)
    (empty / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="holds a list; expected a JSON object"):
        load(empty)
    (empty / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"no weights; expected one of model\.safetensors"):
        load(empty)
    folder = tiny.write_model(tmp_path / "no-tokenizer", config, tiny.bert_tensors(config))
    (folder / "vocab.txt").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer; expected tokenizer\.json or vocab\.txt"):
        load(folder)


@pytest.mark.parametrize("name", ["../../etc/passwd.bin", "/etc/x.bin", "a/b.safetensors", "x.txt"])
def test_shards_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    folder = tiny.write_model(tmp_path / "m", tiny.bert_config(), None)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ModelError, match="expected a weight file in the same folder"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_safetensors(tmp_path: Path, keep: int) -> None:
    config = tiny.bert_config()
    file = tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config)) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load(file.parent)


def test_unknown_safetensors_dtypes_matter_where_they_are_needed(tmp_path: Path) -> None:
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    file = tiny.write_model(tmp_path / "m", config, tensors) / "model.safetensors"
    whole = file.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for name, wrong in (
        ("another.head", None),
        ("qa_outputs.bias", "qa_outputs.bias is of type F8_E4M3; expected floating point"),
    ):
        entries = json.loads(whole[8:start])
        entries.pop(name, None)
        end = len(whole) - start
        entries[name] = {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [end, end + 2]}
        rest = whole[start:]
        if wrong:  # in the place of the one that was there
            begin, stop = json.loads(whole[8:start])[name]["data_offsets"]
            entries["qa_outputs.old"] = {"dtype": "F32", "shape": [2], "data_offsets": [begin, stop]}
        header = json.dumps(entries).encode()
        file.write_bytes(struct.pack("<Q", len(header)) + header + rest + b"\0" * 2)
        if wrong:
            with pytest.raises(ModelError, match=wrong):
                load(file.parent)
        else:
            assert name in read_checkpoint(file.parent).ignored


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (json.dumps({"w": {"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]}}), "has the shape"),
        ('{"w": {"dtype": "F32", "shape": [0, 4611686018427387904], "data_offsets": [0, 0]}}', "has the shape"),
        (
            '{"w": {"dtype": "F32", "shape": [0, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60], "data_offsets": [0, 0]}}',
            "has",
        ),
        (
            '{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
            '"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
            "tensor w is stored twice",
        ),
    ],
)
def test_odd_safetensors_headers(tmp_path: Path, header: str, message: str) -> None:
    folder = tiny.write_model(tmp_path / "m", tiny.bert_config(), None)
    content = header.encode()
    data = b"\0" * 4 if '"data_offsets": [0, 0]' not in header else b""
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(content)) + content + data)
    with pytest.raises(ModelError, match=message):
        load(folder)


# --- tokenizers -------------------------------------------------------------------------------------------------------


def tokenizer_json(folder: Path, lowercase: bool, extra: dict[str, int] | None = None) -> None:
    vocabulary = {t: i for i, t in enumerate(tiny.VOCABULARY)} | (extra or {})
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("setting", [None, True, False])
def test_the_tokenizer_config_overrides_the_tokenizer(tmp_path: Path, setting: bool | None) -> None:
    config = tiny.bert_config()
    folder = tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config))
    tokenizer_json(folder, lowercase=True)
    if setting is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": setting}))
    ids = load(folder).tokenizer("The TOWER").ids.tolist()
    unknown = tiny.VOCABULARY.index("[UNK]")
    lower = [tiny.VOCABULARY.index("the"), tiny.VOCABULARY.index("tower")]
    assert ids == ([unknown] * 2 if setting is False else lower)


def test_settings_of_another_class_are_not_berts(tmp_path: Path) -> None:
    config = tiny.bert_config()
    folder = tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config))
    tokenizer_json(folder, lowercase=True)
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    assert load(folder).tokenizer("TOWER").ids.tolist() == [tiny.VOCABULARY.index("tower")]


@pytest.mark.parametrize("form", ["added_tokens.json", "tokenizer_config.json"])
def test_tokens_that_were_added_to_a_vocabulary(tmp_path: Path, form: str) -> None:
    transformers = pytest.importorskip("transformers")
    size = len(tiny.VOCABULARY)
    config = tiny.bert_config(vocab_size=size + 2)
    folder = tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config))

    def add(numbers: tuple[int, int]) -> None:
        flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
        names = dict(zip(("[E1]", "[E2]"), numbers, strict=True))
        told = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
        if form == "added_tokens.json":
            (folder / form).write_text(json.dumps(names))
        else:
            told["added_tokens_decoder"] = {str(n): {"content": name, **flags} for name, n in names.items()}
        (folder / "tokenizer_config.json").write_text(json.dumps(told))

    add((size, size + 1))
    text = "the [E1] Tower [E2] is in paris"
    ids = load(folder).tokenizer(text).ids.tolist()
    assert ids.count(size) == ids.count(size + 1) == 1
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert ids == theirs(text, add_special_tokens=False)["input_ids"]
    packed = tmp_path / "packed"
    pack(read_checkpoint(folder), packed)
    assert load(packed).tokenizer(text).ids.tolist() == ids
    add((size + 1, size + 5))
    with pytest.raises(ModelError, match=r"token '\[E1\]' has number \d+; with the vocabulary it would get \d+"):
        load(folder)


def test_other_tokenizers_with_the_same_kind_of_file(tmp_path: Path) -> None:
    """They would be read, and take texts apart otherwise."""
    config = tiny.bert_config()
    folder = tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config))
    for name, fine in (("BertTokenizer", True), ("DistilBertTokenizerFast", True), ("BertJapaneseTokenizer", False)):
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
        if fine:
            load(folder)
        else:
            with pytest.raises(ModelError, match="tokenizer_class is 'BertJapaneseTokenizer'; thinbert reads BERT's"):
                load(folder)


def test_tokenizer_files_of_2020_do_not_name_their_model(tmp_path: Path) -> None:
    """The published checkpoints have them."""
    config = tiny.bert_config()
    folder = tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config))
    expected = load(folder).tokenizer("the tower").ids.tolist()
    backend = Tokenizer(models.WordPiece({t: i for i, t in enumerate(tiny.VOCABULARY)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    described = json.loads(backend.to_str())
    del described["model"]["type"]
    (folder / "vocab.txt").unlink()
    (folder / "tokenizer.json").write_text(json.dumps(described))
    assert load(folder).tokenizer("the tower").ids.tolist() == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "not valid JSON"),
        ("tokenizer.json", '{"model": {}}', "not a tokenizer"),
        ("tokenizer.json", "{}", r"its model is None; thinbert reads BERT's WordPiece \(WordPiece\)"),
        (
            "tokenizer.json",
            '{"model": {"type": "WordPiece"}, "normalizer": null, "pre_tokenizer": null}',
            "not a token",
        ),
        # which fails, without an exception, on the first text
        (
            "tokenizer.json",
            '{"model": {"type": "WordPiece"}, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AA"}}',
            "its normalizer is 'Precompiled'",
        ),
        ("tokenizer.json", '{"model": {"type": "Unigram", "vocab": []}}', "its model is 'Unigram'"),
        (
            "tokenizer.json",
            '{"model": {"type": "WordPiece"}, "pre_tokenizer": {"type": "FixedLength", "length": 0}}',
            "its pre_tokenizer is 'FixedLength'",
        ),
        ("vocab.txt", "[CLS]\n[SEP]\nx\n", r"no \[UNK\] among 3 tokens"),
        ("vocab.txt", "[UNK]\n[SEP]\nx\n", r"the tokenizer has no \[CLS\]"),
        ("vocab.txt", "[UNK]\n[CLS]\n[SEP]\n" + "x\n" * 300, "numbers tokens up to 302, the model has embeddings for"),
        ("tokenizer_config.json", '{"do_lower_case": "yes"}', "do_lower_case is 'yes'; expected true or false"),
        ("tokenizer_config.json", '{"tokenize_chinese_chars": null}', "tokenize_chinese_chars is None"),
    ],
)
def test_tokenizers_that_do_not_fit(tmp_path: Path, name: str, content: str, message: str) -> None:
    config = tiny.bert_config()
    folder = tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config))
    (folder / name).write_text(content)
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_token_numbers_past_the_embeddings(tmp_path: Path) -> None:
    config = tiny.bert_config()
    folder = tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config))
    tokenizer_json(folder, lowercase=True, extra={"far": 9999})
    with pytest.raises(ModelError, match="numbers tokens up to 9999"):
        load(folder)


# --- hostile pickles --------------------------------------------------------------------------------------------------


class Payload:
    """What an attacker puts in a checkpoint: a call made while unpickling."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def write_zip(path: Path, data: bytes, **entries: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in entries.items():
            archive.writestr(f"archive/data/{name}", content)


def test_hostile_pickles_run_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "owned"
    path = tmp_path / "pytorch_model.bin"
    for payload in (
        Payload(os.system, f"touch {marker}"),
        Payload(eval, f"open({str(marker)!r}, 'w')"),
        Payload(exec, f"open({str(marker)!r}, 'w')"),
        Payload(getattr, "", "join"),
        Payload(torch.load, "x"),
        Payload(np.load, "x"),
    ):
        data = pickle.dumps({"w": payload})
        write_zip(path, data)
        with pytest.raises(ModelError, match=r"refused: it asks for the Python object .* nothing in the file was run"):
            read_torch(path)
        path.write_bytes(data)  # and as a flat file
        with pytest.raises(ModelError, match=r"refused: it asks for the Python object"):
            read_torch(path)
        assert not marker.exists()


def storage_pickle(count: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """A state dict of one float32 tensor "w" over buffer "0", written by hand so that it may lie."""
    out = b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n("
    out += b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    out += b"I%d\ntQ" % count
    out += b"I%d\n" % offset
    for numbers in (size, stride):
        out += b"(" + b"".join(b"I%d\n" % n for n in numbers) + b"t"
    return out + b"I00\nccollections\nOrderedDict\n)RtRs."


def test_hand_written_pickle_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    write_zip(path, storage_pickle(6, (3, 2), (1, 3)), **{"0": np.arange(6, dtype="<f4").tobytes()})
    np.testing.assert_array_equal(read_torch(path)["w"], np.arange(6).reshape(2, 3).T)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (storage_pickle(6, (3, 3), (3, 1)), r"shape \[3, 3\] that reaches outside its buffer of 6 values"),
        (storage_pickle(6, (3, 2), (2, 1), offset=1), "reaches outside its buffer"),
        (storage_pickle(6, (10**6, 10**6), (0, 0)), "reaches outside its buffer"),
        (storage_pickle(6, (2, 2), (-1, 1)), "a tensor with a malformed layout"),
        (storage_pickle(6, (2, 2), (1,)), "2 sizes and 1 strides"),
        (storage_pickle(7, (6,), (1,)), "buffer '0' of 24 bytes where 7 values of F32 take 28"),
        (storage_pickle(6, (2,) * 9, (1,) * 9), "a tensor with a malformed layout"),
        (storage_pickle(6, (10**400, 0), (1, 1)), "a tensor with a malformed layout"),
        (pickle.dumps([1, 2]), "it holds a list, not a dictionary of tensors"),
        (pickle.dumps({"epoch": 3}), "entry 'epoch' is a int, not a tensor"),
    ],
)
def test_lying_layouts(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "w.bin"
    write_zip(path, data, **{"0": np.arange(6, dtype="<f4").tobytes()})
    with pytest.raises(ModelError, match=message):
        read_torch(path)


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", b"\0" * 10_000_000)
    with pytest.raises(ModelError, match=r"a compressed entry .* which torch never writes"):
        read_torch(path)


def test_entries_may_not_overlap(tmp_path: Path) -> None:
    """One buffer of the file under many names would be as many in memory."""
    path = tmp_path / "w.bin"
    write_zip(path, pickle.dumps({}), **{"0": bytes(1000)})
    with zipfile.ZipFile(path, "a") as archive:
        entry = archive.getinfo("archive/data/0")
        for i in range(1, 9):
            again = copy.copy(entry)
            again.filename = f"archive/data/{i}"
            archive.filelist.append(again)
        archive._didModify = True  # writes the table of contents anew
    with pytest.raises(ModelError, match=r"entries of \d+ bytes in a file of \d+"):
        read_torch(path)


def two_tensors(first: str, second: str) -> bytes:
    """A state dict of two tensors over buffer "0", of which each says what it likes."""
    a, b = (eval(f"storage_pickle({arguments})") for arguments in (first, second))
    body = a[a.index(b"ctorch._utils") : -2], b[b.index(b"ctorch._utils") : -2]
    return b"\x80\x02}X\x01\x00\x00\x00a" + body[0] + b"sX\x01\x00\x00\x00b" + body[1] + b"s."


def test_one_buffer_described_in_two_ways(tmp_path: Path) -> None:
    """The first tensor is checked against its own claim of a large buffer; the bytes that are there are few."""
    path = tmp_path / "w.bin"
    write_zip(path, two_tensors("10**12, (10**9,), (1,)", "6, (6,), (1,)"), **{"0": bytes(24)})
    with pytest.raises(ModelError, match="refused: buffer '0' described in two ways"):
        read_torch(path)


def test_tensors_cannot_be_changed_after_they_were_checked(tmp_path: Path) -> None:
    honest = storage_pickle(6, (6,), (1,))
    build = b"}X\x04\x00\x00\x00size(I1000000000\ntsb"  # BUILD: update the tensor's fields
    path = tmp_path / "w.bin"
    write_zip(path, honest[:-2] + build + honest[-2:], **{"0": bytes(24)})
    with pytest.raises(ModelError, match="refused: it changes something after making it"):
        read_torch(path)


def test_small_files_stay_small(tmp_path: Path) -> None:
    """A memo index of two billion, and hundreds of transposed views of one buffer, take no memory to speak of."""
    path = tmp_path / "w.bin"
    write_zip(path, b"\x80\x02}r\xff\xff\xff\x7f.")
    assert read_torch(path) == {}
    # a byte array of two gigabytes, and a dictionary made of a list
    tracemalloc.start()
    for data in (b"\x80\x05\x96" + struct.pack("<Q", 1 << 31), b"\x80\x02ccollections\nOrderedDict\n]\x85R."):
        write_zip(path, data)
        with pytest.raises(ModelError):
            read_torch(path)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()
    for state in (torch.ones(100, 100).t(), torch.ones(100, 100, dtype=torch.bfloat16)):
        torch.save({f"t{i}": state for i in range(300)}, path)
        with pytest.raises(ModelError, match="tensors of 3000000 values over 10000 that are stored"):
            read_torch(path)


def test_a_config_of_numbers_too_large_and_texts_too_long() -> None:
    for own, message in (
        ({"no_answer_threshold": 10**400}, "expected a probability"),
        ({"no_answer_calibration": [10**400, 0]}, "expected .slope above 0, offset."),
        ({"ffn": ["x" * 100] * 10_000}, "widths from 0"),
    ):
        with pytest.raises(ModelError, match=message) as e:
            parse_config(tiny.bert_config(thinbert=own), where="config.json")
        assert len(str(e.value)) < 300


def test_a_question_needs_two_token_types(tmp_path: Path) -> None:
    config = tiny.bert_config(type_vocab_size=1)
    folder = tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config))
    with pytest.raises(ModelError, match="type_vocab_size is 1; a question and its text need 2"):
        read_checkpoint(folder)


def test_what_is_no_checkpoint_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(50_000_000)  # a hole, which takes no disk
    tracemalloc.start()
    with pytest.raises(ModelError):
        read_torch(tmp_path / "w.bin")
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_classes_are_counted_once(tmp_path: Path) -> None:
    """Without id2label the weight says how many there are, and the bias has to agree."""
    config = tiny.bert_config(id2label={"0": "a", "1": "b", "2": "c"})
    tensors = tiny.bert_tensors(config, head="classify")
    del config["id2label"]
    for wrong in (1, 5):
        bad = tensors | {"classifier.bias": np.zeros(wrong, np.float32)}
        with pytest.raises(ModelError, match=rf"misshapen classifier.bias: found \[{wrong}\], expected \[3\]"):
            read_checkpoint(tiny.write_model(tmp_path / str(wrong), config, bad))


def test_matrices_without_blocks_take_no_memory(tmp_path: Path) -> None:
    """They are a few bytes a row: half a megabyte could ask for gigabytes."""
    raw = tiny.bert_config(hidden_size=4096, intermediate_size=1 << 14, num_hidden_layers=1)
    config = parse_config(raw, where="config.json")
    tensors: dict[str, np.ndarray] = {}
    for name, shape in expected_shapes(config, FAMILIES[config.family], has_span=True, classes=0):
        if len(shape) == 1:
            tensors[name] = np.zeros(shape, np.float32)
            continue
        parts = np.zeros(shape[0] + 1, np.uint32), np.zeros(0, np.uint16), np.zeros((0, 4), np.int8)
        tensors |= dict(zip((name + e for e in ENDINGS), parts, strict=True))
        tensors[name + SCALE_SUFFIX] = np.ones(shape[0], np.float32)
    folder = tiny.write_model(tmp_path / "m", raw, tensors)
    with pytest.raises(ModelError, match=r"refused: matrices of \d+ values, stored as blocks in \d+ bytes"):
        read_checkpoint(folder)


@pytest.mark.parametrize(("mark", "put"), [(b"", b"s"), (b"(", b"u")])
def test_names_nested_too_deep_to_be_hashed(tmp_path: Path, mark: bytes, put: bytes) -> None:
    """Python's own hash of a million tuples in one another overflows the stack, and ends the process."""
    key = b")" + b"\x85" * 1_000_000
    path = tmp_path / "w.bin"
    write_zip(path, b"\x80\x02}" + mark + key + b"K\x01" + put + b".")
    with pytest.raises(ModelError, match="a dictionary with other keys than names"):
        read_torch(path)
    write_zip(path, b"\x80\x02(" + key + b"K\x01d.")
    with pytest.raises(ModelError, match="not a whole torch checkpoint"):
        read_torch(path)


def test_saved_without_checksums(tmp_path: Path) -> None:
    """torch can leave them out; where there are some, all are checked."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(3.0)}, tmp_path / "without.bin")
    finally:
        torch.serialization.set_crc32_options(before)
    assert read_torch(tmp_path / "without.bin")["w"].tolist() == [0, 1, 2]
    torch.save({"w": torch.arange(3.0)}, tmp_path / "with.bin")
    whole = (tmp_path / "with.bin").read_bytes()
    one = np.float32(1).tobytes()
    (tmp_path / "with.bin").write_bytes(whole.replace(one, np.float32(7).tobytes(), 1))
    with pytest.raises(ModelError, match="Bad CRC-32"):
        read_torch(tmp_path / "with.bin")


def test_the_identity_is_of_what_was_read(tmp_path: Path) -> None:
    """Not of what lies there when somebody asks: it is what packed models are kept by."""
    config = tiny.bert_config()
    folder = tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config))
    first = read_checkpoint(folder)
    late = read_checkpoint(folder)
    known = first.sha256
    tiny.write_model(folder, config, tiny.bert_tensors(config, seed=5))
    assert first.sha256 == known
    with pytest.raises(ModelError, match="has changed since it was loaded; load it again"):
        _ = late.sha256
    assert read_checkpoint(folder).sha256 != known


@pytest.mark.parametrize("flat", [False, True])
def test_truncated_bin(tmp_path: Path, flat: bool) -> None:
    path = tmp_path / "w.bin"
    torch_save(path, {"w": np.arange(1000.0)}, _use_new_zipfile_serialization=not flat)
    whole = path.read_bytes()
    for keep in (0, 1, 10, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:keep])
        with pytest.raises(ModelError, match=r"not a whole torch checkpoint|refused"):
            read_torch(path)


def test_saved_with_other_objects_around(tmp_path: Path) -> None:
    """Parameters, shared storages, transposed and empty tensors, and a "state_dict" wrapper are all ordinary."""
    base = torch.arange(12.0)
    state = {
        "parameter": torch.nn.Parameter(torch.ones(2, 3)),
        "first": base[:6].view(2, 3),
        "second": base[6:].view(2, 3).t(),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(7),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
    }
    path = tmp_path / "w.bin"
    for flat in (False, True):
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=not flat)
        read = read_torch(path)
        for name, tensor in state.items():
            np.testing.assert_array_equal(read[name], tensor.detach().float().numpy())


@pytest.fixture(scope="module")
def whole_bins(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    path = tmp_path_factory.mktemp("bins") / "w.bin"
    contents = []
    for flat in (False, True):
        torch_save(path, {"a": np.arange(6.0), "b": np.ones((2, 2))}, _use_new_zipfile_serialization=not flat)
        contents.append(path.read_bytes())
    return contents


@given(data=st.data())
def test_mutated_bins_never_escape(whole_bins: list[bytes], data: st.DataObject) -> None:
    """Whatever bytes are changed, the reader returns arrays or raises ModelError."""
    content = bytearray(data.draw(st.sampled_from(whole_bins)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.bin"
        path.write_bytes(content)
        try:
            read = read_torch(path)
        except ModelError:
            return
    assert all(isinstance(t, np.ndarray) for t in read.values())


@pytest.mark.parametrize("depth", [5, 200])
def test_what_is_quoted_of_a_pickle_is_short(depth: int, tmp_path: Path) -> None:
    """Tuples of one and the same tuple, whose whole text has twice the length with each: a file of a few bytes."""
    path = tmp_path / "pytorch_model.bin"
    write_zip(path, b"\x80\x02K\x01" + b"2\x86" * depth + b"Q.")
    with pytest.raises(ModelError) as e:
        read_torch(path)
    assert len(str(e.value)) < 500


def test_a_tokenizer_of_endless_words_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder, folder)
    described = json.loads(read_tokenizer(folder, vocabulary=len(tiny.VOCABULARY))._backend.to_str())
    described["model"]["max_input_chars_per_word"] = 10**9
    (folder / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(ModelError, match="max_input_chars_per_word is 1000000000; expected at most 1000"):
        read_tokenizer(folder, vocabulary=len(tiny.VOCABULARY))


def test_what_is_here_has_no_revisions(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match="is a folder here, and has no revision v1; leave it out"):
        load(tiny_folder, revision="v1")
    with pytest.raises(ModelError, match="default is the bundled model, and has no revision v1"):
        load("default", revision="v1")
