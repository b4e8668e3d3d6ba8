"""The documents a server answers from: an index, and the folder where uploads are kept.

An upload is stored under a name of ours, made of its content and a tame form of its own name; what a client calls a
file never becomes a path.
"""

import hashlib
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from thinbert.corpus.index import BusyError, Corpus, File, absolute
from thinbert.corpus.pages import Page
from thinbert.corpus.readers import READERS
from thinbert.errors import InputError
from thinbert.model.checkpoint import write_atomic
from thinbert.serve.batching import CancelledError
from thinbert.serve.parse import parse_apart

_ID = 16  # hexadecimal digits
_NAME = 160  # bytes of a file's own name that are kept
_OURS = re.compile(rf"[0-9a-f]{{{_ID}}}-")  # how the names of stored uploads begin


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
        self._uploads = Path(absolute(uploads))
        if self._uploads.is_relative_to(absolute(index)):
            raise InputError(
                f"{uploads}: lies inside the index, whose folder holds nothing else; give another --uploads"
            )
        self.corpus = Corpus.create(index)
        try:
            self._uploads.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise InputError(f"{uploads}: cannot be made: {e.strerror}") from e
        self._change = threading.Lock()
        self._tidy()

    def _tidy(self) -> None:
        """Drops uploads, whole or in part, that a killed process had not indexed yet: nobody was told of them."""
        with suppress(BusyError), self.corpus.writer():  # else another server may be storing one now
            known = {f.path for f in self.corpus.files()}
            for path in self._uploads.iterdir():
                if path.is_file() and str(path) not in known and _OURS.match(path.name.lstrip(".")):
                    path.unlink()

    def entries(self) -> list[Entry]:
        return [self._entry(f) for f in self.corpus.files()]

    @property
    def count(self) -> int:
        """Number of documents."""
        return self.corpus.view().files

    def add(self, name: str, content: bytes, *, wanted: Callable[[], bool] = lambda: True) -> tuple[Entry, bool]:
        """Stores and indexes a file; the same content under the same name is there only once.

        Args:
            wanted: asked before anything is written, whether somebody still waits for it.
        Returns:
            the entry, and whether it is new.
        Raises:
            InputError: the file is of no kind that is read, or cannot be; nothing is kept of it.
            BusyError: another process is writing to the index; neither is then.
        """
        tame = _tame(name)
        suffix = Path(tame).suffix.lower()
        if suffix not in READERS:
            raise InputError(f"{tame}: of no kind that is read ({' '.join(sorted(READERS))})")
        sha256 = hashlib.sha256(content).hexdigest()
        path = self._uploads / f"{sha256[:_ID]}-{tame}"
        document = parse_apart(tame, content, suffix)
        with self._change:
            known = self.corpus.file(str(path))
            if known is not None:
                return self._entry(known), False
            if not wanted():
                raise CancelledError("the upload was withdrawn")
            with self.corpus.writer() as writer:  # first: where another process holds it, nothing is stored
                try:
                    write_atomic(path, content)
                    at = path.stat()
                    about = File(str(path), at.st_size, at.st_mtime_ns, sha256, len(document.pages), 0, document.notes)
                    about = replace(about, passages=self.corpus.put(writer, document, about))
                    writer.commit()
                except BaseException as e:
                    path.unlink(missing_ok=True)
                    if isinstance(e, OSError):
                        raise InputError(f"{tame}: cannot be stored: {e.strerror}") from e
                    raise
            self.corpus.reload()
            return self._entry(about), True

    def remove(self, number: str) -> None:
        """
        Raises:
            UnknownDocumentError: no such document.
            InputError: it is no upload.
            BusyError: another process is writing to the index; nothing was removed.
        """
        with self._change:
            file = self._file(number)
            if not self._is_upload(file):
                raise InputError("is no upload: it belongs to a folder that was indexed, and goes with its file there")
            with self.corpus.writer() as writer:
                writer.remove(file.path)
                writer.commit()
            Path(file.path).unlink(missing_ok=True)
            self.corpus.reload()

    def page(self, number: str, page: int) -> Page:
        """A page's text, empty where it has none. Raises UnknownDocumentError."""
        file = self._file(number)
        try:
            return self.corpus.page(file.path, page)
        except InputError:
            if page <= file.pages:
                return Page("", page)
            raise UnknownDocumentError(f"{_shown(file)} has no page {page}") from None

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
    name = Path(path).name
    begin = _OURS.match(name)
    return name[begin.end() :] if begin else name


def _shown(file: File) -> str:
    return name_of(file.path)


def _tame(name: str) -> str:
    """The last part of a name, in letters, digits and a few marks, never empty, hidden, or long."""
    last = re.split(r"[/\\]", name)[-1]
    stem, dot, suffix = last.rpartition(".")
    if not dot:
        stem, suffix = last, ""
    stem = re.sub(r"[^\w .()+-]+", "_", stem).strip(" .")
    stem = stem.encode()[: _NAME - 10].decode(errors="ignore") or "document"
    suffix = re.sub(r"[^A-Za-z0-9]+", "", suffix)[:9]
    return f"{stem}.{suffix}" if suffix else stem


def listed(entries: Sequence[Entry]) -> list[Entry]:
    """By name, as people look for them."""
    return sorted(entries, key=lambda e: (e.name.lower(), e.id))
