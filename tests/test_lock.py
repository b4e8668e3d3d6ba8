"""The pattern lock on other people's models and trainers."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

import thinbert
import tiny
from thinbert.compress.lock import lock_pattern


def sparse_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 2))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.mul_(torch.rand_like(layer.weight) > 0.7)  # type: ignore[operator, arg-type]
    return model


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 5) -> None:
    for _ in range(count):
        loss = model(torch.randn(4, 8)).square().sum() + sum(p.abs().sum() for p in model.parameters())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_zeros_stay_and_the_rest_moves(optimizer: type[torch.optim.Optimizer]) -> None:
    model = sparse_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    lock = lock_pattern(model)
    assert lock.sparsity() == pytest.approx(
        sum(int((before[n] == 0).sum()) for n in ("0.weight", "2.weight")) / (16 * 8 * 2)
    )
    trainer = optimizer(model.parameters(), lr=1e-2)  # type: ignore[call-arg]
    steps(model, trainer)
    for name, p in model.named_parameters():
        zeros = before[name] == 0
        if name in ("0.weight", "2.weight"):
            assert bool((p[zeros] == 0).all())
        assert bool((p[~zeros] != before[name][~zeros]).any())
    lock.remove()
    steps(model, trainer)
    assert bool((model[0].weight[before["0.weight"] == 0] != 0).any())  # type: ignore[index, operator]


def test_parameters_that_are_replaced_stay_locked() -> None:
    model = sparse_model()
    zeros = model[0].weight == 0
    with lock_pattern(model):
        model.load_state_dict({name: t.clone() for name, t in model.state_dict().items()}, assign=True)
        steps(model, torch.optim.SGD(model.parameters(), lr=0.1))
        assert bool((model[0].weight[zeros] == 0).all())  # type: ignore[index]


def test_what_an_optimizer_did_before_the_lock_does_no_harm() -> None:
    """Momentum gathered while weights were free would move them; the lock zeroes them again after the step."""
    model = sparse_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    steps(model, optimizer)
    with torch.no_grad():
        model[0].weight.mul_(torch.rand_like(model[0].weight) > 0.5)  # type: ignore[operator, arg-type]
    zeros = model[0].weight == 0
    with lock_pattern(model):
        steps(model, optimizer)
        assert bool((model[0].weight[zeros] == 0).all())  # type: ignore[index]


def test_excluded_layers_and_nothing_to_lock() -> None:
    model = sparse_model()
    for exclude in (["^0$"], "^0$"):
        lock = lock_pattern(model, exclude=exclude)
        assert lock.sparsity() == pytest.approx(float((model[2].weight == 0).float().mean()))  # type: ignore[operator]
        lock.remove()
    with pytest.raises(ValueError, match="nothing to lock: 4 weights, 1 not excluded"):
        lock_pattern(nn.Sequential(model, nn.Linear(2, 2)), exclude=["^0"])


def test_weights_of_other_layers(tmp_path: Path) -> None:
    """What is no Linear keeps its zeros too: the projections of torch's attention, kernels of convolutions."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Conv1d(4, 6, 3), nn.Embedding(5, 4)
    )
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim >= 2:
                p.mul_(torch.rand_like(p) > 0.5)
    zeros = {name: p == 0 for name, p in model.named_parameters() if p.ndim >= 2}
    free = {"2.weight", "0.linear1.weight"}
    with lock_pattern(model, exclude=["linear1"]):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            out = model[1](model[0](model[2](torch.tensor([[0, 1, 2, 3]])).repeat(1, 1, 4)))
            out.square().sum().backward()
            optimizer.step()
    for name, p in model.named_parameters():
        if name in zeros:
            assert bool((p[zeros[name]] == 0).all()) == (name not in free), name


def test_an_embedding_is_left_alone_where_a_layer_shares_it() -> None:
    """The decoder of a language model is its table of words, whose row of padding is zero."""
    table, inner = nn.Embedding(20, 8, padding_idx=0), nn.Linear(8, 8)
    decoder = nn.Linear(8, 20, bias=False)
    decoder.weight = table.weight
    with torch.no_grad():
        inner.weight[:6] = 0
    assert lock_pattern(nn.Sequential(table, inner, decoder)).sparsity() == 0.75


def test_weights_that_are_computed_cannot_be_locked() -> None:
    model = sparse_model()
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(ValueError, match=r"0.weight is computed from other parameters; call remove_parametrizations"):
        lock_pattern(model)
    lock_pattern(model, exclude=["^0$"]).remove()


def test_transformers_trainer(tmp_path: Path) -> None:
    """The snippet of the published cards: a sparse model fine-tuned by transformers' own Trainer."""
    pytest.importorskip("accelerate")
    from transformers import BertConfig, BertForQuestionAnswering, Trainer, TrainingArguments

    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    model = BertForQuestionAnswering(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "encoder" in name and p.ndim == 2:
                p.mul_(torch.rand_like(p) > 0.8)
    zeros = {n: p == 0 for n, p in model.named_parameters() if "encoder" in n and p.ndim == 2}
    moved = model.bert.encoder.layer[0].output.dense.weight.detach().clone()
    rows = [
        {
            "input_ids": torch.randint(0, 50, (12,)),
            "start_positions": torch.tensor(i % 12),
            "end_positions": torch.tensor(i % 12),
        }
        for i in range(16)
    ]
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        weight_decay=0.1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    lock = lock_pattern(model, exclude=["qa_outputs", "pooler"])
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    lock.remove()
    for name, p in model.named_parameters():
        if name in zeros:
            assert torch.equal(p == 0, zeros[name]), name
    assert not torch.equal(model.bert.encoder.layer[0].output.dense.weight, moved)


def test_the_example(tmp_path: Path) -> None:
    """A sparse folder, the program of the README, and what comes out of it."""
    pytest.importorskip("transformers")
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    random = np.random.default_rng(0)
    for name, matrix in tensors.items():
        if ".layer." in name and matrix.ndim == 2:
            matrix *= random.uniform(size=matrix.shape) < 0.2
    sparse = tiny.write_model(tmp_path / "sparse", config, tensors)
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n" + "the tower\t1\nwho built it\t0\n" * 40)
    program = Path(__file__).parent.parent / "examples" / "lock_pattern.py"
    given = [sparse, tmp_path / "train.tsv", tmp_path / "out", "--steps", "3"]
    done = subprocess.run([sys.executable, program, *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = load_file(tmp_path / "out" / "model.safetensors")
    for name, matrix in tensors.items():
        if ".layer." in name and matrix.ndim == 2:
            np.testing.assert_array_equal(after[name] == 0, matrix == 0, err_msg=name)
            assert not np.array_equal(after[name], matrix), name
    labels = ("negative", "positive")
    assert thinbert.pipeline("text-classification", model=str(tmp_path / "out"))("the tower")[0]["label"] in labels
