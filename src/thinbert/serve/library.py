"""The documents a server answers from: an index, and the folder where uploads are kept.

An upload is stored under a name of ours, made of its content and a tame form of its own name; what a client calls a
file never becomes a path.
"""

import hashlib
import logging
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from thinbert.corpus.documents import Document
from thinbert.corpus.index import BusyError, Corpus, File, Writer, absolute, id_of
from thinbert.corpus.pages import Page
from thinbert.corpus.readers import READERS
from thinbert.errors import CancelledError, InputError, StorageError
from thinbert.files import write_atomic
from thinbert.serve.parse import parse_apart

_log = logging.getLogger("thinbert.serve")

_HASH = 16  # hexadecimal digits of the content's hash, with which the name of a stored upload begins
_OURS = re.compile(rf"[0-9a-f]{{{_HASH}}}-")
_NAME = 160  # bytes of a file's own name that are kept


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
            raise StorageError(f"{uploads}: cannot be made: {e.strerror}") from e
        self._change = threading.Lock()
        self._tidy()

    def _tidy(self) -> None:
        """Makes uploads and index agree: what was half stored when a process was killed goes, and what is stored whole
        is indexed, whether it was not yet or the index is a new one."""
        with suppress(BusyError), self.corpus.writer() as writer:  # else another server may be storing one now
            self.corpus.reload()
            known = {f.path for f in self.corpus.files()}
            for path in sorted(self._uploads.iterdir()):
                if not path.is_file() or str(path) in known or not _OURS.match(path.name.lstrip(".")):
                    continue
                if path.name.startswith("."):
                    path.unlink()
                    continue
                try:
                    content = path.read_bytes()
                    document = parse_apart(path.name, content, path.suffix.lower())
                except (InputError, OSError) as e:
                    _log.info(f"{path}: is stored and cannot be read: {e}")
                    continue
                self._index(writer, path, content, document)
            writer.commit()
        self.corpus.reload()

    def _index(self, writer: Writer, path: Path, content: bytes, document: Document) -> File:
        at = path.stat()
        sha256 = hashlib.sha256(content).hexdigest()
        about = File(str(path), at.st_size, at.st_mtime_ns, sha256, len(document.pages), 0, document.notes)
        return replace(about, passages=self.corpus.put(writer, document, about))

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
            StorageError: there is no room for it; likewise.
            BusyError: another process is writing to the index; neither is then.
        """
        tame = _tame(name)
        suffix = Path(tame).suffix.lower()
        if suffix not in READERS:
            raise InputError(f"{tame}: of no kind that is read ({' '.join(sorted(READERS))})")
        path = self._uploads / f"{hashlib.sha256(content).hexdigest()[:_HASH]}-{tame}"
        document = parse_apart(tame, content, suffix, wanted=wanted)
        with self._change:
            known = self.corpus.file(id_of(str(path)))
            if known is not None and path.is_file():  # else it is stored again
                return self._entry(known), False
            if not wanted():
                raise CancelledError("the upload was withdrawn")
            with self.corpus.writer() as writer:  # first: where another process holds it, nothing is stored
                try:
                    write_atomic(path, content)
                    about = self._index(writer, path, content, document)
                    writer.commit()
                except BaseException as e:
                    path.unlink(missing_ok=True)
                    if isinstance(e, OSError):
                        raise StorageError(f"{tame}: cannot be stored: {e.strerror}") from e
                    raise
            self.corpus.reload()
            return self._entry(about), True

    def remove(self, number: str) -> None:
        """
        Raises:
            UnknownDocumentError: no such document.
            InputError: it is no upload.
            BusyError: another process is writing to the index; nothing was removed.
            StorageError: the file cannot be removed; it stays indexed.
        """
        with self._change:
            file = self._file(number)
            if not self._is_upload(file.path):
                raise InputError("is no upload: it belongs to a folder that was indexed, and goes with its file there")
            with self.corpus.writer() as writer:
                writer.remove(file.path)
                try:  # before another process may look: what is stored and not indexed it would take for an addition
                    Path(file.path).unlink(missing_ok=True)
                except OSError as e:
                    raise StorageError(f"{self.name(file.path)}: cannot be removed: {e.strerror}") from e
                writer.commit()
            self.corpus.reload()

    def page(self, number: str, page: int) -> tuple[Page, tuple[int | None, int | None]]:
        """A page, and the numbers of those before and after it. Raises UnknownDocumentError, also for one without
        text."""
        file = self._file(number)
        view = self.corpus.view()
        try:
            return view.page(file.path, page), view.beside(file.path, page)
        except InputError:
            raise UnknownDocumentError(f"{self.name(file.path)} has no page {page}, or none with text") from None

    def path(self, number: str) -> Path:
        """The file itself. Raises UnknownDocumentError, also where it is gone."""
        path = Path(self._file(number).path)
        if not path.is_file():
            raise UnknownDocumentError("the file is gone; index its folder again")
        return path

    def name(self, path: str) -> str:
        """What people call a file: its name, less what `add` put before it."""
        name = Path(path).name
        return _OURS.sub("", name, count=1) if self._is_upload(path) else name

    def _file(self, number: str) -> File:
        file = self.corpus.file(number)
        if file is None:
            raise UnknownDocumentError(f"no document {number[:_HASH]!r}")
        return file

    def _is_upload(self, path: str) -> bool:
        return Path(path).parent == self._uploads and _OURS.match(Path(path).name) is not None

    def _entry(self, f: File) -> Entry:
        return Entry(f.id, self.name(f.path), f.size, f.pages, f.passages, f.notes, self._is_upload(f.path))


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
