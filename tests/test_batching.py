"""The batcher: what many threads ask at once is computed together, and everybody gets their own."""

import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from thinbert.errors import CancelledError
from thinbert.serve.batching import Batcher, Ticket, current_ticket


class Held:
    """A runtime that can be held, answers each token by its own id, and remembers what it was given."""

    def __init__(self) -> None:
        self.passes: list[list[int]] = []
        self.kinds: list[str] = []
        self.begun, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def span_logits(self, ids: np.ndarray, types: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
        self.begun.set()
        assert self.gate.wait(30)
        if (ids == 666).any():
            raise RuntimeError("a bad token")
        self.passes.append(list(lengths))
        self.kinds.append("span")
        return np.stack([ids, types], axis=1).astype(np.float32)

    def class_logits(self, ids: np.ndarray, types: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
        self.passes.append(list(lengths))
        self.kinds.append("classes")
        return ids[np.cumsum([0, *lengths[:-1]])].astype(np.float32)[:, None]


def waiting(batcher: Batcher, calls: int) -> None:
    """Returns when so many calls wait for the one that computes."""
    end = time.monotonic() + 30
    while len(batcher._waiting) < calls:
        assert time.monotonic() < end, f"{len(batcher._waiting)} calls wait; expected {calls}"
        time.sleep(0.002)


def ask(batcher: Batcher, lengths: list[int], first: int) -> np.ndarray:
    ids = np.arange(first, first + sum(lengths), dtype=np.int32)
    return batcher.span_logits(ids, np.ones_like(ids), lengths)


def test_everybody_gets_their_own() -> None:
    runtime, together = Held(), []
    runtime.gate.clear()
    batcher = Batcher(runtime, pass_tokens=100, observe=lambda tokens, calls: together.append(calls))
    random = np.random.RandomState(0)
    jobs = [(random.randint(1, 60, random.randint(1, 6)).tolist(), 10_000 * n) for n in range(1, 60)]
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(ask, batcher, *job) for job in jobs]
        waiting(batcher, 15)
        runtime.gate.set()
        results = [one.result() for one in asked]
    for (lengths, first), result in zip(jobs, results, strict=True):
        assert result[:, 0].tolist() == list(range(first, first + sum(lengths)))
    assert sum(map(sum, runtime.passes)) == sum(sum(lengths) for lengths, _ in jobs)
    assert max(together) > 1
    assert all(sum(p) <= 100 for p in runtime.passes)
    batcher.close()


def test_a_fault_while_results_are_handed_out() -> None:
    """A pass that failed half way is computed again, call by call: nobody gets anything twice."""

    class Failing(Held):
        failed = False

        def span_logits(self, ids: np.ndarray, types: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
            found = super().span_logits(ids, types, lengths)
            if len(lengths) > 1 and not self.failed:
                self.failed = True
                return found[:-1].view(Torn)
            return found

    class Torn(np.ndarray):
        def __getitem__(self, key: slice) -> np.ndarray:  # type: ignore[override]
            if key.stop > len(self):
                raise MemoryError
            return np.asarray(self)[key]

    runtime = Failing()
    runtime.gate.clear()
    batcher = Batcher(runtime)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, batcher, [n], 100 * n) for n in range(1, 5)]
        waiting(batcher, 3)
        runtime.gate.set()
        for n, one in enumerate(asked, 1):
            assert one.result()[:, 0].tolist() == list(range(100 * n, 100 * n + n))
    assert runtime.failed


def test_a_long_request_lets_a_short_one_by() -> None:
    runtime = Held()
    runtime.gate.clear()
    batcher = Batcher(runtime, pass_tokens=100)
    long = threading.Thread(target=ask, args=(batcher, [50] * 60, 1000))
    short = threading.Thread(target=ask, args=(batcher, [10], 1000))
    long.start()
    assert runtime.begun.wait(30)  # it is in its first pass, and the rest of it waits
    short.start()
    waiting(batcher, 2)
    runtime.gate.set()
    long.join()
    short.join()
    (turn,) = (n for n, lengths in enumerate(runtime.passes) if 10 in lengths)
    assert turn < 3 < len(runtime.passes)
    batcher.close()


def test_a_sequence_longer_than_a_pass_is_computed_alone() -> None:
    runtime = Held()
    batcher = Batcher(runtime, pass_tokens=20)
    assert len(ask(batcher, [5, 50, 5], 0)) == 60
    assert [50] in runtime.passes
    batcher.close()


def test_what_is_withdrawn_is_not_computed() -> None:
    runtime = Held()
    runtime.gate.clear()
    batcher = Batcher(runtime)
    ticket = Ticket()

    def withdrawn() -> None:
        current_ticket.set(ticket)
        with pytest.raises(CancelledError):
            ask(batcher, [7], 0)

    first = threading.Thread(target=ask, args=(batcher, [3], 0))
    first.start()  # holds the engine
    assert runtime.begun.wait(30)
    second = threading.Thread(target=withdrawn)
    second.start()
    waiting(batcher, 1)
    ticket.cancel()
    runtime.gate.set()
    second.join(30)
    first.join(30)
    assert not first.is_alive()
    assert not second.is_alive()
    assert [7] not in runtime.passes
    batcher.close()


def test_a_fault_is_theirs_who_asked() -> None:
    runtime = Held()
    runtime.gate.clear()
    batcher = Batcher(runtime)
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(ask, batcher, [3], 0)]  # holds the engine, while the others gather
        assert runtime.begun.wait(30)
        asked += [pool.submit(ask, batcher, [3], first) for first in (10, 665, 20, 30)]
        waiting(batcher, 4)
        runtime.gate.set()
        with pytest.raises(RuntimeError, match="a bad token"):
            asked.pop(2).result()
        assert [a.result()[0, 0] for a in asked] == [0, 10, 20, 30]
    batcher.close()
    with pytest.raises(CancelledError, match="closing"):
        ask(batcher, [3], 0)


def test_one_that_is_interrupted_stops_nobody() -> None:
    runtime = Held()
    runtime.gate.clear()
    batcher = Batcher(runtime)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(ask, batcher, [3], 0)
        assert runtime.begun.wait(30)

        def press() -> None:
            waiting(batcher, 1)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            while batcher._waiting:
                time.sleep(0.002)
            runtime.gate.set()

        pressed = pool.submit(press)
        with pytest.raises(KeyboardInterrupt):
            ask(batcher, [7], 0)  # in the main thread, where signals arrive
        pressed.result(30)
        assert len(first.result(30)) == 3
        assert len(pool.submit(ask, batcher, [4], 0).result(30)) == 4
    assert [7] not in runtime.passes
    batcher.close()


def test_whatever_breaks_is_heard_and_the_next_pass_goes_on() -> None:
    def broken(tokens: int, calls: int) -> None:
        if tokens == 5:
            raise MemoryError("no room")

    batcher = Batcher(Held(), observe=broken)
    with pytest.raises(MemoryError):
        ask(batcher, [5], 0)
    assert len(ask(batcher, [3], 0)) == 3
    batcher.close()


def test_kinds_are_not_mixed() -> None:
    runtime = Held()
    runtime.gate.clear()
    batcher = Batcher(runtime)
    with ThreadPoolExecutor(8) as pool:
        ids = np.arange(6, dtype=np.int32)
        spans = [pool.submit(batcher.span_logits, ids, ids, [2, 4])]
        assert runtime.begun.wait(30)
        spans += [pool.submit(batcher.span_logits, ids, ids, [2, 4]) for _ in range(3)]
        firsts = [pool.submit(batcher.class_logits, ids, ids, [2, 4]) for _ in range(4)]
        waiting(batcher, 7)
        runtime.gate.set()
        assert all(f.result().shape == (6, 2) for f in spans)
        assert all(f.result()[:, 0].tolist() == [0, 2] for f in firsts)
    assert sorted(runtime.kinds) == ["classes", "span", "span"]  # those that waited, each kind in one pass
    batcher.close()


def test_classes_over_several_passes() -> None:
    """They come by sequence, and not by token."""
    runtime = Held()
    batcher = Batcher(runtime, pass_tokens=5)
    ids = np.arange(12, dtype=np.int32)
    assert batcher.class_logits(ids, ids, [2, 3, 4, 1, 2])[:, 0].tolist() == [0, 2, 5, 9, 10]
    assert len(runtime.passes) > 1
    batcher.close()
