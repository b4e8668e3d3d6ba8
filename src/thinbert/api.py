"""The Python interface: `thinbert.load(model)` gives a Model that reads questions and texts."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from thinbert.errors import InputError, ModelError
from thinbert.model import reference
from thinbert.model.checkpoint import DEFAULT_MODEL, Checkpoint, read_checkpoint
from thinbert.model.config import EncoderConfig
from thinbert.model.tokenizer import Tokenizer, Tokens, read_tokenizer
from thinbert.model.weights import Array, Ints
from thinbert.runtime.ahead import in_batches
from thinbert.runtime.cache import packed
from thinbert.runtime.engine import Engine
from thinbert.tasks import qa
from thinbert.tasks.qa import Answer, Collector, Reading, Window

_log = logging.getLogger("thinbert")

__all__ = ["Answer", "Model", "Reading", "load"]

# Tokens computed together. Larger batches gain nothing once the products are compute-bound, and cost memory: what the
# engine keeps per token, and the 4 D floats of the reference's FFN.
_TOKENS_IN_FLIGHT = 2048

_ANNOUNCEMENT = 16  # tokens that a question's first job counts as, so that a stream of empty texts moves on
_NO_LOGITS: Array = np.zeros((0, 2), np.float32)


def load(
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    precision: str = "int8",
    threads: int | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> "Model":
    """Loads a model folder, a hub id, or the bundled model.

    Args:
        precision: "int8", the engine; a model that is not packed is packed first, once, into the user's cache. Or
            "float32", the NumPy reference: slow, exact, for any head size.
        threads: of the engine; THINBERT_THREADS, or the cores this process may use.
        revision, token: of a hub id.
    Raises:
        ModelError: see thinbert.model.checkpoint.read_checkpoint.
        InputError: another precision, or threads or an instruction set that cannot be had.
    """
    if precision not in ("int8", "float32"):
        raise InputError(f"precision {precision!r}; thinbert computes in int8 or float32")
    if precision == "float32" and threads is not None:
        raise InputError(
            "threads are the engine's; float32 is computed by NumPy, whose OPENBLAS_NUM_THREADS says how many"
        )
    checkpoint = read_checkpoint(model, revision=revision, token=token)
    tokenizer = read_tokenizer(checkpoint.folder, vocabulary=checkpoint.config.vocabulary)
    if precision == "float32":
        return Model(checkpoint, tokenizer, Reference(checkpoint))
    return Model(checkpoint, tokenizer, Engine(packed(checkpoint), threads=threads))


class Runtime(Protocol):
    """What computes: the native engine, or the reference. Arguments as in Model.forward."""

    def span_logits(self, token_ids: Ints, token_types: Ints, lengths: Sequence[int]) -> Array: ...
    def class_logits(self, token_ids: Ints, token_types: Ints, lengths: Sequence[int]) -> Array: ...


class Reference:
    """The NumPy reference as a runtime."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._config, self._weights = checkpoint.config, checkpoint.weights()

    def hidden(
        self, token_ids: Ints, token_types: Ints, lengths: Sequence[int], *, trace: list[Array] | None = None
    ) -> Array:
        """Hidden states [T, D]; the embedding output and each layer's output are appended to `trace`."""
        with np.errstate(all="ignore"):  # what is not finite is reported where it is used
            hidden: Array = reference.encode(self._weights, self._config, token_ids, token_types, lengths, trace=trace)
        return hidden

    def span_logits(self, token_ids: Ints, token_types: Ints, lengths: Sequence[int]) -> Array:
        assert self._weights.span is not None
        return reference.span_logits(self._weights.span, self.hidden(token_ids, token_types, lengths))

    def class_logits(self, token_ids: Ints, token_types: Ints, lengths: Sequence[int]) -> Array:
        assert self._weights.classify is not None
        hidden = self.hidden(token_ids, token_types, lengths)
        with np.errstate(all="ignore"):
            logits: Array = reference.class_logits(self._weights.classify, hidden[np.cumsum([0, *lengths[:-1]])])
        return logits


@dataclass(frozen=True)
class Job:
    """One window of one question on its way through the encoder."""

    question: int
    context: int
    tokens: Tokens  # of the context
    window: Window | None  # None announces a question, so that one without any window is answered in its turn too


class Model:
    """An encoder with its tokenizer and task heads. Reading does not change it: several threads may share one."""

    def __init__(self, checkpoint: Checkpoint, tokenizer: Tokenizer, runtime: Runtime) -> None:
        self.name = checkpoint.name
        self.config: EncoderConfig = checkpoint.config
        self.tokenizer = tokenizer
        self.runtime = runtime
        # what it is, without its weights: the runtime has those that it needs
        self._checkpoint = replace(checkpoint, tensors={}, ignored=dict.fromkeys(checkpoint.ignored, np.zeros(0)))

    def __repr__(self) -> str:
        c = self.config
        return f"<thinbert.Model {self.name}: {c.family}, {c.layers} layers of width {c.width}>"

    @property
    def sha256(self) -> str:
        """Identity of configuration, weights and tokenizer."""
        return self._checkpoint.sha256

    @property
    def answers(self) -> bool:
        """Whether it has a question-answering head."""
        return self._checkpoint.has_span

    def forward(self, token_ids: Ints, token_types: Ints, lengths: Sequence[int]) -> Array:
        """Logits of ragged sequences that stand one after another: [T, 2] for question answering.

        Args:
            token_ids, token_types: [T].
            lengths: tokens of each sequence, special tokens included.
        Raises:
            ModelError: the model has no question-answering head.
            InputError: these are no sequences of this model.
        """
        self.require_span_head()
        return self.runtime.span_logits(*self._checked(token_ids, token_types, lengths))

    def classify(self, token_ids: Ints, token_types: Ints, lengths: Sequence[int]) -> Array:
        """Class logits [B, classes] of ragged sequences, arguments as in `forward`."""
        self.require_class_head()
        return self._finite(self.runtime.class_logits(*self._checked(token_ids, token_types, lengths)))

    def answer(self, question: str, context: str) -> Answer | None:
        """The answer to one question in one text, or None where the model says there is none."""
        return self.read(question, [context]).best

    def read(
        self,
        question: str,
        contexts: Sequence[str],
        *,
        n_best: int = qa.N_BEST,
        max_answer_tokens: int = qa.MAX_ANSWER_TOKENS,
        max_length: int | None = None,
        stride: int | None = None,
        threshold: float | None = None,
    ) -> Reading:
        """The best answers to one question over one or more texts, and the probability that they hold none. Of a
        question, 128 tokens are read; fewer where a window has no room for so many and the text.

        Args:
            n_best: how many answers to keep.
            max_answer_tokens: longest answer, in tokens.
            max_length: tokens of a window; 384, or fewer where the model has fewer positions.
            stride: tokens that neighbouring windows share; 128, or half a window.
            threshold: no-answer probability above which `Reading.best` is None; the model's own, or 1 (always answer)
                for a model that was never calibrated to refuse.
        """
        readings = self.read_many(
            [(question, contexts)],
            n_best=n_best,
            max_answer_tokens=max_answer_tokens,
            max_length=max_length,
            stride=stride,
            threshold=threshold,
        )
        return next(readings)

    def read_many(
        self,
        pairs: Iterable[tuple[str, Sequence[str]]],
        *,
        n_best: int = qa.N_BEST,
        max_answer_tokens: int = qa.MAX_ANSWER_TOKENS,
        max_length: int | None = None,
        stride: int | None = None,
        threshold: float | None = None,
    ) -> Iterator[Reading]:
        """`read` for a stream of questions, in order: windows of neighbouring questions are computed together.

        Nothing is held but the questions whose windows are in flight, so the stream may be endless. Arguments as in
        `read`.
        """
        if n_best < 1 or max_answer_tokens < 1:
            raise InputError(f"n_best is {n_best} and max_answer_tokens {max_answer_tokens}; both must be at least 1")
        max_length, stride = self.window_size(max_length, stride)
        if threshold is None:
            threshold = self.config.no_answer_threshold
        limit = 1.0 if threshold is None else threshold
        if not 0 <= limit <= 1:
            raise InputError(f"threshold is {threshold}; expected a probability from 0 to 1")
        waiting: list[tuple[Collector, list[str]]] = []  # questions given out and not yet closed, in order
        first = 0  # number of the question waiting[0]

        def jobs() -> Iterator[Job]:
            for number, (question, contexts) in enumerate(pairs):
                if isinstance(contexts, str):
                    raise InputError("contexts is one string; give a list of texts, or use Model.answer")
                texts = list(contexts)
                for name, value in (("question", question), *(("context", text) for text in texts)):
                    if not isinstance(value, str):
                        raise InputError(f"{name} is {type(value).__name__}; expected text")
                waiting.append((Collector(n_best, max_answer_tokens, limit, self.config.no_answer_calibration), texts))
                asked = self.tokenizer(question)
                if len(asked) > qa.MAX_QUESTION_TOKENS:
                    _log.warning("a question of %d tokens is cut to %d", len(asked), qa.MAX_QUESTION_TOKENS)
                    asked = asked.cut(qa.MAX_QUESTION_TOKENS)
                yield Job(number, 0, asked, None)
                for i, context in enumerate(texts):
                    tokens = self.tokenizer(context)
                    fitting = qa.fitting(asked, tokens, max_length=max_length, stride=stride)
                    if len(fitting) < len(asked):  # which windows of 384 never ask for
                        _log.warning("a question of %d tokens is cut to %d for its text", len(asked), len(fitting))
                    for window in self.windows(fitting, tokens, max_length=max_length, stride=stride):
                        yield Job(number, i, tokens, window)

        for job, logits in self.run(jobs()):
            while first < job.question:  # windows come back in order, so earlier questions are complete
                yield waiting[0][0].close(waiting[0][1])
                del waiting[0]
                first += 1
            if job.window is not None:
                waiting[0][0].add(logits, job.window, job.tokens, job.context)
        for collector, contexts in waiting:
            yield collector.close(contexts)

    def window_size(self, max_length: int | None, stride: int | None) -> tuple[int, int]:
        """Window length and stride with defaults filled in and checked against the model."""
        if max_length is None:
            max_length = min(qa.MAX_LENGTH, self.config.positions)
        if not 8 <= max_length <= self.config.positions:
            raise InputError(
                f"windows of {max_length} tokens; model {self.name} takes from 8 to {self.config.positions}"
            )
        if stride is None:
            stride = qa.default_stride(max_length)
        if not 0 <= stride < max_length:
            raise InputError(f"a stride of {stride} tokens; expected from 0 to less than the window's {max_length}")
        return max_length, stride

    def windows(self, question: Tokens, context: Tokens, *, max_length: int, stride: int) -> Iterator[Window]:
        """The windows of one tokenised context, with this model's special tokens."""
        special = {"cls": self.tokenizer.cls, "sep": self.tokenizer.sep}
        return qa.windows(question, context, max_length=max_length, stride=stride, **special)

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Array]]:
        """Each job with the logits [L, 2] of its window, in order, a bounded number of tokens at a time."""

        def tokens(job: Job) -> int:
            return len(job.window.ids) if job.window else _ANNOUNCEMENT

        for batch, logits in in_batches(jobs, self._logits, size=tokens, limit=_TOKENS_IN_FLIGHT):
            at = 0
            for job in batch:
                length = len(job.window.ids) if job.window else 0
                yield job, logits[at : at + length]
                at += length

    def _logits(self, batch: list[Job]) -> Array:
        windows = [job.window for job in batch if job.window]
        if not windows:
            return _NO_LOGITS
        ids, types = np.concatenate([w.ids for w in windows]), np.concatenate([w.types for w in windows])
        return self._finite(self.forward(ids, types, [len(w.ids) for w in windows]))

    def _checked(self, token_ids: Ints, token_types: Ints, lengths: Sequence[int]) -> tuple[Ints, Ints, Sequence[int]]:
        """The arguments of `forward`, as the runtimes take them."""
        ids, types, sizes = (np.asarray(a) for a in (token_ids, token_types, lengths))
        for name, a in (("token ids", ids), ("token types", types), ("lengths", sizes)):
            if a.ndim != 1 or a.size == 0 or a.dtype.kind not in "iu":
                raise InputError(f"{name} are {a.dtype} {list(a.shape)}; expected whole numbers in one dimension")
        if not len(ids) == len(types) == sizes.sum():
            raise InputError(
                f"{len(ids)} token ids and {len(types)} token types for lengths that sum to {sizes.sum()}; "
                "expected as many of each"
            )
        c = self.config
        bounds = [("token id", ids, 0, c.vocabulary - 1), ("length", sizes, 1, c.positions)]
        if c.token_types:  # a family without them reads none
            bounds.append(("token type", types, 0, c.token_types - 1))
        for name, a, least, most in bounds:
            if a.min() < least or a.max() > most:
                wrong = a[(a < least) | (a > most)][0]
                raise InputError(f"{name} {wrong}; model {self.name} takes from {least} to {most}")
        return ids.astype(np.int32, copy=False), types.astype(np.int32, copy=False), sizes.tolist()

    def _finite(self, logits: Array) -> Array:
        if not np.isfinite(logits).all():
            raise ModelError(f"model {self.name} computes NaN or infinity; its weights are damaged or out of range")
        return logits

    def require_class_head(self) -> None:
        """Raises ModelError, saying what the model is instead, where it has no classification head."""
        if not self._checkpoint.has_classify:
            raise ModelError(
                f"model {self.name} cannot classify: it holds {self._holds()}. Fine-tune it on labelled texts"
            )

    def require_span_head(self) -> None:
        """Raises ModelError, saying what the model is instead, where it has no question-answering head."""
        if not self._checkpoint.has_span:
            raise ModelError(
                f"model {self.name} cannot answer questions: it holds {self._holds()}. Fine-tune it on "
                f"question-answering data first, or use a model that was, such as the bundled one ({DEFAULT_MODEL})"
            )

    def _holds(self) -> str:
        if self._checkpoint.has_span:
            return "a question-answering head"
        if self._checkpoint.has_classify:
            return "a classification head"
        if any(name.startswith(("cls.predictions", "vocab_projector")) for name in self._checkpoint.ignored):
            return "a masked-language-model head (it is a pre-trained encoder)"
        return "an encoder without a head"
