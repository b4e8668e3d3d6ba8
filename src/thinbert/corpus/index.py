"""A searchable corpus: passages of documents under BM25, in memory or in a folder that follows the files on disk.

Everything is one tantivy index, so one commit is all or nothing: a process killed at any moment leaves the state of the
last commit. Its documents are passages, pieces of pages: their text, and where it stands. The first of a file says what
is known of the file too: size, time and hash it was read at, and what could not be read of it. (In a document of its
own that would count in BM25, as one without words.)
"""

import hashlib
import json
import os
import re
import stat
import time
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import tantivy

from thinbert.corpus.documents import (
    INDEX_MARKER,
    MAX_MB,
    STDIN,
    Document,
    Report,
    TooLargeError,
    content_of,
    find_files,
    folders,
    parse_document,
    tame_text,
)
from thinbert.corpus.pages import Page, is_text, passages, unlike
from thinbert.errors import InputError, StorageError
from thinbert.files import write_atomic

_FORMAT = 4  # of the fields below; an index of another format is made anew by the user
_HEAP = 64_000_000  # bytes that the writer fills before it writes a segment
_COMMIT_BYTES, _COMMIT_SECONDS = 64 << 20, 20.0  # text or time after which work is made safe
_WEIGHTS = {"words": 1.0, "heading": 0.5, "name": 0.3}  # of a word's score, by where it stands
_UNSEEN = re.compile("[\u00ad\u200c-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_FORBIDDEN = re.compile("PermissionDenied|ReadOnlyFilesystem")  # in tantivy's words
# tantivy's files of an empty index, which it makes before ours
_BEGUN = (".managed.json", "meta.json", ".tantivy-meta.lock", ".tantivy-writer.lock", ".tmp")

Progress = Callable[[int, int], None]  # bytes done, of


def _analyzer(*, queries: bool) -> tantivy.TextAnalyzer:
    """Words in lower case, without accents, stemmed as English; those of questions without its commonest words too."""
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    builder = builder.filter(tantivy.Filter.remove_long(60)).filter(tantivy.Filter.lowercase())
    if queries:
        builder = builder.filter(tantivy.Filter.stopword("english")).filter(
            tantivy.Filter.custom_stopword(
                ["what", "who", "whom", "whose", "which", "when", "where", "why", "how", "did", "do", "does"]
            )
        )
    return builder.filter(tantivy.Filter.ascii_fold()).filter(tantivy.Filter.stemmer("english")).build()


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    # what only the first passage of a file has: the kind "file", beside "passage", and
    builder.add_text_field("id", tokenizer_name="raw", index_option="basic")  # of the file
    builder.add_bytes_field("known", stored=True)  # of the file
    # what all have
    builder.add_text_field("kind", tokenizer_name="raw", index_option="basic")
    builder.add_text_field("file", stored=True, tokenizer_name="raw", index_option="basic")
    builder.add_unsigned_field("page", stored=True, indexed=True, fast=True)
    builder.add_unsigned_field("start", stored=True)
    builder.add_text_field("label", stored=True, tokenizer_name="raw", index_option="basic")
    builder.add_bytes_field("body", stored=True)  # the text as it stands; it is found by its words
    builder.add_text_field("words", tokenizer_name="words", index_option="freq")
    builder.add_text_field("heading", tokenizer_name="words", index_option="freq")
    builder.add_text_field("name", tokenizer_name="words", index_option="freq")
    builder.add_bytes_field("headings", stored=True)
    return builder.build()


@contextmanager
def _sound() -> Iterator[None]:
    """What tantivy says of a damaged index, in our words."""
    try:
        yield
    except InputError:
        raise
    except BaseException as e:
        if not isinstance(e, ValueError | OSError) and type(e).__name__ != "PanicException":
            raise
        raise InputError(f"the index is damaged ({e}); delete it and index again") from None


class BusyError(InputError):
    """Another process is writing."""


@dataclass(frozen=True)
class File:
    """What the index knows of a file."""

    path: str
    size: int
    mtime_ns: int
    sha256: str
    pages: int
    passages: int
    notes: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return id_of(self.path)


def searchable(text: str) -> str:
    """Text as it is searched: what looks the same is found by the same question. Letters and their accents are one
    character, and what is not seen inside of words (soft hyphens, joiners, marks of direction) is not there."""
    return unicodedata.normalize("NFKC", _UNSEEN.sub("", text))


def id_of(path: str) -> str:
    """What a file is looked up by, and called in URLs: 16 hexadecimal digits."""
    return hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:16]


@dataclass(frozen=True)
class Hit:
    """A passage that was found: `text` is page.text[start : start + len(text)]."""

    file: str
    page: int
    label: str
    start: int
    text: str
    headings: tuple[tuple[int, str], ...]  # where in the page each begins: the last before the passage, and those in it
    score: float  # BM25: comparable among the hits of one question


@dataclass
class Changes:
    added: int = 0
    updated: int = 0
    removed: int = 0
    unchanged: int = 0
    bytes: int = 0  # of the files that were read
    pages: int = 0
    passages: int = 0
    report: Report = field(default_factory=Report)


class Corpus:
    """Passages to search. Open one with `in_memory`, `open` or `create`."""

    def __init__(self, index: tantivy.Index, folder: Path | None) -> None:
        index.register_tokenizer("words", _analyzer(queries=False))
        self.folder = folder
        self._index, self._schema = index, index.schema
        self._questions, self._words = _analyzer(queries=True), _analyzer(queries=False)
        if folder is not None:
            index.config_reader("commit")

    # --- where it is --------------------------------------------------------------------------------------------------

    @staticmethod
    def in_memory(documents: Iterable[Document]) -> "Corpus":
        corpus = Corpus(tantivy.Index(_schema()), None)
        taken: dict[str, int] = {}
        with corpus.writer() as writer:
            for document in documents:
                # a name is what pages are found by: a second document of it gets another
                corpus.add(writer, replace(document, name=unlike(document.name, taken)))
            writer.commit()
        corpus.reload()
        return corpus

    @staticmethod
    def open(folder: str | Path) -> "Corpus":
        """Raises InputError where there is no index, or one of another format."""
        folder = Path(folder)
        marker = folder / INDEX_MARKER
        try:
            known = json.loads(marker.read_text())["format"]
        except FileNotFoundError:
            raise InputError(f"{folder}: no index here; make one with thinbert index FOLDER --index {folder}") from None
        except OSError as e:
            raise InputError(f"{folder}: cannot be read as an index: {e.strerror}") from None
        except (ValueError, KeyError, TypeError) as e:
            raise InputError(f"{marker}: damaged ({e}); delete {folder} and index again") from None
        if known != _FORMAT:
            raise InputError(
                f"{folder}: an index of format {known!r}; this thinbert has format {_FORMAT}: delete it and index again"
            )
        try:
            return Corpus(tantivy.Index.open(str(folder)), folder)
        except (ValueError, OSError) as e:
            if _FORBIDDEN.search(str(e)):
                raise InputError(
                    f"{folder}: an index is locked while it is opened, and nothing may be written there ({e})"
                ) from None
            raise InputError(f"{folder}: the index is damaged ({e}); delete it and index again") from None

    @staticmethod
    def create(folder: str | Path) -> "Corpus":
        """Opens an index, or makes an empty one in a folder that is new or empty."""
        folder = Path(folder)
        if not is_text(str(folder)):
            raise InputError(f"{tame_text(str(folder), 1000)}: the name is not UTF-8; give another --index")
        if (folder / INDEX_MARKER).exists():
            return Corpus.open(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # what a process killed right here left behind is an index without a marker: it is taken up
            if any(INDEX_MARKER not in f.name and not f.name.startswith(_BEGUN) for f in folder.iterdir()):
                raise InputError(f"{folder}: is not empty and no index; give another --index")
            index = tantivy.Index(_schema(), path=str(folder))
            write_atomic(folder / INDEX_MARKER, (json.dumps({"format": _FORMAT}) + "\n").encode())
        except OSError as e:
            raise StorageError(f"{folder}: cannot be written: {e.strerror or e}") from e
        except InputError:
            raise
        except ValueError as e:  # somebody else's meta.json
            raise InputError(f"{folder}: is not empty and no index ({e}); give another --index") from None
        return Corpus(index, folder)

    # --- changing it --------------------------------------------------------------------------------------------------

    def writer(self) -> "Writer":
        """The one writer; readers go on meanwhile. Raises InputError where another process holds it."""
        return Writer(self._index, self.folder)

    def add(self, writer: "Writer", document: Document, about: File | None = None) -> int:
        """Adds a document's passages, and what is known of its file; returns the number of passages."""
        key = about.path if about else document.name
        pieces = [(page, passage) for page in document.pages for passage in passages(page)]
        known = replace(about, passages=len(pieces)) if about else None
        for number, (page, p) in enumerate(pieces):
            passage = Hit(key, page.number, page.label, p.start, page.text[p.start : p.end], p.headings, 0.0)
            self._write(writer, passage, None if number else known)
        return len(pieces)

    def _write(self, writer: "Writer", passage: Hit, known: File | None) -> None:
        """Adds a passage, and what is known of its file where it is the first."""
        of_file = {"id": known.id, "known": json.dumps(asdict(known)).encode()} if known else {}
        writer.add(
            kind=["passage", "file"] if known else "passage",
            file=passage.file,
            page=passage.page,
            start=passage.start,
            label=passage.label,
            body=passage.text.encode(),
            words=searchable(passage.text),
            heading=searchable("\n".join(heading for _, heading in passage.headings)),
            headings=json.dumps(passage.headings).encode(),
            name=searchable(Path(passage.file).stem.replace("_", " ").replace("-", " ")),
            **of_file,
        )

    def update(
        self,
        names: Iterable[str] = (),
        *,
        max_mb: float = MAX_MB,
        progress: Progress = lambda done, of: None,
    ) -> Changes:
        """Makes the index follow the files that names mean (see documents.find_files), or, without names, the files it
        already has. New files are added; files whose size or time changed are hashed, and read again if their content
        did; files that are gone from the named folders, or hold nothing to read any more, are removed. What cannot be
        looked at just now (a folder that may not be listed, a disk that is not there, a file over `max_mb`) stays as it
        is.
        """
        changes = Changes()
        named = list(names)
        if STDIN in named:
            raise InputError("standard input cannot be indexed: it has no place to go back to; save it to a file first")
        with self.writer() as writer:
            self.reload()  # what another process has written until now
            self._update(writer, named, changes, max_mb, progress)
        self.reload()
        return changes

    def forget(self, names: Iterable[str]) -> int:
        """Takes files out of the index, whether or not they are on the disk: those named, and all below folders named.
        Returns how many. Raises InputError where a name is of none."""
        with self.writer() as writer:
            self.reload()
            known = {f.path for f in self.files()}
            forgotten: set[str] = set()
            for name in names:
                at = absolute(name)
                below = {path for path in known if path == at or path.startswith(at.rstrip(os.sep) + os.sep)}
                if not below:
                    raise InputError(f"{name}: is not in the index, and nothing below it is")
                forgotten |= below
            for path in forgotten:
                writer.remove(path)
            writer.commit()
        self.reload()
        return len(forgotten)

    def _update(self, writer: "Writer", named: list[str], changes: Changes, max_mb: float, progress: Progress) -> None:
        known = {f.path: f for f in self.files()}
        if named:
            found = [absolute(f) for f in find_files(named, changes.report)]
            nameless = [f for f in found if not is_text(f)]  # where the folder we are in is
            changes.report.skipped += [(tame_text(f, 1000), "its name is not UTF-8; rename it") for f in nameless]
            found = [f for f in found if is_text(f)]
        else:
            found = [p for p in known if _is_there(p)]
        if self.folder:
            own = absolute(self.folder) + os.sep
            found = [f for f in found if not f.startswith(own)]
        roots = tuple(absolute(n).rstrip(os.sep) + os.sep for n in folders(named))
        missing = {p for p in known if not named or p.startswith(roots)} - set(found)
        refused: set[str] = set()  # hold nothing to read, any more
        # of a kind that folders are not searched for, or found by another name
        if again := {p for p in missing if os.path.isfile(p)}:  # noqa: PTH113 (a Path raises where it may not look)
            refused = again & _links(found, again)
            found += sorted(again - refused)
            missing -= again
        sizes = {f: _size(f) for f in found}
        total, done, unsafe, last = sum(sizes.values()), 0, 0, time.monotonic()
        for path in found:
            progress(done, total)
            if not self._follow(writer, path, known.get(path), changes, max_mb) and path in known:
                refused.add(path)
            done += sizes[path]
            unsafe += sizes[path]
            if unsafe >= _COMMIT_BYTES or time.monotonic() - last >= _COMMIT_SECONDS:
                writer.commit()
                unsafe, last = 0, time.monotonic()
        for path in sorted(missing | refused):
            if path in refused or _is_gone(path, whole_folders=bool(named)):
                writer.remove(path)
                changes.removed += 1
            else:
                changes.report.notes.append(
                    (path, "cannot be looked at now; what was indexed of it is kept (--forget takes it out)")
                )
        progress(total, total)
        writer.commit()

    def _follow(self, writer: "Writer", path: str, before: File | None, changes: Changes, max_mb: float) -> bool:
        """Brings one file up to date, or leaves it as it is where it cannot be looked at now. False where it holds
        nothing to read."""
        try:
            at = Path(path).stat()
            if before and (before.size, before.mtime_ns) == (at.st_size, at.st_mtime_ns):
                changes.unchanged += 1
                return True
            if not stat.S_ISREG(at.st_mode):
                raise InputError("is not a file")  # which reading a pipe would wait for
            content = content_of(Path(path), max_mb)
        except OSError as e:
            changes.report.skipped.append((path, f"cannot be read: {e.strerror}"))
            return True
        except InputError as e:
            changes.report.skipped.append((path, str(e)))
            return isinstance(e, TooLargeError) or isinstance(e.__cause__, OSError)
        sha256 = hashlib.sha256(content).hexdigest()
        if before and before.sha256 == sha256:
            ((first, _),) = self._firsts("id", before.id)
            writer.remove_first(before)
            self._write(writer, first, replace(before, size=at.st_size, mtime_ns=at.st_mtime_ns))
            changes.unchanged += 1
            return True
        try:
            document = parse_document(path, content, Path(path).suffix.lower())
        except InputError as e:
            changes.report.skipped.append((path, str(e).removeprefix(f"{path}: ")))
            return False
        about = File(path, at.st_size, at.st_mtime_ns, sha256, len(document.pages), 0, document.notes)
        changes.passages += self.put(writer, document, about)
        changes.report.notes += [(path, note) for note in document.notes]
        changes.bytes += at.st_size
        changes.pages += len(document.pages)
        if before:
            changes.updated += 1
        else:
            changes.added += 1
        return True

    def put(self, writer: "Writer", document: Document, about: File) -> int:
        """Adds a file's document in the place of what there was of it; returns the number of passages."""
        writer.remove(about.path)
        return self.add(writer, document, about)

    def reload(self) -> None:
        """Sees what was committed just now; otherwise it is seen within half a second."""
        self._index.reload()

    # --- reading it ---------------------------------------------------------------------------------------------------

    def files(self) -> list[File]:
        """All files, by path."""
        return sorted((file for _, file in self._firsts("kind", "file")), key=lambda f: f.path)

    def file(self, id: str) -> File | None:
        return next((file for _, file in self._firsts("id", id)), None)

    @_sound()
    def _firsts(self, name: str, value: str) -> list[tuple[Hit, File]]:
        """First passages of files, and what is known of these."""
        found = []
        searcher, query = self._index.searcher(), tantivy.Query.term_query(self._schema, name, value)
        for _, address in searcher.search(query, limit=max(1, searcher.num_docs), count=False).hits:
            raw: dict[str, Any] = json.loads(bytes(searcher.doc(address)["known"][0]))
            found.append((_hit(searcher, 0.0, address), File(**{**raw, "notes": tuple(raw["notes"])})))
        return found

    def stale(self, paths: Collection[str]) -> list[str]:
        """Those of some indexed files that are not on the disk as they were read."""

        def same(path: str) -> bool:
            file = self.file(id_of(path))
            try:
                at = Path(path).stat()
            except OSError:
                return False
            return file is not None and (file.size, file.mtime_ns) == (at.st_size, at.st_mtime_ns)

        return sorted(path for path in paths if not same(path))

    def state(self) -> str:
        """A hash of what is indexed: files and their content."""
        lines = "".join(f"{f.path} {f.sha256}\n" for f in self.files())
        return hashlib.sha256(lines.encode()).hexdigest()

    def view(self) -> "View":
        """The index as it is now; a question searches, reads and cites in one view, whatever changes meanwhile."""
        return View(self._index.searcher(), self._schema, self._questions, self._words)

    def search(self, question: str, limit: int) -> list[Hit]:
        return self.view().search(question, limit)

    def page(self, file: str, number: int) -> Page:
        return self.view().page(file, number)

    @property
    def passages(self) -> int:
        return self.view().passages


class View:
    """One state of an index."""

    def __init__(
        self,
        searcher: tantivy.Searcher,
        schema: tantivy.Schema,
        questions: tantivy.TextAnalyzer,
        words: tantivy.TextAnalyzer,
    ) -> None:
        self._searcher, self._schema, self._questions, self._words = searcher, schema, questions, words

    @_sound()
    def page(self, file: str, number: int) -> Page:
        """The text of a page as it was indexed.

        Raises:
            InputError: no such page.
        """
        schema, searcher = self._schema, self._searcher
        query = tantivy.Query.boolean_query(
            [
                (tantivy.Occur.Must, tantivy.Query.term_query(schema, "file", file)),
                (tantivy.Occur.Must, tantivy.Query.term_query(schema, "page", number)),
            ]
        )
        hits = [_hit(searcher, 0.0, a) for _, a in searcher.search(query, limit=max(1, searcher.num_docs)).hits]
        hits.sort(key=lambda h: h.start)
        if not hits:
            raise InputError(f"{file}: no page {number} in the index")
        parts: list[str] = []
        end = 0
        for h in hits:  # passages overlap; what each adds is joined at the end, for a page may be a whole book
            parts.append(h.text[end - h.start :])
            end = h.start + len(h.text)
        headings = dict.fromkeys(heading for h in hits for heading in h.headings)
        return Page("".join(parts), number, hits[0].label, tuple(headings))

    @_sound()
    def beside(self, file: str, number: int) -> tuple[int | None, int | None]:
        """Numbers of the pages with text before and after one."""
        of_file = tantivy.Query.term_query(self._schema, "file", file)

        def nearest(order: tantivy.Order, lower: int | None, upper: int | None) -> int | None:
            integer = tantivy.FieldType.Unsigned
            within = tantivy.Query.range_query(self._schema, "page", integer, lower, upper)
            query = tantivy.Query.boolean_query([(tantivy.Occur.Must, of_file), (tantivy.Occur.Must, within)])
            hits = self._searcher.search(query, limit=1, count=False, order_by_field="page", order=order).hits
            return hits[0][0] if hits else None

        before = nearest(tantivy.Order.Desc, None, number - 1) if number else None
        return before, nearest(tantivy.Order.Asc, number + 1, None)

    @_sound()
    def search(self, question: str, limit: int) -> list[Hit]:
        """The passages that share most with a question, best first. Any punctuation is only punctuation: the words are
        looked up one by one, and no query language is in between."""
        question = searchable(question)
        words = list(dict.fromkeys(self._questions.analyze(question))) or self._words.analyze(question)
        if not words or limit < 1:
            return []
        schema, term = self._schema, tantivy.Query.term_query
        parts = [
            (tantivy.Occur.Should, tantivy.Query.boost_query(term(schema, name, word), weight))
            for word in words
            for name, weight in _WEIGHTS.items()
        ]
        searcher = self._searcher
        found = searcher.search(tantivy.Query.boolean_query(parts), limit=limit, count=False)
        return [_hit(searcher, score, address) for score, address in found.hits]

    @property
    def passages(self) -> int:
        return self._count("passage")

    @property
    def files(self) -> int:
        return self._count("file")

    @_sound()
    def _count(self, kind: str) -> int:
        query = tantivy.Query.term_query(self._schema, "kind", kind)
        return int(self._searcher.search(query, limit=1).count)  # type: ignore[attr-defined]  # missing in its stubs

    @_sound()
    def all(self, limit: int) -> list[Hit]:
        """The first passages, in no order; for corpora too small to search."""
        searcher = self._searcher
        query = tantivy.Query.term_query(self._schema, "kind", "passage")
        return [_hit(searcher, 0.0, address) for _, address in searcher.search(query, limit=limit).hits]


def _hit(searcher: tantivy.Searcher, score: float, address: tantivy.DocAddress) -> Hit:
    stored: Mapping[str, list[Any]] = searcher.doc(address).to_dict()

    def one(name: str) -> Any:
        return stored[name][0]

    headings = tuple((at, heading) for at, heading in json.loads(bytes(one("headings"))))
    return Hit(
        one("file"), one("page"), one("label"), one("start"), bytes(one("body")).decode(), headings, float(score)
    )


def absolute(path: str | Path) -> str:
    """Without . and .., links as they are: people know files by the names they gave."""
    return os.path.abspath(path)  # noqa: PTH100


def _is_there(path: str) -> bool:
    try:
        Path(path).stat()
    except OSError:
        return False
    return True


def _is_gone(path: str, *, whole_folders: bool) -> bool:
    """Whether a file is known not to be there; with its folder, too, only where whole folders may be gone."""
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return whole_folders or Path(path).parent.is_dir()
    except OSError:
        return False
    return False


def _links(found: Collection[str], others: Collection[str]) -> set[str]:
    """Those of `others` that are one file with one that was found."""
    real = set(map(os.path.realpath, found))
    return {path for path in others if os.path.realpath(path) in real}


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


class Writer:
    """tantivy's writer with our words for its errors. What was not committed is dropped."""

    def __init__(self, index: tantivy.Index, folder: Path | None) -> None:
        self._folder, self._schema = folder, index.schema
        try:
            self._writer = index.writer(heap_size=_HEAP)
        except ValueError as e:
            if "LockBusy" in str(e):
                raise BusyError(
                    f"{folder}: another process is writing to this index; wait for it. Reading goes on meanwhile"
                ) from None
            raise StorageError(f"{folder}: cannot be written: {e}") from None

    def add(self, **values: Any) -> None:
        with self._telling():
            self._writer.add_document(tantivy.Document.from_dict(values, self._schema))

    def remove(self, path: str) -> None:
        with self._telling():
            self._writer.delete_documents_by_term("file", path)

    def remove_first(self, file: File) -> None:
        """The first passage of a file, with what is known of the file."""
        with self._telling():
            self._writer.delete_documents_by_term("id", file.id)

    def commit(self) -> None:
        with self._telling():
            self._writer.commit()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError) as e:
            raise StorageError(
                f"{self._folder}: cannot be written: {e}; the index is as it was when it was last made safe"
            ) from None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: object) -> None:
        # a writer that broke cannot be rolled back, and what broke it is what should be heard
        with suppress(ValueError, OSError) if any(error) else nullcontext():
            if any(error):
                self._writer.rollback()
            self._writer.wait_merging_threads()
