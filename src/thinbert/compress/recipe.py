"""Recipes: which model is made, from what, in which stages. A recipe is data; `thinbert compress` carries it out."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from thinbert.errors import InputError, quoted

SCALES = ("full", "small", "smoke")
SPAN_TASKS = ("squad1", "squad2")

_DEEPEST = 4  # recipes that extend one another
_MOST_FIELDS = 1000  # of one mapping with all it merges: aliases of aliases would be more than memory holds
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)  # the second: a 13th month
_FOLDER = Path(__file__).parent.parent / "recipes"
Share = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Prune(Part):
    """Gradual magnitude pruning. Steps are given as a share of the stage's steps, so that a stage may be shortened."""

    block: str = Field("1x1", pattern=r"^[1-9]\d?x[1-9]\d?$")
    sparsity: Share
    begin: Share = 0.0
    policy_end: Share = 0.5  # where the sparsity is reached: at once, where it is the beginning
    end: Share = 0.8  # where masks are frozen
    times: int = Field(50, ge=1)  # masks computed anew until policy_end
    scope: Literal["uniform", "global"] = "uniform"
    criterion: Literal["magnitude", "fisher"] = "magnitude"  # what a weight is worth: see masks.saliency

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.block.split("x")
        return int(rows), int(columns)

    @model_validator(mode="after")
    def _in_order(self) -> "Prune":
        if not self.begin <= self.policy_end <= self.end:
            raise ValueError(f"begin {self.begin}, policy_end {self.policy_end}, end {self.end} are not in this order")
        if self.criterion == "fisher" and self.policy_end == 0:
            raise ValueError("criterion fisher prunes by gradients that were seen; with policy_end 0 there are none")
        return self


class Distillation(Part):
    """Weights of the terms of the loss."""

    hard: float = Field(default=0.0, ge=0)  # the task's own labels
    logits: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=2.0, gt=0)
    hidden: float = Field(default=0.0, ge=0)
    cosine: float = Field(default=0.0, ge=0)  # of the last hidden states alone
    attention: float = Field(default=0.0, ge=0)
    everywhere: bool = False  # in pre-training, logits at all tokens, not only where one is masked

    @property
    def follows_states(self) -> bool:
        return bool(self.hidden or self.cosine or self.attention)


class Distil(Distillation):
    """What is learnt from whom."""

    teacher: str  # a stage's name, a model folder or a hub id
    states: str | None = None  # another whose hidden states and attention are followed: any width, our number of heads
    keep_states: bool = False  # hidden states on disk, computed once: a quarter of the time, gigabytes

    @model_validator(mode="after")
    def _says_something(self) -> "Distil":
        if not self.hard + self.logits:
            raise ValueError("hard and logits are both 0: nothing would reach the heads")
        if self.states is not None and not self.follows_states:
            raise ValueError("states without hidden, cosine or attention: nothing of them is followed")
        if self.keep_states and (self.attention or not self.follows_states):
            raise ValueError(
                "keep_states is for hidden or cosine without attention: scores for all pairs of tokens are not kept"
            )
        return self


class Stage(Part):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    task: Literal["mlm", "squad1", "squad2", "sst2", "mnli", "qqp", "qnli"]
    start: str | None = None  # a stage's name, or `base`; the stage before, or the base for the first
    model: str | None = None  # start from this model folder or hub id instead
    passes: float | None = Field(None, ge=0)  # over the training data (0: the model as it is), or
    steps: int | None = Field(None, gt=0)  # optimiser steps
    examples: int | None = Field(None, gt=0)  # of a step's batch, or
    tokens: int | None = Field(None, gt=0)  # of a step's batch, with its padding
    rate: float = Field(gt=0)
    warmup: Share = 0.01
    weight_decay: float = Field(0.01, ge=0)
    dropout: Share = 0.1
    micro_tokens: int = Field(8192, ge=1)  # worked through at a time: fewer take less memory
    rewind: bool = False  # learning-rate rewinding while pruning
    prune: Prune | None = None
    lock: bool = False  # keep the zeros the stage begins with
    once: bool = False  # with the first seed alone, and shared by all
    quantise: bool = False  # train under the engine's rounding
    distil: Distil | None = None
    max_length: int = Field(384, ge=8)
    stride: int = Field(128, ge=0)
    part: float = Field(default=1.0, gt=0, le=1)  # of the training data: every so many-th article, or document
    unanswerable: Share = 0.0  # share of questions that are also asked of a text without the answer
    hold_out: float = Field(default=0.0, ge=0, le=0.5)  # share of articles kept to calibrate no-answer with
    evaluations: int = Field(4, ge=0)  # on the way, beside the one at the end

    @model_validator(mode="after")
    def _whole(self) -> "Stage":
        if (self.passes is None) == (self.steps is None):
            raise ValueError("give passes or steps, one of them")
        if self.passes == 0 and self.prune is not None and self.prune.policy_end > 0:
            raise ValueError("passes 0 and prune: step by step needs steps; with policy_end 0 it is done at once")
        if (self.examples is None) == (self.tokens is None):
            raise ValueError("give examples or tokens, one of them")
        if self.start is not None and self.model is not None:
            raise ValueError("give start or model, one of them")
        if self.rewind and self.prune is None:
            raise ValueError("rewind without prune: there is nothing to rewind with")
        if self.rewind and self.prune is not None and 1 - (self.prune.policy_end - self.prune.begin) < 5 * self.warmup:
            # the formula's rate would pass its peak by far, and come to nothing where no step is left
            raise ValueError("rewind: what pruning leaves of the steps must be at least 5 times the warm-up")
        if self.task == "mlm" and self.distil is not None and self.distil.states is not None:
            raise ValueError("distil.states is for tasks; in pre-training one teacher gives logits and states")
        if self.task == "mlm" and self.distil is not None and self.distil.keep_states:
            raise ValueError("distil.keep_states is for tasks; in pre-training the text is masked anew at each step")
        if self.task != "mlm" and self.distil is not None and self.distil.everywhere:
            raise ValueError("distil.everywhere is for pre-training")
        for name in ("unanswerable", "hold_out", "stride"):
            if name in self.model_fields_set and self.task not in SPAN_TASKS:
                raise ValueError(f"{name} is for {' and '.join(SPAN_TASKS)}")
        if self.hold_out and self.task == "squad1" and not self.unanswerable:
            raise ValueError("hold_out without unanswerable: there would be no question without an answer to fit to")
        return self

    @property
    def kind(self) -> str:
        """Stages of one kind can teach each other."""
        return "span" if self.task in SPAN_TASKS else self.task


class Recipe(Part):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    about: str
    source: str = ""  # paper or model it follows
    base: str  # model folder or hub id
    corpus: tuple[
        str, ...
    ] = ()  # files of the mlm stages in the data folder: plain text, or SQuAD JSON for its contexts
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field((0,), min_length=1)
    stages: tuple[Stage, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _stages_exist(self) -> "Recipe":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {', '.join(map(str, self.seeds))}: one is named twice, and would count twice")
        known: list[str] = ["base"]
        kinds: dict[str, str] = {}
        for stage in self.stages:
            if stage.name in known:
                raise ValueError(f"two stages are named {stage.name}")
            if stage.start is not None and stage.start not in known:
                raise ValueError(
                    f"stage {stage.name} starts from {stage.start!r}; before it there are {', '.join(known)}"
                )
            if stage.distil and stage.distil.logits and kinds.get(stage.distil.teacher, stage.kind) != stage.kind:
                raise ValueError(f"stage {stage.name}: its teacher {stage.distil.teacher} learns another task")
            known.append(stage.name)
            kinds[stage.name] = stage.kind
            for before in self.trained_before(stage) if stage.hold_out else ():
                if before.kind == stage.kind and before.hold_out != stage.hold_out:
                    raise ValueError(
                        f"stage {stage.name}: hold_out is {stage.hold_out:g}, and of {before.name}, which it comes "
                        f"from, {before.hold_out:g}; give both the same, or it is measured with what it has learnt"
                    )
        if any(stage.task == "mlm" for stage in self.stages) and not self.corpus:
            raise ValueError("a stage of the task mlm needs a corpus")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.stages)

    def stage(self, name: str) -> Stage:
        return next(s for s in self.stages if s.name == name)

    def before(self, stage: Stage) -> str:
        """The name of what a stage starts from."""
        if stage.start is not None:
            return stage.start
        number = self.names.index(stage.name)
        return self.names[number - 1] if number else "base"

    def trained_before(self, stage: Stage) -> list[Stage]:
        """The stages whose training is in what a stage starts from, the last first."""
        found = []
        while stage.model is None and (name := self.before(stage)) in self.names:
            stage = self.stage(name)
            if stage.passes != 0:
                found.append(stage)
        return found

    def origin(self, name: str) -> str:
        """The model, there already, that a name stands for, or that a stage of that name comes from."""
        while name in self.names:
            stage = self.stage(name)
            if stage.model is not None:
                return stage.model
            name = self.before(stage)
        return self.base if name == "base" else name


Report = Callable[[Mapping[str, Any]], None]  # takes a line of a stage's log


@dataclass(frozen=True)
class Place:
    """Where a recipe is carried out, and who hears of it."""

    recipe: Recipe
    scale: str
    data: Path  # folder of the data sets
    out: Path
    say: Callable[[str], None]
    report: Callable[[str], Report]  # a stage's name -> what to call with each line of its log


def built_in() -> dict[str, Path]:
    """The recipes that come with thinbert, by name."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.yaml"))}


def scales_of(name: str | Path) -> tuple[str, ...]:
    """The scales that a recipe, by name or from a file, can be read at."""
    smaller = _read(name, built_in().get(str(name), Path(name))).get("scales") or {}
    return ("full", *(scale for scale in SCALES[1:] if scale in smaller))


def read_recipe(name: str | Path, scale: str = "full", *, changes: Mapping[str, str] | None = None) -> Recipe:
    """A recipe by name or from a YAML file, at one of its scales.

    A file holds the recipe at full scale, or `extends` another and holds what differs, in its scales too. Under
    `scales`, `small` and `smoke` hold what differs there: fields of the recipe, and under `stages`, by name, fields of
    a stage (null takes a field away, and a whole stage too).

    Args:
        changes: single values, by their place, such as `base` or `stages.squad.distil.teacher`, as YAML.
    Raises:
        InputError: no such recipe; not YAML; unknown or missing keys or values out of range, naming the place.
    """
    if scale not in SCALES:
        raise InputError(f"scale {scale!r}; expected {', '.join(SCALES)}")
    path = built_in().get(str(name), Path(name))
    raw = _read(name, path)
    scales = raw.pop("scales", None) or {}
    if not isinstance(scales, dict) or not set(scales) <= set(SCALES[1:]):
        found = ", ".join(map(quoted, scales)) if isinstance(scales, dict) else quoted(scales)
        raise InputError(f"{path}: scales has {found}; expected {' and '.join(SCALES[1:])}")
    if scale != "full":
        if scale not in scales:
            raise InputError(f"{path}: has no scale {scale}; it has full{''.join(', ' + s for s in scales)}")
        raw = _scaled(raw, scales[scale] or {}, f"{path}: scales.{scale}")
    for place, value in (changes or {}).items():
        try:
            change = _nested(place.split("."), yaml.load(value, _Loader))
        except _NOT_YAML as e:
            raise InputError(f"change {place}: {value!r} is not valid YAML: {e}") from e
        raw = _scaled(raw, change, f"change {place}")
    try:
        return Recipe.model_validate(raw)
    except ValidationError as e:
        errors = e.errors()
        if any(len(error["loc"]) > 1 and error["loc"][0] == "stages" for error in errors):
            errors = [error for error in errors if error["loc"] != ("stages",)]  # one that is wrong is not counted
        raise InputError(f"{path}: {'; '.join(_fault(error, raw) for error in errors)}") from e


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses what YAML would take in silence: a key twice in one mapping, and merges of merges without end."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MOST_FIELDS:
            raise yaml.MarkedYAMLError(problem=f"more than {_MOST_FIELDS} fields", problem_mark=node.start_mark)


def _read(name: str | Path, path: Path, depth: int = 0) -> dict[str, Any]:
    """A file's mapping, laid over that of the recipe it extends."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        near = difflib.get_close_matches(str(name), built_in(), n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(built_in())}"
        raise InputError(f"{name}: no such recipe{hint}") from None
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path}: cannot be read: {e}") from e
    except _NOT_YAML as e:
        raise InputError(f"{path}: not valid YAML: {e}") from e
    if not isinstance(raw, dict):
        raise InputError(f"{path}: is not a recipe; expected keys such as name, base, stages")
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    if depth == _DEEPEST:
        raise InputError(f"{path}: extends more than {_DEEPEST} recipes, one after another")
    below = _read(parent, built_in().get(str(parent), path.parent / str(parent)), depth + 1)
    theirs, ours = below.pop("scales", None), raw.pop("scales", None)
    whole = _scaled(below, raw, str(path))
    scales = _joined(theirs or {}, ours or {}, whole.get("stages"))
    return whole | ({"scales": scales} if scales else {})


def _joined(theirs: Any, ours: Any, stages: Any) -> Any:
    """The scales of a recipe, and those of one that extends it laid over them. What is no scale is left as it is, for
    the check of the whole to find."""
    if not isinstance(theirs, dict) or not isinstance(ours, dict):
        return ours or theirs
    left = {s["name"] for s in stages if isinstance(s, dict) and "name" in s} if isinstance(stages, list) else set()
    joined: dict[str, Any] = {}
    for scale in {**theirs, **ours}:
        below, above = theirs.get(scale) or {}, ours.get(scale) or {}
        wrong = [s for s in (above, below) if not (isinstance(s, dict) and isinstance(s.get("stages") or {}, dict))]
        if wrong:
            joined[scale] = wrong[0]
            continue
        differ = {name: fields for name, fields in (below.get("stages") or {}).items() if name in left}
        for name, fields in (above.get("stages") or {}).items():
            differ[name] = _laid(differ.get(name), fields)
        joined[scale] = {**below, **above, "stages": differ}
    return joined


def _laid(below: Any, above: Any) -> Any:
    """A stage's fields over others of it, those of `prune` and `distil` one by one."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    inside = {k: {**below[k], **v} for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)}
    return {**below, **above, **inside}


def _nested(place: list[str], value: Any) -> dict[str, Any]:
    return {place[0]: _nested(place[1:], value) if len(place) > 1 else value}


def _scaled(raw: dict[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A recipe with some of its values changed; `stages` maps the names of stages to what differs in them."""
    if not isinstance(changes, Mapping) or not isinstance(changes.get("stages") or {}, Mapping):
        raise InputError(f"{where}: expected fields of the recipe and, under stages, stage name -> fields")
    # what is no stage stays where it is, for the check of the whole to find
    listed = raw.get("stages")
    stages = [dict(s) if isinstance(s, dict) else s for s in listed] if isinstance(listed, list) else listed
    whole = [s for s in stages if isinstance(s, dict)] if isinstance(stages, list) else []
    named = {s["name"]: s for s in whole if isinstance(s.get("name"), str)}
    for name, fields in (changes.get("stages") or {}).items():
        if name not in named:
            near = difflib.get_close_matches(str(name), named, n=1)
            raise InputError(f"{where}: there is no stage {name}{f'; did you mean {near[0]}?' if near else ''}")
        if fields is None:
            stages = [s for s in stages or () if s is not named[name]]
            continue
        if not isinstance(fields, Mapping):
            raise InputError(f"{where}: stage {name} is {quoted(fields)}; expected its fields")
        stage = named[name]
        laid = _laid(stage, fields)
        stage.clear()
        stage.update({key: value for key, value in laid.items() if value is not None})
    rest = {key: value for key, value in changes.items() if key != "stages"}
    return {**raw, **rest} | ({} if listed is None else {"stages": stages})


_MODELS: dict[str, type[Part]] = {"prune": Prune, "distil": Distil}
_OF_FILES = ("scales", "extends")  # keys of a file that the recipe it comes to does not have


def _fault(error: Any, raw: Mapping[str, Any]) -> str:
    """One of pydantic's complaints in a line: where, what, and the nearest name where one is unknown."""
    place = [str(p) for p in error["loc"]]
    if len(place) > 1 and place[0] == "stages" and place[1].isdigit():
        stage = raw["stages"][int(place[1])]
        place[:2] = [f"stage {stage.get('name', place[1]) if isinstance(stage, dict) else place[1]}"]
    where = ".".join(place)
    if error["type"] != "extra_forbidden":
        return f"{where}: {error['msg'].removeprefix('Value error, ')}" if where else str(error["msg"])
    outer = Stage if place[0].startswith("stage ") else Recipe
    inside: type[Part] = next((_MODELS[p] for p in place[:-1] if p in _MODELS), outer)
    known = [*inside.model_fields, *(_OF_FILES if inside is Recipe else ())]
    near = difflib.get_close_matches(place[-1], known, n=1)
    return f"{where}: unknown key{f'; did you mean {near[0]}?' if near else ''}"
