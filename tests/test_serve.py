"""The server: every route, every limit, clients of others unmodified, and what happens when things go wrong."""

import asyncio
import contextlib
import errno
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

import files
import thinbert
import tiny
from thinbert.corpus.index import Corpus
from thinbert.errors import CancelledError, InputError
from thinbert.serve.app import Settings, create_app
from thinbert.serve.heads import MOST
from thinbert.serve.library import Library, listed
from thinbert.serve.parse import parse_apart

QUESTION, CONTEXT = "Who built the mill?", "Anna Voss built the mill in 1802."
ANSWER = "Anna Voss"
ASKED = {"question": QUESTION, "context": CONTEXT}


def client_of(tmp_path: Path, **changes: Any) -> TestClient:
    models = {"default": thinbert.load("default", threads=1)}
    library = Library(tmp_path / "index", tmp_path / "uploads")
    return TestClient(create_app(models, library, Settings(log=False, **changes)))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with client_of(tmp_path) as client:
        yield client


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny.bert_config(id2label={"0": "negative", "1": "positive"})
    tensors = tiny.bert_tensors(config, head="classify")
    return tiny.write_model(tmp_path_factory.mktemp("models") / "classifier", config, tensors)


# --- one text at a time -----------------------------------------------------------------------------------------------


def test_hugging_face(client: TestClient) -> None:
    inputs = {"question": QUESTION, "context": CONTEXT}
    qa = thinbert.pipeline("question-answering", model=thinbert.load("default", threads=1))
    expected = qa(**inputs)
    one = client.post("/", json={"inputs": inputs})
    assert one.status_code == 200
    assert one.json() == pytest.approx(expected)
    assert one.json()["answer"] == ANSWER
    several = client.post("/models/default", json={"inputs": inputs, "parameters": {"top_k": 3}}).json()
    assert [a["answer"] for a in several] == [a["answer"] for a in qa(**inputs, top_k=3)]
    assert [a["answer"] for a in client.post("/", json={"inputs": [inputs]}).json()] == [ANSWER]
    assert len(client.post("/", json={"inputs": [inputs] * 3}).json()) == 3


def test_predict(client: TestClient) -> None:
    asked = {"question": QUESTION, "context": CONTEXT}
    assert client.post("/predict", json=asked).json()["answer"] == ANSWER
    assert [a["answer"] for a in client.post("/predict", json=[asked] * 2).json()] == [ANSWER] * 2
    long = {"question": "What did Anna Voss do?", "context": CONTEXT + " Bread is made from flour."}
    qa = thinbert.pipeline("question-answering", model=thinbert.load("default", threads=1))
    several = client.post("/predict", json={**long, "top_k": 5}).json()
    assert [a["answer"] for a in several] == [a["answer"] for a in qa(**long, top_k=5, max_answer_len=30)]
    assert len(several) == 5


def test_classification(classifier: Path, tmp_path: Path) -> None:
    models = {"mood": thinbert.load(str(classifier), threads=1)}
    with TestClient(create_app(models, None, Settings(log=False))) as client:
        [found] = client.post("/", json={"inputs": "a fine day", "parameters": None}).json()
        assert {r["label"] for r in found} == {"negative", "positive"}
        assert sum(r["score"] for r in found) == pytest.approx(1)
        best = client.post("/", json={"inputs": "a fine day", "parameters": {"top_k": 1}}).json()
        assert best == [[pytest.approx(found[0])]]
        pair = {"text": "a", "text_pair": "b"}
        assert [len(each) for each in client.post("/models/mood", json={"inputs": [pair, "c"]}).json()] == [2, 2]
        # no text is cut before the model's end, whichever way it is asked
        long = " ".join(["a"] * 55) + " the tower is built"
        [whole] = client.post("/", json={"inputs": long}).json()
        tensors = [{"name": "text", "datatype": "BYTES", "shape": [2], "data": [long, long]}]
        tensors.append({"name": "text_pair", "datatype": "BYTES", "shape": [2], "data": ["", "of a"]})
        outputs = {
            o["name"]: o["data"]
            for o in client.post("/v2/models/mood/infer", json={"inputs": tensors}).json()["outputs"]
        }
        assert outputs["score"][0] == pytest.approx(whole[0]["score"], rel=1e-5)  # an empty pair is none
        assert outputs["score"][1] != outputs["score"][0]
        v2 = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a fine day", "b"]}]}
        outputs = {o["name"]: o["data"] for o in client.post("/v2/models/mood/infer", json=v2).json()["outputs"]}
        assert outputs["label"][0] == found[0]["label"]
        assert outputs["score"][0] == pytest.approx(found[0]["score"], rel=1e-5)
        wrong = client.post("/", json={"inputs": {"question": "q", "context": "c"}})
        assert (wrong.status_code, wrong.json()["error"]) == (
            422,
            "no model here answers questions; start the server with one (--model)",
        )
        assert client.post("/v1/ask", json={"question": "q"}).status_code == 422
        assert client.get("/v1/documents").status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/", {"inputs": {"question": "q"}}, 422, "inputs"),
        ("/", {"inputs": []}, 422, "should have at least 1 item"),
        (
            "/",
            {"inputs": ASKED, "parameters": {"doc_stride": 200, "max_seq_len": 100}},
            422,
            "(200) is larger",
        ),
        ("/", {"inputs": [{"question": "q", "context": "c"}, "text"]}, 422, "are mixed"),
        (
            "/",
            {"inputs": {"question": "q", "context": "c"}, "parameters": {"topk": 3}},
            422,
            "parameters.topk: Extra inp",
        ),
        (
            "/",
            {"inputs": {"question": "q", "context": "c"}, "parameters": {"function_to_apply": "none"}},
            422,
            "not for",
        ),
        ("/", {"inputs": "text"}, 422, "no model here classifies texts"),
        ("/models/other", {"inputs": {"question": "q", "context": "c"}}, 404, "no model 'other'; there are default"),
        ("/predict", {"question": "", "context": "c"}, 422, "question: String should have at least 1 character"),
        ("/predict", [], 422, "should have at least 1 item"),
        ("/predict", {"question": 5, "context": "c"}, 422, "question: Input should be a valid string; found '5'"),
        (
            "/predict",
            {"question": "q", "context": "c", "topk": 2},
            422,
            "topk: Extra inputs are not permitted; fou",
        ),
        ("/v1/ask", {"question": "q", "context": " "}, 422, r"context: String should match pattern '\S'; found ' '"),
        ("/v1/ask", {"question": " "}, 422, r"question: String should match pattern '\S'"),
        ("/predict", {"question": "q", "context": "\n"}, 422, r"context: String should match pattern '\S'"),
        ("/", {"inputs": {"question": "q", "context": " "}}, 422, "should match pattern"),
        ("/v1/ask", {"question": "q", "threshold": 2}, 422, "threshold: Input should be less than or equal to 1"),
        ("/v2/models/default/infer", {"inputs": []}, 422, "inputs: question is missing; found none"),
        ("/v2/models/default/versions/9/infer", {"inputs": []}, 404, "no model 'default' of version 9"),
        ("/v2/models/x/infer", {}, 404, "no model 'x'"),
    ],
)
def test_bad_input_says_where(client: TestClient, path: str, body: Any, status: int, error: str) -> None:
    r = client.post(path, json=body)
    assert r.status_code == status
    assert error in r.json()["error"]


def test_a_small_request_makes_no_large_answer(client: TestClient) -> None:
    strangers = ASKED | {f"x{n}": n for n in range(100_000)}
    bodies = (
        ("/", {"inputs": [1] * 900}),
        ("/predict", [{}] * 900),
        ("/predict", [1] * 100_000),
        ("/predict", strangers),
    )
    for path, body in bodies:
        r = client.post(path, json=body)
        assert r.status_code == 422
        assert len(r.content) < 10_000


def test_not_json(client: TestClient) -> None:
    for path in ("/", "/predict", "/v1/ask", "/v2/models/default/infer"):
        for content in (b"{not json", b'{"question": "\xe9"}', b"[" * 200_000, b'{"top_k": ' + b"9" * 5000 + b"}"):
            r = client.post(path, content=content, headers={"Content-Type": "application/json"})
            assert r.status_code == 422, content[:20]
            assert "JSON" in r.json()["error"] or "inputs" in r.json()["error"]
    r = client.post("/predict", content=b'{"question": "q", "context": "c"}')
    assert (r.status_code, r.json()["error"]) == (422, "Content-Type is missing; expected application/json")


# --- documents --------------------------------------------------------------------------------------------------------


def test_only_what_a_browser_runs_nothing_of_is_shown_in_place(client: TestClient) -> None:
    """A script in a page that somebody uploaded would be the server's own."""
    kinds = {"a.html": b"<p>" + CONTEXT.encode(), "b.HTM": b"<p>x " + CONTEXT.encode(), "c.csv": b"a,b\nmill,Voss\n"}
    kinds |= {"d.docx": files.docx(files.paragraph("The mill.")), "e.txt": b"<script>mill</script>"}
    sent = [("files", item) for item in kinds.items()]
    for added in client.post("/v1/documents", files=sent).json()["added"]:
        r = client.get(f"/v1/documents/{added['id']}/file")
        how = r.headers["content-disposition"].partition(";")[0]
        if added["name"] == "e.txt":
            assert (r.headers["content-type"], how) == ("text/plain; charset=utf-8", "inline")
        else:
            assert (r.headers["content-type"], how) == ("application/octet-stream", "attachment"), added["name"]
        assert r.headers["x-content-type-options"] == "nosniff"
    assert len(client.get("/v1/documents").json()) == len(kinds)


def test_documents_come_and_go(client: TestClient, tmp_path: Path) -> None:
    pdf = files.pdf([["Contents."], ["The mill was built by Anna Voss."]], labels="0 << /S /r >>")
    sent = [("files", ("mill.pdf", pdf)), ("files", ("bread.txt", b"Bread is made from flour and water."))]
    sent.append(("files", ("broken.pdf", b"%PDF-1.4 cut")))
    r = client.post("/v1/documents", files=sent)
    assert r.status_code == 201
    assert [a["name"] for a in r.json()["added"]] == ["mill.pdf", "bread.txt"]
    assert "is not a readable PDF" in r.json()["refused"][0]["error"]
    mill = r.json()["added"][0]
    assert (mill["pages"], mill["uploaded"], mill["new"]) == (2, True, True)
    again = client.post("/v1/documents", files=sent[:1]).json()["added"][0]
    assert (again["id"], again["new"]) == (mill["id"], False)
    assert [d["name"] for d in client.get("/v1/documents").json()] == ["bread.txt", "mill.pdf"]

    found = client.post("/v1/ask", json={"question": QUESTION}).json()
    best = found["citations"][0]
    assert found["answer"] == best["answer"] == ANSWER
    assert (best["document"], best["file"], best["page"], best["page_label"]) == (mill["id"], "mill.pdf", 2, "ii")
    page = client.get(f"/v1/documents/{mill['id']}/pages/2").json()
    assert page["text"][best["start"] : best["end"]] == ANSWER
    assert (page["before"], page["after"]) == (1, None)
    file = client.get(f"/v1/documents/{mill['id']}/file")
    assert file.content == pdf
    assert file.headers["content-type"] == "application/pdf"
    assert file.headers["content-disposition"].startswith("inline")
    assert file.headers["content-security-policy"] == "frame-ancestors 'none'"  # or browsers do not show it
    for path in (f"{mill['id']}/pages/9", f"{mill['id']}/pages/0", "0000/pages/1", "0000/file"):
        assert client.get(f"/v1/documents/{path}").status_code == 404

    assert client.delete(f"/v1/documents/{mill['id']}").status_code == 204
    assert client.delete(f"/v1/documents/{mill['id']}").status_code == 404
    assert [d["name"] for d in client.get("/v1/documents").json()] == ["bread.txt"]
    assert client.post("/v1/ask", json={"question": QUESTION}).json()["answer"] != ANSWER
    assert [p.name.split("-")[1] for p in (tmp_path / "uploads").iterdir()] == ["bread.txt"]


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd.txt",
        "/etc/x.txt",
        "..\\..\\x.txt",
        "a\0b.txt",
        ".hidden.txt",
        "x" * 500 + ".txt",
        "é✓.txt",
        "𐍈" * 90 + ".txt",
    ],
)
def test_names_of_uploads_are_not_trusted(name: str, client: TestClient, tmp_path: Path) -> None:
    library: Library = client.app.state.server.library  # type: ignore[attr-defined]
    entry, _ = library.add(name, b"Some text.")
    kept = list((tmp_path / "uploads").iterdir())
    assert len(kept) == 1
    assert kept[0].parent == tmp_path / "uploads"
    assert re.fullmatch(r"[0-9a-f]{16}-[^/\\\0.][^/\\\0]*\.txt", kept[0].name)
    assert "/" not in entry.name


def test_another_process_writes(client: TestClient, tmp_path: Path) -> None:
    """Neither an upload nor a removal is half done while `thinbert index` holds the index."""
    sent = {"files": ("a.txt", b"Some text.")}
    number = client.post("/v1/documents", files=sent).json()["added"][0]["id"]
    with Corpus.open(tmp_path / "index").writer():
        r = client.post("/v1/documents", files={"files": ("b.txt", b"Other text.")})
        assert r.status_code == 503
        assert "another process is writing to this index" in r.json()["error"]
        assert client.delete(f"/v1/documents/{number}").status_code == 503
    assert [p.name.split("-")[1] for p in (tmp_path / "uploads").iterdir()] == ["a.txt"]
    assert client.get(f"/v1/documents/{number}/file").content == b"Some text."
    assert client.delete(f"/v1/documents/{number}").status_code == 204


def test_files_of_people_are_not_removed(tmp_path: Path) -> None:
    """A folder of theirs may be indexed and given for uploads."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "mine.txt").write_text(CONTEXT)
    library = Library(tmp_path / "index", tmp_path / "docs")
    library.corpus.update([str(tmp_path / "docs")])
    (entry,) = library.entries()
    with pytest.raises(InputError, match="is no upload"):
        library.remove(entry.id)
    assert (tmp_path / "docs" / "mine.txt").exists()


def test_an_upload_whose_file_is_lost_can_be_sent_again(tmp_path: Path) -> None:
    library = Library(tmp_path / "index", tmp_path / "uploads")
    entry, _ = library.add("a.txt", CONTEXT.encode())
    library.path(entry.id).unlink()
    again, new = library.add("a.txt", CONTEXT.encode())
    assert new
    assert again == entry
    assert library.path(entry.id).read_text() == CONTEXT
    assert [e.id for e in library.entries()] == [entry.id]


@pytest.mark.parametrize("full", ["thinbert.serve.library.write_atomic", "starlette.datastructures.UploadFile.write"])
def test_a_full_disk(client: TestClient, monkeypatch: pytest.MonkeyPatch, full: str) -> None:
    """Wherever it is noticed: nothing is kept, and later uploads are."""

    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    sent = {"files": ("a.txt", CONTEXT.encode())}
    with monkeypatch.context() as changed:
        changed.setattr(full, write)
        r = client.post("/v1/documents", files=sent)
    assert r.status_code == 507
    assert "No space left on device" in r.json()["error"]
    assert client.get("/v1/documents").json() == []
    assert client.post("/v1/documents", files=sent).status_code == 201


def test_files_that_changed_are_named(client: TestClient, tmp_path: Path) -> None:
    sent = [("files", (name, f"{CONTEXT} {name}".encode())) for name in ("a.txt", "b.txt")]
    first = client.post("/v1/documents", files=sent).json()["added"][0]["id"]
    assert client.post("/v1/ask", json={"question": QUESTION}).json()["stale"] == []
    next((tmp_path / "uploads").glob("*-a.txt")).write_text("Other words.")
    found = client.post("/v1/ask", json={"question": QUESTION, "top_k": 5}).json()
    assert found["stale"] == [first]


def test_forms_that_cannot_be_read(client: TestClient) -> None:
    r = client.post("/v1/documents", content=b"x", headers={"Content-Type": "multipart/form-data"})
    assert (r.status_code, "boundary" in r.json()["error"]) == (422, True)


def test_which_routes_need_a_key_is_described(tmp_path: Path) -> None:
    with client_of(tmp_path, keys=("k",)) as client:
        described = client.get("/openapi.json", headers={"X-API-Key": "k"}).json()["paths"]
        for path, operations in described.items():
            if "{" not in path and "get" in operations:
                assert ("security" in operations["get"]) == (client.get(path).status_code == 401), path


def test_names_that_are_no_text(client: TestClient) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=x; charset=unicode_escape"}
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="\\ud800.zip"\r\n\r\nPK\r\n--x--\r\n'
    r = client.post("/v1/documents", content=part, headers=kind)
    assert (r.status_code, r.json()["refused"][0]["name"]) == (422, "?.zip")


@pytest.mark.parametrize("path", ["/", "/docs", "/web/app.js", "/healthz", "/readyz", "/v2/health/live"])
def test_heads(client: TestClient, path: str) -> None:
    assert client.head(path).status_code == client.get(path).status_code == 200


def test_faults_of_our_own_say_nothing_else(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("secret")

    monkeypatch.setattr(Library, "entries", fail)
    quiet = TestClient(client.app, raise_server_exceptions=False)
    r = quiet.get("/v1/documents")
    assert (r.status_code, r.json()) == (500, {"error": "a fault of the server's own; its log says more"})
    assert r.headers["x-content-type-options"] == "nosniff"
    with pytest.raises(ValueError, match="secret"):  # which whoever runs it logs
        client.get("/v1/documents")


def test_uploads_are_not_read_by_programs_that_lie_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "csv.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    assert parse_apart("a.txt", CONTEXT.encode(), ".txt").pages[0].text == CONTEXT
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("limits", [{"SECONDS": 1}, {"MEMORY": 80 << 20}])
def test_hostile_uploads_end(client: TestClient, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(f"thinbert.serve.parse.{name}", value)
    monkeypatch.setattr("thinbert.serve.parse.PATIENCE", 100)  # what ends it is the limit of the process itself
    small = client.post("/v1/documents", files={"files": ("small.html", b"<p>x")})
    assert small.status_code == 201  # it is not Python that the limits end
    begun = time.perf_counter()
    r = client.post("/v1/documents", files={"files": ("slow.html", b"<p>x" * 3_000_000)})
    assert r.status_code == 422
    assert "slow.html: takes more than" in r.json()["error"]
    assert time.perf_counter() - begun < 50  # and not PATIENCE


def test_a_reader_that_is_long_in_starting_gets_all_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = tmp_path / "python"
    late.write_text(f'#!/bin/sh\nsleep 0.5\nexec {sys.executable} "$@"\n')
    late.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(late))
    monkeypatch.setattr("thinbert.serve.parse.PATIENCE", 20)
    text = "A file larger than a pipe holds. " * 30_000
    assert parse_apart("a.txt", text.encode(), ".txt").pages[0].text == text


def test_an_upload_that_is_withdrawn_is_read_no_further() -> None:
    begun = time.perf_counter()
    with pytest.raises(CancelledError):
        parse_apart("slow.html", b"<p>x" * 10_000_000, ".html", wanted=lambda: False)
    assert time.perf_counter() - begun < 5


def test_stored_uploads_come_back(tmp_path: Path) -> None:
    """An index may be lost or new, or a process killed before it was told of an upload: what is whole is indexed."""
    library = Library(tmp_path / "index", tmp_path / "uploads")
    library.add("kept.txt", b"Some text.")
    half = tmp_path / "uploads" / f".{'0' * 16}-half.txt.tmp"
    half.write_text("not whole")
    (tmp_path / "uploads" / f"{'0' * 16}-whole.txt").write_text("whole")
    (tmp_path / "uploads" / f"{'1' * 16}-bad.pdf").write_text("cannot be read")
    (tmp_path / "uploads" / "theirs.txt").write_text("not one of ours")
    for index in ("index", "another"):
        again = Library(tmp_path / index, tmp_path / "x" / ".." / "uploads")
        assert [e.name for e in listed(again.entries())] == ["kept.txt", "whole.txt"]
        assert all(e.uploaded for e in again.entries())
    names = sorted(p.name.split("-")[-1] for p in (tmp_path / "uploads").iterdir())
    assert names == ["bad.pdf", "kept.txt", "theirs.txt", "whole.txt"]
    with pytest.raises(InputError, match="lies inside the index"):
        Library(tmp_path / "index", tmp_path / "index" / "uploads")


def test_only_uploads_are_removed(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "mill.txt").write_text(CONTEXT)
    with client_of(tmp_path) as client:
        client.app.state.server.library.corpus.update([str(docs)])  # type: ignore[attr-defined]
        listed = client.get("/v1/documents").json()
        assert [(d["name"], d["uploaded"]) for d in listed] == [("mill.txt", False)]
        r = client.delete(f"/v1/documents/{listed[0]['id']}")
        assert (r.status_code, (docs / "mill.txt").exists()) == (422, True)
        assert "is no upload" in r.json()["error"]
        assert client.post("/v1/ask", json={"question": QUESTION}).json()["answer"] == ANSWER


def test_a_text_that_comes_along(client: TestClient) -> None:
    found = client.post("/v1/ask", json={"question": QUESTION, "context": CONTEXT}).json()
    assert found["answer"] == ANSWER
    assert found["citations"][0]["document"] is None
    none = client.post("/v1/ask", json={"question": QUESTION, "context": "Bread.", "threshold": 0}).json()
    assert none["answer"] is None
    assert none["rejected"]["answer"] == "Bread"


# --- limits -----------------------------------------------------------------------------------------------------------


def test_sizes(tmp_path: Path) -> None:
    with client_of(tmp_path, max_body_mb=0.01, max_upload_mb=0.05) as client:
        big = {"question": "q", "context": "x" * 30_000}
        r = client.post("/predict", json=big)
        assert (r.status_code, r.json()["error"]) == (
            413,
            "the request is larger than 0.0141 MB, the most this server takes",
        )
        # without a length, it is cut off where it is too large
        r = client.post("/predict", content=iter([json.dumps(big).encode()[:20_000]] * 3))
        assert r.status_code == 413
        assert client.post("/v1/documents", files={"files": ("a.txt", b"x " * 20_000)}).status_code == 201
        assert client.post("/v1/documents", files={"files": ("a.txt", b"x " * 40_000)}).status_code == 413


def test_keys(tmp_path: Path) -> None:
    with client_of(tmp_path, keys=("one\n", "two")) as client:  # as files of secrets have them
        asked = {"question": QUESTION, "context": CONTEXT}
        for headers in ({}, {"Authorization": "Bearer three"}, {"X-API-Key": ""}, {"Authorization": "Basic one"}):
            r = client.post("/predict", json=asked, headers=headers)
            assert (r.status_code, r.headers["www-authenticate"]) == (401, "Bearer")
            assert client.get("/metrics", headers=headers).status_code == 401
            assert client.get("/v1/documents", headers=headers).status_code == 401
        for headers in ({"Authorization": "Bearer one"}, {"X-API-Key": "two"}):
            assert client.post("/predict", json=asked, headers=headers).json()["answer"] == ANSWER
        for path in ("/healthz", "/readyz", "/", "/web/app.js", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200
        client.post("/no/such/path")
        counted = client.get("/metrics", headers={"X-API-Key": "two"}).text
        assert 'thinbert_requests_total{route="/predict",status="401"} 4.0' in counted
        assert 'thinbert_requests_total{route="other",status="401"} 1.0' in counted
    with pytest.raises(InputError, match="a key is empty"):
        client_of(tmp_path, keys=("",))


def test_every_route_asks_for_the_key(tmp_path: Path) -> None:
    """All but the page and what orchestrators and people look at first."""
    opened = {
        "/",
        "/web/{name}",
        "/healthz",
        "/readyz",
        "/v2/health/live",
        "/v2/health/ready",
        "/docs",
        "/openapi.json",
    }
    with client_of(tmp_path, keys=("one",)) as client:
        asked = set()
        for path, methods in client.get("/openapi.json").json()["paths"].items():
            for method in methods:
                r = client.request(method, re.sub("{[^}]*}", "1", path))
                assert (r.status_code == 401) == (method != "get" or path not in opened), (method, path)
                asked.add(path)
        assert {"/", "/models/{name}", "/predict", "/v1/ask", "/v2/models/{name}/infer", "/metrics"} <= asked


def test_headers_and_origins(client: TestClient, tmp_path: Path) -> None:
    r = client.get("/")
    assert r.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in r.headers["content-security-policy"]
    asked = {"Origin": "https://elsewhere.example"}
    assert "access-control-allow-origin" not in client.get("/healthz", headers=asked).headers
    question = {"question": QUESTION, "context": CONTEXT}
    foreign = client.post("/predict", json=question, headers=asked)
    assert (foreign.status_code, client.get("/healthz", headers=asked).status_code) == (403, 200)
    own = {"Origin": "http://testserver"}
    assert client.post("/predict", json=question, headers=own).status_code == 200
    with client_of(tmp_path / "other", origins=("https://elsewhere.example/",), keys=("k",)) as open_client:
        wanted = {**asked, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        before = open_client.options("/predict", headers=wanted)  # browsers ask first, without the key
        assert (before.status_code, before.headers["access-control-allow-origin"]) == (200, asked["Origin"])
        r = open_client.post("/predict", json=question, headers={**asked, "Authorization": "Bearer k"})
        assert (r.status_code, r.headers["access-control-allow-origin"]) == (200, asked["Origin"])
        assert open_client.post("/predict", json=question, headers=asked).headers["access-control-allow-origin"]
    with client_of(tmp_path / "named", hosts=("127.0.0.1", "[::1]", "QA.example.org:8443")) as named:
        known = ("127.0.0.1:8800", "[::1]:8800", "[::1]", "qa.example.org", "QA.Example.org:8800")
        for host, status in (*((name, 200) for name in known), ("evil.example:8800", 403)):
            assert named.get("/v1/documents", headers={"Host": host}).status_code == status
            assert named.get("/healthz", headers={"Host": host}).status_code == 200  # orchestrators use addresses


def test_content_is_logged_only_when_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "thinbert.serve")
    v2 = {"inputs": [{"name": n, "datatype": "BYTES", "shape": [1], "data": [t]} for n, t in ASKED.items()]}
    for wanted in (False, True):
        caplog.clear()
        models = {"default": thinbert.load("default", threads=1)}
        with TestClient(create_app(models, None, Settings(log_content=wanted))) as client:
            client.post("/predict", json=ASKED)
            client.post("/v1/ask", json=ASKED)
            client.post("/v2/models/default/infer", json=v2)
        lines = [json.loads(r.message) for r in caplog.records]
        assert [line["route"] for line in lines] == ["/predict", "/v1/ask", "/v2/models/{name}/infer"]
        assert [QUESTION in json.dumps(line) for line in lines] == [wanted] * 3
        assert [ANSWER in json.dumps(line) for line in lines] == [wanted] * 3


class Held:
    """A runtime that notes whose thread it computes in, and can be held while it does."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self.threads: list[threading.Thread] = []
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.may_end.set()

    def span_logits(self, *inputs: Any) -> Any:
        self.threads.append(threading.current_thread())
        self.begun.set()
        assert self.may_end.wait(30), "nothing else was answered meanwhile"
        return self._runtime.span_logits(*inputs)


def until(true: Callable[[], Any], seconds: float = 30) -> None:
    """Waits, as long as it takes on this machine; `true` is asked again and again."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds:g} seconds"
        time.sleep(0.02)


def test_too_many_at_a_time(tmp_path: Path) -> None:
    model = thinbert.load("default", threads=1)
    held = model.runtime = Held(model.runtime)  # type: ignore[assignment]
    held.may_end.clear()
    app = create_app({"default": model}, None, Settings(log=False, max_waiting=2, timeout=60))
    with TestClient(app) as client:
        with ThreadPoolExecutor(6) as pool:
            waiting = [pool.submit(client.post, "/predict", json=ASKED) for _ in range(2)]
            until(lambda: "thinbert_requests_in_flight 2.0" in client.get("/metrics").text)
            refused = list(pool.map(lambda _: client.post("/predict", json=ASKED), range(4)))
            held.may_end.set()
            assert [one.result().status_code for one in waiting] == [200] * 2
        assert [(r.status_code, r.headers["retry-after"]) for r in refused] == [(429, "1")] * 4
        text = client.get("/metrics").text
        assert 'thinbert_requests_total{route="/predict",status="429"} 4.0' in text
        assert "thinbert_requests_in_flight 0.0" in text
    assert len(held.threads) <= 2


def test_what_takes_too_long(tmp_path: Path) -> None:
    model = thinbert.load("default", threads=1)
    held = model.runtime = Held(model.runtime)  # type: ignore[assignment]
    held.may_end.clear()
    with TestClient(create_app({"default": model}, None, Settings(log=False, timeout=0.2))) as client:
        r = client.post("/predict", json=ASKED)
        held.may_end.set()
        assert (r.status_code, r.json()["error"]) == (504, "not done within 0.2 seconds")
        until(lambda: "thinbert_requests_in_flight 0.0" in client.get("/metrics").text)


def test_ready_while_it_runs(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    states = ("/healthz", "/readyz", "/v2/health/ready")

    def said() -> list[int]:
        return [client.get(path).status_code for path in states]

    assert said() == [200, 503, 503]
    with client:
        assert said() == [200, 200, 200]
    assert said() == [200, 503, 503]


def test_metrics(client: TestClient) -> None:
    client.post("/predict", json={"question": QUESTION, "context": CONTEXT})
    text = client.get("/metrics").text
    assert 'thinbert_requests_total{route="/predict",status="200"} 1.0' in text
    assert re.search(r"thinbert_tokens_total \d\d\.0", text)
    assert "thinbert_documents 0.0" in text


def test_the_api_is_described(client: TestClient) -> None:
    api = client.get("/openapi.json").json()
    assert {"/predict", "/v1/ask", "/v1/documents", "/v2/models/{name}/infer", "/healthz"} <= api["paths"].keys()
    infer = api["paths"]["/v2/models/{name}/infer"]["post"]
    schema = infer["requestBody"]["content"]["application/json"]["schema"]
    assert client.post("/v2/models/default/infer", json=schema["example"]).status_code == 200
    assert next(p for p in infer["parameters"] if p["name"] == "name")["schema"]["examples"] == ["default"]
    for name in ("/", "/docs", "/web/app.js", "/web/style.css", "/web/docs.js", "/web/icon.svg"):
        r = client.get(name)
        assert r.status_code == 200
        assert not re.search(r"https?://(?!www\.w3\.org)", r.text), name  # nothing from elsewhere
    assert client.get("/web/..%2Fapp.py").status_code == 404
    assert client.get("/web/app.py").status_code == 404


# --- Open Inference Protocol ------------------------------------------------------------------------------------------


def test_open_inference(client: TestClient) -> None:
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/default/versions/1/ready").json()["ready"]
    described = client.get("/v2/models/default").json()
    assert [i["name"] for i in described["inputs"]] == ["question", "context"]
    tensors = [{"name": n, "datatype": "BYTES", "shape": [2, 1], "data": [v, v]} for n, v in ASKED.items()]
    r = client.post("/v2/models/default/infer", json={"id": "7", "inputs": tensors}).json()
    outputs = {o["name"]: o for o in r["outputs"]}
    butter = [["What does butter cost?"], [CONTEXT]]
    other = [{"name": n, "datatype": "BYTES", "shape": [1], "data": v} for n, v in zip(ASKED, butter, strict=True)]
    found = client.post("/v2/models/default/infer", json={"inputs": other}).json()["outputs"]
    none = {o["name"]: o["data"][0] for o in found}
    read = thinbert.load("default", threads=1).read(butter[0][0], [CONTEXT])
    assert none == {"answer": "", "score": 0, "start": 0, "end": 0, "no_answer": pytest.approx(read.no_answer)}
    assert none["no_answer"] > 0.5 > outputs["no_answer"]["data"][0]
    assert (r["id"], outputs["answer"]["data"], outputs["answer"]["shape"]) == ("7", [ANSWER] * 2, [2, 1])
    assert (outputs["start"]["data"], outputs["end"]["data"]) == ([0, 0], [9, 9])
    only = client.post("/v2/models/default/infer", json={"inputs": tensors, "outputs": [{"name": "start"}]}).json()
    assert [o["name"] for o in only["outputs"]] == ["start"]
    empty = [{"name": n, "datatype": "BYTES", "shape": [0], "data": []} for n in ASKED]
    assert client.post("/v2/models/default/infer", json={"inputs": empty}).json()["outputs"][0]["data"] == []


def binary(texts: dict[str, list[str]], shape: list[int] | None = None) -> tuple[bytes, dict[str, str]]:
    """A request in the binary form, and its headers."""
    inputs, tail = [], b""
    for name, values in texts.items():
        data = b"".join(struct.pack("<I", len(v.encode())) + v.encode() for v in values)
        described = {"name": name, "datatype": "BYTES", "shape": shape or [len(values)]}
        inputs.append({**described, "parameters": {"binary_data_size": len(data)}})
        tail += data
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return head + tail, {"Inference-Header-Content-Length": str(len(head))}


def test_binary_tensors(client: TestClient) -> None:
    body, headers = binary({"question": [QUESTION], "context": [CONTEXT]})
    r = client.post("/v2/models/default/infer", content=body, headers=headers)
    assert r.status_code == 200
    length = int(r.headers["inference-header-content-length"])
    outputs, place, found = json.loads(r.content[:length])["outputs"], length, {}
    for o in outputs:
        size = o["parameters"]["binary_data_size"]
        found[o["name"]] = r.content[place : place + size]
        place += size
    assert place == len(r.content)
    assert found["answer"] == struct.pack("<I", len(ANSWER)) + ANSWER.encode()
    assert np.frombuffer(found["end"], "<i8").tolist() == [9]
    for parameters, as_bytes in (({}, True), ({"binary_data": False}, False)):
        asked = {
            "inputs": [{"name": n, "datatype": "BYTES", "shape": [1], "data": [t]} for n, t in ASKED.items()],
            "outputs": [{"name": "answer", "parameters": parameters}],
            "parameters": {"binary_data_output": True},
        }
        r = client.post("/v2/models/default/infer", json=asked)
        assert ("inference-header-content-length" in r.headers) == as_bytes
    assert 0 < np.frombuffer(found["score"], "<f4")[0] <= 1


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b'{"id": "\\ud800", "inputs": []}', None),
        (b'{"inputs": [{"name": "\\ud800", "datatype": "BYTES", "shape": [1], "data": ["x"]}]}', None),
        (b'{"inputs": [], "outputs": [{"name": "\\ud800"}]}', None),
        (b"{}", "9" * 5000),
        (b"{}", "-1"),
    ],
)
def test_hostile_protocol_input(client: TestClient, body: bytes, length: str | None) -> None:
    headers = {"Inference-Header-Content-Length": length} if length else {}
    assert client.post("/v2/models/default/infer", content=body, headers=headers).status_code == 422


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with client_of(tmp_path_factory.mktemp("shared")) as client:
        yield client


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_bytes_break_the_binary_form(shared: TestClient, data: st.DataObject) -> None:
    body, headers = binary({"question": [QUESTION], "context": [CONTEXT]})
    mutated = bytearray(body)
    for _ in range(data.draw(st.integers(0, 4))):
        kind = data.draw(st.sampled_from(["set", "cut", "grow"]))
        at = data.draw(st.integers(0, max(0, len(mutated) - 1)))
        if kind == "set" and mutated:
            mutated[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del mutated[at:]
        else:
            mutated[at:at] = data.draw(st.binary(max_size=8))
    lengths = st.one_of(
        st.just(headers["Inference-Header-Content-Length"]), st.integers(-5, 400).map(str), st.just("x")
    )
    header = {"Inference-Header-Content-Length": data.draw(lengths)}
    r = shared.post("/v2/models/default/infer", content=bytes(mutated), headers=header)
    assert r.status_code in (200, 422), r.text
    if r.status_code == 422:
        assert r.json()["error"]


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    inputs=st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "name": st.sampled_from(["question", "context", "x", 3]),
                "datatype": st.sampled_from(["BYTES", "FP32", "no", None]),
                "shape": st.lists(st.integers(-1, 3) | st.just(1 << 40), max_size=3) | st.none(),
                "data": st.recursive(st.text(max_size=5) | st.integers() | st.none(), st.lists, max_leaves=4),
                "parameters": st.none() | st.just({"binary_data_size": 3}) | st.just([]),
            },
        ),
        max_size=3,
    )
)
def test_no_json_breaks_it(shared: TestClient, inputs: list[Any]) -> None:
    r = shared.post("/v2/models/default/infer", content=json.dumps({"inputs": inputs}).encode())
    assert r.status_code in (200, 422), r.text


def test_schemathesis_finds_no_fault(shared: TestClient) -> None:
    """Requests made from openapi.json, valid and not, never give 500."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", shared.app)

    def check(operation: Any) -> None:
        @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def each(case: Any) -> None:
            answer = case.call()
            assert answer.status_code < 500, f"{operation.label}: {answer.text}"

        each()

    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 12
    for operation in operations:
        check(operation)


# --- a real server ----------------------------------------------------------------------------------------------------


class Running:
    all: ClassVar[list["Running"]] = []

    def __init__(self, tmp_path: Path, *options: str) -> None:
        tmp_path.mkdir(exist_ok=True)
        self.log = tmp_path / "server.log"
        command = [
            sys.executable,
            "-m",
            "thinbert",
            "serve",
            "--port",
            "0",
            "--index",
            str(tmp_path / "index"),
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *options], stderr=log, env={**os.environ, "THINBERT_THREADS": "1"}
            )
        self.all.append(self)
        until(self._ready, 60)

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        if (at := re.search(r"http://127\.0\.0\.1:(\d+)", self.log.read_text())) is None:
            return False
        self.url, self.port = at[0], int(at[1])
        try:
            return bool(urllib.request.urlopen(f"{self.url}/readyz", timeout=10).status == 200)
        except OSError:
            return False

    def metrics(self) -> str:
        return urllib.request.urlopen(f"{self.url}/metrics").read().decode()

    def holds(self, requests: int) -> bool:
        """Whether so many wait or are computed, or have been."""
        text = self.metrics()
        numbers = re.findall(r'(?:_in_flight|route="/predict",status="200"}) ([\d.]+)', text)
        return sum(map(float, numbers)) >= requests

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(40)


@pytest.fixture(autouse=True)
def no_server_is_left() -> Iterator[None]:
    yield
    for running in Running.all:
        running.process.kill()
        running.process.wait()
    Running.all.clear()


@pytest.fixture
def server(tmp_path: Path) -> Running:
    return Running(tmp_path)


def post(url: str, body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def test_clients_of_others(server: Running, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unmodified: huggingface_hub's InferenceClient and tritonclient."""
    from huggingface_hub import InferenceClient

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # its own server is not the hub

    found = InferenceClient(model=server.url).question_answering(question=QUESTION, context=CONTEXT)
    best = found[0] if isinstance(found, list) else found
    assert best.answer == ANSWER
    running = Running(tmp_path / "texts", "--model", str(classifier))
    classes = InferenceClient(model=running.url).text_classification("a fine day", top_k=2)
    running.stop()
    assert [c.label for c in classes] in (["negative", "positive"], ["positive", "negative"])
    import tritonclient.http as triton

    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("default")
        for as_bytes in (True, False):
            inputs = []
            for name, text in ASKED.items():
                tensor = triton.InferInput(name, [1], "BYTES")
                tensor.set_data_from_numpy(np.array([text], object), binary_data=as_bytes)
                inputs.append(tensor)
            outputs = [triton.InferRequestedOutput(n, binary_data=as_bytes) for n in ("answer", "score", "start")]
            result = client.infer("default", inputs, outputs=outputs)
            answer = result.as_numpy("answer")[0]
            assert (answer.decode() if isinstance(answer, bytes) else answer) == ANSWER
            assert result.as_numpy("start").tolist() == [0]
        assert client.infer("default", inputs).as_numpy("answer").shape == (1,)


def test_sigterm_drains(server: Running) -> None:
    long = " ".join([CONTEXT] * 4000)
    with ThreadPoolExecutor(3) as pool:
        waiting = [
            pool.submit(post, f"{server.url}/predict", {"question": QUESTION, "context": long}) for _ in range(3)
        ]
        until(lambda: server.holds(3))
        code = server.stop()
        assert [w.result()["answer"] for w in waiting] == [ANSWER] * 3
    assert code == 0
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    assert [line["status"] for line in lines if line["route"] == "/predict"] == [200] * 3
    assert QUESTION not in server.log.read_text()  # what people ask is theirs


def test_a_client_that_hangs_up_frees_its_work(server: Running) -> None:
    body = json.dumps({"question": QUESTION, "context": " ".join([CONTEXT] * 30_000)}).encode()
    fields = ("Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}")
    head = "\r\n".join(("POST /predict HTTP/1.1", *fields, "", ""))
    with socket.create_connection(("127.0.0.1", server.port)) as s:
        s.sendall(head.encode() + body)
        until(lambda: server.holds(1))
    until(lambda: 'thinbert_requests_total{route="/predict",status="499"} 1.0' in server.metrics())
    assert post(f"{server.url}/predict", ASKED)["answer"] == ANSWER

    def tokens() -> float:
        return float(re.search(r"thinbert_tokens_total ([\d.e+]+)", server.metrics())[1])  # type: ignore[index]

    counted = [tokens()]
    while len(counted) < 2 or counted[-1] != counted[-2]:  # what was in a pass is through it
        time.sleep(0.5)
        counted.append(tokens())
    assert counted[-1] < 30_000 * 8 / 2  # of the whole text


def test_clients_that_are_gone_when_answered(server: Running) -> None:
    """Writing to them is SIGPIPE, which ends other commands."""
    asked = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port)) as s:
            s.sendall(asked)
    assert post(f"{server.url}/predict", ASKED)["answer"] == ANSWER


def test_a_body_that_does_not_come(tmp_path: Path) -> None:
    server = Running(tmp_path, "--timeout", "1")
    head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as s:
        s.sendall(head.encode())
        answer = s.makefile("rb").read().decode()  # to the end: the connection is closed
    assert answer.startswith("HTTP/1.1 408 ")
    assert "did not come within 1 seconds" in answer
    assert server.stop() == 0


def test_heads_end(tmp_path: Path) -> None:
    """Neither very many bytes nor very long are waited for before a body, or after it."""
    server = Running(tmp_path, "--timeout", "1")
    chunked = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    header = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: "
    for sent, status in (
        (b"GET /healthz HTTP/1.1\r\nHost: loc", b"408"),
        (b"", b"408"),
        (header.ljust(MOST + 1, b"x"), b"431"),
        (b"GET /".ljust(MOST + 1, b"x"), b"431"),
        (header.ljust(20 * MOST, b"x"), b""),  # which comes to nobody: the connection is reset
        (chunked + b"X-Long: ".ljust(20 * MOST, b"x"), b""),
    ):
        begun = time.perf_counter()
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as s:
            answer = b""
            with contextlib.suppress(ConnectionError):
                s.sendall(sent)
                answer = s.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 " + status if status else b"")
        assert time.perf_counter() - begun < 15
    with httpx.Client(base_url=server.url, timeout=30) as one:  # and what is in order goes on, over one connection
        assert [one.get("/healthz", headers={"X-Long": "x" * 30_000}).status_code for _ in range(3)] == [200] * 3
    assert server.stop() == 0


def test_bodies_that_were_not_waited_for_end_too(tmp_path: Path) -> None:
    """A request that is refused before its body came does not keep its connection for good."""
    server = Running(tmp_path, "--timeout", "1", "--api-key", "secret")
    begun = time.perf_counter()
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as s:
        s.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        assert s.recv(1 << 16).startswith(b"HTTP/1.1 401 ")
        s.sendall(b"x")
        s.makefile("rb").read()  # to the end: the connection is closed
    assert time.perf_counter() - begun < 15
    with httpx.Client(base_url=server.url, timeout=30) as one:  # and where it comes, the connection goes on
        answers = [one.post("/predict", content=b"x" * 1000) for _ in range(3)]
        time.sleep(1.5)
        answers.append(one.get("/healthz"))
    assert [a.status_code for a in answers] == [401, 401, 401, 200]
    assert server.stop() == 0


@pytest.mark.parametrize("path", ["/predict", "/v2/models/default/infer"])
def test_clients_that_hang_up_in_the_middle_of_their_body(server: Running, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
    with socket.create_connection(("127.0.0.1", server.port)) as s:
        s.sendall(head.encode())
        time.sleep(0.2)
    route = path.replace("default", "{name}")
    until(lambda: f'thinbert_requests_total{{route="{route}",status="499"}}' in server.metrics())


def test_bodies_under_way_are_counted(tmp_path: Path) -> None:
    server = Running(tmp_path, "--max-waiting", "2")
    head = (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            s = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
            s.sendall(head)
        until(lambda: httpx.post(f"{server.url}/predict", json=ASKED, timeout=30).status_code == 429)
    assert server.stop() == 0


def test_a_long_upload_that_keeps_coming(tmp_path: Path) -> None:
    """It may take longer than a client may be silent."""
    server = Running(tmp_path, "--timeout", "2")
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\n'
    body += CONTEXT.encode() + b"\n" * 200_000 + b"\r\n--x--\r\n"
    head = f"POST /v1/documents HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as s:
        s.sendall(head.encode())
        step = len(body) // 8 + 1
        for at in range(0, len(body), step):
            time.sleep(0.4)
            s.sendall(body[at : at + step])
        assert s.recv(1000).startswith(b"HTTP/1.1 201 ")
    assert server.stop() == 0


def test_a_body_that_comes_by_drops(tmp_path: Path) -> None:
    """No piece of it is late, and it would take a day."""
    server = Running(tmp_path, "--timeout", "1")
    head = (
        "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 90000\r\n\r\n{"
    )
    begun = time.perf_counter()
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.25) as s:
        s.sendall(head.encode())
        answer = b""
        while not answer and time.perf_counter() - begun < 20:
            try:
                answer = s.recv(1000)
            except TimeoutError:
                s.sendall(b" ")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert time.perf_counter() - begun < 15
    assert server.stop() == 0


def test_uploads_at_a_time(server: Running) -> None:
    head = "POST /v1/documents HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n"
    head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"

    def upload() -> httpx.Response:
        return httpx.post(f"{server.url}/v1/documents", files={"files": ("a.txt", CONTEXT.encode())}, timeout=30)

    with ExitStack() as stack:
        for _ in range(8):
            s = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
            s.sendall(head.encode())
        until(lambda: upload().status_code == 429)
        r = upload()
        assert (r.status_code, r.json()["error"]) == (429, "8 uploads are under way; try again")
        assert r.headers["retry-after"] == "1"
        # questions are still answered
        assert post(f"{server.url}/predict", {"question": QUESTION, "context": CONTEXT})["answer"] == ANSWER
    until(lambda: upload().status_code == 201)


def test_killed_while_uploading(tmp_path: Path) -> None:
    """What was acknowledged is there after kill -9; what was not is whole or absent."""
    running = Running(tmp_path)
    acknowledged: list[str] = []

    def upload() -> None:
        for n in range(1000):
            name = f"d{n:03}.txt"
            boundary = "x0x"
            content = f"Document number{n}. " + "Words follow. " * 50
            part = (
                f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n{content}\r\n'
            )
            data = (part + f"--{boundary}--\r\n").encode()
            headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
            try:
                urllib.request.urlopen(urllib.request.Request(f"{running.url}/v1/documents", data, headers)).read()
            except OSError:
                return
            acknowledged.append(name)

    thread = threading.Thread(target=upload)
    thread.start()
    until(lambda: len(acknowledged) >= 3 or not thread.is_alive())
    assert len(acknowledged) >= 3
    running.stop(signal.SIGKILL)
    thread.join()
    again = Running(tmp_path)
    with urllib.request.urlopen(f"{again.url}/v1/documents") as answer:
        names = {d["name"] for d in json.loads(answer.read())}
    assert set(acknowledged) <= names
    assert len(names) <= len(acknowledged) + 1
    stored = {p.name.partition("-")[2] for p in (tmp_path / "index-uploads").iterdir()}
    assert stored == names  # whole and indexed, or absent
    for n, name in enumerate(acknowledged[:3]):
        found = post(f"{again.url}/v1/ask", {"question": f"What is document number{n}?", "threshold": 1})
        assert found["citations"][0]["file"] == name
    assert again.stop() == 0


def test_a_key_may_have_spaces(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One key, and not one for each of its words."""
    seen: list[Any] = []
    monkeypatch.setattr("thinbert.serve.run.serve", lambda *args, **options: seen.append(args[5]))
    monkeypatch.setenv("THINBERT_API_KEY", "my secret key")
    assert cli("serve").code == 0
    assert cli("serve", "--api-key", "a b", "--api-key", "c").code == 0
    assert [settings.keys for settings in seen] == [("my secret key",), ("a b", "c")]


def test_starting_says_what_is_wrong(cli: Any, tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        r = cli("serve", "--port", s.getsockname()[1])
        assert r.code == 2
        assert "cannot listen on 127.0.0.1" in r.err
    assert "no such folder" in cli("serve", "--model", "./nowhere").err
    assert "a second model named 'default'" in cli("serve", "--model", "default", "--model", "default").err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert "is not empty and no index" in cli("serve", "--index", tmp_path / "full").err
    assert "--uploads needs --index" in cli("serve", "--uploads", tmp_path / "uploads").err
    assert "--host is empty" in cli("serve", "--host", "").err
    assert "lr=0.1/model': no such folder" in cli("serve", "--model", tmp_path / "lr=0.1" / "model").err
    for option in ("--timeout", "--max-body-mb", "--max-upload-mb"):
        r = cli("serve", option, "inf")
        assert (r.code, f"{option} is inf; expected a number" in r.err) == (2, True)


@asynccontextmanager
async def on_this_loop(runtime: Callable[[Any], Any]) -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
    model = thinbert.load("default", threads=1)
    computes = model.runtime = runtime(model.runtime)
    app = create_app({"default": model}, None, Settings(log=False))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        yield computes, client
    app.state.server.close()


def test_the_loop_is_free_while_the_engine_computes() -> None:
    """Health is answered while long requests are computed, however short their text is."""

    async def ask() -> None:
        async with on_this_loop(Held) as (computes, client):
            for _ in range(2):  # the second time it is known that it will take long
                computes.begun.clear()
                computes.may_end.clear()
                long = asyncio.create_task(client.post("/predict", json=ASKED))
                while not computes.begun.is_set():
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.2)  # that long it takes at least
                assert (await client.get("/healthz")).status_code == 200
                computes.may_end.set()
                assert (await long).json()["answer"] == ANSWER
            assert threading.current_thread() not in computes.threads

    asyncio.run(ask())


def test_long_bodies_go_to_a_thread_whatever_was_learnt() -> None:
    """Megabytes of white space are read in no time, and must not make a text of that length look short."""

    async def ask() -> None:
        async with on_this_loop(Held) as (computes, client):
            space = json.dumps({"question": "Who?", "context": "Anna"}) + " " * 1_000_000
            for _ in range(40):
                r = await client.post("/predict", content=space, headers={"content-type": "application/json"})
                assert r.status_code == 200
            assert (await client.post("/predict", json=ASKED | {"context": CONTEXT * 200})).status_code == 200
            assert threading.current_thread() not in computes.threads

    asyncio.run(ask())


def test_a_model_outlives_its_server() -> None:
    model = thinbert.load("default", threads=1)
    for _ in range(2):
        with TestClient(create_app({"default": model}, None, Settings(log=False))) as client:
            assert client.post("/predict", json=ASKED).json()["answer"] == ANSWER
        found = model.answer(QUESTION, CONTEXT)
        assert found is not None
        assert found.text == ANSWER


def test_what_is_short_and_alone_is_computed_on_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thinbert.serve.server._SHORT", 0.1)  # what it is where others have the cores too
    tensors = [{"name": name, "datatype": "BYTES", "shape": [1], "data": [text]} for name, text in ASKED.items()]
    asked = {"/predict": ASKED, "/": {"inputs": ASKED}, "/v2/models/default/infer": {"inputs": tensors}}

    async def ask() -> None:
        async with on_this_loop(Held) as (computes, client):
            for route, body in asked.items():
                first = await client.post(route, json=body)
                for _ in range(200):  # on a busy machine it takes a while until requests are known to be short
                    last = await client.post(route, json=body)
                    if computes.threads[-1] is threading.current_thread():
                        break
                assert computes.threads[-1] is threading.current_thread()
                assert last.status_code == 200
                assert last.json() == first.json()
            assert computes.threads[0] is not threading.current_thread()  # nothing was known yet
            computes.threads.clear()
            together = await asyncio.gather(*(client.post("/predict", json=ASKED) for _ in range(4)))
            assert [r.json()["answer"] for r in together] == [ANSWER] * 4
            assert threading.current_thread() not in computes.threads

    asyncio.run(ask())
