"""Files that are written whole or not at all, and by one process at a time."""

import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from thinbert.errors import InputError

_UNFINISHED = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")  # what `replacing` calls files that are not whole yet


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces `path` by `data` in one step; a crash leaves the old file or the new one, never a part."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of `path` in one step once it is whole; on an error it is dropped."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def leftovers(folder: Path, name: str | None = None) -> list[Path]:
    """Files that `replacing` left there unfinished, where its process was killed; of one name, or of all."""
    found = ((f, _UNFINISHED.fullmatch(f.name)) for f in folder.iterdir())
    return [f for f, match in found if match and name in (None, match[1])]


def lock(file: IO[bytes], what: Path) -> None:
    """Holds an open file for this process until it is closed; `what` is written under its protection.

    Raises:
        InputError: another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{what}: another process is writing here; wait for it, or give another --out") from None
