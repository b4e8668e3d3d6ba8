"""The drop-in question-answering pipeline: equal to transformers 5.2.0, the last that had it.

What that version answered is recorded (record_pipeline.py). To compare with it live, name a Python that has it:
THINBERT_TRANSFORMERS_5_2=/path/to/python make test
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import thinbert
from record_pipeline import CHOPIN, TOWER, calls
from thinbert.api import Model, Reference
from thinbert.errors import InputError, ModelError
from thinbert.pipelines import QuestionAnsweringPipeline
from thinbert.runtime.engine import Engine

GOLDEN = Path(__file__).parent / "golden" / "pipeline_5_2_0.json"
RECORDER = Path(__file__).parent / "record_pipeline.py"


@pytest.fixture(scope="module")
def qa() -> QuestionAnsweringPipeline:
    """With float32 arithmetic, as transformers computes."""
    return thinbert.pipeline("question-answering", precision="float32")


def assert_equal_results(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(ours, list):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_equal_results(a, b)
        return
    assert set(ours) == set(theirs) == {"score", "start", "end", "answer"}
    assert (ours["answer"], ours["start"], ours["end"]) == (theirs["answer"], theirs["start"], theirs["end"])
    # float32 logits of some ten units, exponentiated: relative to the score, and a floor for the tiniest
    assert ours["score"] == pytest.approx(theirs["score"], rel=2e-4, abs=1e-7)


def test_recorded_answers(qa: QuestionAnsweringPipeline) -> None:
    recorded = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert recorded["transformers"] == "5.2.0"
    made = calls()
    assert len(recorded["results"]) == len(made)
    for call, expected in zip(made, recorded["results"], strict=True):
        assert_equal_results(qa(**call), expected)


@pytest.mark.skipif(
    "THINBERT_TRANSFORMERS_5_2" not in os.environ,
    reason="THINBERT_TRANSFORMERS_5_2 does not name a Python with transformers 5.2.0",
)
def test_live_answers(qa: QuestionAnsweringPipeline, tmp_path: Path) -> None:
    subprocess.run([sys.executable, RECORDER, "--float", tmp_path / "m"], check=True)
    python = os.environ["THINBERT_TRANSFORMERS_5_2"]
    subprocess.run([python, RECORDER, tmp_path / "m", tmp_path / "out.json"], check=True, capture_output=True)
    live = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert live["transformers"] == "5.2.0"
    for call, expected in zip(calls(), live["results"], strict=True):
        assert_equal_results(qa(**call), expected)


class DataSet:
    """What torch.utils.data.Dataset is: no list, and no iterable."""

    def __init__(self, items: list[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i: int) -> Any:
        return self._items[i]


def test_ways_to_call(qa: QuestionAnsweringPipeline) -> None:
    question = "Who is the tower named after?"
    one = {"question": question, "context": TOWER}
    expected = qa(**one)
    assert expected["answer"] == "Gustave Eiffel"
    assert TOWER[expected["start"] : expected["end"]] == expected["answer"]
    assert qa(one) == expected
    assert qa(question, TOWER) == expected
    assert qa([one]) == expected
    assert [r["answer"] for r in qa([one, one])] == ["Gustave Eiffel"] * 2
    assert qa(question=[question], context=[TOWER]) == expected
    assert qa(**one, padding=True, batch_size=8) == expected
    from_set = qa(DataSet([one, one]))
    assert iter(from_set) is from_set
    assert [r["answer"] for r in from_set] == ["Gustave Eiffel"] * 2
    answered: list[str] = []

    def asking() -> Iterator[dict[str, str]]:
        """The next item depends on the answer before."""
        yield one
        yield {"question": f"Who was {answered[0]}?", "context": TOWER}
        yield {"question": "Who?", "context": ""}

    results = qa(asking())
    answered.append(next(results)["answer"])
    assert next(results)["answer"]
    with pytest.raises(InputError, match="cannot be empty"):
        next(results)
    assert len(list(qa((one for _ in range(5)), batch_size=2))) == 5
    stream = qa(example for example in [one, {"question": "When did Chopin live?", "context": CHOPIN}])
    assert [r["answer"] for r in stream] == ["Gustave Eiffel", "1 March 1810 – 17 October 1849"]


def test_windows_end_at_the_tokenizers_limit(tiny_folder: Path, tmp_path: Path) -> None:
    """As in transformers: min(model_max_length, 384)."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "m"))
    one = {"question": "who built", "context": "the tower is named after paris " * 20}
    whole = thinbert.pipeline(model=folder)(**one)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 40}')
    cut = thinbert.pipeline(model=folder)
    assert cut(**one) == cut(**one, max_seq_len=40) != whole
    assert cut(**one, max_seq_len=64) == whole
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    assert thinbert.pipeline(model=folder)(**one) == whole


def test_max_question_len_cuts_nothing(qa: QuestionAnsweringPipeline) -> None:
    """As in transformers with its fast tokenizers."""
    asked = {"question": "Where is the park in Paris? " * 9 + "Who is the tower named after?", "context": TOWER}
    assert_equal_results(qa(**asked, max_question_len=7), qa(**asked))


def test_fewer_answers_than_asked_for(qa: QuestionAnsweringPipeline) -> None:
    """Of one word there is one answer. transformers fills up with spans of [CLS] that score 0.0; this does not."""
    assert qa(question="who?", context="Eiffel", top_k=3)["answer"] == "Eiffel"


def test_nothing_readable(qa: QuestionAnsweringPipeline) -> None:
    nothing = {"start": 0, "end": 0, "answer": ""}
    assert qa(question="who?", context="\u00ad") == {"score": 0.0, **nothing}
    assert qa(question="who?", context="\u00ad", handle_impossible_answer=True) == {"score": 1.0, **nothing}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"question": "q", "context": ""}, ValueError, "`context` cannot be empty"),
        ({"question": "", "context": "c"}, ValueError, "`question` cannot be empty"),
        ({"question": None, "context": "c"}, ValueError, "`question` cannot be None"),
        ({"question": 3, "context": "c"}, ValueError, "`question` needs to be a string, not int"),
        ({"question": ["a", "b"], "context": ["c"]}, ValueError, "don't have the same lengths"),
        ({"question": "q", "context": "c", "top_k": 0}, ValueError, r"top_k parameter should be >= 1 \(got 0\)"),
        ({"question": "q", "context": "c", "max_answer_len": 0}, ValueError, "max_answer_len parameter should be >= 1"),
        (
            {"question": "q", "context": "c", "max_seq_len": 64, "doc_stride": 65},
            ValueError,
            r"`doc_stride` \(65\) is larger than `max_seq_len` \(64\)",
        ),
        ({"question": "q", "context": "c", "max_seq_len": 513}, InputError, "windows of 513 tokens"),
        ({}, ValueError, "no input"),
    ],
)
def test_errors(qa: QuestionAnsweringPipeline, call: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        qa(**call)


def test_errors_of_positional_inputs(qa: QuestionAnsweringPipeline) -> None:
    with pytest.raises(KeyError, match="provide a dictionary with keys"):
        qa({"question": "q"})
    for wrong in (3, "text", ["text"]):
        with pytest.raises(ValueError, match="needs to be a dict of question and context"):
            qa(wrong)


def test_arguments_of_transformers(tiny_folder: Path, default_model: Model) -> None:
    import torch

    made = thinbert.pipeline(
        "question-answering",
        model=tiny_folder,
        tokenizer=tiny_folder,
        framework="pt",
        device=torch.device("cpu"),
        device_map="auto",
        dtype=torch.float32,
        torch_dtype="auto",
        num_workers=2,
    )
    assert made.model.config.layers == 2
    three = thinbert.pipeline("question-answering", default_model, top_k=3)
    call = {"question": "Who is the tower named after?", "context": TOWER}
    assert len(three(**call)) == 3
    assert three(**call, top_k=1, num_workers=0)["answer"] == "Gustave Eiffel"


def test_portable_models_are_computed_in_float32(tiny_folder: Path) -> None:
    assert isinstance(thinbert.pipeline(model=tiny_folder).model.runtime, Reference)
    assert isinstance(thinbert.pipeline(model=tiny_folder, precision="int8").model.runtime, Engine)
    assert isinstance(thinbert.pipeline().model.runtime, Engine)  # the bundled one is packed


def test_making_one(tiny_folder: Path, tmp_path: Path) -> None:
    import tiny

    assert thinbert.pipeline("question-answering", str(tiny_folder)).model.config.layers == 2
    with pytest.raises(InputError, match="task 'summarization'; thinbert has the pipelines question-answering"):
        thinbert.pipeline("summarization")
    with pytest.raises(InputError, match="device 'cuda'; thinbert runs on the CPU"):
        thinbert.pipeline("question-answering", tiny_folder, device="cuda")
    with pytest.raises(InputError, match="dtype 'float16'; thinbert computes in float32 or int8"):
        thinbert.pipeline("question-answering", tiny_folder, dtype="float16")
    with pytest.raises(InputError, match="tokenizer 'other' is not the model's"):
        thinbert.pipeline("question-answering", tiny_folder, tokenizer="other")
    for same in (tiny_folder, str(tiny_folder)):
        assert thinbert.pipeline("question-answering", tiny_folder, tokenizer=same)
    assert thinbert.pipeline("question-answering", tokenizer="default")
    with pytest.raises(TypeError, match="unexpected keyword argument 'topk'"):
        thinbert.pipeline("question-answering", tiny_folder, topk=3)
    config = tiny.bert_config(id2label={"0": "no", "1": "yes"})
    folder = tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config, head="classify"))
    with pytest.raises(ModelError, match="cannot answer questions: it holds a classification head"):
        thinbert.pipeline("question-answering", folder)
    bare = tiny.write_model(tmp_path / "b", tiny.bert_config(), tiny.bert_tensors(tiny.bert_config(), head=None))
    with pytest.raises(ModelError, match="it holds an encoder without a head"):
        thinbert.pipeline("question-answering", bare)


@pytest.mark.parametrize("late", [{"precision": "float32"}, {"threads": 2}, {"revision": "main"}, {"token": "t"}])
def test_what_comes_too_late_for_a_loaded_model(late: dict[str, Any], default_model: Model) -> None:
    with pytest.raises(InputError, match="comes too late for a model that is loaded"):
        thinbert.pipeline("question-answering", default_model, **late)


def test_none_is_not_given(default_model: Model) -> None:
    asks = thinbert.pipeline("question-answering", default_model, top_k=None, max_answer_len=None)
    assert asks(question="Who built it?", context=TOWER) == thinbert.pipeline("question-answering", default_model)(
        question="Who built it?", context=TOWER
    )
