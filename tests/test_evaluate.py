"""`thinbert evaluate` and `score`: data forms, files written, resuming, refusals."""

import fcntl
import gzip
import json
import lzma
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import thinbert
from conftest import Cli, real_data
from thinbert.errors import InputError
from thinbert.tasks.squad import read_squad

CONTEXTS = ["the tower is named after the composer born in paris", "who built the tower? it is in paris, é 🐨!"]


def nested(count: int = 6, *, impossible: bool = False) -> dict[str, Any]:
    qas = [
        {
            "id": f"q{i}",
            "question": f"who built tower {i}",
            "answers": [] if impossible and i % 2 else [{"text": "paris", "answer_start": 1}, {"text": "the tower"}],
            **({"is_impossible": bool(i % 2)} if impossible else {}),
        }
        for i in range(count)
    ]
    paragraphs = [{"context": CONTEXTS[i % 2], "qas": [qa]} for i, qa in enumerate(qas)]
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(nested()))
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# --- reading data -----------------------------------------------------------------------------------------------------


def test_all_forms_hold_the_same(tmp_path: Path) -> None:
    data = nested(impossible=True)
    content = json.dumps(data).encode()
    flat = [
        {"id": qa["id"], "question": qa["question"], "context": p["context"], "answers": qa["answers"]}
        for p in data["data"][0]["paragraphs"]
        for qa in p["qas"]
    ]
    flat[0]["answers"] = ["paris", "the tower"]  # type: ignore[assignment]
    flat[2]["answers"] = {"text": ["paris", "the tower"], "answer_start": [1, 2]}  # type: ignore[assignment]
    lines = "\n".join(map(json.dumps, flat)).encode() + b"\n\n"
    contents = {
        "a.json": content,
        "b.json.gz": gzip.compress(content),
        "c.json.xz": lzma.compress(content),
        "d.jsonl": lines,
        "e.jsonl.gz": gzip.compress(lines),
    }
    sets = []
    for name, packed in contents.items():
        (tmp_path / name).write_bytes(packed)
        sets.append(read_squad(tmp_path / name))
    held = [[(q.id, q.question, q.context, q.answers) for q in s.questions] for s in sets]
    assert all(h == held[0] for h in held)
    assert all(s.may_be_unanswerable for s in sets)
    # where answers begin, as far as the data says
    assert sets[0].questions[0].starts == sets[2].questions[0].starts
    assert sets[3].questions[0].starts == (None, None)
    assert sets[3].questions[2].starts == (1, 2)
    assert sets[0].questions[0].answers == ("paris", "the tower")
    assert sets[0].questions[1].answers == ()
    assert sets[0].sha256 == sets[1].sha256 == sets[2].sha256 != sets[3].sha256


def test_the_kind_of_data(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps(nested()))
    assert not read_squad(path).may_be_unanswerable
    marked = nested()
    marked["data"][0]["paragraphs"][0]["qas"][0]["is_impossible"] = False
    path.write_text(json.dumps(marked))
    assert read_squad(path).may_be_unanswerable


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.json", b"{", "d.json: not valid JSON: Expecting property name"),
        ("d.json", b"\xff\xfe{}", "d.json: not UTF-8|not valid JSON"),
        ("d.json", b"[]", "d.json: is a list; expected an object"),
        ("d.json", b"{}", "d.json: data is missing; expected a list"),
        ("d.json", b'{"data": []}', "d.json: holds no questions"),
        ("d.json", b'{"data": [3]}', r"d.json: data\[0\]: is a number; expected an object"),
        ("d.json", b'{"data": [{"paragraphs": [{}]}]}', r"data\[0\]\.paragraphs\[0\]: context is missing"),
        (
            "d.json",
            b'{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": "a", "question": 1}]}]}]}',
            r"data\[0\]\.paragraphs\[0\]\.qas\[0\]: question is a number; expected a string",
        ),
        (
            "d.json",
            b'{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q"}]}]}]}',
            r"qas\[0\]: id is missing; expected a string",
        ),
        ("d.jsonl", b'{"id": "1", "question": "q", "context": "c"}\n{"id"', "d.jsonl: line 2: not valid JSON"),
        ("d.jsonl", b'{"id": "1", "question": "q"}', "d.jsonl: line 1: context is missing; expected a string"),
        (
            "d.jsonl",
            b'{"id": "1", "question": "q", "context": "c", "answers": "x"}',
            "line 1: answers is a string; expected a list of answers",
        ),
        (
            "d.jsonl",
            b'{"id": "1", "question": "q", "context": "c", "answers": [{"start": 1}]}',
            "line 1: an answer's text is missing; expected a string",
        ),
        (
            "d.jsonl",
            b'{"id": "1", "question": "\\ud800", "context": "c"}',
            "line 1: question has half a surrogate pair at character 0",
        ),
        ("d.json.gz", b"plain", "d.json.gz: not a whole .gz file"),
        ("d.json.xz", lzma.compress(b"{}")[:-8], "d.json.xz: not a whole .xz file"),
    ],
)
def test_malformed_data(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_squad(tmp_path / name)


def test_absent_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        read_squad(tmp_path / "none.json")
    with pytest.raises(InputError, match="is a directory; expected a file"):
        read_squad(tmp_path)


# --- evaluate ---------------------------------------------------------------------------------------------------------


def test_evaluate_writes_everything(cli: Cli, tmp_path: Path, data: Path, tiny_folder: Path) -> None:
    out = tmp_path / "out"
    r = cli("evaluate", tiny_folder, data, "--out", out, "--json")
    assert r.code == 0
    scores = json.loads(r.out)
    assert (scores["total"], scores["answered_now"]) == (6, 6)
    predictions, no_answer, nbest = (read(out / f"{n}.json") for n in ("predictions", "no_answer", "nbest"))
    assert list(predictions) == list(no_answer) == list(nbest) == [f"q{i}" for i in range(6)]
    for i, (question, best) in enumerate(nbest.items()):
        assert predictions[question] == best[0]["text"]
        for a in best:
            assert CONTEXTS[i % 2][a["start"] : a["end"]] == a["text"]
    official = json.loads(cli("score", data, out / "predictions.json").out)
    assert official == {"exact_match": scores["exact"], "f1": scores["f1"]}
    each = read(out / "per_question.json")["scores"]
    assert list(each) == list(predictions)
    for place, name in enumerate(("exact", "f1")):
        assert sum(one[place] for one in each.values()) / 6 == pytest.approx(scores[name])
        low, high = scores[f"{name}_interval"]
        assert low <= scores[name] <= high
    run = read(out / "run.json")
    assert run["settings"]["max_length"] == 64
    assert run["thinbert"]
    assert "cpu_features" in run["machine"]
    assert [f.name for f in out.glob(".*")] == [".lock"]  # no temporary files left


def test_unanswerable_questions(cli: Cli, tmp_path: Path, tiny_folder: Path) -> None:
    data, out = tmp_path / "d.json", tmp_path / "out"
    data.write_text(json.dumps(nested(20, impossible=True)))
    scores = json.loads(cli("evaluate", tiny_folder, data, "--out", out, "--threshold", 0.008, "--json").out)
    assert (scores["HasAns_total"], scores["NoAns_total"], scores["threshold"]) == (10, 10, 0.008)
    predictions, no_answer = read(out / "predictions.json"), read(out / "no_answer.json")
    assert {q: p == "" for q, p in predictions.items()} == {q: p > 0.008 for q, p in no_answer.items()}
    assert 0 < sum(p == "" for p in predictions.values()) < 20
    official = json.loads(cli("score", data, out / "predictions.json", "--na-prob", out / "no_answer.json").out)
    for key in ("exact", "f1", "HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1", "total"):
        assert official[key] == scores[key]
    # thresholds were searched over the answers before any was withheld
    raw = {q: best[0]["text"] for q, best in read(out / "nbest.json").items()}
    (tmp_path / "raw.json").write_text(json.dumps(raw))
    swept = json.loads(cli("score", data, tmp_path / "raw.json", "--na-prob", out / "no_answer.json").out)
    for key in ("best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh"):
        assert swept[key] == scores[key]


def test_a_model_is_asked_as_it_was_calibrated(cli: Cli, tmp_path: Path, tiny_folder: Path) -> None:
    """Its slope and offset map the odds of no answer, and its threshold is the one that is used."""
    config = json.loads((tiny_folder / "config.json").read_text())
    fitted = tmp_path / "fitted"
    shutil.copytree(tiny_folder, fitted)
    own = {"no_answer_threshold": 0.25, "no_answer_calibration": [0.5, -1.0]}
    (fitted / "config.json").write_text(json.dumps(config | {"thinbert": own}))
    for question in ("who built the tower?", "where is it?"):
        plain, mapped = (thinbert.load(f).read(question, CONTEXTS).no_answer for f in (tiny_folder, fitted))
        odds = [math.log(p / (1 - p)) for p in (plain, mapped)]
        assert odds[1] == pytest.approx(0.5 * odds[0] - 1)
    data = tmp_path / "data.json"
    data.write_text(json.dumps(nested(impossible=True)))
    assert cli("evaluate", fitted, data, "--out", tmp_path / "run").code == 0
    assert read(tmp_path / "run" / "metrics.json")["threshold"] == 0.25


def test_what_evaluate_wrote_is_compared(cli: Cli, tmp_path: Path, data: Path, tiny_folder: Path) -> None:
    runs = [tmp_path / precision for precision in ("int8", "float32")]
    for run in runs:
        assert cli("evaluate", tiny_folder, data, "--out", run, "--precision", run.name).code == 0
    r = cli("compare", *runs, "--json")
    assert r.code == 0, r.err
    means = [read(run / "metrics.json") for run in runs]
    for difference in json.loads(r.out)[str(runs[1])]:
        metric = difference["metric"].lower()
        assert (difference["base"], difference["other"]) == pytest.approx((means[0][metric], means[1][metric]))


def test_resume(cli: Cli, tmp_path: Path, data: Path, tiny_folder: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    cli("evaluate", tiny_folder, data, "--out", whole)
    cli("evaluate", tiny_folder, data, "--out", part)
    for name in ("metrics", "predictions", "no_answer", "nbest"):
        (part / f"{name}.json").unlink()
    lines = (part / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (part / "answers.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:20])  # three answers and a torn one
    scores = json.loads(cli("evaluate", tiny_folder, data, "--out", part, "--json").out)
    assert scores["answered_now"] == 3
    assert read(part / "predictions.json") == read(whole / "predictions.json")
    assert list(read(part / "nbest.json")) == list(read(whole / "nbest.json"))
    assert (part / "answers.jsonl").read_bytes().count(b"\n") == 6
    # other windows are computed together, and BLAS rounds by the shape of its operands: the last digits may differ
    for a, b in zip(read(part / "no_answer.json").values(), read(whole / "no_answer.json").values(), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    # a finished run scores again without answering again
    assert json.loads(cli("evaluate", tiny_folder, data, "--out", part, "--json").out)["answered_now"] == 0


def test_refusals(cli: Cli, tmp_path: Path, data: Path, tiny_folder: Path) -> None:
    out = tmp_path / "out"
    cli("evaluate", tiny_folder, data, "--out", out, "--limit", 2)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(nested(5)))
    for arguments, message in (
        (
            (tiny_folder, data, "--out", out, "--stride", 5),
            f"{out}: holds a run with other settings; give another --out",
        ),
        ((tiny_folder, other, "--out", out, "--limit", 2), f"{out}: holds a run with other data; give another"),
        (("default", data, "--out", out, "--limit", 2), f"{out}: holds a run with other model and settings"),
        (
            (tiny_folder, data, "--out", out, "--threshold", 0.9),
            f"{data} has no unanswerable questions, so --threshold has no meaning for it",
        ),
        ((tiny_folder, data, "--out", tmp_path), f"{tmp_path}: is not empty and holds no evaluation"),
        ((tiny_folder, data, "--out", data), f"{data}: cannot be written: File exists"),
    ):
        r = cli("evaluate", *arguments)
        assert (r.code, r.out) == (2, "")
        assert r.err.startswith(f"thinbert: {message}"), r.err
    (out / "answers.jsonl").write_text('{"id": "zzz", "no_answer": 0, "answers": []}\n')
    assert "does not hold the first questions" in cli("evaluate", tiny_folder, data, "--out", out, "--limit", 2).err
    for line in ("{}}", "[1]", "{}", '{"id": "q0"}', '{"id": "q0", "no_answer": 0, "answers": [{}]}'):
        (out / "answers.jsonl").write_text(line + "\n")
        assert "answers.jsonl: damaged at line 1" in cli("evaluate", tiny_folder, data, "--out", out).err
    for manifest in ("{", "[]", "\xff"):
        (out / "run.json").write_text(manifest, encoding="latin1")
        r = cli("evaluate", tiny_folder, data, "--out", out)
        assert (r.code, r.err.count("\n")) == (2, 1)
        assert f"{out / 'run.json'}: " in r.err


def test_limit_and_threshold_may_change(cli: Cli, tmp_path: Path, tiny_folder: Path) -> None:
    """Neither shapes an answer, so a run goes on under others."""
    data, out = tmp_path / "data.json", tmp_path / "out"
    data.write_text(json.dumps(nested(6, impossible=True)))
    assert json.loads(cli("evaluate", tiny_folder, data, "--out", out, "--limit", 2, "--json").out)["answered_now"] == 2
    (out / ".predictions.json.1234.tmp").write_text("left by a crash")
    more = json.loads(cli("evaluate", tiny_folder, data, "--out", out, "--threshold", 0.9, "--json").out)
    assert (more["answered_now"], more["total"]) == (4, 6)
    fewer = json.loads(cli("evaluate", tiny_folder, data, "--out", out, "--limit", 3, "--json").out)
    assert (fewer["answered_now"], fewer["total"]) == (0, 3)
    assert list(read(out / "predictions.json")) == ["q0", "q1", "q2"]


def test_another_tokenizer_is_another_model(cli: Cli, tmp_path: Path, data: Path, tiny_folder: Path) -> None:
    model, out = tmp_path / "m", tmp_path / "out"
    shutil.copytree(tiny_folder, model)
    cli("evaluate", model, data, "--out", out)
    vocabulary = (model / "vocab.txt").read_text(encoding="utf-8").replace("tower", "wombat")
    (model / "vocab.txt").write_text(vocabulary, encoding="utf-8")
    assert "holds a run with other model" in cli("evaluate", model, data, "--out", out).err


def test_two_runs_do_not_share_a_folder(cli: Cli, tmp_path: Path, data: Path, tiny_folder: Path) -> None:
    out = tmp_path / "out"
    cli("evaluate", tiny_folder, data, "--out", out, "--limit", 1)
    (out / "answers.jsonl").write_bytes(b"")  # as before the first answer is on the disk
    described = (out / "run.json").read_bytes()
    with (out / ".lock").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for other in ((), ("--stride", 8)):
            r = cli("evaluate", tiny_folder, data, "--out", out, *other)
            assert r.code == 2
            assert f"{out}: another process is writing here" in r.err
    assert (out / "run.json").read_bytes() == described


def test_a_full_disk_is_said(tmp_path: Path, data: Path, tiny_folder: Path) -> None:
    command = f"ulimit -f 1; exec {sys.executable} -m thinbert evaluate {tiny_folder} {data} --out {tmp_path / 'out'}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"thinbert: {tmp_path / 'out'}: cannot be written: File too large")


def test_data_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thinbert.tasks.squad._LARGEST", 1 << 20)
    path = tmp_path / "bomb.json.xz"
    path.write_bytes(lzma.compress(b" " * (1 << 21)))
    with pytest.raises(InputError, match=r"bomb\.json\.xz: holds more than 1 MiB; split it"):
        read_squad(path)


def test_repeated_ids(cli: Cli, tmp_path: Path, tiny_folder: Path) -> None:
    data = nested()
    data["data"][0]["paragraphs"][3]["qas"][0]["id"] = "q1"
    path = tmp_path / "d.json"
    path.write_text(json.dumps(data))
    r = cli("evaluate", tiny_folder, path, "--out", tmp_path / "out")
    assert r.code == 2
    assert "question id 'q1' occurs more than once" in r.err


def test_killed_run_goes_on(tmp_path: Path, tiny_folder: Path) -> None:
    """kill -9 in the middle, then the same command again: nothing is lost, nothing is done twice."""
    data, out = tmp_path / "d.json", tmp_path / "out"
    data.write_text(json.dumps(nested(20_000)))
    command = [sys.executable, "-m", "thinbert", "evaluate", str(tiny_folder), str(data), "--out", str(out), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = out / "answers.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = log.read_bytes().count(b"\n")
    assert 0 < kept < 20_000
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["answered_now"] == 20_000 - kept
    assert list(read(out / "predictions.json")) == [f"q{i}" for i in range(20_000)]


def test_progress_on_a_pipe(tmp_path: Path, tiny_folder: Path) -> None:
    from thinbert.progress import _LineProgress

    lines = _LineProgress("questions", every=0.0)
    import contextlib
    import io

    with contextlib.redirect_stderr(io.StringIO()) as err:
        lines(0, 10)
        time.sleep(0.01)
        lines(5, 10)
    assert re.fullmatch(r"5/10 questions, [\d.]+/s, \d+ s left\n", err.getvalue())


def test_stages_on_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from thinbert import progress

    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.stages() as report:
        line = report("squad")
        for step, at in ((50, 100), (60, 105), (100, 150), (590, 640), (600, 650)):
            now[0] = at
            line({"step": step, "of": 600, "loss": 1.5, "rate": 1e-4})
    assert capsys.readouterr().err.splitlines() == [
        "squad: 50/600, loss 1.5",
        "squad: 100/600, loss 1.5, 8 min left",  # one a second
        "squad: 590/600, loss 1.5, 10 s left",
        "squad: 600/600, loss 1.5",
    ]


# --- score ------------------------------------------------------------------------------------------------------------


def test_score_prints_what_the_official_scripts_print(cli: Cli, tmp_path: Path) -> None:
    for number, case in enumerate(read(Path(__file__).parent / "golden" / "squad_scores.json")):
        unanswerable = any(not qa["answers"] for a in case["data"]["data"] for p in a["paragraphs"] for qa in p["qas"])
        if (case["script"] == "v2") != unanswerable:  # the kind of data chooses the script
            continue
        paths = []
        for name in ("data", "predictions", "na_prob"):
            if name in case:
                path = tmp_path / f"{number}-{name}.json"
                record = case[name]
                if name == "data":
                    for a in record["data"]:
                        for p in a["paragraphs"]:
                            for qa in p["qas"]:
                                qa.setdefault("question", "?")
                path.write_text(json.dumps(record))
                paths += [path] if name != "na_prob" else ["--na-prob", path, "--na-prob-thresh", case["threshold"]]
        r = cli("score", *paths)
        assert r.code == 0, r.err
        assert json.loads(r.out) == case["expected"]


def test_score_refusals(cli: Cli, tmp_path: Path, data: Path) -> None:
    predictions = tmp_path / "p.json"
    predictions.write_text(json.dumps({"q0": "paris"}))
    r = cli("score", data, predictions)
    assert r.code == 0
    assert r.err == "thinbert: 5 questions have no prediction and score 0\n"
    assert "so --na-prob has no meaning for it" in cli("score", data, predictions, "--na-prob", predictions).err
    predictions.write_text(json.dumps({"q0": 3}))
    assert "p.json: the prediction for 'q0' is not a string" in cli("score", data, predictions).err
    predictions.write_text("[]")
    assert "p.json: is a list; expected an object" in cli("score", data, predictions).err
    assert "none.json: no such file" in cli("score", data, tmp_path / "none.json").err
    data.write_text(json.dumps(nested(4, impossible=True)))
    predictions.write_text(json.dumps({"q0": "paris"}))
    assert "3 of 4 questions have no prediction: q1, q2, q3" in cli("score", data, predictions).err
    predictions.write_text(json.dumps(dict.fromkeys(("q0", "q1", "q2", "q3"), "x")))
    assert (
        "p.json: the probability for 'q0' is not a number"
        in cli("score", data, predictions, "--na-prob", predictions).err
    )


# --- the real thing ---------------------------------------------------------------------------------------------------


def test_default_model_on_the_first_squad_questions(cli: Cli, tmp_path: Path) -> None:
    """A bounded piece of SQuAD 1.1 dev: its first 1,000 questions, on which float32 has F1 83.57."""
    data = real_data("squad-dev-v1.1.json.xz")
    scores = json.loads(cli("evaluate", "default", data, "--out", tmp_path / "o", "--limit", 1000, "--json").out)
    assert scores["total"] == 1000
    assert abs(scores["f1"] - 83.57) < 0.5  # int8 moves a few answers of 1,000; on all 10,570 it is within 0.3


@pytest.mark.skipif(
    os.environ.get("THINBERT_DATA") is None, reason="THINBERT_DATA is not set: this test runs on real data"
)
def test_real_files_are_counted_right() -> None:
    v1, v2 = read_squad(real_data("squad-dev-v1.1.json.xz")), read_squad(real_data("squad-dev-v2.0.json.xz"))
    assert (len(v1.questions), v1.may_be_unanswerable) == (10_570, False)
    assert (len(v2.questions), v2.may_be_unanswerable) == (11_873, True)
    assert sum(not q.answers for q in v2.questions) == 5_945
