"""The command line as a whole: help in no time, imports only when needed, inspect, pipes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

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


def test_a_closed_pipe_is_not_an_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "thinbert", "inspect", "default", "--json"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.stderr == ""


def test_interrupt(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    import thinbert.api

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(thinbert.api, "load", interrupted)
    assert cli("ask", "who?", "--context", "x").code == 130
