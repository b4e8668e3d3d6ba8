"""Documents: every kind of file to pages with exact places, every kind of broken file to a reason."""

import io
import json
import os
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import files
from thinbert.corpus import readers
from thinbert.corpus.documents import Document, Report, find_files, parse_document, read_document, read_documents
from thinbert.corpus.index import Corpus
from thinbert.corpus.pages import Page, passages
from thinbert.corpus.readers import READERS, _mended
from thinbert.errors import InputError


def only(content: bytes | str, suffix: str) -> Page:
    document = parse_document("d", content if isinstance(content, bytes) else content.encode(), suffix)
    assert len(document.pages) == 1
    return document.pages[0]


# --- what is read -----------------------------------------------------------------------------------------------------


def test_text_is_kept_as_it_is() -> None:
    text = "one\r\ntwo\rthree\n\nfive 🐨 six\n"
    for content in (text.encode("utf-8-sig"), text.encode(), text.encode("utf-16"), text.encode("utf-32")):
        page = only(content, ".txt")
        assert page.text == text
        assert [page.line(text.index(w)) for w in ("one", "two", "three", "five", "six")] == [1, 2, 3, 5, 5]


def test_columns_are_told_by_the_header_alone() -> None:
    """What people wrote may hold every character that stands between columns elsewhere, and quotes."""
    tabs = only("id\ttext\n1\tHe said, 'no', and left.\n", ".tsv")
    assert tabs.text == "He said, 'no', and left."
    assert only("text\nOne, two, three.\n", ".tsv").text == "One, two, three."
    document = parse_document("d", b'id,text\n1,"He said; \'no\'; and left, then."\n2,"She\nbuilt it."\n', ".csv")
    assert [page.text for page in document.pages] == ["He said; 'no'; and left, then.", "She\nbuilt it."]
    assert only("id;text\n1;One, two.\n", ".csv").text == "One, two."
    assert only('"a, b, c";text\n1;Two.\n', ".csv").text == "Two.\na, b, c: 1"


def test_quotes_that_enclose_nothing_are_part_of_a_text_between_tabs() -> None:
    loose = 'id\ttext\n1\t"Go on, she said.\n2\tThe mill burned down.\n3\t"Stop, he said.\n'
    document = parse_document("d", loose.encode(), ".tsv")
    assert [(p.number, p.label, p.text) for p in document.pages] == [
        (2, "1", '"Go on, she said.'),
        (3, "2", "The mill burned down."),
        (4, "3", '"Stop, he said.'),
    ]
    assert not document.notes
    enclosed = 'id\ttext\n1\t"She said ""go\ton"",\nand left."\n2\t5" pipes\n'
    document = parse_document("d", enclosed.encode(), ".tsv")
    assert [p.text for p in document.pages] == ['She said "go\ton",\nand left.', '5" pipes']


def test_html_without_a_name() -> None:
    for beginning in (
        "<!DOCTYPE html>",
        "<?xml version='1.0'?>\n<html>",
        "<!-- saved from url=(1)x -->\n<head>",
        "\ufeff <HTML a>",
    ):
        assert readers.kind_of(f"{beginning}<p>text".encode()) == ".html"
    for beginning in ("Text", "<!-- a comment -->Text", "<?xml version='1.0'?><note>", "<headline>", "<!--" * 900):
        assert readers.kind_of(beginning.encode()) == ""


def test_markdown_keeps_its_text_and_knows_its_headings() -> None:
    text = "# One #\ntext\n\n```\n# no heading\n```\nTwo\n===\nmore\n### Three\nend"
    page = only(text, ".md")
    assert page.text == text
    assert [h for _, h in page.headings] == ["One", "Two", "Three"]
    assert all(text[at:].lstrip("# ").startswith(h) for at, h in page.headings)
    assert page.heading(text.index("more")) == "Two"
    assert page.heading(text.index("end")) == "Three"
    assert Page("x").heading(0) == ""


def test_html_is_what_a_reader_sees() -> None:
    html = """<!doctype html><html><head><title>The  Mill</title><style>p{}</style></head><body><h1>Old
    mill</h1><script>var x = "<p>no</p>";</script><p>Built   in <b>1802</b> by A&amp;B.</p><ul><li>one<li>two</ul>
    <table><tr><td>a</td><td>b</td></tr></table><pre>  kept
  as is</pre><h2>After</h2>end<br>line</body></html>"""
    page = only(html, ".html")
    assert "Built in 1802 by A&B.\n" in page.text
    assert "one\ntwo\n" in page.text
    assert "a b" in page.text
    assert "  kept\n  as is" in page.text
    assert "var x" not in page.text
    assert "p{}" not in page.text
    assert [h for _, h in page.headings] == ["The Mill", "Old mill", "After"]
    assert page.text[page.headings[2][0] :].startswith("After")
    assert page.text.endswith("end\nline\n")
    latin = '<meta charset="iso-8859-1"><p>caf\xe9'.encode("latin-1")
    assert only(latin, ".htm").text == "café"
    unclosed = only("<p>a<script>never closed", ".html")
    assert unclosed.text.strip() == "a"
    headless = only("<!doctype html><html><head><title>T</title><body><p>Hello there.", ".html")  # valid so
    assert headless.text.strip() == "Hello there."
    quotes = b'<meta charset="iso-8859-1"><p>\x93It\x92s\x94'  # as browsers read it
    assert only(quotes, ".html").text == "“It’s”"
    for charset in ("hex", "zlib", "utf-16", "undefined", "no-such"):
        assert only(f'<meta charset="{charset}"><p>text', ".html").text == "text"


def test_pdf_pages_keep_number_and_label() -> None:
    content = files.pdf(
        [["Preface of it."], ["Chapter one.", "It was built by Anna Voss."], []], labels="0 << /S /r >>"
    )
    document = parse_document("d.pdf", content, ".pdf")
    assert [(p.number, p.label) for p in document.pages] == [(1, "i"), (2, "ii"), (3, "iii")]
    assert document.pages[1].text == "Chapter one.\nIt was built by Anna Voss."
    assert document.notes == ("no text layer on page 3: images, or empty",)


def test_word_paragraphs_tables_and_headings() -> None:
    body = files.paragraph("The mill", "Heading1") + files.paragraph("Built in 1802.") + files.table("ab", "cd")
    page = only(files.docx(body + files.paragraph("Later")), ".docx")
    assert page.text.split("\n") == ["The mill", "Built in 1802.", "a\tb", "c\td", "Later"]
    assert page.headings == ((0, "The mill"),)
    tabs = "<w:p><w:pPr><w:tabs><w:tab/></w:tabs></w:pPr><w:r><w:t>a</w:t><w:tab/><w:t>b</w:t></w:r></w:p>"
    assert only(files.docx(tabs), ".docx").text == "a b"


def test_word_reads_what_stands_on_the_page_once() -> None:
    run = "<w:r><w:t>{}</w:t></w:r>"
    shape = "<w:txbxContent>" + files.paragraph("boxed") + "</w:txbxContent>"
    body = (
        f"<w:p>{run.format('co')}<w:r><w:noBreakHyphen/></w:r>{run.format('op')}"
        f"<w:moveFrom>{run.format(' moved')}</w:moveFrom></w:p>"
        '<w:p><mc:AlternateContent xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006">'
        f"<mc:Choice>{shape}</mc:Choice><mc:Fallback>{shape}</mc:Fallback></mc:AlternateContent>{run.format('after')}</w:p>"
    )
    xmlns = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    notes = f"<w:footnotes {xmlns}><w:footnote><w:p/></w:footnote>{files.paragraph('A note.')}</w:footnotes>"
    page = only(files.docx(body, parts={"word/footnotes.xml": notes.encode()}), ".docx")
    assert page.text == "co-op\nboxed\nafter\nA note."
    inside = run.format("Anna Voss") + f"<w:r>{shape}</w:r>" + run.format(" in 1802.")
    heading = f'<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr>{run.format("Terms")}<w:r>{shape}</w:r></w:p>'
    page = only(
        files.docx(f"<w:p>{inside}</w:p>{heading}<w:tbl><w:tr><w:tc><w:p>{inside}</w:p></w:tc></w:tr></w:tbl>"), ".docx"
    )
    assert page.text == "boxed\nAnna Voss in 1802.\nboxed\nTerms\nboxed\nAnna Voss in 1802."
    assert [h for _, h in page.headings] == ["Terms"]
    strict = files.docx(files.paragraph("Head", "Heading1"))
    with zipfile.ZipFile(io.BytesIO(strict)) as archive:
        xml = archive.read("word/document.xml")
    xml = xml.replace(
        b"http://schemas.openxmlformats.org/wordprocessingml", b"http://purl.oclc.org/ooxml/wordprocessingml"
    )
    xml = xml.replace(b"wordprocessingml/2006/main", b"wordprocessingml/main")
    page = only(files.docx("", parts={"word/document.xml": xml}), ".docx")
    assert (page.text, page.headings) == ("Head", ((0, "Head"),))


def test_records() -> None:
    lines = ['{"id": 7, "text": "Built in 1802."}', "", "broken", '{"title": "B", "who": "Anna", "n": 3}', '"plain"']
    document = parse_document("d", "\n".join(lines).encode(), ".jsonl")
    assert [(p.number, p.label, p.text) for p in document.pages] == [
        (1, "7", "Built in 1802."),
        (4, "B", "title: B.\nwho: Anna.\nn: 3"),
        (5, "", "plain"),
    ]
    assert document.notes == ("not JSON: line 3",)
    rows = parse_document("d", b'name;year\n"The; mill";1802\nbridge;1925\n', ".csv")
    assert [(p.number, p.label, p.text) for p in rows.pages] == [
        (2, "The; mill", "name: The; mill.\nyear: 1802"),
        (3, "bridge", "name: bridge.\nyear: 1925"),
    ]
    tabs = parse_document("d", b"id\ttext\n1\tBuilt by hand.\n", ".tsv")
    assert tabs.pages[0].text == "Built by hand."
    quoted = "id,text\n" + '1,"plain"\n' * 900 + '2,"He said ""yes"", and left, for good."\n3,' + "x" * 150_000 + "\n"
    found = parse_document("d", quoted.encode(), ".csv").pages
    assert [p.text for p in found[900:]] == ['He said "yes", and left, for good.', "x" * 150_000]
    wide = parse_document("d", b"a,b\n1,2,3\n", ".csv").pages[0]
    assert wide.text == "a: 1.\nb: 2.\ncolumn 3: 3"
    assert len(parse_document("d", '{"text": "one\u2028two"}\n{"text": "b"}'.encode(), ".jsonl").pages) == 2
    staff = parse_document("d", b"title,text,price,tags\nchair,Made of oak,120 euros,\n", ".csv").pages[0]
    assert staff.text == "Made of oak.\ntitle: chair.\nprice: 120 euros"
    nested = b'{"employee": "Ada", "salary": 52000, "skills": ["C", "R"], "home": {"city": "Graz"}, "left": null}'
    told = "employee: Ada.\nsalary: 52000.\nskills: C, R.\nhome: city Graz"
    assert parse_document("d", nested, ".jsonl").pages[0].text == told
    squad = {"data": [{"title": "Mill", "paragraphs": [{"context": "One."}, {"context": "Two."}]}]}
    paragraphs = parse_document("d", json.dumps(squad).encode(), ".json")
    assert [(p.number, p.label, p.text) for p in paragraphs.pages] == [(1, "Mill", "One."), (2, "Mill", "Two.")]
    assert parse_document("d", b'{"text": "half \\ud83d pair"}', ".jsonl").pages[0].text == "half \ufffd pair"


# --- what is not ------------------------------------------------------------------------------------------------------

BOMB = files.docx("<w:p/>", parts={"word/document.xml": b"<a>" + b" " * (130 << 20) + b"</a>"})
DEEP = files.docx("<w:p>" * 300 + "</w:p>" * 300)
LAUGHS = files.docx("", parts={"word/document.xml": b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'})
WIDE = files.docx("", parts={"word/document.xml": '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'.encode("utf-16")})


@pytest.mark.parametrize(
    ("content", "suffix", "reason"),
    [
        (b"", ".txt", "is empty; there is no text to look for an answer in"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", ".doc", "is an old Office file (save it as .docx); expected text, or .csv"),
        (b"\x89PNG\r\n\x1a\n", ".png", "is a picture; expected text"),
        (b" \n\t\n", ".md", "is empty"),
        ("café".encode("latin-1"), ".txt", "not UTF-8 (byte 3 is 0xe9); convert it first, for example with iconv"),
        (b"\x7fELF\0\0", ".txt", "is a binary file; expected text"),
        (b"\xff\xfea", ".txt", "begins as UTF-16 and is not"),
        (b"", ".pdf", "is not a readable PDF: it is damaged or cut off"),
        (files.pdf([["a"]])[:200], ".pdf", "is not a readable PDF"),
        (files.pdf([["a"]], encrypted=True), ".pdf", "is encrypted; save it without a password first"),
        (files.pdf([[], []]), ".pdf", "has no text layer on any of its 2 pages: they are images; run OCR on it first"),
        (b"PK\3\4 no", ".docx", "is not a readable Word document"),
        (files.docx(files.paragraph("a"))[:-40], ".docx", "is not a readable Word document"),
        (BOMB, ".docx", "unpacks to more than 128 MB"),
        (DEEP, ".docx", "is nested more than 200 deep"),
        (LAUGHS, ".docx", "has a document type in its XML, which no Word document has"),
        (WIDE, ".docx", "has a document type in its XML"),
        (files.docx("<w:p>"), ".docx", "is damaged: "),
        (b"<![x]>", ".html", "is empty"),
        (b"a\nb\n", ".jsonl", "none of its lines is JSON"),
        (b"[1]", ".json", "is not SQuAD JSON"),
        (b'{"data": 3}', ".json", "is not SQuAD JSON"),
        (b"only,a,header\n", ".csv", "is empty"),
    ],
)
def test_what_cannot_be_read_says_why(content: bytes, suffix: str, reason: str) -> None:
    with pytest.raises(InputError) as e:
        parse_document("name", content, suffix)
    assert str(e.value).startswith(f"name: {reason}")


def test_records_that_are_odd() -> None:
    """One of them does not make the file unreadable, and none loses a field."""
    blank = parse_document("d", b"id,text,price\n1,Oak chair,5\n2, ,7\n", ".csv")
    assert [p.text for p in blank.pages] == ["Oak chair.\nprice: 5", "id: 2.\nprice: 7"]
    deep = b'{"text": "fine"}\n{"a": ' + b"[" * 700 + b"]" * 700 + b"}\n"
    found = parse_document("d", deep, ".jsonl")
    assert ([p.text for p in found.pages], found.notes) == (["fine"], ("not JSON: line 2",))
    twice = parse_document("d", b"name,phone,phone\nAnna,111,222\n", ".csv").pages[0]
    assert twice.text == "name: Anna.\nphone: 111.\nphone (2): 222"
    lines = parse_document("d", b'a,b\n1,"x\ny\nz"\n2,w\n', ".csv")
    assert [p.number for p in lines.pages] == [2, 5]  # where they begin


def test_a_reader_that_breaks_is_the_file_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, ".html", lambda content: 1 // 0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"name: is damaged, or not what its name says \(ZeroDivisionError"):
        parse_document("name", b"", ".html")


@given(st.binary(max_size=300), st.sampled_from([".txt", ".md", ".html", ".pdf", ".docx", ".jsonl", ".csv", ".json"]))
def test_any_bytes_are_read_or_refused(content: bytes, suffix: str) -> None:
    prefix = {".pdf": b"%PDF-1.4\n", ".docx": b"PK\3\4"}.get(suffix, b"")
    wrapped = files.docx("", parts={"word/document.xml": content}) if suffix == ".docx" else content
    for data in (content, prefix + content, wrapped):
        try:
            document = parse_document("name", data, suffix)
        except InputError:
            continue
        assert any(p.text.strip() for p in document.pages)
        for page in document.pages:
            page.text.encode()
            assert all(0 <= at <= len(page.text) and len(h) <= 200 for at, h in page.headings)


@pytest.mark.parametrize(
    ("of_size", "suffix"),
    [
        (lambda n: "# x" + " " * n + "x", ".md"),
        (lambda n: "```\n```\n" * n + "# h\n" * n, ".md"),
        (lambda n: "a\n" + "=" * n, ".md"),
        (lambda n: "# " + "h" * 10 * n + "\n" + "word " * n, ".md"),
        (lambda n: "<svg>" * n + "<math></math>" * n, ".html"),
        (lambda n: "<title>" * n + "x", ".html"),
        (lambda n: "<a " * n, ".html"),
        (lambda n: "<a b='" * n, ".html"),
        (lambda n: "<![CDATA[ > " * n, ".html"),
        (lambda n: "<!-- > " * n, ".html"),
        (lambda n: "<script> </ " * n, ".html"),
        (lambda n: "<script " * n + "/>", ".html"),
        (lambda n: "text " * n + "<h1></h1>" * n, ".html"),
        (lambda n: "<h1>" + "<b>word</b> " * n + "</h1>", ".html"),
    ],
)
def test_time_grows_with_the_size_and_no_faster(of_size: Callable[[int], str], suffix: str) -> None:
    def seconds(n: int) -> float:
        content = of_size(n)
        begun = time.process_time()
        document = parse_document("name", b"word\n\n" + content.encode(), suffix)
        pieces = [p for page in document.pages for p in passages(page)]
        taken = time.process_time() - begun
        assert sum(len(h) for p in pieces for _, h in p.headings) < 20 * len(content) + 1000
        return taken

    # four times the size takes 4 times as long, or 16 where the whole is looked at for each part; 20 ms is noise
    assert min(seconds(20_000) for _ in range(2)) < 9 * (min(seconds(5_000) for _ in range(2)) + 0.02)


def test_a_pdf_that_claims_too_much_is_cut() -> None:
    page = files.pdf([["word " * 10]])
    claim = page.replace(b"/Kids [4 0 R] /Count 1", b"/Kids [" + b"4 0 R " * 300 + b"] /Count 20000")
    document = parse_document("name", claim, ".pdf")
    assert len(document.pages) <= 10_000
    assert any("only the first 10000 of its 20000 pages are read" in note for note in document.notes)


def test_threads_may_read_pdfs_at_once() -> None:
    content = files.pdf([[f"page {n}"] for n in range(30)], labels="0 << /S /r >>")
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda _: parse_document("d", content, ".pdf"), range(40)))
    assert all(d == read[0] for d in read)


# --- files ------------------------------------------------------------------------------------------------------------


def test_folders_patterns_and_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.txt", "a.md", "sub/c.html", ".hidden/x.txt", "sub/.y.txt", "z.png", "sub/w.PNG", "sub/deep/d.PDF"):
        path = tmp_path / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    docs = tmp_path / "docs"
    (docs / "sub" / "up").symlink_to(docs)
    (docs / "self").symlink_to(docs / "self")
    (docs / "again.txt").symlink_to(docs / "b.txt")
    os.mkfifo(docs / "pipe.txt")
    report = Report()
    monkeypatch.chdir(tmp_path)
    found = list(find_files(["docs"], report))
    assert found == ["docs/a.md", "docs/again.txt", "docs/sub/c.html", "docs/sub/deep/d.PDF"]  # b.txt is again.txt
    reasons = dict(report.skipped)
    assert reasons.keys() == {"docs/pipe.txt", "docs/self", "docs/sub/up"}
    assert reasons["docs/pipe.txt"] == "is not a file"
    assert reasons["docs/sub/up"] == "links back to a folder above it"
    assert "symbolic links" in reasons["docs/self"]
    assert report.others == {".png": 2}
    assert list(find_files(["docs/*.md", "docs/a.md", str(docs / "sub/**/*.html")], Report())) == [
        "docs/a.md",
        str(docs / "sub/c.html"),
    ]
    (tmp_path / "[x].txt").write_text("a file named like a pattern")
    assert list(find_files(["[x].txt"], Report())) == ["[x].txt"]
    with pytest.raises(InputError, match=r"\*\.nothing: matches no file"):
        list(find_files(["*.nothing"], Report()))


def test_the_rest_goes_on(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Good text.")
    (tmp_path / "b.pdf").write_bytes(files.pdf([["x"]])[:100])
    (tmp_path / "c.txt").touch()
    (tmp_path / "d.txt").write_bytes(b"x" * 2_100_000)
    (tmp_path / "e.pdf").write_bytes(files.pdf([["Page one."], []]))
    report = Report()
    read = list(read_documents([str(tmp_path)], report, max_mb=2))
    assert [Path(d.name).name for d in read] == ["a.txt", "e.pdf"]
    reasons = {Path(name).name: reason for name, reason in report.skipped}
    assert reasons.keys() == {"b.pdf", "c.txt", "d.txt"}
    assert reasons["d.txt"] == "has 2.1 MB, more than 2 MB (--max-mb)"
    assert [(Path(n).name, note) for n, note in report.notes] == [
        ("e.pdf", "no text layer on page 2: images, or empty")
    ]
    os.fsencode(name := os.fsdecode(b"caf\xe9.txt"))
    (tmp_path / name).write_text("A name of another age.")
    report = Report()
    assert [Path(d.name).name for d in read_documents([str(tmp_path)], report, max_mb=2)] == ["a.txt", "e.pdf"]
    assert "its name is not UTF-8; rename it" in [reason for _, reason in report.skipped]
    with pytest.raises(InputError, match="nowhere: no such file"):
        read_document("nowhere")
    with pytest.raises(InputError, match="is a directory"):
        read_document(str(tmp_path))


# --- passages and sentences -------------------------------------------------------------------------------------------


@given(
    text=st.text(st.sampled_from("ab .!?\n\r\t-#é🐨"), min_size=1, max_size=400),
    size=st.integers(10, 60),
    data=st.data(),
)
def test_passages_cover_the_page(text: str, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size // 2))
    found = list(passages(Page(text), size=size, overlap=overlap))
    assert found[0].start == 0
    assert found[-1].end == len(text)
    for p in found:
        assert 0 < p.end - p.start <= size
    for a, b in pairwise(found):
        assert a.start < b.start <= a.end <= b.end
        assert a.end - b.start <= overlap


def test_passages_end_at_sentences_and_keep_headings() -> None:
    text = "# One\n" + "A sentence of some words. " * 40 + "\n\n# Two\n" + "Another sentence here. " * 40
    page = parse_document("d", text.encode(), ".md").pages[0]
    found = list(passages(page))
    assert len(found) > 1
    assert text[: found[0].end].rstrip().endswith(".")
    for a, b in pairwise(found):
        assert text[b.start :].startswith(("A sentence", "Another", "# Two"))
        assert 0 <= a.end - b.start <= 200
    assert found[0].headings == page.headings[:1]
    assert found[-1].headings == page.headings[1:]


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
    first, last = Page(text).sentence(start, start + len(word))
    assert text[first:last] == sentence


@given(text=st.text(st.sampled_from("ab .!?\n\r\t-#é🐨"), min_size=1, max_size=200), data=st.data())
def test_a_sentence_always_holds_its_answer(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    first, last = Page(text).sentence(start, end)
    assert 0 <= first <= start < end <= last <= len(text)


def test_a_sentence_without_end_is_cut() -> None:
    first, last = Page("word " * 10_000).sentence(25_000, 25_004)
    assert (first, last) == (24_600, 25_404)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ("organi\ufffe\nsation", "organisation"),
        ("INTERNA\x02TIONAL", "INTERNATIONAL"),
        ("Jean\ufffe\nLuc Godard", "Jean-Luc Godard"),
        ("COVID\ufffe19", "COVID-19"),
        ("INV\ufffe2024-\n0077", "INV-2024-0077"),
        ("Stratford-upon\ufffeAvon", "Stratford-upon-Avon"),
        ("a well-known name, well\ufffe\nknown here", "a well-known name, well-known here"),
        ("a\r\nb\ufffe", "a\nb"),
    ],
)
def test_hyphens_at_line_ends(found: str, text: str) -> None:
    """PDFium marks them all alike."""
    assert _mended(found) == text


def test_long_words_of_a_pdf_take_no_longer() -> None:
    begun = time.process_time()
    _mended("a" * 200_000 + "\ufffe" + "b" * 200_000)
    assert time.process_time() - begun < 2  # it grew with the square of their length


def test_a_sentence_that_is_cut_is_cut_between_words() -> None:
    text = "characters " * 1000
    first, last = Page(text).sentence(5500, 5510)
    assert text[first:last].split() == ["characters"] * len(text[first:last].split())


def test_files_of_unknown_kinds_are_read_as_text() -> None:
    assert parse_document("x", b"y", ".unknown") == Document("x", (Page("y"),))


# --- what a second look found ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "headings"),
    [
        ("# Title\n---\ntext", ["Title"]),
        ("---\ntitle: x\nauthor: y\n---\n\ntext", []),
        ("---\n\nnot front matter\n---\n", ["not front matter"]),
        ("- item\n---", []),
        ("> quote\n---", []),
        ("```\ncode\n```\n---", []),
        ("|---|---|\n---", []),
        ("# Programming in C#", ["Programming in C#"]),
        ("## Closed ##\n", ["Closed"]),
        ("```x``` is inline\n\n# Heading", ["Heading"]),
        ("# One\n\n- ```sh\n  ls\n  ```\n\n# Two", ["One", "Two"]),
        ("1. ```\n   ls\n   ```\n\n# Two\n\n```\n# comment in code\n```", ["Two"]),
        ("  Two\n===", ["Two"]),
        ("    code\n---", []),
    ],
)
def test_headings_of_markdown(text: str, headings: list[str]) -> None:
    (page,) = parse_document("x.md", text.encode(), ".md").pages
    assert [h for _, h in page.headings] == headings
    for at, heading in page.headings:
        assert heading in page.text[at:].splitlines()[0]


def test_word_headings_are_of_their_own_paragraph() -> None:
    """Not of the table before, nor of what a paragraph was before it was changed."""

    def paragraph(text: str, properties: str) -> str:
        return f"<w:p><w:pPr>{properties}</w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>"

    was = '<w:pPrChange><w:pPr><w:pStyle w:val="{}"/></w:pPr></w:pPrChange>'
    body = "<w:tbl><w:tr><w:tc>" + paragraph("cell", '<w:pStyle w:val="Heading1"/>') + "</w:tc></w:tr></w:tbl>"
    body += paragraph("After a table.", "") + paragraph("Now text.", was.format("Heading1"))
    body += paragraph("Now a heading", '<w:pStyle w:val="Heading2"/>' + was.format("Normal"))
    (page,) = parse_document("x.docx", files.docx(body), ".docx").pages
    assert [h for _, h in page.headings] == ["Now a heading"]


@pytest.mark.parametrize(
    ("content", "suffix"),
    [
        (b'<meta charset="punycode">-' + b"a" * 400_000, ".html"),
        ((("," * 40_000) + "\n" + "a\n" * 40_000).encode(), ".csv"),
        (
            files.docx(f"<w:tbl><w:tr><w:tc><w:p><w:r><w:t>a{' ' * 160_000}b</w:t></w:r></w:p></w:tc></w:tr></w:tbl>"),
            ".docx",
        ),
    ],
)
def test_small_files_that_could_take_long(content: bytes, suffix: str) -> None:
    begun = time.process_time()
    with suppress(InputError):
        parse_document("x", content, suffix)
    assert time.process_time() - begun < 2  # each took 3 to 14 seconds, and four times that at twice the size


def test_html_that_only_looks_unread() -> None:
    content = b"<p>before</p><style-guide>shown</style-guide><!--><p>between</p><!---><h1>One<br>Two</h1>"
    (page,) = parse_document("x.html", content, ".html").pages
    assert page.text.split() == ["before", "shown", "between", "One", "Two"]
    assert [h for _, h in page.headings] == ["One Two"]


def test_columns_without_a_name_lose_nothing() -> None:
    (page,) = parse_document("x.csv", b"a,,column 2\n1,2,3\n", ".csv").pages
    assert page.text == "a: 1.\ncolumn 2: 2.\ncolumn 2 (2): 3"


def test_links_between_folders_are_walked_once(tmp_path: Path) -> None:
    """Workspaces link each package under the others: there are more ways to a folder than one could walk."""
    for i in range(20):
        (tmp_path / f"p{i}" / "deps").mkdir(parents=True)
        (tmp_path / f"p{i}" / f"{i}.md").write_text("text")
        for j in range(i + 1, 20):
            (tmp_path / f"p{i}" / "deps" / f"p{j}").symlink_to(tmp_path / f"p{j}")
    assert len(list(find_files([str(tmp_path)], Report()))) == 20
    round_and_round = tmp_path / "p0" / "round"
    for name in ("x", "y"):
        round_and_round.mkdir(exist_ok=True)
        (round_and_round / name).symlink_to(".")
    (round_and_round / ".hidden.md").write_text("hidden")
    found = list(find_files([str(tmp_path / "**" / "*.md")], Report()))
    assert sorted(Path(f).name for f in found) == sorted(f"{i}.md" for i in range(20))
    assert len(list(find_files([str(tmp_path / "p**" / "*.md")], Report()))) == 20  # not a whole name: as one star


def test_folders_too_deep(tmp_path: Path) -> None:
    at = tmp_path
    for _ in range(300):
        at /= "d"
    at.mkdir(parents=True)
    report = Report()
    assert list(find_files([str(tmp_path)], report)) == []
    ((_, reason),) = report.skipped
    assert reason == "lies more than 200 folders deep"


def test_limits_larger_than_memory(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Some text.")
    for limit in (1e9, float("inf")):
        assert read_document(str(tmp_path / "a.txt"), max_mb=limit).pages[0].text == "Some text."


def test_tables_as_spreadsheets_write_them() -> None:
    """A first line that says the separator, line ends of old, rows of nothing; a quote left open is told."""
    said = parse_document("d", b"sep=;\r\nname;price, net\r\n\r\nchair;5\r\n", ".csv").pages
    assert [(p.number, p.text) for p in said] == [(4, "name: chair.\nprice, net: 5")]
    old = parse_document("d", b"a;b\r1;2,5\r", ".csv").pages
    assert [(p.number, p.text) for p in old] == [(2, "a: 1.\nb: 2,5")]
    open_quote = parse_document("d", b'a,b\n1,2\n3,"four\n5,6\n', ".csv")
    assert open_quote.notes == ("a quote in line 3 is never closed: all from there is one record",)
    assert parse_document("d", b'a,b\n1,2\n5" pipe,"six\n7"\n3,4" pipe\n', ".csv").notes == ()
    empty = parse_document("d", b";;\r\nname;age\r\n;\r\nAnna;3\r\n", ".csv").pages
    assert [(p.number, p.label, p.text) for p in empty] == [(4, "Anna", "name: Anna.\nage: 3")]


def test_json_values_are_told_as_json_says_them() -> None:
    line = b'{"id": 1e3, "open": true, "left": false, "n": 1.50, "far": 1' + b"0" * 5000 + b"}"
    (page,) = parse_document("d", line, ".jsonl").pages
    assert page.label == "1e3"
    assert page.text.startswith("id: 1e3.\nopen: true.\nleft: false.\nn: 1.50.\nfar: 1000")


def test_records_and_paragraphs_without_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Millions of them fit in a small file, and take much memory each."""
    monkeypatch.setattr(readers, "_MOST_RECORDS", 3)
    for content, suffix in ((b"1\n" * 5, ".jsonl"), (b"a\n" + b"1\n" * 5, ".csv")):
        document = parse_document("d", content, suffix)
        assert len(document.pages) == 3
        assert document.notes == ("only its first 3 records are read; split it",)
    empty = files.docx("<w:p/>" * 1000 + files.paragraph("One.") + "<w:p/>" * 1000 + files.paragraph("Two."))
    assert parse_document("d", empty, ".docx").pages[0].text == "One.\n\nTwo."


def test_xhtml_in_the_encoding_it_declares() -> None:
    page = '<?xml version="1.0" encoding="iso-8859-2"?>\n<html><body><p>Łódź</p></body></html>'
    assert parse_document("d", page.encode("iso-8859-2"), ".xhtml").pages[0].text.strip() == "Łódź"


def test_an_index_among_the_documents_is_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.")
    Corpus.create(tmp_path / "index")
    report = Report()
    assert list(find_files([str(tmp_path)], report)) == [str(tmp_path / "a.txt")]
    assert (report.skipped, report.others) == ([], {})
