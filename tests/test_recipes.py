"""Recipes: what is read and refused, and every one of them carried out at smoke scale."""

import errno
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import thinbert
import tiny
from conftest import Cli
from thinbert.compress import pretrain, run, scores, sources, teachers
from thinbert.compress.data import batch
from thinbert.compress.encoder import from_checkpoint
from thinbert.compress.objectives import TorchTeacher
from thinbert.compress.recipe import Place, Recipe, built_in, read_recipe, scales_of
from thinbert.errors import Error, InputError, ModelError
from thinbert.model.checkpoint import copy_files, read_checkpoint
from thinbert.model.sparsity import measure
from thinbert.model.tokenizer import read_tokenizer
from thinbert.runtime.engine import Engine
from thinbert.tasks import glue
from thinbert.tasks.squad import read_squad

PARAGRAPHS = [
    "The mill stands by a river. Anna Voss built it in 1802. It burned down twice. A new wheel came in 1871.",
    "The lighthouse was built in 1871. Its keeper, Ida Marsh, lived there for years. It is painted red and white.",
    "Bread is made from flour and water. Bakers in Lyon add salt. The oldest oven in town belongs to Jean Petit.",
    "The bridge crosses the gorge. Its engineer was Tomas Brandt. Trains have used it since 1925, at night only.",
]
ASKED = [
    (0, "Who built the mill?", "Anna Voss"),
    (0, "When did a new wheel come?", "1871"),
    (1, "Who kept the lighthouse?", "Ida Marsh"),
    (1, "How is it painted?", "red and white"),
    (2, "What is bread made from?", "flour and water"),
    (2, "Who owns the oldest oven?", "Jean Petit"),
    (3, "Who was the engineer?", "Tomas Brandt"),
    (3, "Since when have trains used it?", "1925"),
]


POOLER = "bert.pooler.dense.weight"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run side by side."""
    monkeypatch.setenv("THINBERT_THREADS", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small data sets under the names of the real ones."""
    folder = tmp_path_factory.mktemp("data")
    articles = []
    for a in range(6):
        paragraphs = [
            {
                "context": text,
                "qas": [
                    {
                        "id": f"{a}-{n}",
                        "question": question,
                        "answers": [{"text": answer, "answer_start": text.index(answer)}],
                    }
                    for n, (p, question, answer) in enumerate(ASKED)
                    if p == number
                ],
            }
            for number, text in enumerate(PARAGRAPHS)
        ]
        articles.append({"title": str(a), "paragraphs": paragraphs})
    for split, number in (("train", 6), ("dev", 1)):
        (folder / f"squad-{split}-v1.1.json").write_text(json.dumps({"version": "1.1", "data": articles[:number]}))
    with_none = {"id": "none", "question": "Who painted the mill?", "answers": [], "is_impossible": True}
    some = {**articles[0]["paragraphs"][0], "qas": [*articles[0]["paragraphs"][0]["qas"], with_none]}
    (folder / "squad-dev-v2.0.json").write_text(
        json.dumps({"version": "v2.0", "data": [{"title": "", "paragraphs": [some]}]})
    )
    (folder / "text.txt").write_text("\n\n".join("\n".join(PARAGRAPHS[i:] + PARAGRAPHS[:i]) for i in range(4)) * 3)
    sst2 = "".join(f"{text.split('.')[0]}\t{n % 2}\n" for n, text in enumerate(PARAGRAPHS * 4))
    pairs = {"mnli": "sentence1\tsentence2\tgold_label", "qqp": "question1\tquestion2\tis_duplicate"}
    for split in ("train", "dev"):
        (folder / f"sst2-{split}.tsv").write_text("sentence\tlabel\n" + sst2)
        for task, header in pairs.items():
            labels = ("neutral", "entailment", "contradiction") if task == "mnli" else ("0", "1")
            rows = [f"{q}\t{PARAGRAPHS[p]}\t{labels[n % len(labels)]}" for n, (p, q, _) in enumerate(ASKED * 2)]
            name = "mnli-dev_matched.tsv" if (task, split) == ("mnli", "dev") else f"{task}-{split}.tsv"
            (folder / name).write_text("\n".join([header, *rows]) + "\n")
    (folder / "mnli-dev_mismatched.tsv").write_text((folder / "mnli-dev_matched.tsv").read_text())
    rows = [f"{q}\t{PARAGRAPHS[p]}\t{('entailment', 'not_entailment')[n % 2]}" for n, (p, q, _) in enumerate(ASKED)]
    (folder / "qnli-dev.tsv").write_text("\n".join(["question\tsentence\tlabel", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained encoder without a head, as bases are."""
    config = tiny.bert_config(architectures=["BertModel"])
    return tiny.write_model(tmp_path_factory.mktemp("base") / "tiny", config, tiny.bert_tensors(config, head=None))


@pytest.fixture(scope="module")
def distil_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny.distilbert_config(architectures=["DistilBertModel"])
    tensors = {n: t for n, t in tiny.distilbert_tensors(config).items() if not n.startswith("qa_outputs")}
    return tiny.write_model(tmp_path_factory.mktemp("base") / "distil", config, tensors)


def changes_of(name: str, base: Path) -> dict[str, str]:
    models = [s.name for s in read_recipe(name).stages if s.model is not None]
    return {"base": str(base)} | {f"stages.{stage}.model": str(base) for stage in models}


def place_of(recipe: Recipe, data: Path, out: Path, said: list[str] | None = None) -> Place:
    say = (said if said is not None else []).append
    return Place(recipe, "smoke", data, out, say, lambda stage: lambda line: None)


@pytest.mark.parametrize("name", built_in())
def test_every_recipe_at_smoke_scale(name: str, data: Path, base: Path, distil_base: Path, tmp_path: Path) -> None:
    changes = changes_of(name, distil_base if name.startswith("distilbert") else base)
    recipe = read_recipe(name, "smoke", changes=changes)
    said: list[str] = []
    scores = run.run(place_of(recipe, data, tmp_path / "run", said))
    assert list(scores) == [s.name for s in recipe.stages]
    for stage in recipe.stages:
        folder = tmp_path / "run" / f"seed-{recipe.seeds[0]}" / stage.name
        made = read_checkpoint(folder / "model")
        before = folder.parent / recipe.before(stage) / "model"
        density = measure(made).linear_density
        if stage.prune is not None:
            assert density == pytest.approx(1 - stage.prune.sparsity, abs=0.02)
        if stage.lock:
            assert density == pytest.approx(measure(read_checkpoint(before)).linear_density, abs=1e-6)
            poolers = [load_file(f / "model.safetensors").get(POOLER) for f in (before, folder / "model")]
            if stage.task in glue.TASKS and poolers[0] is not None:  # the head stands on it: it is locked too
                np.testing.assert_array_equal(*(p == 0 for p in poolers))
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        measured = [line for line in lines if line.keys() & {"dev_f1", "dev_accuracy", "mlm_loss"}]
        assert len(measured) <= stage.evaluations
        assert measured or lines[-1]["of"] == 1
        if stage.task == "qnli":
            assert any(re.match(f"{stage.name}: [0-9]+ QNLI pairs made from squad-train-v1.1.json", s) for s in said)
        told = json.loads((folder / "model" / "training.json").read_text())
        assert (told["recipe"]["name"], told["stage"], told["seed"]) == (name, stage.name, recipe.seeds[0])
        assert told["versions"]["torch"] == torch.__version__
        assert told["versions"].keys() == {"thinbert", "python", "torch", "accelerate", "numpy", "tokenizers"}
        assert told["scores"].keys() <= scores[stage.name].keys()  # which have their ranges over seeds too
        if stage.task != "mlm":
            packed = json.loads((folder / "packed" / "training.json").read_text())
            assert packed == told
            assert packed["scores"] == scores[stage.name]
            files = {
                sources.plain_name(path) for path in sources.measured(place_of(recipe, data, tmp_path), stage).values()
            }
            assert packed["measured"].keys() == files
            assert all(re.fullmatch("[0-9a-f]{64}", h) for kind in ("data", "measured") for h in packed[kind].values())
            assert str(tmp_path) not in json.dumps(packed)  # it is published: whose folders these were is not
            assert bool(packed["teachers"]) == (stage.distil is not None)
            sizes = {n: (folder / n / "model.safetensors").stat().st_size for n in ("model", "packed")}
            assert sizes["packed"] < sizes["model"] / 2
    again: list[str] = []
    assert run.run(place_of(recipe, data, tmp_path / "run", again)) == scores
    assert again
    assert all("done before" in line for line in again)


def test_no_answer_is_calibrated_on_articles_held_out(data: Path, base: Path, tmp_path: Path) -> None:
    """The threshold and the fitted odds travel with the model, in both of its forms."""
    name = "minilm-squad-1x4-80"
    changes = changes_of(name, base) | {"stages.pruned.passes": "10", "stages.pruned.rate": "1e-3"}
    recipe = read_recipe(name, "smoke", changes=changes)
    place = place_of(recipe, data, tmp_path / "run")
    scores = run.run(place)["pruned"]
    kept, out = (
        {
            q.article
            for q in sources._of_articles(read_squad(data / "squad-train-v1.1.json").questions, stage, held=held)
        }
        for stage, held in ((recipe.stage("pruned"), False), (recipe.stage("pruned"), True))
    )
    assert kept | out == set(range(6))
    assert len(out) == 2
    assert not kept & out
    assert any(not q.answers for q in sources.held_out(place, recipe.stage("pruned")))
    folder = tmp_path / "run" / "seed-0" / "pruned"
    configs = [read_checkpoint(folder / form).config for form in ("model", "packed")]
    assert configs[0].no_answer_calibration == configs[1].no_answer_calibration != (1.0, 0.0)
    assert configs[0].no_answer_threshold == configs[1].no_answer_threshold == scores["no_answer_threshold"]
    assert {"squad2_HasAns_f1", "squad2_NoAns_f1", "squad2_no_answer_auroc", "held_out_auroc"} <= scores.keys()
    assert scores["held_out_calibration_error"] < 0.2


@pytest.mark.parametrize("kept", ["false", "true"])
def test_states_of_another_width_are_followed(kept: str, data: Path, base: Path, tmp_path: Path) -> None:
    """Through a matrix that learns along; the model that is written knows nothing of it."""
    config = tiny.bert_config(hidden_size=64, num_attention_heads=4)
    other = tiny.write_model(tmp_path / "narrow", config, tiny.bert_tensors(config))
    recipe = of_stages(
        "minilm-squad-1x4-80",
        base,
        ("dense",),
        **{
            "stages.dense.passes": "8",
            "stages.dense.rate": "1e-3",
            "stages.dense.distil": f"{{teacher: {base}, hard: 0.01, logits: 0, hidden: 1, cosine: 1, states: {other}, "
            f"keep_states: {kept}}}",
            "stages.dense.hold_out": "0",
            "stages.pruned.hold_out": "0",
        },
    )
    run.run(place_of(recipe, data, tmp_path / "run"))
    folder = tmp_path / "run" / "seed-0" / "dense"
    losses = [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.8 * losses[0]
    assert read_checkpoint(folder / "model").config.width == 128


def test_a_model_as_it_is_keeps_its_calibration(data: Path, base: Path, tmp_path: Path) -> None:
    """What was fitted to weights goes with them, and no further."""
    config = tiny.bert_config(thinbert={"no_answer_threshold": 0.25, "no_answer_calibration": [2.0, -1.0]})
    known = tiny.write_model(tmp_path / "known", config, tiny.bert_tensors(config))
    stages = (
        f"name: kept, task: squad1, model: {known}, passes: 0, tokens: 400, rate: 1.0e-4, max_length: 48, stride: 16",
        "name: trained, task: squad1, stride: 16",
    )
    said: list[str] = []
    run.run(place_of(recipe_of(tmp_path, base, *stages), data, tmp_path / "run", said))
    kept, trained = (
        [read_checkpoint(tmp_path / "run" / "seed-0" / name / form).config for form in ("model", "packed")]
        for name in ("kept", "trained")
    )
    assert [(c.no_answer_threshold, c.no_answer_calibration) for c in kept] == [(0.25, (2.0, -1.0))] * 2
    assert [(c.no_answer_threshold, c.no_answer_calibration) for c in trained] == [(None, (1.0, 0.0))] * 2
    assert any(line.startswith("trained: probabilities of no answer were fitted to") for line in said)
    assert not any(line.startswith("kept: probabilities") for line in said)


def test_a_model_is_not_calibrated_on_top_of_what_it_was(data: Path, base: Path, tmp_path: Path) -> None:
    recipe = read_recipe(
        "minilm-squad-1x4-80",
        "smoke",
        changes=changes_of("minilm-squad-1x4-80", base) | {"stages.pruned.passes": "10", "stages.pruned.rate": "1e-3"},
    )
    run.run(place_of(recipe, data, tmp_path / "run"))
    made = tmp_path / "run" / "seed-0" / "pruned" / "model"
    stage = (
        f"name: again, task: squad1, model: {made}, passes: 0, tokens: 400, rate: 1.0e-4, max_length: 48, stride: 16, "
        f"unanswerable: {recipe.stage('pruned').unanswerable}, hold_out: {recipe.stage('pruned').hold_out}"
    )
    run.run(place_of(recipe_of(tmp_path, base, stage), data, tmp_path / "again"))
    first, again = (read_checkpoint(f).config for f in (made, tmp_path / "again" / "seed-0" / "again" / "model"))
    assert again.no_answer_calibration == pytest.approx(first.no_answer_calibration, rel=0.02) != (1.0, 0.0)
    assert again.no_answer_threshold == pytest.approx(first.no_answer_threshold, rel=0.02)


def test_what_is_held_out_was_never_learnt(data: Path, base: Path, tmp_path: Path) -> None:
    held = "unanswerable: 1.0, hold_out: 0.3"
    with pytest.raises(
        InputError, match=r"stage then: hold_out is 0.3, and of first, which it comes from, 0; give both"
    ):
        recipe_of(tmp_path, base, "name: first, task: squad1", f"name: then, task: squad1, {held}")
    recipe_of(tmp_path, base, f"name: first, task: squad1, {held}", f"name: then, task: squad1, {held}")
    recipe_of(
        tmp_path, base, "name: first, task: squad1, passes: 0, tokens: 9, rate: 1", f"name: then, task: squad1, {held}"
    )
    recipe_of(tmp_path, base, "name: first, task: sst2", f"name: then, task: squad1, {held}")


def test_questions_longer_than_windows_leave_room_for(base: Path, data: Path, tmp_path: Path) -> None:
    """They are cut, as they are when they are answered."""
    long = tmp_path / "long"
    shutil.copytree(data, long)
    squad = json.loads((long / "squad-train-v1.1.json").read_text())
    for article in squad["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                qa["question"] *= 10
    (long / "squad-train-v1.1.json").write_text(json.dumps(squad))
    recipe = recipe_of(
        tmp_path, base, "name: squad, task: squad1, passes: 1, tokens: 400, rate: 1.0e-4, max_length: 32, stride: 16"
    )
    tokenizer = read_tokenizer(base, vocabulary=read_checkpoint(base).config.vocabulary)
    features = sources.training(place_of(recipe, long, tmp_path / "run"), recipe.stages[0], tokenizer, 512)
    assert int(features.lengths.max()) == 32
    assert (features.labels["start"] > 0).any()


def of_stages(name: str, base: Path, stages: tuple[str, ...], **changes: str) -> Recipe:
    """Some stages of a recipe at smoke scale."""
    whole = read_recipe(name, "smoke", changes=changes_of(name, base) | changes)
    return whole.model_copy(update={"stages": tuple(s for s in whole.stages if s.name in stages)})


def test_what_is_missing_is_said_before_hours_are_spent(data: Path, base: Path, tmp_path: Path) -> None:
    def refused(stages: tuple[str, ...], match: str, folder: Path = data, **changes: str) -> None:
        recipe = of_stages("pruning-comparison", base, stages, **changes)
        with pytest.raises(Error, match=match):
            run.run(place_of(recipe, folder, tmp_path / "run"))
        assert not (tmp_path / "run" / "seed-0").exists()

    both = ("teacher", "first")
    refused(
        both,
        "stage first: 'teachr' is no stage before it.*; did you mean teacher?",
        **{"stages.first.distil.teacher": "teachr"},
    )
    refused(both, "stage first: part 0.1 of 6 articles is none; give more", **{"stages.first.part": "0.1"})
    refused(both, "stage first: 'first' is no stage before it", **{"stages.first.distil.teacher": "first"})
    some = tmp_path / "some"
    some.mkdir()
    for name in ("squad-train-v1.1.json", "squad-dev-v1.1.json"):
        (some / name).write_text((data / name).read_text())
    both_files = r"some: no text.txt .*; no sst2-train.tsv .*; no sst2-dev.tsv .*; docs/recipes.md says where"
    refused(("teacher", "sst2-teacher", "language"), both_files, some)
    refused(both, "runs/teachr/model", **{"stages.first.distil.teacher": "runs/teachr/model"})
    refused(both, "runs/bsae/model", **{"stages.teacher.model": "runs/bsae/model"})
    refused(
        ("teacher",),
        r"no question without an answer is made from squad-train-v1\.1\.json",
        **{"stages.teacher.task": "squad2"},
    )


def test_a_score_that_cannot_be_had_is_said(data: Path, base: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    shutil.copytree(data, some)
    (some / "mnli-dev_mismatched.tsv").unlink()
    recipe, said = recipe_of(tmp_path, base, "name: mnli, task: mnli"), []
    told = run.run(place_of(recipe, some, tmp_path / "run", said))
    assert {"accuracy"} == {name for name in told["mnli"] if "accuracy" in name and "int8" not in name}
    assert any(re.match("mnli: no mnli-dev_mismatched.tsv in .*some: its score is left out", s) for s in said)


def test_squad2_from_its_own_examples_or_from_made_ones(data: Path, base: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(data, own)
    shutil.copy(own / "squad-dev-v2.0.json", own / "squad-train-v2.0.json")
    for folder, fields, file, made in (
        (own, "", "squad-train-v2.0.json", []),
        (
            data,
            ", unanswerable: 0.5",
            "squad-train-v1.1.json",
            ["squad2: 23 unanswerable pairs made from 48 questions"],
        ),
    ):
        recipe, said = recipe_of(tmp_path, base, f"name: squad2, task: squad2{fields}"), []
        out = tmp_path / f"run-{folder.name}"
        told = run.run(place_of(recipe, folder, out, said))["squad2"]
        assert {"f1", "HasAns_f1", "NoAns_f1", "squad1_f1"} <= told.keys()
        origin = json.loads((out / "seed-0" / "squad2" / "model" / "training.json").read_text())
        assert list(origin["data"]) == [file]
        assert [line for line in said if "unanswerable pairs" in line] == made


def with_other_words(base: Path, folder: Path) -> Path:
    """A copy of a model whose vocabulary stands in another order."""
    shutil.copytree(base, folder)
    words = (folder / "vocab.txt").read_text().split()
    (folder / "vocab.txt").write_text("\n".join([*words[:5], *reversed(words[5:])]) + "\n")
    return folder


def test_a_teacher_with_other_words_is_refused(data: Path, base: Path, tmp_path: Path) -> None:
    other = with_other_words(base, tmp_path / "other")
    recipe = of_stages("pruning-comparison", base, ("teacher", "first"), **{"stages.first.distil.teacher": str(other)})
    with pytest.raises(InputError, match=r"stage first: .*other has another vocabulary"):
        run.run(place_of(recipe, data, tmp_path / "run"))


def test_teachers_are_looked_at_before_hours_are_spent(data: Path, base: Path, tmp_path: Path) -> None:
    """Also those of later stages, made by then or not."""
    other = with_other_words(base, tmp_path / "other")
    config = json.loads((base / "config.json").read_text()) | {"id2label": {"0": "a", "1": "b", "2": "c"}}
    tiny.write_model(tmp_path / "three", config, tiny.bert_tensors(config, head="classify"))
    stages = ("teacher", "first", "sst2-teacher", "sst2-dense")
    moved = {"stages.sst2-dense.start": "first"}
    for changes, message in (
        ({"stages.teacher.model": str(other)}, "stage first: .*other has another vocabulary"),
        (moved | {"stages.sst2-dense.distil.teacher": str(base)}, "stage sst2-dense: .*has no classify_"),
        (moved | {"stages.sst2-dense.distil.teacher": str(tmp_path / "three")}, "has 3 classes; expected 2"),
    ):
        recipe = of_stages("pruning-comparison", base, stages, **{**moved, **changes})
        with pytest.raises(InputError, match=message):
            run.run(place_of(recipe, data, tmp_path / "run"))
        assert not (tmp_path / "run" / "seed-0").exists()


def test_a_teacher_that_cannot_guess_is_refused(data: Path, base: Path, tmp_path: Path) -> None:
    changes = {"stages.sparse-1x4-80.distil.teacher": str(base)}
    recipe = of_stages("pruning-comparison", base, ("language", "sparse-1x4-80"), **changes)
    with pytest.raises(InputError, match="has no mlm_bias, so what it says to mlm is noise"):
        run.run(place_of(recipe, data, tmp_path / "run"))


@pytest.mark.parametrize(
    ("who", "kind", "stages"),
    [("_answers", "f16", ("teacher", "first")), ("_states", "bf16", ("teacher", "first", "dense"))],
)
def test_a_teacher_that_was_interrupted_goes_on(
    who: str,
    kind: str,
    stages: tuple[str, ...],
    data: Path,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = of_stages("pruning-comparison", base, stages)
    monkeypatch.setattr(teachers, "_ASKED", 60)
    ask, asked = getattr(teachers, who), []

    def cut_off(*args: Any) -> Any:
        for number, answer in enumerate(ask(*args)):
            if number == 3:
                raise KeyboardInterrupt
            asked.append(answer[0])
            yield answer

    with monkeypatch.context() as m:
        m.setattr(teachers, who, cut_off)
        with pytest.raises(KeyboardInterrupt):
            run.run(place_of(recipe, data, tmp_path / "run"))
    (partial,) = (tmp_path / "run" / "cache").glob("*.partial")
    with partial.open("ab") as file:
        file.write(b"tor")  # killed in the middle of a row
    firsts = []
    monkeypatch.setattr(teachers, who, lambda *args: (firsts.append(args[-1]), ask(*args))[1])
    run.run(place_of(recipe, data, tmp_path / "run"))
    assert firsts == [asked[-1]]
    run.run(place_of(recipe, data, tmp_path / "whole"))
    files = [next((tmp_path / out / "cache").glob(f"*.{kind}")) for out in ("run", "whole")]
    assert files[0].name == files[1].name
    assert files[0].read_bytes() == files[1].read_bytes()


def test_states_on_disk_are_those_of_a_teacher_that_reads_along(
    data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.bert_config(num_hidden_layers=4)
    deep = read_checkpoint(tiny.write_model(tmp_path / "deep", config, tiny.bert_tensors(config)))
    recipe = of_stages("pruning-comparison", base, ("first",))
    place = place_of(recipe, data, tmp_path / "run")
    words = read_tokenizer(base, vocabulary=len(tiny.VOCABULARY))
    features = sources.training(place, recipe.stages[0], words, 64)
    given = batch(features, np.array([5, 0, 11]))
    kept = teachers.states(place, deep, features, 2)(given)
    with torch.autocast("cpu", torch.bfloat16):
        along = TorchTeacher(from_checkpoint(deep, {})[0])(given)
    assert len(kept.hidden) == 3
    for ours, theirs in zip(kept.hidden, (along.hidden[n] for n in (0, 2, 4)), strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours[given.mask], theirs[given.mask], atol=0.02, rtol=0.01)

    def cannot(*args: Any) -> Any:
        raise AssertionError("asked again")

    with monkeypatch.context() as m:
        m.setattr(teachers, "_states", cannot)
        assert torch.equal(teachers.states(place, deep, features, 2)(given).hidden[1], kept.hidden[1])
    # a disk too small for them is said before hours are spent on filling it
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"what .*deep says takes 0\.0 GB, and 0\.0 GB are free; make room"):
        teachers.states(place, deep, features, 4)
    next((tmp_path / "run" / "cache").glob("*.bf16")).write_bytes(b"half")
    with pytest.raises(InputError, match=r"bf16: has 4 bytes; expected \d+: delete it"):
        teachers.states(place, deep, features, 2)


def test_what_a_stage_was_made_from_is_known(data: Path, base: Path, tmp_path: Path) -> None:
    """Another base, or another teacher of the same name, is another stage: what was made of the first is not taken."""
    config = tiny.bert_config()
    one, two = (tiny.write_model(tmp_path / f"{n}" / "m", config, tiny.bert_tensors(config, seed=n)) for n in (1, 2))
    taught = f"{SQUAD}, distil: {{teacher: {tmp_path / 'teacher'}}}"
    shutil.copytree(one, tmp_path / "teacher")
    run.run(place_of(recipe_of(tmp_path, base, taught), data, tmp_path / "run"))
    with pytest.raises(InputError, match="squad: holds this stage with other start; delete it"):
        run.run(place_of(recipe_of(tmp_path, one, taught), data, tmp_path / "run"))
    shutil.rmtree(tmp_path / "teacher")
    shutil.copytree(two, tmp_path / "teacher")
    with pytest.raises(InputError, match="squad: holds this stage with other teachers; delete it"):
        run.run(place_of(recipe_of(tmp_path, base, taught), data, tmp_path / "run"))
    other = replace(place_of(recipe_of(tmp_path, base, SQUAD), data, tmp_path / "scaled"), scale="small")
    run.run(place_of(other.recipe, data, other.out))
    with pytest.raises(InputError, match="squad: holds this stage with other scale; delete it"):
        run.run(other)


def test_what_is_kept_is_kept_for_what_it_is_of(data: Path, base: Path, tmp_path: Path) -> None:
    """In one folder: of two teachers, and of parts and lengths of one corpus."""
    config = tiny.bert_config()
    made = (tiny.write_model(tmp_path / f"{n}" / "m", config, tiny.bert_tensors(config, seed=n)) for n in (1, 2))
    one, two = map(read_checkpoint, made)
    recipe = recipe_of(tmp_path, base, SQUAD, f"name: mlm, task: mlm, start: base, {SHORT}", corpus="[text.txt]")
    place, tokenizer = place_of(recipe, data, tmp_path / "run"), read_tokenizer(base, vocabulary=len(tiny.VOCABULARY))
    features = sources.training(place, recipe.stages[0], tokenizer, 64)
    said = [np.concatenate(teachers.logits(place, who, features, "squad1")(np.arange(4))) for who in (one, two, one)]
    assert not np.array_equal(said[0], said[1])
    np.testing.assert_array_equal(said[0], said[2])
    language = recipe.stages[1]
    kinds = [{"part": 1.0}, {"part": 0.5}, {"max_length": 24}]
    hashes = [
        sources.training(place, language.model_copy(update=kind), tokenizer, 64).sha256() for kind in (*kinds, kinds[0])
    ]
    assert len(set(hashes)) == 3
    assert hashes[0] == hashes[3]


def test_what_int8_costs_is_what_it_scores_less(
    data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below zero where it scores worse."""

    def measured(model: thinbert.Model, *args: Any) -> dict[str, float]:
        return {"f1": 80.0 if isinstance(model.runtime, Engine) else 82.0}

    monkeypatch.setattr(scores, "measure", measured)
    found = run.run(place_of(recipe_of(tmp_path, base, SQUAD), data, tmp_path / "run"))
    assert found["squad"]["int8_less_float_f1"] == -2.0


def test_classes_go_by_their_names(data: Path, base: Path, tmp_path: Path) -> None:
    """A model, and a teacher, that number their classes otherwise."""
    recipe = of_stages("bert-base-unstructured-90", base, ("mnli-teacher",), **{"stages.mnli-teacher.passes": "3"})
    run.run(place_of(recipe, data, tmp_path / "first"))
    ours = tmp_path / "first" / f"seed-{recipe.seeds[0]}" / "mnli-teacher" / "model"
    theirs = tmp_path / "theirs"
    shutil.copytree(ours, theirs)
    order = [1, 0, 2]  # entailment, contradiction, neutral
    tensors = load_file(ours / "model.safetensors")
    names = json.loads((ours / "config.json").read_text())["id2label"]
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = np.ascontiguousarray(tensors[name][order])
    save_file(tensors, theirs / "model.safetensors")
    config = json.loads((theirs / "config.json").read_text())
    config["id2label"] = {str(n): names[str(old)] for n, old in enumerate(order)}
    (theirs / "config.json").write_text(json.dumps(config))
    # as it is: the same model comes out, in the task's order
    changes = {"stages.mnli-teacher.model": str(theirs), "stages.mnli-teacher.passes": "0"}
    changes["stages.mnli-teacher.start"] = "null"
    recipe = of_stages("bert-base-unstructured-90", base, ("mnli-teacher",), **changes)
    run.run(place_of(recipe, data, tmp_path / "again"))
    again = tmp_path / "again" / f"seed-{recipe.seeds[0]}" / "mnli-teacher" / "model"
    np.testing.assert_array_equal(
        load_file(again / "model.safetensors")["classifier.weight"],
        load_file(ours / "model.safetensors")["classifier.weight"],
    )
    assert json.loads((again / "config.json").read_text())["id2label"] == names
    # and what both say as teachers is the same
    features = sources.training(
        place_of(recipe, data, tmp_path / "x"),
        recipe.stages[0],
        read_tokenizer(base, vocabulary=len(tiny.VOCABULARY)),
        64,
    )
    said = [
        np.stack(
            teachers.logits(place_of(recipe, data, tmp_path / who), read_checkpoint(folder), features, "mnli")(
                np.arange(8)
            )
        )
        for who, folder in (("a", ours), ("b", theirs))
    ]
    np.testing.assert_allclose(*said, atol=2e-3)  # one is asked in its packed form, whose head is rounded
    assert np.ptp(said[0], axis=1).min() > 0.02


SHORT = "passes: 1, tokens: 400, rate: 1.0e-4, max_length: 48, evaluations: 0"


def recipe_of(tmp_path: Path, base: Path, *stages: str, seeds: str = "[0]", corpus: str = "[]") -> Recipe:
    """A recipe of stages in YAML; each has what SHORT says unless it says how long itself."""
    lines = [f"  - {{{s if 'passes' in s else f'{s}, {SHORT}'}}}" for s in stages]
    text = [f"name: short\nabout: a test\nbase: {base}\nseeds: {seeds}\ncorpus: {corpus}\nstages:", *lines]
    (tmp_path / "short.yaml").write_text("\n".join(text))
    return read_recipe(tmp_path / "short.yaml")


SST2, MNLI, SQUAD = "name: sst2, task: sst2", "name: mnli, task: mnli", "name: squad, task: squad1, stride: 16"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((SST2, "name: locked, task: sst2, lock: true"), "stage locked: lock, but .*tiny has no zeros to keep"),
        (
            (MNLI, "name: ready, task: sst2, passes: 0, tokens: 400, rate: 1.0e-4"),
            "stage ready: passes is 0, and .*tiny has no classify_hidden, classify_out for sst2",
        ),
        (
            (SST2, "name: squad, task: squad2, unanswerable: 0.5, hold_out: 0.05"),
            "stage squad: hold_out 0.05 of 6 articles is none; give more",
        ),
    ],
)
def test_stages_that_could_not_begin(
    stages: tuple[str, ...], message: str, data: Path, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        run.run(place_of(recipe_of(tmp_path, base, *stages), data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_data_of_all_stages_are_read_before_the_first(data: Path, base: Path, tmp_path: Path) -> None:
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    recipe = recipe_of(tmp_path, base, SST2, MNLI)
    (broken / "mnli-dev_mismatched.tsv").write_text("one\ttwo\n")
    with pytest.raises(InputError, match=r"mnli-dev_mismatched.tsv: the first line names one, two; expected"):
        run.run(place_of(recipe, broken, tmp_path / "run"))
    (broken / "text.txt").write_text("One line.\nAnother line.\n" * 99)
    recipe = recipe_of(tmp_path, base, SST2, "name: words, task: mlm", corpus="[text.txt]")
    with pytest.raises(InputError, match=r"text.txt: expected several documents with empty lines between them"):
        run.run(place_of(recipe, broken, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_teacher_must_read_as_much(data: Path, base: Path, tmp_path: Path) -> None:
    config = tiny.bert_config(max_position_embeddings=32)
    short = tiny.write_model(tmp_path / "short", config, tiny.bert_tensors(config))
    recipe = recipe_of(tmp_path, base, f"name: squad, task: squad1, distil: {{teacher: {short}}}")
    with pytest.raises(
        InputError, match=r"stage squad: .*short reads 32 tokens, and windows have 48; lower max_length"
    ):
        run.run(place_of(recipe, data, tmp_path / "run"))


def test_a_head_of_another_task_begins_anew(data: Path, base: Path, tmp_path: Path) -> None:
    """Of as many classes, too; the layer before it goes on."""
    said: list[str] = []
    stages = (MNLI, SST2, "name: qqp, task: qqp", "name: again, task: qqp, start: qqp")
    run.run(place_of(recipe_of(tmp_path, base, *stages), data, tmp_path / "run", said))
    begun = [line for line in said if "begin anew" in line]
    assert [line.split(":")[0] for line in begun] == ["mnli", "sst2", "qqp"]
    assert ["classify_hidden" in line for line in begun] == [True, False, False]


def test_data_may_be_unpacked_meanwhile(data: Path, base: Path, tmp_path: Path) -> None:
    packed = tmp_path / "data"
    shutil.copytree(data, packed)
    plain = packed / "sst2-train.tsv"
    (packed / "sst2-train.tsv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    content = plain.read_bytes()
    plain.unlink()
    place = place_of(recipe_of(tmp_path, base, SST2), packed, tmp_path / "run")
    first = run.run(place)
    plain.write_bytes(content)
    assert run.run(place) == first


def test_what_was_made_once_is_found_with_other_seeds(data: Path, base: Path, tmp_path: Path) -> None:
    stages = ("name: first, task: sst2, once: true", "name: then, task: sst2")
    for seeds, there in (("[2, 1]", {"first", "then"}), ("[3]", {"then"})):
        run.run(place_of(recipe_of(tmp_path, base, *stages, seeds=seeds), data, tmp_path / "run"))
        seed = seeds[1]
        assert {p.name for p in (tmp_path / "run" / f"seed-{seed}").iterdir()} == there


def test_a_rate_that_was_too_high_is_lowered(
    data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a stage under way, and it is told; one that is done is another with another rate."""
    before, out = run.train, tmp_path / "run"
    with monkeypatch.context() as m:
        m.setattr(run, "train", lambda *args, **options: (before(*args, **options, stop_after=2), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            run.run(place_of(recipe_of(tmp_path, base, SST2), data, out))
    lower = recipe_of(tmp_path, base, f"{SST2}, {SHORT.replace('1.0e-4', '5.0e-5')}")
    longer = lower.model_copy(update={"stages": (lower.stages[0].model_copy(update={"passes": 2.0}),)})
    said: list[str] = []
    with pytest.raises(InputError, match=r"holds this stage with other (rate, passes|passes, rate)"):
        run.run(place_of(longer, data, out, said))
    assert not any("goes on" in line for line in said)
    run.run(place_of(lower, data, out, said))
    assert "sst2: goes on with rate 5e-05, where it had 0.0001" in said
    assert json.loads((out / "seed-0" / "sst2" / "packed" / "training.json").read_text())["rates_before"] == [1e-4]
    with pytest.raises(
        InputError, match=r"its rate was lowered to 5e-05 under way; go on with --set stages.sst2.rate=5e-05"
    ):
        run.run(place_of(recipe_of(tmp_path, base, SST2), data, out))
    (out / "seed-0" / "sst2" / "scores.json").unlink()
    higher = recipe_of(tmp_path, base, f"{SST2}, {SHORT.replace('1.0e-4', '2.0e-4')}")
    with pytest.raises(InputError, match="holds this stage with other rate"):
        run.run(place_of(higher, data, out))


def test_scores_that_cannot_be_had_on_the_way_end_nothing(
    data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    stage = "name: sst2, task: sst2, passes: 4, tokens: 400, rate: 1.0e-4, max_length: 48, evaluations: 1"
    with monkeypatch.context() as m:
        m.setattr(scores, "pack", full)
        run.run(place_of(recipe_of(tmp_path, base, stage), data, tmp_path / "run"))
    folder = tmp_path / "run" / "seed-0" / "sst2"
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["not_evaluated"] for line in lines if "not_evaluated" in line] == ["No space left on device"]
    assert (folder / "scores.json").exists()
    assert not (folder / "evaluating").exists()


def test_pairs_made_of_a_part_stay_together(base: Path, data: Path, tmp_path: Path) -> None:
    """Each question of QNLI made from SQuAD with the sentence that answers it, and with one that does not."""
    recipe = recipe_of(tmp_path, base, "name: qnli, task: qnli, part: 0.5")
    place = place_of(recipe, data, tmp_path / "run")
    tokenizer = read_tokenizer(base, vocabulary=len(tiny.VOCABULARY))
    half = sources.training(place, recipe.stages[0], tokenizer, 64)
    whole = sources.training(place, recipe.stages[0].model_copy(update={"part": 1.0}), tokenizer, 64)
    assert 2 * len(half) == len(whole)
    assert half.labels["class"].sum() * 2 == len(half)


def test_configurations_of_accelerate_change_no_step(
    data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for parts in ("1", "4"):
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", parts)
        run.run(place_of(recipe_of(tmp_path, base, SST2), data, tmp_path / parts))
        made.append(load_file(tmp_path / parts / "seed-0" / "sst2" / "model" / "model.safetensors"))
    for name, tensor in made[0].items():
        np.testing.assert_array_equal(tensor, made[1][name], name)


def test_what_a_killed_run_left_is_taken_away(data: Path, base: Path, tmp_path: Path) -> None:
    place = place_of(recipe_of(tmp_path, base, SST2), data, tmp_path / "run")
    folder = tmp_path / "run" / "seed-0" / "sst2"
    folder.mkdir(parents=True)
    (folder / ".state.pt.0123abcd.tmp").write_bytes(b"half")
    (folder / "evaluating").mkdir()
    run.run(place)
    assert sorted(f.name for f in folder.iterdir()) == [
        "log.jsonl",
        "model",
        "packed",
        "scores.json",
        "settings.json",
        "stage.json",
    ]


def test_an_estimate_of_a_head_that_begins_anew(data: Path, base: Path, tmp_path: Path) -> None:
    """A base that tells two classes apart is to tell three."""
    labels = {"0": "no", "1": "yes"}
    config = tiny.bert_config(architectures=["BertForSequenceClassification"], id2label=labels)
    two = tiny.write_model(tmp_path / "two", config, tiny.bert_tensors(config, head="classify"))
    recipe = recipe_of(tmp_path, two, MNLI)
    assert [row["stage"] for row in run.estimate(place_of(recipe, data, tmp_path / "run"), timed=1)] == ["mnli"]


def test_an_estimate_counts_what_teachers_take(data: Path, base: Path, tmp_path: Path) -> None:
    """In pre-training their logits are of every step; and they are as deep as those that will teach."""
    config = tiny.bert_config(num_hidden_layers=4)
    deep = tiny.write_model(tmp_path / "deep", config, tiny.bert_tensors(config, head=None))
    there = run._taught_by_those_there
    recipe = recipe_of(
        tmp_path,
        base,
        f"name: words, task: mlm, model: {deep}",
        "name: thin, task: mlm, start: base, distil: {teacher: words, logits: 0.5, everywhere: true, hidden: 1.0}",
        "name: sst2-teacher, task: sst2, start: words",
        "name: sst2, task: sst2, start: thin, distil: {teacher: sst2-teacher, states: words, hidden: 1.0}",
        corpus="[text.txt]",
    )
    thin, sst2 = there(recipe, recipe.stage("thin")).distil, there(recipe, recipe.stage("sst2")).distil
    assert thin is not None
    assert sst2 is not None
    assert (thin.teacher, thin.logits, thin.everywhere) == (str(deep), 0.5, True)
    assert (sst2.teacher, sst2.states, sst2.logits, sst2.hidden) == (str(deep), str(deep), 0.0, 1.0)
    rows = run.estimate(place_of(recipe, data, tmp_path / "run"))
    assert [row["stage"] for row in rows] == list(recipe.names)


def test_one_run_at_a_time_in_a_folder(data: Path, base: Path, tmp_path: Path) -> None:
    recipe = of_stages("pruning-comparison", base, ("teacher",))
    (tmp_path / "run").mkdir()
    with run._locked(tmp_path / "run"), pytest.raises(InputError, match="another process is writing here"):
        run.run(place_of(recipe, data, tmp_path / "run"))
    with run._locked(tmp_path / "run"), pytest.raises(InputError, match="another process is writing here"):
        run.estimate(place_of(recipe, data, tmp_path / "run"))
    run.run(place_of(recipe, data, tmp_path / "run"))


def test_killed_while_packing(data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A packed folder that was cut off is no reason to stop."""
    recipe = of_stages("pruning-comparison", base, ("teacher",))
    place = place_of(recipe, data, tmp_path / "run")

    packed = tmp_path / "run" / "seed-0" / "teacher" / "packed"

    def cut_off(source: Path, target: Path, names: tuple[str, ...]) -> None:
        if target == packed:
            raise KeyboardInterrupt
        copy_files(source, target, names)

    with monkeypatch.context() as changed:
        changed.setattr("thinbert.model.pack.copy_files", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run.run(place)
    with pytest.raises(ModelError, match="was not packed to its end; pack the model into it again"):
        read_checkpoint(packed)
    run.run(place)
    read_checkpoint(packed)


def test_made_once_for_all_seeds(data: Path, base: Path, tmp_path: Path) -> None:
    changes = changes_of("bert-base-unstructured-90", base) | {"seeds": "[3, 4]"}
    whole = read_recipe("bert-base-unstructured-90", "smoke", changes=changes)
    stages = tuple(s for s in whole.stages if s.name in ("sst2-teacher", "sst2-int8"))
    stages = (stages[0], stages[1].model_copy(update={"start": "sst2-teacher", "lock": False}))
    place = place_of(whole.model_copy(update={"stages": stages}), data, tmp_path / "run")
    scores = run.run(place)
    assert {p.name: sorted(s.name for s in p.iterdir()) for p in (tmp_path / "run").glob("seed-*")} == {
        "seed-3": ["sst2-int8", "sst2-teacher"],
        "seed-4": ["sst2-int8"],
    }
    assert "accuracy_range" in scores["sst2-int8"]
    assert "accuracy_range" not in scores["sst2-teacher"]


def test_training_under_the_engines_rounding(data: Path, base: Path, tmp_path: Path) -> None:
    """`quantise` reaches the loss."""
    changes = changes_of("bert-base-unstructured-90", base)
    recipe = read_recipe("bert-base-unstructured-90", "smoke", changes=changes)
    losses = []
    for quantise in (False, True):
        asked = {"start": "base", "lock": False, "quantise": quantise, "distil": None}
        stage = recipe.stage("squad-int8").model_copy(update=asked)
        out = tmp_path / str(quantise)
        run.run(place_of(recipe.model_copy(update={"stages": (stage,)}), data, out))
        losses.append(json.loads((out / "seed-1" / stage.name / "log.jsonl").read_text().splitlines()[-1])["loss"])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_under_rounding_dead_neurons_are_cut_first(data: Path, base: Path, tmp_path: Path) -> None:
    """As packing will: what a neuron without inputs adds is in the bias from the first step on."""
    dead = tmp_path / "dead"
    shutil.copytree(base, dead)
    tensors = load_file(dead / "model.safetensors")
    inner, outer = (f"bert.encoder.layer.0.{part}.dense.weight" for part in ("intermediate", "output"))
    tensors[inner][8:12] = 0
    save_file(tensors, dead / "model.safetensors")
    recipe = read_recipe("bert-base-unstructured-90", "smoke", changes=changes_of("bert-base-unstructured-90", base))
    stage = recipe.stage("squad-int8").model_copy(update={"start": None, "model": str(dead), "distil": None})
    run.run(place_of(recipe.model_copy(update={"stages": (stage,)}), data, tmp_path / "run"))
    made = load_file(tmp_path / "run" / "seed-1" / stage.name / "model" / "model.safetensors")[outer]
    assert not made[:, 8:12].any()
    assert made[:, 12:].any(axis=0).all()


def test_nothing_to_lock(data: Path, base: Path, tmp_path: Path) -> None:
    recipe = read_recipe("bert-base-unstructured-90", "smoke", changes=changes_of("bert-base-unstructured-90", base))
    stage = recipe.stage("squad-int8").model_copy(update={"start": "base", "distil": None})
    with pytest.raises(InputError, match=r"stage squad-int8: lock, but .*tiny has no zeros to keep"):
        run.run(place_of(recipe.model_copy(update={"stages": (stage,)}), data, tmp_path / "run"))


@pytest.mark.parametrize("name", ["squad-teacher", "sst2-teacher"])
def test_measured_in_windows_as_trained_in(
    name: str, data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_recipe("bert-base-unstructured-90", "smoke", changes=changes_of("bert-base-unstructured-90", base))
    limit = {"squad-teacher": 40, "sst2-teacher": 24}[name]
    stage = recipe.stage(name).model_copy(update={"max_length": limit, "stride": 8, "evaluations": 0})
    lengths: list[int] = []
    for call in ("forward", "classify"):
        real = getattr(thinbert.Model, call)

        def noted(self: Any, ids: Any, types: Any, of: list[int], real: Any = real) -> Any:
            lengths.extend(of)
            return real(self, ids, types, of)

        monkeypatch.setattr(thinbert.Model, call, noted)
    run.run(place_of(recipe.model_copy(update={"stages": (stage,)}), data, tmp_path / "run"))
    assert max(lengths) == limit


def test_nothing_is_left_behind(data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No packed models in the user's cache, and no states of stages that are done."""
    monkeypatch.setenv("THINBERT_CACHE", str(tmp_path / "cache"))
    recipe = read_recipe("minilm-squad-1x4-80", "smoke", changes=changes_of("minilm-squad-1x4-80", base))
    run.run(place_of(recipe, data, tmp_path / "run"))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert not list((tmp_path / "run").rglob("state.pt"))


def test_other_data_is_another_stage(data: Path, base: Path, tmp_path: Path) -> None:
    recipe = of_stages("pruning-comparison", base, ("teacher",))
    run.run(place_of(recipe, data, tmp_path / "run"))
    other = tmp_path / "data"
    shutil.copytree(data, other)
    squad = json.loads((other / "squad-train-v1.1.json").read_text())
    asked = squad["data"][0]["paragraphs"][0]["qas"][0]
    asked["question"] = asked["question"].upper()
    changed = json.dumps(squad)
    assert len(changed) == (other / "squad-train-v1.1.json").stat().st_size
    (other / "squad-train-v1.1.json").write_text(changed)
    with pytest.raises(InputError, match="holds this stage with other data"):
        run.run(place_of(recipe, other, tmp_path / "run"))


def test_two_processes_carry_a_recipe_out_together(data: Path, base: Path, tmp_path: Path) -> None:
    """What `torchrun -m thinbert compress …` does: the main process asks, exports and scores, alone."""
    given = ["compress", "minilm-squad-1x4-80", "--scale", "smoke", "--data", str(data)]
    given += [f"--set={key}={value}" for key, value in changes_of("minilm-squad-1x4-80", base).items()]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "thinbert"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*launch, *given, "--out", tmp_path / "two"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    subprocess.run(
        [sys.executable, "-m", "thinbert", *given, "--out", tmp_path / "one"],
        env=environment,
        check=True,
        capture_output=True,
    )
    one, two = (json.loads((tmp_path / out / "scores.json").read_text()) for out in ("one", "two"))
    assert one.keys() == two.keys()
    assert one["teacher"].keys() == two["teacher"].keys()
    logs = [(tmp_path / out / "seed-0" / "dense" / "log.jsonl").read_text().splitlines() for out in ("one", "two")]
    assert len(logs[0]) == len(logs[1])
    for a, b in zip(*logs, strict=True):
        assert json.loads(a)["loss"] == pytest.approx(json.loads(b)["loss"], rel=5e-2)


def test_one_pool_for_all_matrices(data: Path, base: Path, tmp_path: Path) -> None:
    """Global scope: the share is that of all weights together, and matrices differ."""
    changes = changes_of("pruning-comparison", base) | {"stages.magnitude-1x4-80.prune.scope": "global"}
    whole = read_recipe("pruning-comparison", "smoke", changes=changes)
    stages = tuple(s for s in whole.stages if s.name in ("teacher", "first", "magnitude-1x4-80"))
    run.run(place_of(whole.model_copy(update={"stages": stages}), data, tmp_path / "run"))
    found = measure(read_checkpoint(tmp_path / "run" / "seed-0" / "magnitude-1x4-80" / "model"))
    assert found.linear_density == pytest.approx(0.2, abs=0.01)
    densities = {round(t.density, 3) for t in found.tensors}
    assert len(densities) > 3


def test_an_exported_model_loads_in_transformers(data: Path, base: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    recipe = read_recipe("minilm-squad-1x4-80", "smoke", changes=changes_of("minilm-squad-1x4-80", base))
    run.run(place_of(recipe, data, tmp_path / "run"))
    folder = tmp_path / "run" / "seed-0" / "pruned" / "model"
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    ids, types, lengths = tiny.ragged([20])
    with torch.no_grad():
        out = theirs(
            torch.from_numpy(ids.astype(np.int64))[None], token_type_ids=torch.from_numpy(types.astype(np.int64))[None]
        )
    ours = thinbert.load(str(folder), precision="float32").forward(ids, types, lengths)
    np.testing.assert_allclose(ours[:, 0], out.start_logits[0].numpy(), rtol=1e-3, atol=1e-4)


def stage_with(**fields: Any) -> dict[str, Any]:
    return {"stages": [{"name": "a", "task": "squad1", "passes": 1, "tokens": 9, "rate": 1, **fields}]}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"baes": "x"}, r"baes: unknown key; did you mean base\?"),
    ({"scale": {"small": {}}}, r"scale: unknown key; did you mean scales\?"),
    ({"extend": "x"}, r"extend: unknown key; did you mean extends\?"),
    (
        {"stages": [{"name": "a", "task": "squad1", "passes": 1, "tokens": 9, "rate": 1, "weight_dcay": 0}]},
        "stage a.weight_dcay: unknown key; did you mean weight_decay",
    ),
    (
        {
            "stages": [
                {
                    "name": "a",
                    "task": "squad1",
                    "passes": 1,
                    "tokens": 9,
                    "rate": 1,
                    "prune": {"sparsity": 0.5, "blok": "1x4"},
                }
            ]
        },
        "stage a.prune.blok: unknown key; did you mean block",
    ),
    (
        {"stages": [{"name": "a", "task": "squad1", "passes": 1, "steps": 3, "tokens": 9, "rate": 1}]},
        "stage a: give passes or steps, one of them",
    ),
    (
        {"stages": [{"name": "a", "task": "squad1", "passes": 1, "tokens": 9, "rate": 1, "start": "b"}]},
        "stage a starts from 'b'; before it there are base",
    ),
    (
        {"stages": [{"name": "a", "task": "squad1", "passes": 1, "tokens": 9, "rate": 1, "prune": {"sparsity": 1.5}}]},
        "stage a.prune.sparsity: Input should be less than or equal to 1",
    ),
    (
        {"stages": [{"name": "a", "task": "mlm", "passes": 1, "tokens": 9, "rate": 1}]},
        "a stage of the task mlm needs a corpus",
    ),
    (
        {
            "corpus": ["x"],
            "stages": [
                {
                    "name": "a",
                    "task": "mlm",
                    "passes": 1,
                    "tokens": 9,
                    "rate": 1,
                    "distil": {"teacher": "b", "states": "c", "hidden": 1},
                }
            ],
        },
        "distil.states is for tasks",
    ),
    (stage_with(distil={"teacher": "b", "states": "c"}), "states without hidden, cosine or attention"),
    (stage_with(distil={"teacher": "b", "keep_states": True}), "keep_states is for hidden or cosine without attention"),
    (
        stage_with(distil={"teacher": "b", "hidden": 1, "attention": 1, "keep_states": True}),
        "keep_states is for hidden or cosine without attention",
    ),
    (
        {
            **stage_with(task="mlm", distil={"teacher": "b", "hard": 1, "hidden": 1, "keep_states": True}),
            "corpus": ["text.txt"],
        },
        "distil.keep_states is for tasks",
    ),
    (stage_with(distil={"teacher": "b", "logits": 0, "hidden": 1}), "nothing would reach the heads"),
    (stage_with(passes=float("inf")), "stage a.passes: Input should be a finite number"),
    (stage_with(task="sst2", stride=16), "stride is for squad1 and squad2"),
    (stage_with(hold_out=0.1), "hold_out without unanswerable"),
    (
        {"stages": [*stage_with()["stages"], *stage_with(name="b", task="sst2", distil={"teacher": "a"})["stages"]]},
        "stage b: its teacher a learns another task",
    ),
    (stage_with(distil={"teacher": "b", "everywhere": True}), "everywhere is for pre-training"),
    (stage_with(prune={"sparsity": 0.5, "policy_end": 0, "criterion": "fisher"}), "with policy_end 0 there are none"),
    (stage_with(prune={"sparsity": 0.5, "policy_end": 0.97, "end": 1.0}, rewind=True), "5 times the warm-up"),
    ({"seeds": [-1]}, "seeds.0: Input should be greater than or equal to 0"),
    ({"seeds": []}, "seeds: .*at least 1 item"),
    ({"seeds": [1, 1]}, "seeds 1, 1: one is named twice"),
    ({"scales": 5}, "scales has 5; expected small and smoke"),
    ({"stages": []}, "stages: .*at least 1 item"),
    ({"scales": {"tiny": {}}}, "scales has 'tiny'; expected small and smoke"),
    (stage_with(passes=0, prune={"sparsity": 0.5}), "passes 0 and prune: step by step needs steps"),
    (stage_with(part=0), "a.part: Input should be greater than 0"),
    ({"seeds": [10**23]}, "seeds.0: Input should be less than"),
    ({"stages": [5]}, r"^[^;]*stage 0: Input should be[^;]*$"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_recipes_say_where(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    good = {
        "name": "x",
        "about": "a test",
        "base": "b",
        "stages": [{"name": "a", "task": "squad1", "passes": 1, "tokens": 9, "rate": 1}],
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(good))  # JSON is YAML
    assert read_recipe(path).stages[0].name == "a"
    path.write_text(json.dumps({**good, **change}))
    with pytest.raises(InputError, match=message):
        read_recipe(path)


def test_recipes_that_yaml_would_take_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\nabout: a\nbase: b\nname: y\n")
    with pytest.raises(InputError, match=r"not valid YAML: name is there twice\n.*line 4"):
        read_recipe(path)
    many = ["a: &a {" + ", ".join(f"k{n}: 0" for n in range(900)) + "}"]
    path.write_text("\n".join([*many, "b: {<<: [*a, *a]}"]))
    with pytest.raises(InputError, match="more than 1000 fields"):
        read_recipe(path)
    tens = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 9))
    for where in ("scales: *l8", "stages: [{name: a}]\nscales: {small: {stages: {a: *l8}}}"):
        path.write_text(f"l0: &l0 [x]\n{tens}\n{where}\n")
        with pytest.raises(InputError) as e:
            read_recipe(path, "small")
        assert len(str(e.value)) < 1000


@pytest.mark.parametrize("text", ["about: 2021-99-99", "[" * 5000, "a: [", "\0"])
def test_files_that_are_not_yaml(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InputError, match="not valid YAML"):
        read_recipe(tmp_path / "recipe.yaml")


def test_a_change_hides_no_fault(tmp_path: Path) -> None:
    """Stages without a name, with one twice, and what is no stage are found, also where something else is changed."""
    stage = {"name": "a", "task": "squad1", "passes": 1, "tokens": 9, "rate": 1}
    nameless = {key: value for key, value in stage.items() if key != "name"}
    for stages, message in (
        ([stage, nameless], "stage 1.name: Field required"),
        ([stage, stage], "two stages are named a"),
        ([stage, {**stage, "name": ["a"]}], "name: Input should be a valid string"),
        ([stage, 7], "stage 1: Input should be a valid dictionary"),
        (None, "stages: Field required"),
        ("a", "stages: Input should be a valid tuple"),
    ):
        recipe = {"name": "x", "about": "a test", "base": "b"} | ({} if stages is None else {"stages": stages})
        (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
        with pytest.raises(InputError, match=message):
            read_recipe(tmp_path / "recipe.yaml", changes={"seeds": "[3]"})


def test_scales_and_changes(tmp_path: Path) -> None:
    small = read_recipe("minilm-squad-1x4-80", "small")
    full = read_recipe("minilm-squad-1x4-80")
    assert small.stage("pruned").part == 0.25
    assert small.stage("pruned").prune == full.stage("pruned").prune
    changed = read_recipe("minilm-squad-1x4-80", changes={"stages.pruned.prune.sparsity": "0.5", "seeds": "[3, 4]"})
    prune = changed.stage("pruned").prune
    assert prune is not None
    assert (prune.sparsity, prune.block, changed.seeds) == (0.5, "1x4", (3, 4))
    with pytest.raises(InputError, match="there is no stage prund; did you mean pruned"):
        read_recipe("minilm-squad-1x4-80", changes={"stages.prund.rate": "1"})
    for change, message in (
        ({"base": "["}, "change base: '\\[' is not valid YAML"),
        ({"stages": "3"}, "change stages: expected fields of the recipe and, under stages, stage name -> fields"),
        ({"stages.pruned": "3"}, "stage pruned is 3; expected its fields"),
    ):
        with pytest.raises(InputError, match=message):
            read_recipe("minilm-squad-1x4-80", changes=change)
    with pytest.raises(InputError, match=r"no such recipe; did you mean minilm-squad-1x4-80\?"):
        read_recipe("minilm-squad-1x4-8")
    with pytest.raises(InputError, match="scale 'huge'; expected full, small, smoke"):
        read_recipe("minilm-squad-1x4-80", "huge")


def test_recipes_that_extend_others(tmp_path: Path) -> None:
    one, other = read_recipe("bert-base-unstructured-90"), read_recipe("distilbert-unstructured-90")
    assert [s.name for s in one.stages] == [s.name for s in other.stages]
    prune = other.stage("sparse").prune
    assert prune is not None
    assert prune.sparsity == 0.9  # of its own, though what it extends has another
    assert other.stage("squad").rate == 1.8e-4
    assert one.stage("squad").rate == 1.5e-4
    assert {s.task for s in one.stages} == {"mlm", "squad1", "mnli", "qqp", "qnli", "sst2"}
    path = tmp_path / "a.yaml"
    path.write_text("extends: a.yaml")
    with pytest.raises(InputError, match="extends more than 4 recipes"):
        read_recipe(path)
    path.write_text("extends: bert-base-unstructured-90\nstages: [1]")
    with pytest.raises(InputError, match="under stages, stage name -> fields"):
        read_recipe(path)
    path.write_text("extends: bert-base-unstructured-90\nstages: {spars: {rate: 1}}")
    with pytest.raises(InputError, match="there is no stage spars; did you mean sparse"):
        read_recipe(path)


def test_scales_are_inherited(tmp_path: Path) -> None:
    """A recipe that extends another has its scales, less what differs; of stages that are gone nothing."""
    path, parent = tmp_path / "a.yaml", "bert-base-unstructured-90"
    own = "stages: {sparse: {prune: {block: 1x4}}, sst2-int8: null}"
    path.write_text(
        f"extends: {parent}\n{own}\nscales: {{small: {{stages: {{sparse: {{steps: 7, prune: {{times: 9}}}}}}}}}}"
    )
    small, theirs = read_recipe(path, "small"), read_recipe(parent, "small")
    assert small.base == theirs.base
    assert small.names == theirs.names[:-1]
    sparse, before = small.stage("sparse"), theirs.stage("sparse")
    assert (sparse.steps, before.steps) == (7, 900)
    assert sparse.prune is not None
    assert (sparse.prune.times, sparse.prune.block, sparse.prune.sparsity) == (9, "1x4", 0.9)
    assert sparse.tokens == before.tokens
    assert read_recipe(path, "smoke").stage("sparse").steps == 20
    path.write_text(f"extends: {parent}\nscales: {{small: [1]}}")
    with pytest.raises(InputError, match=r"scales.small: expected fields of the recipe"):
        read_recipe(path, "small")
    path.write_text(f"extends: {parent}\nscales: 3")
    with pytest.raises(InputError, match="scales has 3; expected small and smoke"):
        read_recipe(path, "small")


@pytest.mark.parametrize("name", built_in())
def test_recipes_can_be_read_at_each_scale(name: str) -> None:
    assert {"full", "smoke"} <= set(scales_of(name))
    whole = read_recipe(name)
    for scale in scales_of(name):
        assert set(read_recipe(name, scale).names) <= set(whole.names)


def test_published_settings() -> None:
    """The schedule of the published runs: 100,000 steps, sparse by 50,000, a mask every 1,000 until 80,000."""
    stage = read_recipe("bert-base-unstructured-90").stage("sparse")
    pruning = run._pruning(stage, 100_000)
    assert pruning is not None
    s = pruning.schedule
    assert (s.target, s.begin, s.policy_end, s.end, s.frequency) == (0.9, 0, 50_000, 80_000, 1_000)
    assert stage.rewind
    assert stage.distil is not None
    assert stage.distil.everywhere
    assert (pretrain.MASKING, pretrain.AS_MASK, pretrain.AS_RANDOM) == (0.15, 0.8, 0.1)
    assert (pretrain.SHORT, pretrain.OTHER) == (0.1, 0.5)


@pytest.mark.parametrize(
    ("name", "base", "block", "sparsity"),
    [
        ("bert-base-1x4-80", "google-bert/bert-base-uncased", "1x4", 0.8),
        ("bert-base-unstructured-85", "google-bert/bert-base-uncased", "1x1", 0.85),
        ("bert-base-unstructured-90", "google-bert/bert-base-uncased", "1x1", 0.9),
        ("bert-large-unstructured-90", "google-bert/bert-large-uncased", "1x1", 0.9),
        ("distilbert-unstructured-85", "distilbert/distilbert-base-uncased", "1x1", 0.85),
        ("distilbert-unstructured-90", "distilbert/distilbert-base-uncased", "1x1", 0.9),
    ],
)
def test_published_models(name: str, base: str, block: str, sparsity: float) -> None:
    recipe = read_recipe(name)
    prune = recipe.stage("sparse").prune
    assert prune is not None
    assert (recipe.base, prune.block, prune.sparsity, recipe.seeds) == (base, block, sparsity, (1, 2))
    assert {s.task for s in recipe.stages} == {"mlm", "squad1", "mnli", "qqp", "qnli", "sst2"}


# passes or steps, examples, rate, warm-up, weight decay
PUBLISHED = {
    ("bert-base-unstructured-90", "teacher"): (100_000, 256, 5e-5, 0.01, 0.01),
    ("bert-base-unstructured-90", "sparse"): (100_000, 256, 5e-5, 0.01, 0.01),
    ("bert-base-unstructured-90", "mnli"): (6, 32, 1e-4, 0, 0),
    ("bert-base-unstructured-90", "qqp"): (6, 32, 1e-4, 0, 0),
    ("bert-base-unstructured-90", "qnli"): (6, 32, 1e-4, 0, 0),
    ("bert-base-unstructured-90", "sst2"): (9, 32, 1e-4, 0, 0),
    ("bert-base-unstructured-90", "squad"): (8, 12, 1.5e-4, 0, 0),
    ("bert-base-unstructured-90", "squad-int8"): (2, 12, 1e-5, 0, 0),
    ("bert-base-1x4-80", "squad"): (8, 12, 1.5e-4, 0, 0),
    ("distilbert-unstructured-85", "squad"): (8, 12, 1.8e-4, 0.05, 0.01),
    ("distilbert-unstructured-90", "squad-int8"): (2, 12, 1e-5, 0.1, 0),
    ("distilbert-unstructured-90", "sst2"): (9, 32, 1.5e-4, 0, 0),
    ("distilbert-unstructured-90", "sst2-int8"): (3, 32, 1e-6, 0.01, 0.01),
}


@pytest.mark.parametrize(("recipe", "stage"), PUBLISHED)
def test_published_hyper_parameters(recipe: str, stage: str) -> None:
    s = read_recipe(recipe).stage(stage)
    assert (s.passes or s.steps, s.examples, s.rate, s.warmup, s.weight_decay) == PUBLISHED[recipe, stage]
    assert s.max_length == {"mlm": 512, "squad1": 384}.get(s.task, 128)
    if stage == "teacher":  # the dense one, which learns from labels alone
        assert (s.distil, s.prune, s.lock) == (None, None, False)
        return
    assert s.distil is not None
    assert s.distil.temperature == 2
    assert (s.distil.hard, s.distil.logits) == ((0.5, 0.5) if s.task == "mlm" else (0, 1))
    assert s.lock != (s.prune is not None)
    assert s.quantise == stage.endswith("int8")


def test_steps_of_the_published_baseline() -> None:
    """Of 88,524 windows of SQuAD in batches of 12, and of GLUE's training sets in batches of 32."""
    recipe = read_recipe("bert-base-downstream-85")
    steps = {"squad": (88_524, 12), "mnli": (392_702, 32), "qqp": (363_846, 32), "qnli": (104_743, 32)}
    for name, (examples, of) in {**steps, "sst2": (67_349, 32)}.items():
        stage = recipe.stage(name)
        pruning = run._pruning(stage, round((stage.passes or 0) * -(-examples // of)))
        assert pruning is not None
        s = pruning.schedule
        published = (1400, 10_000, 12_000, 100) if name == "squad" else (0, 800, 1200, 100)
        assert (s.begin, s.policy_end, s.end, s.frequency) == pytest.approx(published, rel=3e-3)
        assert s.target == 0.85


def test_command_line(cli: Cli, data: Path, base: Path, tmp_path: Path) -> None:
    listed = cli("recipes")
    assert listed.code == 0
    assert "minilm-squad-1x4-80  (full, small, smoke)" in listed.out
    name = "minilm-squad-1x4-80"
    options = [f"--set={key}={value}" for key, value in changes_of(name, base).items()]
    rest = ["--data", data, "--out", tmp_path / "run", "--scale", "smoke", *options]
    dry = cli("compress", name, *rest, "--dry-run")
    assert dry.code == 0
    row = (
        r"pruned +squad1 +\d+ examples +\d+ steps +\d+ min for each seed, at most \d+ MB so far, from squad-train-v1.1"
    )
    assert re.search(row, dry.out)
    assert not (tmp_path / "run").exists()
    done = cli("compress", name, *rest, "--json", "--tensorboard")
    assert done.code == 0, done.err
    events = (tmp_path / "run" / "tensorboard" / "pruned").iterdir()
    assert any(b"dev_f1" in file.read_bytes() for file in events)
    assert {"exact", "f1", "int8_less_float_f1"} <= json.loads(done.out)["pruned"].keys()
    other = cli("compress", name, *rest, "--set=stages.pruned.rate=1e-3", "--set=stages.pruned.distil.hard=1")
    assert other.code == 2
    assert "pruned: holds this stage with other rate, distil; delete it to run it anew" in other.err
    assert "expected KEY=VALUE" in cli("compress", name, *rest, "--set", "base").err
    assert (
        "no squad-train-v1.1.json or train-v1.1.json"
        in cli("compress", name, "--data", tmp_path, "--out", tmp_path / "b", "--scale", "smoke", *options).err
    )
