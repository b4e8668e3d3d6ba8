"""What stands before every request: keys, sizes, headers, counting and the log. Plain ASGI, so that bodies stream."""

import asyncio
import contextlib
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_log = logging.getLogger("thinbert.serve")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Without a key: what orchestrators ask, and the page, which holds nothing and asks for the key itself.
_OPEN = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json")
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
)


class Metrics:
    """Counters in the words of Prometheus, one set for each server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter("thinbert_requests", "Requests by route and status", ["route", "status"], registry=r)
        self.seconds = Histogram(
            "thinbert_request_seconds",
            "Time from the first byte of a request to the last of its answer",
            ["route"],
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
            registry=r,
        )
        self.in_flight = Gauge("thinbert_requests_in_flight", "Requests that wait or are computed", registry=r)
        self.tokens = Counter("thinbert_tokens", "Tokens that were computed", registry=r)
        self.pass_tokens = Histogram(
            "thinbert_pass_tokens", "Tokens of a pass", buckets=(64, 128, 256, 512, 1024, 2048, 4096), registry=r
        )
        self.pass_calls = Histogram(
            "thinbert_pass_requests", "Requests computed together", buckets=(1, 2, 4, 8, 16, 32, 64), registry=r
        )
        self.documents = Gauge("thinbert_documents", "Documents that are indexed", registry=r)

    def observe_pass(self, tokens: int, calls: int) -> None:
        self.tokens.inc(tokens)
        self.pass_tokens.observe(tokens)
        self.pass_calls.observe(calls)


_UPLOADS = 8  # at a time: each may lie on the disk once more, until it is done
_SLOWEST = 20_000  # bytes a second


class Guard:
    """Around the whole application: answers 401, 403, 408, 413 and 429 itself, adds headers, counts and logs all.

    Args:
        known: whether a path is a route's; requests that are refused before they reach one are counted by it.
        max_body: bytes that a request may have.
        max_bodies: requests with a body, uploads aside, that may be under way.
        uploads: the path that takes files; a few at a time, each of `max_upload` bytes.
        patience: seconds that the next piece of a body may take, and all of it but what comes at _SLOWEST.
    """

    def __init__(
        self,
        app: App,
        *,
        metrics: Metrics,
        known: Callable[[str], bool] = lambda path: False,
        keys: Sequence[str] = (),
        hosts: Sequence[str] = (),
        origins: Sequence[str] = (),
        max_body: int,
        max_bodies: int,
        uploads: str,
        max_upload: int,
        patience: float = 30.0,
        log: bool = True,
    ) -> None:
        self._app, self._metrics, self._known, self._log = app, metrics, known, log
        self._max_body, self._max_bodies, self._bodies, self._patience = max_body, max_bodies, 0, patience
        self._uploads, self._max_upload, self._uploading = uploads, max_upload, 0
        self._keys = [k.encode() for k in keys]
        self._hosts, self._origins = tuple(map(_host_name, hosts)), tuple(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status, begun = 500, False

        async def sending(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                names = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *((n, v) for n, v in _HEADERS if n not in names)]
            await send(message)

        post = scope["method"] == "POST"
        upload = post and scope["path"] == self._uploads
        limit = self._max_upload if upload else self._max_body
        headers = {name.lower(): value for name, value in scope["headers"]}
        try:
            if (fault := self._foreign(scope, headers)) is not None:
                await _answer(sending, 403, fault)
            elif not self._allowed(scope, headers):
                extra = [(b"www-authenticate", b"Bearer")]
                await _answer(sending, 401, "a key is needed: send Authorization: Bearer KEY, or X-API-Key: KEY", extra)
            elif (length := headers.get(b"content-length", b"0")).isdigit() and int(length) > limit:
                await _answer(sending, 413, _too_large(limit))
            elif upload and self._uploading >= _UPLOADS:
                extra = [(b"retry-after", b"1"), (b"connection", b"close")]
                await _answer(sending, 429, f"{_UPLOADS} uploads are under way; try again", extra)
            elif post and not upload and self._bodies >= self._max_bodies:
                extra = [(b"retry-after", b"1"), (b"connection", b"close")]
                await _answer(sending, 429, "too many requests wait; try again", extra)
            else:
                self._uploading += upload
                self._bodies += post and not upload
                try:
                    await self._with_body(scope, receive, sending, limit)
                finally:
                    self._uploading -= upload
                    self._bodies -= post and not upload
        except Exception:  # goes on to who logs it; the answer has its headers from here
            if not begun:
                await _answer(sending, 500, "a fault of the server's own; its log says more")
            raise
        finally:
            path = scope["path"]
            route = getattr(scope.get("route"), "path", None) or (path if self._known(path) else "other")
            seconds = time.perf_counter() - started
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            if self._log:
                line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "method": scope["method"]}
                line |= {"route": route, "status": status, "ms": round(1e3 * seconds, 1)}
                _log.info(json.dumps({**line, **scope.get("state", {}).get("log", {})}, ensure_ascii=False))

    async def _with_body(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        """Passes a body on until it is larger than it may be (a length may be missing, or a lie), or does not come."""
        read, whole, begun = 0, False, False
        loop = asyncio.get_running_loop()
        started = loop.time()
        broken: _BrokenBodyError | None = None

        async def receiving() -> Message:
            nonlocal read, whole, broken
            if whole:  # what comes now is that the client goes
                return await receive()
            try:
                last = min(loop.time(), started + read / _SLOWEST) + self._patience
                async with asyncio.timeout_at(last):
                    message = await receive()
            except TimeoutError:
                seconds = f"{self._patience:g} seconds"
                broken = _BrokenBodyError(408, f"the rest of the request did not come within {seconds}")
                raise broken from None
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if read > limit:
                    broken = _BrokenBodyError(413, _too_large(limit))
                    raise broken
            return message

        async def watched(message: Message) -> None:
            nonlocal begun
            if broken is not None:
                return  # whatever the application makes of its broken body
            begun = True
            await send(message)

        with contextlib.suppress(_BrokenBodyError):
            await self._app(scope, receiving, watched)
        if broken is not None and not begun:
            await _answer(send, broken.status, broken.error, [(b"connection", b"close")])

    def _foreign(self, scope: Scope, headers: dict[bytes, bytes]) -> str | None:
        """Why a request is not one of ours: a page from elsewhere may not make a browser add or ask here."""
        host = headers.get(b"host", b"").decode("latin-1")
        name = _host_name(host)
        # a name that somebody pointed at this machine; orchestrators ask for its health by its address
        if self._hosts and name not in self._hosts and scope["path"] not in _OPEN:
            return f"this server goes by {', '.join(self._hosts)} (--allow-host), and was asked as {name[:80]!r}"
        origin = headers.get(b"origin")
        if scope["method"] in ("GET", "HEAD", "OPTIONS") or origin is None:
            return None
        text = origin.decode("latin-1")
        if text.partition("://")[2] == host or text in self._origins:
            return None
        return f"pages of {text[:80]!r} may not ask here; start the server with --origin to let them"

    def _allowed(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        path = scope["path"]
        page = scope["method"] in ("GET", "HEAD") and (path == "/" or path.startswith("/web/"))
        if not self._keys or page or path in _OPEN:
            return True
        bearer = headers.get(b"authorization", b"")
        given = bearer[7:].strip() if bearer[:7].lower() == b"bearer " else headers.get(b"x-api-key", b"")
        # every key is compared, each in constant time: how long it takes says nothing of which came near
        return any([hmac.compare_digest(given, key) for key in self._keys])  # noqa: C419


def _host_name(host: str) -> str:
    """Without its port; names are the same in capitals, and addresses of IPv6 stand in brackets."""
    if host.count(":") > 1 and not host.startswith("["):
        return f"[{host}]".lower()
    return (host.rsplit(":", 1)[0] if not host.endswith("]") else host).lower()


class _BrokenBodyError(Exception):
    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status, self.error = status, error


def _too_large(limit: int) -> str:
    return f"the request is larger than {limit / 1e6:.3g} MB, the most this server takes"


async def _answer(send: Send, status: int, error: str, extra: Sequence[tuple[bytes, bytes]] = ()) -> None:
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
