"""An upload to pages, in a process of its own with bounded time and memory: what a file does to its reader stays there.

Run as `python -m thinbert.serve.parse NAME SUFFIX`: bytes on standard input, one JSON object on standard output.
"""

import json
import subprocess
import sys
from dataclasses import asdict

from thinbert.corpus.documents import Document, parse_document
from thinbert.corpus.pages import Page
from thinbert.errors import InputError

SECONDS, MEMORY = 60, 2 << 30  # of processor time, and bytes


def parse_apart(name: str, content: bytes, suffix: str) -> Document:
    """What documents.parse_document makes of it.

    Raises:
        InputError: it cannot be read, or takes too long or too much memory.
    """
    command = [sys.executable, "-m", "thinbert.serve.parse", name, suffix]
    try:
        # twice the time, for a machine that is busy
        done = subprocess.run(command, input=content, capture_output=True, timeout=2 * SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise InputError(f"{name}: takes more than {SECONDS} seconds to read; split it") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise InputError(f"{name}: takes more than {SECONDS} seconds or {MEMORY >> 30} GB to read; split it") from None
    if "error" in answer:
        raise InputError(answer["error"])
    pages = tuple(
        Page(p["text"], p["number"], p["label"], tuple((at, heading) for at, heading in p["headings"]))
        for p in answer["pages"]
    )
    return Document(name, pages, tuple(answer["notes"]))


def main() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    name, suffix = sys.argv[1:]
    try:
        document = parse_document(name, sys.stdin.buffer.read(), suffix)
        answer = {"pages": [asdict(p) for p in document.pages], "notes": document.notes}
    except InputError as e:
        answer = {"error": str(e)}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
