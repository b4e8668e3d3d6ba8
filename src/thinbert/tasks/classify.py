"""Sentence classification: texts to tokens, logits to classes, and the evaluation of a model on labelled data."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from thinbert.api import Model
from thinbert.errors import InputError
from thinbert.model.tokenizer import Tokenizer, Tokens
from thinbert.model.weights import Array, Ints
from thinbert.runtime.ahead import in_batches
from thinbert.tasks import glue

_log = logging.getLogger("thinbert")

MAX_LENGTH = 128  # tokens of a text or pair in GLUE, as the published models were trained and are evaluated
_IN_FLIGHT = 4096  # tokens at a time


def encode(tokenizer: Tokenizer, text: str, pair: str | None, *, max_length: int = MAX_LENGTH) -> tuple[Ints, Ints]:
    """[CLS] text [SEP], or [CLS] text [SEP] pair [SEP]: ids and types. Where they are too long, tokens go from the end
    of whichever is longer."""
    parts: list[Tokens] = [tokenizer(text)] + ([tokenizer(pair)] if pair is not None else [])
    room = max_length - 1 - len(parts)
    if room < len(parts):
        raise InputError(f"a window of {max_length} tokens has no room for {len(parts)} texts")
    kept = _fitting([len(p) for p in parts], room)
    ids, types = [tokenizer.cls], [0]
    for number, (part, n) in enumerate(zip(parts, kept, strict=True)):
        ids += [*part.ids[:n].tolist(), tokenizer.sep]
        types += [number] * (n + 1)
    return np.array(ids, np.int32), np.array(types, np.int32)


def _fitting(lengths: list[int], room: int) -> list[int]:
    """Tokens kept of one or two texts, as if taken one by one from whichever is longer; of an odd token, the text that
    was longer has it, the second of equals (as the tokenizers library does)."""
    over = sum(lengths) - room
    if over <= 0:
        return lengths
    if len(lengths) == 1:
        return [room]
    first, second = lengths
    apart = abs(first - second)
    if over <= apart:
        return [first - over, second] if first > second else [first, second - over]
    half = room // 2
    return [room - half, half] if first > second else [half, room - half]


def logits(model: Model, texts: Iterable[tuple[str, str | None]], *, max_length: int | None = None) -> Iterator[Array]:
    """Class logits [classes] of each text or pair, in order, a bounded number at a time. Texts are cut at `max_length`
    tokens, or where the model takes no more."""
    limit = min(max_length or model.config.positions, model.config.positions)
    encoded = (encode(model.tokenizer, text, pair, max_length=limit) for text, pair in texts)

    def compute(batch: list[tuple[Ints, Ints]]) -> Array:
        ids, types = (np.concatenate(column) for column in zip(*batch, strict=True))
        return model.classify(ids, types, [len(one) for one, _ in batch])

    for _, rows in in_batches(encoded, compute, size=lambda one: len(one[0]), limit=_IN_FLIGHT):
        yield from rows


def _softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    e = np.exp(values - values.max())
    return np.asarray(e / e.sum())


# What makes scores of logits, by the names that transformers has for it.
FUNCTIONS: Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "softmax": _softmax,
    "sigmoid": lambda values: 1 / (1 + np.exp(-values)),
    "none": lambda values: values,
}


def scores_of(model: Model, logits: Array, function: str | None = None) -> NDArray[np.float64]:
    """Scores of a text's classes: by one of FUNCTIONS, else as transformers chooses, by the model's problem_type and
    the number of classes."""
    if function is None:
        problem = model.config.problem
        several = problem == "multi_label_classification" or len(logits) == 1
        function = "none" if problem == "regression" else "sigmoid" if several else "softmax"
    return FUNCTIONS[function](logits.astype(np.float64))


def class_names(model: Model, count: int) -> tuple[str, ...]:
    """The model's names for its classes, or LABEL_0 … as transformers calls those without."""
    return model.config.labels if len(model.config.labels) == count else tuple(f"LABEL_{i}" for i in range(count))


def best_class(model: Model, logits: Array) -> tuple[str, float]:
    """The class of a text with the highest score, and that."""
    scores = scores_of(model, logits)
    best = int(scores.argmax())
    return class_names(model, len(scores))[best], float(scores[best])


def evaluate(
    model: Model,
    data: glue.Classified,
    *,
    limit: int | None = None,
    max_length: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, float], list[int]]:
    """Scores and predicted classes, in the task's numbers.

    A model that names its classes as the task does may have them in another order.

    Raises:
        InputError: the model has another number of classes.
    """
    examples: Sequence[glue.Example] = data.examples[:limit]
    order: list[int] | None = None
    predictions = []
    for example_logits in logits(model, ((e.text, e.pair) for e in examples), max_length=max_length or MAX_LENGTH):
        if order is None:
            if len(example_logits) != len(data.task.labels):
                theirs, ours = len(example_logits), len(data.task.labels)
                raise InputError(f"model {model.name} has {theirs} classes; {data.task.name} has {ours}")
            order = class_order(model.config.labels, data.task)
        predictions.append(order[int(example_logits.argmax())])
        progress(len(predictions), len(examples))
    return glue.score(data.task, [e.label for e in examples], predictions), predictions


def class_order(labels: Sequence[str], task: glue.Task) -> list[int]:
    """The task's class for each class of a model: by its names, where they are the task's, else as they come, which
    the log then says."""
    names = [name.lower() for name in labels]
    if sorted(names) == sorted(task.labels):
        return [task.labels.index(name) for name in names]
    theirs = f"are called {', '.join(labels)}" if labels else "have no names"
    _log.warning("the model's classes %s; they are taken as %s's %s", theirs, task.name, ", ".join(task.labels))
    return list(range(len(task.labels)))
