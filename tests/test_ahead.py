"""Streams of batches, computed while Python goes on."""

import threading
from collections.abc import Iterator
from contextvars import ContextVar

import pytest

from thinbert.runtime.ahead import in_batches


def test_batches_hold_what_fits_in_order() -> None:
    batches = list(in_batches([3, 4, 9, 1, 1, 20, 2], sum, size=lambda n: n, limit=8))
    assert batches == [([3, 4], 7), ([9], 9), ([1, 1], 2), ([20], 20), ([2], 2)]
    assert list(in_batches([], sum, size=lambda n: n, limit=8)) == []


def test_the_next_batch_is_gathered_while_one_is_computed() -> None:
    gathered = threading.Event()

    def items() -> Iterator[int]:
        yield from (1, 2)
        gathered.set()
        yield 3

    def compute(batch: list[int]) -> bool:
        return batch != [1] or gathered.wait(10)  # the first waits for what comes after the second

    assert [done for _, done in in_batches(items(), compute, size=lambda n: 1, limit=1)] == [True] * 3


def test_a_batch_alone_has_no_thread() -> None:
    ran = []
    assert list(in_batches([1, 2], lambda batch: ran.append(threading.current_thread()), size=lambda n: 1, limit=2))
    assert ran == [threading.current_thread()]


def test_the_thread_knows_whose_work_it_does() -> None:
    whose: ContextVar[str] = ContextVar("whose", default="nobody's")
    whose.set("mine")
    done = in_batches([1, 2, 3], lambda batch: whose.get(), size=lambda n: 1, limit=1)
    assert [name for _, name in done] == ["mine"] * 3


def test_errors_come_where_the_batch_would() -> None:
    stream = in_batches([1, 0, 3, 4], lambda batch: 1 / batch[0], size=lambda n: 1, limit=1)
    assert next(stream) == ([1], 1.0)
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_a_stream_that_nobody_reads_on_ends_its_thread() -> None:
    before = threading.active_count()
    stream = in_batches(range(100), sum, size=lambda n: 1, limit=1)
    next(stream)
    assert threading.active_count() == before + 1
    del stream
    assert threading.active_count() == before
