"""The errors thinbert raises on purpose: what was wrong, what was found, what was expected, what to do."""

import reprlib
from collections.abc import Iterable
from itertools import islice

_QUOTED = 100  # characters
_SHORT = reprlib.Repr()  # which never looks at the whole of what is nested: a pickle of 186 bytes can hold 2^60 tuples
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 4 * _QUOTED, 4 * _QUOTED, 4 * _QUOTED


def quoted(value: object) -> str:
    """What a file says, for a message: as Python would write it, and never the whole of a long one."""
    text = _SHORT.repr(value)
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…"


def some(names: Iterable[str]) -> str:
    """The first of the names that a file has, for a message."""
    return ", ".join(name[:40] for name in islice(names, 10)) or "nothing"


class Error(Exception):
    """Base of every error thinbert raises on purpose; the command line prints it as one line and exits with 2."""


class ModelError(Error):
    """A model folder, a hub id or one of its files cannot be used."""


class InputError(Error, ValueError):
    """Text, data or an argument given by the caller cannot be used. Also a ValueError, as Python programs expect."""


class StorageError(Error):
    """What is to be kept cannot be written: a full disk, a folder that may not be changed."""


class CancelledError(Error):
    """Nobody waits for this any more."""
