"""How sure a score is, and a difference of two: the bootstrap over questions (Efron 1979; Koehn 2004 for pairs)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from thinbert.errors import InputError
from thinbert.files import write_atomic
from thinbert.tasks.squad import read_json_object

PER_QUESTION = "per_question.json"  # in an evaluation's folder
RESAMPLES = 2000
_LEVEL = 0.95
_AT_ONCE = 1 << 22  # numbers drawn at a time

Values = Sequence[float] | NDArray[np.float64]


def means(values: Values, *, seed: int = 0) -> NDArray[np.float64]:
    """[RESAMPLES] sorted means of `values` drawn again with replacement. The seed alone decides who is drawn, so that
    two sets of values of the same questions are drawn in pairs."""
    x = np.asarray(values, np.float64)
    random = np.random.default_rng(seed)
    rows = max(1, _AT_ONCE // max(1, len(x)))
    parts = [
        x[random.integers(len(x), size=(min(rows, RESAMPLES - first), len(x)))].mean(axis=1)
        for first in range(0, RESAMPLES, rows)
    ]
    return np.sort(np.concatenate(parts))


def interval(values: Values) -> tuple[float, float]:
    """The middle 95 % of the means: percentile bootstrap."""
    low, high = np.quantile(means(values), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """How much higher a run scores than another, on the same questions."""

    metric: str
    base: float
    other: float
    low: float  # of the difference, 95 %
    high: float
    p: float  # share of resamples in which the sign of the difference is not the one seen, doubled

    @property
    def difference(self) -> float:
        return self.other - self.base


def compare(base: Path, other: Path) -> list[Difference]:
    """Paired differences of two evaluations, for each metric they share.

    Raises:
        InputError: a folder holds no finished evaluation, or they are of other data or questions.
    """
    (metrics, a), (metrics_b, b) = (_read(folder) for folder in (base, other))
    data = [read_json_object(folder / "run.json").get("data") for folder in (base, other)]
    if data[0] != data[1] or a.keys() != b.keys():
        raise InputError(
            f"{base} and {other} are evaluations of other data, or of another number of questions "
            f"({len(a)} and {len(b)}); only answers to the same questions can be compared"
        )
    found = []
    for name in (m for m in metrics if m in metrics_b):
        x, y = (np.array([scores[q][names.index(name)] for q in a]) for names, scores in ((metrics, a), (metrics_b, b)))
        drawn = means(y - x)
        low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
        against = (drawn <= 0).mean() if y.mean() > x.mean() else (drawn >= 0).mean()
        found.append(
            Difference(name, float(x.mean()), float(y.mean()), float(low), float(high), float(min(1.0, 2 * against)))
        )
    return found


def write_per_question(folder: Path, metrics: Sequence[str], scores: Mapping[str, Sequence[float]]) -> None:
    """Each question's scores, 0 to 100, as `compare` reads them."""
    content = {"metrics": list(metrics), "scores": {q: list(values) for q, values in scores.items()}}
    write_atomic(folder / PER_QUESTION, (json.dumps(content, ensure_ascii=False) + "\n").encode())


def _read(folder: Path) -> tuple[list[str], dict[str, list[float]]]:
    path = folder / PER_QUESTION
    if not path.is_file():
        raise InputError(f"{folder}: holds no finished evaluation ({PER_QUESTION} is missing); run thinbert evaluate")
    content = read_json_object(path)
    try:
        metrics = [str(m) for m in content["metrics"]]
        scores = {str(q): [float(v) for v in values] for q, values in content["scores"].items()}
        whole = bool(scores) and all(len(values) == len(metrics) for values in scores.values())
    except (KeyError, TypeError, ValueError, AttributeError):
        whole = False
    if not whole:
        raise InputError(f"{path}: damaged; run thinbert evaluate into this folder again")
    return metrics, scores
