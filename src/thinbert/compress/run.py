"""Carries a recipe out, stage by stage: data, teacher, training, export, scores. Every part of it resumes.

OUT/recipe.json          the recipe as it was last read, and its scale
OUT/seed-N/STAGE/        the stage's run (see compress/train.py; of `once` with the first seed only), and in it
    stage.json           what was asked for; the same stage is not run twice, another is refused
    model/               the portable folder, packed/ its packed form, scores.json their scores
OUT/cache/               what teachers said (see compress/teachers.py); tokenised corpora
OUT/scores.json          the scores of all stages, over seeds
"""

import difflib
import json
import math
import platform
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import InitProcessGroupKwargs
from numpy.typing import NDArray
from torch import nn

import thinbert
from thinbert.compress import data, distill, pretrain, scores, sources, teachers
from thinbert.compress.data import Features
from thinbert.compress.encoder import Encoder, from_checkpoint, tensor_names
from thinbert.compress.export import write_portable
from thinbert.compress.objectives import ClassLoss, SpanLoss, States, TorchTeacher
from thinbert.compress.recipe import SPAN_TASKS, Distil, Distillation, Place, Recipe, Report, Stage
from thinbert.compress.schedule import PruneSchedule
from thinbert.compress.text import sha256_of
from thinbert.compress.train import (
    Objective,
    Pruning,
    Settings,
    TrainError,
    one_accelerator,
    prepare_process,
    time_steps,
    train,
)
from thinbert.errors import InputError
from thinbert.files import lock, write_atomic
from thinbert.model.checkpoint import TRAINING_FILE, Checkpoint, find_model, read_checkpoint, read_json
from thinbert.model.config import EncoderConfig
from thinbert.model.families import FAMILIES
from thinbert.model.pack import pack
from thinbert.model.tokenizer import Tokenizer, read_tokenizer
from thinbert.tasks import glue
from thinbert.tasks.classify import class_order

_UNCHANGING: Any = {"micro_tokens": True, "evaluations": True, "distil": {"keep_states"}}  # of what a stage makes
_SHAPING = ("torch", "accelerate", "numpy", "tokenizers")  # packages that a model's numbers depend on
_PATIENCE = timedelta(days=2)  # of processes that wait while the main one reads a corpus, asks a teacher or scores


def run(place: Place) -> dict[str, Any]:
    """All stages for all seeds; returns their scores, as written to OUT/scores.json.

    Several processes (`accelerate launch`) train together; what is not training the main one does alone, and the others
    return nothing.

    Raises:
        InputError: data or models are missing, OUT holds a stage of that name that is another, or another process
            works there.
        TrainError: see compress.train.
    """
    prepare_process()
    process = one_accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)])
    if not process.is_main_process:
        place = replace(place, say=lambda text: None, report=lambda stage: lambda line: None)
    if process.num_processes > 1:
        place.say(f"{process.num_processes} processes train together")
    check(place)
    if not process.is_main_process:
        _stages(place)
        return {}
    with _locked(place.out):
        described = {"scale": place.scale, **place.recipe.model_dump(mode="json")}
        write_atomic(place.out / "recipe.json", (json.dumps(described, indent=1) + "\n").encode())
        summary = {name: scores.summary(of_seeds) for name, of_seeds in _stages(place).items()}
        write_atomic(place.out / "scores.json", (json.dumps(summary, indent=1) + "\n").encode())
        return summary


def check(place: Place) -> None:
    """Raises InputError where stages lack data, naming all of it, or cannot read it, or a model cannot be had or cannot
    be what it is to be: now, and not after the hours of the stages before."""
    recipe = place.recipe
    before: list[str] = []
    models: dict[str, None] = {}
    missing: dict[str, None] = {}
    for stage in recipe.stages:
        for look in (sources.files, sources.measured):
            try:
                look(place, stage)
            except InputError as e:
                missing[str(e)] = None
        models[recipe.origin(stage.name)] = None
        for name in (stage.distil.teacher, stage.distil.states) if stage.distil else ():
            if name is None or name in before:
                continue
            near = difflib.get_close_matches(name, before, n=1, cutoff=0.8)
            if name in recipe.names or (near and "/" not in name and not Path(name).is_dir()):
                hint = f"; did you mean {near[0]}?" if near else ""
                raise InputError(f"stage {stage.name}: {name!r} is no stage before it{hint}")
            models[recipe.origin(name)] = None
        before.append(stage.name)
    if missing:
        raise InputError(f"{place.data}: {'; '.join(missing)}; docs/recipes.md says where they come from")
    for stage in recipe.stages:
        sources.check(place, stage)
    there = {name: read_checkpoint(find_model(name)) for name in models}
    for stage in recipe.stages:
        source = there[recipe.origin(stage.name)]
        if stage.lock and not _has_zeros(recipe, stage, source):
            raise InputError(f"stage {stage.name}: lock, but {source.name} has no zeros to keep")
        if stage.hold_out and source.has_span:
            place.say(f"{stage.name}: articles held out are new to {source.name} if it did not learn from them before")
        if stage.passes == 0 and (begun := _begun(recipe, stage, source)):
            raise InputError(
                f"stage {stage.name}: passes is 0, and {source.name} has no {', '.join(begun)} for {stage.task}; what "
                "it says would be noise"
            )
        if stage.distil is not None:
            _check_teachers(recipe, stage, stage.distil, there)


def _has_zeros(recipe: Recipe, stage: Stage, source: Checkpoint) -> bool:
    """Whether something on the way to a stage is pruned, or the model it comes from."""
    name = recipe.before(stage)
    while name in recipe.names and stage.model is None:
        stage = recipe.stage(name)
        if stage.prune is not None:
            return True
        name = recipe.before(stage)
    stems = (s.format(i=i) for s in FAMILIES[source.config.family].layer.values() for i in range(source.config.layers))
    names = {f"{FAMILIES[source.config.family].prefix}{stem}.weight" for stem in stems}
    return any((source.array(n) == 0).any() for n in names if len(source.shapes[n]) == 2)


def _begun(recipe: Recipe, stage: Stage, source: Checkpoint) -> list[str]:
    """Heads that a stage begins anew, as far as they are known before it is there."""
    before = "base" if stage.model is not None else recipe.before(stage)
    if before in recipe.names and recipe.stage(before).kind == stage.kind:
        return []
    begun = from_checkpoint(source, heads_of(stage.task), anew=_of_another_task(recipe, stage, source))[1]
    return sorted({name.rsplit(".", 1)[0] for name in begun})


def _check_teachers(recipe: Recipe, stage: Stage, terms: Distil, there: Mapping[str, Checkpoint]) -> None:
    """Models that stages make have the words and the shape of the one they come from, which is there already."""
    student, teacher, source = (
        there[recipe.origin(name)] for name in (stage.name, terms.teacher, terms.states or terms.teacher)
    )
    tokenizer = read_tokenizer(student.folder, vocabulary=student.config.vocabulary)
    length, _ = sources.window_size(stage, student.config.positions)
    for asked in (teacher, *([source] if terms.follows_states else [])):
        if asked.config.positions < length:
            raise InputError(
                f"stage {stage.name}: {asked.name} reads {asked.config.positions} tokens, and windows have {length}; "
                "lower max_length"
            )
    _same_words(stage, teacher, tokenizer)
    if terms.logits and terms.teacher not in recipe.names:  # whose task was looked at before
        _same_task(stage, teacher)
    if terms.follows_states:
        _same_words(stage, source, tokenizer)
        _same_shape(stage, source, student.config)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("ab") as file:
        lock(file, out)
        yield


def _stages(place: Place) -> dict[str, list[scores.Scores]]:
    """The scores of every stage, for each of its seeds."""
    found: dict[str, list[scores.Scores]] = {}
    for number, seed in enumerate(place.recipe.seeds):
        for stage in place.recipe.stages:
            if stage.once and number:
                continue
            try:
                found.setdefault(stage.name, []).append(_stage(place, stage, _seed_of(place, stage, seed)))
            except OSError as e:
                fault = f"{e.filename}: {e.strerror}" if e.filename else e.strerror or str(e)
                raise TrainError(
                    f"stage {stage.name}: {fault}; what was reached is kept, and the same command goes on"
                ) from e
    return found


def _seed_of(place: Place, stage: Stage, seed: int) -> int:
    """The seed a stage is made with: of `once` the first, or the one it was made with when there were others."""
    if not stage.once:
        return seed
    first = place.recipe.seeds[0]
    seeds = (p.parts[-3].removeprefix("seed-") for p in place.out.glob(f"seed-*/{stage.name}/stage.json"))
    made = {int(s) for s in seeds if s.isdecimal()}
    return first if first in made or not made else min(made)


def estimate(place: Place, *, timed: int = 3) -> list[dict[str, Any]]:
    """What each stage would take: examples, steps, time from a few timed steps on real batches, and the most memory the
    process (or the GPU) had by then. Models still to be made, to start from or to learn from, are stood for by the one
    that is there already, from which they come and whose shape they have. What is done once for a stage is left out:
    what a teacher says of a task, and scores."""
    prepare_process()
    if one_accelerator().num_processes > 1:
        raise InputError("an estimate is made by one process; run it without others")
    check(place)
    # a corpus that is tokenised on the way is kept there, and a run may be at the same
    with _locked(place.out) if place.recipe.corpus or place.out.exists() else nullcontext():
        return _estimates(place, timed)


def _estimates(place: Place, timed: int) -> list[dict[str, Any]]:
    rows = []
    for stage in place.recipe.stages:
        source = read_checkpoint(place.recipe.origin(stage.name))
        tokenizer = read_tokenizer(source.folder, vocabulary=source.config.vocabulary)
        anew = _of_another_task(place.recipe, stage, source)
        model, _ = from_checkpoint(source, heads_of(stage.task), anew=anew)
        features = sources.training(place, stage, tokenizer, source.config.positions)
        plan = _plan(stage, features, place.recipe.seeds[0])
        model.set_quantised(stage.quantise)
        objective = _objective(place, _taught_by_those_there(place.recipe, stage), model, features, tokenizer, 0)
        some = [plan[i * len(plan) // timed] for i in range(min(timed, len(plan)))]
        seconds = time_steps(objective, features, some, _settings(stage, 0)) if some else 0.0
        memory = 1e-6 * 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if torch.cuda.is_available():
            memory = 1e-6 * torch.cuda.max_memory_allocated()
        row = {"stage": stage.name, "task": stage.task, "examples": len(features), "steps": len(plan)}
        read = [path.name for path in sources.files(place, stage)]
        rows.append(row | {"seconds": seconds * len(plan), "peak_memory_mb": memory, "data": read})
        place.say(f"{stage.name}: {seconds:.2f} s a step")
    return rows


def _taught_by_those_there(recipe: Recipe, stage: Stage) -> Stage:
    """A stage that learns from the models its teachers come from. What is asked for once is left out: a task's logits,
    and states that are kept."""
    if stage.distil is None:
        return stage
    terms = stage.distil
    there: dict[str, Any] = {"teacher": recipe.origin(terms.teacher)}
    if terms.states is not None:
        there["states"] = recipe.origin(terms.states)
    if stage.task != "mlm":
        there |= {"hard": 1.0, "logits": 0.0}
    if terms.keep_states:
        there |= {"hidden": 0.0, "cosine": 0.0, "keep_states": False}
    return stage.model_copy(update={"distil": terms.model_copy(update=there)})


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
                if name not in ("step", "of", "seconds") and not isinstance(value, str):
                    writer.add_scalar(name, value, log["step"])
            writer.flush()

        return line

    return both


def _plan(stage: Stage, features: Features, seed: int) -> list[NDArray[np.int64]]:
    sizes = {"tokens": stage.tokens, "examples": stage.examples}
    return data.order(features.lengths, **sizes, passes=stage.passes, steps=stage.steps, seed=seed)


def _settings(stage: Stage, seed: int) -> Settings:
    return Settings(
        rate=stage.rate,
        warmup=stage.warmup,
        weight_decay=stage.weight_decay,
        dropout=stage.dropout,
        seed=seed,
        micro_tokens=stage.micro_tokens,
        rewind=stage.rewind,
    )


def heads_of(task: str) -> dict[str, int]:
    if task == "mlm":
        return {"mlm": 0, "nsp": 0}
    return {"span": 0} if task in SPAN_TASKS else {"classify": len(glue.TASKS[task].labels)}


def _stage(place: Place, stage: Stage, seed: int) -> scores.Scores:
    folder = _folder(place, stage, seed)
    source = read_checkpoint(_start(place, stage, seed))
    process = one_accelerator()
    with process.main_process_first():
        _enter(place, stage, seed, source, folder)
    done = folder / "scores.json"
    if done.exists():
        (folder / "state.pt").unlink(missing_ok=True)  # which a process that was killed just then had left
        place.say(f"{stage.name}, seed {seed}: done before")
        return read_json(done)
    torch.manual_seed(seed)
    heads = heads_of(stage.task)
    model, begun = from_checkpoint(source, heads, anew=_of_another_task(place.recipe, stage, source))
    if begun:
        new = ", ".join(sorted({name.rsplit(".", 1)[0] for name in begun}))
        place.say(f"{stage.name}: {source.name} has no {new} for {stage.task}; they begin anew")
    if "classify" in heads and "classify_out.weight" not in begun:
        model.order_classes(class_order(source.config.labels, glue.TASKS[stage.task]))
    if stage.lock:
        masks = {name: linear.weight != 0 for name, linear in model.prunable().items()}
        if all(bool(mask.all()) for mask in masks.values()):
            raise InputError(f"stage {stage.name}: lock, but {source.name} has no zeros to keep")
        model.set_masks(masks)
        if stage.quantise:
            model.cut_dead()
    tokenizer = read_tokenizer(source.folder, vocabulary=source.config.vocabulary)
    with process.main_process_first():
        features = sources.training(place, stage, tokenizer, source.config.positions)
    plan = _plan(stage, features, seed)
    size = f"{len(features)} examples of {features.lengths.mean():.0f} tokens"
    place.say(f"{stage.name}, seed {seed}: {size}, {len(plan)} steps")
    model.set_quantised(stage.quantise)
    with process.main_process_first():
        objective = _objective(place, stage, model, features, tokenizer, seed)

    # what is to be fitted anew must not be fitted on top of what was
    as_it_was = stage.passes == 0 and stage.prune is None and not stage.hold_out
    if source.config.no_answer_threshold is not None and not as_it_was and not stage.hold_out:
        place.say(
            f"{stage.name}: probabilities of no answer were fitted to {source.name}; give hold_out to fit them anew"
        )

    def write(out: Path) -> Checkpoint:
        return write_portable(model, heads, source, out, as_it_was=as_it_was, **_class_names(stage.task))

    if isinstance(objective, pretrain.PretrainLoss):
        language = scores.of_language_model(place, stage, objective, tokenizer)

        def quick() -> scores.Scores:
            return language(model)
    else:
        language, quick = None, scores.on_the_way(place, stage, write, folder / scores.WORK)
    train(
        objective,
        features,
        plan,
        _settings(stage, seed),
        folder,
        pruning=_pruning(stage, len(plan)),
        report=place.report(stage.name if len(place.recipe.seeds) == 1 else f"{stage.name}, seed {seed}"),
        evaluate=quick,
        evaluate_every=math.ceil(len(plan) / (stage.evaluations + 1)) if stage.evaluations else 0,
    )
    with process.main_process_first():
        if process.is_main_process:
            _finish(place, stage, seed, source, features, folder, write(folder / "model"), language)
    return read_json(done)


def _of_another_task(recipe: Recipe, stage: Stage, source: Checkpoint) -> tuple[str, ...]:
    """Parts of a model's heads that say nothing of a stage's task: another number of classes, or other classes."""
    heads = heads_of(stage.task)
    if "classify" not in heads or not source.has_classify:
        return ()
    before = "base" if stage.model is not None else recipe.before(stage)
    other = before in recipe.names and recipe.stage(before).task != stage.task
    stored = source.shapes[tensor_names(source.config, heads)["classify_out.bias"]][0]
    return ("classify_out",) if other or stored != heads["classify"] else ()


def _finish(
    place: Place,
    stage: Stage,
    seed: int,
    source: Checkpoint,
    features: Features,
    folder: Path,
    written: Checkpoint,
    language: Callable[[Encoder], scores.Scores] | None,
) -> None:
    """Packs and scores a trained model as it was written, and says in its folders how it came about."""
    found = scores.calibrate(place, stage, written.folder) if stage.hold_out else {}
    folders = [written.folder]
    if language is not None:
        found |= language(from_checkpoint(written, heads_of(stage.task))[0].to(one_accelerator().device))
    else:
        pack(read_checkpoint(written.folder), folder / "packed")
        folders.append(folder / "packed")
        found |= scores.of_folders(place, stage, written, folder / "packed")
    origin = _provenance(place, stage, seed, source, features) | {"scores": found}
    for each in folders:  # how a model came about, and how good it is, travels with it
        write_atomic(each / TRAINING_FILE, (json.dumps(origin, indent=1) + "\n").encode())
    write_atomic(folder / "scores.json", (json.dumps(found, indent=1) + "\n").encode())
    (folder / "state.pt").unlink(missing_ok=True)  # three times the model, and not needed any more
    shutil.rmtree(folder / scores.WORK, ignore_errors=True)  # which a process that was killed had left
    place.say(f"{stage.name}, seed {seed}: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))


def _enter(place: Place, stage: Stage, seed: int, source: Checkpoint, folder: Path) -> None:
    """Makes a stage's folder, or checks that it holds this very stage: a recipe may have grown or changed since."""
    # without defaults: a later version may know more fields
    asked: dict[str, Any] = {
        # but what changes nothing of what is made
        "stage": stage.model_dump(mode="json", exclude_defaults=True, exclude=_UNCHANGING),
        "start": source.sha256,
        "scale": place.scale,
        "data": {sources.plain_name(path): sha256_of(path) for path in sources.files(place, stage)},
    }
    if stage.distil is not None:
        asked["teachers"] = _teachers(place, stage, seed)
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / "stage.json"
    if not known.exists():
        write_atomic(known, (json.dumps(asked, indent=1) + "\n").encode())
        return
    before = read_json(known)
    rate = before["stage"]["rate"]
    if stage.rate in before.get("rates_before", []):
        raise InputError(
            f"stage {stage.name}: its rate was lowered to {rate:g} under way; go on with "
            f"--set stages.{stage.name}.rate={rate:g}"
        )
    if rate > stage.rate and not (folder / "scores.json").exists():  # one that was too high
        lowered = before | {"stage": before["stage"] | {"rate": stage.rate}}
        lowered["rates_before"] = [*before.get("rates_before", []), rate]
        if lowered | asked == lowered:  # and nothing else is other
            place.say(f"{stage.name}: goes on with rate {stage.rate:g}, where it had {rate:g}")
            write_atomic(known, (json.dumps(lowered, indent=1) + "\n").encode())
            return
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
        "problem_type": "single_label_classification",
    }


def _provenance(place: Place, stage: Stage, seed: int, source: Checkpoint, features: Features) -> dict[str, Any]:
    asked = read_json(_folder(place, stage, seed) / "stage.json")
    return {
        "recipe": _without_places(place.recipe.model_dump(mode="json")),
        "scale": place.scale,
        "stage": stage.name,
        "seed": seed,
        "examples": {"count": len(features), "sha256": features.sha256()},
        "data": asked["data"],
        "measured": {sources.plain_name(path): sha256_of(path) for path in sources.measured(place, stage).values()},
        "start": source.sha256,
        "teachers": _teachers(place, stage, seed),
        # rates the stage was begun with, where it went on with another
        **{name: asked[name] for name in ("rates_before",) if name in asked},
        "versions": {"thinbert": thinbert.__version__, "python": platform.python_version()}
        | {name: version(name) for name in _SHAPING},
    }


def _without_places(described: Any) -> Any:
    """A recipe with folders of this machine by their last names. Their paths tell nobody anything; the hashes beside
    them say what lay there."""
    if isinstance(described, list):
        return [_without_places(each) for each in described]
    if not isinstance(described, dict):
        return described
    models = ("base", "model", "teacher", "states")
    return {
        name: Path(value).name if name in models and value and Path(value).is_dir() else _without_places(value)
        for name, value in described.items()
    }


def _start(place: Place, stage: Stage, seed: int) -> str | Path:
    if stage.model is not None:
        return stage.model
    before = place.recipe.before(stage)
    return place.recipe.base if before == "base" else _model_of(place, before, seed)


def _model_of(place: Place, stage: str, seed: int) -> Path:
    return _folder(place, place.recipe.stage(stage), seed) / "model"


def _folder(place: Place, stage: Stage, seed: int) -> Path:
    return place.out / f"seed-{_seed_of(place, stage, seed)}" / stage.name


def _pruning(stage: Stage, steps: int) -> Pruning | None:
    if stage.prune is None:
        return None
    p = stage.prune
    begin, policy_end, end = (round(share * steps) for share in (p.begin, p.policy_end, p.end))
    if p.criterion == "fisher":  # which knows nothing before the first step
        policy_end, end = max(1, policy_end), max(1, end)
    climb = policy_end - begin or end - begin  # all at once: masks are made anew as often, while they may be
    every = max(1, round(climb / p.times))
    return Pruning(PruneSchedule(p.sparsity, begin, policy_end, end, every), p.shape, p.scope, p.criterion)


# --- teachers ---------------------------------------------------------------------------------------------------------


def _objective(
    place: Place, stage: Stage, model: Encoder, features: Features, tokenizer: Tokenizer, seed: int
) -> Objective:
    loss = SpanLoss if stage.task in SPAN_TASKS else ClassLoss
    terms, width = stage.distil, model.config.width
    if terms is None:
        own = Distillation(hard=1.0, logits=0.0)
        return pretrain.PretrainLoss(model, tokenizer, features, own) if stage.task == "mlm" else loss(model, own)
    teacher = _teacher(place, terms.teacher, seed)
    _same_words(stage, teacher, tokenizer)
    states: States | None = None
    project: nn.Linear | None = None  # to the features of a wider or narrower teacher; it learns along, and goes
    if stage.task == "mlm" or terms.follows_states:
        source = _teacher(place, terms.states or terms.teacher, seed)
        _same_words(stage, source, tokenizer)
        _same_shape(stage, source, model.config)
        if (terms.hidden or terms.cosine) and source.config.width != width:
            project = nn.Linear(width, source.config.width)
        if terms.keep_states:
            states = teachers.states(place, source, features, model.config.layers)
        else:
            heads = heads_of("mlm") if stage.task == "mlm" else {}
            states = TorchTeacher(from_checkpoint(source, heads)[0], attention=terms.attention > 0)
    if isinstance(states, TorchTeacher) and stage.task == "mlm":
        return pretrain.PretrainLoss(model, tokenizer, features, terms, states, project)
    if terms.logits:
        _same_task(stage, teacher)
    said = teachers.logits(place, teacher, features, stage.task) if terms.logits else None
    return loss(model, terms, said, states, project)


def _same_words(stage: Stage, teacher: Checkpoint, tokenizer: Tokenizer) -> None:
    """A teacher reads our numbers of tokens."""
    theirs = read_tokenizer(teacher.folder, vocabulary=teacher.config.vocabulary)
    if theirs.vocabulary() != tokenizer.vocabulary():
        raise InputError(
            f"stage {stage.name}: {teacher.name} has another vocabulary than the model that learns from it"
        )


def _same_task(stage: Stage, teacher: Checkpoint) -> None:
    """A teacher whose logits are learnt from has the stage's head."""
    heads = heads_of(stage.task)
    names = tensor_names(teacher.config, heads)
    known = {*teacher.shapes, *(teacher.ignored if stage.task == "mlm" else ())}  # what only pre-training reads
    lacking = next((ours for ours, theirs in names.items() if theirs not in known), None)
    if lacking is not None:
        raise InputError(
            f"stage {stage.name}: the teacher {teacher.name} has no {lacking.rsplit('.', 1)[0]}, so what it says to "
            f"{stage.task} is noise; train it on that first, or leave logits at 0"
        )
    classes = teacher.shapes[names["classify_out.bias"]][0] if "classify" in heads else 0
    if classes != heads.get("classify", 0):
        raise InputError(
            f"stage {stage.name}: the teacher {teacher.name} has {classes} classes; expected {heads['classify']}"
        )


def _same_shape(stage: Stage, source: Checkpoint, ours: EncoderConfig) -> None:
    """Of what is followed state by state, every k-th layer stands for one of ours, and each head for one."""
    terms, theirs = stage.distil, source.config
    assert terms is not None
    if terms.follows_states:
        distill.layer_map(ours.layers, theirs.layers)
    if terms.attention and theirs.heads[-1] != ours.heads[-1]:
        raise InputError(
            f"stage {stage.name}: {source.name} has {theirs.heads[-1]} attention heads and ours {ours.heads[-1]}; "
            "name another model under distil.states, or leave attention at 0"
        )


def _teacher(place: Place, name: str, seed: int) -> Checkpoint:
    made = name in place.recipe.names
    return read_checkpoint(_model_of(place, name, seed) if made else place.recipe.origin(name))


def _teachers(place: Place, stage: Stage, seed: int) -> list[str]:
    """The hashes of the models a stage learns from."""
    terms = stage.distil
    names = {terms.teacher, terms.states or terms.teacher} if terms else set()
    return sorted(_teacher(place, name, seed).sha256 for name in names)
