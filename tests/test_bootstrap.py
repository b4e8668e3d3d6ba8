"""Intervals cover as often as they say, pairs are drawn together, and runs of other questions are not compared."""

import json
from pathlib import Path

import numpy as np
import pytest

from conftest import Cli
from thinbert.errors import InputError
from thinbert.tasks.bootstrap import compare, interval, means, write_per_question


def test_intervals_cover_the_truth() -> None:
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        low, high = interval(100.0 * (random.random(300) < 0.8))
        inside += low <= 80 <= high
    assert 0.90 <= inside / 200 <= 0.99
    assert interval([50.0] * 10) == (50.0, 50.0)


def run_of(folder: Path, scores: np.ndarray, data: str = "d") -> Path:
    folder.mkdir()
    write_per_question(folder, ("exact", "f1"), {f"q{n}": (s, s) for n, s in enumerate(scores.tolist())})
    (folder / "run.json").write_text(json.dumps({"data": data}))
    return folder


def test_pairs_are_sharper_than_their_parts(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    one = 100.0 * (random.random(1000) < 0.7)
    better = one.copy()
    better[random.choice(np.flatnonzero(one == 0), 30, replace=False)] = 100.0
    a, b, c = run_of(tmp_path / "a", one), run_of(tmp_path / "b", better), run_of(tmp_path / "c", one)
    exact, f1 = compare(a, b)
    assert (exact.metric, f1.metric) == ("exact", "f1")
    assert exact.difference == pytest.approx(3.0)
    assert 1.5 < exact.low < 3.0 < exact.high < 4.5
    assert exact.p < 0.01
    low, high = interval(one)
    assert exact.high - exact.low < (high - low) / 2
    same = compare(a, c)[0]
    assert (same.difference, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    slightly = one.copy()
    slightly[np.flatnonzero(one == 0)[:4]], slightly[np.flatnonzero(one)[:1]] = 100.0, 0.0
    drawn = means(slightly - one)
    assert 0.01 < (drawn <= 0).mean() < 0.2
    assert compare(a, run_of(tmp_path / "d", slightly))[0].p == pytest.approx(2 * (drawn <= 0).mean())
    back = compare(b, a)[0]
    assert back.difference == -exact.difference
    assert back.p < 0.01


def test_only_the_same_questions_are_compared(cli: Cli, tmp_path: Path) -> None:
    a = run_of(tmp_path / "a", np.array([0.0, 100.0]))
    for name, scores, data in (("b", [0.0, 100.0], "other"), ("c", [0.0], "d")):
        with pytest.raises(InputError, match="only answers to the same questions can be compared"):
            compare(a, run_of(tmp_path / name, np.array(scores), data))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no finished evaluation"):
        compare(a, tmp_path / "empty")
    bad = run_of(tmp_path / "bad", np.array([1.0]))
    (bad / "per_question.json").write_text('{"metrics": ["exact", "f1"], "scores": {"q0": [1]}}')
    with pytest.raises(InputError, match="damaged; run thinbert evaluate"):
        compare(a, bad)
    assert "two folders" in cli("compare", a).err
    d = run_of(tmp_path / "d", np.array([100.0, 100.0]))
    shown = cli("compare", a, d)
    assert shown.code == 0
    assert "+50.00" in shown.out
    assert json.loads(cli("compare", a, d, "--json").out)[str(d)][0]["difference"] == 50.0
