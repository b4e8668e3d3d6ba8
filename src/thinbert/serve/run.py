"""`thinbert serve`: models, documents and settings to a running server."""

import functools
import logging
import math
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import uvicorn

from thinbert.api import Model, load
from thinbert.corpus.index import absolute
from thinbert.errors import InputError
from thinbert.serve.app import Settings, create_app
from thinbert.serve.heads import Heads
from thinbert.serve.library import Library

_log = logging.getLogger("thinbert.serve")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SWITCH = 0.0005  # seconds a thread keeps the interpreter: a pass that has ended should not wait long to say so


def serve(
    models: Sequence[str],
    index: Path | None,
    uploads: Path | None,
    host: str,
    port: int,
    settings: Settings,
    *,
    precision: str = "int8",
    threads: int | None = None,
) -> None:
    """Runs until it is told to end (SIGINT, SIGTERM), then answers what is in flight.

    Args:
        models: `name=model` or `model` (named by its folder, `default` if it is the bundled one); the first that
            answers questions also goes by the name `default`.
    Raises:
        InputError: a model, folder or address cannot be used.
    """
    if not host:  # which would be every address there is
        raise InputError("--host is empty; give 127.0.0.1 for this machine alone, or 0.0.0.0 for every address")
    if "*" in settings.origins:
        raise InputError("--origin is '*'; name each origin that may ask, as https://example.org")
    sys.setswitchinterval(_SWITCH)
    if not _log.handlers:
        _log.addHandler(logging.StreamHandler(sys.stderr))  # a line of the log is JSON and nothing else
        _log.propagate = False
    _log.setLevel(logging.INFO)
    loaded = _models(models, precision, threads)
    with ExitStack() as stack:
        if index is None:
            if uploads is not None:
                raise InputError("--uploads needs --index, which keeps what is known of them")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="thinbert-")))
            library = Library(folder / "index", folder / "uploads")
            kept = "kept until the server ends; give --index FOLDER to keep them"
        else:
            uploads = uploads or Path(absolute(index) + "-uploads")
            library = Library(index, uploads)
            kept = f"kept in {uploads}"
        listening = _listen(host, port)
        stack.callback(listening.close)
        if host in _LOOPBACK:
            settings = replace(settings, hosts=(*_LOOPBACK, *settings.hosts))
        app = create_app(loaded, library, settings)
        shown = f"[{host}]" if ":" in host else host
        _log.info(f"thinbert serves {', '.join(loaded)} at http://{shown}:{listening.getsockname()[1]}")
        _log.info(f"{len(library.entries())} documents; uploads are {kept}")
        if host not in _LOOPBACK and not settings.keys:
            _log.info("anyone who reaches this address may ask and add documents; --api-key asks for a key")
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=math.ceil(settings.timeout),
            http=functools.partial(Heads, patience=settings.timeout),  # type: ignore[arg-type]
            server_header=False,
        )
        # uvicorn drains, and then raises the signal it was told to end by again: that is no fault of ours
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        uvicorn.Server(config).run(sockets=[listening])


def _models(names: Sequence[str], precision: str, threads: int | None) -> dict[str, Model]:
    loaded: dict[str, Model] = {}
    for given in names:
        name, equals, model = given.partition("=")
        if not equals or "/" in name:  # a folder's path may hold a sign of equality
            name, model = Path(given).name or given, given
        if not name or name in loaded:
            raise InputError(f"--model {given}: a second model named {name!r}; give it a name: NAME={model}")
        loaded[name] = load(model, precision=precision, threads=threads)
    first = next((m for m in loaded.values() if m.answers), None)
    if first is not None and "default" not in loaded:
        loaded["default"] = first
    return loaded


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # named as TCP, so that asyncio sends at once: else each answer waits 40 ms for an acknowledgement
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as e:
        listening.close()
        raise InputError(f"cannot listen on {host}:{port}: {e.strerror}; give another --port or --host") from e
    return listening
