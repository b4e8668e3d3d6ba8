"""Training examples as flat arrays, and the order in which batches of about equal lengths take them."""

import hashlib
import io
import json
import os
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thinbert.errors import InputError
from thinbert.files import write_atomic
from thinbert.model.tokenizer import Tokenizer, Tokens
from thinbert.tasks import qa
from thinbert.tasks.classify import encode
from thinbert.tasks.glue import Example
from thinbert.tasks.squad import Question

CHUNK = 4000  # examples sorted by length together: longer chunks pad less, shorter ones mix more


@dataclass(frozen=True)
class Features:
    """Tokenised examples, one after another."""

    ids: NDArray[np.int32]  # [T]
    types: NDArray[np.int8]  # [T]
    ends: NDArray[np.int64]  # [n] where each example ends in ids and types
    labels: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)  # name -> [n]

    def __len__(self) -> int:
        return len(self.ends)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.ends, prepend=0)

    def sha256(self) -> str:
        h = hashlib.sha256()
        for array in (self.ids, self.types, self.ends, *(self.labels[k] for k in sorted(self.labels))):
            h.update(np.ascontiguousarray(array).data)  # which copies nothing of a file that is mapped
        return h.hexdigest()

    def example(self, number: int) -> slice:
        return slice(int(self.ends[number - 1]) if number else 0, int(self.ends[number]))


@dataclass(frozen=True)
class Batch:
    ids: Tensor  # [B, L]
    types: Tensor  # [B, L]
    lengths: Tensor  # [B]
    labels: Mapping[str, Tensor]  # name -> [B]
    numbers: NDArray[np.int64]  # [B] which examples

    @property
    def mask(self) -> Tensor:
        """[B, L], True where there is a token."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]

    def to(self, device: torch.device) -> "Batch":
        labels = {name: label.to(device) for name, label in self.labels.items()}
        return Batch(self.ids.to(device), self.types.to(device), self.lengths.to(device), labels, self.numbers)


Examples = Iterable[tuple[NDArray[np.int32], NDArray[np.int32], Mapping[str, int]]]  # ids, types, labels


def collect(examples: Examples) -> Features:
    """Features of examples, in memory."""
    parts: defaultdict[str, io.BytesIO] = defaultdict(io.BytesIO)
    labels = _write(examples, parts.__getitem__)
    return _features(labels, lambda name, kind: np.frombuffer(parts[name].getbuffer(), kind))


def collect_in(folder: Path, make: Callable[[], Examples]) -> Features:
    """Features of examples in files of a folder, mapped and not loaded; they are made only where they are not there."""
    known = folder / "labels.json"
    if not known.exists():
        shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
        folder.mkdir(parents=True)
        with ExitStack() as stack:
            opened: dict[str, IO[bytes]] = {}

            def column(name: str) -> IO[bytes]:
                if name not in opened:
                    opened[name] = stack.enter_context((folder / name).open("wb"))
                return opened[name]

            labels = _write(make(), column)
            for file in opened.values():  # they are on the disk before it is said that they are whole
                file.flush()
                os.fsync(file.fileno())
        write_atomic(known, json.dumps(labels).encode())
    return _features(json.loads(known.read_text()), lambda name, kind: np.memmap(folder / name, kind, "r"))


def _write(examples: Examples, column: Callable[[str], IO[bytes]]) -> list[str]:
    """Appends examples to columns; returns the names of their labels."""
    tokens = 0
    names: list[str] = []
    for ids, types, labels in examples:
        tokens += len(ids)
        names = names or list(labels)
        column("ids").write(ids.astype(np.int32).tobytes())
        column("types").write(types.astype(np.int8).tobytes())
        column("ends").write(np.int64(tokens).tobytes())
        for name, value in labels.items():
            column(f"label-{name}").write(np.int32(value).tobytes())
    if not tokens:
        raise InputError("no examples to train on")
    return names


def _features(labels: Sequence[str], column: Callable[[str, Any], NDArray[Any]]) -> Features:
    given = {name: column(f"label-{name}", np.int32) for name in labels}
    return Features(column("ids", np.int32), column("types", np.int8), column("ends", np.int64), given)


def batch(features: Features, numbers: NDArray[np.int64]) -> Batch:
    """Some examples, padded to the longest of them with zeros."""
    lengths = features.lengths[numbers]
    ids = np.zeros((len(numbers), int(lengths.max())), np.int64)
    types = np.zeros_like(ids)
    for row, number in enumerate(numbers):
        at = features.example(int(number))
        ids[row, : lengths[row]], types[row, : lengths[row]] = features.ids[at], features.types[at]
    labels = {name: torch.from_numpy(values[numbers].astype(np.int64)) for name, values in features.labels.items()}
    return Batch(torch.from_numpy(ids), torch.from_numpy(types), torch.from_numpy(lengths), labels, numbers)


def order(
    lengths: NDArray[np.int64],
    *,
    seed: int,
    tokens: int | None = None,
    examples: int | None = None,
    passes: float | None = None,
    steps: int | None = None,
) -> list[NDArray[np.int64]]:
    """Batches of example numbers: each of at most `tokens` tokens with its padding, or of `examples` examples; for so
    many passes, or so many steps.

    Examples are shuffled, sorted by length within chunks, cut into batches, and the batches shuffled again: a function
    of the seed alone, so that an interrupted run goes on with the batches it would have had.
    """
    plan: list[NDArray[np.int64]] = []
    # so that only the last batch of a pass has fewer examples
    chunk = CHUNK if examples is None else max(1, CHUNK // examples) * examples
    number = 0
    left = 0.0 if passes is None else passes
    while left > 1e-9 or (steps is not None and len(plan) < steps):
        mixed = random.Random(f"{seed}:{number}")
        numbers = np.arange(len(lengths))  # of all text there is, as a list they would take gigabytes
        mixed.shuffle(numbers)  # type: ignore[arg-type]
        batches = []
        for first in range(0, len(numbers), chunk):
            current: list[int] = []
            for n in sorted(numbers[first : first + chunk].tolist(), key=lambda n: lengths[n]):
                full = tokens is not None and lengths[n] * (len(current) + 1) > tokens
                if current and (full or len(current) == examples):
                    batches.append(np.array(current))
                    current = []
                current.append(n)
            batches.append(np.array(current))
        mixed.shuffle(batches)
        plan += batches if steps is not None else batches[: max(1, round(len(batches) * min(1.0, left)))]
        left -= 1
        number += 1
    return plan[:steps]


def squad_features(
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    *,
    max_length: int = qa.MAX_LENGTH,
    stride: int = qa.STRIDE,
) -> Features:
    """Windows of questions, labelled with the first and last token of the first answer, 0 ([CLS]) where a window does
    not hold it whole, and where there is none.

    Raises:
        InputError: an answer without a place, or whose place does not hold it: training on it would teach nonsense.
    """

    def examples() -> Examples:
        for q in questions:
            context = tokenizer(q.context)
            asked = tokenizer(q.question.strip()).cut(qa.MAX_QUESTION_TOKENS)
            first = last = -1
            if q.answers:
                first, last = _place(q, context)
            asked = qa.fitting(asked, context, max_length=max_length, stride=stride)
            for w in qa.windows(
                asked, context, max_length=max_length, stride=stride, cls=tokenizer.cls, sep=tokenizer.sep
            ):
                inside = w.offset <= first and last < w.offset + w.count and first >= 0
                move = w.first - w.offset
                labels = {"start": first + move, "end": last + move} if inside else {"start": 0, "end": 0}
                yield w.ids, w.types, labels

    return collect(examples())


def _place(q: Question, context: Tokens) -> tuple[int, int]:
    """First and last token of the first answer."""
    start = q.starts[0] if q.starts else None
    if start is None:
        raise InputError(f"question {q.id}: its answer has no answer_start; training needs to know where answers are")
    end = start + len(q.answers[0])
    if q.context[start:end] != q.answers[0]:
        raise InputError(
            f"question {q.id}: the context has {q.context[start:end]!r} at its answer_start, not {q.answers[0]!r}"
        )
    first = int(np.searchsorted(context.ends, start, side="right"))
    last = int(np.searchsorted(context.starts, end, side="left")) - 1
    return first, max(first, last)


def unanswerable(questions: Sequence[Question], *, share: float, seed: int) -> list[Question]:
    """A share of the questions, put to a context of the same article that does not hold any of their answers.

    SQuAD 2.0's training set may not be at hand; pairs made so are easier than its own, which people wrote to look
    answerable. To make them less easy, half are put to that of up to ten contexts that shares most words with the
    question. Deterministic by the seed.
    """
    mixed = random.Random(seed)
    articles: dict[int, list[str]] = {}
    for q in questions:
        contexts = articles.setdefault(q.article, [])
        if not contexts or contexts[-1] != q.context:
            contexts.append(q.context)
    words = {c: set(c.lower().split()) for contexts in articles.values() for c in contexts}
    made = []
    for q in questions:
        if not q.answers or mixed.random() >= share:
            continue
        contexts = articles[q.article]
        drawn = mixed.sample(contexts, min(10, len(contexts)))
        lacking = [c for c in drawn if c != q.context and not any(a.lower() in c.lower() for a in q.answers)]
        if not lacking:
            continue
        asked = set(q.question.lower().split())
        closest = max(lacking, key=lambda c: len(words[c] & asked))
        context = closest if mixed.random() < 0.5 else mixed.choice(lacking)
        made.append(Question(f"{q.id}-unanswerable", q.question, context, (), (), q.article))
    return made


def class_features(examples: Sequence[Example], tokenizer: Tokenizer, *, max_length: int) -> Features:
    """Texts or pairs, labelled with their class."""
    return collect((*encode(tokenizer, e.text, e.pair, max_length=max_length), {"class": e.label}) for e in examples)
