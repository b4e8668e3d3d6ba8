"""SQuAD scores: equal to the official scripts' to the last digit (recorded by record_squad_scores.py)."""

import json
from pathlib import Path
from typing import Any

import pytest

from thinbert.errors import InputError
from thinbert.tasks.metrics import Gold, exact_match, f1_v1, f1_v2, normalize, score_v1, score_v2

CASES = json.loads((Path(__file__).parent / "golden" / "squad_scores.json").read_text(encoding="utf-8"))


def golds(data: dict[str, Any]) -> list[Gold]:
    qas = [qa for article in data["data"] for paragraph in article["paragraphs"] for qa in paragraph["qas"]]
    return [Gold(qa["id"], tuple(a["text"] for a in qa["answers"])) for qa in qas]


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{c['script']}" for i, c in enumerate(CASES)])
def test_official_scores_to_the_last_digit(case: dict[str, Any]) -> None:
    if case["script"] == "v1":
        scores = score_v1(golds(case["data"]), case["predictions"])
    else:
        threshold = case.get("threshold", 1.0)
        scores = score_v2(golds(case["data"]), case["predictions"], case.get("na_prob"), threshold=threshold)
    assert scores == case["expected"]
    assert list(scores) == list(case["expected"])  # printed in the same order


def test_the_cases_tell_scores_apart() -> None:
    """Guards the recording itself: scores neither all 0 nor all 100, and thresholds that decide something."""
    assert len({json.dumps(c["expected"]) for c in CASES}) == len(CASES) - 1  # an extra id changes nothing in v1.1
    assert any(0 < c["expected"].get("best_exact_thresh", 0) < 1 for c in CASES)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Eiffel Tower!", "eiffel tower"),
        ("a\tan\nthe", ""),
        ("theatre and antler", "theatre and antler"),
        ("don't — stop", "dont — stop"),  # only ASCII punctuation goes
        ("U.S.A.", "usa"),
    ],
)
def test_normalize(text: str, normal: str) -> None:
    assert normalize(text) == normal


def test_where_the_two_scripts_differ() -> None:
    assert exact_match("the", "") is True
    assert (f1_v1("the", "a"), f1_v2("the", "a")) == (0.0, 1.0)
    assert (f1_v1("", "word"), f1_v2("", "word")) == (0.0, 0.0)


def test_missing_ids() -> None:
    data = [Gold(f"q{i}", ("x",)) for i in range(8)]
    assert score_v1(data, {"q0": "x"}) == {"exact_match": 12.5, "f1": 12.5}
    with pytest.raises(InputError, match="7 of 8 questions have no prediction: q1, q2, q3, q4, q5 and 2 more"):
        score_v2(data, {"q0": "x"})
    everything = {g.id: "x" for g in data}
    with pytest.raises(InputError, match="1 of 8 questions have no no-answer probability: q3"):
        score_v2(data, everything, {q: 0.5 for q in everything if q != "q3"})


def test_nothing_to_score() -> None:
    for score in (score_v1, score_v2):
        with pytest.raises(InputError, match="holds no questions"):
            score([], {})
    with pytest.raises(InputError, match="question q has no gold answer"):
        score_v1([Gold("q", ())], {"q": "x"})


def test_sweep_sees_withheld_answers() -> None:
    """A threshold search over predictions that were already withheld could never lower the threshold."""
    data = [Gold("a", ("x",)), Gold("b", ())]
    no_answer = {"a": 0.9, "b": 0.95}
    final, raw = {"a": "", "b": ""}, {"a": "x", "b": "y"}
    assert score_v2(data, final, no_answer)["best_exact"] == 50.0
    swept = score_v2(data, final, no_answer, sweep=raw)
    assert (swept["exact"], swept["best_exact"], swept["best_exact_thresh"]) == (50.0, 100.0, 0.9)
