"""Questions over documents: retrieve passages, read them in one batch, rank what was found on one scale, cite it."""

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from thinbert.api import Model
from thinbert.corpus.index import Corpus, Hit
from thinbert.corpus.pages import BLOCKS, Page, is_text
from thinbert.errors import InputError
from thinbert.tasks import qa
from thinbert.tasks.calibration import log_odds
from thinbert.tasks.qa import Answer, Reading

READ = 20  # passages that are read for a question
# Most good spans overlap a better one and are dropped: ten neighbouring tokens alone hold 55 spans.
_CANDIDATES_PER_ANSWER = 60
# What a passage's place in the search says, in log odds: this much less for one that shares nothing with the question
# than for the best. Fitted with the bundled model on held-out articles by tools/fit_ranking.py (docs/log.md): between
# where the top answer is right most often, and where probabilities rank all answers best.
RETRIEVAL = 5.0
_AROUND = " \t\"'“”‘’«»()[]{}:;!?…"  # what may stand around an answer without being of it
_ARTICLE = re.compile(r"(?:an?|the) ")
_FARTHEST = 700.0  # log odds past which exp has no float64


@dataclass(frozen=True)
class Place:
    file: str
    page: int  # from 1
    label: str  # printed on the page, or a record's name
    start: int  # characters of the page, end exclusive
    end: int
    line: int = 0  # of the page, from 1; 0 before that was looked at
    column: int = 0  # of the line, from 1

    def fields(self) -> dict[str, Any]:
        """As JSON says it, everywhere."""
        return {
            "file": self.file,
            "page": self.page,
            "page_label": self.label,
            "start": self.start,
            "end": self.end,
            "line": self.line,
            "column": self.column,
        }


@dataclass(frozen=True)
class Citation:
    """An answer in its place: `page.text[start:end] == text`, and the sentence around it."""

    text: str
    score: float  # probability that this is the answer (see ask)
    place: Place
    heading: str  # under which it stands
    sentence: str
    sentence_start: int
    also: tuple[Place, ...]  # where the same words were found as an answer, too

    def fields(self, place: Callable[[Place], dict[str, Any]] = Place.fields) -> dict[str, Any]:
        """As JSON says it, everywhere; `place` may say more, or less, of a place than it says itself."""
        return {
            "answer": self.text,
            "score": self.score,
            **place(self.place),
            "heading": self.heading,
            "sentence": self.sentence,
            "sentence_start": self.sentence_start,
            "also": [place(p) for p in self.also],
        }


@dataclass(frozen=True)
class Found:
    citations: tuple[Citation, ...]  # best first; empty when there is no answer
    rejected: Citation | None  # the best candidate, where the model says that none is the answer
    no_answer: float  # probability that none of the passages read holds an answer
    threshold: float
    read: int  # passages

    @property
    def files(self) -> set[str]:
        """All that are cited."""
        return {place.file for c in self.citations for place in (c.place, *c.also)}


@dataclass(frozen=True)
class _Candidate:
    hit: Hit
    answer: Answer
    score: float

    @property
    def place(self) -> Place:
        start = self.hit.start
        return Place(self.hit.file, self.hit.page, self.hit.label, start + self.answer.start, start + self.answer.end)


def ask(
    model: Model,
    question: str,
    corpus: Corpus,
    *,
    top_k: int = 1,
    passages: int = READ,
    threshold: float | None = None,
) -> Found:
    """Reads the passages of a corpus that share most with the question (all of them where there are few) and cites the
    best `top_k` answers; no two of them overlap or say the same.

    One scale for all passages: the log odds that a passage holds the answer are the model's own, less RETRIEVAL times
    how far its search score is below the best one's. Its odds times a span's share of it are the span's weight. As in a
    Reading, a span's share of all weights times 1 - no_answer is its score, so that all of them and no_answer sum to
    one, and the surest passage alone decides no_answer, however many are read. The same words in several places are one
    answer, with the scores of all of them.

    Raises:
        InputError: the question is empty, or has no encoding.
        ModelError: the model cannot answer questions.
    """
    if not question.strip():
        raise InputError("the question is empty")
    if not is_text(question):
        raise InputError("the question is not UTF-8")
    if top_k < 1 or passages < 1:
        raise InputError(f"top_k is {top_k} and passages {passages}; both must be at least 1")
    if threshold is None:
        threshold = 1.0 if model.config.no_answer_threshold is None else model.config.no_answer_threshold
    view = corpus.view()
    hits = view.search(question, passages)
    if view.passages <= passages:  # few enough to leave none out
        found = {(h.file, h.page, h.start) for h in hits}
        hits += [h for h in view.all(passages) if (h.file, h.page, h.start) not in found]
    spans = max(qa.N_BEST, math.ceil(_CANDIDATES_PER_ANSWER * top_k / max(1, len(hits))))
    candidates, no_answer = _read(model, question, hits, spans)
    answers = _distinct(candidates)[: top_k if no_answer <= threshold else 1]
    page = functools.cache(view.page)  # which may be a book
    cited = tuple(_cite(page, best, score, tuple(also)) for best, score, also in answers)
    if no_answer > threshold:
        return Found((), cited[0] if cited else None, no_answer, threshold, len(hits))
    return Found(cited, None, no_answer, threshold, len(hits))


def _read(model: Model, question: str, hits: Sequence[Hit], spans: int) -> tuple[list[_Candidate], float]:
    """Candidates of all passages, best first, and the probability that there is none."""
    best = max((h.score for h in hits), default=0.0)
    weighed: list[tuple[Hit, Reading, float]] = []  # log odds that the passage holds the answer
    readings = model.read_many(((question, [h.text]) for h in hits), n_best=spans)
    for hit, reading in zip(hits, readings, strict=True):
        if not reading.answers:
            continue
        behind = 1 - hit.score / best if best > 0 else 0.0
        odds = -float(log_odds([reading.no_answer])[0]) - RETRIEVAL * behind
        weighed.append((hit, reading, odds))
    if not weighed:
        return [], 1.0
    surest = max(odds for _, _, odds in weighed)
    total = sum(math.exp(odds - surest) for _, _, odds in weighed)
    there_is = 1 / (1 + math.exp(-max(-_FARTHEST, surest)))
    candidates = []
    for hit, reading, odds in weighed:
        passage = there_is * math.exp(odds - surest) / total  # of the answer mass
        inside = sum(a.score for a in reading.answers)  # what is not 1 - no_answer of it are spans past the best
        given = max(1 - reading.no_answer, inside)
        candidates += [_Candidate(hit, a, passage * a.score / given if given > 0 else 0.0) for a in reading.answers]
    candidates.sort(key=lambda c: -c.score)
    return candidates, 1 - there_is


def _distinct(candidates: Sequence[_Candidate]) -> list[tuple[_Candidate, float, list[Place]]]:
    """Answers with their scores and the other places where the same words stand, best first; none overlaps a better."""
    found: dict[str, tuple[_Candidate, float, list[Place]]] = {}
    taken: dict[tuple[str, int], list[tuple[Place, str]]] = {}  # page -> places on it, and their words
    for candidate in candidates:
        place = candidate.place
        text = candidate.answer.text
        if not any(map(str.isalnum, text)):
            continue  # punctuation
        words = _words(text)
        on_page = taken.setdefault((place.file, place.page), [])
        over = [known for other, known in on_page if place.start < other.end and other.start < place.end]
        if over and words not in over:
            continue  # another cut of a better answer's place
        best, score, also = found.get(words, (candidate, 0.0, []))
        if not over:  # else the same place, read in two passages
            on_page.append((place, words))
            if best is not candidate:
                also.append(place)
        found[words] = best, score + candidate.score, also
    return sorted(found.values(), key=lambda answer: -answer[1])


def _words(text: str) -> str:
    """What makes two answers one: case, an article before them and punctuation around them do not tell them apart. All
    else does: 1.5 is not 15, nor C++ C."""
    words = " ".join(text.casefold().split()).lstrip(_AROUND).rstrip(_AROUND + ".,")
    found = _ARTICLE.match(words)
    return words[found.end() :] if found else words


def _cite(
    page_of: Callable[[str, int], Page], candidate: _Candidate, score: float, also: tuple[Place, ...]
) -> Citation:
    def found(place: Place) -> Place:
        page = page_of(place.file, place.page)
        return replace(place, line=page.line(place.start), column=page.column(place.start))

    place = candidate.place
    page = page_of(place.file, place.page)
    first, last = page.sentence(place.start, place.end, blocks=Path(place.file).suffix.lower() in BLOCKS)
    return Citation(
        text=candidate.answer.text,
        score=score,
        place=found(place),
        heading=page.heading(place.start),
        sentence=page.text[first:last],
        sentence_start=first,
        also=tuple(map(found, also)),
    )
