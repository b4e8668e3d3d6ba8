"""Text to pairs of segments, hidden tokens, and what guessing them costs."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import tiny
from thinbert.compress import distill, text
from thinbert.compress.data import Features, batch, collect
from thinbert.compress.encoder import Trace, from_checkpoint
from thinbert.compress.objectives import TorchTeacher
from thinbert.compress.pretrain import PretrainLoss, held_out_loss, pairs
from thinbert.compress.recipe import Distillation
from thinbert.compress.text import Documents, read_documents
from thinbert.errors import InputError
from thinbert.model.checkpoint import Checkpoint, read_checkpoint
from thinbert.model.tokenizer import Tokenizer, read_tokenizer


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    config = tiny.bert_config()
    return read_checkpoint(tiny.write_model(tmp_path / "model", config, tiny.bert_tensors(config)))


@pytest.fixture
def tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    return read_tokenizer(checkpoint.folder, vocabulary=checkpoint.config.vocabulary)


def story(letter: str, sentences: int = 6) -> str:
    """Sentences whose tokens tell which document they are of, and how far in it."""
    return "\n".join(f"{letter.upper()} {letter * (n + 1)}." for n in range(sentences))


@pytest.fixture
def corpus(tmp_path: Path, tokenizer: Tokenizer) -> Documents:
    (tmp_path / "a.txt").write_text("\n\n".join(story(letter) for letter in "abcdefgh") + "\n\n \n\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(("\n" + story("x", 3) + "\n\n\n" + story("y", 2)).encode()))
    return read_documents([tmp_path / "a.txt", tmp_path / "b.txt.gz"], tokenizer, tmp_path / "cache")


def test_documents_are_read_once(
    corpus: Documents, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(corpus) == 10
    assert corpus.files == (8, 10)
    assert [corpus.count(n) for n in range(10)] == [6] * 8 + [3, 2]
    assert corpus.sentence(1, 2) == tokenizer("B bbb.").ids.tolist()
    assert corpus.sentence(9, 1) == tokenizer("Y yy.").ids.tolist()
    paths = [tmp_path / "a.txt", tmp_path / "b.txt.gz"]
    monkeypatch.setattr(text, "_tokenise", lambda *args: pytest.fail("tokenised again"))
    again = read_documents(paths, tokenizer, tmp_path / "cache")
    np.testing.assert_array_equal(again.ids, corpus.ids)
    monkeypatch.undo()
    (tmp_path / "a.txt").write_text(f"{story('z')}\n\n{story('w')}")  # another text is another corpus
    other = read_documents(paths, tokenizer, tmp_path / "cache")
    assert other.files == (2, 4)
    assert other.sha256 != corpus.sha256


def test_what_a_killed_process_left_is_read_anew(corpus: Documents, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (folder,) = (tmp_path / "cache").iterdir()
    (folder / "files.json").unlink()
    whole = np.array(corpus.ids)  # for it lies in the file
    (folder / "ids").write_bytes(b"half")
    again = read_documents([tmp_path / "a.txt", tmp_path / "b.txt.gz"], tokenizer, tmp_path / "cache")
    np.testing.assert_array_equal(again.sentences, corpus.sentences)
    np.testing.assert_array_equal(again.ids, whole)


def test_articles_of_squad_are_documents(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def article(*contexts: str) -> dict[str, object]:
        qas = [{"id": "1", "question": "Who?", "answers": []}, {"id": "2", "question": "What?", "answers": []}]
        return {"title": "t", "paragraphs": [{"context": c, "qas": qas} for c in contexts]}

    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [article("The tower. It is in Paris.", "Built."), article("Named.")]}))
    found = read_documents([path], tokenizer, tmp_path / "cache")
    assert [found.count(n) for n in range(len(found))] == [3, 1]
    assert found.sentence(0, 2) == tokenizer("Built.").ids.tolist()


def test_text_that_is_none(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "one.txt").write_text("A line.\nAnother.\n")
    with pytest.raises(InputError, match=r"one.txt: is one document; expected several documents with empty lines"):
        read_documents([tmp_path / "one.txt"], tokenizer, tmp_path / "cache")
    with pytest.raises(InputError, match=r"empty.txt: has no text to train on"):
        read_documents([tmp_path / "empty.txt"], tokenizer, tmp_path / "cache")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"some words. " * 5000)[:40])
    with pytest.raises(InputError, match=r"cut.txt.gz: cannot be read"):
        read_documents([tmp_path / "cut.txt.gz"], tokenizer, tmp_path / "cache")


def test_held_out_documents_are_of_every_file_and_not_trained_on(corpus: Documents) -> None:
    fit, held = corpus.split(held_out=0.25)
    assert sorted(fit + held) == list(range(10))
    assert len([n for n in held if n < 8]) == 2
    assert len([n for n in held if n >= 8]) == 1
    half, same = corpus.split(held_out=0.25, part=0.5)
    assert same == held
    assert set(half) < set(fit)
    assert len([n for n in half if n < 8]) == 3


def test_a_twentieth_is_held_out() -> None:
    one = np.arange(1, 201)  # documents of one sentence of one token
    many = Documents(np.zeros(200, np.int32), one, one, files=(200,), sha256="")
    assert [len(part) for part in many.split()] == [190, 10]


def of_pair(features: Features, number: int) -> tuple[list[int], list[int]]:
    at = features.example(number)
    ids, types = features.ids[at], features.types[at]
    return ids[types == 0][1:-1].tolist(), ids[types == 1][:-1].tolist()


def test_pairs(corpus: Documents, tokenizer: Tokenizer) -> None:
    letters = {tokenizer(c).ids[0]: n for n, c in enumerate("abcdefgh")}
    made = [pairs(corpus, range(8), tokenizer, max_length=24, seed=seed, folder=None) for seed in range(30)]
    follow = other = short = whole_pairs = 0
    for features in made:
        assert features.lengths.max() <= 24
        for n in range(len(features)):
            ids = features.ids[features.example(n)]
            assert ids[0] == tokenizer.cls
            assert ids[-1] == tokenizer.sep
            a, b = of_pair(features, n)
            short += len(ids) < 12
            first, second = ({letters[t] for t in part if t in letters} for part in (a, b))
            assert len(first) == 1
            if not b:
                assert not features.labels["other"][n]
                continue
            if features.labels["other"][n]:
                other += 1
                assert first.isdisjoint(second)
            else:
                follow += 1
                assert first == second
                document = next(iter(first))
                whole = [t for i in range(corpus.count(document)) for t in corpus.sentence(document, i)]
                text = " ".join(map(str, whole))
                if len(a) + len(b) < 21:  # else tokens went from one of their ends
                    whole_pairs += 1
                    assert " ".join(map(str, a + b)) in text  # b is what follows a
    # A segment alone always gets another's text, so somewhat more than half
    assert 0.5 < other / (other + follow) < 0.75
    assert short
    assert whole_pairs
    np.testing.assert_array_equal(
        made[3].ids, pairs(corpus, range(8), tokenizer, max_length=24, seed=3, folder=None).ids
    )


def test_pairs_are_kept(corpus: Documents, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    fresh = pairs(corpus, range(8), tokenizer, max_length=24, seed=0, folder=None)
    kept = pairs(corpus, range(8), tokenizer, max_length=24, seed=0, folder=folder)
    again = pairs(corpus, range(2), tokenizer, max_length=24, seed=9, folder=folder)  # not made, but taken
    for features in (kept, again):
        assert features.sha256() == fresh.sha256()
        assert isinstance(features.ids, np.memmap)
    (folder / "labels.json").unlink()
    (folder / "ids").write_bytes(b"half")
    assert pairs(corpus, range(8), tokenizer, max_length=24, seed=0, folder=folder).sha256() == fresh.sha256()


def sequences(count: int, *lengths: int) -> Features:
    """So many of each length."""
    random = np.random.RandomState(0)

    def one(n: int) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
        length = lengths[n % len(lengths)]
        ids = random.randint(8, 40, length).astype(np.int32)
        ids[0], ids[-1], ids[length // 2] = 2, 3, 3  # [CLS] and [SEP]
        return ids, np.zeros(length, np.int32), {"other": n // len(lengths) % 2}

    return collect(one(n) for n in range(count * len(lengths)))


def test_hiding(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    features = sequences(100, 60, 30)
    model, _ = from_checkpoint(checkpoint, {"mlm": 0, "nsp": 0})
    objective = PretrainLoss(model, tokenizer, features, Distillation(hard=1, logits=0))
    given = batch(features, np.arange(200))
    torch.manual_seed(0)
    ids, chosen = objective.hide(given)
    special = (given.ids == tokenizer.cls) | (given.ids == tokenizer.sep)
    assert not (chosen & special).any()
    assert not (chosen & ~given.mask).any()
    assert torch.equal(ids[~chosen], given.ids[~chosen])
    assert chosen.sum(1).tolist() == [round(57 * 0.15), round(27 * 0.15)] * 100
    masked = (ids[chosen] == tokenizer.mask).float().mean().item()
    same = (ids[chosen] == given.ids[chosen]).float().mean().item()
    assert masked == pytest.approx(0.8, abs=0.03)
    assert same == pytest.approx(0.1, abs=0.03)  # and by chance one of the random ones
    assert not torch.equal(objective.hide(given)[1], chosen)  # anew each time


@pytest.mark.parametrize(
    ("everywhere", "states"), [(False, {}), (True, {}), (False, {"hidden": 1.0, "attention": 0.1})]
)
def test_pretraining_loss(
    checkpoint: Checkpoint, tokenizer: Tokenizer, everywhere: bool, states: dict[str, float]
) -> None:
    features = sequences(3, 14, 26)  # 20 on average
    torch.manual_seed(1)
    student, teacher = (from_checkpoint(checkpoint, {"mlm": 0, "nsp": 0})[0].eval() for _ in range(2))
    with torch.no_grad():
        for p in student.parameters():
            p += 0.02 * torch.randn_like(p)
    terms = Distillation(hard=0.5, logits=0.25, temperature=2, everywhere=everywhere, **states)
    objective = PretrainLoss(
        student, tokenizer, features, terms, TorchTeacher(teacher, attention=terms.attention > 0)
    ).eval()
    given = batch(features, np.arange(6))
    torch.manual_seed(5)
    ids, chosen = objective.hide(given)
    torch.manual_seed(5)
    with torch.no_grad():
        found = objective(given).item()
        traces = Trace(), Trace()
        ours, theirs = (
            m(ids, given.types, given.lengths, trace=trace) for m, trace in zip((student, teacher), traces, strict=True)
        )
        guesses = F.cross_entropy(student.mlm_logits(ours[chosen]), given.ids[chosen], reduction="sum") / (0.15 * 20)
        follows = F.cross_entropy(student.nsp_logits(ours), given.labels["other"], reduction="sum")
        places = given.mask if everywhere else chosen

        def apart(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            p, q = (t / 2).softmax(-1), (s / 2).softmax(-1)
            return 4 * (p * (p.log() - q.log())).sum()

        soft = apart(student.mlm_logits(ours[places]), teacher.mlm_logits(theirs[places])) / (20 if everywhere else 3)
        soft = soft + apart(student.nsp_logits(ours), teacher.nsp_logits(theirs))
        expected = 0.5 * (guesses + follows) + 0.25 * soft
        if states:
            expected += distill.hidden_states(traces[0].hidden, traces[1].hidden, given.mask).sum()
            expected += 0.1 * distill.attention_scores(traces[0].scores, traces[1].scores, given.mask).sum()
    assert found == pytest.approx(expected.item(), rel=1e-4)


def test_held_out_loss_is_masked_alike_each_time(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    features = sequences(15, 40, 20)
    model, _ = from_checkpoint(checkpoint, {"mlm": 0, "nsp": 0})
    objective = PretrainLoss(model, tokenizer, features, Distillation(hard=1, logits=0))
    state = torch.random.get_rng_state()
    first, second = (held_out_loss(model, objective, [batch(features, np.arange(30))]) for _ in range(2))
    assert first == second
    given = batch(features, np.arange(30))
    torch.manual_seed(0)
    ids, chosen = objective.hide(given)
    assert not torch.equal(ids, given.ids)
    with torch.no_grad():
        logits = model.eval().mlm_logits(model(ids, given.types, given.lengths)[chosen])
    model.train()
    torch.random.set_rng_state(state)
    assert first["mlm_loss"] == pytest.approx(F.cross_entropy(logits, given.ids[chosen]).item(), abs=1e-3)
    right = (logits.argmax(-1) == given.ids[chosen]).float().mean()
    assert first["mlm_accuracy"] == pytest.approx(100 * right.item(), abs=0.01)
    assert torch.equal(torch.random.get_rng_state(), state)  # training is not disturbed
    assert model.training
