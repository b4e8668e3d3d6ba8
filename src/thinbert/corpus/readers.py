"""From the bytes of a file to pages of text. Files are hostile: sizes are bounded, nothing in them is run.

A reader takes the content and returns pages, with notes on what it had to leave out; it raises InputError with the
reason where there is nothing to read. READERS says which suffix is read by whom.
"""

import codecs
import csv
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

from thinbert.corpus.pages import Page
from thinbert.errors import InputError

Reader = Callable[[bytes], "Read"]

_LARGEST_PART = 128 << 20  # bytes of a zip's part, unpacked: a few kilobytes can claim gigabytes
_DEEPEST_XML = 200
_NOTED = 5  # bad records that are named


@dataclass(frozen=True)
class Read:
    pages: tuple[Page, ...]
    notes: tuple[str, ...] = ()  # what was left out, and why


# --- text ------------------------------------------------------------------------------------------------------------


def decode(content: bytes) -> str:
    """UTF-8, or UTF-16 and -32 with a byte-order mark. Line ends are kept."""
    for mark, encoding in (
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if content.startswith(mark):
            try:
                return content.decode(encoding)
            except UnicodeDecodeError as e:
                raise InputError(f"begins as {encoding.upper()} and is not ({e.reason})") from None
    if b"\0" in content:
        raise InputError("is a binary file; expected text")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise InputError(
            f"not UTF-8 (byte {e.start} is 0x{content[e.start]:02x}); "
            "convert it first, for example with iconv -f latin1 -t utf-8"
        ) from None


def read_text(content: bytes) -> Read:
    return Read((Page(decode(content)),))


_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*[ \t]*$|^(\S.*)\n {0,3}(?:=+|-{2,})[ \t]*$", re.MULTILINE)
_FENCE = re.compile(r"^ {0,3}(```|~~~).*?^ {0,3}\1", re.MULTILINE | re.DOTALL)


def read_markdown(content: bytes) -> Read:
    """The text as it stands, so that places are those of the file, and its headings."""
    text = decode(content)
    code = [m.span() for m in _FENCE.finditer(text)]
    headings = tuple(
        (m.start(), (m[1] or m[2]).strip())
        for m in _HEADING.finditer(text)
        if not any(a <= m.start() < b for a, b in code)
    )
    return Read((Page(text, headings=headings),))


# --- HTML ------------------------------------------------------------------------------------------------------------

_UNSEEN = {"script", "style", "noscript", "template", "svg", "math", "head", "select", "iframe", "object"}
# fmt: off
_BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "dialog", "div", "dl",
    "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr",
    "li", "main", "nav", "ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul",
}
# fmt: on
_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_CHARSET = re.compile(rb"""<meta[^>]{0,200}charset\s*=\s*["']?\s*([a-zA-Z0-9_:.-]{2,40})""", re.IGNORECASE)


class _Text(HTMLParser):
    """What a reader of the page sees: blocks on lines of their own, white space collapsed outside <pre>."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.length = 0
        self.headings: list[tuple[int, str]] = []
        self.title = ""
        self._unseen: list[str] = []  # open elements whose text does not count
        self._in_title = False
        self._pre = 0
        self._heading: int | None = None  # where the open heading began

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "title" and not self.title:
            self._in_title = True
        if tag in _UNSEEN and tag not in _VOID:
            self._unseen.append(tag)
        if tag == "br":
            self._write("\n")
        elif tag in ("td", "th"):
            self._write(" ")
        elif tag in _BLOCKS:
            self._break()
        if re.fullmatch("h[1-6]", tag):
            self._heading = self.length
        self._pre += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        self._in_title &= tag != "title"
        if tag in self._unseen:
            while self._unseen.pop() != tag:
                pass
        if re.fullmatch("h[1-6]", tag) and self._heading is not None:
            heading = "".join(self.parts)[self._heading :].strip() if self.length < 1 << 14 else self._tail().strip()
            if heading:
                self.headings.append((self._heading, heading))
            self._heading = None
        if tag in _BLOCKS:
            self._break()
        self._pre = max(0, self._pre - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        elif not self._unseen:
            self._write(data if self._pre else re.sub(r"[ \t\r\n\f]+", " ", data))

    def _tail(self) -> str:
        """The text since the open heading began."""
        assert self._heading is not None
        tail, wanted = "", self.length - self._heading
        for part in reversed(self.parts):
            if len(tail) >= wanted:
                break
            tail = part + tail
        return tail[len(tail) - wanted :] if wanted else ""

    def _break(self) -> None:
        if self.parts and not self.parts[-1].endswith("\n"):
            self._write("\n")

    def _write(self, text: str) -> None:
        if not self._pre and (not self.parts or self.parts[-1][-1] in " \n"):
            text = text.lstrip(" ")
        if text:
            self.parts.append(text)
            self.length += len(text)


def read_html(content: bytes) -> Read:
    """The visible text, in the encoding that the page names; the title is a heading at the top."""
    declared = _CHARSET.search(content[:4096])
    try:
        encoding = codecs.lookup(declared[1].decode()).name if declared else ""
    except LookupError:
        encoding = ""
    if encoding in ("", "utf-8", "ascii") or content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE)):
        text = decode(content)
    else:
        text = content.decode(encoding, errors="replace")
    parser = _Text()
    parser.feed(text)
    parser.close()
    title = " ".join(parser.title.split())
    headings = ([(0, title)] if title else []) + parser.headings
    return Read((Page("".join(parser.parts), headings=tuple(headings)),))


# --- PDF -------------------------------------------------------------------------------------------------------------


def read_pdf(content: bytes) -> Read:
    """Pages with their numbers and printed labels. Words that a line's end cut in two are joined."""
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(content)
    except pypdfium2.PdfiumError as e:
        if "password" in str(e).lower():
            raise InputError("is encrypted; save it without a password first") from None
        raise InputError("is not a readable PDF: it is damaged or cut off") from None
    with document:
        pages, bad = [], []
        for i in range(len(document)):
            try:
                page = document[i]
                content_of = page.get_textpage()
                text = _mended(content_of.get_text_range())
                content_of.close()
                page.close()
            except pypdfium2.PdfiumError:
                bad.append(i + 1)
                text = ""
            pages.append(Page(text, number=i + 1, label=document.get_page_label(i)))
    if not pages:
        raise InputError("has no pages")
    without = [p.number for p in pages if not p.text.strip() and p.number not in bad]
    if len(without) + len(bad) == len(pages):
        raise InputError(f"has no text layer on any of its {len(pages)} pages: they are images; run OCR on it first")
    notes = [f"no text layer on {_numbers(without)}: images, or empty"] if without else []
    if bad:
        notes.append(f"{_numbers(bad)} cannot be read")
    return Read(tuple(pages), tuple(notes))


def _mended(text: str) -> str:
    """PDFium's text with plain line ends. It marks a hyphen that only the line's end brought with U+FFFE or U+0002."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub("[\ufffe\x02]\n?", "", text).replace("\0", "")


def _numbers(pages: list[int]) -> str:
    """Page numbers as people write them: page 3, pages 3 to 5 and 9."""
    runs: list[list[int]] = []
    for n in pages:
        if runs and n == runs[-1][-1] + 1:
            runs[-1][1:] = [n]
        else:
            runs.append([n])
    shown = [f"{r[0]} to {r[1]}" if len(r) > 1 else str(r[0]) for r in runs]
    listed = ", ".join(shown[:-1]) + (" and " if shown[:-1] else "") + shown[-1]
    return f"{'page' if len(pages) == 1 else 'pages'} {listed}"


# --- Word ------------------------------------------------------------------------------------------------------------

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"


def read_docx(content: bytes) -> Read:
    """Paragraphs, one a line; cells of a table's row on one line; headings by their style."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive, archive.open("word/document.xml") as file:
            xml = file.read(_LARGEST_PART + 1)
    except KeyError:
        raise InputError("is not a Word document: it has no word/document.xml") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as e:
        raise InputError(f"is not a readable Word document: {str(e) or 'it is damaged or cut off'}") from None
    if len(xml) > _LARGEST_PART:
        raise InputError(f"unpacks to more than {_LARGEST_PART >> 20} MB; that is not a text to read")
    if b"<!DOCTYPE" in xml or b"<!ENTITY" in xml:
        raise InputError("has a document type in its XML, which no Word document has")
    lines: list[str] = []
    headings: list[tuple[int, str]] = []
    length = 0
    try:
        for kind, text in _paragraphs(xml):
            if kind == "heading" and text.strip():
                headings.append((length, text.strip()))
            lines.append(text)
            length += len(text) + 1
    except ElementTree.ParseError as e:
        raise InputError(f"is damaged: {e}") from None
    return Read((Page("\n".join(lines), headings=tuple(headings)),))


def _paragraphs(xml: bytes) -> Iterator[tuple[str, str]]:
    """("heading" | "text", line) of each paragraph outside tables, and of each row of a table."""
    line: list[str] = []
    style, tables, depth = "", 0, 0
    for event, element in ElementTree.iterparse(io.BytesIO(xml), events=("start", "end")):
        tag = element.tag
        depth += 1 if event == "start" else -1
        if depth > _DEEPEST_XML:
            raise InputError(f"is nested more than {_DEEPEST_XML} deep; that is not a text to read")
        if event == "start":
            tables += tag == f"{_W}tbl"
            continue
        if tag == f"{_W}t":
            line.append(element.text or "")
        elif tag in (f"{_W}tab", f"{_W}br", f"{_W}cr"):
            line.append(" " if tables or tag == f"{_W}tab" else "\n")
        elif tag == f"{_W}pStyle":
            style = element.get(f"{_W}val", "")
        elif tag == f"{_W}p":
            if tables:
                line.append(" ")
            else:
                yield ("heading" if re.match("(?i)heading|title", style) else "text"), "".join(line)
                line = []
            style = ""
        elif tag == f"{_W}tc":
            line.append("\t")
        elif tag == f"{_W}tr":
            yield "text", re.sub(" *\t", "\t", "".join(line)).strip()
            line = []
        tables -= tag == f"{_W}tbl"
        element.clear()
    if line:
        yield "text", "".join(line)


# --- records ---------------------------------------------------------------------------------------------------------

# The field of a record that holds its text, and the one that names it: the first that is there.
_TEXT_FIELDS = ("text", "content", "body", "context", "passage", "document")
_NAME_FIELDS = ("id", "_id", "title", "name", "url", "file")


def read_jsonl(content: bytes) -> Read:
    """A page for each line's object: its text field, or all of its strings; numbered as the lines are."""
    pages, bad = [], []
    for number, line in enumerate(decode(content).splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            bad.append(number)
            continue
        fields: Mapping[str, Any] = record if isinstance(record, dict) else {"text": record}
        text = next((fields[f] for f in _TEXT_FIELDS if isinstance(fields.get(f), str)), None)
        if text is None:
            text = "\n".join(f"{k}: {v}" for k, v in fields.items() if isinstance(v, str))
        name = next((str(fields[f]) for f in _NAME_FIELDS if isinstance(fields.get(f), str | int)), "")
        pages.append(Page(_whole(text), number=number, label=_whole(name)))
    return _records(pages, bad, "JSON")


def read_csv(content: bytes) -> Read:
    """A page for each row under the header: its text column, or `column: value` lines; numbered as the lines are."""
    text = decode(content)
    try:
        dialect: Any = csv.Sniffer().sniff(text[:4096], delimiters=",;\t|")
    except csv.Error:
        dialect = csv.excel
    rows = csv.reader(io.StringIO(text), dialect)
    pages: list[Page] = []
    bad: list[int] = []
    header: list[str] = []
    while True:
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error:
            bad.append(rows.line_num)
            continue
        if not header:
            header = [name.strip() for name in row]
            continue
        fields = {name or f"column {n}": value for n, (name, value) in enumerate(zip(header, row, strict=False), 1)}
        lower = {name.lower(): value for name, value in fields.items()}
        found = next((lower[f] for f in _TEXT_FIELDS if lower.get(f)), None)
        if found is None:
            found = "\n".join(f"{name}: {value}" for name, value in fields.items() if value)
        label = next((lower[f] for f in _NAME_FIELDS if lower.get(f)), "")
        pages.append(Page(found, number=rows.line_num, label=label))
    return _records(pages, bad, "CSV")


def read_json(content: bytes) -> Read:
    """SQuAD JSON: a page for each paragraph, named by its article."""
    try:
        articles = json.loads(decode(content))["data"]
        pages = [
            Page(_whole(paragraph["context"]), number=number, label=_whole(title))
            for number, (title, paragraph) in enumerate(
                ((str(a.get("title", "")), p) for a in articles for p in a["paragraphs"]), 1
            )
        ]
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputError("is not SQuAD JSON (data, paragraphs, context); of JSON, that and .jsonl are read") from None
    return Read(tuple(pages))


def _records(pages: list[Page], bad: list[int], kind: str) -> Read:
    if bad and not pages:
        raise InputError(f"none of its lines is {kind}")
    if not bad:
        return Read(tuple(pages))
    more = f" and {len(bad) - _NOTED} more" if len(bad) > _NOTED else ""
    lines = ", ".join(map(str, bad[:_NOTED]))
    return Read(tuple(pages), (f"not {kind}: line{'s' if len(bad) > 1 else ''} {lines}{more}",))


def _whole(text: str) -> str:
    """Text without halves of surrogate pairs, which JSON can write and no encoding can store."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


READERS: Mapping[str, Reader] = {
    ".txt": read_text,
    ".text": read_text,
    ".rst": read_text,
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".pdf": read_pdf,
    ".docx": read_docx,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
}
