"""People's files: which there are, and what is in them. What cannot be read is named, and the rest goes on."""

import glob
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from thinbert.corpus.pages import Page, is_text
from thinbert.corpus.readers import READERS, Read, kind_of, read_text
from thinbert.errors import InputError

STDIN, _STDIN_SHOWN = "-", "standard input"
_DEEPEST = 200  # folders in one another
_LONGEST_HEADING = 200  # characters of headings and labels
INDEX_MARKER = "thinbert-index.json"  # a folder with it is an index, and holds no documents
MAX_MB = 100  # of a file: larger ones are seldom documents, and everything of a file is held at once


class TooLargeError(InputError):
    """Larger than files that are read; another limit would let it in."""


@dataclass(frozen=True)
class Document:
    name: str  # as the user called it
    pages: tuple[Page, ...]
    notes: tuple[str, ...] = ()  # what could not be read of it


@dataclass
class Report:
    """What was not read."""

    skipped: list[tuple[str, str]] = field(default_factory=list)  # file, reason
    notes: list[tuple[str, str]] = field(default_factory=list)  # file, what of it was left out
    others: dict[str, int] = field(default_factory=dict)  # suffix -> files in folders that are of no kind that is read


def read_document(name: str, *, max_mb: float = MAX_MB) -> Document:
    """A file by its suffix (others are read as text), or for "-" standard input by how it begins, as PDF, HTML, Word
    or text; its name then has the suffix of its kind.

    Raises:
        InputError: unreadable, a directory, too large, damaged, encrypted, or without text; naming the file.
    """
    if name == STDIN:
        try:
            content = _read_stdin(max_mb)
        except InputError as e:
            raise InputError(f"{_STDIN_SHOWN}: {e}") from None
        suffix = kind_of(content)
        return _document(_STDIN_SHOWN + suffix, lambda: content, suffix)
    path = Path(name)
    return _document(name, lambda: content_of(path, max_mb), path.suffix.lower())


def text_document(name: str, text: str) -> Document:
    """A document of one page, given as text. Raises InputError where there is nothing to read in it."""
    try:
        return _checked(name, Read((Page(text),)))
    except InputError as e:
        raise InputError(f"{name}: {e}") from None


def find_files(names: Iterable[str], report: Report) -> Iterator[str]:
    """The files that names mean: files as they are, folders with what is in them of the kinds that are read, patterns
    (`*.pdf`, `**/*.md`) with what they match; sorted, each once. Hidden files and folders are passed over.

    Raises:
        InputError: a name means nothing.
    """
    seen: set[str] = set()
    walked: set[tuple[int, int]] = set()
    for name in names:
        matches = [name]
        if name != STDIN and _is_pattern(name):
            matches = _matches(name)
            if not matches:
                raise InputError(f"{name}: matches no file")
        elif name != STDIN:
            try:
                os.lstat(name)
            except (FileNotFoundError, NotADirectoryError):
                raise InputError(f"{name}: no such file or folder") from None
            except OSError as e:
                raise InputError(f"{name}: cannot be read: {e.strerror}") from None
        for file in (f for m in matches for f in (_under(m, report, walked) if _is_folder(m) else [m])):
            if not is_text(file):
                shown = tame_text(file, 1000)
                report.skipped.append((shown, "its name is not UTF-8; rename it"))
                continue
            key = os.path.realpath(file) if file != STDIN else file
            if key not in seen:
                seen.add(key)
                yield file


def folders(names: Iterable[str]) -> Iterator[str]:
    """Those of the names, and of what patterns among them match, that are folders."""
    for name in names:
        yield from filter(_is_folder, _matches(name) if _is_pattern(name) else [name])


def _is_folder(name: str) -> bool:
    return name != STDIN and os.path.isdir(name)  # noqa: PTH112 (a Path raises where it may not look)


def _is_pattern(name: str) -> bool:
    return glob.has_magic(name) and not os.path.lexists(name)


def _matches(pattern: str) -> list[str]:
    """Names that a pattern stands for, in order. `**` does not go through links, which may lead round and round."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return sorted(glob.glob(pattern))  # noqa: PTH207 (absolute patterns too)
    first = next(n for n, part in enumerate(parts) if glob.has_magic(part))
    base = Path(*parts[:first])
    below = str(Path(*(part if part == "**" else part.replace("**", "*") for part in parts[first:])))
    found = (f.relative_to(base) for f in base.glob(below))
    return sorted(str(base / f) for f in found if not any(p.startswith(".") and p not in parts for p in f.parts))


def _under(folder: str, report: Report, walked: set[tuple[int, int]]) -> Iterator[str]:
    """Files of a folder and those below, in order of their names.

    Args:
        walked: folders that need not be walked again, whatever links lead to them; those of this one are added.
    """

    def walk(at: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
        try:
            here = Path(at).stat()
            entries = sorted(os.scandir(at), key=lambda e: e.name)
        except OSError as e:
            report.skipped.append((at, f"cannot be read: {e.strerror}"))
            return
        key = (here.st_dev, here.st_ino)
        if key in above:
            report.skipped.append((at, "links back to a folder above it"))
            return
        if len(above) == _DEEPEST:
            report.skipped.append((at, f"lies more than {_DEEPEST} folders deep"))
            return
        if key in walked:
            return
        walked.add(key)
        if any(entry.name == INDEX_MARKER for entry in entries):
            return
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                is_folder = entry.is_dir()
                exists = is_folder or stat.S_ISREG(entry.stat().st_mode)
            except OSError as e:
                report.skipped.append((entry.path, f"cannot be read: {e.strerror}"))
                continue
            if is_folder:
                yield from walk(entry.path, above | {key})
            elif not exists:
                report.skipped.append((entry.path, "is not a file"))
            elif (suffix := Path(entry.name).suffix.lower()) in READERS:
                yield entry.path
            else:
                report.others[suffix or "no suffix"] = report.others.get(suffix or "no suffix", 0) + 1

    return walk(folder, frozenset())


def read_documents(names: Iterable[str], report: Report, *, max_mb: float = MAX_MB) -> Iterator[Document]:
    """Documents of all files that can be read; the report gets the others."""
    for name in find_files(names, report):
        try:
            document = read_document(name, max_mb=max_mb)
        except InputError as e:
            shown = _STDIN_SHOWN if name == STDIN else name
            report.skipped.append((shown, str(e).removeprefix(f"{shown}: ")))
            continue
        report.notes += [(name, note) for note in document.notes]
        yield document


def parse_document(name: str, content: bytes, suffix: str) -> Document:
    """A document from bytes that are there already (an upload).

    Raises:
        InputError: as `read_document`."""
    return _document(name, lambda: content, suffix)


def _document(name: str, content: Callable[[], bytes], suffix: str) -> Document:
    try:
        return _checked(name, READERS.get(suffix, read_text)(content()))
    except InputError as e:
        raise InputError(f"{name}: {e}") from None
    except MemoryError:  # which says nothing of the file
        raise
    except Exception as e:  # readers stand on libraries, and files are hostile: one that breaks them is refused
        raise InputError(f"{name}: is damaged, or not what its name says ({type(e).__name__}: {e})") from None


def _checked(name: str, read: Read) -> Document:
    """The document, if it has anything to read in it; headings and labels cut to what can be shown."""
    pages = []
    for page in read.pages:
        if not is_text(page.text):
            raise InputError("is not UTF-8; convert it first")
        headings = tuple((at, tame_text(heading, _LONGEST_HEADING)) for at, heading in page.headings)
        pages.append(replace(page, label=tame_text(page.label, _LONGEST_HEADING), headings=headings))
    if not any(p.text.strip() for p in pages):
        raise InputError("is empty; there is no text to look for an answer in")
    return Document(name, tuple(pages), read.notes)


def tame_text(text: str, longest: int) -> str:
    """At most so many characters, all of which can be stored."""
    return text[:longest].encode(errors="replace").decode()


def content_of(path: Path, max_mb: float) -> bytes:
    """The bytes of a file (or pipe). Raises InputError with the reason, without the name."""
    try:
        size = path.stat()
        if stat.S_ISDIR(size.st_mode):
            raise InputError("is a directory; name the files in it")
        if not (stat.S_ISREG(size.st_mode) or stat.S_ISFIFO(size.st_mode)):
            raise InputError("is not a file")
        if size.st_size > max_mb * 1e6:
            raise TooLargeError(f"has {size.st_size / 1e6:.1f} MB, more than {max_mb:g} MB (--max-mb)")
        with path.open("rb") as file:
            return _at_most(file, max_mb)
    except FileNotFoundError:
        raise InputError("no such file") from None
    except OSError as e:
        raise InputError(f"cannot be read: {e.strerror}") from e


def _read_stdin(max_mb: float) -> bytes:
    if sys.stdin is None:
        raise InputError("is closed")
    return _at_most(sys.stdin.buffer, max_mb)


def _at_most(file: IO[bytes], max_mb: float) -> bytes:
    """All of a file or pipe, in pieces: a limit may be larger than memory."""
    content = bytearray()
    while piece := file.read(1 << 20):
        content += piece
        if len(content) > max_mb * 1e6:
            raise TooLargeError(f"has more than {max_mb:g} MB (--max-mb)")
    return bytes(content)
