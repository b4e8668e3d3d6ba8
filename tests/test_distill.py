"""What a student is asked to learn, against the formulas in a few lines of NumPy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import tiny
from thinbert.compress import distill
from thinbert.compress.data import batch, collect
from thinbert.compress.encoder import Encoder, from_checkpoint
from thinbert.compress.objectives import ClassLoss, SpanLoss
from thinbert.compress.recipe import Distillation
from thinbert.errors import InputError
from thinbert.model.checkpoint import read_checkpoint

random = np.random.RandomState(0)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def divergence(student: np.ndarray, teacher: np.ndarray, T: float) -> np.ndarray:
    p, q = softmax(teacher / T), softmax(student / T)
    return T**2 * (p * (np.log(p) - np.log(q))).sum(-1)


def test_soft_logits() -> None:
    student, teacher = random.randn(5, 7), random.randn(5, 7)
    for T in (1.0, 2.0, 5.5):
        found = distill.soft_logits(torch.tensor(student), torch.tensor(teacher), T)
        np.testing.assert_allclose(found.numpy(), divergence(student, teacher, T), rtol=1e-5)
    mask = np.arange(7) < np.array([7, 3, 5, 1, 2])[:, None]
    found = distill.soft_logits(torch.tensor(student), torch.tensor(teacher), 2.0, torch.tensor(mask))
    wanted = [divergence(s[m], t[m], 2.0) for s, t, m in zip(student, teacher, mask, strict=True)]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-6)


def test_soft_logits_pull_the_student_to_the_teacher() -> None:
    """The gradient of T^2 KL by the student's logits is T (q - p), the same size whatever T is."""
    student, teacher = torch.randn(3, 6, requires_grad=True), torch.randn(3, 6, requires_grad=True)
    distill.soft_logits(student, teacher.detach(), 4.0).sum().backward()
    q, p = (x.detach().div(4.0).softmax(-1) for x in (student, teacher))
    torch.testing.assert_close(student.grad, 4.0 * (q - p))


def test_hidden_states_and_attention_scores() -> None:
    lengths = np.array([5, 2])
    mask = torch.tensor(np.arange(5) < lengths[:, None])
    ours, theirs = ([torch.tensor(random.randn(2, 5, 4)) for _ in range(3)] for _ in range(2))
    found = distill.hidden_states(ours, theirs, mask)
    for b, n in enumerate(lengths):
        squares = [((o[b, :n] - t[b, :n]) ** 2).mean() for o, t in zip(ours, theirs, strict=True)]
        assert found[b].item() == pytest.approx(float(sum(squares)), rel=1e-5)
    found = distill.last_states(ours[-1], theirs[-1], mask)
    for b, n in enumerate(lengths):
        one, other = ours[-1][b, :n], theirs[-1][b, :n]
        cosine = (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))
        assert found[b].item() == pytest.approx(float(1 - cosine.mean()), rel=1e-5)
    ours, theirs = ([torch.tensor(random.randn(2, 3, 5, 5)) for _ in range(2)] for _ in range(2))
    found = distill.attention_scores(ours, theirs, mask)
    for b, n in enumerate(lengths):
        squares = [((o[b, :, :n, :n] - t[b, :, :n, :n]) ** 2).mean() for o, t in zip(ours, theirs, strict=True)]
        assert found[b].item() == pytest.approx(float(sum(squares)), rel=1e-5)
    with pytest.raises(InputError, match="a student of 3 heads cannot follow 2"):
        distill.attention_scores(ours, [t[:, :2] for t in theirs], mask)


def test_layers_that_stand_for_ours() -> None:
    assert distill.layer_map(6, 12) == [0, 2, 4, 6, 8, 10, 12]
    assert distill.layer_map(3, 3) == [0, 1, 2, 3]
    with pytest.raises(InputError, match="a teacher of 12 layers cannot be spread over 5"):
        distill.layer_map(5, 12)


def model_with(tmp_path: Path, heads: dict[str, int]) -> Encoder:
    config = tiny.bert_config()
    torch.manual_seed(0)
    return from_checkpoint(read_checkpoint(tiny.write_model(tmp_path, config, tiny.bert_tensors(config))), heads)[0]


def test_span_loss(tmp_path: Path) -> None:
    lengths = [9, 6, 12]
    labels = [{"start": 2, "end": 4}, {"start": 0, "end": 0}, {"start": 7, "end": 11}]
    features = collect(
        (
            (random.randint(5, 40, n).astype(np.int32), np.zeros(n, np.int32), label)
            for n, label in zip(lengths, labels, strict=True)
        )
    )
    said = [random.randn(n, 2).astype(np.float16) for n in lengths]
    model = model_with(tmp_path / "m", {"span": 0}).eval()
    objective = SpanLoss(model, Distillation(hard=0.3, logits=0.7, temperature=2), lambda n: [said[i] for i in n])
    given = batch(features, np.arange(3))
    with torch.no_grad():
        logits = model.span_logits(model(given.ids, given.types, given.lengths)).double().numpy()
        found = objective(given).item()
    wanted = 0.0
    for b, n in enumerate(lengths):
        for which, end in enumerate(("start", "end")):
            ours, theirs = logits[b, :n, which], said[b][:, which].astype(float)
            wanted -= 0.3 / 2 * np.log(softmax(ours))[labels[b][end]]
            wanted += 0.7 / 2 * divergence(ours, theirs, 2.0)
    assert found == pytest.approx(wanted, rel=1e-4)


def test_class_loss(tmp_path: Path) -> None:
    features = collect((np.arange(5, 5 + n, dtype=np.int32), np.zeros(n, np.int32), {"class": n % 3}) for n in (4, 8))
    said = random.randn(2, 3).astype(np.float16)
    model = model_with(tmp_path / "m", {"classify": 3}).eval()
    objective = ClassLoss(model, Distillation(hard=0.4, logits=0.6, temperature=3), lambda n: [said[i] for i in n])
    given = batch(features, np.arange(2))
    with torch.no_grad():
        logits = model.class_logits(model(given.ids, given.types, given.lengths))
        found = objective(given).item()
    hard = F.cross_entropy(logits, given.labels["class"], reduction="sum").item()
    soft = divergence(logits.double().numpy(), said.astype(float), 3.0).sum()
    assert found == pytest.approx(0.4 * hard + 0.6 * soft, rel=1e-4)
