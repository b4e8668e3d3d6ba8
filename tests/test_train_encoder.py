"""The torch encoder: the same as transformers, the NumPy reference and, with rounding, the engine."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from thinbert.api import Reference
from thinbert.compress import qat
from thinbert.compress.encoder import Encoder, Trace, attention, from_checkpoint, tensor_names, to_tensors
from thinbert.compress.export import write_portable
from thinbert.compress.masks import magnitude_masks
from thinbert.model.checkpoint import Checkpoint, read_checkpoint, read_json
from thinbert.model.config import parse_config
from thinbert.model.pack import pack
from thinbert.runtime.engine import Engine

LENGTHS = [9, 1, 23, 64, 17]
CONFIGS = [
    pytest.param(tiny.bert_config(), id="bert"),
    pytest.param(tiny.bert_config(num_attention_heads=2, hidden_act="gelu_new"), id="heads-of-64"),
    pytest.param(tiny.bert_config(hidden_act="relu", layer_norm_type="no_norm", num_hidden_layers=1), id="no-norm"),
    pytest.param(tiny.distilbert_config(), id="distilbert"),
    pytest.param(tiny.bert_config(intermediate_size=1600, num_hidden_layers=1), id="three-pieces"),
]


def checkpoint_of(folder: Path, config: dict[str, Any]) -> Checkpoint:
    distil = config["model_type"] == "distilbert"
    return read_checkpoint(
        tiny.write_model(folder / "m", config, (tiny.distilbert_tensors if distil else tiny.bert_tensors)(config))
    )


def padded(ids: np.ndarray, types: np.ndarray, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    out = torch.zeros(2, len(lengths), max(lengths), dtype=torch.long)
    start = 0
    for row, n in enumerate(lengths):
        out[0, row, :n], out[1, row, :n] = (
            torch.from_numpy(a[start : start + n].astype(np.int64)) for a in (ids, types)
        )
        start += n
    return out[0], out[1], torch.tensor(lengths)


def ragged(hidden: torch.Tensor, lengths: list[int]) -> np.ndarray:
    return np.concatenate([hidden[row, :n].detach().numpy() for row, n in enumerate(lengths)])


@pytest.mark.parametrize("config", CONFIGS)
def test_equals_the_reference_which_equals_transformers(tmp_path: Path, config: dict[str, Any]) -> None:
    checkpoint = checkpoint_of(tmp_path, config)
    ids, types, lengths = tiny.ragged(LENGTHS, token_types=config["model_type"] == "bert")
    model, begun = from_checkpoint(checkpoint, {"span": 0})
    assert not begun
    trace = Trace()
    with torch.no_grad():
        hidden = model(*padded(ids, types, lengths), trace=trace)
        logits = ragged(model.span_logits(hidden), lengths)
    steps: list[np.ndarray] = []
    reference = Reference(checkpoint)
    reference.hidden(ids, types, lengths, trace=steps)
    for ours, theirs in zip(trace.hidden, steps, strict=True):
        np.testing.assert_allclose(ragged(ours, lengths), theirs, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(logits, reference.span_logits(ids, types, lengths), rtol=1e-4, atol=2e-5)
    assert len(trace.scores) == checkpoint.config.layers


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "as in training"])
@pytest.mark.parametrize("config", CONFIGS)
def test_rounding_is_the_engines(tmp_path: Path, config: dict[str, Any], mixed: bool) -> None:
    # one layer: where a value lies between two steps, the other rounding moves everything after it a little
    checkpoint = checkpoint_of(tmp_path, {**config, "num_hidden_layers": 1, "n_layers": 1})
    ids, types, lengths = tiny.ragged(LENGTHS, token_types=config["model_type"] == "bert")
    model, _ = from_checkpoint(checkpoint, {"span": 0})
    model.set_quantised(True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        hidden = model(*padded(ids, types, lengths))
        logits = ragged(model.span_logits(hidden), lengths)
    pack(checkpoint, tmp_path / "packed")
    reference, native = Reference(checkpoint), Engine(read_checkpoint(tmp_path / "packed"))
    for rounded, engine, exact in (
        (ragged(hidden, lengths), native.hidden(ids, types, lengths), reference.hidden(ids, types, lengths)),
        (logits, native.span_logits(ids, types, lengths), reference.span_logits(ids, types, lengths)),
    ):
        apart = np.abs(rounded - engine).max(axis=1) / np.abs(exact).max()
        assert np.mean(apart < 5e-4) > 0.5
        assert np.abs(rounded - engine).mean() < 0.25 * np.abs(exact - engine).mean()


def test_heads_of_a_rounded_model_are_in_float32(tmp_path: Path) -> None:
    """As the engine has them, whatever the precision of the training loop."""
    checkpoint = checkpoint_of(tmp_path, tiny.bert_config())
    model, _ = from_checkpoint(checkpoint, {"span": 0, "classify": 3})
    hidden = torch.randn(2, 8, checkpoint.config.width)
    exact = model.class_logits(hidden)
    model.set_quantised(True)
    spans = model.span_logits(hidden)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model.class_logits(hidden), exact, rtol=0, atol=0)
        torch.testing.assert_close(model.span_logits(hidden), spans, rtol=0, atol=0)


def test_rounding_is_the_packed_models(tmp_path: Path) -> None:
    """Of a model that packing takes a head and neurons from, some of them with constants to leave behind."""
    config = tiny.bert_config(intermediate_size=1600, num_hidden_layers=1)
    tensors, random = tiny.bert_tensors(config), np.random.default_rng(1)
    layer = "bert.encoder.layer.0"
    inner, outer = tensors[f"{layer}.intermediate.dense.weight"], tensors[f"{layer}.output.dense.weight"]
    inner[:400], outer[:, 400:700] = 0, 0  # whole blocks of columns
    outer *= (random.uniform(size=(128, 400)) < 0.2).repeat(4, axis=1)  # 1x4 blocks, for whose sake
    inner[random.choice(np.arange(700, 1600), 60, replace=False)] = 0  # some stay that are dead
    tensors[f"{layer}.intermediate.dense.bias"] += 0.5
    tensors[f"{layer}.attention.self.value.weight"][:32] = 0
    checkpoint = read_checkpoint(tiny.write_model(tmp_path / "m", config, tensors))
    ids, types, lengths = tiny.ragged(LENGTHS)
    plain, model = (from_checkpoint(checkpoint, {"span": 0})[0] for _ in range(2))
    model.set_masks({name: linear.weight != 0 for name, linear in model.prunable().items()})
    model.cut_dead()
    given = padded(ids, types, lengths)
    with torch.no_grad():
        torch.testing.assert_close(model(*given), plain(*given), rtol=1e-4, atol=2e-5)  # still the same function
        for each in (model, plain):
            each.set_quantised(True)
        rounded, uncut = (ragged(each(*given), lengths) for each in (model, plain))
    pack(checkpoint, tmp_path / "packed")
    packed = read_checkpoint(tmp_path / "packed")
    assert (packed.config.heads[0], packed.config.ffn[0]) == (3, 900)
    assert model.layers[0].ffn_out.columns.shape == (900,)  # type: ignore[union-attr]
    engine, exact = Engine(packed).hidden(ids, types, lengths), Reference(checkpoint).hidden(ids, types, lengths)
    assert np.abs(rounded - engine).mean() < 0.05 * np.abs(exact - engine).mean()
    assert np.abs(uncut - engine).mean() > 0.2 * np.abs(exact - engine).mean()
    # and what is trained so is packed alike
    again = read_checkpoint(write_portable(model, {"span": 0}, checkpoint, tmp_path / "again").folder)
    pack(again, tmp_path / "repacked")
    assert read_checkpoint(tmp_path / "repacked").config.ffn == packed.config.ffn
    repacked = Engine(read_checkpoint(tmp_path / "repacked"))
    np.testing.assert_allclose(repacked.hidden(ids, types, lengths), engine, atol=1e-4)


def test_attention_is_torchs() -> None:
    """What a GPU takes from torch is written out for CPUs."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 20, 32)
    mask = (torch.arange(20) < torch.tensor([20, 7])[:, None])[:, None, None, :]
    for given in (None, mask):
        theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, given)
        torch.testing.assert_close(attention(q, k, v, given, 0.0), theirs, rtol=1e-5, atol=1e-6)


def test_dropout_of_rounded_attention() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 64, 32)
    plain, dropped = (qat.attention(q, k, v, None, share) for share in (0.0, 0.5))
    means = torch.stack([qat.attention(q, k, v, None, 0.5) for _ in range(200)]).mean(0)
    assert (plain - dropped).abs().mean() > 5 * (plain - means).abs().mean()


def test_gradients_pass_straight_through_the_rounding(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, tiny.bert_config())
    ids, types, lengths = tiny.ragged([20, 12])
    given = padded(ids, types, lengths)

    def gradients(quantised: bool) -> dict[str, torch.Tensor]:
        model, _ = from_checkpoint(checkpoint, {"span": 0})
        model.set_quantised(quantised)
        mask = torch.arange(20) < given[2][:, None]
        (model.span_logits(model(*given)).square().sum(-1) * mask).sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, rounded = gradients(False), gradients(True)
    assert plain.keys() == rounded.keys()
    for name, gradient in plain.items():
        # keys' biases shift all scores alike: their gradient is rounding noise
        if not name.endswith("key.bias"):
            cosine = torch.cosine_similarity(gradient.flatten(), rounded[name].flatten(), dim=0)
            assert cosine > 0.97, name


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "as in training"])
def test_gradients_of_a_rounded_product(mixed: bool) -> None:
    """Those of the product of what was rounded; what packing cuts has none."""
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((2, 5, 1600), (16, 1600), (16,)))
    columns = torch.arange(1600)[torch.rand(1600) < 0.9]
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        y = qat.linear(x, weight, bias, columns)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    with torch.no_grad():
        rounded, matrix = qat.tokens(x[..., columns]), qat.rows(weight[:, columns])
        torch.testing.assert_close(y, rounded @ matrix.T + bias, rtol=1e-5, atol=1e-4)
        of_x, of_weight = torch.zeros_like(x), torch.zeros_like(weight)
        of_x[..., columns] = gradient @ matrix
        of_weight[:, columns] = torch.einsum("bln,blk->nk", gradient, rounded)
    near = {"rtol": 2e-2, "atol": 0.1} if mixed else {"rtol": 1e-5, "atol": 1e-5}
    for ours, expected in ((x.grad, of_x), (weight.grad, of_weight), (bias.grad, gradient.sum((0, 1)))):
        torch.testing.assert_close(ours, expected, **near)


@pytest.mark.parametrize("config", CONFIGS)
def test_there_and_back(tmp_path: Path, config: dict[str, Any]) -> None:
    """A model written and read again is the same model, with masked weights as zeros."""
    checkpoint = checkpoint_of(tmp_path, config)
    model, _ = from_checkpoint(checkpoint, {"span": 0})
    masks = {name: torch.rand_like(m.weight) > 0.5 for name, m in model.linears().items()}
    model.set_masks(masks)
    folder = tmp_path / "written"
    written = write_portable(model, {"span": 0}, checkpoint, folder, thinbert={"no_answer_threshold": 0.25})
    assert written.config.no_answer_threshold == 0.25
    again, begun = from_checkpoint(written, {"span": 0})
    assert not begun
    ids, types, lengths = tiny.ragged(LENGTHS, token_types=config["model_type"] == "bert")
    given = padded(ids, types, lengths)
    with torch.no_grad():
        np.testing.assert_array_equal(model(*given).numpy(), again(*given).numpy())
    assert bool((again.layers[0].query.weight[~masks["layers.0.query"]] == 0).all())  # type: ignore[union-attr, operator, index]


@pytest.mark.parametrize("head", ["span", "classify", "mlm"])
@pytest.mark.parametrize("config", [tiny.bert_config(), tiny.distilbert_config()], ids=["bert", "distilbert"])
def test_what_is_written_is_the_same_model_in_transformers(config: dict[str, Any], head: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    heads = {"span": {"span": 0}, "classify": {"classify": 3}, "mlm": {"mlm": 0, "nsp": 0}}[head]
    checkpoint = checkpoint_of(tmp_path, config)
    model, _ = from_checkpoint(checkpoint, heads)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1 and "norm" not in name:
                p.normal_(std=0.1)  # biases of heads that begin anew are zero
    labels = {"id2label": {str(n): f"class {n}" for n in range(3)}} if head == "classify" else {}
    written = write_portable(model, heads, checkpoint, tmp_path / "written", **labels)
    kind = getattr(transformers, read_json(written.folder / "config.json")["architectures"][0])
    theirs, loading = kind.from_pretrained(written.folder, output_loading_info=True)
    assert not loading["missing_keys"]
    ids, types, lengths = tiny.ragged([9, 23], token_types=config["model_type"] == "bert")
    given = padded(ids, types, lengths)
    mask = torch.arange(23) < given[2][:, None]
    model.eval()
    named = {"token_type_ids": given[1]} if config["model_type"] == "bert" else {}
    with torch.no_grad():
        out = theirs.eval()(given[0], attention_mask=mask.long(), **named)
        hidden = model(*given)
        if head == "span":
            pairs = [(model.span_logits(hidden)[mask], torch.stack([out.start_logits, out.end_logits], -1)[mask])]
        elif head == "classify":
            pairs = [(model.class_logits(hidden), out.logits)]
        else:
            words = out.prediction_logits if config["model_type"] == "bert" else out.logits
            pairs = [(model.mlm_logits(hidden[mask]), words[mask])]
            if config["model_type"] == "bert":
                pairs.append((model.nsp_logits(hidden), out.seq_relationship_logits))
    for ours, wanted in pairs:
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("config", [tiny.bert_config(), tiny.distilbert_config()], ids=["bert", "distilbert"])
def test_a_model_that_had_classes_answers(config: dict[str, Any], tmp_path: Path) -> None:
    """As many as there were, transformers would give the span head."""
    transformers = pytest.importorskip("transformers")
    labels = {str(n): f"class {n}" for n in range(3)}
    checkpoint = checkpoint_of(tmp_path, config | {"id2label": labels, "problem_type": "single_label_classification"})
    model, _ = from_checkpoint(checkpoint, {"span": 0})
    write_portable(model, {"span": 0}, checkpoint, tmp_path / "written")
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "written")
    assert theirs.qa_outputs.weight.shape[0] == 2


def test_heads_that_are_not_there_begin_anew(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, tiny.bert_config())
    heads = {"classify": 3, "mlm": 0, "nsp": 0}
    model, begun = from_checkpoint(checkpoint, heads)
    assert {"classify_out.weight", "mlm_bias", "nsp.weight", "mlm_transform.weight"} <= set(begun)
    ids, types, lengths = tiny.ragged([7, 5])
    hidden = model(*padded(ids, types, lengths))
    assert model.class_logits(hidden).shape == (2, 3)
    assert model.nsp_logits(hidden).shape == (2, 2)
    assert model.mlm_logits(hidden[:, 1]).shape == (2, checkpoint.config.vocabulary)
    names = to_tensors(model, heads)
    assert names["cls.predictions.bias"].shape == (checkpoint.config.vocabulary,)


def test_padding_changes_nothing(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, tiny.bert_config())
    model, _ = from_checkpoint(checkpoint, {"span": 0})
    ids, types, lengths = tiny.ragged([30, 11])
    both_ids, both_types, both = padded(ids, types, lengths)
    with torch.no_grad():
        together = model(both_ids, both_types, both)[1, :11]
        alone = model(both_ids[1:, :11], both_types[1:, :11])[0]
        both_ids[1, 11:] = 3  # whatever stands there
        other = model(both_ids, both_types, both)[1, :11]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together, other, rtol=0, atol=0)


def test_encoder_module_names_are_complete(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, tiny.bert_config())
    heads = {"span": 0, "classify": 2, "mlm": 0, "nsp": 0}
    model = Encoder(checkpoint.config, heads)
    assert set(tensor_names(checkpoint.config, heads)) == {name for name, _ in model.named_parameters()}


def test_the_pooler_is_pruned_where_it_is_pre_trained(tmp_path: Path) -> None:
    """BERT's pooler is pruned with the layers and stays so for classification; nothing else outside the layers is."""
    for config, pruned in ((tiny.bert_config(), True), (tiny.distilbert_config(), False)):
        for heads in ({"span": 0}, {"classify": 2}, {"mlm": 0, "nsp": 0}):
            model = Encoder(parse_config(config, where="a test"), heads)
            more = model.prunable().keys() - model.linears().keys()
            assert more == ({"classify_hidden"} if pruned and "span" not in heads else set())
    checkpoint = checkpoint_of(tmp_path, tiny.bert_config())
    model, _ = from_checkpoint(checkpoint, {"mlm": 0, "nsp": 0})
    model.set_masks(magnitude_masks({name: m.weight for name, m in model.prunable().items()}, 0.5))
    written = write_portable(model, {"mlm": 0, "nsp": 0}, checkpoint, tmp_path / "sparse")
    again, _ = from_checkpoint(written, {"classify": 2})
    assert again.classify_hidden is not None
    assert float((again.classify_hidden.weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
