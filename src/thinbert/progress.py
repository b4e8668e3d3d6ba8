"""Progress on standard error: a bar on a terminal, else a line now and then."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from thinbert import show

T = TypeVar("T")
Count = Callable[[int, int | None], None]  # how many are done, and of how many (None: not known)


@contextmanager
def counting(unit: str, *, after: float = 0.0) -> Iterator[Count]:
    """Progress on standard error with rate and time left: a bar on a terminal, `after` so many seconds, else a line
    every 10 seconds."""
    if not sys.stderr.isatty():
        yield _LineProgress(unit)
        return
    begun, rate = time.monotonic(), _Rate()
    bar: Any = None

    def count(done: int, total: int | None) -> None:
        nonlocal bar
        now = rate(done)
        if bar is None and time.monotonic() - begun >= after:
            bar = _bar(f"{unit}, {{task.fields[rate]:.1f}}/s")
            bar.add_task("", total=total, rate=0.0)
            bar.start()
        if bar is not None:
            bar.update(bar.task_ids[0], completed=done, total=total, rate=now)

    try:
        yield count
    finally:
        if bar is not None:
            bar.stop()


def counted(things: Iterable[T], count: Count) -> Iterator[T]:
    """The things, counted as they pass."""
    for number, thing in enumerate(things, 1):
        count(number, None)
        yield thing


class _Rate:
    """Things done a second since the first call."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None

    def __call__(self, done: int) -> float:
        now = time.monotonic()
        if self._start is None:
            self._start = (now, done)
        return (done - self._start[1]) / max(now - self._start[0], 1e-9)


class _LineProgress:
    def __init__(self, unit: str, every: float = 10.0) -> None:
        self._unit, self._every, self._rate, self._next = unit, every, _Rate(), time.monotonic() + every

    def __call__(self, done: int, total: int | None) -> None:
        rate = self._rate(done)
        if time.monotonic() >= self._next and rate > 0:
            self._next = time.monotonic() + self._every
            of, left = (f"/{total}", _left(total - done, rate)) if total is not None else ("", "")
            print(f"{done}{of} {self._unit}, {rate:.1f}/s{left}", file=sys.stderr, flush=True)


def _left(things: int, rate: float) -> str:
    if not (things and rate):
        return ""
    seconds = things / rate
    return f", {show.duration(seconds) if seconds >= 120 else f'{seconds:.0f} s'} left"


_SHOWN = ("loss", "density", "dev_f1", "dev_accuracy", "mlm_loss", "tokens_per_second")
_TOLD = "not_evaluated"  # why there are no scores on the way


@contextmanager
def stages() -> Iterator[Callable[[str], Callable[[Mapping[str, Any]], None]]]:
    """Progress of stages on standard error: a bar for each on a terminal, else a line now and then."""
    if not sys.stderr.isatty():

        def lines(stage: str) -> Callable[[Mapping[str, Any]], None]:
            last, rate = 0.0, _Rate()

            def line(log: Mapping[str, Any]) -> None:
                nonlocal last
                if _TOLD in log:
                    print(f"{stage}: not evaluated: {log[_TOLD]}", file=sys.stderr, flush=True)
                now = rate(log["step"])
                if time.monotonic() - last >= 10 or log["step"] == log["of"]:
                    last = time.monotonic()
                    rest = "".join(f", {k} {log[k]:.4g}" for k in _SHOWN if k in log)
                    left = _left(log["of"] - log["step"], now)
                    print(f"{stage}: {log['step']}/{log['of']}{rest}{left}", file=sys.stderr, flush=True)

            return line

        yield lines
        return
    with _bar("{task.fields[log]}") as bar:

        def bars(stage: str) -> Callable[[Mapping[str, Any]], None]:
            task = bar.add_task(stage, total=None, log="")
            known: dict[str, float] = {}  # scores are rarer than lines, and stay until the next

            def line(log: Mapping[str, Any]) -> None:
                known.update({k: log[k] for k in _SHOWN if k in log})
                if _TOLD in log:
                    bar.console.print(f"{stage}: not evaluated: {log[_TOLD]}")
                rest = " ".join(f"{k} {known[k]:.3g}" for k in _SHOWN if k in known)
                bar.update(task, completed=log["step"], total=log["of"], log=rest)

            return line

        yield bars


def _bar(text: str) -> Any:
    """Bars on standard error: what, how far, a text made of a task's fields, the time taken and left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(text))
    times = (TimeElapsedColumn(), TextColumn("gone,"), TimeRemainingColumn(), TextColumn("left"))
    return Progress(*columns, *times, console=Console(stderr=True))
