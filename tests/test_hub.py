"""Models by hub id, against a hub on the loopback interface: what is fetched, cached, and said when it fails."""

import hashlib
import http.server
import json
import os
import pty
import re
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CODE = """
import sys, thinbert
model = thinbert.load(sys.argv[1], revision=sys.argv[2] if len(sys.argv) > 2 else None)
print(model.config.layers)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as a download needs."""

    repos: dict[str, Path]
    requests: list[str]
    tokens: set[str]
    moved = False  # whether main goes to another commit after config.json

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        match = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", self.path)
        if match is None:
            return self.refuse(404, "RepoNotFound")
        repo, revision, name = match.groups()
        type(self).requests.append(f"{'GET' if body else 'HEAD'} {name}")
        type(self).tokens.add(self.headers.get("Authorization", ""))
        if repo == "someone/gated":
            return self.refuse(403, "GatedRepo")
        if repo not in self.repos:
            return self.refuse(404, "RepoNotFound")
        if revision not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        file = self.repos[repo] / name
        if not file.is_file():
            return self.refuse(404, "EntryNotFound")
        content = file.read_bytes()
        self.send_response(200)
        other = self.moved and revision == "main" and name != "config.json"
        self.send_header("X-Repo-Commit", COMMIT[::-1] if other else COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        if code == "EntryNotFound":
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Client:
    """Runs thinbert in a process of its own, with its own cache and this hub."""

    def __init__(self, endpoint: str, home: Path) -> None:
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        self.environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def load(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", CODE, *arguments]
        return subprocess.run(command, env=self.environment | environment, capture_output=True, text=True, timeout=60)

    def error(self, *arguments: str, **environment: str) -> str:
        done = self.load(*arguments, **environment)
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("thinbert.errors.ModelError: ")
        return last.removeprefix("thinbert.errors.ModelError: ")


@pytest.fixture(scope="module")
def repos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("repos")
    config = tiny.bert_config(hidden_size=64, num_attention_heads=2, intermediate_size=64)
    tensors = tiny.bert_tensors(config)
    both = tiny.write_model(root / "both", config, tensors)
    torch.save({n: torch.from_numpy(t) for n, t in tensors.items()}, both / "pytorch_model.bin")
    old = tiny.write_model(root / "old", config, None)
    (old / "pytorch_model.bin").write_bytes((both / "pytorch_model.bin").read_bytes())
    sharded = tiny.write_model(root / "sharded", config, None)
    names = list(tensors)
    weight_map = {}
    for part in (0, 1):
        file = f"model-0000{part + 1}-of-00002.safetensors"
        weight_map |= dict.fromkeys(names[part::2], file)
        tiny.save_file({n: tensors[n] for n in names[part::2]}, sharded / file)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    empty = root / "empty"
    empty.mkdir()
    return {"someone/both": both, "someone/old": old, "someone/sharded": sharded, "someone/empty": empty}


@pytest.fixture
def client(repos: dict[str, Path], tmp_path: Path) -> Iterator[Client]:
    Hub.repos, Hub.requests, Hub.tokens, Hub.moved = repos, [], set(), False
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Client(f"http://127.0.0.1:{server.server_port}", tmp_path / "home")
    server.shutdown()
    server.server_close()


def test_download_then_offline(client: Client) -> None:
    first = client.load("someone/both")
    assert first.stdout == "2\n", first.stderr
    fetched = [r.removeprefix("GET ") for r in Hub.requests if r.startswith("GET")]
    assert sorted(fetched) == ["config.json", "model.safetensors", "vocab.txt"]  # and not the pickle beside it
    Hub.requests.clear()
    assert client.load("someone/both", HF_HUB_OFFLINE="1").stdout == "2\n"
    assert Hub.requests == []


@pytest.mark.parametrize("repo", ["both", "old", "sharded"])
def test_what_was_downloaded_needs_no_hub(repo: str, client: Client) -> None:
    """Nor that anybody says so."""
    assert client.load(f"someone/{repo}").stdout == "2\n"
    again = client.load(f"someone/{repo}", HF_ENDPOINT="http://127.0.0.1:9")
    assert again.stdout == "2\n", again.stderr


def test_a_branch_that_moves_on_while_it_is_downloaded(client: Client) -> None:
    Hub.moved = True
    done = client.load("someone/both")
    assert done.stdout == "2\n", done.stderr


def test_a_terminal_sees_a_progress_bar(client: Client) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))  # type: ignore[attr-defined]
    done = subprocess.run(
        [sys.executable, "-c", CODE, "someone/both"], env=client.environment, stdout=subprocess.PIPE, stderr=theirs
    )
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "model.safetensors: 100%" in shown


def test_older_and_sharded_repositories(client: Client) -> None:
    for repo in ("someone/old", "someone/sharded"):
        assert client.load(repo).stdout == "2\n"
    assert "GET model-00002-of-00002.safetensors" in Hub.requests


def test_revision_and_token(client: Client) -> None:
    assert client.load("someone/both", COMMIT, HF_TOKEN="hf_secret").stdout == "2\n"
    assert Hub.tokens == {"Bearer hf_secret"}
    assert client.error("someone/both", "v9") == "model someone/both has no revision 'v9'"
    assert client.error("someone/both@v9") == "model someone/both has no revision 'v9'"
    assert client.load(f"someone/both@{COMMIT}").stdout == "2\n"
    assert client.error("someone/both@v9", "v8") == "model someone/both@v9: two revisions"
    assert client.error("someone/both@") == "model someone/both@: no revision after @"


def test_what_is_said_when_it_fails(client: Client, tmp_path: Path) -> None:
    assert client.error("someone/nothing").startswith(
        "model someone/nothing: no such folder, and no such repository on the hub"
    )
    assert client.error("someone/gated").startswith("model someone/gated is gated: accept its terms on the hub")
    assert client.error("someone/empty").startswith("model someone/empty lacks a file it needs: ")
    offline = client.error("someone/both", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "fresh"))
    assert offline == "model someone/both: no such folder, not in the local cache, and HF_HUB_OFFLINE is set"
    unreachable = client.error("someone/both", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path / "fresh"))
    assert unreachable.startswith(
        "model someone/both: no such folder, not in the local cache, and the hub did not give it"
    )
    assert "Connection refused" in unreachable
    assert client.load("someone/both").stdout == "2\n"
    for weights in (tmp_path / "home").rglob("model.safetensors"):  # as if it had been stopped before they came
        weights.unlink()
    half = client.error("someone/both", HF_HUB_OFFLINE="1")
    assert half == "model someone/both: its weights are not in the local cache, and HF_HUB_OFFLINE is set"
    assert "HF_HUB_OFFLINE is set" not in client.error("someone/nothing", HF_HUB_OFFLINE="0")


def test_the_command_line_says_it_in_one_line(client: Client) -> None:
    command = [sys.executable, "-m", "thinbert", "inspect", "someone/nothing"]
    done = subprocess.run(command, env=client.environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("thinbert: model someone/nothing: no such folder")
    assert done.stderr.count("\n") == 1
    unreachable = client.environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}  # whose every attempt would be a line
    done = subprocess.run(command, env=unreachable, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert re.fullmatch(r"thinbert: model someone/nothing: no such folder, .*Connection refused.*\n", done.stderr)
