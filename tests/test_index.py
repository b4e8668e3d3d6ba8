"""The index: it follows files on disk, survives being killed, has one writer, and finds words in any question."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import files
from conftest import Cli
from thinbert.api import Model
from thinbert.corpus.ask import ask
from thinbert.corpus.documents import parse_document, text_document
from thinbert.corpus.index import Corpus, View
from thinbert.errors import InputError


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "mill.txt").write_text("The mill stands by a river. Anna Voss built it in 1802.")
    (folder / "tower.md").write_text(
        "# Tower\n\nThe lighthouse was built in 1871.\n\n## Keeper\n\nIda Marsh lived there."
    )
    (folder / "bridge.pdf").write_bytes(files.pdf([["The bridge."], ["It crosses the gorge."]], labels="0 << /S /r >>"))
    return folder


def names(corpus: Corpus) -> list[str]:
    return [Path(f.path).name for f in corpus.files()]


def found(corpus: Corpus, question: str) -> list[str]:
    return [Path(h.file).name for h in corpus.search(question, 10)]


def test_it_follows_the_files(docs: Path, tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "index")
    first = corpus.update([str(docs)])
    assert (first.added, first.updated, first.removed, first.unchanged) == (3, 0, 0, 0)
    assert names(corpus) == ["bridge.pdf", "mill.txt", "tower.md"]
    assert found(corpus, "Who built the mill?")[0] == "mill.txt"
    again = corpus.update([str(docs)])
    assert (again.added, again.updated, again.removed, again.unchanged, again.bytes) == (0, 0, 0, 3, 0)

    (docs / "mill.txt").write_text("The windmill burned down; Jean Petit sold bread.")
    os.utime(docs / "tower.md")  # touched, the same inside
    (docs / "bridge.pdf").unlink()
    (docs / "new.txt").write_text("A new oven.")
    third = corpus.update([str(docs)])
    assert (third.added, third.updated, third.removed, third.unchanged) == (1, 1, 1, 1)
    assert names(corpus) == ["mill.txt", "new.txt", "tower.md"]
    assert found(corpus, "Anna Voss") == []
    assert found(corpus, "Petit bread") == ["mill.txt"]
    assert corpus.update([str(docs)]).unchanged == 3  # the touched one is known by its new time

    (docs / "new.txt").write_text("  ")  # nothing to read any more
    fourth = corpus.update()
    assert (fourth.removed, fourth.unchanged) == (1, 2)
    assert fourth.report.skipped[0][1].startswith("is empty")
    # a second folder is added, and the first is left alone
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "x.txt").write_text("Something else.")
    assert corpus.update([str(tmp_path / "more")]).removed == 0
    assert names(corpus) == ["mill.txt", "tower.md", "x.txt"]
    # other readers see it, also one that was open before
    assert names(Corpus.open(tmp_path / "index")) == names(corpus)


def test_touched_files_are_not_read_again(docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus.create(tmp_path / "index")
    corpus.update([str(docs)])
    for file in docs.iterdir():
        os.utime(file)
    assert corpus.stale([str(docs / "mill.txt")])
    with monkeypatch.context() as m:
        m.setattr("thinbert.corpus.index.parse_document", None)
        assert corpus.update([str(docs)]).unchanged == 3
    assert not corpus.stale([str(docs / "mill.txt")])
    assert found(corpus, "Who built the mill?")[0] == "mill.txt"
    assert len(names(corpus)) == 3


def test_what_a_folder_is_not_searched_for_is_followed_too(docs: Path, tmp_path: Path) -> None:
    log = docs / "notes.log"
    log.write_text("Grinding began at dawn.")
    corpus = Corpus.create(tmp_path / "index")
    corpus.update([str(log)])
    log.write_text("Sharpening began at dusk.")
    changes = corpus.update([str(docs)])
    assert (changes.added, changes.updated, changes.report.notes) == (3, 1, [])
    assert found(corpus, "grinding") == []
    assert found(corpus, "sharpening") == ["notes.log"]
    (docs / "a link.txt").symlink_to(docs / "mill.txt")  # comes before it, and is the same file
    changes = corpus.update([str(docs)])
    assert (changes.added, changes.removed, changes.report.notes) == (1, 1, [])
    assert names(corpus) == ["a link.txt", "bridge.pdf", "notes.log", "tower.md"]


def test_pages_beside_a_page(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('name,note\nAnna,"one\ntwo\nthree"\nJean,four\nIda,five\n')
    corpus = Corpus.create(tmp_path / "index")
    corpus.update([str(tmp_path / "rows.csv")])
    corpus.update([])
    view, file = corpus.view(), str(tmp_path / "rows.csv")
    assert [view.beside(file, n) for n in (2, 5, 6)] == [(None, 5), (2, 6), (5, None)]
    assert view.beside(str(tmp_path / "other.csv"), 5) == (None, None)


def test_what_cannot_be_looked_at_is_kept(docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (docs / "sub").mkdir()
    (docs / "sub" / "deep.txt").write_text("Deep text.")
    corpus = Corpus.create(tmp_path / "index")
    corpus.update([str(docs)])
    listed = os.scandir

    def denied(path: str) -> Any:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", denied)
    changes = corpus.update([str(docs)])
    assert changes.removed == 0
    assert "deep.txt" in names(corpus)
    assert [Path(name).name for name, _ in changes.report.skipped] == ["sub"]
    monkeypatch.undo()
    # a whole folder that is gone may be a disk that is not there; named, it is gone
    shutil.move(docs, tmp_path / "moved")
    assert corpus.update().removed == 0
    docs.mkdir()
    assert corpus.update([str(docs)]).removed == 4


def test_a_question_sees_one_state(docs: Path, tmp_path: Path, default_model: Model) -> None:
    """A file that changes while it is read: the answer is cited in the text it was found in."""
    corpus = Corpus.create(tmp_path / "index")
    corpus.update([str(docs)])

    class Changing(Corpus):
        def view(self) -> View:
            view = super().view()
            (docs / "mill.txt").write_text("Something else stands here now, and is longer than it was before.")
            Corpus.open(tmp_path / "index").update([str(docs)])
            self.reload()
            return view

    changing = Changing(corpus._index, corpus.folder)
    found = ask(default_model, "Who built the mill?", changing, threshold=1.0)
    best = found.citations[0]
    assert best.text == "Anna Voss"
    assert best.text in best.sentence


def test_documents_of_one_name_are_two() -> None:
    corpus = Corpus.in_memory([text_document("x", "First text about mills."), text_document("x", "Second, of bread.")])
    assert corpus.page("x", 1).text == "First text about mills."
    assert corpus.page("x (2)", 1).text == "Second, of bread."
    three = Corpus.in_memory([text_document(name, f"The text {n}.") for n, name in enumerate(("x", "x", "x (2)"))])
    assert [three.page(name, 1).text for name in ("x", "x (2)", "x (2) (2)")] == [f"The text {n}." for n in range(3)]


def test_a_page_as_long_as_a_book() -> None:
    """It took time by the square of its length: half a minute for 20 MB."""
    text = "".join(f"Sentence number {n} says a little. " for n in range(600_000))
    corpus = Corpus.in_memory([text_document("book", text)])
    begun = time.process_time()
    assert corpus.page("book", 1).text == text
    assert time.process_time() - begun < 3  # 0.05 s; it was half a minute


def test_hits_are_those_of_a_corpus_in_memory(tmp_path: Path) -> None:
    """What is kept about files has no part in how rare a word is, or how long a passage."""
    words = ["mill", "bread", "bridge", "tower", "river", "oven", "keeper", "wheel"]
    texts = {f"{n}.txt": " ".join(words[(n * k) % 8] for k in range(1, 2 + n % 11)) for n in range(1, 40)}
    (tmp_path / "docs").mkdir()
    for name, text in texts.items():
        (tmp_path / "docs" / name).write_text(text)
    kept = Corpus.create(tmp_path / "index")
    kept.update([str(tmp_path / "docs")])
    made = Corpus.in_memory([text_document(str(tmp_path / "docs" / name), text) for name, text in texts.items()])
    for corpus in (kept, made):
        assert (corpus.passages, corpus.view().passages) == (39, 39)
    for question in ("Which mill has bread?", "the keeper of the tower", "oven"):
        scores = [[(Path(h.file).name, round(h.score, 5)) for h in c.search(question, 40)] for c in (kept, made)]
        assert dict(scores[0]) == dict(scores[1])


def test_what_is_known_of_a_file_is_kept_with_its_text(tmp_path: Path) -> None:
    """Also where only its time changed."""
    path = tmp_path / "book.md"
    path.write_text("# Title\n\n" + "A sentence about a mill by the river. " * 200)
    corpus = Corpus.create(tmp_path / "index")
    corpus.update([str(path)])
    before, pages = corpus.files(), corpus.page(str(path), 1)
    os.utime(path, (1, 1))
    assert corpus.update([str(path)]).unchanged == 1
    (after,) = corpus.files()
    assert (after.mtime_ns, before[0].passages) == (1_000_000_000, after.passages)
    assert corpus.page(str(path), 1) == pages
    assert corpus.passages == after.passages > 3


def test_what_is_gone_can_be_forgotten(cli: Cli, docs: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    assert cli("index", docs, "--index", index).code == 0
    docs.rename(tmp_path / "moved")
    assert "--forget takes it out" in cli("index", "--index", index).err
    assert "is not in the index" in cli("index", tmp_path / "moved", "--forget", "--index", index).err
    r = cli("index", docs / "mill.txt", "--forget", "--index", index)
    assert (r.code, r.out.startswith("1 removed; ")) == (0, True)
    assert json.loads(cli("index", docs, "--forget", "--index", index, "--json").out)["removed"] == 2
    assert Corpus.open(index).files() == []
    assert cli("index", "--forget", "--index", index).code == 2


def test_a_full_disk_is_said(docs: Path, tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import resource, signal
        from pathlib import Path
        from thinbert.corpus.index import Corpus
        from thinbert.errors import StorageError
        corpus = Corpus.create(Path({str(tmp_path / "index")!r}))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
        try:
            corpus.update([{str(docs)!r}])
        except StorageError as e:
            print(e)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "cannot be written" in done.stdout, done.stderr
    assert Corpus.open(tmp_path / "index").files() == []


def test_pages_come_back_as_they_were(docs: Path, tmp_path: Path) -> None:
    long = "# Top\n" + "A sentence with some words in it. " * 90 + "\n\n## Deep\n\n" + "Others follow here. " * 90
    (docs / "long.md").write_text(long)
    corpus = Corpus.create(tmp_path / "index")
    corpus.update([str(docs)])
    page = corpus.page(str(docs / "long.md"), 1)
    assert page.text == long
    assert page.headings == ((0, "Top"), (long.index("## Deep"), "Deep"))
    assert corpus.page(str(docs / "bridge.pdf"), 2).label == "ii"
    for hit in corpus.search("sentence others follow", 20):
        assert corpus.page(hit.file, hit.page).text[hit.start : hit.start + len(hit.text)] == hit.text
    with pytest.raises(InputError, match="no page 9 in the index"):
        corpus.page(str(docs / "mill.txt"), 9)


@given(st.text(max_size=60))
def test_any_question_is_only_words(question: str) -> None:
    corpus = _CORPUS
    corpus.search(question, 3)
    hits = corpus.search(f'{question} "( mill:~ AND {question}', 3)
    assert hits
    assert hits[0].file == "mill"


_CORPUS = Corpus.in_memory(
    [text_document("mill", "The mill stands by a river."), text_document("bread", "Flour, water and salt: bread.")]
)


def test_words_are_found_in_other_forms_and_common_ones_alone() -> None:
    assert found(_CORPUS, "breads") == ["bread"]
    assert found(_CORPUS, "MÎLLS?!") == ["mill"]
    assert found(_CORPUS, "the")[0] == "mill"  # nothing else to go by
    assert found(_CORPUS, "") == found(_CORPUS, "?!") == []


def test_one_writer_many_readers(docs: Path, tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "index")
    corpus.update([str(docs)])
    with corpus.writer():
        with pytest.raises(InputError, match="another process is writing to this index; wait for it"):
            Corpus.open(tmp_path / "index").update([str(docs)])
        assert len(Corpus.open(tmp_path / "index").files()) == 3


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """kill -9 while it indexes: the index opens, holds whole files only, and the next run ends where it should."""
    docs = tmp_path / "docs"
    docs.mkdir()
    for n in range(300):
        (docs / f"{n:03}.txt").write_text(f"Document number{n}. " + "Many words follow here again. " * 300)
    script = textwrap.dedent(f"""
        import thinbert.corpus.index as index
        index._COMMIT_BYTES = 200_000
        from pathlib import Path
        index.Corpus.create(Path({str(tmp_path / "index")!r})).update([{str(docs)!r}])
    """)
    seen = []
    for pause in (0.0, 0.02, 0.1):
        meta = tmp_path / "index" / "meta.json"
        before = meta.read_bytes() if meta.exists() else b""
        process = subprocess.Popen([sys.executable, "-c", script])
        # a commit was made, and the next is under way
        while process.poll() is None and (not meta.exists() or meta.read_bytes() == before):
            time.sleep(0.002)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        corpus = Corpus.create(tmp_path / "index")
        seen.append(len(corpus.files()))
        assert sum(f.passages for f in corpus.files()) == corpus.passages
        for f in corpus.files():
            assert corpus.page(f.path, 1).text == Path(f.path).read_text()
    assert any(0 < n < 300 for n in seen), seen
    changes = Corpus.open(tmp_path / "index").update([str(docs)])
    assert changes.added + changes.unchanged == 300
    assert len(Corpus.open(tmp_path / "index").files()) == 300


def test_folders_that_are_no_index(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no index here; make one with thinbert index FOLDER"):
        Corpus.open(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(InputError, match="is not empty and no index"):
        Corpus.create(tmp_path / "full")
    Corpus.create(tmp_path / "old")
    (tmp_path / "old" / "thinbert-index.json").write_text('{"format": 99}')
    with pytest.raises(InputError, match="an index of format 99; this thinbert has format 4"):
        Corpus.open(tmp_path / "old")
    (tmp_path / "old" / "thinbert-index.json").write_text("[")
    with pytest.raises(InputError, match="damaged"):
        Corpus.open(tmp_path / "old")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / ".managed.json").write_text("[]")  # killed while it was made
    (tmp_path / "begun" / ".tmpA1b2C3").write_text("[")
    Corpus.create(tmp_path / "begun")
    Corpus.open(tmp_path / "begun")
    with pytest.raises(InputError, match=r"full/x: cannot be read as an index"):
        Corpus.open(tmp_path / "full" / "x")
    Corpus.create(tmp_path / "hurt")
    (tmp_path / "hurt" / "meta.json").write_text("nonsense")
    with pytest.raises(InputError, match="the index is damaged"):
        Corpus.open(tmp_path / "hurt")
    with pytest.raises(InputError, match="standard input cannot be indexed"):
        Corpus.create(tmp_path / "new").update(["-"])


def test_command_line(cli: Cli, docs: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    (docs / "bad.pdf").write_bytes(b"%PDF-1.4")
    r = cli("index", docs, "--index", index)
    assert r.code == 0, r.err
    assert r.out.startswith("3 added; 1.1 kB, 4 pages in ")
    assert "skipped: " in r.err
    assert "bad.pdf: is not a readable PDF" in r.err
    assert "nowhere: no such file or folder" in cli("index", tmp_path / "nowhere", "--index", index).err
    (tmp_path / "nothing").mkdir()
    assert "no documents; found none" in cli("index", tmp_path / "nothing", "--index", tmp_path / "empty").err
    assert "the index is empty" in cli("ask", "Who?", "--index", tmp_path / "empty").err
    assert json.loads(cli("index", "--index", index, "--json").out)["unchanged"] == 3
    listed = cli("index", "--index", index, "--list").out
    assert "3 files in" in listed
    assert "bridge.pdf  2 pages, 2 passages" in listed
    assert "--list shows what is indexed and reads nothing" in cli("index", docs, "--index", index, "--list").err
    answer = json.loads(cli("ask", "Who built the mill?", "--index", index, "--json").out)
    assert (answer["answer"], answer["file"]) == ("Anna Voss", str(docs / "mill.txt"))
    (docs / "mill.txt").unlink()
    r = cli("ask", "Who built the mill?", "--index", index)
    assert "mill.txt has changed or gone since it was indexed; run thinbert index --index" in r.err
    assert "1 removed, 2 unchanged" in cli("index", "--index", index).out
    assert cli("ask", "Who built the mill?", "--index", tmp_path).code == 2
    assert "no index here" in cli("index", "--index", tmp_path / "none").err


# --- what a second look found ---------------------------------------------------------------------------------------

AS_NOBODY = """
import os, shutil, sys, tempfile
from pathlib import Path
from thinbert.corpus.documents import parse_document
from thinbert.corpus.index import Corpus
Corpus.in_memory([parse_document("x", b"text", ".txt")])  # all there is to import, which may lie where nobody reads
if os.getuid() == 0:
    os.setuid(65534)
root = Path(tempfile.mkdtemp(dir="/tmp"))
docs, index = root / "docs", root / "index"
(docs / "sub").mkdir(parents=True)
(docs / "a.txt").write_text("Anna built the mill.")
(docs / "sub" / "b.txt").write_text("Ida kept the lighthouse.")
Corpus.create(index).update([str(docs)])
try:
    (docs / "sub").chmod(0)
    (docs / "a.txt").write_text("Anna Voss built the mill.")
    for names in ([str(docs)], []):
        changes = Corpus.open(index).update(names)
        print(changes.updated, changes.removed, len(Corpus.open(index).files()))
    (docs / "sub").chmod(0o755)
    for file in index.iterdir():
        file.chmod(0o444)
    index.chmod(0o555)
    try:
        Corpus.open(index)
    except Exception as e:
        print(type(e).__name__, "delete" in str(e), "nothing may be written" in str(e))
finally:
    (docs / "sub").chmod(0o755)
    index.chmod(0o755)
    shutil.rmtree(root)
"""


def test_folders_that_may_not_be_entered_or_written() -> None:
    """As somebody who is not root: root may everything."""
    done = subprocess.run([sys.executable, "-c", AS_NOBODY], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["1 0 2", "0 0 2", "InputError False True"]


@pytest.mark.parametrize("kind", ["idx", "store", "term"])
def test_a_damaged_index_is_said_to_be(kind: str, cli: Cli, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for n in range(30):
        (docs / f"{n}.txt").write_text(f"Anna Voss built mill number {n} by the river. It burned down {n + 1} times.")
    index = tmp_path / "index"
    Corpus.create(str(index)).update([str(docs)])
    for file in index.glob(f"*.{kind}"):
        content = bytearray(file.read_bytes())
        for at in range(0, max(1, len(content) - 400), 7):
            content[at] ^= 0xFF
        file.write_bytes(content)
    r = cli("ask", "Who built the mill?", "--index", index)
    assert r.code == 2
    assert "the index is damaged" in r.err
    assert "Traceback" not in r.err


def test_what_is_no_file_any_more(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    a, b = tmp_path / "docs" / "a.txt", tmp_path / "docs" / "b.txt"
    a.write_text("Anna built the mill.")
    b.write_text("x" * 2000)
    corpus = Corpus.create(tmp_path / "index")
    corpus.update([str(tmp_path / "docs")])
    a.unlink()
    os.mkfifo(a)
    b.touch()
    os.utime(b, ns=(1, 1))
    changes = corpus.update(max_mb=0.001)
    assert [f.path for f in corpus.files()] == [str(b)]  # too large now, and still what was indexed
    assert dict(changes.report.skipped) == {
        str(a): "is not a file",
        str(b): "has 0.0 MB, more than 0.001 MB (--max-mb)",
    }


def test_files_gone_from_folders_that_a_pattern_named(tmp_path: Path) -> None:
    for name in ("docs1", "docs2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(f"Text of {name}.")
    corpus = Corpus.create(tmp_path / "index")
    corpus.update([str(tmp_path / "docs*")])
    (tmp_path / "docs1" / "a.txt").unlink()
    assert corpus.update([str(tmp_path / "docs*")]).removed == 1


def test_an_index_follows_what_another_process_wrote_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    file.write_text("Version one, by Anna.")
    at = file.stat()
    index = tmp_path / "index"
    corpus = Corpus.create(index)
    corpus.update([str(file)])
    writer = corpus.writer

    def late() -> Any:
        file.write_text("Version two, by Jean Petit.")
        Corpus.open(index).update([str(file)])
        file.write_text("Version one, by Anna.")
        os.utime(file, ns=(at.st_atime_ns, at.st_mtime_ns))
        return writer()

    monkeypatch.setattr(corpus, "writer", late)
    corpus.update([str(file)])
    assert corpus.page(str(file), 1).text == "Version one, by Anna."


def test_folders_of_others(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.txt").write_text("Anna built the mill.")
    (tmp_path / "proj").mkdir()
    (tmp_path / "proj" / "meta.json").write_text("{}")
    r = cli("index", tmp_path / "d", "--index", tmp_path / "proj")
    assert r.code == 2
    assert "is not empty and no index" in r.err
    with pytest.raises(InputError, match="the name is not UTF-8"):
        Corpus.create(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))


def test_a_working_folder_without_a_name_in_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus.create(tmp_path / "index")
    (tmp_path / "good.txt").write_text("Anna built the mill.")
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/cw\xe9"))
    strange.mkdir()
    (strange / "a.txt").write_text("Ida kept the lighthouse.")
    monkeypatch.chdir(strange)
    changes = corpus.update(["a.txt", str(tmp_path / "good.txt")])
    assert changes.added == 1
    assert [reason for _, reason in changes.report.skipped] == ["its name is not UTF-8; rename it"]


def test_a_title_is_found_where_a_heading_begins_the_page() -> None:
    page = parse_document("x.html", b"<title>Zebra farming</title><h1>Intro</h1><p>Some text about it all.", ".html")
    corpus = Corpus.in_memory([page])
    assert corpus.search("zebra farming", 1)
    assert corpus.search("intro", 1)


def test_other_places_of_an_answer_may_be_stale(cli: Cli, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in "ab":
        (docs / f"{name}.txt").write_text("The mill was built by Anna Voss in 1802.")
    cli("index", docs, "--index", tmp_path / "index")
    (docs / "b.txt").unlink()
    said = json.loads(cli("ask", "Who built the mill?", "--index", tmp_path / "index", "--json").out)
    assert len(said["stale"]) == 1
    assert said["stale"][0].endswith("b.txt")


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("cafe\u0301", "café"),  # accents as characters of their own
        ("café", "cafe\u0301"),
        ("inter\u00adnatio\u00adnal", "international"),  # where a line may be broken
        ("of\ufb01ce", "office"),  # a ligature of print
        ("Ｔｏｋｙｏ", "tokyo"),
    ],
)
def test_what_looks_the_same_is_found(written: str, asked: str) -> None:
    """And quoted as it stands."""
    sentence = f"The {written} is by the river."
    corpus = Corpus.in_memory([text_document("a", sentence), text_document("b", "The bridge is by the river.")])
    hits = corpus.search(f"{asked}?", 5)
    assert [h.text for h in hits] == [sentence]
    assert corpus.page("a", 1).text == sentence
