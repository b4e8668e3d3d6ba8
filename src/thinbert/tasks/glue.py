"""GLUE classification tasks: reading their files, and their scores."""

import codecs
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from thinbert.errors import InputError, some
from thinbert.tasks.squad import Question, read_packed

_log = logging.getLogger("thinbert")


@dataclass(frozen=True)
class Task:
    """One sentence or a pair of them, and classes by number."""

    name: str
    columns: tuple[tuple[str, ...], ...]  # names that the text, its pair and the label go by in the files' headers
    labels: tuple[str, ...]
    spellings: Mapping[str, int]  # what the label column says -> class
    f1: bool = False  # scored by F1 of the last class too
    headerless: tuple[int, ...] = ()  # columns of text, pair and label in files without a header, if there are such
    torn: bool = False  # GLUE's own file has lines that break off; every reader leaves them out

    @property
    def paired(self) -> bool:
        return len(self.columns) == 3


def _by_name(*labels: str) -> dict[str, int]:
    return {label: number for number, label in enumerate(labels)} | {str(n): n for n in range(len(labels))}


# Classes are numbered as in GLUE's own processors, but MNLI's only where they are named: its numbers are those of
# Hugging Face's export, GLUE's files have none.
_MNLI, _QNLI = ("contradiction", "entailment", "neutral"), ("entailment", "not_entailment")
TASKS: Mapping[str, Task] = {
    t.name: t
    for t in (
        Task("sst2", (("sentence",), ("label",)), ("negative", "positive"), {"0": 0, "1": 1}),
        Task(
            "mnli",
            (("sentence1", "premise"), ("sentence2", "hypothesis"), ("gold_label", "label")),
            _MNLI,
            {label: number for number, label in enumerate(_MNLI)} | {"0": 1, "1": 2, "2": 0},
        ),
        Task(
            "qqp",
            (("question1",), ("question2",), ("is_duplicate", "label")),
            ("not_duplicate", "duplicate"),
            {"0": 0, "1": 1},
            f1=True,
            headerless=(1, 2, 0),  # the balanced split of Wang et al. 2017: label, question, question, number
            torn=True,
        ),
        Task("qnli", (("question",), ("sentence",), ("label",)), _QNLI, _by_name(*_QNLI)),
    )
}


@dataclass(frozen=True)
class Example:
    text: str
    pair: str | None
    label: int


@dataclass(frozen=True)
class Classified:
    """A labelled data set."""

    task: Task
    examples: tuple[Example, ...]
    sha256: str  # of the file's content, unpacked


def read_glue(path: Path, task: Task) -> Classified:
    """Examples of a tab-separated file, plain or packed (.gz, .xz), with a header that names its columns.

    Left out, as everywhere: MNLI examples without a gold label ("-"), and QQP's lines that break off, which are counted
    in the log.

    Raises:
        InputError: naming the file, the line and what is wrong.
    """
    content = read_packed(path).removeprefix(codecs.BOM_UTF8)
    # the published question pairs hold broken characters, which every reader has replaced
    lines = content.decode(errors="replace").split("\n")
    rows = [line.rstrip("\r").split("\t") for line in lines]  # quotation marks are part of the text here
    places = _places(rows[0], task)
    first = 1
    if places is None and task.headerless:
        places, first = list(task.headerless), 0
    if places is None:
        wanted = ", ".join(" or ".join(names) for names in task.columns)
        raise InputError(f"{path}: the first line names {some(rows[0])}; expected {wanted}")
    examples = []
    may_break_off, torn = task.torn and first == 1, 0  # files without a header are another's, and whole
    for number, row in enumerate(rows[first:], first + 1):
        if not any(row):
            continue
        if len(row) <= max(places):
            if may_break_off:
                torn += 1
                continue
            raise InputError(f"{path}: line {number} has {len(row)} columns; expected at least {max(places) + 1}")
        spelt = row[places[-1]].strip()
        if task.name == "mnli" and spelt == "-":
            continue
        if spelt not in task.spellings:
            raise InputError(f"{path}: line {number} has the label {spelt!r}; expected {', '.join(task.spellings)}")
        text, pair = row[places[0]], row[places[1]] if task.paired else None
        examples.append(Example(text, pair, task.spellings[spelt]))
    if not examples:
        raise InputError(f"{path}: holds no examples")
    if torn:
        _log.warning("%s: %d of %d lines break off and are left out", path, torn, torn + len(examples))
    return Classified(task, tuple(examples), hashlib.sha256(content).hexdigest())


def _places(header: Sequence[str], task: Task) -> list[int] | None:
    """Where the task's columns stand, or None where the header does not name them all."""
    named = {name.strip().lower(): place for place, name in enumerate(header)}
    found = [next((named[n] for n in names if n in named), None) for names in task.columns]
    return None if None in found else [place for place in found if place is not None]


def score(task: Task, labels: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """`{"accuracy", "total"}` in percent, and `f1` of the last class where GLUE asks for it."""
    pairs = list(zip(labels, predictions, strict=True))
    scores: dict[str, float] = {"accuracy": 100 * sum(a == b for a, b in pairs) / len(pairs), "total": len(pairs)}
    if task.f1:
        positive = len(task.labels) - 1
        right = sum(a == b == positive for a, b in pairs)
        found, there = (sum(p[i] == positive for p in pairs) for i in (1, 0))
        scores["f1"] = 200 * right / (found + there) if found + there else 0.0
    return scores


_SENTENCE_END = re.compile(r"""(?<=[.!?])["')\]]*\s+(?=["'(\[]*[A-Z0-9])""")


def sentences(text: str) -> list[tuple[int, int]]:
    """Where sentences begin and end: after . ! or ? and white space, where a capital or digit follows."""
    breaks = [0, *(m.end() for m in _SENTENCE_END.finditer(text)), len(text)]
    return [(a, a + len(text[a:b].rstrip())) for a, b in pairwise(breaks) if text[a:b].strip()]


def qnli_from_squad(questions: Sequence[Question]) -> tuple[Example, ...]:
    """QNLI pairs made from SQuAD: the question with a sentence of its paragraph, entailment where that holds an answer.

    GLUE's own training set was made so too, and balanced: here, by the one other sentence that shares most words with
    the question."""
    examples = []
    for q in questions:
        spans = sentences(q.context)
        starts = {s for s in q.starts if s is not None}
        holding = {i for i, (a, b) in enumerate(spans) if any(a <= s < b for s in starts)}
        asked = set(q.question.lower().split())
        others = [i for i in range(len(spans)) if i not in holding]
        for i in sorted(holding):
            examples.append(Example(q.question, q.context[slice(*spans[i])], 0))
        if holding and others:
            closest = max(others, key=lambda i: len(asked & set(q.context[slice(*spans[i])].lower().split())))
            examples.append(Example(q.question, q.context[slice(*spans[closest])], 1))
    return tuple(examples)
