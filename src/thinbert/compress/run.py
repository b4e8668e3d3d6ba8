"""Carries a recipe out, stage by stage: data, teacher, training, export, scores. Every part of it resumes.

OUT/recipe.json          the recipe as it was last read, and its scale
OUT/seed-N/STAGE/        the stage's run (see compress/train.py), and in it
    stage.json           what was asked for; the same stage is not run twice, another is refused
    model/               the portable folder, packed/ its packed form, scores.json their scores
OUT/cache/               what teachers said, by teacher and data
OUT/scores.json          the scores of all stages, over seeds
"""

import hashlib
import json
import math
import platform
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import thinbert
from thinbert.compress import data, pretrain, scores, sources
from thinbert.compress.data import Features
from thinbert.compress.encoder import Encoder, from_checkpoint
from thinbert.compress.export import write_portable
from thinbert.compress.objectives import ClassLoss, Distillation, Follower, SpanLoss
from thinbert.compress.recipe import SPAN_TASKS, Place, Report, Stage
from thinbert.compress.schedule import PruneSchedule
from thinbert.compress.train import Objective, Pruning, Settings, prepare_process, time_steps, train
from thinbert.errors import InputError
from thinbert.model.checkpoint import Checkpoint, read_checkpoint, write_atomic
from thinbert.model.pack import pack
from thinbert.model.tokenizer import Tokenizer, read_tokenizer
from thinbert.tasks import glue


def run(place: Place) -> dict[str, Any]:
    """All stages for all seeds; returns their scores, as written to OUT/scores.json.

    Raises:
        InputError: data or models are missing, or OUT holds a stage of that name that is another.
        TrainError: see compress.train.
    """
    prepare_process()
    place.out.mkdir(parents=True, exist_ok=True)
    described = {"scale": place.scale, **place.recipe.model_dump(mode="json")}
    write_atomic(place.out / "recipe.json", (json.dumps(described, indent=1) + "\n").encode())
    found: dict[str, Any] = {}
    for seed in place.recipe.seeds:
        for stage in place.recipe.stages:
            found.setdefault(stage.name, []).append(_stage(place, stage, seed))
    summary = {name: scores.summary(of_seeds) for name, of_seeds in found.items()}
    write_atomic(place.out / "scores.json", (json.dumps(summary, indent=1) + "\n").encode())
    return summary


def estimate(place: Place, *, timed: int = 3) -> list[dict[str, Any]]:
    """What each stage would take: examples, steps, and time and memory from a few timed steps on real batches. Models
    still to be made, to start from or to follow, are stood for by the base, whose shape they have."""
    prepare_process()
    rows = []
    for stage in place.recipe.stages:
        source = read_checkpoint(stage.model or place.recipe.base)
        tokenizer = read_tokenizer(source.folder, vocabulary=source.config.vocabulary)
        model, _ = from_checkpoint(source, heads_of(stage.task))
        features = sources.training(place, stage, tokenizer, source.config.positions)
        plan = _plan(stage, features, place.recipe.seeds[0])
        model.set_quantised(stage.quantise)
        objective = _objective(place, _self_taught(stage, source), model, features, tokenizer, 0)
        some = [plan[i * len(plan) // timed] for i in range(min(timed, len(plan)))]
        seconds = time_steps(objective, features, some) if some else 0.0
        memory = 1e-6 * 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        row = {"stage": stage.name, "task": stage.task, "examples": len(features), "steps": len(plan)}
        rows.append(row | {"seconds": seconds * len(plan), "memory_mb": memory})
        place.say(f"{stage.name}: {seconds:.2f} s a step")
    return rows


def _self_taught(stage: Stage, source: Checkpoint) -> Stage:
    """A stage whose teacher is what it starts from. A task's logits are left out: they are asked for once, before."""
    if stage.distil is None:
        return stage
    logits = stage.distil.logits if stage.task == "mlm" else 0.0
    own = {"teacher": str(source.folder), "states": None, "hard": 1.0, "logits": logits}
    return stage.model_copy(update={"distil": stage.distil.model_copy(update=own)})


def tensorboard(report: Callable[[str], Report], folder: Path) -> Callable[[str], Report]:
    """Reports that also go into event files for TensorBoard, one run for each stage.

    Raises:
        InputError: the package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as e:
        raise InputError("event files need tensorboard: pip install 'thinbert[tensorboard]'") from e

    def both(stage: str) -> Report:
        shown, writer = report(stage), SummaryWriter(folder / stage)

        def line(log: Mapping[str, Any]) -> None:
            shown(log)
            for name, value in log.items():
                if name not in ("step", "of", "seconds"):
                    writer.add_scalar(name, value, log["step"])
            writer.flush()

        return line

    return both


def _plan(stage: Stage, features: Features, seed: int) -> list[NDArray[np.int64]]:
    sizes = {"tokens": stage.tokens, "examples": stage.examples}
    return data.order(features.lengths, **sizes, passes=stage.passes, steps=stage.steps, seed=seed)


def heads_of(task: str) -> dict[str, int]:
    if task == "mlm":
        return {"mlm": 0, "nsp": 0}
    return {"span": 0} if task in SPAN_TASKS else {"classify": len(glue.TASKS[task].labels)}


def _stage(place: Place, stage: Stage, seed: int) -> scores.Scores:
    folder = place.out / f"seed-{seed}" / stage.name
    source = read_checkpoint(_start(place, stage, seed))
    _enter(place, stage, seed, source, folder)
    done = folder / "scores.json"
    if done.exists():
        place.say(f"{stage.name}, seed {seed}: done before")
        return dict(json.loads(done.read_text()))
    torch.manual_seed(seed)
    heads = heads_of(stage.task)
    model, begun = from_checkpoint(source, heads)
    if begun:
        new = ", ".join(sorted({name.rsplit(".", 1)[0] for name in begun}))
        place.say(f"{stage.name}: {source.name} has no {new}; they begin anew")
    if stage.lock:
        model.set_masks({name: linear.weight != 0 for name, linear in model.prunable().items()})
    tokenizer = read_tokenizer(source.folder, vocabulary=source.config.vocabulary)
    features = sources.training(place, stage, tokenizer, source.config.positions)
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

    def write(out: Path) -> Checkpoint:
        return write_portable(model, heads, source, out, **_class_names(stage.task))

    if isinstance(objective, pretrain.PretrainLoss):
        quick = scores.of_language_model(place, stage, model, objective, tokenizer)
    else:
        quick = scores.on_the_way(place, stage, write)
    train(
        objective,
        features,
        plan,
        settings,
        folder,
        pruning=_pruning(stage, len(plan)),
        report=place.report(stage.name if len(place.recipe.seeds) == 1 else f"{stage.name}, seed {seed}"),
        evaluate=quick,
        evaluate_every=math.ceil(len(plan) / (stage.evaluations + 1)) if stage.evaluations else 0,
    )
    written = write(folder / "model")
    found = scores.calibrate(place, stage, written.folder) if stage.hold_out else {}
    folders = [written.folder]
    if stage.task == "mlm":
        found |= quick()
    else:
        pack(read_checkpoint(written.folder), folder / "packed")
        folders.append(folder / "packed")
        found |= scores.of_folders(place, stage, written, folder / "packed")
    origin = _origin(place, stage, seed, source, features) | {"scores": found}
    for each in folders:  # how a model came about, and how good it is, travels with it
        write_atomic(each / "training.json", (json.dumps(origin, indent=1) + "\n").encode())
    write_atomic(done, (json.dumps(found, indent=1) + "\n").encode())
    place.say(f"{stage.name}, seed {seed}: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
    return found


def _enter(place: Place, stage: Stage, seed: int, source: Checkpoint, folder: Path) -> None:
    """Makes a stage's folder, or checks that it holds this very stage: a recipe may have grown or changed since."""
    # without defaults: a later version may know more fields
    asked: dict[str, Any] = {
        "stage": stage.model_dump(mode="json", exclude_defaults=True),
        "start": source.sha256(),
        "scale": place.scale,
    }
    if stage.distil is not None:
        teachers = {stage.distil.teacher, stage.distil.states or stage.distil.teacher}
        asked["teachers"] = sorted(_teacher(place, name, seed).sha256() for name in teachers)
    if stage.task == "mlm":
        asked["corpus"] = list(place.recipe.corpus)
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / "stage.json"
    if not known.exists():
        write_atomic(known, (json.dumps(asked, indent=1) + "\n").encode())
        return
    before = json.loads(known.read_text())
    changed = [name for name in asked if before.get(name) != asked[name]]
    if "stage" in changed:
        fields = {**before["stage"], **asked["stage"]}
        changed[changed.index("stage")] = ", ".join(
            f for f in fields if before["stage"].get(f) != asked["stage"].get(f)
        )
    if changed:
        raise InputError(
            f"{folder}: holds this stage with other {' and '.join(changed)}; "
            "delete it to run it anew, or give another --out"
        )


def _class_names(task: str) -> dict[str, Any]:
    """What config.json says of a classification head."""
    if task not in glue.TASKS:
        return {}
    labels = glue.TASKS[task].labels
    return {
        "id2label": {str(n): name for n, name in enumerate(labels)},
        "label2id": {name: n for n, name in enumerate(labels)},
        "num_labels": len(labels),
    }


def _origin(place: Place, stage: Stage, seed: int, source: Checkpoint, features: Features) -> dict[str, Any]:
    return {
        "recipe": place.recipe.model_dump(mode="json"),
        "scale": place.scale,
        "stage": stage.name,
        "seed": seed,
        "examples": {"count": len(features), "sha256": features.sha256()},
        "start": source.sha256(),
        "versions": {"thinbert": thinbert.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }


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
    return Pruning(PruneSchedule(p.sparsity, begin, end, begin, policy_end, every), p.shape, p.scope, p.criterion)


# --- teachers ---------------------------------------------------------------------------------------------------------


def _objective(
    place: Place, stage: Stage, model: Encoder, features: Features, tokenizer: Tokenizer, seed: int
) -> Objective:
    terms = Distillation(hard=1.0, logits=0.0)
    if stage.distil is not None:
        d = stage.distil
        terms = Distillation(d.hard, d.logits, d.temperature, d.hidden, d.attention)
    loss = SpanLoss if stage.task in SPAN_TASKS else ClassLoss
    if stage.distil is None:
        return pretrain.PretrainLoss(model, tokenizer, features, terms) if stage.task == "mlm" else loss(model, terms)
    teacher = _teacher(place, stage.distil.teacher, seed)
    states = None
    if stage.task == "mlm" or terms.hidden or terms.attention:
        source = _teacher(place, stage.distil.states or stage.distil.teacher, seed)
        if source.config.width != model.config.width:
            raise InputError(
                f"{stage.name}: the hidden states of {source.name} have {source.config.width} features and ours "
                f"{model.config.width}; name another model under distil.states, or leave hidden and attention at 0"
            )
        states = Follower(from_checkpoint(source, heads_of("mlm") if stage.task == "mlm" else {})[0], terms)
    if stage.task == "mlm":
        return pretrain.PretrainLoss(model, tokenizer, features, terms, states)
    outputs = teacher_outputs(place, teacher, features, stage.task) if terms.logits else None
    return loss(model, terms, outputs, states)


def _teacher(place: Place, name: str, seed: int) -> Checkpoint:
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
