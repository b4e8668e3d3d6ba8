"""Requests that wait at the same moment are computed in one pass of the engine.

A Batcher stands in a Model where its engine stood, so everything that a model can do (read, pipeline, ask, classify) is
batched across the threads that do it, and none of them knows. While a pass runs, others gather; nobody is ever waited
for. A pass takes windows from all that wait in turn, so a long document does not stand before a short question.

There is no thread of the batcher's own. Of those who ask, one leads: it computes passes for all until it has its own
result, and then another leads. Who asks alone thus computes at once, in its own thread.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np

from thinbert.api import Runtime
from thinbert.errors import CancelledError
from thinbert.model.weights import Array, Ints

PASS_TOKENS = 4096  # in one pass: what bounds how long a new arrival waits for the one that runs

Observer = Callable[[int, int], None]  # called with the tokens and the requests of each pass


class Ticket:
    """One request's right to be computed; withdrawn when its client has gone or its time is up."""

    def __init__(self) -> None:
        self._gone = threading.Event()

    def cancel(self) -> None:
        self._gone.set()

    @property
    def cancelled(self) -> bool:
        return self._gone.is_set()


current_ticket: ContextVar[Ticket | None] = ContextVar("current_ticket", default=None)


@dataclass(eq=False)  # a call is itself, whatever it asks
class _Call:
    """A call to the runtime that waits, whole or in part."""

    kind: str  # method of the runtime
    ids: Ints
    types: Ints
    lengths: list[int]
    ticket: Ticket | None
    ends: list[int] = field(init=False)
    parts: list[Array] = field(default_factory=list)  # results so far, in order
    taken: int = 0  # sequences that were given to a pass
    error: BaseException | None = None
    finished: bool = False
    woken: threading.Event = field(default_factory=threading.Event)  # when it is finished, or shall lead

    def __post_init__(self) -> None:
        self.ends = np.cumsum(self.lengths).tolist()

    def slice(self, first: int, last: int) -> slice:
        return slice(self.ends[first - 1] if first else 0, self.ends[last - 1])

    def finish(self, error: BaseException | None = None) -> None:
        self.error, self.finished = error, True
        self.woken.set()


class Batcher:
    """A runtime (see thinbert.api.Runtime) that gathers the calls of many threads."""

    def __init__(
        self, runtime: Runtime, *, pass_tokens: int = PASS_TOKENS, observe: Observer = lambda tokens, calls: None
    ) -> None:
        self._runtime, self._pass_tokens, self._observe = runtime, pass_tokens, observe
        self._waiting: deque[_Call] = deque()  # not yet wholly given to a pass
        self._changed = threading.Condition()
        self._leader: _Call | None = None  # whose thread computes
        self._closed = False

    def span_logits(self, token_ids: Ints, token_types: Ints, lengths: Sequence[int]) -> Array:
        return self._compute("span_logits", token_ids, token_types, lengths)

    def class_logits(self, token_ids: Ints, token_types: Ints, lengths: Sequence[int]) -> Array:
        return self._compute("class_logits", token_ids, token_types, lengths)

    @property
    def idle(self) -> bool:
        """Whether who asks now computes at once."""
        return self._leader is None

    def close(self) -> None:
        """Refuses what comes from now on, and returns when all that waits is computed."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._leader is None)

    def _compute(self, kind: str, ids: Ints, types: Ints, lengths: Sequence[int]) -> Array:
        if not lengths:
            raise ValueError("no sequences")
        call = _Call(kind, np.asarray(ids), np.asarray(types), list(lengths), current_ticket.get())
        with self._changed:
            if self._closed:
                raise CancelledError("the server is closing")
            self._waiting.append(call)
            self._leader = self._leader or call
        try:
            if self._leader is not call:
                call.woken.wait()
            while not call.finished:
                with self._changed:
                    taken = self._take()
                if taken:
                    self._run(taken)
        finally:
            with self._changed:
                if call in self._waiting:  # interrupted
                    self._waiting.remove(call)
                if self._leader is call:
                    self._leader = self._waiting[0] if self._waiting else None
                    if self._leader:
                        self._leader.woken.set()
                    self._changed.notify_all()
        if call.error is not None:
            raise call.error
        return call.parts[0] if len(call.parts) == 1 else np.concatenate(call.parts)

    def _take(self) -> list[tuple[_Call, int, int]]:
        """Sequences first … last of calls of one kind, one of each call in turn, up to the tokens of a pass."""
        for call in [c for c in self._waiting if c.ticket is not None and c.ticket.cancelled]:
            self._waiting.remove(call)
            call.finish(CancelledError("the request was withdrawn"))
        if not self._waiting:
            return []
        same = [c for c in self._waiting if c.kind == self._waiting[0].kind]
        wanted = dict.fromkeys(map(id, same), 0)
        room = self._pass_tokens
        more = True
        while more:
            more = False
            for call in same:
                next_one = call.taken + wanted[id(call)]
                if next_one < len(call.lengths) and (call.lengths[next_one] <= room or room == self._pass_tokens):
                    room -= call.lengths[next_one]
                    wanted[id(call)] += 1
                    more = True
        taken = []
        for call in same:
            if wanted[id(call)]:
                taken.append((call, call.taken, call.taken + wanted[id(call)]))
                call.taken += wanted[id(call)]
                if call.taken == len(call.lengths):
                    self._waiting.remove(call)
        return taken

    def _run(self, taken: list[tuple[_Call, int, int]]) -> None:
        try:
            self._compute_pass(taken)
        except BaseException as e:
            if len(taken) > 1 and isinstance(e, Exception):  # whose fault it is shows when each is computed alone
                for one in taken:
                    self._run([one])
                return
            for call, _, _ in taken:
                with self._changed:
                    if call in self._waiting:
                        self._waiting.remove(call)
                call.finish(e)

    def _compute_pass(self, taken: list[tuple[_Call, int, int]]) -> None:
        ids = np.concatenate([call.ids[call.slice(a, b)] for call, a, b in taken])
        types = np.concatenate([call.types[call.slice(a, b)] for call, a, b in taken])
        lengths = [n for call, a, b in taken for n in call.lengths[a:b]]
        result = getattr(self._runtime, taken[0][0].kind)(ids, types, lengths)
        self._observe(len(ids), len(taken))
        by_token = taken[0][0].kind == "span_logits"
        parts, at = [], 0
        for call, a, b in taken:
            rows = sum(call.lengths[a:b]) if by_token else b - a
            parts.append(result[at : at + rows].copy())  # a part must not keep the whole pass in memory
            at += rows
        for (call, _, _), part in zip(taken, parts, strict=True):  # all or none: a pass that failed is computed again
            call.parts.append(part)
            if call.taken == len(call.lengths):
                call.finish()
