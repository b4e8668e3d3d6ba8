"""The lines a request begins with, bounded: uvicorn reads them before the application knows of the request, however
many there are and however slowly they come."""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST = 1 << 16  # bytes of a request that are no body; a read may bring some more


class Heads(HttpToolsProtocol):
    """uvicorn's protocol, less requests whose heads do not end within MOST bytes or `patience` seconds, and those that
    were answered before they ended, if they do not end so soon after."""

    def __init__(self, *args: Any, patience: float, **named: Any) -> None:
        super().__init__(*args, **named)
        self._patience = patience
        self._since = 0  # bytes since a head was whole or a piece of a body came
        self._in_head = True
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._since += len(data)
        if self._in_head and self._timer is None:
            self._wait()
        super().data_received(data)
        if self._since > MOST:
            self._refuse(431, "Request Header Fields Too Large", f"a request's headers have {MOST} bytes at most")

    def on_headers_complete(self) -> None:
        self._since, self._in_head = 0, False
        self._stop()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._since = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._since, self._in_head = 0, True
        self._stop()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_head and not self.transport.is_closing():  # nobody reads the rest of its body
            self._stop()
            self._timer = self.loop.call_later(self._patience, self.transport.close)

    def _wait(self) -> None:
        late = f"a request's headers did not come within {self._patience:g} seconds"
        self._timer = self.loop.call_later(self._patience, self._refuse, 408, "Request Timeout", late)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int, reason: str, error: str) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:  # else an answer to an earlier request is on its way
            body = json.dumps({"error": error}).encode()
            head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\nconnection: close\r\n"
            self.transport.write(head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()
