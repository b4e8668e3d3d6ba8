"""An upload to pages, in a process of its own with bounded time and memory: what a file does to its reader stays there.

Run as `python -m thinbert.serve.parse NAME SUFFIX SECONDS MEMORY`: bytes on standard input, lines of JSON on standard
output: notes, or an error; then the pages.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
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
        answer, *pages = map(json.loads, made.splitlines())  # whole, it would hold up the server's other threads
        if child.returncode:
            raise ValueError("cut short")
    except ValueError:
        if child.returncode == -signal.SIGXCPU:
            raise InputError(f"{name}: takes more than {SECONDS} seconds to read; split it") from None
        raise InputError(f"{name}: its reader ended unexpectedly (status {child.returncode})") from None
    if "error" in answer:
        raise InputError(answer["error"])
    read = (Page(p["text"], p["number"], p["label"], tuple(map(tuple, p["headings"]))) for p in pages)
    return Document(name, tuple(read), tuple(answer["notes"]))


def main() -> None:
    import resource

    name, suffix, *limits = sys.argv[1:]
    seconds, memory = map(int, limits)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))  # the first is told apart from other ends
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    try:
        document = parse_document(name, sys.stdin.buffer.read(), suffix)
        answer = b"".join(map(_line, [{"notes": document.notes}, *map(asdict, document.pages)]))
    except InputError as e:
        answer = _line({"error": str(e)})
    except MemoryError:
        answer = _line({"error": f"{name}: takes more than {memory / (1 << 30):.1f} GB to read; split it"})
    sys.stdout.buffer.write(answer)


def _line(what: Mapping[str, object]) -> bytes:
    return json.dumps(what, ensure_ascii=False).encode(errors="replace") + b"\n"


if __name__ == "__main__":
    main()
