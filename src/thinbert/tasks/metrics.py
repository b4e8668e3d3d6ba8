"""SQuAD scores, digit for digit those of the official scripts `evaluate-v1.1.py` and `evaluate-v2.0.py`.

The two scripts differ in small ways that are kept on purpose: how an answer that normalises to nothing scores, what a
missing id costs, and how duplicate ids count. Scores are percentages; sums run in the scripts' order.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from thinbert.errors import InputError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_LISTED = 5


@dataclass(frozen=True)
class Gold:
    """One question's id and accepted answers; none when it has no answer (SQuAD 2.0)."""

    id: str
    answers: tuple[str, ...]


def normalize(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces: the form in which answers are compared."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, gold: str) -> bool:
    return normalize(prediction) == normalize(gold)


def _overlap_f1(prediction: list[str], gold: list[str]) -> float:
    common = sum((Counter(prediction) & Counter(gold)).values())
    if common == 0:
        return 0.0
    precision = common / len(prediction)
    recall = common / len(gold)
    return (2 * precision * recall) / (precision + recall)


def f1_v1(prediction: str, gold: str) -> float:
    """Bag-of-words F1; 0 without overlap, even when both normalise to nothing."""
    return _overlap_f1(normalize(prediction).split(), normalize(gold).split())


def f1_v2(prediction: str, gold: str) -> float:
    """Bag-of-words F1; when either side normalises to nothing, 1 if both do, else 0."""
    p, g = normalize(prediction).split(), normalize(gold).split()
    return _overlap_f1(p, g) if p and g else float(p == g)


def score_v1(golds: Sequence[Gold], predictions: Mapping[str, str]) -> dict[str, float]:
    """`{"exact_match", "f1"}` of SQuAD 1.1. A question without a prediction scores 0; duplicate ids count each time."""
    exact = f1 = 0.0
    for gold in golds:
        prediction = predictions.get(gold.id)
        if prediction is None:
            continue
        if not gold.answers:
            raise InputError(
                f"question {gold.id} has no gold answer; SQuAD 1.1 scores need one, SQuAD 2.0 scores do not"
            )
        exact += max(exact_match(prediction, answer) for answer in gold.answers)
        f1 += max(f1_v1(prediction, answer) for answer in gold.answers)
    _require_questions(golds)
    return {"exact_match": 100.0 * exact / len(golds), "f1": 100.0 * f1 / len(golds)}


def score_v2(
    golds: Sequence[Gold],
    predictions: Mapping[str, str],
    no_answer: Mapping[str, float] | None = None,
    *,
    threshold: float = 1.0,
    sweep: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """The JSON of the SQuAD 2.0 script: `exact`, `f1`, `total`, the HasAns_ and NoAns_ halves, and, when `no_answer`
    gives every question's probability of having no answer, `best_exact`, `best_f1` and their thresholds.

    Args:
        predictions: id -> answer text, "" for no answer.
        threshold: predictions whose no-answer probability is greater count as "".
        sweep: predictions to search the best thresholds with, where they differ from `predictions` (answers that were
            withheld at some threshold must be present for a sweep to mean anything).
    Raises:
        InputError: ids without a prediction or probability. (The official script crashes on them.)
    """
    _require_questions(golds)
    answerable = {g.id: bool(g.answers) for g in golds}
    _require_ids("prediction", predictions, answerable)
    if no_answer is not None:
        _require_ids("no-answer probability", no_answer, answerable)
    probability = no_answer if no_answer is not None else dict.fromkeys(answerable, 0.0)

    exact, f1 = _raw_scores(golds, predictions)
    for scores in (exact, f1):
        scores |= {q: float(not answerable[q]) for q in scores if probability[q] > threshold}

    result: dict[str, float] = _summary("", exact, f1, list(answerable))
    for prefix, wanted in (("HasAns_", True), ("NoAns_", False)):
        ids = [q for q in answerable if answerable[q] is wanted]
        if ids:
            result |= _summary(prefix, exact, f1, ids)
    if no_answer is not None:
        swept = predictions if sweep is None else sweep
        _require_ids("prediction", swept, answerable)
        exact, f1 = _raw_scores(golds, swept)
        order = sorted(no_answer, key=lambda q: no_answer[q])  # stable, in the file's order, as in the script
        for name, scores in (("exact", exact), ("f1", f1)):
            best, at = _best_threshold(scores, swept, no_answer, order, answerable)
            result |= {f"best_{name}": best, f"best_{name}_thresh": at}
    return result


def per_question(
    golds: Sequence[Gold], predictions: Mapping[str, str], *, may_be_unanswerable: bool
) -> dict[str, tuple[float, float]]:
    """Exact match and F1 of each predicted question, in percent, by the rules of SQuAD 2.0 or 1.1: what the totals are
    means of."""
    if may_be_unanswerable:
        exact, f1 = _raw_scores(golds, predictions)
        return {q: (100 * exact[q], 100 * f1[q]) for q in exact}
    return {
        gold.id: (
            100.0 * max(exact_match(predictions[gold.id], a) for a in gold.answers),
            100.0 * max(f1_v1(predictions[gold.id], a) for a in gold.answers),
        )
        for gold in golds
    }


def _raw_scores(golds: Sequence[Gold], predictions: Mapping[str, str]) -> tuple[dict[str, float], dict[str, float]]:
    exact: dict[str, float] = {}
    f1: dict[str, float] = {}
    for gold in golds:
        accepted = [a for a in gold.answers if normalize(a)] or [""]
        exact[gold.id] = float(max(exact_match(predictions[gold.id], a) for a in accepted))
        f1[gold.id] = max(f1_v2(predictions[gold.id], a) for a in accepted)
    return exact, f1


def _summary(prefix: str, exact: Mapping[str, float], f1: Mapping[str, float], ids: Sequence[str]) -> dict[str, float]:
    total = len(ids)
    return {
        f"{prefix}exact": 100.0 * sum(exact[q] for q in ids) / total,
        f"{prefix}f1": 100.0 * sum(f1[q] for q in ids) / total,
        f"{prefix}total": total,
    }


def _best_threshold(
    scores: Mapping[str, float],
    predictions: Mapping[str, str],
    no_answer: Mapping[str, float],
    order: Sequence[str],
    answerable: Mapping[str, bool],
) -> tuple[float, float]:
    """Best score and the no-answer probability up to which to answer: start from refusing everything, then admit
    questions by rising probability."""
    current = best = float(sum(not has for has in answerable.values()))
    threshold = 0.0
    for question in order:
        if question not in scores:
            continue
        if answerable[question]:
            current += scores[question]
        elif predictions[question]:
            current -= 1
        if current > best:
            best, threshold = current, no_answer[question]
    return 100.0 * best / len(scores), threshold


def _require_questions(golds: Sequence[Gold]) -> None:
    if not golds:
        raise InputError("the data set holds no questions; there is nothing to score")


def _require_ids(what: str, given: Mapping[str, object], ids: Mapping[str, bool]) -> None:
    missing = [q for q in ids if q not in given]
    if missing:
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise InputError(f"{len(missing)} of {len(ids)} questions have no {what}: {', '.join(missing[:_LISTED])}{more}")
