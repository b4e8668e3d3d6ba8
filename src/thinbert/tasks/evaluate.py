"""Evaluation of a question-answering model on SQuAD-like data: answer every question, keep everything, score.

The folder it writes:

    run.json              what was run: model and data by hash, settings, versions, machine
    answers.jsonl         one line per question, as they are answered; an interrupted run goes on from here
    predictions.json      id -> answer, "" for none: the official form
    no_answer.json        id -> probability that there is no answer
    nbest.json            id -> best answers with place and probability
    metrics.json          the scores
"""

import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thinbert import __version__, _core
from thinbert.api import Model
from thinbert.errors import InputError
from thinbert.model.checkpoint import write_atomic
from thinbert.tasks import metrics
from thinbert.tasks.qa import Reading
from thinbert.tasks.squad import Dataset

Progress = Callable[[int, int], None]  # (questions done, of)


@dataclass(frozen=True)
class Settings:
    """What shapes the answers, and so must be the same when a run is resumed."""

    max_answer_tokens: int
    max_length: int
    stride: int
    n_best: int
    threshold: float  # no-answer probability above which the prediction is ""; SQuAD 2.0 kind only
    limit: int | None  # only the first so many questions


def evaluate(
    model: Model, data: Dataset, out: Path, settings: Settings, *, progress: Progress = lambda done, total: None
) -> dict[str, Any]:
    """Answers the data set into the folder `out` (see the head of this file) and returns the metrics.

    Scores carry the names of the SQuAD 2.0 script for both kinds of data: `exact`, `f1`, `total`, …; `best_*`
    thresholds are searched over the answers before any was withheld.

    Raises:
        InputError: `out` holds a run with another model, data set or settings, or the data repeats an id.
    """
    questions = data.questions[: settings.limit]
    total = len(questions)
    ids = [q.id for q in questions]
    if len(set(ids)) < total:
        twice = next(i for i in ids if ids.count(i) > 1)
        raise InputError(f"question id {twice!r} occurs more than once; predictions are kept by id, so ids must differ")

    what = {"model": model.sha256, "data": data.sha256, "settings": vars(settings)}
    log = _open_run(out, what, model.name)
    answered = _resume(log)
    if ids[: len(answered)] != [record["id"] for record in answered]:
        raise InputError(f"{log}: does not hold the first questions of this data set; delete {out} to start over")

    started = time.perf_counter()
    already = len(answered)
    progress(already, total)
    readings = model.read_many(
        ((q.question, [q.context]) for q in questions[already:]),
        n_best=settings.n_best,
        max_answer_tokens=settings.max_answer_tokens,
        max_length=settings.max_length,
        stride=settings.stride,
    )
    with log.open("a", encoding="utf-8") as file:
        for number, (question, reading) in enumerate(zip(questions[already:], readings, strict=True), already + 1):
            record = _record(question.id, reading)
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            answered.append(record)
            if number % 64 == 0:
                file.flush()
            progress(number, total)
    seconds = time.perf_counter() - started

    raw = {r["id"]: r["answers"][0]["text"] if r["answers"] else "" for r in answered}
    no_answer = {r["id"]: r["no_answer"] for r in answered}
    golds = [q.gold for q in questions]
    scores: dict[str, Any]
    if data.may_be_unanswerable:
        predictions = {q: "" if no_answer[q] > settings.threshold else text for q, text in raw.items()}
        scores = {**metrics.score_v2(golds, predictions, no_answer, sweep=raw), "threshold": settings.threshold}
    else:
        predictions = raw
        official = metrics.score_v1(golds, predictions)
        scores = {"exact": official["exact_match"], "f1": official["f1"], "total": total}
    scores |= {"answered_now": total - already, "seconds": seconds}
    scores["questions_per_second"] = (total - already) / seconds if total > already else None

    _write_json(out / "predictions.json", predictions)
    _write_json(out / "no_answer.json", no_answer)
    _write_json(out / "nbest.json", {r["id"]: r["answers"] for r in answered})
    _write_json(out / "metrics.json", scores)
    return scores


def _record(question: str, reading: Reading) -> dict[str, Any]:
    answers = [{"text": a.text, "start": a.start, "end": a.end, "probability": a.score} for a in reading.answers]
    return {"id": question, "no_answer": reading.no_answer, "answers": answers}


def _open_run(out: Path, what: dict[str, Any], name: str) -> Path:
    """Makes or re-enters the run folder; returns its log of answers."""
    manifest = out / "run.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"{out}: cannot make this folder: {e.strerror}") from e
    if manifest.exists():
        before = json.loads(manifest.read_text(encoding="utf-8"))
        changed = [key for key in what if before.get(key) != what[key]]
        if changed:
            raise InputError(
                f"{out}: holds a run with another {' and '.join(changed)}; give another --out, or delete the folder"
            )
    else:
        if any(out.iterdir()):
            raise InputError(f"{out}: is not empty and holds no evaluation; give another --out")
        versions = {"thinbert": __version__, "numpy": np.__version__, "python": platform.python_version()}
        machine = {"cpu_features": _core.cpu_features(), "platform": platform.platform()}
        _write_json(manifest, {"name": name, **what, "versions": versions, "machine": machine})
    return out / "answers.jsonl"


def _resume(log: Path) -> list[dict[str, Any]]:
    """Records of an interrupted run, after cutting off a torn last line."""
    if not log.exists():
        return []
    content = log.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        write_atomic(log, content[:whole])
    try:
        return [json.loads(line) for line in content[:whole].splitlines()]
    except ValueError as e:
        raise InputError(f"{log}: damaged ({e}); delete {log.parent} to start over") from e


def _write_json(path: Path, value: object) -> None:
    write_atomic(path, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())
