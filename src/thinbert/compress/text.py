"""Text for pre-training: tokenised once, sentence by sentence, into flat files that are mapped and not loaded. An
encyclopedia has gigabytes, and documents are drawn from all over it."""

import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from thinbert.errors import InputError
from thinbert.files import write_atomic
from thinbert.model.tokenizer import Tokenizer
from thinbert.tasks.glue import sentences
from thinbert.tasks.squad import DAMAGED, open_packed, read_squad

T = TypeVar("T")
_LONGEST = 64 << 20  # characters of a document, which is held at once: no article is, and a file without empty lines
_SECONDS = 30.0  # between two words on how far reading has come


@dataclass(frozen=True)
class Documents:
    """Tokens of sentences of documents of files, one after another."""

    ids: NDArray[np.int32]  # [T]
    sentences: NDArray[np.int64]  # [S] where each ends in ids
    ends: NDArray[np.int64]  # [N] where each document ends in sentences
    files: tuple[int, ...]  # where each file ends in documents
    sha256: str  # of the files and the tokenizer

    def __len__(self) -> int:
        return len(self.ends)

    def count(self, number: int) -> int:
        """Sentences of a document: at least one."""
        return int(self.ends[number] - (self.ends[number - 1] if number else 0))

    def sentence(self, number: int, place: int) -> list[int]:
        at = int(self.ends[number - 1] if number else 0) + place
        found: list[int] = self.ids[int(self.sentences[at - 1]) if at else 0 : int(self.sentences[at])].tolist()
        return found

    def split(self, *, held_out: float = 0.05, part: float = 1.0) -> tuple[list[int], list[int]]:
        """Numbers of the documents to train on, a part of each file's spread evenly over it, and of those held out to
        measure with, a share of each file's drawn at random."""
        fit: list[int] = []
        held: list[int] = []
        for begin, end in pairwise((0, *self.files)):
            order = list(range(begin, end))
            random.Random(0).shuffle(order)
            count = max(1, round(held_out * len(order)))
            held += sorted(order[:count])
            fit += spread(sorted(order[count:]), part)
        return fit, held


def spread(items: Sequence[T], share: float) -> list[T]:
    """Every so many-th, evenly spread."""
    return [item for n, item in enumerate(items) if int((n + 1) * share) > int(n * share)]


def sha256_of(path: Path) -> str:
    """Of a file's content, unpacked, which is read once in a process unless it changes."""
    at = path.stat()
    return _sha256(path, at.st_size, at.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    try:
        with open_packed(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # any file will do
    except (OSError, *DAMAGED) as e:
        raise InputError(f"{path}: cannot be read: {e}") from e


def read_documents(
    paths: Sequence[Path], tokenizer: Tokenizer, cache: Path, say: Callable[[str], None] = lambda text: None
) -> Documents:
    """Documents of text files (empty lines stand between documents) and of SQuAD JSON (an article is one), packed or
    not; from the cache where it has them.

    Raises:
        InputError: a file cannot be read, or there is no text in it.
    """
    h = hashlib.sha256(tokenizer.sha256().encode())
    for path in paths:
        h.update(bytes.fromhex(sha256_of(path)))
    folder = cache / f"text-{h.hexdigest()[:24]}"
    if not (folder / "files.json").exists():
        shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
        folder.mkdir(parents=True)
        _tokenise(paths, tokenizer, folder, say)
    return Documents(
        np.memmap(folder / "ids", np.int32, "r"),
        np.memmap(folder / "sentences", np.int64, "r"),
        np.memmap(folder / "documents", np.int64, "r"),
        tuple(json.loads((folder / "files.json").read_text())),
        h.hexdigest(),
    )


def check_documents(path: Path) -> None:
    """Raises InputError where a file does not begin as several documents do, or cannot be read."""
    if len(list(islice(_documents(path), 2))) < 2:
        raise InputError(f"{path}: expected several documents with empty lines between them")


def _tokenise(paths: Sequence[Path], tokenizer: Tokenizer, folder: Path, say: Callable[[str], None]) -> None:
    tokens = sentences_so_far = documents_so_far = characters = 0
    files: list[int] = []
    last = time.monotonic()
    with (
        (folder / "ids").open("wb") as ids,
        (folder / "sentences").open("wb") as ends,
        (folder / "documents").open("wb") as documents,
    ):
        for path in paths:
            say(f"tokenising {path.name} (once)")
            for text in _documents(path):
                found = [t.ids for line in text for s, e in sentences(line) if len(t := tokenizer(line[s:e]))]
                characters += sum(map(len, text))
                if not found:
                    continue
                np.concatenate(found).astype(np.int32).tofile(ids)
                (tokens + np.cumsum([len(s) for s in found], dtype=np.int64)).tofile(ends)
                tokens += sum(map(len, found))
                sentences_so_far += len(found)
                np.array([sentences_so_far], np.int64).tofile(documents)
                documents_so_far += 1
                if time.monotonic() - last > _SECONDS:
                    say(f"{path.name}: {characters / 1e6:.0f} million characters, {tokens / 1e6:.0f} million tokens")
                    last = time.monotonic()
            count = documents_so_far - (files[-1] if files else 0)
            if count < 2:  # one is held out
                raise InputError(
                    f"{path}: {'is one document' if count else 'has no text to train on'}; expected several documents "
                    "with empty lines between them"
                )
            files.append(documents_so_far)
        for file in (ids, ends, documents):  # they are on the disk before it is said that they are whole
            file.flush()
            os.fsync(file.fileno())
    write_atomic(folder / "files.json", json.dumps(files).encode())


def _documents(path: Path) -> Iterator[list[str]]:
    """The lines of each document."""
    if ".json" in path.name:
        articles: dict[int, dict[str, None]] = {}  # the contexts of each, in order, once
        for q in read_squad(path).questions:
            articles.setdefault(q.article, {})[q.context] = None
        yield from (list(contexts) for contexts in articles.values())
        return
    lines: list[str] = []
    length = 0
    try:
        with open_packed(path) as file:
            while raw := file.readline(_LONGEST + 1):
                line = raw.decode(errors="replace").rstrip("\n")
                if line.strip():
                    lines.append(line)
                    length += len(line)
                    if length > _LONGEST or len(raw) > _LONGEST:
                        raise InputError(
                            f"{path}: a document of more than {_LONGEST >> 20} million characters; expected documents "
                            "with empty lines between them"
                        )
                elif lines:
                    yield lines
                    lines, length = [], 0
    except (OSError, *DAMAGED) as e:
        raise InputError(f"{path}: cannot be read: {e}") from e
    if lines:
        yield lines
