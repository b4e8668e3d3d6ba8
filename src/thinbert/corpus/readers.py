"""From the bytes of a file to pages of text. Files are hostile: sizes are bounded, nothing in them is run.

A reader takes the content and returns pages, with notes on what it had to leave out; it raises InputError with the
reason where there is nothing to read. READERS says which suffix is read by whom.
"""

import codecs
import csv
import io
import json
import re
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from html.parser import HTMLParser
from typing import Any
from xml.parsers import expat

from thinbert.corpus.pages import Page, unlike
from thinbert.errors import InputError

Reader = Callable[[bytes], "Read"]

_LARGEST_PART = 128 << 20  # bytes of a zip's part, unpacked: a few kilobytes can claim gigabytes
_DEEPEST_XML = 200
_MOST_RECORDS = 1_000_000  # each costs hundreds of bytes, however little is in it
_NOTED = 5  # bad records that are named


@dataclass(frozen=True)
class Read:
    pages: tuple[Page, ...]
    notes: tuple[str, ...] = ()  # what was left out, and why


# --- text ------------------------------------------------------------------------------------------------------------


# What files begin with that are not text, whatever they are called.
_BINARY = {
    b"\xd0\xcf\x11\xe0": "an old Office file (save it as .docx)",
    b"PK\x03\x04": "a zip archive, or an Office file under another name",
    b"%PDF-": "a PDF under another name",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"\x1f\x8b": "packed with gzip",
    b"\xfd7zXZ": "packed with xz",
}


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
    kind = next((kind for mark, kind in _BINARY.items() if content.startswith(mark)), None)
    if kind or b"\0" in content:
        raise InputError(f"is {kind or 'a binary file'}; expected text, or {' '.join(sorted(READERS))}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise InputError(
            f"not UTF-8 (byte {e.start} is 0x{content[e.start]:02x}); "
            "convert it first, for example with iconv -f latin1 -t utf-8"
        ) from None


# What HTML begins with, after an XML declaration and comments.
_HTML = re.compile(rb"(?i)(?:\s+|<\?xml[^>]*>|<!--.*?-->)*+<(?:!doctype\s+html|(?:html|head|body)[\s>])", re.DOTALL)


def kind_of(content: bytes) -> str:
    """The suffix of content that has no name: of PDF, HTML or Word, else none, for text."""
    if content.startswith(b"%PDF-"):
        return ".pdf"
    if content.startswith(b"PK\x03\x04"):
        return ".docx"
    return ".html" if _HTML.match(content[:4000].removeprefix(codecs.BOM_UTF8)) else ""


def read_text(content: bytes) -> Read:
    return Read((Page(decode(content)),))


_MARKER = r"(?:[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]+)?"  # of a list's item
_FENCE = re.compile(rf"{_MARKER} {{0,3}}(`{{3,}}(?=[^`]*\Z)|~{{3,}})")
_ATX = re.compile(r" {0,3}#{1,6}[ \t]+(?=\S)")
_CLOSING = re.compile(r"(?<![ \t])[ \t]+#+\Z")  # spaces are looked through once
_UNDERLINE = re.compile(r" {0,3}(?:=+|-{2,})[ \t]*\Z")
_NO_HEADING = re.compile(r"[ \t]*(?:\Z|[>|]|[-*+][ \t]|\d{1,9}[.)][ \t])| {4}|\t")  # what a line under it makes none
_FRONT_MATTER = re.compile(r"\ufeff?---[ \t]*\r?\n(?=\S)(?:.*\n)*?(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)")


def read_markdown(content: bytes) -> Read:
    """The text as it stands, so that places are those of the file, and its headings."""
    text = decode(content)
    headings: list[tuple[int, str]] = []
    fence, before, before_at = "", "", 0  # what closes the code we are in; the line before, if it may be a heading
    front = _FRONT_MATTER.match(text)
    at = front.end() if front else 0
    for line in text[at:].splitlines(keepends=True):
        bare = line.rstrip()
        mark, found = _FENCE.match(bare), _ATX.match(bare)
        may_be = False
        if fence:
            closes = bare.strip()
            fence = "" if closes.startswith(fence) and not closes.strip(fence[0]) else fence
        elif mark:
            fence = mark[1]
        elif found:
            headings.append((at, _CLOSING.sub("", bare[found.end() :])))
        elif before and _UNDERLINE.match(bare):
            headings.append((before_at, before.strip()))
        else:
            may_be = not _NO_HEADING.match(bare)
        before, before_at, at = (bare if may_be else ""), at, at + len(line)
    return Read((Page(text, headings=tuple(headings)),))


# --- HTML ------------------------------------------------------------------------------------------------------------

# Parts with a `hidden` attribute are read: they are folds and tabs, which a click shows.
_UNSEEN = {"script", "style", "noscript", "template", "svg", "math", "select", "iframe", "object"}
_HEAD = {"html", "head", "title", "base", "link", "meta", "script", "style", "noscript", "template"}  # before the body
# fmt: off
_BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "dialog", "div", "dl",
    "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr",
    "li", "main", "nav", "ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul",
}
_HEADING = re.compile("h[1-6]")
# fmt: on
# Comments, scripts and styles, each to its end or the text's: HTMLParser would look for the end of each anew.
_UNREAD = re.compile(
    r"<!--(?:-?>|.*?(?:--!?>|\Z))|<(script|style)(?=[\s/>])[^>]*>(?:(?<=/>)|.*?(?=</\1|\Z))", re.IGNORECASE | re.DOTALL
)
_CHARSET = re.compile(
    rb"""(?:<meta[^>]{0,200}charset|\A\s*<\?xml[^>]{0,100}\sencoding)\s*=\s*["']?\s*([a-zA-Z0-9_:.-]{2,40})""",
    re.IGNORECASE,
)
# What browsers take a declaration for (WHATWG Encoding): pages that say Latin-1 or ASCII use the quotes of Windows, and
# one that could be read as far as its declaration of UTF-16 is not in it.
_CHARSETS = {"iso8859-1": "cp1252", "ascii": "cp1252", "utf-16": "utf-8", "utf-16-le": "utf-8", "utf-16-be": "utf-8"}

_OF_PAGES = re.compile(
    "utf-8|cp(125\\d|866|874|932|949)|iso8859-\\d+|koi8-[ru]|mac-(roman|cyrillic)|gb\\w+|big5\\w*|euc_(jp|kr)|"
    "iso2022_jp|shift_jis|tis-620"
)


class _Text(HTMLParser):
    """What a reader of the page sees: blocks on lines of their own, white space collapsed outside <pre>."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.headings: list[tuple[int, str]] = []
        self.title: list[str] = []
        self._length = 0
        self._unseen: list[str] = []  # open elements whose text does not count
        self._open = Counter[str]()  # how many of each they are
        self._in_head = self._in_title = False
        self._pre = 0
        self._heading: list[str] | None = None  # what the open heading says so far, and
        self._heading_at = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "head":
            self._in_head = True
        elif tag not in _HEAD:
            self._in_head = False  # its end tag may be left out
        if tag == "title" and not self.title:
            self._in_title = True
        if tag in _UNSEEN:
            self._unseen.append(tag)
            self._open[tag] += 1
        if tag == "br":
            self._write("\n")
        elif tag in ("td", "th"):
            self._write(" ")
        elif tag in _BLOCKS:
            self._break()
        if _HEADING.fullmatch(tag):
            self._heading, self._heading_at = [], self._length
        self._pre += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        elif tag == "head":
            self._in_head = False
        if self._open[tag]:
            while (closed := self._unseen.pop()) != tag:
                self._open[closed] -= 1
            self._open[tag] -= 1
        if _HEADING.fullmatch(tag) and self._heading is not None:
            if heading := " ".join("".join(self._heading).split()):
                self.headings.append((self._heading_at, heading))
            self._heading = None
        if tag in _BLOCKS:
            self._break()
        self._pre = max(0, self._pre - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title.append(data)
        elif not self._unseen and not (self._in_head and not data.strip()):
            self._write(data if self._pre else re.sub(r"[ \t\r\n\f]+", " ", data))

    def _break(self) -> None:
        if self.parts and not self.parts[-1].endswith("\n"):
            self._write("\n")

    def _write(self, text: str) -> None:
        if not self._pre and (not self.parts or self.parts[-1][-1] in " \n"):
            text = text.lstrip(" ")
        if text:
            self.parts.append(text)
            self._length += len(text)
            if self._heading is not None:
                self._heading.append(text)


def read_html(content: bytes) -> Read:
    """The visible text, in the encoding that the page names; the title is a heading at the top."""
    text = _html_text(content)
    last = text.rfind(">") + 1  # no tag can be whole behind it
    text = _UNREAD.sub("", text[:last] + text[last:].replace("<", "&lt;"))
    parser = _Text()
    parser.feed(text.replace("<![", "<!x["))  # as in browsers, a comment to the next >
    parser.close()
    title = " ".join("".join(parser.title).split())
    headings = ([(0, title)] if title else []) + parser.headings
    return Read((Page("".join(parser.parts), headings=tuple(headings)),))


def _html_text(content: bytes) -> str:
    declared = _CHARSET.search(content[:4096])
    if declared is None or content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return decode(content)
    try:
        name = codecs.lookup(declared[1].decode()).name
        name = _CHARSETS.get(name, name)
        if not _OF_PAGES.fullmatch(name):  # Python has others, some of which take a time square in the length
            return decode(content)
        return decode(content) if name == "utf-8" else content.decode(name, errors="replace")
    except (LookupError, UnicodeError):  # no encoding, or one of bytes to bytes
        return decode(content)


# --- PDF -------------------------------------------------------------------------------------------------------------


_PDFIUM = threading.Lock()  # it may not be called by two threads, not even for two documents
_MOST_PAGES, _MOST_CHARACTERS = 10_000, 50_000_000  # a few bytes of PDF can claim any number of pages


def read_pdf(content: bytes) -> Read:
    """Pages with their numbers and printed labels. Words that a line's end cut in two are joined."""
    with _PDFIUM:
        return _read_pdf(content)


def _read_pdf(content: bytes) -> Read:
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(content)
    except pypdfium2.PdfiumError as e:
        if "password" in str(e).lower():
            raise InputError("is encrypted; save it without a password first") from None
        raise InputError("is not a readable PDF: it is damaged or cut off") from None
    with document:
        count, characters = len(document), 0
        pages, bad = [], []
        for i in range(min(count, _MOST_PAGES)):
            text = label = ""
            try:
                page = document[i]
                content_of = page.get_textpage()
                text = _mended(content_of.get_text_range())
                content_of.close()
                page.close()
                label = document.get_page_label(i)
            except (pypdfium2.PdfiumError, UnicodeDecodeError):
                bad.append(i + 1)
            pages.append(Page(text, number=i + 1, label=label))
            characters += len(text)
            if characters > _MOST_CHARACTERS:
                break
    if not pages:
        raise InputError("has no pages")
    without = [p.number for p in pages if not p.text.strip() and p.number not in set(bad)]
    if len(without) + len(bad) == len(pages):
        raise InputError(f"has no text layer on any of its {len(pages)} pages: they are images; run OCR on it first")
    notes = [f"no text layer on {_numbers(without)}: images, or empty"] if without else []
    if bad:
        notes.append(f"{_numbers(bad)} cannot be read")
    if len(pages) < count:
        notes.append(f"only the first {len(pages)} of its {count} pages are read")
    return Read(tuple(pages), tuple(notes))


def _mended(text: str) -> str:
    """PDFium's text with plain line ends. It marks hyphens before them with U+FFFE or U+0002: those that only the
    line's end brought go, those of names, numbers and words with a hyphen elsewhere on the page stay."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    with_hyphens = set(re.findall(r"(?<!\w)\w+-\w+", text.lower()))

    def joined(found: re.Match[str]) -> str:
        left, right = found.groups()
        of_names = right[0].isdigit() or (right[0].isupper() and not left.isupper())
        return f"{left}-{right}" if of_names or f"{left}-{right}".lower() in with_hyphens else left + right

    text = re.sub(r"(?<!\w)(\w+)[\ufffe\x02]\n?(\w+)", joined, text)
    text = re.sub(r"(?<=\d-)\n(?=\d)", "", text)
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

_W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main "
_STRICT = "http://purl.oclc.org/ooxml/wordprocessingml/main "  # the same in documents saved as Strict Open XML
# What stands elsewhere too: text that was moved away, and pictures of shapes for programs that cannot draw them.
_ELSEWHERE = (f"{_W}moveFrom", "http://schemas.openxmlformats.org/markup-compatibility/2006 Fallback")
_NOTES = ("word/footnotes.xml", "word/endnotes.xml")


def read_docx(content: bytes) -> Read:
    """Paragraphs, one a line; cells of a table's row on one line; headings by their style; notes at the end."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts = [_part(archive, "word/document.xml")]
            parts += [_part(archive, name) for name in _NOTES if name in archive.namelist()]
    except InputError:
        raise
    except KeyError:
        raise InputError("is not a Word document: it has no word/document.xml") from None
    # zipfile raises each of these for one kind of damage, encryption or packing it does not know
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as e:
        raise InputError(f"is not a readable Word document: {str(e) or 'it is damaged or cut off'}") from None
    lines: list[tuple[bool, str]] = []
    for number, xml in enumerate(parts):
        body = _Body()
        try:
            body.parse(xml)
        except expat.ExpatError as e:
            raise InputError(f"is damaged: {e}") from None
        lines += [line for line in body.lines if number == 0 or line[1].strip()]
    headings: list[tuple[int, str]] = []
    length = 0
    for is_heading, text in lines:
        if is_heading and text.strip():
            headings.append((length, text.strip()))
        length += len(text) + 1
    return Read((Page("\n".join(text for _, text in lines), headings=tuple(headings)),))


def _part(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as file:
        xml = file.read(_LARGEST_PART + 1)
    if len(xml) > _LARGEST_PART:
        raise InputError(f"unpacks to more than {_LARGEST_PART >> 20} MB; that is not a text to read")
    return xml


class _Body:
    """Lines of a document's XML: paragraphs outside tables, rows of tables. Nothing of the XML is kept."""

    def __init__(self) -> None:
        self.lines: list[tuple[bool, str]] = []  # whether it is a heading, and the text
        self._line: list[str] = []
        self._style = ""
        self._tables = self._depth = 0
        self._around: list[tuple[list[str], str, int]] = []  # what was begun where a box of text stands
        self._elsewhere = 0  # depth of the element whose text stands elsewhere too
        self._in_text = self._in_properties = self._in_change = False

    def parse(self, xml: bytes) -> None:
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = self._text, self._doctype
        parser.Parse(xml, True)
        self._flush(False)

    def _doctype(self, *declaration: object) -> None:
        raise InputError("has a document type in its XML, which no Word document has")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > _DEEPEST_XML:
            raise InputError(f"is nested more than {_DEEPEST_XML} deep; that is not a text to read")
        name = name.replace(_STRICT, _W, 1)
        if self._elsewhere or name in _ELSEWHERE:
            self._elsewhere = self._elsewhere or self._depth
            return
        match name.removeprefix(_W):
            case "t":
                self._in_text = True
            case "pPr":
                self._in_properties = True
            case "pPrChange":  # what the paragraph was before somebody changed it
                self._in_change = True
            case "pStyle" if not self._in_change:
                self._style = attributes.get(f"{_W}val", attributes.get(f"{_STRICT}val", ""))
            case "txbxContent":  # a box of text, told before the paragraph it hangs on
                self._around.append((self._line, self._style, self._tables))
                self._line, self._style, self._tables = [], "", 0
            case "tbl":
                self._tables += 1
            case "tab" if not self._in_properties:  # there it is where tabs stand, not one
                self._line.append(" ")
            case "br" | "cr":
                self._line.append(" " if self._tables else "\n")
            case "noBreakHyphen":
                self._line.append("-")

    def _end(self, name: str) -> None:
        self._depth -= 1
        if self._elsewhere:
            self._elsewhere *= self._depth >= self._elsewhere
            return
        match name.replace(_STRICT, _W, 1).removeprefix(_W):
            case "t":
                self._in_text = False
            case "pPr" if not self._in_change:
                self._in_properties = False
            case "pPrChange":
                self._in_change = False
            case "txbxContent":
                self._flush(False)
                self._line, self._style, self._tables = self._around.pop()
            case "tbl":
                self._tables -= 1
            case "p":
                if self._tables:
                    self._line.append(" ")
                else:
                    self._flush(re.match("(?i)heading|title", self._style) is not None, always=True)
                self._style = ""
            case "tc":
                self._line.append("\t")
            case "tr":
                cells = "".join(self._line).split("\t")
                self._line = ["\t".join(cell.rstrip(" ") for cell in cells).strip()]
                self._flush(False)

    def _text(self, data: str) -> None:
        if self._in_text:
            self._line.append(data)

    def _flush(self, heading: bool, *, always: bool = False) -> None:
        text = "".join(self._line)
        if text or (always and self.lines and self.lines[-1][1]):  # of empty paragraphs one, however many there are
            self.lines.append((heading, text))
        self._line = []


# --- records ---------------------------------------------------------------------------------------------------------

# The field of a record that holds its text, and the one that names it: the first that is there.
_TEXT_FIELDS = ("text", "content", "body", "context", "passage", "document")
_NUMBERS = ("id", "_id")  # told only where there is no text
_NAME_FIELDS = ("id", "_id", "title", "name", "url", "file")
_EMPTY = ' \t\r\n,;|"'  # of what lines of empty cells are made
_QUOTED = re.compile(r'"(?:[^"]|"")*+"(?=[\t\r\n]|\Z)')
_SEPARATOR = re.compile(r"sep=(.)[\r\n]*", re.IGNORECASE)  # what spreadsheets write in the first line


def read_jsonl(content: bytes) -> Read:
    """A page for each line's object, as `_record` tells it; numbered as the lines are."""
    pages = _Records("JSON")
    for number, line in enumerate(io.StringIO(decode(content), newline="\n"), 1):  # others may stand inside a string
        if not line.strip():
            continue
        try:
            record = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)  # numbers as they stand there
            fields: Mapping[str, Any] = record if isinstance(record, dict) else {"text": record}
            text = _record(fields)
        except (ValueError, RecursionError):
            pages.bad.append(number)
            continue
        name = next((fields[f] for f in _NAME_FIELDS if isinstance(fields.get(f), str)), "")
        if not pages.add(Page(_whole(text), number=number, label=_whole(name))):
            break
    return pages.read()


def read_csv(content: bytes, delimiter: str | None = None) -> Read:
    """A page for each row under the header, as `_record` tells it; numbered by the line where it begins."""
    text = decode(content)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    lines = _Lines(text)
    first = next((line for line in _Lines(text[: 1 << 16]) if line.strip(_EMPTY)), "")
    said = delimiter_said(first)
    delimiter = said or delimiter or delimiter_of(first)
    plain = delimiter == "\t" and not _quotes_enclose(text)
    rows = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL)
    pages = _Records("CSV")
    header: list[str] = []
    began, quotes = 0, 0  # the row: its first line, and the quotes before it
    while True:
        before = rows.line_num + 1, lines.quotes
        try:
            row = next(rows)
        except StopIteration:
            if rows.line_num > began and (lines.quotes - quotes) % 2 and not plain:
                pages.notes.append(f"a quote in line {began} is never closed: all from there is one record")
            break
        except csv.Error:
            pages.bad.append(before[0])
            continue
        began, quotes = before
        if not any(value.strip() for value in row):
            continue
        if not header:
            if said:
                said = ""
            else:
                header = _unlike([name.strip() or f"column {n}" for n, name in enumerate(row, 1)])
            continue
        fields = {header[n] if n < len(header) else f"column {n + 1}": value for n, value in enumerate(row)}
        lower = {name.lower(): value for name, value in fields.items()}
        label = next((lower[f] for f in _NAME_FIELDS if lower.get(f)), "")
        if not pages.add(Page(_record(fields), number=began, label=label)):
            break
    return pages.read()


def _quotes_enclose(text: str) -> bool:
    """Whether every quote that begins a field between tabs has one that ends it: spreadsheets write fields so; in other
    files quotes are part of the text."""
    end = 0
    for quote in re.finditer(r'(?<![^\t\r\n])"', text):
        if quote.start() >= end:
            field = _QUOTED.match(text, quote.start())
            if not field:
                return False
            end = field.end()
    return True


class _Lines:
    """Lines of a text, whatever they end with, and how many quotes were in those so far."""

    def __init__(self, text: str) -> None:
        self.quotes = 0
        self._lines = io.StringIO(text, newline="")

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.quotes += line.count('"')
            yield line


def _unlike(names: list[str]) -> list[str]:
    """Names of columns, so that no two are the same."""
    taken: dict[str, int] = {}
    return [unlike(name, taken) for name in names]


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


def delimiter_said(line: str) -> str:
    """What a spreadsheet's own first line says stands between columns; nothing where it is no such line."""
    found = _SEPARATOR.fullmatch(line)
    return found[1] if found else ""


def delimiter_of(header: str) -> str:
    """What stands between columns of CSV. The first line says it: what people wrote below may hold anything."""
    return max(",;\t|", key=re.sub('"[^"]*"', "", header).count)  # the first of them, where none is there


def _record(fields: Mapping[str, Any]) -> str:
    """A record as text: its text field, then its other fields as `name: value`. A line that another follows ends as a
    sentence does: a model that reads words does not see where lines end."""
    found = {name: _value(value).strip() for name, value in fields.items()}
    text = next((name for f in _TEXT_FIELDS for name in found if name.lower() == f and found[name]), None)
    lines = [] if text is None else [found[text]]
    for name, value in found.items():
        if value and name != text and (text is None or name.lower() not in _NUMBERS):
            lines.append(f"{name}: {value}".strip())
    return "\n".join([*(line if line[-1] in ".!?…" else f"{line}." for line in lines[:-1]), *lines[-1:]])


def _value(value: Any) -> str:
    """What a field holds, on one line; of lists and objects all that is in them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(filter(None, map(_value, value)))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {inside}" for name, v in value.items() if (inside := _value(v)))
    return "" if value is None else str(value)


class _Records:
    """Pages that were read, up to a limit, and what is to be said of the others."""

    def __init__(self, kind: str) -> None:
        self.bad: list[int] = []  # lines that are no record
        self.notes: list[str] = []
        self._kind = kind
        self._pages: list[Page] = []

    def add(self, page: Page) -> bool:
        """Adds it if it has text. False where there is no room for more."""
        if not page.text:
            return True
        if len(self._pages) == _MOST_RECORDS:
            self.notes.append(f"only its first {_MOST_RECORDS:,} records are read; split it")
            return False
        self._pages.append(page)
        return True

    def read(self) -> Read:
        if self.bad and not self._pages:
            raise InputError(f"none of its lines is {self._kind}")
        if self.bad:
            more = f" and {len(self.bad) - _NOTED} more" if len(self.bad) > _NOTED else ""
            lines = ", ".join(map(str, self.bad[:_NOTED]))
            self.notes.append(f"not {self._kind}: line{'s' if len(self.bad) > 1 else ''} {lines}{more}")
        return Read(tuple(self._pages), tuple(self.notes))


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
    ".tsv": partial(read_csv, delimiter="\t"),
}
