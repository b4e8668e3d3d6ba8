"""Carries a recipe out, stage by stage: data, teacher, training, export, scores. Every part of it resumes.

OUT/recipe.json          the recipe as it was read, and its scale
OUT/seed-N/STAGE/        the stage's run (see compress/train.py), and in it
    model/               the portable folder, packed/ its packed form, scores.json their scores
OUT/cache/               what teachers said, by teacher and data
"""

import hashlib
import json
import platform
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

import thinbert
from thinbert.compress import data, pretrain
from thinbert.compress.data import Features
from thinbert.compress.encoder import Encoder, from_checkpoint
from thinbert.compress.export import write_portable
from thinbert.compress.objectives import ClassLoss, Distillation, SpanLoss
from thinbert.compress.recipe import SPAN_TASKS, Recipe, Stage
from thinbert.compress.schedule import PruneSchedule
from thinbert.compress.train import Objective, Pruning, Report, Settings, pick_threads, time_steps, train
from thinbert.errors import InputError
from thinbert.model.checkpoint import Checkpoint, read_checkpoint, write_atomic
from thinbert.model.pack import pack
from thinbert.model.tokenizer import Tokenizer, read_tokenizer
from thinbert.tasks import classify, glue
from thinbert.tasks.evaluate import score
from thinbert.tasks.qa import Reading
from thinbert.tasks.squad import Dataset, Question, read_packed, read_squad

# Files of each task in the data folder, the first that is there (also packed): to train on, and to measure with.
FILES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "squad1": (("squad-train-v1.1.json", "train-v1.1.json"), ("squad-dev-v1.1.json", "dev-v1.1.json")),
    # without its own training set, that of 1.1: a stage's `unanswerable` says how many pairs are made from it
    "squad2": (
        ("squad-train-v2.0.json", "train-v2.0.json", "squad-train-v1.1.json", "train-v1.1.json"),
        ("squad-dev-v2.0.json", "dev-v2.0.json"),
    ),
    "sst2": (("sst2-train.tsv",), ("sst2-dev.tsv",)),
    "mnli": (("mnli-train.tsv",), ("mnli-dev_matched.tsv",)),
    "qqp": (("qqp-train.tsv",), ("qqp-dev.tsv", "qqp-wang_dev.tsv")),
    # without its own training set, pairs made from SQuAD 1.1
    "qnli": (("qnli-train.tsv", "squad-train-v1.1.json", "train-v1.1.json"), ("qnli-dev.tsv",)),
}
_PACKED = ("", ".xz", ".gz")
_FLOAT_EXAMPLES = 300  # the reference is slow
_DEV_QUESTIONS = 2000  # of the evaluation at a stage's end at the scales below full


@dataclass(frozen=True)
class Place:
    """Where a recipe is carried out."""

    recipe: Recipe
    scale: str
    data: Path
    out: Path
    say: Callable[[str], None]
    report: Callable[[str], Report]  # a stage's name -> what to call with each line of its log


def run(place: Place) -> dict[str, Any]:
    """All stages for all seeds; returns their scores, as written to OUT/scores.json.

    Raises:
        InputError: data or models are missing, or OUT holds another recipe.
        TrainError: see compress.train.
    """
    pick_threads()
    place.out.mkdir(parents=True, exist_ok=True)
    described = json.dumps({"scale": place.scale, **place.recipe.model_dump(mode="json")}, indent=1) + "\n"
    known = place.out / "recipe.json"
    if known.exists() and known.read_text() != described:
        raise InputError(f"{place.out}: holds a run of another recipe or scale; give another --out, or delete it")
    write_atomic(known, described.encode())
    scores: dict[str, Any] = {}
    for seed in place.recipe.seeds:
        for stage in place.recipe.stages:
            scores.setdefault(stage.name, []).append(_stage(place, stage, seed))
    summary = {name: _summary(of_seeds) for name, of_seeds in scores.items()}
    write_atomic(place.out / "scores.json", (json.dumps(summary, indent=1) + "\n").encode())
    return summary


def estimate(place: Place, *, timed: int = 3) -> list[dict[str, Any]]:
    """What each stage would take: examples, steps, and time and memory from a few timed steps on real batches. Stages
    that start from a model still to be made are timed on the base, whose shape they have."""
    pick_threads()
    rows = []
    for stage in place.recipe.stages:
        source = read_checkpoint(stage.model or place.recipe.base)
        tokenizer = read_tokenizer(source.folder, vocabulary=source.config.vocabulary)
        model, _ = from_checkpoint(source, heads_of(stage.task))
        features = training_features(place, stage, tokenizer, source)
        plan = _plan(stage, features, place.recipe.seeds[0])
        model.set_quantised(stage.quantise)
        plain = stage.model_copy(update={"distil": None})  # a teacher is asked once, before
        objective = _objective(place, plain, model, features, tokenizer, 0)
        seconds = time_steps(objective, features, [plan[round(i * len(plan) / timed)] for i in range(timed)])
        memory = 1e-6 * 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        row = {"stage": stage.name, "task": stage.task, "examples": len(features), "steps": len(plan)}
        rows.append(row | {"seconds": seconds * len(plan), "memory_mb": memory})
        place.say(f"{stage.name}: {seconds:.2f} s a step")
    return rows


def _plan(stage: Stage, features: Features, seed: int) -> list[NDArray[np.int64]]:
    sizes = {"tokens": stage.tokens, "examples": stage.examples}
    return data.order(features.lengths, **sizes, passes=stage.passes, steps=stage.steps, seed=seed)


def _summary(of_seeds: list[dict[str, float]]) -> dict[str, Any]:
    """The mean of each score over seeds, and its range where there is more than one."""
    summary: dict[str, Any] = {}
    for name in of_seeds[0]:
        values = [s[name] for s in of_seeds]
        summary[name] = float(np.mean(values))
        if len(values) > 1:
            summary[f"{name}_range"] = [min(values), max(values)]
    return summary


def heads_of(task: str) -> dict[str, int]:
    if task == "mlm":
        return {"mlm": 0, "nsp": 0}
    return {"span": 0} if task in SPAN_TASKS else {"classify": len(glue.TASKS[task].labels)}


def _stage(place: Place, stage: Stage, seed: int) -> dict[str, float]:
    folder = place.out / f"seed-{seed}" / stage.name
    done = folder / "scores.json"
    if done.exists():
        place.say(f"{stage.name}, seed {seed}: done before")
        return dict(json.loads(done.read_text()))
    source = read_checkpoint(_start(place, stage, seed))
    torch.manual_seed(seed)
    heads = heads_of(stage.task)
    model, begun = from_checkpoint(source, heads)
    if begun:
        new = ", ".join(sorted({name.rsplit(".", 1)[0] for name in begun}))
        place.say(f"{stage.name}: {source.name} has no {new}; they begin anew")
    if stage.lock:
        model.set_masks({name: linear.weight != 0 for name, linear in model.linears().items()})
    tokenizer = read_tokenizer(source.folder, vocabulary=source.config.vocabulary)
    features = training_features(place, stage, tokenizer, source)
    plan = _plan(stage, features, seed)
    size = f"{len(features)} examples of {features.lengths.mean():.0f} tokens"
    place.say(f"{stage.name}, seed {seed}: {size}, {len(plan)} steps")
    model.set_quantised(stage.quantise)
    objective = _objective(place, stage, model, features, tokenizer, seed)
    settings = Settings(
        rate=stage.rate,
        warmup=stage.warmup,
        weight_decay=stage.weight_decay,
        dropout=stage.dropout,
        seed=seed,
        rewind=stage.rewind,
    )
    train(
        objective, features, plan, settings, folder, pruning=_pruning(stage, len(plan)), report=place.report(stage.name)
    )
    written = _export(place, stage, model, source, folder, seed, features)
    scores = evaluate(place, stage, model, tokenizer, written, folder / "packed", objective)
    write_atomic(done, (json.dumps(scores, indent=1) + "\n").encode())
    place.say(f"{stage.name}, seed {seed}: " + ", ".join(f"{name} {value:.2f}" for name, value in scores.items()))
    return scores


def _start(place: Place, stage: Stage, seed: int) -> str | Path:
    if stage.model is not None:
        return stage.model
    before = place.recipe.before(stage)
    return place.recipe.base if before == "base" else _model_of(place, before, seed)


def _model_of(place: Place, stage: str, seed: int) -> Path:
    return place.out / f"seed-{seed}" / stage / "model"


def _pruning(stage: Stage, steps: int) -> Pruning | None:
    if stage.prune is None:
        return None
    p = stage.prune
    begin, policy_end, end = (round(share * steps) for share in (p.begin, p.policy_end, p.end))
    every = max(1, (policy_end - begin) // p.times)
    return Pruning(PruneSchedule(p.sparsity, begin, end, begin, policy_end, every), p.shape, p.scope)


# --- data -------------------------------------------------------------------------------------------------------------


def find(folder: Path, names: tuple[str, ...]) -> Path:
    """The first file that is there, plain or packed."""
    for name in names:
        for ending in _PACKED:
            if (folder / (name + ending)).is_file():
                return folder / (name + ending)
    raise InputError(f"{folder}: no {' or '.join(names)} (plain, .xz or .gz); give the folder with --data")


def training_features(place: Place, stage: Stage, tokenizer: Tokenizer, source: Checkpoint) -> Features:
    max_length = min(stage.max_length, source.config.positions)
    if stage.task == "mlm":
        content = read_packed(find(place.data, (place.recipe.corpus,))).decode(errors="replace")
        texts, _ = pretrain.split(pretrain.documents(content))
        return pretrain.pairs(_part(texts, stage.part), tokenizer, max_length=max_length, seed=0)
    path = find(place.data, FILES[stage.task][0])
    if stage.task in SPAN_TASKS:
        questions = _part_of_articles(read_squad(path).questions, stage.part)
        if stage.unanswerable:
            made = data.unanswerable(questions, share=stage.unanswerable, seed=0)
            place.say(f"{stage.name}: {len(made)} unanswerable pairs made from {len(questions)} questions")
            questions += made
        return data.squad_features(
            questions, tokenizer, max_length=max_length, stride=min(stage.stride, max_length // 2)
        )
    task = glue.TASKS[stage.task]
    if stage.task == "qnli" and ".json" in path.name:
        examples: tuple[glue.Example, ...] = glue.qnli_from_squad(read_squad(path).questions)
        place.say(f"{stage.name}: {len(examples)} QNLI pairs made from {path.name}")
    else:
        examples = glue.read_glue(path, task).examples
    return data.class_features(_part(list(examples), stage.part), tokenizer, max_length=max_length)


T = TypeVar("T")


def _part(items: list[T], share: float) -> list[T]:
    """Every so many-th, evenly spread."""
    return [item for n, item in enumerate(items) if int((n + 1) * share) > int(n * share)]


def _part_of_articles(questions: tuple[Question, ...], share: float) -> list[Question]:
    kept = set(_part(sorted({q.article for q in questions}), share))
    return [q for q in questions if q.article in kept]


# --- teachers ---------------------------------------------------------------------------------------------------------


def _objective(
    place: Place, stage: Stage, model: Encoder, features: Features, tokenizer: Tokenizer, seed: int
) -> Objective:
    terms = Distillation(hard=1.0, logits=0.0)
    if stage.distil is not None:
        d = stage.distil
        terms = Distillation(d.hard, d.logits, d.temperature, d.hidden, d.attention)
    if stage.task == "mlm":
        teacher = None
        if stage.distil is not None:
            teacher, _ = from_checkpoint(_teacher(place, stage, seed), heads_of("mlm"))
            teacher.eval().requires_grad_(False)
        return pretrain.PretrainLoss(model, tokenizer, features, terms, teacher)
    outputs = None
    if stage.distil is not None and terms.logits:
        outputs = teacher_outputs(place, _teacher(place, stage, seed), features, stage.task)
    loss = SpanLoss if stage.task in SPAN_TASKS else ClassLoss
    return loss(model, terms, outputs)


def _teacher(place: Place, stage: Stage, seed: int) -> Checkpoint:
    assert stage.distil is not None
    name = stage.distil.teacher
    if name in {s.name for s in place.recipe.stages}:
        return read_checkpoint(_model_of(place, name, seed))
    return read_checkpoint(place.recipe.base if name == "base" else name)


def teacher_outputs(
    place: Place, teacher: Checkpoint, features: Features, task: str
) -> Callable[[NDArray[np.int64]], list[NDArray[np.float16]]]:
    """What a teacher says to every example: [L, 2] of a window, or [classes].

    Computed once, by the engine in int8, which is many times faster than torch, and kept by teacher and data."""
    key = hashlib.sha256(f"{teacher.sha256()} {features.sha256()}".encode()).hexdigest()[:24]
    path = place.out / "cache" / f"{key}.npy"
    lengths = features.lengths
    spans = task in SPAN_TASKS
    if not path.exists():
        place.say(f"asking the teacher {teacher.name} about {len(features)} examples (once)")
        model = thinbert.load(str(teacher.folder))
        report = place.report("teacher")
        parts, first = [], 0
        while first < len(features):
            last = first + 1
            while last < len(features) and int(lengths[first : last + 1].sum()) <= 8192:
                last += 1
            at = slice(features.example(first).start, features.example(last - 1).stop)
            read = model.forward if spans else model.classify
            parts.append(read(features.ids[at], features.types[at].astype(np.int32), lengths[first:last].tolist()))
            report({"step": last, "of": len(features)})
            first = last
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".tmp").open("wb") as file:
            np.save(file, np.concatenate(parts).astype(np.float16))
        path.with_suffix(".tmp").replace(path)
    known = np.load(path, mmap_mode="r")

    def outputs(numbers: NDArray[np.int64]) -> list[NDArray[np.float16]]:
        return [np.asarray(known[features.example(int(n))] if spans else known[int(n)]) for n in numbers]

    return outputs


# --- what comes out ---------------------------------------------------------------------------------------------------


def _export(
    place: Place, stage: Stage, model: Encoder, source: Checkpoint, folder: Path, seed: int, features: Features
) -> Checkpoint:
    """The portable folder and, where there is a task head, the packed one; how they came about travels with them."""
    changes: dict[str, Any] = {}
    if stage.task in glue.TASKS:
        labels = glue.TASKS[stage.task].labels
        changes |= {"id2label": {str(n): name for n, name in enumerate(labels)}, "num_labels": len(labels)}
        changes["label2id"] = {name: n for n, name in enumerate(labels)}
    written = write_portable(model, heads_of(stage.task), source, folder / "model", **changes)
    made = {
        "recipe": place.recipe.model_dump(mode="json"),
        "scale": place.scale,
        "stage": stage.name,
        "seed": seed,
        "examples": {"count": len(features), "sha256": features.sha256()},
        "start": source.sha256(),
        "versions": {"thinbert": thinbert.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    folders = [folder / "model"]
    if stage.task != "mlm":
        pack(written, folder / "packed")
        folders.append(folder / "packed")
    for each in folders:
        write_atomic(each / "training.json", (json.dumps(made, indent=1) + "\n").encode())
    return written


def evaluate(
    place: Place,
    stage: Stage,
    model: Encoder,
    tokenizer: Tokenizer,
    portable: Checkpoint,
    packed: Path,
    objective: Objective,
) -> dict[str, float]:
    """Scores of the written folders: the packed one in the engine, the portable one in float32 on fewer examples."""
    if stage.task == "mlm":
        assert isinstance(objective, pretrain.PretrainLoss)
        content = read_packed(find(place.data, (place.recipe.corpus,))).decode(errors="replace")
        _, held = pretrain.split(pretrain.documents(content))
        longest = min(stage.max_length, portable.config.positions)
        features = pretrain.pairs(held[:200], tokenizer, max_length=longest, seed=1)
        batches = data.order(features.lengths, tokens=8192, passes=1.0, seed=0)[:20]
        return pretrain.held_out_loss(model, objective, (data.batch(features, b) for b in batches))
    path = find(place.data, FILES[stage.task][1])
    int8, exact = thinbert.load(str(packed)), thinbert.load(str(portable.folder), precision="float32")
    limit = None if place.scale == "full" else _DEV_QUESTIONS
    if stage.task in SPAN_TASKS:
        dataset = read_squad(path)
        readings = _read(int8, dataset, limit)
        scores = squad_scores(dataset, readings)
        exactly = squad_scores(dataset, _read(exact, dataset, _FLOAT_EXAMPLES))
        same = squad_scores(dataset, readings[:_FLOAT_EXAMPLES])
        return scores | {"int8_less_float_f1": same["f1"] - exactly["f1"]}
    data_set = glue.read_glue(path, glue.TASKS[stage.task])
    scores, predictions = classify.evaluate(int8, data_set, limit=limit)
    exactly, few = classify.evaluate(exact, data_set, limit=_FLOAT_EXAMPLES)
    labels = [e.label for e in data_set.examples[: len(few)]]
    same = glue.score(data_set.task, labels, predictions[: len(few)])
    return scores | {"int8_less_float_accuracy": same["accuracy"] - exactly["accuracy"]}


def _read(model: thinbert.Model, dataset: Dataset, limit: int | None) -> list[Reading]:
    return list(model.read_many((q.question, [q.context]) for q in dataset.questions[:limit]))


def squad_scores(dataset: Dataset, readings: list[Reading]) -> dict[str, float]:
    """Scores of what was read for the first questions of a data set, by the rules of its kind."""
    questions = dataset.questions[: len(readings)]
    texts = {q.id: r.answers[0].text if r.answers else "" for q, r in zip(questions, readings, strict=True)}
    no_answer = {q.id: r.no_answer for q, r in zip(questions, readings, strict=True)}
    scores, _ = score(dataset, texts, no_answer)
    return {name: float(value) for name, value in scores.items() if isinstance(value, int | float)}
