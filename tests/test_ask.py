"""`thinbert ask`: answers with their places, what is printed, exit codes, and every message."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import files
import thinbert
from conftest import Cli
from thinbert.corpus import ask as asking
from thinbert.corpus.ask import _words
from thinbert.corpus.documents import Document
from thinbert.corpus.index import Corpus
from thinbert.corpus.pages import Page

EXAMPLE = Path(__file__).parent.parent / "examples" / "eiffel-tower.md"
QUESTION = "Who is the Eiffel Tower named after?"


def test_the_example(cli: Cli) -> None:
    r = cli("ask", QUESTION, EXAMPLE)
    assert r.code == 0
    first, place, sentence = r.out.splitlines()[:3]
    assert first.startswith("Gustave Eiffel  score 0.")
    text = EXAMPLE.read_text(encoding="utf-8")
    start = text.index("Gustave Eiffel")
    line, column = text[:start].count("\n") + 1, start - text.rindex("\n", 0, start)
    assert place.endswith(f"eiffel-tower.md:{line}:{column}  under “The Eiffel Tower”")
    assert sentence.strip().startswith("It is named after the engineer [Gustave Eiffel], whose company")


def test_json(cli: Cli) -> None:
    r = cli("ask", QUESTION, EXAMPLE, "--json", "--top-k", 3)
    answer = json.loads(r.out)
    text = EXAMPLE.read_text(encoding="utf-8")
    assert r.code == 0
    assert (answer["answer"], answer["file"], answer["line"]) == ("Gustave Eiffel", str(EXAMPLE), 3)
    assert text.splitlines()[2][answer["column"] - 1 :].startswith("Gustave Eiffel")
    assert len(answer["citations"]) == 3
    for a in answer["citations"]:
        assert text[a["start"] : a["end"]] == a["answer"]
        assert text[a["sentence_start"] :].startswith(a["sentence"])
        assert a["answer"] in a["sentence"]
    places = [(a["start"], a["end"]) for a in answer["citations"]]
    assert all(a[1] <= b[0] or b[1] <= a[0] for a in places for b in places if a != b)
    scores = [a["score"] for a in answer["citations"]]
    assert scores == sorted(scores, reverse=True)
    assert answer["score"] == scores[0]


def test_no_answer(cli: Cli) -> None:
    r = cli("ask", "What does a kilogram of butter cost?", EXAMPLE)
    assert r.code == 1
    assert r.out.startswith("No answer in these documents (probability ")
    assert "Best rejected candidate:" in r.out
    r = cli("ask", "What does a kilogram of butter cost?", EXAMPLE, "--json")
    answer = json.loads(r.out)
    assert r.code == 1
    assert answer["answer"] is None
    assert answer["citations"] == []
    assert answer["rejected"]["file"] == str(EXAMPLE)
    assert answer["threshold"] == thinbert.load().config.no_answer_threshold
    assert answer["no_answer"] > answer["threshold"]
    # the threshold is the caller's to move
    assert cli("ask", "What does a kilogram of butter cost?", EXAMPLE, "--threshold", 1).code == 0


def test_scores_over_all_passages_and_no_answer_sum_to_one() -> None:
    """The surest passage alone decides no_answer, a passage's search score counts in its odds, and the same words in
    two places are one answer."""
    model = thinbert.load("default")
    texts = [
        "Anna Voss built the mill in 1802. It stands by the river.",
        "The mill that Anna Voss built has four storeys.",
        "Bread is made from flour, and flour from the mill.",
    ]
    corpus = Corpus.in_memory([Document(f"{n}", (Page(text, 1),)) for n, text in enumerate(texts)])
    question = "Who built the mill?"
    hits = corpus.view().search(question, 10)
    assert len(hits) == 3
    candidates, no_answer = asking._read(model, question, hits, 10_000)
    assert sum(c.score for c in candidates) + no_answer == pytest.approx(1)
    readings = [model.read(question, [h.text], n_best=10_000) for h in hits]
    alone = [r.no_answer for r in readings]
    odds = [
        math.log((1 - p) / p) - asking.RETRIEVAL * (1 - h.score / hits[0].score)
        for h, p in zip(hits, alone, strict=True)
    ]
    assert no_answer == pytest.approx(1 / (1 + math.exp(max(odds))), rel=1e-3)
    mass = [sum(c.score for c in candidates if c.hit == h) for h in hits]
    assert mass[1] / mass[0] == pytest.approx(math.exp(odds[1] - odds[0]), rel=1e-3)
    behind = [hits[0], replace(hits[1], score=hits[1].score / 2), hits[2]]
    less = asking._read(model, question, behind, 10_000)[0]
    assert sum(c.score for c in less if c.hit == behind[1]) < mass[1]  # what the search finds worse counts less
    best, score, also = asking._distinct(candidates)[0]
    named = [c.score for c in candidates if c.answer.text == "Anna Voss"]
    assert (best.answer.text, len(named), len(also)) == ("Anna Voss", 2, 1)
    assert score >= sum(named) > max(named)


def test_an_answer_that_is_an_article(cli: Cli) -> None:
    """As a grade, a vitamin or a blood group may be."""
    r = cli("ask", "What is the grade?", "--context", "Essay on rye bread. Grade: A", "--threshold", 1, "--json")
    assert json.loads(r.out)["answer"] == "A"


def test_text_without_words(cli: Cli) -> None:
    r = cli("ask", QUESTION, "--context", "\u00ad\u00ad")  # soft hyphens: text, but no tokens
    assert (r.code, r.out) == (1, "No answer in these documents (probability 100%).\n")


def test_stdin_context_and_several_files(cli: Cli, tmp_path: Path) -> None:
    text = EXAMPLE.read_bytes()
    r = cli("ask", QUESTION, "-", stdin=text)
    assert "standard input:3:" in r.out
    r = cli("ask", QUESTION, "--context", "The Eiffel Tower is named after Gustave Eiffel.")
    assert "context:1:33" in r.out
    other = tmp_path / "other.txt"
    other.write_text("Bread is made from flour, water and salt.")
    r = cli("ask", "What is bread made from?", EXAMPLE, other)
    assert r.code == 0
    assert "other.txt:1:" in r.out
    assert "flour, water and salt" in r.out


def test_standard_input_is_read_as_what_it_is(cli: Cli, tmp_path: Path) -> None:
    page = "<!DOCTYPE html><title>Tower</title><h1>Eiffel</h1><p>It is named after<br>Gustave Eiffel.</p>"
    for content, place in (
        (page.encode(), "  standard input.html  under"),
        (files.pdf([["The tower is named"], ["after Gustave Eiffel."]]), "  standard input.pdf, page 2\n"),
        (files.docx(files.paragraph("It is named after Gustave Eiffel.")), "  standard input.docx\n"),
    ):
        r = cli("ask", QUESTION, "-", stdin=content)
        assert r.code == 0, r.err
        assert "Gustave Eiffel" in r.out.splitlines()[0]
        assert place in r.out


def test_blocks_are_no_sentence(cli: Cli, tmp_path: Path) -> None:
    """What is above a paragraph has no full stop, and is none of it."""
    path = tmp_path / "page.html"
    path.write_text("<p>Home About<h1>Marie Curie</h1><p>Born in War&shy;saw in 1867<p>She won two prizes")
    r = cli("ask", "Where was Marie Curie born?", path)
    assert r.out.splitlines()[2] == "  Born in [Warsaw] in 1867"
    answer = json.loads(cli("ask", "Where was Marie Curie born?", path, "--json").out)
    assert (answer["answer"], answer["sentence"]) == ("War\u00adsaw", "Born in War\u00adsaw in 1867")


def test_output_that_has_no_unicode(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The best dish of the house was rösti with eggs.")
    command = [sys.executable, "-m", "thinbert", "ask", "Which dish was best?", str(tmp_path / "a.txt"), "--json"]
    out = subprocess.run(
        command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, check=True
    ).stdout
    assert "rösti" in json.loads(out.decode("ascii"))["answer"]


def test_a_question_that_is_no_text(cli: Cli) -> None:
    r = cli("ask", "Wann endet der Vertr\udce4g?", EXAMPLE)
    assert (r.code, r.err) == (2, "thinbert: the question is not UTF-8\n")


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_streams_that_are_closed(closed: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The tower is named after Gustave Eiffel.")
    command = (
        f"{sys.executable} -m thinbert ask '{QUESTION}' {tmp_path}/a.txt {'>&-' if closed == 'stdout' else '2>&-'}"
    )
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("Gustave Eiffel" in done.stdout) == (closed == "stderr")


def test_files_that_cannot_be_read_are_named(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "latin1.txt").write_bytes("café".encode("latin1"))
    (tmp_path / "empty.txt").touch()
    for name, reason in (
        ("latin1.txt", "not UTF-8 (byte 3 is 0xe9)"),
        ("empty.txt", "is empty"),
        ("no.txt", "no such"),
    ):
        r = cli("ask", QUESTION, tmp_path / name)
        assert (r.code, r.out) == (2, "")
        assert r.err.startswith(f"thinbert: {tmp_path / name}: {reason}")
        assert r.err.count("\n") == 1
        # among others it is skipped, and said; a name that is nothing is a mistake
        r = cli("ask", QUESTION, EXAMPLE, tmp_path / name)
        if name == "no.txt":
            assert r.code == 2
            continue
        assert r.code == 0
        assert r.err.startswith(f"skipped: {tmp_path / name}: {reason}")
        assert json.loads(cli("ask", QUESTION, EXAMPLE, tmp_path / name, "--json").out)["skipped"][0]["reason"]
    r = cli("ask", QUESTION, tmp_path)
    assert r.code == 2
    assert "none of 2 files can be read; the first: " in r.err
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").touch()
    assert "no documents; found .png (1), expected .txt" in cli("ask", QUESTION, tmp_path / "pictures").err


def test_a_folder_of_documents(cli: Cli, tmp_path: Path) -> None:
    """The file and page are found, and the quote is what the page says."""
    (tmp_path / "bread.txt").write_text("Bread is made from flour, water and salt.")
    (tmp_path / "mill.pdf").write_bytes(
        files.pdf([["Contents."], ["The mill stands by a river.", "The mill was built by Anna Voss in 1802."]])
    )
    (tmp_path / "copy.md").write_text("# Mills\n\nThe mill was built by Anna Voss in 1802.")
    r = cli("ask", "Who built the mill?", tmp_path, "--json")
    answer = json.loads(r.out)
    assert r.code == 0
    assert answer["answer"] == "Anna Voss"
    places = [answer, *answer["also"]]
    assert {(Path(p["file"]).name, p["page"], p["line"]) for p in places} == {("mill.pdf", 2, 2), ("copy.md", 1, 3)}
    assert answer["sentence"].startswith("The mill was built by Anna Voss")
    shown = cli("ask", "Who built the mill?", tmp_path).out
    assert "mill.pdf, page 2" in shown
    assert "also in " in shown
    assert "copy.md:3" in shown
    assert json.loads(cli("ask", "What is bread made from?", tmp_path, "--json").out)["file"].endswith("bread.txt")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("The tower", "tower.", True),
        ("“Anna  Voss”", "anna voss", True),
        ("(1802)", "1802,", True),
        ("A", "a", True),
        ("the U.S.", "U.S", True),
        ("1.5 percent", "15 percent", False),
        ("C++", "C", False),
        ("-5", "5", False),
        (".5", "5", False),
        ("$3.50", "350", False),
        ("A", "an A", True),
    ],
)
def test_what_counts_as_the_same_words(one: str, other: str, same: bool) -> None:
    assert (_words(one) == _words(other)) == same


def test_places_of_the_same_words_are_told_apart(cli: Cli, tmp_path: Path) -> None:
    """By line where there are lines; else how often is said, and not the same name again and again."""
    sentence = "The mill was built by Anna Voss in 1802."
    filler = "Bread is made from flour, water and salt, and left to rise for a night. " * 20
    (tmp_path / "a.docx").write_bytes(files.docx("".join(map(files.paragraph, (sentence, filler, sentence)))))
    (tmp_path / "b.txt").write_text(f"{sentence}\n{filler}\n{sentence}\n{filler}\n{sentence}")
    also = cli("ask", "Who built the mill?", tmp_path).out.split("also in ")[1].splitlines()[0]
    named = {name.removeprefix(f"{tmp_path}/") for name in also.removesuffix(" and 1 more").split("; ")}
    assert also.count("; ") == 2
    assert named <= {"b.txt:1", "b.txt:3", "b.txt:5", "a.docx", "a.docx (2 times)"}
    assert len(named) == 3


def test_an_index_where_one_is(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`thinbert index FOLDER`, then `thinbert ask QUESTION`: what one makes the other finds."""
    monkeypatch.chdir(tmp_path)
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "tower.md").write_text(EXAMPLE.read_text())
    made = json.loads(cli("index", "docs", "--json").out)
    assert made["indexed"]["files"] == 1
    assert made["indexed"]["passages"] >= 1
    assert cli("ask", QUESTION).out.startswith("Gustave Eiffel")


def test_wrong_use(cli: Cli, tiny_folder: Path) -> None:
    for arguments, message in (
        ((QUESTION,), "give files to read, - for standard input, --context TEXT, or --index FOLDER (one of them)"),
        ((QUESTION, EXAMPLE, "--context", "x"), "give files to read"),
        ((QUESTION, "--index", "i", "--max-mb", 1), "--max-mb is for files to read, and none are named"),
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
