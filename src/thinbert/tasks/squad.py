"""SQuAD-like data: the nested JSON of SQuAD 1.1 and 2.0, or flat JSONL, plain or compressed (.gz, .xz)."""

import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from thinbert.errors import InputError
from thinbert.tasks.metrics import Gold

# Bytes of a data file, unpacked. SQuAD's training set has 30 MB; a few compressed kilobytes can unpack to gigabytes.
_LARGEST = 512 << 20


@dataclass(frozen=True)
class Question:
    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int | None, ...] = ()  # where each answer begins in the context, in code points, if the data says
    article: int = 0  # number of the article the context belongs to

    @property
    def gold(self) -> Gold:
        return Gold(self.id, self.answers)


@dataclass(frozen=True)
class Dataset:
    questions: tuple[Question, ...]
    may_be_unanswerable: bool  # scored by the rules of SQuAD 2.0, else of 1.1
    sha256: str  # of the file's content, unpacked

    @property
    def golds(self) -> list[Gold]:
        return [q.gold for q in self.questions]


def read_squad(path: Path) -> Dataset:
    """Reads a data set. The form follows the name: .json is nested, .jsonl flat; .gz and .xz are unpacked.

    A flat line is `{"id", "question", "context", "answers"}` with `answers` a list of texts, a list of
    `{"text": …, "answer_start": …}`, or `{"text": [...], "answer_start": [...]}`; none or empty means unanswerable.

    A data set that holds an unanswerable question, or says `is_impossible` anywhere, is of the SQuAD 2.0 kind.

    Raises:
        InputError: naming the file, the record in it and what is wrong.
    """
    content = read_packed(path)
    flat = path.name.lower().removesuffix(".gz").removesuffix(".xz").endswith(".jsonl")
    records = list(_flat(content, path) if flat else _nested(content, path))
    if not records:
        raise InputError(f"{path}: holds no questions")
    return Dataset(
        questions=tuple(question for question, _ in records),
        may_be_unanswerable=any(marked or not question.answers for question, marked in records),
        sha256=hashlib.sha256(content).hexdigest(),
    )


# what reading a file that open_packed opened may raise where it is damaged
DAMAGED = (lzma.LZMAError, gzip.BadGzipFile, EOFError, zlib.error)


def open_packed(path: Path) -> IO[bytes]:
    """A file's bytes, unpacked by its ending: .gz, .xz, or as they are. Raises OSError."""
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
    return cast(IO[bytes], openers.get(path.suffix.lower(), open)(path, "rb"))


def read_packed(path: Path) -> bytes:
    """The content of a file, unpacked by its ending. Raises InputError naming the file."""
    try:
        with open_packed(path) as file:
            content = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a directory; expected a file") from None
    except DAMAGED as e:
        raise InputError(f"{path}: not a whole {path.suffix} file: {e}") from e
    except OSError as e:
        raise InputError(f"{path}: cannot be read: {e.strerror or e}") from e
    if len(content) > _LARGEST:
        raise InputError(f"{path}: holds more than {_LARGEST >> 20} MiB; split it")
    return content


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object from a data or prediction file. Raises InputError naming the file and the place."""
    return _object(_parse(read_packed(path), str(path)), str(path))


def _nested(content: bytes, path: Path) -> Iterator[tuple[Question, bool]]:
    root = _object(_parse(content, str(path)), str(path))
    for a, article in enumerate(_list(root, "data", str(path))):
        at_article = f"{path}: data[{a}]"
        for p, paragraph in enumerate(_list(_object(article, at_article), "paragraphs", at_article)):
            at_paragraph = f"{at_article}.paragraphs[{p}]"
            context = _text(_object(paragraph, at_paragraph), "context", at_paragraph)
            for q, qa in enumerate(_list(paragraph, "qas", at_paragraph)):
                yield _question(_object(qa, f"{at_paragraph}.qas[{q}]"), context, a, f"{at_paragraph}.qas[{q}]")


def _flat(content: bytes, path: Path) -> Iterator[tuple[Question, bool]]:
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            where = f"{path}: line {number}"
            record = _object(_parse(line, where), where)
            yield _question(record, _text(record, "context", where), number, where)


def _question(record: dict[str, Any], context: str, article: int, where: str) -> tuple[Question, bool]:
    """The question of a record, and whether the record speaks of unanswerable questions at all."""
    number = record.get("id")
    if isinstance(number, bool) or not isinstance(number, str | int):
        raise InputError(f"{where}: id is {_kind(number)}; expected a string")
    texts, starts = _answers(record.get("answers"), where)
    question = Question(
        _checked(str(number), "id", where), _text(record, "question", where), context, texts, starts, article
    )
    return question, "is_impossible" in record


def _answers(value: object, where: str) -> tuple[tuple[str, ...], tuple[int | None, ...]]:
    """Texts of answers, and where each begins as far as the record says."""
    if value is None:
        return (), ()
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        if isinstance(texts, list) and isinstance(starts, list) and len(starts) == len(texts):
            value = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
        else:
            value = texts
    if not isinstance(value, list):
        raise InputError(f"{where}: answers is {_kind(value)}; expected a list of answers")
    answers = [a if isinstance(a, dict) else {"text": a} for a in value]
    for answer in answers:
        if not isinstance(answer.get("text"), str):
            raise InputError(f"{where}: an answer's text is {_kind(answer.get('text'))}; expected a string")
    texts = tuple(_checked(a["text"], "an answer's text", where) for a in answers)
    begins = (a.get("answer_start") for a in answers)
    return texts, tuple(b if isinstance(b, int) and not isinstance(b, bool) and b >= 0 else None for b in begins)


def _parse(content: bytes, where: str) -> object:
    try:
        return json.loads(content)
    except UnicodeDecodeError as e:
        raise InputError(f"{where}: not UTF-8 at byte {e.start}") from e
    except (ValueError, RecursionError) as e:
        raise InputError(f"{where}: not valid JSON: {e}") from e


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: is {_kind(value)}; expected an object")
    return value


def _list(record: dict[str, Any], key: str, where: str) -> list[Any]:
    value = record.get(key)
    if not isinstance(value, list):
        raise InputError(f"{where}: {key} is {_kind(value)}; expected a list")
    return value


def _text(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise InputError(f"{where}: {key} is {_kind(value)}; expected a string")
    return _checked(value, key, where)


def _checked(text: str, key: str, where: str) -> str:
    """JSON can spell half of a surrogate pair, which no file can hold as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise InputError(f"{where}: {key} has half a surrogate pair at character {e.start}; it is not text") from None
    return text


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "missing"}
    return names.get(type(value), "a number")
