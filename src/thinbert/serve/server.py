"""What the routes share: models behind batchers, documents, threads, and how many requests are in flight."""

import asyncio
import contextvars
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from fastapi import HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from thinbert.api import Model
from thinbert.corpus.index import BusyError
from thinbert.errors import CancelledError, InputError, StorageError
from thinbert.serve.batching import Batcher, Ticket, current_ticket
from thinbert.serve.library import Library, UnknownDocumentError
from thinbert.serve.limits import Metrics

_CHANGES = 4  # of the documents that are worked on at a time
_SHORT = 0.005  # seconds: work that is done sooner does not keep others waiting longer than a pass would
_SMALL = 8192  # bytes of a request that may be short
_OVERHEAD = 500  # bytes whose reading takes as long as all that is done once for a request

T = TypeVar("T")
Text = Annotated[str, Field(min_length=1, pattern=r"\S")]  # more than white space


@dataclass(frozen=True)
class Settings:
    max_body_mb: float = 2.0  # of a question with its text
    max_upload_mb: float = 100.0
    max_waiting: int = 256  # requests in flight, after which others are turned away
    timeout: float = 30.0  # seconds for a request
    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()  # that browsers may ask from, other than our own page
    hosts: tuple[str, ...] = ()  # names the server goes by; any, where there are none
    log: bool = True
    log_content: bool = False  # questions and answers too

    def __post_init__(self) -> None:
        for name in ("max_body_mb", "max_upload_mb", "timeout"):
            if not 0 < (value := getattr(self, name)) < 1e9:
                raise InputError(f"--{name.replace('_', '-')} is {value}; expected a number between 0 and 10^9")


class Body(BaseModel):
    """A request's JSON; fields that are not known are refused."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _one_stranger(cls, given: Any) -> Any:
        """The first unknown field is enough to be refused by: a small request must not make a hundred thousand
        faults."""
        if not isinstance(given, dict):
            return given
        known = cls.model_fields
        first = next((name for name in given if name not in known), None)
        return {name: value for name, value in given.items() if name in known or name == first}


class Server:
    """What the routes share: models behind batchers, documents, threads, and the number of requests in flight."""

    def __init__(self, models: Mapping[str, Model], library: Library | None, settings: Settings) -> None:
        if not models:
            raise InputError("no model to serve")
        settings = replace(
            settings,
            keys=tuple(key.strip() for key in settings.keys),  # those in files end in a line end
            origins=tuple(origin.rstrip("/") for origin in settings.origins),
        )
        if not all(settings.keys):
            raise InputError("a key is empty; everybody would have it")
        self.models, self.library, self.settings = dict(models), library, settings
        self.metrics = Metrics()
        self._readers: dict[int, _Reader] = {}  # by the id of the model, which may go by several names
        for model in {id(m): m for m in self.models.values()}.values():
            reader = self._readers[id(model)] = _Reader(
                model, Batcher(model.runtime, observe=self.metrics.observe_pass)
            )
            model.runtime = reader.batcher
        # a thread for each, so that none stands behind another before it comes to the batcher, which takes from all
        self._pool = ThreadPoolExecutor(settings.max_waiting, thread_name_prefix="thinbert")
        # few: each may have a file in memory, and a process that reads it
        self._changes = ThreadPoolExecutor(_CHANGES, thread_name_prefix="thinbert-documents")
        self.in_flight = 0
        self.ready = False  # takes requests

    def model(self, name: str | None, *, answers: bool) -> Model:
        """The model of that name, or the first that can do it. Raises HTTPException 404."""
        if name is not None:
            found = self.models.get(name)
            if found is None:
                raise HTTPException(404, f"no model {name[:80]!r}; there are {', '.join(self.models)}")
            if found.answers != answers:
                can = "classifies texts" if not found.answers else "answers questions"
                raise HTTPException(422, f"model {name} {can}; these inputs ask for something else")
            return found
        for model in self.models.values():
            if model.answers == answers:
                return model
        what = "answers questions" if answers else "classifies texts"
        raise HTTPException(422, f"no model here {what}; start the server with one (--model)")

    async def compute(
        self, request: Request, work: Callable[[], T], *, reads: Model | None = None, changes: bool = False
    ) -> T:
        """Runs the work in a thread, unless too many wait, it takes too long, or the client goes.

        Args:
            reads: what the work does is to read the text of the body with this model. Where that will be short, and
                nothing else is in flight, no thread is changed for it: the loop does it.
            changes: the work changes the documents; it has threads of its own, and four times as long.

        Raises HTTPException: 429, 503, 504 or (seen by nobody) 499; 404 where the work finds no such document, 422
        where it refuses its input, and 507 where the disk does.
        """
        if self.in_flight >= self.settings.max_waiting:
            raise HTTPException(429, "too many requests wait; try again", headers={"Retry-After": "1"})
        self.in_flight += 1
        self.metrics.in_flight.set(self.in_flight)
        try:
            with _as_http():
                if reads is None:
                    return await self._in_thread(request, work, changes)
                return await self._read(request, work, self._readers[id(reads)])
        finally:
            self.in_flight -= 1
            self.metrics.in_flight.set(self.in_flight)

    async def _read(self, request: Request, work: Callable[[], T], reader: "_Reader") -> T:
        length = request.headers.get("content-length", "")
        size = int(length) if length.isdigit() else _SMALL + 1  # a body may come without: it may be long
        await asyncio.sleep(0)  # those that came at the same moment are let in: together they are faster
        if size > _SMALL or self.in_flight > 1:
            return await self._in_thread(request, work)
        started = time.perf_counter()
        try:
            if reader.expected(size) < _SHORT and reader.batcher.idle:
                return work()
            return await self._in_thread(request, work)
        finally:
            if self.in_flight == 1:  # still alone
                reader.learn(size, time.perf_counter() - started)

    async def _in_thread(self, request: Request, work: Callable[[], T], changes: bool = False) -> T:
        ticket = Ticket()

        def ticketed() -> T:
            current_ticket.set(ticket)
            if ticket.cancelled:
                raise CancelledError("the request was withdrawn")
            return work()

        loop = asyncio.get_running_loop()
        pool, timeout = (self._changes, 4 * self.settings.timeout) if changes else (self._pool, self.settings.timeout)
        job: asyncio.Future[T] = loop.run_in_executor(pool, contextvars.copy_context().run, ticketed)
        gone: asyncio.Future[None] = asyncio.ensure_future(_gone(request))
        either: set[asyncio.Future[Any]] = {job, gone}
        try:
            await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if job.done():
                return job.result()
            if gone.done():
                raise HTTPException(499, "the client has gone")
            raise HTTPException(504, f"not done within {timeout:g} seconds")
        finally:
            if not job.done():  # whatever ended the waiting, a server that closes too
                ticket.cancel()
                job.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody waits for it
            gone.cancel()

    def note(self, request: Request, **content: Any) -> None:
        """Puts what was asked and answered into the log, where that was wanted."""
        if self.settings.log_content:
            request.scope.setdefault("state", {})["log"] = content

    def close(self) -> None:
        """Ends after what is in flight; what has not begun is dropped."""
        for pool in (self._pool, self._changes):
            pool.shutdown(wait=True, cancel_futures=True)
        for reader in self._readers.values():
            reader.batcher.close()
            reader.model.runtime = reader.engine  # a model outlives the server it was lent to


class _Reader:
    """A model behind its batcher, and how long requests that came alone have taken it for each byte of their bodies."""

    def __init__(self, model: Model, batcher: Batcher) -> None:
        self.model, self.engine, self.batcher = model, model.runtime, batcher
        self._pace = math.inf  # seconds a byte; nothing is known yet

    def expected(self, size: int) -> float:
        return self._pace * (size + _OVERHEAD)

    def learn(self, size: int, seconds: float) -> None:
        """What was slow lately counts: better a thread too many than a loop that is held up."""
        pace = seconds / (size + _OVERHEAD)
        self._pace = pace if math.isinf(self._pace) else max(pace, 0.9 * self._pace)


@contextmanager
def _as_http() -> Iterator[None]:
    """What work raises, as the answer it gets."""
    try:
        yield
    except asyncio.CancelledError:
        raise HTTPException(503, "the server is closing") from None
    except (CancelledError, BusyError) as e:
        raise HTTPException(503, str(e), headers={"Retry-After": "1"}) from None
    except UnknownDocumentError as e:
        raise HTTPException(404, str(e)) from None
    except StorageError as e:
        raise HTTPException(507, str(e)) from None
    except InputError as e:
        raise HTTPException(422, str(e)) from None


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
