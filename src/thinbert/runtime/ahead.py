"""Streams through an engine: neighbours are computed together, while Python prepares what comes next."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_batches(
    items: Iterable[T], compute: Callable[[list[T]], R], *, size: Callable[[T], int], limit: int
) -> Iterator[tuple[list[T], R]]:
    """Items in batches of at most `limit` in size, or of one, in order, each with what `compute` makes of it.

    While a thread computes a batch, the next is gathered here and the one before is used by the caller: an engine on
    many cores would otherwise wait for Python most of the time. A single batch needs no thread and gets none.
    """
    batch: list[T] = []
    total = 0
    under_way: tuple[list[T], Future[R]] | None = None
    with ThreadPoolExecutor(1, "thinbert") as thread:  # which begins with the first batch it is given
        for item in items:
            more = size(item)
            if batch and total + more > limit:
                before, under_way = under_way, (batch, thread.submit(copy_context().run, compute, batch))
                if before:
                    yield before[0], before[1].result()
                batch, total = [], 0
            batch.append(item)
            total += more
        if under_way:
            yield under_way[0], under_way[1].result()
        if batch:
            yield batch, compute(batch)
