"""Classification: the pipeline like transformers', GLUE's files and scores, evaluation."""

import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import thinbert
import tiny
from conftest import Cli, real_data
from thinbert.errors import InputError, ModelError
from thinbert.model.blocks import ENDINGS, to_blocks
from thinbert.model.checkpoint import read_checkpoint
from thinbert.model.pack import pack
from thinbert.model.quantize import SCALE_SUFFIX, quantize_rows
from thinbert.tasks import classify, glue
from thinbert.tasks.squad import Question, read_squad

LABELS = {"0": "negative", "1": "positive"}
TEXTS = ["the tower is built in paris", "who built", "a composer born in paris, named after the tower; " * 3, "b"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny.bert_config(id2label=LABELS, architectures=["BertForSequenceClassification"])
    tensors = tiny.bert_tensors(config, head="classify")
    return tiny.write_model(tmp_path_factory.mktemp("classify") / "m", config, tensors)


def test_batches_keep_the_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which there are many, where texts are."""
    model = thinbert.load(folder)
    texts = [(" ".join(["the tower is in paris"] * (1 + n % 5)), None) for n in range(20)]
    whole = np.stack(list(classify.logits(model, texts)))
    monkeypatch.setattr(classify, "_IN_FLIGHT", 20)
    np.testing.assert_array_equal(whole, np.stack(list(classify.logits(model, texts))))
    assert len(np.unique(whole[:, 0])) == 5


def test_pipeline_is_transformers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.pipeline("text-classification", str(folder), device="cpu")
    ours = thinbert.pipeline("text-classification", str(folder))

    def same(a: Any, b: Any) -> None:
        assert type(a) is type(b)
        if isinstance(a, list):
            assert len(a) == len(b)
            for x, y in zip(a, b, strict=True):
                same(x, y)
        else:
            assert a["label"] == b["label"]
            assert a["score"] == pytest.approx(b["score"], abs=1e-5)

    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    alone = {"text": TEXTS[0], "text_pair": ""}
    for inputs in (TEXTS[0], TEXTS[:2], TEXTS[3], pair, [pair, pair], alone):
        for options in ({}, {"top_k": 1}, {"top_k": None}, {"top_k": 2, "function_to_apply": "sigmoid"}):
            same(ours(inputs, **options), theirs(inputs, **options))
    same(ours(TEXTS[0], function_to_apply="none"), theirs(TEXTS[0], function_to_apply="none"))
    same(ours(TEXTS[0], function_to_apply="Sigmoid"), theirs(TEXTS[0], function_to_apply="Sigmoid"))
    for top_k in (None, 1, 2):
        set_before = [
            m.pipeline("text-classification", str(folder), top_k=top_k, **where)
            for m, where in ((thinbert, {}), (transformers, {"device": "cpu"}))
        ]
        for inputs in (TEXTS[0], TEXTS[:2], pair):
            same(*(pipeline(inputs) for pipeline in set_before))
    streams = ours(text for text in TEXTS), theirs(text for text in TEXTS)
    for a, b in zip(*streams, strict=True):
        same(a, b)
    for pipeline in (ours, theirs):  # a result is there before the next text is asked for, and before a bad one
        asked: list[int] = []
        results = iter(pipeline(asked.append(n) or text for n, text in enumerate([*TEXTS, 3.5])))
        assert [(next(results), len(asked))[1] for _ in TEXTS] == [1, 2, 3, 4]
        with pytest.raises(ValueError):  # noqa: PT011
            next(results)


def test_texts_are_cut_at_the_tokenizers_limit_where_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    limited = Path(shutil.copytree(folder, tmp_path / "m"))
    (limited / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "model_max_length": 24}')
    theirs = transformers.pipeline("text-classification", str(limited), device="cpu")
    ours = thinbert.pipeline("text-classification", str(limited))
    scores = []
    for options in ({}, {"truncation": True}, {"truncation": "longest_first"}, {"truncation": False}):
        a, b = ours(TEXTS[2], **options), theirs(TEXTS[2], **options)
        assert a[0]["score"] == pytest.approx(b[0]["score"], abs=1e-5), options
        scores.append(round(a[0]["score"], 4))
    assert scores[0] == scores[3] != scores[1] == scores[2]
    with pytest.raises(InputError, match="truncation is 'only_second'; expected True, False or 'longest_first'"):
        ours(TEXTS[2], truncation="only_second")


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_scores_are_what_the_problem_asks_for(tmp_path: Path, problem: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = tiny.bert_config(
        id2label=LABELS, architectures=["BertForSequenceClassification"], problem_type=problem, num_labels=2
    )
    model = str(tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config, head="classify")))
    theirs = transformers.pipeline("text-classification", model, device="cpu")(TEXTS[0], top_k=None)
    ours = thinbert.pipeline("text-classification", model)(TEXTS[0], top_k=None)
    assert [o["label"] for o in ours] == [t["label"] for t in theirs]
    assert [o["score"] for o in ours] == pytest.approx([t["score"] for t in theirs], abs=1e-5)


@pytest.mark.parametrize(
    ("problem", "classes"), [(None, 1), ("multi_label_classification", 2), ("regression", 1), (None, 2)]
)
def test_the_best_class_scores_as_in_the_pipeline(tmp_path: Path, problem: str | None, classes: int) -> None:
    config = tiny.bert_config(id2label={str(n): f"c{n}" for n in range(classes)}, problem_type=problem)
    folder = tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config, head="classify"))
    model = thinbert.load(str(folder), precision="float32")
    (logits,) = classify.logits(model, [(TEXTS[0], None)])
    best = thinbert.pipeline("text-classification", model)(TEXTS[0])[0]
    assert classify.best_class(model, logits) == (best["label"], pytest.approx(best["score"]))
    assert (best["score"] == 1) is False


def test_a_packed_classifier_answers_as_the_portable_one(tmp_path: Path) -> None:
    config = tiny.bert_config(id2label={"0": "a", "1": "b"})
    folder = tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config, head="classify"))
    pack(read_checkpoint(folder), tmp_path / "packed")
    batch = tiny.ragged([7, 12])
    np.testing.assert_array_equal(
        thinbert.load(str(folder)).classify(*batch), thinbert.load(str(tmp_path / "packed")).classify(*batch)
    )


def test_a_classifier_stored_as_blocks(tmp_path: Path) -> None:
    """Its classes are counted by its rows, where the config does not name them."""
    config = tiny.bert_config(id2label=LABELS)
    tensors = tiny.bert_tensors(config, head="classify")
    tiny.prune(tensors, "classifier", 0.3, (1, 4))
    del config["id2label"]
    expected = thinbert.load(str(tiny.write_model(tmp_path / "m", config, tensors)), precision="float32").classify(
        *tiny.ragged([7])
    )
    blocks = to_blocks(*quantize_rows(tensors.pop("classifier.weight")))
    parts = (blocks.start, blocks.index, blocks.values, blocks.scale)
    tensors |= {f"classifier.weight{e}": part for e, part in zip((*ENDINGS, SCALE_SUFFIX), parts, strict=True)}
    found = thinbert.load(str(tiny.write_model(tmp_path / "blocks", config, tensors))).classify(*tiny.ragged([7]))
    np.testing.assert_allclose(found, expected, atol=0.1)
    assert found.shape == (1, 2)


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_numbers_past_all_bounds_are_refused(tmp_path: Path, precision: str) -> None:
    config = tiny.bert_config(id2label=LABELS)
    tensors = tiny.bert_tensors(config, head="classify")
    tensors["classifier.weight"] = np.copysign(np.float32(3e38), tensors["classifier.weight"])
    model = thinbert.load(str(tiny.write_model(tmp_path / "m", config, tensors)), precision=precision)
    with pytest.raises(ModelError, match="computes NaN or infinity"):
        list(classify.logits(model, [(TEXTS[0], None)]))


def test_pipeline_errors(folder: Path, tiny_folder: Path) -> None:
    ours = thinbert.pipeline("sentiment-analysis", str(folder))
    assert ours(TEXTS[2])[0]["label"] in LABELS.values()  # longer than the model's positions: cut
    with pytest.raises(ValueError, match="needs to be a text, or a dict of text and text_pair"):
        ours([3])
    with pytest.raises(ValueError, match="function_to_apply is 'tanh'"):
        ours("a", function_to_apply="tanh")
    with pytest.raises(TypeError, match="unexpected keyword argument 'topk'"):
        ours("a", topk=2)
    with pytest.raises(InputError, match="needs a model; the bundled one answers questions"):
        thinbert.pipeline("text-classification")
    with pytest.raises(ModelError, match="cannot classify: it holds a question-answering head"):
        thinbert.pipeline("text-classification", str(tiny_folder))


def test_encoding_cuts_the_longer_text(folder: Path) -> None:
    model = thinbert.load(str(folder))
    one, two = "tower " * 20, "paris " * 9
    ids, types = classify.encode(model.tokenizer, one, two, max_length=17)
    assert len(ids) == 17
    assert types.tolist() == [0] * 9 + [1] * 8
    assert classify.encode(model.tokenizer, one, None, max_length=5)[0].tolist()[-1] == model.tokenizer.sep
    with pytest.raises(InputError, match="no room for 2 texts"):
        classify.encode(model.tokenizer, one, two, max_length=4)


@pytest.mark.parametrize("max_length", [15, 16])
def test_pairs_are_cut_as_by_the_tokenizers_library(folder: Path, max_length: int) -> None:
    backend = Tokenizer(models.WordPiece({t: i for i, t in enumerate(tiny.VOCABULARY)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.enable_truncation(max_length, strategy="longest_first")
    model = thinbert.load(str(folder))
    for first in range(1, 16):
        for second in range(1, 16):
            pair = "tower " * first, "paris " * second
            ids, types = classify.encode(model.tokenizer, *pair, max_length=max_length)
            theirs = backend.encode(*pair)
            assert (ids.tolist(), types.tolist()) == (theirs.ids, theirs.type_ids), (first, second)


FILES = {
    "sst2": ("sentence\tlabel\nthe tower is built\t1\nwho\t0\n", [("the tower is built", None, 1), ("who", None, 0)]),
    "mnli": (
        "index\tsentence1\tsentence2\tgold_label\n0\ta\tb\tneutral\n1\tc\td\t-\n2\te\tf\tcontradiction\n",
        [("a", "b", 2), ("e", "f", 0)],
    ),
    # as Hugging Face has it: entailment, neutral, contradiction; and as Excel writes it
    "mnli of Hugging Face": (
        "\ufeffpremise\thypothesis\tlabel\na\tb\t0\nc\td\t1\ne\tf\t2\n",
        [("a", "b", 1), ("c", "d", 2), ("e", "f", 0)],
    ),
    "qqp": ("1\tWho?\tWhich one?\t18\n0\tWhy?\tWhere?\t2\n", [("Who?", "Which one?", 1), ("Why?", "Where?", 0)]),
    "qnli": ('index\tquestion\tsentence\tlabel\r\n0\tq\t"s\tnot_entailment\r\n', [("q", '"s', 1)]),
}


@pytest.mark.parametrize("name", FILES)
def test_reading_glue(tmp_path: Path, name: str) -> None:
    content, expected = FILES[name]
    path = tmp_path / f"{name}.tsv.xz"
    path.write_bytes(lzma.compress(content.encode()))
    data = glue.read_glue(path, glue.TASKS[name.split()[0]])
    assert [(e.text, e.pair, e.label) for e in data.examples] == expected


def test_torn_lines_of_qqp_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """GLUE's own training file has such lines, and so had every reader to leave them out."""
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    path = tmp_path / "train.tsv"
    path.write_text(
        f"{header}\n0\t1\t2\tWho?\tWho is it?\t1\n131\t7\tHow can I\nand so on?\tWhy?\t0\n3\t4\t5\ta\tb\t0\n"
    )
    assert [e.label for e in glue.read_glue(path, glue.TASKS["qqp"]).examples] == [1, 0]
    assert "2 of 4 lines break off and are left out" in caplog.text
    path.write_text("question\tsentence\tlabel\nWho?\tHe.\tentailment\nWho\n")
    with pytest.raises(InputError, match="line 3 has 1 columns; expected at least 3"):
        glue.read_glue(path, glue.TASKS["qnli"])


def test_official_qqp_header(tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    path.write_text("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tWho?\tWhich?\t1\n")
    assert glue.read_glue(path, glue.TASKS["qqp"]).examples == (glue.Example("Who?", "Which?", 1),)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sst2", "text\tlabel\na\t1\n", "the first line names text, label; expected sentence, label"),
        ("sst2", "", "names nothing; expected sentence, label"),
        ("sst2", "sentence\tlabel\n", "holds no examples"),
        ("sst2", "sentence\tlabel\na\t2\n", "line 2 has the label '2'; expected 0, 1"),
        ("mnli", "sentence1\tsentence2\tgold_label\na\tb\n", "line 2 has 2 columns; expected at least 3"),
        ("qqp", "1\tWho?\n", "line 1 has 2 columns; expected at least 3"),
    ],
)
def test_bad_files_say_where(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / "bad.tsv"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        glue.read_glue(path, glue.TASKS[name.split()[0]])


def test_scores() -> None:
    assert glue.score(glue.TASKS["sst2"], [0, 1, 1, 0], [0, 1, 0, 0]) == {"accuracy": 75.0, "total": 4}
    scores = glue.score(glue.TASKS["qqp"], [1, 1, 0, 0], [1, 0, 1, 0])
    assert scores == {"accuracy": 50.0, "total": 4, "f1": 50.0}
    assert glue.score(glue.TASKS["qqp"], [0], [0])["f1"] == 0


def test_evaluate(folder: Path, tmp_path: Path, cli: Cli) -> None:
    model = thinbert.load(str(folder), precision="float32")
    own = thinbert.pipeline("text-classification", model)
    labels = [list(LABELS.values()).index(r["label"]) for r in own(TEXTS)]
    path = tmp_path / "dev.tsv"
    path.write_text("sentence\tlabel\n" + "".join(f"{t}\t{n}\n" for t, n in zip(TEXTS, labels, strict=True)))
    done = cli(
        "evaluate", folder, path, "--task", "sst2", "--out", tmp_path / "run", "--precision", "float32", "--json"
    )
    assert done.code == 0
    assert json.loads(done.out)["accuracy"] == 100
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["accuracy_interval"] == [100, 100]
    assert json.loads((tmp_path / "run" / "predictions.json").read_text()) == [LABELS[str(n)] for n in labels]
    assert (
        "accuracy 100.00 (95 %: 100.00 to 100.00), 2 texts"
        in cli("evaluate", folder, path, "--task", "sst2", "--out", tmp_path / "two", "--limit", 2).out
    )
    again = cli("evaluate", folder, path, "--task", "sst2", "--out", tmp_path / "run", "--limit", 2)
    assert "run: holds a run with other precision and limit; give another --out" in again.err
    assert len(json.loads((tmp_path / "run" / "predictions.json").read_text())) == len(TEXTS)
    for option in ("--stride", "--threshold", "--max-answer-tokens"):
        refused = cli("evaluate", folder, path, "--task", "sst2", "--out", tmp_path / "three", option, 1)
        assert f"{option} is for questions; sst2 is classification" in refused.err
    wrong = cli("evaluate", folder, path, "--task", "cola", "--out", tmp_path / "x")
    assert wrong.code == 2
    assert "thinbert evaluates squad, sst2, mnli, qqp, qnli" in wrong.err
    assert "cannot classify" in cli("evaluate", "default", path, "--task", "sst2", "--out", tmp_path / "x").err
    qnli = tmp_path / "mnli.tsv"
    qnli.write_text(FILES["mnli"][0])
    assert "has 2 classes; mnli has 3" in cli("evaluate", folder, qnli, "--task", "mnli", "--out", tmp_path / "x").err


def test_windows_the_model_does_not_take(folder: Path, tmp_path: Path, cli: Cli) -> None:
    """And what failed before it began does not stand in the way of the right command."""
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nthe tower\t1\nwho\t0\n")
    told = ("evaluate", folder, tmp_path / "dev.tsv", "--task", "sst2", "--out", tmp_path / "out")
    assert "windows of 5000 tokens; model" in cli(*told, "--max-length", 5000).err
    assert "greater than or equal to 3" in cli(*told, "--max-length", 0).err
    config = tiny.bert_config(id2label={"0": "a", "1": "b", "2": "c"})
    three = tiny.write_model(tmp_path / "three", config, tiny.bert_tensors(config, head="classify"))
    assert "has 3 classes; sst2 has 2" in cli("evaluate", three, *told[2:]).err
    assert cli(*told).code == 0
    assert "holds a run with other max_length" in cli(*told, "--max-length", 20).err


def test_classes_in_another_order_are_told_by_name(tmp_path: Path, folder: Path) -> None:
    config = tiny.bert_config(id2label={"0": "positive", "1": "negative"})
    turned = tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config, head="classify"))
    data = glue.Classified(glue.TASKS["sst2"], tuple(glue.Example(t, None, 0) for t in TEXTS), "")
    _, straight = classify.evaluate(thinbert.load(str(folder)), data)
    _, other = classify.evaluate(thinbert.load(str(turned)), data)
    assert [1 - p for p in other] == straight


def test_classes_without_the_tasks_names_are_taken_as_they_come(caplog: pytest.LogCaptureFixture) -> None:
    assert classify.class_order(("Entailment", "neutral", "CONTRADICTION"), glue.TASKS["mnli"]) == [1, 2, 0]
    assert not caplog.text
    assert classify.class_order(("LABEL_0", "LABEL_1", "LABEL_2"), glue.TASKS["mnli"]) == [0, 1, 2]
    assert "are called LABEL_0, LABEL_1, LABEL_2; they are taken as mnli's contradiction, entailment" in caplog.text


def test_qnli_from_squad() -> None:
    text = "The mill stands by a river. Anna Voss built it in 1802. It burned down twice."
    question = Question("a", "Who built the mill?", text, ("Anna Voss",), (text.index("Anna"),))
    examples = glue.qnli_from_squad([question])
    assert examples == (
        glue.Example("Who built the mill?", "Anna Voss built it in 1802.", 0),
        glue.Example("Who built the mill?", "The mill stands by a river.", 1),
    )
    assert glue.qnli_from_squad([Question("b", "Who?", text, (), ())]) == ()
    assert [text[a:b] for a, b in glue.sentences(text)][2] == "It burned down twice."


def test_real_files() -> None:
    for name, file, count in (
        ("sst2", "sst2-dev.tsv.xz", 872),
        ("mnli", "mnli-dev_matched.tsv.xz", 9815),
        ("qnli", "qnli-dev.tsv.xz", 5463),
        ("qqp", "qqp-wang_dev.tsv.xz", 10000),
    ):
        data = glue.read_glue(real_data(file), glue.TASKS[name])
        assert len(data.examples) == count
        assert len(np.unique([e.label for e in data.examples])) == len(data.task.labels)
    made = glue.qnli_from_squad(read_squad(real_data("squad-dev-v1.1.json.xz")).questions[:500])
    assert 0.4 < np.mean([e.label for e in made]) < 0.6
