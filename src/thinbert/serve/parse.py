"""An upload to pages, in a process of its own with bounded time and memory: what a file does to its reader stays there.

Run as `python -m thinbert.serve.parse NAME SUFFIX SECONDS MEMORY`: bytes on standard input, one JSON object on standard
output.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict
from subprocess import DEVNULL, PIPE

from thinbert.corpus.documents import Document, parse_document
from thinbert.corpus.pages import Page
from thinbert.errors import CancelledError, InputError

SECONDS, MEMORY = 60, 2 << 30  # of processor time, and bytes
PATIENCE = 2 * SECONDS  # by the clock, for a machine that is busy


def parse_apart(name: str, content: bytes, suffix: str, *, wanted: Callable[[], bool] = lambda: True) -> Document:
    """What documents.parse_document makes of it.

    Args:
        wanted: asked now and then; once it says no, reading ends.
    Raises:
        InputError: it cannot be read, or takes too long or too much memory.
        CancelledError: it is wanted no more.
    """
    command = [sys.executable, "-P", "-m", "thinbert.serve.parse", name, suffix, str(SECONDS), str(MEMORY)]
    latest = time.monotonic() + PATIENCE
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL) as child, ThreadPoolExecutor(1) as pool:
        try:
            # not communicate() with a timeout: called again it gives no more input (python/cpython#141473)
            told = pool.submit(child.communicate, content)
            while not wait([told], timeout=0.2).done:
                if not wanted():
                    raise CancelledError("the upload was withdrawn")
                if time.monotonic() > latest:
                    raise InputError(f"{name}: takes more than {SECONDS} seconds to read; split it")
        finally:
            child.kill()
        made, _ = told.result()
    try:
        answer = json.loads(made)
    except ValueError:
        if child.returncode == -signal.SIGXCPU:
            raise InputError(f"{name}: takes more than {SECONDS} seconds to read; split it") from None
        raise InputError(f"{name}: its reader ended unexpectedly (status {child.returncode})") from None
    if "error" in answer:
        raise InputError(answer["error"])
    pages = tuple(
        Page(p["text"], p["number"], p["label"], tuple((at, heading) for at, heading in p["headings"]))
        for p in answer["pages"]
    )
    return Document(name, pages, tuple(answer["notes"]))


def main() -> None:
    import resource

    name, suffix, *limits = sys.argv[1:]
    seconds, memory = map(int, limits)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))  # the first is told apart from other ends
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    try:
        document = parse_document(name, sys.stdin.buffer.read(), suffix)
        answer = _said(pages=[asdict(p) for p in document.pages], notes=document.notes)
    except InputError as e:
        answer = _said(error=str(e))
    except MemoryError:
        answer = _said(error=f"{name}: takes more than {memory / (1 << 30):.1f} GB to read; split it")
    sys.stdout.buffer.write(answer)


def _said(**what: object) -> bytes:
    return json.dumps(what).encode()


if __name__ == "__main__":
    main()
