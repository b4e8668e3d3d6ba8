"""Pages of text with exact places, and passages cut from them: a quote is always `page.text[start:end]`."""

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeGuard

# A sentence ends at . ! ? … (and closing quotes or brackets) before white space, at a blank line, or at a line that
# starts a heading, list item or table in Markdown. Abbreviations are not known: a citation may then show less than
# the sentence, never a wrong place.
_SENTENCE_END = re.compile(r"""[.!?…]+["'”’)\]]*(?=\s)|\n\s*\n|\n(?=[ \t]*(?:[#>|*+-]|\d+\.)\s)""")
# Suffixes of files whose text has a line for each block, a paragraph or heading; lines of theirs nobody sees.
BLOCKS = (".html", ".htm", ".xhtml", ".docx")
_LINE_END = re.compile(r"\n")
_LONGEST_SENTENCE = 400  # characters shown on either side of an answer, at most

# A passage fits a window of 384 tokens with its question: English has 4 to 5 characters a token.
PASSAGE, OVERLAP = 1200, 200  # characters
# Where a passage had better end, best first: at a paragraph, a line, a sentence, a word.
_BREAKS = tuple(re.compile(p) for p in (r"\n\s*\n", r"\n", r"""[.!?…]["'”’)\]]*\s""", r"\s"))


def is_text(value: object) -> TypeGuard[str]:
    """Whether this is a string that has an encoding: JSON, XML and file names can hold half of a surrogate pair."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def unlike(name: str, taken: dict[str, int]) -> str:
    """The name, or where that is taken, the name with the next number that is free: the second `phone` is `phone (2)`.

    Args:
        taken: names given out, and the last number tried for each; this one is added.
    """
    given = name
    while given in taken:
        taken[name] += 1
        given = f"{name} ({taken[name]})"
    taken[given] = 1
    return given


@dataclass(frozen=True)
class Page:
    """A page of a document, or its whole text, or one of its records."""

    text: str
    number: int = 1  # from 1; a record's line
    label: str = ""  # printed on the page, or a record's name
    headings: tuple[tuple[int, str], ...] = ()  # where each begins, and what it says

    @cached_property
    def _line_starts(self) -> list[int]:
        return [0, *(m.end() for m in re.finditer(r"\r\n|\n|\r", self.text))]

    def line(self, position: int) -> int:
        """Number, from 1, of the line that character `position` stands in."""
        return bisect.bisect_right(self._line_starts, position)

    def column(self, position: int) -> int:
        """Number, from 1, of character `position` in its line."""
        return position - self._line_starts[self.line(position) - 1] + 1

    def heading(self, position: int) -> str:
        """The last heading that begins at or before character `position`, or ""."""
        before = bisect.bisect_right(self.headings, position, key=lambda h: h[0])
        return self.headings[before - 1][1] if before else ""

    def sentence(self, start: int, end: int, *, blocks: bool = False) -> tuple[int, int]:
        """Where the sentence (or sentences) around the characters start:end begin and end; one that is long is cut
        between words.

        Args:
            blocks: each line is a block of its own, such as a paragraph or heading.
        """
        left, right = max(0, start - _LONGEST_SENTENCE), min(len(self.text), end + _LONGEST_SENTENCE)
        ends = [m.end() for m in _SENTENCE_END.finditer(self.text, left, right)]
        if blocks:
            ends += [m.end() for m in _LINE_END.finditer(self.text, left, right)]
        inside = left > 0 and not self.text[left - 1].isspace()
        if inside and (space := re.search(r"\s", self.text[left:start])):
            left += space.end()
        inside = right < len(self.text) and not self.text[right].isspace()
        if inside and (space := re.search(r"\s(?=\S*$)", self.text[end:right])):
            right = end + space.start()
        first = max((e for e in ends if e <= start), default=left)
        last = min((e for e in ends if e >= end), default=right)
        before, after = self.text[first:start], self.text[end:last]
        first += len(before) - len(before.lstrip())
        last -= len(after) - len(after.rstrip())
        return first, last


@dataclass(frozen=True)
class Passage:
    """A piece of a page: `page.text[start:end]`."""

    start: int
    end: int
    headings: tuple[tuple[int, str], ...]  # the page's last before it (or several at one place), and those in it


def passages(page: Page, *, size: int = PASSAGE, overlap: int = OVERLAP) -> Iterator[Passage]:
    """Pieces of at most `size` characters that together cover the page, each going back over some of the one before.

    A piece ends at the best break in its second half, and the next begins after a break too, so that what both hold is
    at most `overlap` characters of whole sentences or words.
    """
    text, n = page.text, len(page.text)
    start = 0
    while start < n:
        end = n
        if n - start > size:
            end = _last_break(text, start + size // 2, start + size) or start + size
        before = max(0, bisect.bisect_right(page.headings, start, key=lambda h: h[0]) - 1)
        # with those that begin at the same place: the title of a web page, and its first heading
        first = bisect.bisect_left(page.headings, page.headings[before][0], key=lambda h: h[0]) if page.headings else 0
        last = bisect.bisect_left(page.headings, end, key=lambda h: h[0])
        yield Passage(start, end, page.headings[first:last])
        if end == n:
            return
        start = _first_break(text, max(start + 1, end - overlap), end) or end
        while start < end and text[start].isspace():
            start += 1


def _last_break(text: str, low: int, high: int) -> int | None:
    for pattern in _BREAKS:
        ends = [m.end() for m in pattern.finditer(text, low, high)]
        if ends:
            return ends[-1]
    return None


def _first_break(text: str, low: int, high: int) -> int | None:
    """Where something whole begins between low and high: a line or sentence rather than a word."""
    for pattern in _BREAKS[1:]:
        found = pattern.search(text, low, high)
        if found and found.end() < high:
            return found.end()
    return None
