"""Extractive question answering: contexts to windows, logits to spans, spans to answers with place and probability.

The one span decoder of the project. `thinbert.api`, `thinbert.pipelines`, evaluation and `ask` all decode here.
"""

import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from thinbert.errors import InputError
from thinbert.model.tokenizer import Tokens
from thinbert.model.weights import Array, Ints

MAX_LENGTH = 384  # tokens of a window, and
STRIDE = 128  # tokens two neighbouring windows share: both as in BERT's SQuAD script
MAX_ANSWER_TOKENS = 30
MAX_QUESTION_TOKENS = 128  # longer ones are cut, so that windows have room for the text
N_BEST = 20


@dataclass(frozen=True)
class Window:
    """[CLS] question [SEP] piece of the context [SEP], as the model reads it."""

    ids: Ints  # [L]
    types: Ints  # [L] 0 for the question part, 1 for the context part
    first: int  # where the context piece begins in the window
    offset: int  # number of the piece's first token among the context's tokens
    count: int  # n, tokens of the piece


def default_stride(max_length: int) -> int:
    return min(max_length // 2, STRIDE)


def fitting(question: Tokens, context: Tokens, *, max_length: int, stride: int) -> Tokens:
    """A question, cut where windows over the context would move on past it by less than a quarter of what they do not
    share: by a token at a time, a long text takes as many windows as it has tokens."""
    if len(question) + len(context) + 3 <= max_length:
        return question
    step = max(1, (max_length - stride) // 4)
    return question.cut(max(1, max_length - 3 - stride - step))


def windows(question: Tokens, context: Tokens, *, max_length: int, stride: int, cls: int, sep: int) -> Iterator[Window]:
    """Windows of at most `max_length` tokens over a context, each sharing `stride` tokens with the one before.

    A context without tokens has no windows.

    Raises:
        InputError: the question leaves no room to move on by at least one token.
    """
    room = max_length - len(question) - 3
    if len(context) > room and room <= stride:
        raise InputError(
            f"a question of {len(question)} tokens leaves {room} of {max_length} for the text, not more than the "
            f"stride of {stride}; shorten the question, lower the stride or raise the window length"
        )
    first = len(question) + 2
    offset = 0
    while offset < len(context):
        piece = context.ids[offset : offset + room]
        ids = np.concatenate([[cls], question.ids, [sep], piece, [sep]]).astype(np.int32)
        types = np.zeros(len(ids), np.int32)
        types[first:] = 1
        yield Window(ids, types, first, offset, len(piece))
        if offset + room >= len(context):
            return
        offset += room - stride


@dataclass(frozen=True)
class Spans:
    """The best spans of a piece of n tokens, best first."""

    starts: NDArray[np.intp]  # [k] first token of each span
    ends: NDArray[np.intp]  # [k] last token of each span
    scores: NDArray[np.float64]  # [k] start logit + end logit
    log_total: float  # log of the sum over all valid spans of exp(score)
    band: NDArray[np.float64]  # [n, m] score of the span from token i to token i + j, -inf past the piece


def best_spans(start: Array, end: Array, *, k: int, max_tokens: int) -> Spans:
    """The k spans with the highest start + end logit, exactly: every start is tried with every end that may follow it.

    (BERT's script tries the 20 best starts with the 20 best ends, which misses spans when these do not pair up.)

    Args:
        start, end: [n] logits of the tokens that may belong to an answer, n >= 1.
        max_tokens: longest span, in tokens.
    """
    n, m = len(start), min(max_tokens, len(start))
    reach = np.concatenate([end, np.full(m - 1, -np.inf, end.dtype)])
    band = start[:, None].astype(np.float64) + np.lib.stride_tricks.sliding_window_view(reach, m)
    flat = band.reshape(-1)
    k = min(k, n * m - m * (m - 1) // 2)  # valid spans: the band less the corner past the last token
    # of equal scores the earlier start, then the shorter span: position order, kept by the stable sort, also among the
    # equals of the k-th score, of which only the first have a place
    kth = np.partition(flat, flat.size - k)[flat.size - k]
    above = np.flatnonzero(flat > kth)
    kept = np.concatenate([above, np.flatnonzero(flat == kth)[: k - len(above)]])
    order = kept[np.argsort(-flat[kept], kind="stable")]
    top = flat[order[0]]
    log_total = top + math.log(np.exp(flat - top).sum())
    starts, lengths = np.divmod(order, m)
    return Spans(starts, starts + lengths, flat[order], float(log_total), band)


@dataclass(frozen=True)
class Answer:
    """A verbatim piece of a context: `context[start:end] == text`, always."""

    text: str
    start: int  # first character, in code points
    end: int  # character after the last
    score: float  # probability that this is the answer (see Reading)
    context: int = 0  # which of the given contexts it stands in


@dataclass(frozen=True)
class Reading:
    """What the model made of one question over one or more contexts.

    Probabilities are the model's own, over every valid span of every window: a span's share of the answer mass is
    exp(score) / sum of exp(score), and its `score` is that share times 1 - no_answer, so that all of them and no_answer
    sum to one. Windows overlap: a span that several of them hold is one, with the best of its scores.

    `no_answer` compares, inside one window, the null span ([CLS] to [CLS]) with all valid spans; the window surest
    that it holds an answer decides. Comparing inside a window avoids the bias of taking the smallest null score and
    the best span from different windows, which grows with the length of the text. Its log odds are mapped by the slope
    and offset that the model was calibrated with, where it was (see tasks/calibration.py).
    """

    answers: tuple[Answer, ...]  # best first; no two are the same place
    no_answer: float  # probability that the contexts hold no answer
    threshold: float  # above which no_answer means: do not answer

    @property
    def best(self) -> Answer | None:
        """The answer, or None where the model says there is none."""
        return self.answers[0] if self.answers and self.no_answer <= self.threshold else None


@dataclass
class Collector:
    """Gathers the windows of one question, context by context in their order, and closes them to a Reading. Holds k
    spans per window, and all of the last one."""

    n_best: int
    max_tokens: int
    threshold: float
    calibration: tuple[float, float] = (1.0, 0.0)
    # (context, first token, last token) -> score, and the place: first character, the one after the last, and whether
    # the next token begins there
    _spans: dict[tuple[int, int, int], tuple[float, tuple[int, int, bool]]] = field(default_factory=dict)
    _log_total: float = -math.inf
    _log_null_odds: float = math.inf
    # of the last window: its context, its offset, and the best scores that its spans have had in any window
    _last: tuple[int, int, NDArray[np.float64]] | None = None

    def add(self, logits: Array, window: Window, tokens: Tokens, context: int) -> None:
        """One window's logits [L, 2] over context number `context`, whose tokens are `tokens`."""
        piece = logits[window.first : window.first + window.count]
        spans = best_spans(piece[:, 0], piece[:, 1], k=self.n_best, max_tokens=self.max_tokens)
        first, last = window.offset + spans.starts, window.offset + spans.ends
        starts, ends = tokens.starts[first], tokens.ends[last]
        follows = tokens.starts[np.minimum(last + 1, len(tokens) - 1)] == ends
        places = zip(starts.tolist(), ends.tolist(), follows.tolist(), strict=True)
        for i, j, score, place in zip(first.tolist(), last.tolist(), spans.scores.tolist(), places, strict=True):
            known = self._spans.get((context, i, j))
            if known is None or score > known[0]:
                self._spans[context, i, j] = score, place
        self._log_total = float(np.logaddexp(self._log_total, self._new_mass(spans, window.offset, context)))
        null = float(logits[0, 0]) + float(logits[0, 1])
        self._log_null_odds = min(self._log_null_odds, null - spans.log_total)

    def _new_mass(self, spans: Spans, offset: int, context: int) -> float:
        """The log of what a window's spans add to the sum: those that windows before it held only where they are
        better here."""
        band, log_mass = spans.band, spans.log_total
        if self._last is not None and self._last[0] == context:
            before = self._last[2][offset - self._last[1] :, : band.shape[1]]  # what begins in both
            here = band[: len(before), : before.shape[1]]
            known = np.minimum(here, before)
            top = spans.scores[0]
            mass = math.exp(log_mass - top) - np.exp(known - top).sum()
            log_mass = top + math.log(mass) if mass > 0 else -math.inf
            band = band.copy()
            band[: len(before), : before.shape[1]] = np.maximum(here, before)
        self._last = (context, offset, band)
        return float(log_mass)

    def close(self, contexts: list[str]) -> Reading:
        if not self._spans:
            return Reading((), 1.0, self.threshold)
        slope, offset = self.calibration
        no_answer = _sigmoid(slope * self._log_null_odds + offset)
        # several spans are one place where a character is several tokens
        shares: dict[tuple[int, int, int], float] = {}
        for (context, _, _), (score, (start, end, followed)) in self._spans.items():
            place = (context, start, end if followed else _with_marks(contexts[context], end))
            shares[place] = shares.get(place, 0.0) + math.exp(score - self._log_total)
        ranked = sorted(shares.items(), key=lambda item: (-item[1], item[0]))[: self.n_best]
        answers = tuple(
            Answer(contexts[context][start:end], start, end, share * (1 - no_answer), context)
            for (context, start, end), share in ranked
        )
        return Reading(answers, no_answer, self.threshold)


def _with_marks(text: str, end: int) -> int:
    """Where a character ends: after its accents and vowel signs, which a tokenizer that strips them leaves out."""
    while end < len(text) and unicodedata.category(text[end]) == "Mn":
        end += 1
    return end


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
