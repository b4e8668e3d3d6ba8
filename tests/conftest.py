"""What all tests share: no network, and a tiny question-answering model."""

import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings

import tiny
from thinbert._core import instruction_sets
from thinbert.api import Model, load
from thinbert.cli import main

settings.register_profile("thinbert", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("thinbert")

# a shell that starts the tests in the background has them ignore Ctrl-C, and so what they start and interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)

# transformers and huggingface_hub read this when they are imported; tests of downloads run the CLI with their own hub
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Models that are not packed are packed into a cache; not into the user's."""
    os.environ["THINBERT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny.bert_config(hidden_size=64, num_attention_heads=2, intermediate_size=64)
    return tiny.write_model(tmp_path_factory.mktemp("models") / "tiny", config, tiny.bert_tensors(config))


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> Model:
    return load(tiny_folder)


@pytest.fixture(scope="session")
def default_model() -> Model:
    return load("default")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Kernels that this processor cannot run are compared with nothing; who makes a release should know."""
    lacking = [name for name, _, built, supported in instruction_sets() if not (built and supported)]
    if lacking:
        terminalreporter.write_line(f"kernels not compared, which this processor cannot run: {', '.join(lacking)}")


def real_data(name: str) -> Path:
    """A file of THINBERT_DATA; the test is skipped, saying so, where it is absent."""
    folder = os.environ.get("THINBERT_DATA")
    if not folder:
        pytest.skip("THINBERT_DATA is not set: this test runs on real data")
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(f"{path} does not exist")
    return path


class Result(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs the command line in this process: exit code, standard output, standard error."""

    def run(*arguments: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "argv", ["thinbert", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            main()
        return Result(int(e.value.code or 0), *capsys.readouterr())

    return run
