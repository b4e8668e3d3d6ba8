"""Recipes: what is read and refused, and every one of them carried out at smoke scale."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thinbert
import tiny
from conftest import Cli
from thinbert.compress import run, sources
from thinbert.compress.recipe import Place, Recipe, built_in, read_recipe
from thinbert.errors import InputError
from thinbert.model.checkpoint import read_checkpoint
from thinbert.model.sparsity import measure
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
    for name in ("squad-train-v1.1.json", "squad-dev-v1.1.json"):
        (folder / name).write_text(json.dumps({"version": "1.1", "data": articles}))
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
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        measured = [line for line in lines if line.keys() & {"dev_f1", "dev_accuracy", "mlm_loss"}]
        assert len(measured) <= stage.evaluations
        assert measured or lines[-1]["of"] == 1
        if stage.task != "mlm":
            packed = json.loads((folder / "packed" / "training.json").read_text())
            assert packed["stage"] == stage.name
            assert packed["scores"] == scores[stage.name]
            assert packed["recipe"]["name"] == name
            sizes = {n: (folder / n / "model.safetensors").stat().st_size for n in ("model", "packed")}
            assert sizes["packed"] < sizes["model"] / 2
    again: list[str] = []
    assert run.run(place_of(recipe, data, tmp_path / "run", again)) == scores
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


def test_states_of_another_width_are_refused(data: Path, base: Path, tmp_path: Path) -> None:
    config = tiny.bert_config(hidden_size=64, num_attention_heads=4)
    other = tiny.write_model(tmp_path / "narrow", config, tiny.bert_tensors(config))
    changes = changes_of("minilm-squad-1x4-80", base) | {
        "stages.pruned.distil.hidden": "1",
        "stages.pruned.distil.states": str(other),
    }
    recipe = read_recipe("minilm-squad-1x4-80", "smoke", changes=changes)
    with pytest.raises(
        InputError, match=r"pruned: the hidden states of .*narrow have 64 features and ours 128; name ano"
    ):
        run.run(place_of(recipe, data, tmp_path / "run"))


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


BAD: list[tuple[dict[str, Any], str]] = [
    ({"baes": "x"}, r"baes: unknown key; did you mean base\?"),
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
                    "distil": {"teacher": "b", "states": "c"},
                }
            ],
        },
        "distil.states is for tasks",
    ),
    ({"stages": []}, "stages: .*at least 1 item"),
    ({"scales": {"tiny": {}}}, "scales has tiny; expected small and smoke"),
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


def test_published_settings() -> None:
    """The schedule of the published runs: 100,000 steps, sparse by 50,000, a mask every 1,000 until 80,000."""
    stage = read_recipe("bert-base-unstructured-90").stage("sparse")
    pruning = run._pruning(stage, 100_000)
    assert pruning is not None
    s = pruning.schedule
    assert (s.target, s.begin, s.policy_begin, s.policy_end, s.end, s.frequency) == (0.9, 0, 0, 50_000, 80_000, 1_000)


def test_command_line(cli: Cli, data: Path, base: Path, tmp_path: Path) -> None:
    listed = cli("recipes")
    assert listed.code == 0
    assert "minilm-squad-1x4-80  (full, small, smoke)" in listed.out
    name = "minilm-squad-1x4-80"
    options = [f"--set={key}={value}" for key, value in changes_of(name, base).items()]
    rest = ["--data", data, "--out", tmp_path / "run", "--scale", "smoke", *options]
    dry = cli("compress", name, *rest, "--dry-run")
    assert dry.code == 0
    assert re.search(r"pruned +squad1 +\d+ examples +\d+ steps +\d+ min for each seed, \d+ MB", dry.out)
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
