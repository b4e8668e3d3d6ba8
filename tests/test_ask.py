"""`thinbert ask`: documents with exact places, what is printed, exit codes, and every message."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Cli
from thinbert.corpus.documents import Document, read_document
from thinbert.errors import InputError

EXAMPLE = Path(__file__).parent.parent / "examples" / "eiffel-tower.md"
QUESTION = "Who is the Eiffel Tower named after?"


def test_the_example(cli: Cli) -> None:
    r = cli("ask", QUESTION, EXAMPLE)
    assert r.code == 0
    first, place, sentence = r.out.splitlines()[:3]
    assert first.startswith("Gustave Eiffel  score 0.")
    text = EXAMPLE.read_text(encoding="utf-8")
    start = text.index("Gustave Eiffel")
    assert place.endswith(f"eiffel-tower.md:{text[:start].count(chr(10)) + 1}, characters {start}–{start + 14}")
    assert sentence.strip().startswith("It is named after the engineer [Gustave Eiffel], whose company")


def test_json(cli: Cli) -> None:
    r = cli("ask", QUESTION, EXAMPLE, "--json", "--top-k", 3)
    answer = json.loads(r.out)
    text = EXAMPLE.read_text(encoding="utf-8")
    assert r.code == 0
    assert (answer["answer"], answer["file"], answer["line"]) == ("Gustave Eiffel", str(EXAMPLE), 3)
    assert len(answer["answers"]) == 3
    for a in answer["answers"]:
        assert text[a["start"] : a["end"]] == a["answer"]
        assert text[a["sentence_start"] :].startswith(a["sentence"])
        assert a["answer"] in a["sentence"]
    places = [(a["start"], a["end"]) for a in answer["answers"]]
    assert all(a[1] <= b[0] or b[1] <= a[0] for a in places for b in places if a != b)
    scores = [a["score"] for a in answer["answers"]]
    assert scores == sorted(scores, reverse=True)
    assert answer["score"] == scores[0]


def test_no_answer(cli: Cli) -> None:
    r = cli("ask", "What does a kilogram of butter cost?", EXAMPLE)
    assert r.code == 1
    assert r.out.startswith("No answer (probability ")
    assert "Best rejected candidate:" in r.out
    r = cli("ask", "What does a kilogram of butter cost?", EXAMPLE, "--json")
    answer = json.loads(r.out)
    assert r.code == 1
    assert answer["answer"] is None
    assert answer["answers"] == []
    assert answer["rejected"]["file"] == str(EXAMPLE)
    assert answer["no_answer_probability"] > answer["threshold"] == 0.5
    # the threshold is the caller's to move
    assert cli("ask", "What does a kilogram of butter cost?", EXAMPLE, "--threshold", 1).code == 0


def test_text_without_words(cli: Cli) -> None:
    r = cli("ask", QUESTION, "--context", "\u00ad\u00ad")  # soft hyphens: text, but no tokens
    assert (r.code, r.out) == (1, "No answer in this text (probability 100%).\n")


def test_stdin_context_and_several_files(cli: Cli, tmp_path: Path) -> None:
    text = EXAMPLE.read_bytes()
    r = cli("ask", QUESTION, "-", stdin=text)
    assert "standard input:3, characters" in r.out
    assert "context:1, characters 0–14" in cli("ask", QUESTION, "--context", "Gustave Eiffel gave his name to it.").out
    other = tmp_path / "other.txt"
    other.write_text("Bread is made from flour, water and salt.")
    r = cli("ask", "What is bread made from?", EXAMPLE, other)
    assert r.code == 0
    assert "other.txt:1, characters" in r.out
    assert "flour, water and salt" in r.out


@pytest.mark.parametrize(
    "name", ["utf16.txt", "latin1.txt", "binary.txt", "empty.txt", "blank.txt", "folder", "missing.txt"]
)
def test_unreadable_files(cli: Cli, tmp_path: Path, name: str) -> None:
    (tmp_path / "latin1.txt").write_bytes("café".encode("latin1"))
    (tmp_path / "utf16.txt").write_bytes("café".encode("utf-16"))
    (tmp_path / "binary.txt").write_bytes(b"\x7fELF\0\0")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "blank.txt").write_bytes(b" \n\t\n")
    (tmp_path / "folder").mkdir()
    messages = {
        "utf16.txt": "is UTF-16; convert it first, for example with iconv -f utf-16 -t utf-8",
        "latin1.txt": "not UTF-8 (byte 3 is 0xe9); convert it first",
        "binary.txt": "is a binary file; expected text or Markdown",
        "empty.txt": "is empty; there is no text to look for an answer in",
        "blank.txt": "is empty",
        "folder": "is a directory; name the files in it",
        "missing.txt": "no such file",
    }
    r = cli("ask", QUESTION, EXAMPLE, tmp_path / name)
    assert (r.code, r.out) == (2, "")
    assert r.err.startswith(f"thinbert: {tmp_path / name}: {messages[name]}")
    assert r.err.count("\n") == 1


def test_wrong_use(cli: Cli, tiny_folder: Path) -> None:
    for arguments, message in (
        ((QUESTION,), "give files to read, - for standard input, or --context TEXT (one of them)"),
        ((QUESTION, EXAMPLE, "--context", "x"), "give files to read"),
        (("  ", EXAMPLE), "the question is empty"),
        ((QUESTION, EXAMPLE, "--model", "./nowhere"), "model './nowhere': no such folder"),
        ((QUESTION, EXAMPLE, "--model", ""), "model '': no such folder"),
        ((QUESTION, EXAMPLE, "--model", "a" * 5000), "model aaaa"),
        ((QUESTION, "--context", "caf\udce9"), "context: is not UTF-8"),
        ((QUESTION, "~nobody-at-all"), "~nobody-at-all: no such file"),
        ((QUESTION, EXAMPLE, "--model", EXAMPLE), f"{EXAMPLE} is a file; a model is a folder"),
        ((QUESTION, "-", "--model", tiny_folder), "standard input: is empty"),
    ):
        r = cli("ask", *arguments)
        assert (r.code, r.out) == (2, ""), arguments
        assert r.err.startswith(f"thinbert: {message}"), r.err
        assert r.err.count("\n") == 1
    assert cli("ask", QUESTION, EXAMPLE, "--top-k", 0).code == 2
    assert cli("ask", QUESTION, EXAMPLE, "--threshold", 1.5).code == 2
    assert cli("ask").code == 2
    assert cli("wombat").code == 2


def test_control_characters_do_not_reach_the_terminal(cli: Cli) -> None:
    r = cli(
        "ask",
        "Who built it?",
        "--context",
        "It was built by \x1b[31mGustave\x07 Eiffel\x1b[0m in 1889.",
        "--threshold",
        1,
    )
    assert r.code == 0
    assert not any(c in r.out for c in "\x1b\x07")


# --- documents --------------------------------------------------------------------------------------------------------


def test_line_ends_and_marks_are_kept_or_dropped_as_said(tmp_path: Path) -> None:
    path = tmp_path / "d.txt"
    path.write_bytes("\ufeffone\r\ntwo\rthree\n\nfive 🐨 six\n".encode())
    d = read_document(str(path))
    assert d.text == "one\r\ntwo\rthree\n\nfive 🐨 six\n"
    assert [d.line(d.text.index(w)) for w in ("one", "two", "three", "five", "six")] == [1, 2, 3, 5, 5]


@pytest.mark.parametrize(
    ("text", "word", "sentence"),
    [
        ("One. Two is here. Three.", "Two", "Two is here."),
        ("He said “yes.” Then left.", "Then", "Then left."),
        ("It costs 3.50 euros today. Fine.", "euros", "It costs 3.50 euros today."),
        ("# Title\n\nFirst paragraph\nover two lines.\n\nSecond.", "over", "First paragraph\nover two lines."),
        ("- item one\n- item two\n- item three", "two", "- item two"),
        ("no end at all", "end", "no end at all"),
        ("Why? Because! So…", "Because", "Because!"),
    ],
)
def test_sentences(text: str, word: str, sentence: str) -> None:
    start = text.index(word)
    first, last = Document("d", text).sentence(start, start + len(word))
    assert text[first:last] == sentence


@given(text=st.text(st.sampled_from("ab .!?\n\r\t-#é🐨"), min_size=1, max_size=200), data=st.data())
def test_a_sentence_always_holds_its_answer(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    first, last = Document("d", text).sentence(start, end)
    assert 0 <= first <= start < end <= last <= len(text)


def test_a_sentence_without_end_is_cut(tmp_path: Path) -> None:
    text = "word " * 10_000
    first, last = Document("d", text).sentence(25_000, 25_004)
    assert (first, last) == (24_600, 25_404)


def test_read_document_raises_input_error() -> None:
    with pytest.raises(InputError, match="nowhere: no such file"):
        read_document("nowhere")
