"""What a stage learns from and is measured with: files of a data folder to examples."""

import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from thinbert.compress import data, pretrain
from thinbert.compress.data import Features
from thinbert.compress.recipe import SPAN_TASKS, Place, Stage
from thinbert.compress.text import Documents, check_documents, read_documents, spread
from thinbert.errors import InputError
from thinbert.model.tokenizer import Tokenizer
from thinbert.tasks import glue
from thinbert.tasks.squad import Question, read_squad

_SQUAD1 = ("squad-train-v1.1.json", "train-v1.1.json")
_SQUAD1_DEV = ("squad-dev-v1.1.json", "dev-v1.1.json")
_SQUAD2_DEV = ("squad-dev-v2.0.json", "dev-v2.0.json")
# Names that files go by, the first that is there (also packed): to train on,
TRAINING: Mapping[str, tuple[str, ...]] = {
    "squad1": _SQUAD1,
    # without its own training set, that of 1.1: a stage's `unanswerable` says how many pairs are made from it
    "squad2": ("squad-train-v2.0.json", "train-v2.0.json", *_SQUAD1),
    "sst2": ("sst2-train.tsv",),
    "mnli": ("mnli-train.tsv",),
    "qqp": ("qqp-train.tsv",),
    # without its own training set, pairs made from SQuAD 1.1
    "qnli": ("qnli-train.tsv", *_SQUAD1),
}
# and to measure with: prefix of the scores -> names. The one without a prefix must be there.
MEASURED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "squad1": {"": _SQUAD1_DEV, "squad2_": _SQUAD2_DEV},
    "squad2": {"": _SQUAD2_DEV, "squad1_": _SQUAD1_DEV},
    "sst2": {"": ("sst2-dev.tsv",)},
    "mnli": {"": ("mnli-dev_matched.tsv",), "mismatched_": ("mnli-dev_mismatched.tsv",)},
    "qqp": {"": ("qqp-dev.tsv",)},  # not Wang's split, whose pairs are mostly in GLUE's training set
    "qnli": {"": ("qnli-dev.tsv",)},
}
_PACKED = ("", ".xz", ".gz")


def find(folder: Path, names: tuple[str, ...]) -> Path:
    """The first file that is there, plain or packed."""
    for name in names:
        for ending in _PACKED:
            if (folder / (name + ending)).is_file():
                return folder / (name + ending)
    raise InputError(f"no {' or '.join(names)} (plain, .xz or .gz)")


def files(place: Place, stage: Stage) -> list[Path]:
    """The files a stage learns from. Raises InputError where one of them is missing."""
    if stage.task == "mlm":
        return _corpus_files(place)
    found = find(place.data, TRAINING[stage.task])
    if stage.task == "squad2" and "2.0" not in found.name and not stage.unanswerable:
        raise InputError(
            f"stage {stage.name}: no {TRAINING['squad2'][0]}, and with unanswerable 0 no question "
            f"without an answer is made from {found.name}; give one of them"
        )
    return [found]


def measured(place: Place, stage: Stage) -> dict[str, Path]:
    """Prefix of scores -> the file they are of, for what can be measured with a file; SQuAD 2.0 is left out for models
    that saw no unanswerable pair. Raises InputError where one is missing that is needed."""
    found = {}
    for prefix, names in _wanted(stage).items():
        try:
            found[prefix] = find(place.data, names)
        except InputError:
            if not prefix:
                raise
    return found


def _wanted(stage: Stage) -> dict[str, tuple[str, ...]]:
    found = MEASURED.get(stage.task, {})
    return {prefix: names for prefix, names in found.items() if prefix != "squad2_" or stage.unanswerable}


def plain_name(path: Path) -> str:
    """A file's name, whether it is packed or not."""
    return path.name.removesuffix(next((e for e in _PACKED if e and path.name.endswith(e)), ""))


def check(place: Place, stage: Stage) -> None:
    """Raises InputError where a file that a stage learns from or is measured with cannot be read as what it is to be,
    or nothing of it would be held out or learnt from; says what is not there to measure with."""
    there = measured(place, stage)
    if lacking := [names[0] for prefix, names in _wanted(stage).items() if prefix not in there]:
        place.say(f"{stage.name}: no {', '.join(lacking)} in {place.data}: its score is left out")
    for path in {*files(place, stage), *there.values()}:
        at = path.stat()
        articles = _articles(path, stage.task, at.st_size, at.st_mtime_ns)
        if stage.task == "mlm" or path not in files(place, stage):
            continue
        held = held_out_articles(articles, stage.hold_out)
        kinds = f"{len(articles)} {'articles' if '.json' in path.name else 'examples'}"
        if stage.hold_out and not held:
            raise InputError(f"stage {stage.name}: hold_out {stage.hold_out:g} of {kinds} is none; give more")
        if not spread(sorted(set(articles) - held), stage.part):
            raise InputError(f"stage {stage.name}: part {stage.part:g} of {kinds} is none; give more")


@cache
def _articles(path: Path, task: str, size: int, mtime_ns: int) -> tuple[int, ...]:
    """Numbers of the articles, or of the examples, of a file that was read to its end; of plain text, to its first
    documents."""
    if task == "mlm":
        check_documents(path)
        return ()
    if ".json" in path.name:
        return tuple(sorted({q.article for q in read_squad(path).questions}))
    return tuple(range(len(glue.read_glue(path, glue.TASKS[task]).examples)))


def training(place: Place, stage: Stage, tokenizer: Tokenizer, positions: int) -> Features:
    """The examples of a stage, in windows of at most `positions` tokens."""
    max_length, stride = window_size(stage, positions)
    if stage.task == "mlm":
        documents, fit, _ = corpus(place, stage, tokenizer)
        key = hashlib.sha256(f"{documents.sha256} {stage.part} {max_length}".encode()).hexdigest()[:24]
        folder = place.out / "cache" / f"pairs-{key}"
        return pretrain.pairs(documents, fit, tokenizer, max_length=max_length, seed=0, folder=folder)
    path = find(place.data, TRAINING[stage.task])
    if stage.task in SPAN_TASKS:
        questions = _of_articles(read_squad(path).questions, stage, held=False)
        made = _made_unanswerable(questions, stage.unanswerable)
        if made:
            place.say(f"{stage.name}: {len(made)} unanswerable pairs made from {len(questions)} questions")
        return data.squad_features([*questions, *made], tokenizer, max_length=max_length, stride=stride)
    task = glue.TASKS[stage.task]
    if stage.task == "qnli" and ".json" in path.name:
        # of whole articles: each question has a pair of each kind, which a part of the pairs would tear apart
        examples = list(glue.qnli_from_squad(_of_articles(read_squad(path).questions, stage, held=False)))
        place.say(f"{stage.name}: {len(examples)} QNLI pairs made from {path.name}")
    else:
        examples = spread(glue.read_glue(path, task).examples, stage.part)
    return data.class_features(examples, tokenizer, max_length=max_length)


def window_size(stage: Stage, positions: int) -> tuple[int, int]:
    """Tokens of a stage's windows, for a model of so many positions, and how many of them two neighbours share."""
    max_length = min(stage.max_length, positions)
    return max_length, min(stage.stride, max_length // 2)


def held_out(place: Place, stage: Stage) -> list[Question]:
    """Questions of the articles that `hold_out` keeps from training, and the unanswerable pairs made from them."""
    questions = _of_articles(read_squad(find(place.data, TRAINING[stage.task])).questions, stage, held=True)
    return [*questions, *_made_unanswerable(questions, stage.unanswerable)]


def corpus(place: Place, stage: Stage, tokenizer: Tokenizer) -> tuple[Documents, list[int], list[int]]:
    """The recipe's corpus, and which of its documents to train on, and which are held out."""
    documents = read_documents(_corpus_files(place), tokenizer, place.out / "cache", place.say)
    return documents, *documents.split(part=stage.part)


def _corpus_files(place: Place) -> list[Path]:
    return [find(place.data, _SQUAD1 if name in _SQUAD1 else (name,)) for name in place.recipe.corpus]


def _of_articles(questions: tuple[Question, ...], stage: Stage, *, held: bool) -> list[Question]:
    """Questions of the articles that are held out, or of those trained on; both are spread over the file."""
    out = held_out_articles((q.article for q in questions), stage.hold_out)
    kept = out if held else set(spread(sorted({q.article for q in questions} - out), stage.part))
    return [q for q in questions if q.article in kept]


def held_out_articles(articles: Iterable[int], share: float) -> set[int]:
    """Every so many-th article, from the middle of the first so many."""
    articles = sorted(set(articles))
    return {a for n, a in enumerate(articles) if int(n * share + 0.5) > int((n - 1) * share + 0.5)}


def _made_unanswerable(questions: list[Question], share: float) -> list[Question]:
    return data.unanswerable(questions, share=share, seed=0) if share else []
