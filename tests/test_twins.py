"""The reference forward pass against transformers, layer by layer: same weights, same hidden states."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import tiny
from thinbert.api import load
from thinbert.model import reference

LENGTHS = [9, 1, 23, 64]

# float32 rounds each product of up to 256 terms to about 256 * 2^-24 = 1.5e-5 of its size, which is a few units here
TOLERANCE = 1e-4


def padded(ids: np.ndarray, types: np.ndarray, lengths: list[int]) -> dict[str, torch.Tensor]:
    """Ragged sequences as transformers wants them."""
    shape = (len(lengths), max(lengths))
    batch = {k: np.zeros(shape, np.int64) for k in ("input_ids", "token_type_ids", "attention_mask")}
    start = 0
    for row, n in enumerate(lengths):
        batch["input_ids"][row, :n] = ids[start : start + n]
        batch["token_type_ids"][row, :n] = types[start : start + n]
        batch["attention_mask"][row, :n] = 1
        start += n
    return {k: torch.from_numpy(v) for k, v in batch.items()}


def unpad(x: torch.Tensor, lengths: list[int]) -> np.ndarray:
    return np.concatenate([x[row, :n].numpy() for row, n in enumerate(lengths)])


class NoNorm(torch.nn.Module):
    def __init__(self, norm: torch.nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight + self.bias


def replace_norms(module: torch.nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, torch.nn.LayerNorm):
            setattr(module, name, NoNorm(child))
        else:
            replace_norms(child)


def transformers_model(kind: str, config: dict[str, Any], tensors: tiny.Tensors) -> torch.nn.Module:
    model = getattr(transformers, kind)(getattr(transformers, kind.split("For")[0] + "Config")(**config))
    missing, unexpected = model.load_state_dict({n: torch.from_numpy(t) for n, t in tensors.items()}, strict=False)
    assert not unexpected
    assert not [m for m in missing if "position_ids" not in m]
    if config.get("layer_norm_type") == "no_norm":
        replace_norms(model)
    return model.eval()


BERTS = [
    pytest.param({}, id="gelu"),
    pytest.param({"hidden_act": "gelu_new"}, id="gelu_new"),
    pytest.param({"hidden_act": "relu", "num_hidden_layers": 6}, id="relu-6-layers"),
    pytest.param({"num_attention_heads": 2}, id="heads-of-64"),
    pytest.param({"layer_norm_eps": 1e-5}, id="eps"),
    # without norms activations grow by a power a layer: one layer is enough to see the rule
    pytest.param({"layer_norm_type": "no_norm", "num_hidden_layers": 1}, id="no_norm"),
]


@pytest.mark.parametrize("changes", BERTS)
def test_bert_layer_by_layer(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = tiny.bert_config(**changes)
    tensors = tiny.bert_tensors(config)
    check_layers(tmp_path, config, tensors, "BertForQuestionAnswering", "bert")


def test_distilbert_layer_by_layer(tmp_path: Path) -> None:
    config = tiny.distilbert_config()
    check_layers(tmp_path, config, tiny.distilbert_tensors(config), "DistilBertForQuestionAnswering", "distilbert")


def check_layers(folder: Path, config: dict[str, Any], tensors: tiny.Tensors, kind: str, family: str) -> None:
    ids, types, lengths = tiny.ragged(LENGTHS, token_types=family == "bert")
    model = load(tiny.write_model(folder / "model", config, tensors), precision="float32")
    trace: list[np.ndarray] = []
    hidden = model.runtime.hidden(ids, types, lengths, trace=trace)
    logits = model.forward(ids, types, lengths)

    twin = transformers_model(kind, config, tensors)
    batch = padded(ids, types, lengths)
    if family == "distilbert":
        del batch["token_type_ids"]
    with torch.inference_mode():
        expected = twin(**batch, output_hidden_states=True)
    assert len(trace) == len(expected.hidden_states) == model.config.layers + 1
    for number, (ours, theirs) in enumerate(zip(trace, expected.hidden_states, strict=True)):
        theirs = unpad(theirs, lengths)
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        assert error < TOLERANCE, f"layer {number}: relative error {error}"
    assert hidden is trace[-1]
    span = np.stack([unpad(expected.start_logits, lengths), unpad(expected.end_logits, lengths)], axis=1)
    assert np.abs(logits - span).max() < TOLERANCE * max(1, np.abs(span).max())


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_classification_head(tmp_path: Path, family: str) -> None:
    labels = {"id2label": {"0": "no", "1": "maybe", "2": "yes"}}
    if family == "bert":
        config = tiny.bert_config(**labels)
        tensors, kind = tiny.bert_tensors(config, head="classify"), "BertForSequenceClassification"
    else:
        config = tiny.distilbert_config(**labels)
        tensors, kind = tiny.distilbert_tensors(config, head="classify"), "DistilBertForSequenceClassification"
    ids, types, lengths = tiny.ragged(LENGTHS, token_types=family == "bert")
    model = load(tiny.write_model(tmp_path / "m", config, tensors), precision="float32")
    assert model.config.labels == ("no", "maybe", "yes")
    batch = padded(ids, types, lengths)
    if family == "distilbert":
        del batch["token_type_ids"]
    with torch.inference_mode():
        expected = transformers_model(kind, config, tensors)(**batch).logits.numpy()
    assert np.abs(model.classify(ids, types, lengths) - expected).max() < TOLERANCE


def test_batching_changes_nothing(tmp_path: Path) -> None:
    config = tiny.bert_config()
    model = load(tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config)), precision="float32")
    ids, types, lengths = tiny.ragged(LENGTHS)
    together = model.forward(ids, types, lengths)
    start = 0
    for n in lengths:
        rows = slice(start, start + n)
        alone = model.forward(ids[rows], types[rows], [n])
        np.testing.assert_allclose(alone, together[rows], atol=1e-5)
        start += n


def test_gelu_error_is_as_stated() -> None:
    x = np.linspace(-12, 12, 100_001, dtype=np.float32)
    expected = torch.nn.functional.gelu(torch.from_numpy(x).double()).numpy()
    y = x.copy()
    reference._gelu(y)
    assert np.abs(y - expected).max() < 4e-7  # torch's own float32 GELU is within 1.2e-6
