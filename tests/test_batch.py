"""`thinbert batch`: order, fields, errors in line, every format, and runs that are interrupted at any byte."""

import csv
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import thinbert
import tiny
from conftest import Cli
from thinbert import batch
from thinbert.batch import _Arriving
from thinbert.errors import InputError
from thinbert.files import lock

TEXTS = ["Anna Voss built the mill in 1802.", "Bread is made from flour, water and salt."]
ASKED = ["Who built the mill?", "What is bread made from?"]


def records(count: int = 6) -> list[dict[str, Any]]:
    return [{"n": i, "question": ASKED[i % 2], "context": TEXTS[i % 2], "extra": {"é": [i]}} for i in range(count)]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_order_and_fields_are_kept(cli: Cli, tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", records()), tmp_path / "out.jsonl"
    r = cli("batch", source, "-o", out, "--json")
    assert r.code == 0, r.err
    assert json.loads(r.out)["done"] == 6
    rows = read(out)
    assert [{k: v for k, v in row.items() if k != "prediction"} for row in rows] == records()
    for row in rows:
        p = row["prediction"]
        assert row["context"][p["start"] : p["end"]] == p["answer"]
        assert 0 <= p["no_answer"] <= 1
    assert [row["prediction"]["answer"] for row in rows[:2]] == ["Anna Voss", "flour, water and salt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    again = cli("batch", source, "-o", out)
    assert (again.code, again.out) == (2, "")
    assert "is there already" in again.err


def test_fields_that_are_named_as_ours(cli: Cli, tmp_path: Path) -> None:
    """They are refused and left out, so that a table can be made of the rest, and an interrupted run goes on."""
    rows = [{**records()[0], "prediction": 1}, records()[1], {**records()[2], "error": "x", "prediction_answer": "y"}]
    source, out = write(tmp_path / "in.jsonl", [*rows, *records(200)]), tmp_path / "out.csv"
    assert cli("batch", source, "-o", out).code == 0
    with out.open(newline="") as file:
        found = list(csv.DictReader(file))[:3]
    assert [bool(row["prediction_answer"]) for row in found] == [False, True, False]
    assert ["rename it" in row["error"] for row in found] == [True, False, True]
    other = write(tmp_path / "other.jsonl", [{**records()[0], "prediction_score": 7}])  # of another model
    assert "has a field 'prediction_score'" in cli("batch", other, "-o", tmp_path / "other.csv").err
    [row] = map(json.loads, cli("batch", other, "-o", "-").out.splitlines())
    assert (row["prediction_score"], row["prediction"]["answer"]) == (7, "Anna Voss")
    lines = tmp_path / "out.jsonl"
    assert cli("batch", source, "-o", lines).code == 0
    whole = lines.read_bytes()
    again = tmp_path / "again.jsonl"
    interrupt(cli, source, again)
    (tmp_path / "again.jsonl.partial").write_bytes(whole.splitlines(keepends=True)[0])
    r = cli("batch", source, "-o", again)
    assert r.code == 0, r.err
    assert again.read_bytes() == whole


def test_errors_stand_in_their_place(cli: Cli, tmp_path: Path) -> None:
    rows: list[Any] = [
        records()[0],
        {"question": "Who?"},
        {"question": 3, "context": "x"},
        {"question": " ", "context": "x"},
        [1],
        {"question": "Who built it?", "context": TEXTS[0], "prediction": 1},
        {"question": "Who built the mill?", "context": TEXTS},
        {"question": "Who?", "context": "half \ud83d pair"},
        {"question": "Who built it?", "context": TEXTS[0], "prediction_answer": "x"},
        {"question": "Who built it?", "context": TEXTS[0], "note": "half \ud83d pair"},
    ]
    source = write(tmp_path / "in.jsonl", rows)
    source.write_text(source.read_text() + "{broken\n")
    r = cli("batch", source, "-o", "-")
    assert r.code == 0
    found = [json.loads(line) for line in r.out.splitlines()]
    assert [row.get("error") for row in found] == [
        None,
        "context is missing; there is question",
        "question is no text: 3",
        "question is empty",
        "line 5 is no JSON object",
        "has a field 'prediction' already, which is where answers go; rename it",
        None,
        "context has half a surrogate pair; it is not text",
        None,
        None,
        "line 11 is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    ]
    assert found[6]["prediction"]["context"] == 0
    assert found[9]["note"] == "half \ud83d pair"  # what is only passed on need not be text
    assert "11 records, 7 with errors" in r.err
    out = tmp_path / "out.jsonl"
    assert cli("batch", source, "-o", out).code == 0
    assert [row.get("error") for row in read(out)] == [row.get("error") for row in found]
    out.unlink()
    stopped = cli("batch", source, "-o", out, "--on-error", "stop")
    assert stopped.code == 2
    assert "record 2: context is missing" in stopped.err
    assert not out.exists()


def test_formats(cli: Cli, tmp_path: Path) -> None:
    table = tmp_path / "in.csv.gz"
    with gzip.open(table, "wt", newline="") as file:
        writer = csv.DictWriter(file, ["id", "q", "c"])
        writer.writeheader()
        writer.writerows({"id": n, "q": ASKED[n % 2], "c": TEXTS[n % 2] + "\nmore"} for n in range(3))
    options = ["--question-field", "q", "--context-field", "c"]
    assert cli("batch", table, "-o", tmp_path / "out.csv", *options).code == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert [row["prediction_answer"] for row in rows] == ["Anna Voss", "flour, water and salt", "Anna Voss"]
    assert [row["id"] for row in rows] == ["0", "1", "2"]
    assert rows[0]["c"] == TEXTS[0] + "\nmore"

    frame = tmp_path / "frame.csv"  # as pandas writes it, with a long text
    frame.write_text(f',question,context\n0,{ASKED[0]},"{TEXTS[0]} {"more words " * 15_000}"\n')
    assert cli("batch", frame, "-o", tmp_path / "frame.jsonl").code == 0
    assert read(tmp_path / "frame.jsonl")[0]["prediction"]["answer"] == "Anna Voss"

    squad = {
        "data": [{"paragraphs": [{"context": TEXTS[0], "qas": [{"id": "a", "question": ASKED[0], "answers": []}]}]}]
    }
    (tmp_path / "s.json").write_text(json.dumps(squad))
    assert cli("batch", tmp_path / "s.json", "-o", tmp_path / "s.jsonl.gz").code == 0
    with gzip.open(tmp_path / "s.jsonl.gz", "rt") as file:
        row = json.loads(file.read())
    assert (row["id"], row["prediction"]["answer"]) == ("a", "Anna Voss")

    piped = cli("batch", "-", "-o", "-", stdin="".join(json.dumps(r) + "\n" for r in records(2)).encode())
    assert [json.loads(line)["prediction"]["answer"] for line in piped.out.splitlines()][:1] == ["Anna Voss"]


def test_a_line_is_answered_when_it_comes(cli: Cli) -> None:
    """A program may write a line and wait for its answer before it writes the next."""
    command = [sys.executable, "-m", "thinbert", "batch", "-", "-o", "-", "--limit", "3"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as talk:
        assert talk.stdin is not None
        assert talk.stdout is not None
        for n, record in enumerate(records(3)):
            line = json.dumps(record).encode()
            talk.stdin.write(line[:20])
            talk.stdin.flush()
            talk.stdin.write(line[20:] + b"\n\n")
            talk.stdin.flush()
            assert json.loads(talk.stdout.readline())["n"] == n
        assert talk.wait(30) == 0  # and waits for no fourth
    many = "".join(json.dumps(r) + "\n" for r in records(100)).rstrip("\n")
    rows = [json.loads(line) for line in cli("batch", "-", "-o", "-", stdin=many.encode()).out.splitlines()]
    assert [row["n"] for row in rows] == list(range(100))


@given(st.lists(st.binary(max_size=4) | st.sampled_from([b"\n", b"\n\n", b"a\nb"]), max_size=12))
def test_lines_of_a_pipe_are_those_of_a_file(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    pieces = [p for p in pieces if p]  # an empty one is the end

    class Pipe(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, into: Any) -> int:
            piece = pieces.pop(0) if pieces else b""
            into[: len(piece)] = piece
            return len(piece)

    arriving = _Arriving(io.BufferedReader(Pipe()))
    waited = [arriving.waits() for _ in range(3)]
    assert [line.rstrip(b"\n") for line in arriving] == [line.rstrip(b"\n") for line in io.BytesIO(whole)]
    assert waited == [False] * 3


def test_nothing_that_could_be_computed_is_nothing(cli: Cli, tmp_path: Path) -> None:
    """The command with the right field must not find an output in its way."""
    source, out = write(tmp_path / "in.jsonl", records(2)), tmp_path / "out.jsonl"
    r = cli("batch", source, "-o", out, "--question-field", "q")
    assert (r.code, sorted(p.name for p in tmp_path.iterdir())) == (2, ["in.jsonl"])
    assert "2 records, 2 with errors" in r.err
    assert "nothing is written" in r.err
    assert cli("batch", source, "-o", out).code == 0
    long = write(tmp_path / "long.jsonl", [{"k" * 100_000: 1}])
    assert len(cli("batch", long, "-o", "-").err) < 1000
    (tmp_path / "LATIN.CSV").write_bytes("question,context\nWho?,caf\xe9\n".encode("latin1"))
    r = cli("batch", tmp_path / "LATIN.CSV", "-o", "-")
    assert "not UTF-8 (a byte is 0xe9); convert it first" in r.err


def test_shards_and_limits_divide_the_records(cli: Cli, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", records(7))
    seen = []
    for i in (1, 2, 3):
        out = tmp_path / f"out{i}.jsonl"
        assert cli("batch", source, "-o", out, "--shard", f"{i}/3").code == 0
        seen += [row["n"] for row in read(out)]
    assert seen == [0, 3, 6, 1, 4, 2, 5]
    assert cli("batch", source, "-o", tmp_path / "few.jsonl", "--limit", 2).code == 0
    assert len(read(tmp_path / "few.jsonl")) == 2
    assert cli("batch", source, "-o", "-", "--limit", "9" * 20).code == 0  # as if there were none


def test_an_interrupted_run_goes_on(cli: Cli, tmp_path: Path) -> None:
    source, whole, out = write(tmp_path / "in.jsonl", records(9)), tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert cli("batch", source, "-o", whole).code == 0
    content = whole.read_bytes()
    partial, known = tmp_path / "out.jsonl.partial", tmp_path / "out.jsonl.partial.json"
    interrupt(cli, source, out)
    described = known.read_text()
    lines = content.splitlines(keepends=True)
    for cut in (0, 10, len(lines[0]), len(lines[0]) + 1, len(content) - 1, len(content)):
        out.unlink(missing_ok=True)
        partial.write_bytes(content[:cut])
        known.write_text(described)
        r = cli("batch", source, "-o", out, "--json")
        assert r.code == 0, r.err
        assert json.loads(r.out)["now"] == 9 - content[:cut].count(b"\n")
        assert out.read_bytes() == content
        assert not partial.exists()
        assert not known.exists()


def test_killed_on_the_way(cli: Cli, tmp_path: Path) -> None:
    """kill -9, wherever it is: the next run ends with the same bytes."""
    source, out = write(tmp_path / "in.jsonl", records(4000)), tmp_path / "out.jsonl"
    partial = tmp_path / "out.jsonl.partial"
    command = [sys.executable, "-m", "thinbert", "batch", str(source), "-o", str(out), "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (partial.exists() and partial.stat().st_size):
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert partial.exists()
    r = cli("batch", source, "-o", out, "--json")
    assert r.code == 0, r.err
    assert 0 < json.loads(r.out)["now"] < 4000
    assert cli("batch", source, "-o", tmp_path / "whole.jsonl").code == 0
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_errors_are_counted_over_interruptions(cli: Cli, tmp_path: Path) -> None:
    rows = [{"question": "Who built it?"} | ({} if n % 2 else {"context": TEXTS[0]}) for n in range(300)]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    assert cli("batch", source, "-o", out).code == 0
    whole = out.read_bytes()
    out.unlink()
    interrupt(cli, source, out)
    (tmp_path / "out.jsonl.partial").write_bytes(b"".join(whole.splitlines(keepends=True)[:5]))
    found = json.loads(cli("batch", source, "-o", out, "--json").out)
    assert (found["done"], found["now"], found["errors"]) == (300, 295, 150)


def test_half_a_character_does_not_lose_the_run(cli: Cli, tmp_path: Path) -> None:
    """Such as in a text that was cut in the middle of one: JSON may hold it, and UTF-8 may not."""
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"question": ASKED[0], "context": TEXTS[0], "note": "cut \ud83d"}) + "\n")
    assert cli("batch", source, "-o", tmp_path / "out.csv").code == 0
    assert "cut \\ud83d" in (tmp_path / "out.csv").read_text()


@pytest.mark.parametrize("line", ["{", "[1]", "3"])
def test_a_damaged_line_is_said(cli: Cli, tmp_path: Path, line: str) -> None:
    rows = [{"question": ASKED[0], "context": TEXTS[0]}] * 300
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    interrupt(cli, source, out)
    (tmp_path / "out.jsonl.partial").write_text(line + "\n")
    r = cli("batch", source, "-o", out)
    assert (r.code, r.err.count("\n")) == (2, 1)
    assert "out.jsonl.partial: damaged at line 1" in r.err


def test_a_run_of_nothing_but_errors_fails(cli: Cli, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", records(3))
    r = cli("batch", source, "-o", tmp_path / "out.jsonl", "--question-field", "frage")
    assert r.code == 2
    assert "3 records, 3 with errors" in r.err
    assert "the first: record 1: frage is missing; there is " in r.err


def test_columns_of_one_name_are_refused(cli: Cli, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("question,context,note,note\nWho?,Anna built it.,a,b\n")
    assert "two columns are named 'note'" in cli("batch", source, "-o", "-").err


def test_columns_may_stand_apart_by_semicolons(cli: Cli, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text('question;context\n"Who built it?";"Anna, of Graz, built it; in 1802."\n')
    r = cli("batch", source, "-o", "-")
    assert r.code == 0, r.err
    assert json.loads(r.out)["context"] == "Anna, of Graz, built it; in 1802."


def test_a_spreadsheet_s_own_first_line(cli: Cli, tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_text(f"sep=;\nquestion;context\n{ASKED[0]};{TEXTS[0]}\na;b;c;d\n")
    assert cli("batch", source, "-o", tmp_path / "out.jsonl").code == 0
    first, second = read(tmp_path / "out.jsonl")
    assert first["prediction"]["answer"] == "Anna Voss"
    assert second["error"] == "line 4 has more columns than the header"


def test_no_records_make_an_empty_file_and_say_so(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,context\n")
    done = cli("batch", tmp_path / "a.csv", "-o", tmp_path / "out.jsonl")
    assert done.code == 0
    assert "nothing is written" not in done.err
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_questions_too_long_for_a_small_model_are_cut(cli: Cli, tmp_path: Path, tiny_folder: Path) -> None:
    long = {"question": "who built it " * 30, "context": "the tower is named after paris " * 20}
    rows = [{"question": "who", "context": "in paris"}, long, {**long, "context": "in paris"}]
    r = cli("batch", write(tmp_path / "in.jsonl", rows), "-o", "-", "--model", tiny_folder)
    assert (r.code, [list(json.loads(line)) for line in r.out.splitlines()]) == (
        0,
        [["question", "context", "prediction"]] * 3,
    )


def test_texts_with_and_without_a_pair(cli: Cli, tmp_path: Path) -> None:
    config = tiny.bert_config(id2label={"0": "no", "1": "yes"})
    model = tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config, head="classify"))
    source = tmp_path / "in.csv"
    source.write_text("text,text_pair\nthe tower,\nthe tower,in paris\n")
    r = cli("batch", source, "-o", "-", "--model", model)
    found = [json.loads(line)["prediction"]["score"] for line in r.out.splitlines()]
    alone = thinbert.pipeline("text-classification", str(model), precision="int8")("the tower")[0]["score"]
    assert found[0] == pytest.approx(alone)
    assert found[1] != pytest.approx(alone)


def test_a_run_goes_on_with_the_settings_it_began_with(cli: Cli, tmp_path: Path) -> None:
    """Or half of the answers would be of one threshold, half of another."""
    source, out = write(tmp_path / "in.jsonl", records(9)), tmp_path / "out.jsonl"
    interrupt(cli, source, out)
    for change, what in ((("--threshold", 0), "threshold"), (("--question-field", "extra"), "fields")):
        assert f"holds a run with other {what}; delete it" in cli("batch", source, "-o", out, *change).err
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text(TEXTS[0])
    over = ("--index", tmp_path / "index")
    assert cli("index", tmp_path / "docs", *over).code == 0
    interrupt(cli, source, tmp_path / "over.jsonl", *over)
    again = ("batch", source, "-o", tmp_path / "over.jsonl", *over)
    assert "holds a run with other passages; delete it" in cli(*again, "--passages", 1).err
    (tmp_path / "docs" / "b.txt").write_text(TEXTS[1])
    assert cli("index", tmp_path / "docs", *over).code == 0
    assert "holds a run with other index; delete it" in cli(*again).err


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz"])
def test_a_table_is_written_whole_or_not_at_all(
    name: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write(tmp_path / "in.jsonl", records(3)), tmp_path / name
    with monkeypatch.context() as m:

        def full(lines: Any, to: Any, partial: Path) -> None:
            to.write(b"half of it")
            raise OSError(28, "No space left on device")

        m.setattr(batch, "_write_csv", full)
        r = cli("batch", source, "-o", out)
        assert r.code == 2
        assert f"No space left on device; what is done is kept in {out}.partial" in r.err
    assert {f.name for f in tmp_path.iterdir()} == {"in.jsonl", f"{name}.partial", f"{name}.partial.json"}
    assert cli("batch", source, "-o", out).code == 0
    assert {f.name for f in tmp_path.iterdir()} == {"in.jsonl", name}


def test_a_run_that_ends_between_the_looks_of_another(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second found no output, and gets the lock when the first has let it go: nothing of the first is lost."""
    source, out = write(tmp_path / "in.jsonl", records(3)), tmp_path / "out.csv"
    monkeypatch.setattr(batch, "_check", lambda source, target: None)
    assert cli("batch", source, "-o", out).code == 0
    whole = out.read_bytes()
    r = cli("batch", source, "-o", out)
    assert r.code == 2
    assert "another process has just written it" in r.err
    assert out.read_bytes() == whole
    assert not list(tmp_path.glob("*.partial*"))


def test_the_output_is_made_under_the_lock(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who begins the same run while a long table is written is refused."""
    source, out = write(tmp_path / "in.jsonl", records(3)), tmp_path / "out.csv"
    write_csv, others = batch._write_csv, []

    def slowly(*args: Any) -> None:
        with (tmp_path / "out.csv.partial").open("ab") as file:
            try:
                lock(file, out)
            except InputError as e:
                others.append(str(e))
        write_csv(*args)

    monkeypatch.setattr(batch, "_write_csv", slowly)
    (tmp_path / ".out.csv.0123abcd.tmp").write_text("what a killed run left")
    assert cli("batch", source, "-o", out).code == 0
    assert len(others) == 1
    assert "another process is writing here" in others[0]
    assert {f.name for f in tmp_path.iterdir()} == {"in.jsonl", "out.csv"}


def test_endings_in_capitals(cli: Cli, tmp_path: Path) -> None:
    source, out = tmp_path / "IN.JSONL.GZ", tmp_path / "OUT.JSONL.GZ"
    source.write_bytes(gzip.compress(write(tmp_path / "in.jsonl", records(3)).read_bytes()))
    assert cli("batch", source, "-o", out).code == 0
    assert len(gzip.decompress(out.read_bytes()).splitlines()) == 3
    assert "plain or as .gz" in cli("batch", source, "-o", tmp_path / "OUT.JSONL.XZ").err


def test_another_run_is_refused(cli: Cli, tmp_path: Path, tiny_folder: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", [*records(3), {"question": "x"}, *records(3)]), tmp_path / "out.jsonl"
    assert cli("batch", source, "-o", out, "--on-error", "stop").code == 2
    partial = tmp_path / "out.jsonl.partial"
    assert len(read(partial)) == 3  # what came before the fault is kept
    for change, message in (
        (("--model", tiny_folder), "holds a run with other model"),
        (("--shard", "1/2"), "other shard"),
        (("--precision", "float32"), "other precision"),
    ):
        r = cli("batch", source, "-o", out, *change)
        assert r.code == 2
        assert message in r.err
    known = tmp_path / "out.jsonl.partial.json"
    before = known.read_text()
    known.write_text(before.replace(thinbert.__version__, "0.0.1"))
    assert "holds a run with other thinbert" in cli("batch", source, "-o", out).err
    known.write_text(before)
    partial.write_text('{"n": 7, "prediction": {}}\n' * 3)
    assert "holds 3 records, more than the input or --limit gives" in cli("batch", source, "-o", out, "--limit", 2).err
    partial.write_text('{"n": 7, "prediction": {}}\n')
    assert "does not hold the first records of the input" in cli("batch", source, "-o", out).err
    stamp = source.stat()
    os.utime(source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 10**9))
    assert "other source" in cli("batch", source, "-o", out).err


def test_over_an_index(cli: Cli, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for n, text in enumerate(TEXTS):
        (docs / f"{n}.txt").write_text(text)
    assert cli("index", docs, "--index", tmp_path / "index").code == 0
    source = write(tmp_path / "in.jsonl", [{"question": q} for q in ASKED])
    assert cli("batch", source, "-o", tmp_path / "out.jsonl", "--index", tmp_path / "index").code == 0
    predictions = [row["prediction"] for row in read(tmp_path / "out.jsonl")]
    assert [p["answer"] for p in predictions] == ["Anna Voss", "flour, water and salt"]
    assert [Path(p["file"]).name for p in predictions] == ["0.txt", "1.txt"]
    over = ("batch", source, "--index", tmp_path / "index")
    assert cli(*over, "-o", tmp_path / "none.jsonl", "--threshold", 0).code == 0
    assert [row["prediction"]["answer"] for row in read(tmp_path / "none.jsonl")] == [None, None]
    assert cli(*over, "-o", tmp_path / "few.jsonl", "--passages", 1).code == 0
    assert read(tmp_path / "few.jsonl")[0]["prediction"]["score"] != predictions[0]["score"]
    refused = cli(*over, "-o", tmp_path / "x.jsonl", "--context-field", "c")
    assert "--context-field is not for an index, which reads question" in refused.err


def test_the_threshold_withholds(cli: Cli, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", records(2))
    for threshold, answered in ((0, [False, False]), (1, [True, True])):
        out = tmp_path / f"{threshold}.jsonl"
        assert cli("batch", source, "-o", out, "--threshold", threshold).code == 0
        assert [row["prediction"]["answer"] is not None for row in read(out)] == answered


def test_wrong_use(cli: Cli, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", records(1))
    for arguments, message in (
        ((tmp_path / "none.jsonl", "-o", "-"), "no such file"),
        ((tmp_path / "none.csv", "-o", tmp_path / "x.jsonl"), "no such file"),
        ((tmp_path / "x.txt", "-o", "-"), "expected .jsonl, .csv or SQuAD .json"),
        ((source, "-o", tmp_path / "x.txt"), "expected .jsonl or .csv"),
        ((source, "-o", tmp_path / "x.jsonl.xz"), "are written plain or as .gz"),
        ((source, "-o", tmp_path / "no" / "x.jsonl"), "no such folder"),
        ((source, "-o", "-", "--shard", "3/2"), "shard 3/2; expected i/n"),
        ((source, "-o", "-", "--shard", "x"), "--shard x; expected i/n"),
        ((source, "-o", "-", "--on-error", "x"), "--on-error x; expected keep or stop"),
        ((source, "-o", "-", "--text-field", "x"), "--text-field is not for a question-answering model, which reads"),
        ((source, "-o", "-", "--passages", 3), "--passages is for --index"),
    ):
        r = cli("batch", *arguments)
        assert (r.code, r.out) == (2, ""), arguments
        assert message in r.err, r.err


def interrupt(cli: Cli, source: Path, out: Path, *options: Any) -> None:
    """A run that is stopped when all is answered, and not yet finished."""
    with pytest.MonkeyPatch.context() as m:
        m.setattr("thinbert.batch._finish", lambda *paths: signal.raise_signal(signal.SIGINT))
        r = cli("batch", source, "-o", out, *options)
    assert r.code == 130
    assert f"what is done is kept in {out}.partial; the same command goes on\nthinbert: interrupted\n" in r.err
    assert not out.exists()
