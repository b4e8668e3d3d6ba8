"""How good a model is: written folders measured in the engine, at a stage's end and on the way; calibration."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import thinbert
from thinbert.compress import data, pretrain, sources
from thinbert.compress.encoder import Encoder
from thinbert.compress.recipe import SPAN_TASKS, Place, Stage
from thinbert.compress.text import spread
from thinbert.files import write_atomic
from thinbert.model.checkpoint import Checkpoint, read_checkpoint, read_json
from thinbert.model.pack import pack
from thinbert.model.tokenizer import Tokenizer
from thinbert.tasks import calibration, classify, glue
from thinbert.tasks.evaluate import THRESHOLD, score, threshold_of
from thinbert.tasks.qa import Reading
from thinbert.tasks.squad import Dataset, Question, read_squad

_FLOAT_EXAMPLES = 300  # the reference is slow
_DEV_EXAMPLES = 2000  # at a stage's end, at the scales below full
_QUICK_EXAMPLES = 1000  # on the way
_SUREST = 30.0  # log odds that count when a probability is fitted: one that is certain must not weigh like many
WORK = "evaluating"  # in a stage's folder: forms of a model that are measured and go
_HELD_DOCUMENTS, _HELD_BATCHES, _HELD_TOKENS = 200, 20, 8192  # of masked-language-model losses

Scores = dict[str, float]


def of_folders(place: Place, stage: Stage, portable: Checkpoint, packed: Path) -> Scores:
    """Scores of the written folders: the packed one on all data, the portable one in float32 on its first examples."""
    int8, exact = thinbert.load(str(packed)), thinbert.load(str(portable.folder), precision="float32")
    limit = None if place.scale == "full" else _DEV_EXAMPLES
    scores: Scores = {}
    for prefix, path in sources.measured(place, stage).items():
        scores |= {prefix + name: value for name, value in measure(int8, stage, path, limit).items()}
        if not prefix:
            main = "f1" if stage.task in SPAN_TASKS else "accuracy"
            few = [measure(model, stage, path, _FLOAT_EXAMPLES)[main] for model in (int8, exact)]
            scores[f"int8_less_float_{main}"] = few[0] - few[1]
    return scores


def measure(model: thinbert.Model, stage: Stage, path: Path, limit: int | None) -> Scores:
    """Scores over the first examples of a file."""
    if stage.task in SPAN_TASKS:
        dataset = read_squad(path)
        return squad_scores(dataset, _read(model, stage, dataset.questions[:limit]), threshold_of(model))
    labelled = glue.read_glue(path, glue.TASKS[stage.task])
    return classify.evaluate(model, labelled, limit=limit, max_length=stage.max_length)[0]


def squad_scores(dataset: Dataset, readings: list[Reading], threshold: float = THRESHOLD) -> Scores:
    """Scores of what was read for the first questions of a data set, by the rules of its kind."""
    questions = dataset.questions[: len(readings)]
    texts = {q.id: r.answers[0].text if r.answers else "" for q, r in zip(questions, readings, strict=True)}
    no_answer = {q.id: r.no_answer for q, r in zip(questions, readings, strict=True)}
    scores, _ = score(dataset, texts, no_answer, threshold=threshold)
    return {name: float(value) for name, value in scores.items() if isinstance(value, int | float)}


def _read(model: thinbert.Model, stage: Stage, questions: Sequence[Question]) -> list[Reading]:
    """In windows as the stage was trained with."""
    asked = ((q.question, [q.context]) for q in questions)
    max_length, stride = sources.window_size(stage, model.config.positions)
    return list(model.read_many(asked, max_length=max_length, stride=stride))


@contextmanager
def _engine(portable: Checkpoint, work: Path) -> Iterator[thinbert.Model]:
    """A portable model in the engine, packed in `work` for as long as it is needed: the user's cache is not for what
    passes."""
    shutil.rmtree(work, ignore_errors=True)  # what a process that was killed had left
    try:
        pack(portable, work)
        yield thinbert.load(str(work))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def calibrate(place: Place, stage: Stage, portable: Path) -> Scores:
    """Fits the no-answer probability of a written model on the held-out articles: its slope and offset go into the
    model's configuration, with the threshold of the best F1 there. Scores are of the fitted probability, on the
    articles it was fitted to: three numbers to thousands of questions.

    The engine in int8 is what is fitted: it is what will be asked. Nothing is written where the model's odds say
    nothing, or the wrong way round.
    """
    questions = sources.held_out(place, stage)
    truth = [not q.answers for q in questions]
    if not questions or all(truth) or not any(truth):
        place.say(f"{stage.name}: no answerable and unanswerable questions held out; the model is not calibrated")
        return {}
    with _engine(read_checkpoint(portable), portable.with_name(WORK)) as model:
        readings = _read(model, stage, questions)
    odds = calibration.log_odds([r.no_answer for r in readings]).clip(-_SUREST, _SUREST)
    slope, offset = calibration.fit(odds, truth)
    if slope <= 0:
        place.say(f"{stage.name}: the odds of no answer say nothing on held-out articles; the model is not calibrated")
        return {}
    fitted = [1 / (1 + math.exp(-(slope * x + offset))) for x in odds]
    dataset = Dataset(tuple(questions), may_be_unanswerable=True, sha256="")
    texts = {q.id: r.answers[0].text if r.answers else "" for q, r in zip(questions, readings, strict=True)}
    scores, _ = score(dataset, texts, {q.id: p for q, p in zip(questions, fitted, strict=True)})
    config = read_json(portable / "config.json")
    own = {"no_answer_threshold": scores["best_f1_thresh"], "no_answer_calibration": [slope, offset]}
    config["thinbert"] = config.get("thinbert", {}) | own
    write_atomic(portable / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    return {
        "held_out_f1": scores["best_f1"],
        "held_out_auroc": scores["no_answer_auroc"],
        "held_out_calibration_error": calibration.calibration_error(fitted, truth),
        "no_answer_threshold": scores["best_f1_thresh"],
    }


def on_the_way(place: Place, stage: Stage, write: Callable[[Path], Checkpoint], work: Path) -> Callable[[], Scores]:
    """Scores of a model in training, as it would be if it ended now: written to `work`, loaded in int8, and measured on
    the first questions of the data it is measured with at the end."""
    path = sources.measured(place, stage)[""]

    def scores() -> Scores:
        try:
            with _engine(write(work / "model"), work / "packed") as engine:
                found = measure(engine, stage, path, _QUICK_EXAMPLES)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return {f"dev_{name}": round(found[name], 3) for name in ("exact", "f1", "accuracy") if name in found}

    return scores


def of_language_model(
    place: Place, stage: Stage, objective: pretrain.PretrainLoss, tokenizer: Tokenizer
) -> Callable[[Encoder], Scores]:
    """A model's loss and accuracy of guessing masked tokens in documents held out, masked the same way each time."""
    documents, _, held = sources.corpus(place, stage, tokenizer)
    # evenly from all of the corpus, whose files may be of different kinds
    some = spread(held, min(1.0, _HELD_DOCUMENTS / len(held)))
    max_length = min(stage.max_length, objective.model.config.positions)
    features = pretrain.pairs(documents, some, tokenizer, max_length=max_length, seed=1, folder=None)
    batches = data.order(features.lengths, tokens=_HELD_TOKENS, passes=1.0, seed=0)[:_HELD_BATCHES]
    return lambda model: pretrain.held_out_loss(model, objective, (data.batch(features, b) for b in batches))


def summary(of_seeds: Sequence[Mapping[str, float]]) -> dict[str, float | list[float]]:
    """The mean of each score over seeds, and its range where there is more than one. What one of them lacks, such as a
    calibration that failed, is left out."""
    found: dict[str, float | list[float]] = {}
    for name in (name for name in of_seeds[0] if all(name in s for s in of_seeds)):
        values = [s[name] for s in of_seeds]
        found[name] = sum(values) / len(values)
        if len(values) > 1:
            found[f"{name}_range"] = [min(values), max(values)]
    return found
