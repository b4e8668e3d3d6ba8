"""A file of questions (or texts) to a file of answers, in order; what was interrupted goes on.

Answers are appended to OUT.partial, one JSON object a line, and become OUT in one step when all are there.
OUT.partial.json says what the run was: model, settings and input must be the same when it goes on.
"""

import csv
import functools
import gzip
import io
import itertools
import json
import os
import select
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from thinbert import __version__
from thinbert.api import Model
from thinbert.corpus.ask import Found
from thinbert.corpus.pages import is_text
from thinbert.corpus.readers import delimiter_of, delimiter_said
from thinbert.errors import InputError, some
from thinbert.files import leftovers, lock, replacing, write_atomic
from thinbert.show import speaks_unicode
from thinbert.tasks import classify
from thinbert.tasks.qa import Reading
from thinbert.tasks.squad import DAMAGED, open_packed, read_json_object

STDIO = "-"
FORMATS = (".jsonl", ".csv", ".json")  # .json is SQuAD's, and only read
_CHUNK = 64  # records that are computed together, of standard input those that have come
_FLUSH = 64  # records after which what was written is made safe
_OWN, _COLUMN = ("prediction", "error"), "prediction_"  # fields that are ours, and how columns of CSV begin that are

Progress = Callable[[int, int | None], None]  # records done, of (None: not known)
Ask = Callable[[str], Found]


@dataclass(frozen=True)
class Fields:
    """Which fields of a record hold what is asked."""

    question: str = "question"
    context: str = "context"  # a text, or a list of texts
    text: str = "text"  # for classification, with
    pair: str = "text_pair"  # as a second text where it is there


@dataclass(frozen=True)
class Record:
    """One record of the input, and what is to be computed for it, or why it cannot be."""

    fields: Mapping[str, Any]
    asked: tuple[str, list[str]] | tuple[str, str | None] | str | None
    error: str | None = None


def run(
    source: str,
    out: str,
    model: Model,
    *,
    ask: Ask | None = None,
    threshold: float | None = None,
    fields: Fields | None = None,
    identity: Mapping[str, Any] | None = None,
    shard: tuple[int, int] = (1, 1),
    limit: int | None = None,
    stop_on_error: bool = False,
    progress: Progress = lambda done, of: None,
    note: Callable[[str], None] = lambda error: None,
) -> dict[str, int]:
    """Answers every record of `source` into `out`; "-" is standard input or output, as JSON lines.

    A record keeps its fields and gets `prediction`: for question answering `answer` (None where the model says there is
    none), `score`, `start`, `end`, `context` (number of the text, where several were given) and `no_answer`; for a
    classifier `label` and `score`; over an index the citation. A record that cannot be computed gets `error` instead.

    Args:
        ask: answers questions over an index, in place of contexts in the records.
        threshold: no-answer probability above which the answer is None, of contexts; the model's own where None.
        identity: what else a resumed run must have in common with the one before.
        shard: (i, n): only every n-th record, from the i-th (from 1).
        stop_on_error: raise at the first record that cannot be computed; what is done is kept.
        note: called with what is wrong with each record that cannot be computed.
    Returns:
        numbers of records `done` (in all), `now` (in this call) and `errors`. Where no record could be computed,
        nothing is written.
    Raises:
        InputError: input or output cannot be used, or OUT.partial is of another run.
    """
    fields = fields or Fields()
    target = None if out == STDIO else Path(out)
    _check(source, target)
    stdin = _Arriving(sys.stdin.buffer) if source == STDIO else None
    columns = target is not None and _kind(str(target)) == ".csv"
    records = _sharded(_records(source, stdin, fields, model, over_index=ask is not None, columns=columns), shard)
    records = itertools.islice(records, None if limit is None else min(limit, sys.maxsize))
    chunks = _chunks(records, stdin)
    counts = {"done": 0, "now": 0, "errors": 0}
    predict = functools.partial(_predictions, model=model, ask=ask, threshold=threshold)
    total = _count(source, shard, limit)
    if target is None:
        for line in _lines(chunks, predict, counts, stop_on_error, note):
            sys.stdout.write(line if speaks_unicode(sys.stdout) else json.dumps(json.loads(line)) + "\n")
            sys.stdout.flush()
            progress(counts["done"], total)
        return counts
    partial = target.with_name(target.name + ".partial")
    what: dict[str, Any] = {
        "thinbert": __version__,
        "model": model.sha256,
        "source": _fingerprint(source),
        "shard": list(shard),
    }
    what |= {"fields": vars(fields), "threshold": threshold, **(identity or {})}
    try:
        with partial.open("ab") as file:
            lock(file, partial)
            if target.exists() or os.fstat(file.fileno()).st_nlink == 0:  # by a run that ended between our two looks
                if partial.exists() and partial.stat().st_size == 0:
                    partial.unlink()
                raise InputError(f"{target}: another process has just written it")
            counts["done"], counts["errors"] = _resume(partial, what, records)
            progress(counts["done"], total)
            try:
                for line in _lines(chunks, predict, counts, stop_on_error, note):
                    file.write(line.encode())
                    if counts["now"] % _FLUSH == 0:
                        _keep(file)
                    progress(counts["done"], total)
            finally:
                _keep(file)
            if counts["done"] and counts["errors"] == counts["done"]:  # a field of another name, most likely
                partial.unlink()
                partial.with_name(partial.name + ".json").unlink(missing_ok=True)
                return counts
            _finish(partial, target)
    except OSError as e:
        raise InputError(f"{target}: cannot be written: {e.strerror or e}; what is done is kept in {partial}") from e
    return counts


# --- computing --------------------------------------------------------------------------------------------------------


def _lines(
    chunks: Iterator[list[Record]],
    predict: Callable[[Iterator[Any]], Iterator[dict[str, Any]]],
    counts: dict[str, int],
    stop_on_error: bool,
    note: Callable[[str], None],
) -> Iterator[str]:
    """Lines of the output, in the order of the records; neighbours are computed together."""
    for chunk in chunks:
        faults = [n for n, record in enumerate(chunk) if record.error is not None] if stop_on_error else []
        kept = chunk[: faults[0]] if faults else chunk  # what came before a fault is still computed and written
        predictions = predict(r.asked for r in kept if r.error is None)
        for record in kept:
            own = {"error": record.error} if record.error is not None else {"prediction": next(predictions)}
            counts["done"] += 1
            counts["now"] += 1
            if record.error is not None:
                counts["errors"] += 1
                note(f"record {counts['done']}: {record.error}")
            yield _line({**record.fields, **own})
        if faults:
            raise InputError(f"record {counts['done'] + 1}: {chunk[faults[0]].error}")


def _chunks(records: Iterator[Record], stdin: "_Arriving | None") -> Iterator[list[Record]]:
    """What is computed together; who writes a line and waits for its answer gets it."""
    chunk = []
    for record in records:
        chunk.append(record)
        if len(chunk) == _CHUNK or (stdin is not None and stdin.waits()):
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _line(record: Mapping[str, Any]) -> str:
    """A record as a line of JSON: as it is read, escaped where it holds what has no encoding."""
    text = json.dumps(record, ensure_ascii=False)
    return (text if is_text(text) else json.dumps(record)) + "\n"


def _predictions(
    asked: Iterator[Any], model: Model, ask: Ask | None, threshold: float | None
) -> Iterator[dict[str, Any]]:
    if ask is not None:
        for question in asked:
            yield _found(ask(question))
    elif model.answers:
        # contexts are kept beside the readings: they say how many a record had
        several: deque[bool] = deque()

        def pairs() -> Iterator[tuple[str, list[str]]]:
            for question, contexts in asked:
                several.append(len(contexts) > 1)
                yield question, contexts

        for reading in model.read_many(pairs(), threshold=threshold):
            yield _reading(reading, several.popleft())
    else:
        for logits in classify.logits(model, asked):
            label, score = classify.best_class(model, logits)
            yield {"label": label, "score": score}


def _reading(reading: Reading, several: bool) -> dict[str, Any]:
    best = reading.best
    if best is None:
        return {"answer": None, "no_answer": reading.no_answer}
    place = {"context": best.context} if several else {}
    where = {"score": best.score, "start": best.start, "end": best.end, **place}
    return {"answer": best.text, **where, "no_answer": reading.no_answer}


def _found(found: Found) -> dict[str, Any]:
    if not found.citations:
        return {"answer": None, "no_answer": found.no_answer}
    best = found.citations[0]
    place = {"file": best.place.file, "page": best.place.page, "start": best.place.start, "end": best.place.end}
    return {
        "answer": best.text,
        "score": best.score,
        **place,
        "sentence": best.sentence,
        "no_answer": found.no_answer,
    }


# --- reading ----------------------------------------------------------------------------------------------------------


def _check(source: str, target: Path | None) -> None:
    if source != STDIO and _kind(source) not in FORMATS:
        raise InputError(f"{source}: expected .jsonl, .csv or SQuAD .json, plain, .gz or .xz; or - for standard input")
    if source != STDIO and not Path(source).is_file():
        raise InputError(f"{source}: no such file")
    if target is None:
        return
    if _kind(str(target)) not in FORMATS[:2]:
        raise InputError(f"{target}: expected .jsonl or .csv, plain or .gz; or - for standard output")
    if target.suffix.lower() == ".xz":
        raise InputError(f"{target}: answers are written plain or as .gz")
    if target.exists():
        raise InputError(f"{target}: is there already; give another output, or delete it")
    if not target.parent.is_dir():
        raise InputError(f"{target.parent}: no such folder")


def _kind(name: str) -> str:
    return Path(name.lower().removesuffix(".gz").removesuffix(".xz")).suffix


class _Arriving:
    """Lines of a pipe or a terminal, and whether the next has come."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file: Any = file
        self._lines: deque[bytes] = deque()
        self._begun = bytearray()  # a line that has not come whole
        self._ended = False

    def __iter__(self) -> Iterator[bytes]:
        while self._lines or not self._ended:
            if self._lines:
                yield self._lines.popleft()
            else:
                self._read()

    def waits(self) -> bool:
        """Whether the next line is still to come; blank ones are none."""
        while not any(map(bytes.strip, self._lines)) and not self._ended:
            if not self._readable():
                return True
            self._read()
        return False

    def _readable(self) -> bool:
        try:
            return bool(select.select([self._file], [], [], 0)[0])
        except (OSError, ValueError):  # no file of the system: all of it is there
            return True

    def _read(self) -> None:
        piece = self._file.read1(1 << 16)  # waits for the first byte, and for no other
        self._ended = not piece
        rest, *others = piece.split(b"\n")
        self._begun += rest
        for begun in others:
            self._lines.append(bytes(self._begun))
            self._begun = bytearray(begun)
        if self._ended and self._begun:
            self._lines.append(bytes(self._begun))


def _open(source: str) -> AbstractContextManager[IO[bytes]]:
    try:
        return open_packed(Path(source))
    except OSError as e:
        raise InputError(f"{source}: cannot be read: {e.strerror or e}") from None


def _raw(source: str, stdin: _Arriving | None) -> Iterator[Mapping[str, Any] | str]:
    """Records of the input as they stand, or why one is none."""
    try:
        if stdin is not None:
            yield from _json_lines(stdin)
        elif _kind(source) == ".json":
            yield from _squad(source)
        else:
            with _open(source) as file:
                yield from _rows(source, file) if _kind(source) == ".csv" else _json_lines(file)
    except UnicodeDecodeError as e:
        # the place is one of a piece that was read, and would mislead
        raise InputError(
            f"{source}: not UTF-8 (a byte is 0x{e.object[e.start]:02x}); convert it first, for example with "
            "iconv -f latin1 -t utf-8"
        ) from None
    except (*DAMAGED, csv.Error) as e:
        raise InputError(f"{source}: damaged: {e}") from None


def _json_lines(lines: Iterable[bytes]) -> Iterator[Mapping[str, Any] | str]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as e:
                yield f"line {number} is not JSON: {e}"
                continue
            yield value if isinstance(value, dict) else f"line {number} is no JSON object"


def _rows(source: str, file: IO[bytes]) -> Iterator[Mapping[str, Any] | str]:
    csv.field_size_limit(1 << 30)
    with _open(source) as beginning:
        header = beginning.readline(1 << 16).decode("utf-8-sig", "replace")
    said = delimiter_said(header)
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        if said:
            text.readline()
        rows = csv.DictReader(text, strict=True, delimiter=said or delimiter_of(header))
        names = list(rows.fieldnames or ())
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"{source}: two columns are named {twice[0]!r}; rename one")
        for row in rows:
            if row.pop(None, None) is not None:  # where what is over goes
                yield f"line {rows.line_num + bool(said)} has more columns than the header"
            else:
                yield {name: value for name, value in row.items() if value is not None}


def _squad(source: str) -> Iterator[Mapping[str, Any]]:
    root = read_json_object(Path(source))
    try:
        for article in root["data"]:
            for paragraph in article["paragraphs"]:
                for qa in paragraph["qas"]:
                    yield {"id": qa["id"], "question": qa["question"], "context": paragraph["context"]}
    except (KeyError, TypeError) as e:
        raise InputError(f"{source}: is not SQuAD JSON ({e!r} is missing or of another kind)") from None


def _records(
    source: str, stdin: _Arriving | None, fields: Fields, model: Model, *, over_index: bool, columns: bool
) -> Iterator[Record]:
    """The input; `columns` where answers become columns, and no field may be called as they are."""
    for raw in _raw(source, stdin):
        if isinstance(raw, str):
            yield Record({}, None, raw)
            continue
        taken = [name for name in raw if name in _OWN or (columns and name.startswith(_COLUMN))]
        try:
            if taken:
                raise InputError(f"has a field {taken[0]!r} already, which is where answers go; rename it")
            yield Record(raw, _asked(raw, fields, model, over_index))
        except InputError as e:
            yield Record({name: value for name, value in raw.items() if name not in taken}, None, str(e))


def _asked(raw: Mapping[str, Any], fields: Fields, model: Model, over_index: bool) -> Any:
    if over_index:
        return _text(raw, fields.question)
    if not model.answers:
        pair = raw.get(fields.pair)
        alone = pair is None or (isinstance(pair, str) and not pair.strip())  # CSV cannot say it otherwise
        return _text(raw, fields.text), None if alone else _text(raw, fields.pair)
    contexts = raw.get(fields.context)
    if isinstance(contexts, list) and contexts and all(isinstance(c, str) for c in contexts):
        return _text(raw, fields.question), [_utf8(c, fields.context) for c in contexts]
    return _text(raw, fields.question), [_text(raw, fields.context)]


def _text(raw: Mapping[str, Any], name: str) -> str:
    value = raw.get(name)
    if not isinstance(value, str):
        raise InputError(
            f"{name} is missing; there is {some(map(str, raw))}"
            if value is None
            else f"{name} is no text: {value!r:.40}"
        )
    if not value.strip():
        raise InputError(f"{name} is empty")
    return _utf8(value, name)


def _utf8(value: str, name: str) -> str:
    if not is_text(value):
        raise InputError(f"{name} has half a surrogate pair; it is not text")
    return value


def _sharded(records: Iterator[Record], shard: tuple[int, int]) -> Iterator[Record]:
    number, of = shard
    if not 1 <= number <= of:
        raise InputError(f"shard {number}/{of}; expected i/n with i from 1 to n")
    return itertools.islice(records, number - 1, None, of)


def _count(source: str, shard: tuple[int, int], limit: int | None) -> int | None:
    """How many records there are, where that is cheap to know."""
    if Path(source).suffix.lower() != ".jsonl":
        return limit
    with _open(source) as file:
        lines = sum(1 for line in file if line.strip())
    whole = len(range(shard[0] - 1, lines, shard[1]))
    return whole if limit is None else min(whole, limit)


# --- writing ----------------------------------------------------------------------------------------------------------


def _fingerprint(source: str) -> dict[str, Any]:
    if source == STDIO:
        return {"name": STDIO}
    at = Path(source).stat()
    return {"name": Path(source).name, "size": at.st_size, "mtime_ns": at.st_mtime_ns}


def _keep(file: IO[bytes]) -> None:
    """What was written is on the disk from here on."""
    file.flush()
    os.fsync(file.fileno())


def _resume(partial: Path, what: dict[str, Any], records: Iterator[Record]) -> tuple[int, int]:
    """Takes up a run: cuts off a torn last line, checks that it is the same run, and passes over what is done. How many
    records that are, and how many errors among them."""
    known = partial.with_name(partial.name + ".json")
    content_size = partial.stat().st_size
    if content_size == 0:
        write_atomic(known, (json.dumps(what, indent=1) + "\n").encode())
        return 0, 0
    before = read_json_object(known) if known.exists() else {}
    changed = [name for name in what if before.get(name) != what[name]]
    if changed:
        raise InputError(
            f"{partial}: holds a run with other {' and '.join(changed)}; delete it to start over, "
            "or give another output"
        )
    if what["source"]["name"] == STDIO:
        raise InputError(f"{partial}: standard input cannot be taken up again; delete it to start over")
    done = whole = errors = 0
    last = b""
    with partial.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            done, whole, last = done + 1, whole + len(line), line
            try:
                errors += "error" in dict(json.loads(line))
            except (ValueError, TypeError) as e:
                raise InputError(f"{partial}: damaged at line {done} ({e}); delete it to start over") from None
    if whole < content_size:
        os.truncate(partial, whole)
    passed = deque(enumerate(itertools.islice(records, done), 1), maxlen=1)
    kept = {k: v for k, v in json.loads(last).items() if k not in _OWN} if last else {}
    if done and (not passed or passed[0][0] < done):
        raise InputError(f"{partial}: holds {done} records, more than the input or --limit gives; nothing was changed")
    if done and dict(passed[0][1].fields) != kept:
        raise InputError(f"{partial}: does not hold the first records of the input; delete it to start over")
    return done, errors


def _finish(partial: Path, target: Path) -> None:
    """Turns the lines into the file that was asked for, in one step. The partial file is locked until then."""
    known = partial.with_name(partial.name + ".json")
    table, packed = _kind(str(target)) == ".csv", target.suffix.lower() == ".gz"
    if table or packed:
        for file in leftovers(target.parent, target.name):
            file.unlink(missing_ok=True)
        with partial.open("rb") as lines, replacing(target) as whole:
            out: Any = gzip.GzipFile(target.stem, "wb", fileobj=whole) if packed else nullcontext(whole)
            with out as opened:
                if table:
                    _write_csv(lines, opened, partial)
                else:
                    shutil.copyfileobj(lines, opened)
        partial.unlink()
    else:
        partial.replace(target)
    known.unlink(missing_ok=True)


def _write_csv(lines: IO[bytes], out: IO[bytes], partial: Path) -> None:
    """Columns of the input, then prediction_… and error; which there are is seen in a first pass."""
    columns: dict[str, None] = {}
    own: dict[str, None] = {}
    for row in map(_flat, lines):
        for name in row:
            (own if name.startswith(_COLUMN) or name == "error" else columns)[name] = None
    text = io.TextIOWrapper(out, encoding="utf-8", newline="", errors="backslashreplace", write_through=True)
    writer = csv.DictWriter(text, [*columns, *own], restval="")
    writer.writeheader()
    with partial.open("rb") as again:
        for row in map(_flat, again):
            writer.writerow(row)
    text.detach()


def _flat(line: bytes) -> dict[str, Any]:
    record = json.loads(line)
    prediction = record.pop("prediction", None) or {}
    row = {k: json.dumps(v, ensure_ascii=False) if isinstance(v, dict | list) else v for k, v in record.items()}
    return row | {f"{_COLUMN}{k}": v for k, v in prediction.items()}
