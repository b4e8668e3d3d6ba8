"""Questions over documents: retrieve passages, read them in one batch, rank what was found on one scale, cite it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from thinbert.api import Model
from thinbert.corpus.index import Corpus, Hit
from thinbert.errors import InputError
from thinbert.tasks.calibration import log_odds
from thinbert.tasks.metrics import normalize
from thinbert.tasks.qa import Answer

READ = 20  # passages that are read for a question
# Most good spans overlap a better one and are dropped: ten neighbouring tokens alone hold 55 spans.
_CANDIDATES_PER_ANSWER = 60
# What a passage's place in the search says, in log odds: this much less for one that shares nothing with the question
# than for the best. Fitted on held-out articles (docs/results.md).
RETRIEVAL = 3.0


@dataclass(frozen=True)
class Place:
    file: str
    page: int  # from 1
    label: str  # printed on the page, or a record's name
    start: int  # characters of the page, end exclusive
    end: int


@dataclass(frozen=True)
class Citation:
    """An answer in its place: `page.text[start:end] == text`, and the sentence around it."""

    text: str
    score: float  # probability that the passage holds the answer, and that this is it
    place: Place
    line: int  # from 1, of the page
    heading: str  # under which it stands
    sentence: str
    sentence_start: int
    also: tuple[Place, ...]  # where the same words were found as an answer, too


@dataclass(frozen=True)
class Found:
    citations: tuple[Citation, ...]  # best first; empty when there is no answer
    rejected: Citation | None  # the best candidate, where the model says that none is the answer
    no_answer: float  # probability that none of the passages read holds an answer
    threshold: float
    read: int  # passages


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
    how far its search score is below the best one's; a span's score is that probability times its share of the passage.

    Raises:
        InputError: the question is empty.
        ModelError: the model cannot answer questions.
    """
    if not question.strip():
        raise InputError("the question is empty")
    if top_k < 1 or passages < 1:
        raise InputError(f"top_k is {top_k} and passages {passages}; both must be at least 1")
    if threshold is None:
        threshold = 1.0 if model.config.no_answer_threshold is None else model.config.no_answer_threshold
    hits = corpus.search(question, passages)
    if corpus.passages <= passages:  # few enough to leave none out
        found = {(h.file, h.page, h.start) for h in hits}
        hits += [h for h in corpus.all(passages) if (h.file, h.page, h.start) not in found]
    candidates, no_answer = _read(model, question, hits, _CANDIDATES_PER_ANSWER * top_k)
    distinct: list[tuple[_Candidate, list[Place]]] = []
    for candidate in candidates:
        same = next((also for best, also in distinct if _same(best, candidate)), None)
        if same is None:
            if len(distinct) == top_k:
                continue
            distinct.append((candidate, []))
        elif not any(_overlap(candidate.place, p) for best, also in distinct for p in (best.place, *also)):
            same.append(candidate.place)
    cited = tuple(_cite(corpus, best, tuple(also)) for best, also in distinct)
    if no_answer > threshold:
        return Found((), cited[0] if cited else None, no_answer, threshold, len(hits))
    return Found(cited, None, no_answer, threshold, len(hits))


def _read(model: Model, question: str, hits: Sequence[Hit], spans: int) -> tuple[list[_Candidate], float]:
    """Candidates of all passages, best first, and the probability that there is none."""
    best = max((h.score for h in hits), default=0.0)
    candidates, no_answer = [], 1.0
    readings = model.read_many(((question, [h.text]) for h in hits), n_best=spans)
    for hit, reading in zip(hits, readings, strict=True):
        if not reading.answers:
            continue
        behind = 1 - hit.score / best if best > 0 else 0.0
        odds = -float(log_odds([reading.no_answer])[0]) - RETRIEVAL * behind
        holds = 1 / (1 + math.exp(-odds))
        no_answer = min(no_answer, 1 - holds)
        given = 1 - reading.no_answer
        for answer in reading.answers:
            candidates.append(_Candidate(hit, answer, holds * answer.score / given if given > 0 else 0.0))
    candidates.sort(key=lambda c: -c.score)
    return candidates, no_answer


def _same(a: _Candidate, b: _Candidate) -> bool:
    """The same place, overlapping, or the same words elsewhere."""
    return _overlap(a.place, b.place) or (normalize(a.answer.text) == normalize(b.answer.text) != "")


def _overlap(a: Place, b: Place) -> bool:
    return (a.file, a.page) == (b.file, b.page) and a.start < b.end and b.start < a.end


def _cite(corpus: Corpus, candidate: _Candidate, also: tuple[Place, ...]) -> Citation:
    place = candidate.place
    page = corpus.page(place.file, place.page)
    first, last = page.sentence(place.start, place.end)
    return Citation(
        text=candidate.answer.text,
        score=candidate.score,
        place=place,
        line=page.line(place.start),
        heading=page.heading(place.start),
        sentence=page.text[first:last],
        sentence_start=first,
        also=also,
    )
