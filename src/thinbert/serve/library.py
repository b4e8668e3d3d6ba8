"""The documents a server answers from: an index, and the folder where uploads are kept.

An upload is stored under a name of ours, made of its content and a tame form of its own name; what a client calls a
file never becomes a path.
"""

import hashlib
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from thinbert.corpus.documents import parse_document
from thinbert.corpus.index import Corpus, File
from thinbert.corpus.pages import Page
from thinbert.corpus.readers import READERS
from thinbert.errors import InputError
from thinbert.model.checkpoint import write_atomic

_ID = 16  # hexadecimal digits
_NAME = 80  # characters of a file's own name that are kept


class UnknownDocumentError(InputError):
    """There is no document of that number."""


@dataclass(frozen=True)
class Entry:
    id: str
    name: str
    size: int  # bytes
    pages: int
    passages: int
    notes: tuple[str, ...]
    uploaded: bool  # else it belongs to a folder that was indexed, and is only read here


class Library:
    """Safe for several threads: one changes it at a time, any number read."""

    def __init__(self, index: Path, uploads: Path) -> None:
        self.corpus = Corpus.create(index)
        self._uploads = uploads.absolute()
        try:
            self._uploads.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise InputError(f"{uploads}: cannot be made: {e.strerror}") from e
        self._change = threading.Lock()

    def entries(self) -> list[Entry]:
        return [self._entry(f) for f in self.corpus.files()]

    def add(self, name: str, content: bytes) -> tuple[Entry, bool]:
        """Stores and indexes a file; the same content under the same name is there only once.

        Returns:
            the entry, and whether it is new.
        Raises:
            InputError: the file is of no kind that is read, or cannot be; nothing is kept of it.
        """
        tame = _tame(name)
        suffix = Path(tame).suffix.lower()
        if suffix not in READERS:
            raise InputError(f"{tame}: of no kind that is read ({' '.join(sorted(READERS))})")
        parse_document(tame, content, suffix)
        path = self._uploads / f"{hashlib.sha256(content).hexdigest()[:_ID]}-{tame}"
        with self._change:
            if path.exists():
                known = next((f for f in self.corpus.files() if f.path == str(path)), None)
                if known is not None:
                    return self._entry(known), False
            try:
                write_atomic(path, content)
            except OSError as e:
                raise InputError(f"{tame}: cannot be stored: {e.strerror}") from e
            self.corpus.update([str(path)], max_mb=len(content) / 1e6 + 1)
            return self._entry(next(f for f in self.corpus.files() if f.path == str(path))), True

    def remove(self, number: str) -> None:
        """
        Raises:
            UnknownDocumentError: no such document.
            InputError: it is no upload.
        """
        with self._change:
            file = self._file(number)
            if not self._is_upload(file):
                raise InputError("is no upload: it belongs to a folder that was indexed, and goes with its file there")
            Path(file.path).unlink(missing_ok=True)
            with self.corpus.writer() as writer:
                writer.remove(file.path)
                writer.commit()
            self.corpus.reload()

    def page(self, number: str, page: int) -> Page:
        """Raises UnknownDocumentError."""
        file = self._file(number)
        try:
            return self.corpus.page(file.path, page)
        except InputError:
            raise UnknownDocumentError(f"{_shown(file)} has no page {page} with text") from None

    def path(self, number: str) -> Path:
        """The file itself. Raises UnknownDocumentError, also where it is gone."""
        path = Path(self._file(number).path)
        if not path.is_file():
            raise UnknownDocumentError("the file is gone; index its folder again")
        return path

    def _file(self, number: str) -> File:
        for file in self.corpus.files():
            if number_of(file.path) == number:
                return file
        raise UnknownDocumentError(f"no document {number[:_ID]!r}")

    def _is_upload(self, file: File) -> bool:
        return Path(file.path).parent == self._uploads

    def _entry(self, file: File) -> Entry:
        return Entry(
            number_of(file.path), _shown(file), file.size, file.pages, file.passages, file.notes, self._is_upload(file)
        )


def number_of(path: str) -> str:
    """What a document is called in URLs."""
    return hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:_ID]


def name_of(path: str) -> str:
    """What people call a file: its name, less what `add` put before it."""
    return re.sub(rf"^[0-9a-f]{{{_ID}}}-", "", Path(path).name)


def _shown(file: File) -> str:
    return name_of(file.path)


def _tame(name: str) -> str:
    """The last part of a name, in letters, digits and a few marks, never empty, hidden, or long."""
    last = re.split(r"[/\\]", name)[-1]
    stem, dot, suffix = last.rpartition(".")
    if not dot:
        stem, suffix = last, ""
    stem = re.sub(r"[^\w .()+-]+", "_", stem).strip(" .")[: _NAME - 10] or "document"
    suffix = re.sub(r"[^A-Za-z0-9]+", "", suffix)[:9]
    return f"{stem}.{suffix}" if suffix else stem


def listed(entries: Sequence[Entry]) -> list[Entry]:
    """By name, as people look for them."""
    return sorted(entries, key=lambda e: (e.name.lower(), e.id))
