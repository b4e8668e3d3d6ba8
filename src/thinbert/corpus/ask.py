"""Questions over documents: the answer with the file, the line and the sentence it stands in."""

from collections.abc import Sequence
from dataclasses import dataclass

from thinbert.api import Model
from thinbert.corpus.documents import Document
from thinbert.errors import InputError
from thinbert.tasks import qa
from thinbert.tasks.qa import Answer

# Most good spans overlap a better one and are dropped: ten neighbouring tokens alone hold 55 spans.
_CANDIDATES_PER_ANSWER = 60


@dataclass(frozen=True)
class Citation:
    """An answer in its place: `document.text[start:end] == text`, and the sentence around it."""

    text: str
    score: float  # probability (see thinbert.tasks.qa.Reading)
    document: Document
    start: int  # characters of the document, end exclusive
    end: int
    line: int  # from 1
    sentence: str
    sentence_start: int


@dataclass(frozen=True)
class Found:
    citations: tuple[Citation, ...]  # best first, at least one place each; empty when there is no answer
    rejected: Citation | None  # the best candidate, where the model says that none is the answer
    no_answer: float  # probability that the documents hold no answer
    threshold: float


def ask(
    model: Model, question: str, documents: Sequence[Document], *, top_k: int = 1, threshold: float | None = None
) -> Found:
    """Reads all documents and cites the best `top_k` answers; no two of them overlap.

    Raises:
        InputError: the question is empty.
        ModelError: the model cannot answer questions.
    """
    if not question.strip():
        raise InputError("the question is empty")
    if top_k < 1:
        raise InputError(f"top_k is {top_k}; expected at least 1")
    candidates = max(qa.N_BEST, _CANDIDATES_PER_ANSWER * top_k)
    reading = model.read(question, [d.text for d in documents], n_best=candidates, threshold=threshold)
    distinct: list[Answer] = []
    for answer in reading.answers:
        if len(distinct) < top_k and not any(_overlap(answer, better) for better in distinct):
            distinct.append(answer)
    cited = tuple(_cite(answer, documents[answer.context]) for answer in distinct)
    if reading.best is None:
        return Found((), cited[0] if cited else None, reading.no_answer, reading.threshold)
    return Found(cited, None, reading.no_answer, reading.threshold)


def _overlap(a: Answer, b: Answer) -> bool:
    return a.context == b.context and a.start < b.end and b.start < a.end


def _cite(answer: Answer, document: Document) -> Citation:
    first, last = document.sentence(answer.start, answer.end)
    return Citation(
        text=answer.text,
        score=answer.score,
        document=document,
        start=answer.start,
        end=answer.end,
        line=document.line(answer.start),
        sentence=document.text[first:last],
        sentence_start=first,
    )
