"""Evaluation on labelled data: answer every question, or classify every text, keep everything, score.

The folder it writes, of questions:

    run.json              what was run: model and data by hash, settings, versions, machine
    answers.jsonl         one line per question, as they are answered; an interrupted run goes on from here
    predictions.json      id -> answer, "" for none: the official form
    no_answer.json        id -> probability that there is no answer
    nbest.json            id -> best answers with place and probability
    per_question.json     exact match and F1 of each question, for `thinbert compare`
    metrics.json          the scores, with 95 % intervals of exact match and F1 (bootstrap over questions)

Of texts: run.json, predictions.json (the class of each), per_question.json (whether it is right), and metrics.json with
an interval of the accuracy.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from thinbert import __version__
from thinbert._core import cpu_features
from thinbert.api import Model
from thinbert.errors import InputError
from thinbert.files import lock, write_atomic
from thinbert.runtime.engine import system
from thinbert.tasks import bootstrap, classify, glue, metrics
from thinbert.tasks.calibration import auroc
from thinbert.tasks.qa import Reading
from thinbert.tasks.squad import Dataset, Question, read_json_object

Progress = Callable[[int, int], None]  # (questions done, of)
_LOCK = ".lock"  # held by the process that works in a run's folder
THRESHOLD = 0.5  # no-answer probability above which an answer is withheld, for models without one of their own


def threshold_of(model: Model) -> float:
    own = model.config.no_answer_threshold
    return THRESHOLD if own is None else own


@dataclass(frozen=True)
class Settings:
    """What shapes the answers, and so must be the same when a run is resumed. Named as in Model.read."""

    max_answer_tokens: int
    max_length: int
    stride: int
    n_best: int
    precision: str  # of the arithmetic


def evaluate(
    model: Model,
    data: Dataset,
    out: Path,
    settings: Settings,
    *,
    threshold: float = THRESHOLD,
    limit: int | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Answers the data set into the folder `out` (see the head of this file) and returns the metrics.

    Args:
        threshold: no-answer probability above which the prediction is "", for data of the SQuAD 2.0 kind.
        limit: only the first so many questions; more may be asked for in a later call.

    Scores carry the names of the SQuAD 2.0 script for both kinds of data: `exact`, `f1`, `total`, …; `best_*`
    thresholds are searched over the answers before any was withheld.

    Raises:
        InputError: `out` holds a run with another model, data set or settings, is damaged, in use or cannot be
            written, or the data repeats an id.
    """
    try:
        return _evaluate(model, data, out, settings, threshold, limit, progress)
    except OSError as e:
        raise InputError(f"{out}: cannot be written: {e.strerror or e}; what was answered so far is kept") from e


def _evaluate(
    model: Model, data: Dataset, out: Path, settings: Settings, threshold: float, limit: int | None, progress: Progress
) -> dict[str, Any]:
    questions = data.questions[:limit]
    total = len(questions)
    ids = [q.id for q in questions]
    if len(set(ids)) < total:
        twice = next(i for i in ids if ids.count(i) > 1)
        raise InputError(f"question id {twice!r} occurs more than once; predictions are kept by id, so ids must differ")

    what = {"thinbert": __version__, "model": model.sha256, "data": data.sha256, "settings": vars(settings)}
    log = out / "answers.jsonl"
    with open_run(out, what, model.name), log.open("ab") as file:
        answered = _resume(log)[:total]
        if ids[: len(answered)] != [record["id"] for record in answered]:
            raise InputError(f"{log}: does not hold the first questions of this data set; delete {out} to start over")
        already = len(answered)
        started = time.perf_counter()
        _answer(model, questions, answered, file, settings, progress)
        file.flush()
        seconds = time.perf_counter() - started
        raw = {r["id"]: r["answers"][0]["text"] if r["answers"] else "" for r in answered}
        no_answer = {r["id"]: r["no_answer"] for r in answered}
        scores, predictions = score(data, raw, no_answer, threshold=threshold)
        each = metrics.per_question(data.golds[:total], predictions, may_be_unanswerable=data.may_be_unanswerable)
        for place, name in enumerate(("exact", "f1")):
            scores[f"{name}_interval"] = bootstrap.interval([one[place] for one in each.values()])
        scores |= {"answered_now": total - already, "seconds": seconds}
        scores["questions_per_second"] = (total - already) / seconds if total > already else None

        _write_json(out / "predictions.json", predictions)
        _write_json(out / "no_answer.json", no_answer)
        _write_json(out / "nbest.json", {r["id"]: r["answers"] for r in answered})
        bootstrap.write_per_question(out, ("exact", "f1"), each)
        _write_json(out / "metrics.json", scores)
    return scores


def evaluate_classes(
    model: Model,
    data: glue.Classified,
    out: Path,
    *,
    precision: str,
    limit: int | None = None,
    max_length: int | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Classifies every text of a data set into `out`, all anew where it was interrupted, and returns the scores.

    Args:
        precision: of the model's arithmetic.
        limit: only so many texts, the first.
        max_length: tokens of a text; 128.
    Raises:
        InputError: `out` holds another run or cannot be written, or the model has another number of classes.
    """
    what: dict[str, Any] = {"thinbert": __version__, "model": model.sha256, "data": data.sha256, "task": data.task.name}
    what |= {"precision": precision, "limit": limit, "max_length": max_length}
    with open_run(out, what, model.name):
        found, predictions = classify.evaluate(model, data, limit=limit, max_length=max_length, progress=progress)
        right = [100.0 * (e.label == p) for e, p in zip(data.examples, predictions, strict=False)]
        scores = {**found, "accuracy_interval": bootstrap.interval(right)}
        try:
            _write_json(out / "predictions.json", [data.task.labels[p] for p in predictions])
            bootstrap.write_per_question(out, ("accuracy",), {str(n): [value] for n, value in enumerate(right)})
            _write_json(out / "metrics.json", scores)
        except OSError as e:
            raise InputError(f"{out}: cannot be written: {e.strerror or e}") from e
    return scores


def score(
    data: Dataset, raw: Mapping[str, str], no_answer: Mapping[str, float], *, threshold: float = THRESHOLD
) -> tuple[dict[str, Any], dict[str, str]]:
    """Scores of the answers to the first questions of a data set, and the predictions that are scored.

    Args:
        raw: id -> best answer, whatever the probability that there is none.
        no_answer: id -> that probability; where it is above the threshold, the prediction is "" (SQuAD 2.0 only).
    """
    golds = data.golds[: len(raw)]
    if not data.may_be_unanswerable:
        official = metrics.score_v1(golds, raw)
        return {"exact": official["exact_match"], "f1": official["f1"], "total": len(raw)}, dict(raw)
    predictions = {q: "" if no_answer[q] > threshold else text for q, text in raw.items()}
    scores: dict[str, Any] = metrics.score_v2(golds, predictions, no_answer, sweep=raw)
    scores["threshold"] = threshold
    if {"HasAns_total", "NoAns_total"} <= scores.keys():
        scores["no_answer_auroc"] = auroc([no_answer[g.id] for g in golds], [not g.answers for g in golds])
    return scores, predictions


def _answer(
    model: Model,
    questions: Sequence[Question],
    answered: list[dict[str, Any]],
    log: IO[bytes],
    settings: Settings,
    progress: Progress,
) -> None:
    """Answers the questions that `answered` lacks, appending each to it and to the log."""
    already, total = len(answered), len(questions)
    progress(already, total)
    readings = model.read_many(((q.question, [q.context]) for q in questions[already:]), **_reading(settings))
    for number, (question, reading) in enumerate(zip(questions[already:], readings, strict=True), already + 1):
        record = _record(question.id, reading)
        log.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
        answered.append(record)
        if number % 64 == 0:
            log.flush()
        progress(number, total)


def _reading(settings: Settings) -> dict[str, Any]:
    """The settings that Model.read takes; the precision is the model's."""
    return {name: value for name, value in vars(settings).items() if name != "precision"}


def _record(question: str, reading: Reading) -> dict[str, Any]:
    answers = [{"text": a.text, "start": a.start, "end": a.end, "probability": a.score} for a in reading.answers]
    return {"id": question, "no_answer": reading.no_answer, "answers": answers}


@contextmanager
def open_run(out: Path, what: Mapping[str, Any], name: str) -> Iterator[None]:
    """Makes or re-enters the folder of a run of the model of this name, for this process alone. `what` it was must be
    the same.

    Raises:
        InputError: it holds another run, or something else, or another process writes there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / "run.json").exists() and any(
            f.name != _LOCK and not f.name.endswith(".tmp") for f in out.iterdir()
        ):
            raise InputError(f"{out}: is not empty and holds no evaluation; give another --out")
        file = (out / _LOCK).open("ab")
    except OSError as e:
        raise InputError(f"{out}: cannot be written: {e.strerror}") from e
    with file:
        lock(file, out)
        _enter(out, what, name)
        yield


def _enter(out: Path, what: Mapping[str, Any], name: str) -> None:
    manifest = out / "run.json"
    if manifest.exists():
        before = read_json_object(manifest)
        changed = [key for key in what if before.get(key) != what[key]]
        if not changed:
            return
        if any(f.stat().st_size for f in out.iterdir() if f != manifest):  # else it failed before it answered anything
            raise InputError(
                f"{out}: holds a run with other {' and '.join(changed)}; give another --out, or delete the folder"
            )
    versions = {"numpy": np.__version__, "python": platform.python_version()}
    machine = {"cpu_features": cpu_features(), "platform": system()}
    _write_json(manifest, {"name": name, **what, "versions": versions, "machine": machine})


def _resume(log: Path) -> list[dict[str, Any]]:
    """Records of an interrupted run, after cutting off a torn last line."""
    content = log.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(log, whole)
    records = []
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            record = json.loads(line)
            _ = record["id"], record["no_answer"] + 0.0, [a["text"] + "" for a in record["answers"]]
        except (ValueError, KeyError, TypeError) as e:
            raise InputError(f"{log}: damaged at line {number} ({e}); delete {log.parent} to start over") from e
        records.append(record)
    return records


def _write_json(path: Path, value: object) -> None:
    write_atomic(path, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())
