"""Documents as text with exact places: a quote is always `text[start:end]` of the document as decoded."""

import bisect
import re
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from thinbert.errors import InputError

STDIN = "-"

# A sentence ends at . ! ? … (and closing quotes or brackets) before white space, at a blank line, or at a line that
# starts a heading, list item or table in Markdown. Abbreviations are not known: a citation may then show less than
# the sentence, never a wrong place.
_SENTENCE_END = re.compile(r"""[.!?…]+["'”’)\]]*(?=\s)|\n\s*\n|\n(?=[ \t]*(?:[#>|*+-]|\d+\.)\s)""")
_LONGEST_SENTENCE = 400  # characters shown on either side of an answer, at most


@dataclass(frozen=True)
class Document:
    name: str  # as the user called it
    text: str

    @cached_property
    def _line_starts(self) -> list[int]:
        return [0, *(m.end() for m in re.finditer(r"\r\n|\n|\r", self.text))]

    def line(self, position: int) -> int:
        """Number, from 1, of the line that character `position` stands in."""
        return bisect.bisect_right(self._line_starts, position)

    def sentence(self, start: int, end: int) -> tuple[int, int]:
        """Where the sentence (or sentences) around the characters start:end begin and end."""
        left, right = max(0, start - _LONGEST_SENTENCE), min(len(self.text), end + _LONGEST_SENTENCE)
        ends = [m.end() for m in _SENTENCE_END.finditer(self.text, left, right)]
        first = max((e for e in ends if e <= start), default=left)
        last = min((e for e in ends if e >= end), default=right)
        before, after = self.text[first:start], self.text[end:last]
        first += len(before) - len(before.lstrip())
        last -= len(after) - len(after.rstrip())
        return first, last


def read_document(name: str) -> Document:
    """A text or Markdown file, or standard input for "-", as UTF-8 (a byte-order mark is dropped; line ends are kept).

    Raises:
        InputError: unreadable, a directory, not text, not UTF-8, or empty.
    """
    shown = "standard input" if name == STDIN else name
    try:
        content = _read_stdin() if name == STDIN else Path(name).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{shown}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{shown}: is a directory; name the files in it") from None
    except OSError as e:
        raise InputError(f"{shown}: cannot be read: {e.strerror}") from e
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{shown}: is UTF-16; convert it first, for example with iconv -f utf-16 -t utf-8")
    if b"\0" in content:
        raise InputError(f"{shown}: is a binary file; expected text or Markdown")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise InputError(
            f"{shown}: not UTF-8 (byte {e.start} is 0x{content[e.start]:02x}); "
            "convert it first, for example with iconv -f latin1 -t utf-8"
        ) from None
    return checked(Document(shown, text))


def _read_stdin() -> bytes:
    if sys.stdin is None:
        raise InputError("standard input: is closed")
    return sys.stdin.buffer.read()


def checked(document: Document) -> Document:
    """The document, if it has anything to read in it."""
    if any("\ud800" <= c <= "\udfff" for c in document.text):
        raise InputError(f"{document.name}: is not UTF-8; convert it first")
    if not document.text.strip():
        raise InputError(f"{document.name}: is empty; there is no text to look for an answer in")
    return document
