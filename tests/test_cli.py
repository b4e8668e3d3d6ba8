"""The command line as a whole: help in no time, imports only when needed, inspect, pipes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tiny
from conftest import Cli
from thinbert.corpus import documents
from thinbert.runtime.doctor import speedups

HEAVY = ("torch", "transformers", "huggingface_hub", "tokenizers", "numpy", "fastapi", "tantivy")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_is_free() -> None:
    loaded = python(f"import sys, thinbert; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert loaded == "[]\n"


def test_help_loads_nothing_heavy_and_is_fast() -> None:
    code = (
        "import sys\nsys.argv = ['thinbert', '--help']\nfrom thinbert.cli import main\n"
        f"try: main()\nexcept SystemExit: print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert python(code).endswith("[]\n")
    ours, libraries = (["-m", "thinbert", "--help"], ["-c", "import typer, rich.console"])
    best, least = (min(computing([sys.executable, *arguments]) for _ in range(3)) for arguments in (ours, libraries))
    assert best < 4 * least, f"thinbert --help computed for {best:.2f} s, its libraries for {least:.2f} s"


def computing(command: list[str]) -> float:
    """Seconds of a core that a command takes, which are the same where others have the cores too."""
    before = os.times()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])  # of children, in Python and in the system


def test_running_a_model_needs_neither_torch_nor_the_hub() -> None:
    code = (
        "import sys, thinbert\nthinbert.load().answer('who?', 'Gustave Eiffel')\n"
        "print([m for m in ('torch', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    assert python(code) == "[]\n"


def test_version(cli: Cli) -> None:
    import thinbert

    assert cli("--version").out == f"thinbert {thinbert.__version__}\n"
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert f'version = "{thinbert.__version__}"' in project


def test_every_command_has_help(cli: Cli) -> None:
    commands = re.findall(r"^│ (\w+) ", cli("--help").out, re.MULTILINE)
    assert {"ask", "serve", "compress", "compare"} <= set(commands)
    for command in commands:
        r = cli(command, "--help")
        assert r.code == 0
        assert "--help" in r.out


def test_help_says_every_default(cli: Cli) -> None:
    """Also those that depend on the machine or the model, which are written by hand."""
    for command, said in (
        ("ask", ("(default: THINBERT_THREADS, or the cores this process may use)", "(default: the model's own)")),
        ("index", (f"(default: {documents.MAX_MB})",)),
        (
            "evaluate",
            ("(default: 384 for questions, 128 for texts, or the model's limit)", "(default: 128, or half a window)"),
        ),
        (
            "serve",
            ("(default: INDEX-uploads)", "(default: the bundled one, as `default`)", "(default: THINBERT_API_KEY"),
        ),
        ("compress", ("(default: THINBERT_DATA)",)),
    ):
        text = " ".join(cli(command, "--help").out.replace("│", " ").split())
        for default in said:
            assert default in text


def test_inspect(cli: Cli, tmp_path: Path) -> None:
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    for seed, stem in enumerate(tiny.linear_stems(config)):
        tiny.prune(tensors, stem, 0.2, (1, 4), seed)
    folder = tiny.write_model(tmp_path / "m", config, tensors)
    sparsity = json.loads(cli("inspect", folder, "--json").out)
    assert {"linear_density", "overall_density", "pattern", "heads_removed", "tensors"} <= set(sparsity)
    assert sparsity["pattern"] == "1x4"
    assert len(sparsity["tensors"]) == 12
    out = cli("inspect", folder).out
    assert "1x4" in out
    assert "20.0% kept" in out
    assert "8 of 8 alive" in out


def test_inspect_of_a_broken_folder_is_one_line(cli: Cli, tmp_path: Path) -> None:
    r = cli("inspect", tmp_path)
    assert (r.code, r.out) == (2, "")
    assert r.err == f"thinbert: {tmp_path / 'config.json'}: no such file; a model folder needs it\n"


def test_a_closed_pipe_ends_it_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "thinbert", "inspect", "default", "--json"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")  # as of other programs; 1 says that there is no answer


def test_what_the_system_refuses_is_one_line(tmp_path: Path) -> None:
    ask = f"{sys.executable} -m thinbert ask 'who built it?' --context 'by Gustave Eiffel'"
    for command, message in (
        (f"{ask} > /dev/full", "No space left on device"),
        (f"{sys.executable} -m thinbert ask 'who?' - <&-", "standard input: is closed"),
    ):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [
        sys.executable,
        "-m",
        "thinbert",
        "ask",
        "who?",
        "--context",
        "by Gustave Eiffel é 🐨",
        "--threshold",
        "1",
    ]
    assert subprocess.run(command, capture_output=True, env=environment, check=False).returncode == 0


def test_names_from_files_cannot_draw_on_the_terminal(cli: Cli, tmp_path: Path) -> None:
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    folder = tiny.write_model(tmp_path / "a[red]b:bomb:", config, {**tensors, "[/x]\x1b[31m": np.ones(2, np.float32)})
    r = cli("inspect", folder)
    assert r.code == 0
    assert "a[red]b:bomb:" in r.out
    assert "[/x] [31m" in r.out
    bad = tiny.write_model(tmp_path / "bad", config, {**tensors, "bert.x\n\x1b[31m\x07": np.ones(2, np.float32)})
    r = cli("inspect", bad)
    assert (r.code, r.err.count("\n")) == (2, 1)
    assert "\x1b" not in r.err


def test_interrupt(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    import thinbert.api

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(thinbert.api, "load", interrupted)
    assert cli("ask", "who?", "--context", "x").code == 130


def test_pack(cli: Cli, tmp_path: Path) -> None:
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    for seed, stem in enumerate(tiny.linear_stems(config)):
        tiny.prune(tensors, stem, 0.2, (1, 4), seed)
    folder = tiny.write_model(tmp_path / "m", config, tensors)
    made = json.loads(cli("pack", folder, tmp_path / "packed", "--json").out)
    assert made["bytes_after"] < 0.2 * made["bytes_before"]
    assert cli("pack", folder, tmp_path / "packed").out.startswith(f"{tmp_path / 'packed'}: weights ")
    assert json.loads(cli("inspect", tmp_path / "packed", "--json").out)["pattern"] == "1x4"
    assert "is the model's own folder" in cli("pack", folder, folder).err
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "letter.txt").write_text("Dear")
    r = cli("pack", folder, tmp_path / "documents")
    assert (r.code, [f.name for f in (tmp_path / "documents").iterdir()]) == (2, ["letter.txt"])
    assert "is not empty and no packed model; give another folder" in r.err
    (tmp_path / "file").write_text("")
    r = cli("pack", folder, tmp_path / "file" / "x")
    assert (r.code, r.err.count("\n")) == (2, 1)
    assert "cannot be written: Not a directory" in r.err


def test_doctor(cli: Cli, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = json.loads(cli("doctor", tiny_folder, "--json").out)
    assert report["isa"] == next(s["name"] for s in report["instruction_sets"] if s["usable"])
    assert report["why"] == "the best this processor has"
    assert len(report["plan"]) == 2
    by_density = {row["density"]: row for row in report["speedups"]}
    assert by_density[0.1]["1x4"] > by_density[0.5]["1x4"] >= 1
    assert by_density[0.2]["4x4"] >= by_density[0.2]["unstructured"] >= 1
    given = speedups((1, 1, 0.5), 0.1)  # a byte of a 1x4 block costs half as much as one of the others
    assert given["4x4"] == pytest.approx(10)
    assert given["1x4"] == pytest.approx(1 / min(1 - 0.9**4, 2 * 0.1))
    assert given["unstructured"] == pytest.approx(1 / min(1 - 0.9**16, 2 * (1 - 0.9**4)))
    monkeypatch.setenv("THINBERT_ISA", "generic")
    out = cli("doctor").out
    assert "runs with     generic" in out
    assert "(THINBERT_ISA says so)" in out
    assert "What sparsity is worth here" in out
    monkeypatch.setenv("THINBERT_ISA", "sse9")
    assert cli("doctor").err.startswith("thinbert: unknown instruction set 'sse9'")


def test_bench(cli: Cli, tiny_folder: Path) -> None:
    result = json.loads(cli("bench", tiny_folder, "--tokens", 30, "--batch", 2, "--rounds", 5, "--json").out)
    assert next(iter(result)) == "median_ms"
    assert result["median_ms"] > 0
    assert result["tokens_per_second"] == pytest.approx(60_000 / result["median_ms"])
    assert 0 < result["largest_difference"] < 0.1 * result["size"]
    assert "tokens/s" in cli("bench", tiny_folder, "--tokens", 5, "--rounds", 3).out
    too_long = cli("bench", tiny_folder, "--tokens", 65).err
    assert re.search(r"sequences of 65 tokens; model \S+ takes from 1 to 64$", too_long.strip())
    assert cli("bench", tiny_folder, "--tokens", 10**20).code == 2


def test_a_fault_of_ours_is_no_answer_that_is_missing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exit code is not the one that says so."""
    monkeypatch.setattr("thinbert.runtime.doctor.examine", lambda model: 1 / 0)
    r = cli("doctor")
    assert r.code == 70
    assert "ZeroDivisionError" in r.err
