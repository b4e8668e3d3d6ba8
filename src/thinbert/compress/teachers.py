"""What teachers said, kept in OUT/cache by teacher and data: a second student does not pay for it again."""

import hashlib
import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import thinbert
from thinbert.compress.data import Features, batch, order
from thinbert.compress.distill import layer_map
from thinbert.compress.encoder import Trace, from_checkpoint
from thinbert.compress.objectives import KeptStates, Logits
from thinbert.compress.recipe import SPAN_TASKS, Place
from thinbert.compress.train import one_accelerator
from thinbert.errors import InputError
from thinbert.model.checkpoint import Checkpoint
from thinbert.tasks import glue
from thinbert.tasks.classify import class_order

_ASKED = 8192  # tokens that a teacher reads at a time

Rows = Iterator[tuple[int, NDArray[Any]]]  # how many examples were read by now, and the rows of the last of them


def logits(place: Place, teacher: Checkpoint, features: Features, task: str) -> Logits:
    """What a teacher says to every example: [L, 2] of a window, or [classes], in the task's order.

    Computed by the engine in int8, which is many times faster than torch.
    """
    spans = task in SPAN_TASKS
    width = 2 if spans else len(glue.TASKS[task].labels)
    ends = features.ends if spans else np.arange(1, len(features) + 1)  # of each example's rows
    path = _path(place, f"{teacher.sha256} {features.sha256()}", "f16")

    def ask(first: int) -> Rows:
        return _answers(place, teacher, features, task, first)

    known = _kept(place, path, teacher, ends, (width,), np.float16, ask)
    if spans:
        return lambda numbers: [known.read(features.example(int(n))) for n in numbers]
    return lambda numbers: [known.read(slice(int(n), int(n) + 1))[0] for n in numbers]


def states(place: Place, teacher: Checkpoint, features: Features, layers: int) -> KeptStates:
    """A teacher's hidden states for every token: [N + 1, D] of the embeddings and those of its layers that a student of
    N follows, in bfloat16, which is what training would compute them in."""
    chosen = layer_map(layers, teacher.config.layers)
    path = _path(place, f"{teacher.sha256} {features.sha256()} {layers}", "bf16")
    shape = (layers + 1, teacher.config.width)

    def ask(first: int) -> Rows:
        return _states(teacher, features, chosen, first)

    known = _kept(place, path, teacher, features.ends, shape, np.int16, ask)

    def read(numbers: NDArray[np.int64]) -> list[torch.Tensor]:
        rows = (known.read(features.example(int(n))) for n in numbers)
        return [torch.from_numpy(row).view(torch.bfloat16) for row in rows]

    return KeptStates(read)


class _RowFile:
    """A file of rows, of which an example's are read when it is asked for.

    Not mapped: a page fault brings in what lies around it, up to 8 MB on some machines, for the 0.9 MB of an example's
    states, and drives from memory what the next pass asks for again.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], kind: Any) -> None:
        self._path, self._shape, self._kind = path, shape, np.dtype(kind)
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def read(self, at: slice) -> NDArray[Any]:
        rows = np.empty((at.stop - at.start, *self._shape), self._kind)
        size = self._kind.itemsize * int(np.prod(self._shape))
        found = os.preadv(self._file, [rows.data], at.start * size)
        if found != rows.nbytes:
            raise InputError(f"{self._path}: cut short while it was read: delete it")
        return rows


def _path(place: Place, of: str, kind: str) -> Path:
    return place.out / "cache" / f"{hashlib.sha256(of.encode()).hexdigest()[:24]}.{kind}"


def _kept(
    place: Place,
    path: Path,
    teacher: Checkpoint,
    ends: NDArray[np.int64],
    shape: tuple[int, ...],
    kind: Any,
    ask: Callable[[int], Rows],
) -> _RowFile:
    """The rows of a file. Where it is not there they are asked for; a run that was killed goes on with the
    example it had come to.

    Args:
        ends: where each example's rows end.
        shape, kind: of a row.
        ask: from which example on -> its rows and those after it.
    Raises:
        InputError: the disk has no room for them, or the file is not whole.
    """
    size = np.dtype(kind).itemsize * int(np.prod(shape))
    if not path.exists():
        place.say(f"asking {teacher.name} about {len(ends)} examples (once)")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial, report = path.with_name(path.name + ".partial"), place.report("teacher")
        with partial.open("ab") as file:
            first = int(np.searchsorted(ends, file.tell() // size, side="right"))
            file.truncate(size * int(ends[first - 1]) if first else 0)
            lacking, free = size * int(ends[-1]) - file.tell(), shutil.disk_usage(path.parent).free
            if lacking > free:
                raise InputError(
                    f"{path.parent}: what {teacher.name} says takes {lacking / 1e9:.1f} GB, and {free / 1e9:.1f} GB "
                    "are free; make room, or leave keep_states out"
                )
            for done, rows in ask(first):
                file.write(np.ascontiguousarray(rows, kind).data)
                report({"step": done, "of": len(ends)})
            file.flush()
            os.fsync(file.fileno())  # before it is said to be whole
        partial.replace(path)
    found, expected = path.stat().st_size, size * int(ends[-1])
    if found != expected:
        raise InputError(f"{path}: has {found} bytes; expected {expected}: delete it")
    return _RowFile(path, shape, kind)


def _together(features: Features, first: int, tokens: int) -> Iterator[tuple[int, int]]:
    """Runs of examples, from the first on, of at most so many tokens, or one example."""
    while first < len(features):
        last = first + 1
        while last < len(features) and int(features.lengths[first : last + 1].sum()) <= tokens:
            last += 1
        yield first, last
        first = last


def _answers(place: Place, teacher: Checkpoint, features: Features, task: str, first: int) -> Rows:
    packed = teacher.folder.parent / "packed"
    ours = place.out in teacher.folder.parents and packed.is_dir()  # a stage's model lies beside its packed form
    model = thinbert.load(str(packed if ours else teacher.folder))
    spans = task in SPAN_TASKS
    classes = [] if spans else class_order(teacher.config.labels, glue.TASKS[task])
    for start, end in _together(features, first, _ASKED):
        at = slice(features.example(start).start, features.example(end - 1).stop)
        read = model.forward if spans else model.classify
        rows = read(features.ids[at], features.types[at].astype(np.int32), features.lengths[start:end].tolist())
        yield end, rows if spans else rows[:, np.argsort(classes)]


def _states(teacher: Checkpoint, features: Features, chosen: list[int], first: int) -> Rows:
    device = one_accelerator().device
    model = from_checkpoint(teacher, {})[0].eval().to(device)
    for start, end in _together(features, first, 4 * _ASKED):
        rows: dict[int, torch.Tensor] = {}
        for numbers in order(features.lengths[start:end], seed=0, tokens=_ASKED // 2, passes=1):
            given, trace = batch(features, start + numbers).to(device), Trace(attention=False)
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
                model(given.ids, given.types, given.lengths, trace=trace)
            hidden = torch.stack([trace.hidden[n].to(torch.bfloat16) for n in chosen], 2)  # [B, L, N + 1, D]
            rows |= {int(n): row[:length] for n, row, length in zip(numbers, hidden, given.lengths, strict=True)}
        yield end, torch.cat([rows[n] for n in sorted(rows)]).view(torch.int16).cpu().numpy()
