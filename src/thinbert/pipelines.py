"""`pipeline("question-answering")`: a drop-in for the pipeline that transformers removed in 5.3, and
`pipeline("text-classification")`, the same as the one it still has.

Same arguments, defaults, results and errors as transformers 5.2.0 with a fast tokenizer; scores differ from
`thinbert.load(…).read(…)`, which compares windows with each other. In short, the rule of that pipeline: start and end
logits of each window are normalised over its context tokens and [CLS], a span scores p(start) * p(end), spans are
stretched to whole words, and the scores of spans with the same text, in whatever window, are added.

Two oddities are left out on purpose: where a text has fewer spans than `top_k`, transformers filled up with spans of
[CLS] that score 0.0; and a literal "[CLS]" in a question could be answered with.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import GeneratorType
from typing import Any, TypeVar

import numpy as np

from thinbert.api import Job, Model, load
from thinbert.errors import InputError, quoted
from thinbert.model.checkpoint import DEFAULT_MODEL, find_model, read_json
from thinbert.model.pack import is_packed
from thinbert.model.tokenizer import Tokens
from thinbert.model.weights import Array
from thinbert.tasks import classify, qa

T = TypeVar("T")
R = TypeVar("R")
Result = dict[str, Any]  # {"score": float, "start": int, "end": int, "answer": str}

# Arguments of transformers that change no result: windows are never padded, and computed in this process; questions are
# never cut (by fast tokenizers, whatever is documented). Truncation is an option of text classification alone.
WITHOUT_EFFECT = ("padding", "num_workers", "use_fast", "trust_remote_code", "max_question_len", "truncation")


def pipeline(
    task: str = "question-answering",
    model: str | os.PathLike[str] | Model | None = None,
    *,
    precision: str | None = None,
    threads: int | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    token: str | None = None,
    device: object = None,
    device_map: object = None,
    dtype: object = None,
    torch_dtype: object = None,
    framework: str | None = None,
    **defaults: Any,
) -> "QuestionAnsweringPipeline | TextClassificationPipeline":
    """A callable that answers questions or classifies texts; see QuestionAnsweringPipeline, TextClassificationPipeline.

    Args:
        task: "question-answering", "text-classification", or its other name "sentiment-analysis".
        model: folder, hub id or loaded Model; the bundled one when left out.
        precision, threads: as for thinbert.load, except that a portable model is computed in float32 unless told
            otherwise, so that it answers as transformers did; a packed one in int8.
        tokenizer: as for transformers; the model's own, so it may only repeat `model`.
        revision, token: of a hub id.
        device, device_map, dtype, torch_dtype, framework: as for transformers. Anything that asks for another place
            or arithmetic than float32 on the CPU is an error; "auto", and the framework, mean nothing here.
        defaults: options of the call (`top_k`, `doc_stride`, …), used where a call does not give them.
    Raises:
        InputError: another task, tokenizer, device or dtype; a classification task without a model.
        ModelError: the model cannot be read, or has no head for the task.
        TypeError: an option that does not exist.
    """
    kind = _PIPELINES.get(task)
    if kind is None:
        raise InputError(f"task {task!r}; thinbert has the pipelines {', '.join(_PIPELINES)}")
    for where in (device, device_map):
        if str(where).partition(":")[0] not in ("None", "-1", "cpu", "auto"):
            raise InputError(f"device {where!r}; thinbert runs on the CPU (leave device out, or give -1)")
    for number in (dtype, torch_dtype):
        if str(number).removeprefix("torch.") not in ("None", "auto", "float32"):
            raise InputError(f"dtype {number!r}; thinbert computes in float32 or int8 (see precision)")
    own = model.name if isinstance(model, Model) else DEFAULT_MODEL if model is None else os.fspath(model)
    if tokenizer is not None and not (isinstance(tokenizer, str | os.PathLike) and os.fspath(tokenizer) == own):
        raise InputError(f"tokenizer {quoted(tokenizer)} is not the model's; thinbert uses that of the model's folder")
    unknown = set(defaults) - {*kind.options, *WITHOUT_EFFECT}
    if unknown:
        raise TypeError(f"pipeline() got an unexpected keyword argument {sorted(unknown)[0]!r}")
    if isinstance(model, Model):
        given = {"precision": precision, "threads": threads, "revision": revision, "token": token}
        for option, value in given.items():
            if value is not None:
                raise InputError(f"{option} comes too late for a model that is loaded; give it to thinbert.load")
    else:
        if model is None and kind is TextClassificationPipeline:
            raise InputError(f"task {task!r} needs a model; the bundled one answers questions")
        if precision is None:
            folder = find_model(own, revision=revision, token=token)
            precision = "int8" if is_packed(read_json(folder / "config.json")) else "float32"
        model = load(own, precision=precision, threads=threads, revision=revision, token=token)
    return kind(model, **{k: v for k, v in defaults.items() if k in kind.options})


@dataclass(frozen=True)
class _Options:
    top_k: int = 1
    doc_stride: int | None = None
    max_answer_len: int = 15
    max_seq_len: int | None = None
    handle_impossible_answer: bool = False
    align_to_words: bool = True
    batch_size: int = 1


class QuestionAnsweringPipeline:
    """Answers questions over contexts, each answer as `{"score", "start", "end", "answer"}`, a slice of the context."""

    task = "question-answering"
    options = tuple(_Options.__dataclass_fields__)

    def __init__(self, model: Model, **defaults: Any) -> None:
        model.require_span_head()
        self.model = model
        self._defaults = defaults

    def __call__(
        self,
        *inputs: Any,
        question: str | list[str] | None = None,
        context: str | list[str] | None = None,
        top_k: int | None = None,
        doc_stride: int | None = None,
        max_answer_len: int | None = None,
        max_seq_len: int | None = None,
        max_question_len: int | None = None,
        handle_impossible_answer: bool | None = None,
        align_to_words: bool | None = None,
        padding: str | bool | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
    ) -> Any:
        """One result for one question, a list for several; with top_k > 1 each result is itself a list, best first.

        Args:
            inputs: a `{"question", "context"}` dict, a list of them, a generator or data set of them (then results come
                as a generator; the next item of a generator is asked for when the result of the one before was
                taken, or batch_size items at a time), or a question and a context.
            question, context: the same by keyword; lists pair up, and one context may serve a list of questions.
            top_k: answers to return; fewer where there are fewer, and one alone is not wrapped in a list.
            doc_stride: tokens that neighbouring windows of a long context share; 128, or half a window.
            max_answer_len: longest answer in tokens; 15.
            max_seq_len: tokens of a window; 384, or the limit of model or tokenizer.
            handle_impossible_answer: also offer the empty answer.
            align_to_words: stretch answers to whole words.
            batch_size: items of a generator that are computed together; 1. Those of lists and data sets always are.
            max_question_len, padding, num_workers: accepted for compatibility, without effect: questions are not cut
                (transformers documents 64, but its fast tokenizers never cut), and windows are never padded.
        Raises:
            KeyError: a dict lacks question or context.
            ValueError: one of them is None or empty, or an option is out of range.
        """
        given = {
            "top_k": top_k,
            "doc_stride": doc_stride,
            "max_answer_len": max_answer_len,
            "max_seq_len": max_seq_len,
            "handle_impossible_answer": handle_impossible_answer,
            "align_to_words": align_to_words,
            "batch_size": batch_size,
        }
        options = _Options(**{k: v for k, v in (*self._defaults.items(), *given.items()) if v is not None})
        if options.top_k < 1:
            raise InputError(f"top_k parameter should be >= 1 (got {options.top_k})")
        if options.max_answer_len < 1:
            raise InputError(f"max_answer_len parameter should be >= 1 (got {options.max_answer_len})")
        examples = _arguments(inputs, question, context)
        if isinstance(examples, Iterator):
            stream = map(_example, examples)
            return _in_turn(
                stream, lambda some: self._results(some, options), _look_ahead(inputs[0], options.batch_size)
            )
        results = list(self._results(examples, options))
        return results[0] if len(results) == 1 else results

    def _results(self, examples: Iterable[dict[str, str]], options: _Options) -> Iterator[Result | list[Result]]:
        """One result per example, in order; windows of neighbouring examples are computed together."""
        max_length, stride = self._window_size(options)
        tokenise = self.model.tokenizer
        waiting: list[_Merger] = []
        first = 0

        def jobs() -> Iterator[Job]:
            for number, example in enumerate(examples):
                waiting.append(_Merger(example["context"], options))
                question, context = tokenise(example["question"]), tokenise(example["context"])
                yield Job(number, 0, context, None)
                for window in self.model.windows(question, context, max_length=max_length, stride=stride):
                    yield Job(number, 0, context, window)

        for job, logits in self.model.run(jobs()):
            while first < job.question:
                yield waiting.pop(0).result()
                first += 1
            if job.window is not None:
                waiting[0].add(job.window, job.tokens, logits)
        for merger in waiting:
            yield merger.result()

    def _window_size(self, options: _Options) -> tuple[int, int]:
        if None not in (options.doc_stride, options.max_seq_len) and options.doc_stride > options.max_seq_len:  # type: ignore[operator]
            raise InputError(
                f"`doc_stride` ({options.doc_stride}) is larger than `max_seq_len` ({options.max_seq_len})"
            )
        longest = options.max_seq_len
        if longest is None and self.model.tokenizer.limit is not None:
            longest = min(qa.MAX_LENGTH, self.model.tokenizer.limit, self.model.config.positions)
        return self.model.window_size(longest, options.doc_stride)


class _Merger:
    """Candidates of one context, from all its windows."""

    def __init__(self, context: str, options: _Options) -> None:
        self._context = context
        self._options = options
        self._answers: list[Result] = []
        self._by_text: dict[str, Result] = {}
        self._null = 1.0  # smallest p(start = CLS) * p(end = CLS) of any window

    def add(self, window: qa.Window, tokens: Tokens, logits: Array) -> None:
        last = window.first + window.count
        # [CLS] takes part in the normalisation, and is then struck out
        readable = np.concatenate([logits[:1], logits[window.first : last]]).T.astype(np.float64, order="C")
        top = readable.max(axis=1, keepdims=True)
        log_norm = top[:, 0] + np.log(np.exp(readable - top).sum(axis=1))
        if self._options.handle_impossible_answer:
            self._null = min(self._null, float(np.exp((readable[:, 0] - log_norm).sum())))
        # some candidates merge once stretched to words, so more are taken than asked for
        k = self._options.top_k * 2 + 10 if self._options.align_to_words else self._options.top_k
        piece = logits[window.first : last]
        spans = qa.best_spans(piece[:, 0], piece[:, 1], k=k, max_tokens=self._options.max_answer_len)
        scores = np.exp(spans.scores - log_norm.sum())
        for first, final, score in zip(spans.starts.tolist(), spans.ends.tolist(), scores.tolist(), strict=True):
            start, end = self._place(tokens, window, window.offset + first, window.offset + final)
            text = self._context[start:end]
            known = self._by_text.get(text.lower())
            if known is not None:
                known["score"] += score
            else:
                self._by_text[text.lower()] = result = {"score": score, "start": start, "end": end, "answer": text}
                self._answers.append(result)

    def _place(self, tokens: Tokens, window: qa.Window, first: int, last: int) -> tuple[int, int]:
        """Characters of the span from token `first` to `last`, stretched to words as far as the window reaches."""
        if self._options.align_to_words:
            words, low, high = tokens.words, window.offset, window.offset + window.count - 1
            while first > low and words[first - 1] == words[first]:
                first -= 1
            while last < high and words[last + 1] == words[last]:
                last += 1
        return int(tokens.starts[first]), int(tokens.ends[last])

    def result(self) -> Result | list[Result]:
        answers = self._answers
        if self._options.handle_impossible_answer:
            answers = [*answers, {"score": self._null, "start": 0, "end": 0, "answer": ""}]
        if not answers:  # a context of nothing that is read
            return {"score": 0.0, "start": 0, "end": 0, "answer": ""}
        best = sorted(answers, key=lambda a: a["score"], reverse=True)[: self._options.top_k]
        return best[0] if len(best) == 1 else best


def _stream(inputs: Any) -> Iterator[Any] | None:
    """What gives its items one by one, and whose results come so too: a generator, or a data set, which has a length
    and items by their number (torch's, without torch). None for anything else."""
    if isinstance(inputs, GeneratorType):
        return inputs
    if isinstance(inputs, str | list | tuple | Mapping):
        return None
    if hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__"):
        return (inputs[i] for i in range(len(inputs)))
    return None


def _look_ahead(inputs: Any, batch_size: Any) -> int | None:
    """How many items of a stream are asked for before the first result: of a generator as many as are computed
    together, for what it gives next may depend on what was answered; of a data set (None) what suits the engine."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}; expected a number from 1")
    return batch_size if isinstance(inputs, GeneratorType) else None


def _in_turn(stream: Iterator[T], results: Callable[[Iterable[T]], Iterator[R]], look_ahead: int | None) -> Iterator[R]:
    """Results of a stream, so many items at a time."""
    if look_ahead is None:
        yield from results(stream)
    else:
        while some := list(itertools.islice(stream, look_ahead)):
            yield from results(some)


def _arguments(inputs: tuple[Any, ...], question: Any, context: Any) -> Any:
    """The examples in a call, checked; those of a stream unread."""
    if inputs:
        if len(inputs) == 2 and all(isinstance(i, str) for i in inputs):
            return [_example({"question": inputs[0], "context": inputs[1]})]
        examples = inputs[0] if len(inputs) == 1 else list(inputs)
    elif isinstance(question, list) and isinstance(context, str):
        examples = [{"question": q, "context": context} for q in question]
    elif isinstance(question, list) and isinstance(context, list):
        if len(question) != len(context):
            raise InputError("Questions and contexts don't have the same lengths")
        examples = [{"question": q, "context": c} for q, c in zip(question, context, strict=True)]
    elif question is not None or context is not None:
        examples = [{"question": question, "context": context}]
    else:
        raise InputError("no input: give question= and context=, or {'question': …, 'context': …}")
    if stream := _stream(examples):
        return stream
    if isinstance(examples, dict):
        examples = [examples]
    if isinstance(examples, str) or not isinstance(examples, Iterable):
        raise InputError(f"{examples!r} argument needs to be a dict of question and context, or a list of them")
    return [_example(e) for e in examples]


def _example(item: Any) -> dict[str, str]:
    if not isinstance(item, dict):
        raise InputError(f"{item!r} argument needs to be a dict of question and context")
    for key in ("question", "context"):
        if key not in item:
            raise KeyError("You need to provide a dictionary with keys {question:..., context:...}")
        if item[key] is None:
            raise InputError(f"`{key}` cannot be None")
        if not isinstance(item[key], str):
            raise InputError(f"`{key}` needs to be a string, not {type(item[key]).__name__}")
        if not item[key]:
            raise InputError(f"`{key}` cannot be empty")
    return {"question": item["question"], "context": item["context"]}


class TextClassificationPipeline:
    """Classifies texts or pairs of texts, each as `{"label", "score"}`."""

    task = "text-classification"
    options = ("top_k", "function_to_apply", "max_length", "truncation", "batch_size")

    def __init__(self, model: Model, **defaults: Any) -> None:
        model.require_class_head()
        self.model = model
        self._defaults = defaults

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Results in the shape of transformers: for a text a list of one, for a list a list, for a dict a dict; with
        top_k each result is itself a list, best first.

        Args:
            inputs: a text, a `{"text", "text_pair"}` dict, a list of either, or a generator or data set of them (then
                results come as a generator, as those of questions do).
            options: top_k: classes to return (None: all). function_to_apply: softmax, sigmoid or none; by default
                what the model's problem_type asks for, else softmax, or sigmoid for a model of one class. max_length:
                cut texts to so many tokens; by default they are cut where the model takes no more, with truncation
                (True, or "longest_first" of a pair) also at the tokenizer's limit. batch_size: items of a generator
                that are computed together.
        Raises:
            ValueError: inputs of another kind, or an option out of range.
            TypeError: an option that does not exist.
        """
        for name in options:
            if name not in {*self.options, *WITHOUT_EFFECT}:
                raise TypeError(f"__call__() got an unexpected keyword argument {name!r}")
        given = self._defaults | options
        stream, several = _stream(inputs), isinstance(inputs, list)
        limit = self._limit(given)

        def found(pairs: Iterable[tuple[str, str | None]]) -> Iterator[Any]:
            return (self._result(row, given) for row in classify.logits(self.model, pairs, max_length=limit))

        if stream:
            return _in_turn(map(_pair, stream), found, _look_ahead(inputs, given.get("batch_size") or 1))
        results = list(found(map(_pair, inputs if several else [inputs])))
        if several:
            return results
        return [results[0]] if isinstance(inputs, str) and "top_k" not in options else results[0]

    def _limit(self, options: dict[str, Any]) -> int:
        cut = options.get("truncation")
        if cut not in (None, True, False, "longest_first", "do_not_truncate"):
            raise InputError(f"truncation is {cut!r}; expected True, False or 'longest_first'")
        positions, told = self.model.config.positions, self.model.tokenizer.limit
        if cut in (True, "longest_first") and told is not None:
            positions = min(positions, told)
        return int(options.get("max_length") or positions)

    def _result(self, logits: Array, options: dict[str, Any]) -> Any:
        names = classify.class_names(self.model, len(logits))
        function = options.get("function_to_apply") or None
        function = function.lower() if isinstance(function, str) else function
        if function is not None and function not in classify.FUNCTIONS:
            raise InputError(f"function_to_apply is {function!r}; expected softmax, sigmoid or none")
        scores = classify.scores_of(self.model, logits, function)
        ranked = sorted(zip(names, scores.tolist(), strict=True), key=lambda pair: -pair[1])
        rows = [{"label": name, "score": value} for name, value in ranked]
        return rows[: options["top_k"]] if "top_k" in options else rows[0]


def _pair(item: Any) -> tuple[str, str | None]:
    text, pair = (item.get("text"), item.get("text_pair")) if isinstance(item, dict) else (item, None)
    if not isinstance(text, str) or not isinstance(pair, str | None):
        raise InputError(f"{item!r} argument needs to be a text, or a dict of text and text_pair")
    return text, pair or None  # an empty one is none, as in transformers


_PIPELINES: dict[str, type[QuestionAnsweringPipeline] | type[TextClassificationPipeline]] = {
    "question-answering": QuestionAnsweringPipeline,
    "text-classification": TextClassificationPipeline,
    "sentiment-analysis": TextClassificationPipeline,
}
