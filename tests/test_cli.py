"""The command line as a whole: help in no time, imports only when needed, inspect, pipes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tiny
from conftest import Cli

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
    best = min(timed([sys.executable, "-m", "thinbert", "--help"]) for _ in range(3))
    assert best < 0.3, f"thinbert --help took {best:.2f} s"


def timed(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


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
    for command in ("ask", "evaluate", "score", "inspect"):
        r = cli(command, "--help")
        assert r.code == 0
        assert "--help" in r.out


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
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, "")


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
