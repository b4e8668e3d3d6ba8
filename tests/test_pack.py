"""Packing: exact compaction, the packed folder and its checks, and the cache of models packed on first use."""

import json
import logging
import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import models, normalizers, pre_tokenizers

import tiny
from thinbert import __version__
from thinbert.api import Reference, load
from thinbert.errors import Error, ModelError
from thinbert.model import reference
from thinbert.model.blocks import fault, to_blocks, to_dense
from thinbert.model.checkpoint import Checkpoint, read_checkpoint
from thinbert.model.compact import compact
from thinbert.model.pack import pack
from thinbert.model.sparsity import measure
from thinbert.runtime import cache
from thinbert.runtime.cache import cache_folder
from thinbert.runtime.doctor import examine


def hybrid(block: tuple[int, int] = (8, 8)) -> tuple[dict[str, Any], tiny.Tensors]:
    """A zero-filled model of every kind of dead part: heads without values (with a value bias) or outputs, neurons
    without inputs (with a bias) or outputs, and zero blocks in what is left."""
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    for layer in range(2):
        stem = f"bert.encoder.layer.{layer}"
        for seed, name in enumerate(("self.query", "self.key", "self.value", "output.dense")):
            tiny.prune(tensors, f"{stem}.attention.{name}", 0.6, block, seed + 10 * layer)
        tensors[f"{stem}.attention.self.value.weight"][:32] = 0
        tensors[f"{stem}.intermediate.dense.weight"][100:180] = 0
        tensors[f"{stem}.output.dense.weight"][:, :60] = 0
    tensors["bert.encoder.layer.1.attention.output.dense.weight"][:, 96:] = 0
    tensors["bert.encoder.layer.0.attention.self.query.weight"][64:96] = 0  # not dead: averages its values
    return config, tensors


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_compaction_is_exact(tmp_path: Path, activation: str) -> None:
    config, tensors = hybrid()
    config["hidden_act"] = activation
    source = read_checkpoint(tiny.write_model(tmp_path / "source", config, tensors))
    whole = source.weights()
    cut = compact(source.config, whole.layers)
    assert [int(k.sum()) for k in cut.heads] == [3, 2]
    assert [int(k.sum()) for k in cut.neurons] == [256 - 60 - 80] * 2
    inputs = tiny.ragged([20, 7])
    expected = reference.encode(whole, source.config, *inputs)
    got = reference.encode(replace(whole, layers=cut.layers), source.config, *inputs)
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()
    # and what is written says the same
    pack(source, tmp_path / "packed")
    packed = read_checkpoint(tmp_path / "packed")
    assert packed.config.heads == (3, 2)
    assert packed.config.ffn == (256 - 60 - 80,) * 2
    assert packed.config.original_heads == 4
    rounded = Reference(packed).hidden(*inputs)
    assert np.abs(rounded - expected).mean() < 1e-2 * np.abs(expected).max()


def test_neurons_that_go_leave_blocks_whole(tmp_path: Path) -> None:
    """Single dead neurons stay where the second matrix has zeros in blocks of four columns; whole groups of them go."""
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    for seed, stem in enumerate(tiny.linear_stems(config)):
        tiny.prune(tensors, stem, 0.2, (1, 4), seed)
    dead = [5, 17, 18, 66, 101, 160, 161, 162, 163, 200]  # one group of them whole
    for layer in range(2):
        tensors[f"bert.encoder.layer.{layer}.intermediate.dense.weight"][dead] = 0
        tensors[f"bert.encoder.layer.{layer}.intermediate.dense.bias"][dead] = 0.3  # what they add is no zero
    source = read_checkpoint(tiny.write_model(tmp_path / "source", config, tensors))
    whole = source.weights()
    cut = compact(source.config, whole.layers)
    for layer, before, kept in zip(cut.layers, whole.layers, cut.neurons, strict=True):
        dropped = set(np.flatnonzero(~kept))
        assert {160, 161, 162, 163} <= dropped
        assert not dropped & {5, 17, 18, 66, 101, 200} or len(dropped) % 4 == 0
        blocks = [
            (w.reshape(len(w), -1, 4) != 0).any(axis=2).sum() for w in (before.ffn_out.weight, layer.ffn_out.weight)
        ]
        assert blocks[1] <= blocks[0]
    inputs = tiny.ragged([20, 7])
    expected = reference.encode(whole, source.config, *inputs)
    got = reference.encode(replace(whole, layers=cut.layers), source.config, *inputs)
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("dead", ["attention.self.value", "intermediate.dense"])
def test_layers_of_which_nothing_is_left(tmp_path: Path, dead: str) -> None:
    """Matrices without rows or columns are read as that, also beside a head whose classes are counted."""
    config = tiny.bert_config(id2label={"0": "a", "1": "b"})
    tensors = tiny.bert_tensors(config)
    tensors[f"bert.encoder.layer.0.{dead}.weight"][:] = 0
    source = read_checkpoint(tiny.write_model(tmp_path / "m", config, tensors))
    pack(source, tmp_path / "packed")
    found = read_checkpoint(tmp_path / "packed")
    assert 0 in (*found.config.heads, *found.config.ffn)
    asked = tiny.ragged([9, 4])
    exact = load(tmp_path / "m", precision="float32").forward(*asked)
    for precision in ("int8", "float32"):
        assert np.abs(load(tmp_path / "packed", precision=precision).forward(*asked) - exact).max() < 0.1
    assert measure(found).neurons_removed + measure(found).heads_removed > 0


def test_how_a_model_came_about_travels_with_it(tmp_path: Path, tiny_folder: Path) -> None:
    made, packed = tmp_path / "made", tmp_path / "packed"
    shutil.copytree(tiny_folder, made)
    (made / "training.json").write_text('{"seed": 7}')
    pack(read_checkpoint(made), packed)
    assert (packed / "training.json").read_text() == '{"seed": 7}'
    pack(read_checkpoint(tiny_folder), packed)
    assert not (packed / "training.json").exists()


def test_another_tokenizer_leaves_nothing_of_the_one_before(tmp_path: Path, tiny_folder: Path) -> None:
    first = tmp_path / "first"
    shutil.copytree(tiny_folder, first)
    (first / "vocab.txt").unlink()
    backend = HFTokenizer(models.WordPiece({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3}, unk_token="[UNK]"))
    backend.save(str(first / "tokenizer.json"))
    pack(read_checkpoint(first), tmp_path / "packed")
    pack(read_checkpoint(tiny_folder), tmp_path / "packed")
    assert not (tmp_path / "packed" / "tokenizer.json").exists()
    text = "The tower"
    assert load(tmp_path / "packed").tokenizer(text).ids.tolist() == load(tiny_folder).tokenizer(text).ids.tolist()


def test_pruned_heads_keep_their_numbers(tmp_path: Path) -> None:
    config, tensors = hybrid()
    cut, _ = tiny.cut_heads(tensors, config, {0: [3], 1: [1]})
    config["pruned_heads"] = {"0": [3], "1": [1]}
    pack(read_checkpoint(tiny.write_model(tmp_path / "source", config, cut)), tmp_path / "packed")
    described = json.loads((tmp_path / "packed" / "config.json").read_text())
    assert described["pruned_heads"] == {"0": [0, 3], "1": [0, 1, 3]}


@pytest.mark.parametrize("block", [(1, 4), (4, 1), (32, 32), (1, 1)])
def test_packed_answers_as_the_portable_model_does(tmp_path: Path, block: tuple[int, int]) -> None:
    config = tiny.bert_config()
    tensors = tiny.bert_tensors(config)
    for seed, stem in enumerate(tiny.linear_stems(config)):
        tiny.prune(tensors, stem, 0.2, block, seed)
    source = tiny.write_model(tmp_path / "source", config, tensors)
    pack(read_checkpoint(source), tmp_path / "packed")
    inputs = tiny.ragged([20, 7])
    exact = load(source, precision="float32").forward(*inputs)
    for model in (load(source), load(tmp_path / "packed")):
        assert np.abs(model.forward(*inputs) - exact).max() < 0.05 * np.abs(exact).max()
    np.testing.assert_array_equal(load(source).forward(*inputs), load(tmp_path / "packed").forward(*inputs))


def test_size_of_an_80_percent_1x4_encoder(tmp_path: Path) -> None:
    config = tiny.bert_config(hidden_size=256, intermediate_size=1024)
    tensors = tiny.bert_tensors(config)
    for seed, stem in enumerate(tiny.linear_stems(config)):
        tiny.prune(tensors, stem, 0.2, (1, 4), seed)
    pack(read_checkpoint(tiny.write_model(tmp_path / "source", config, tensors)), tmp_path / "packed")
    stored = load_file(tmp_path / "packed" / "model.safetensors")
    packed = sum(t.nbytes for n, t in stored.items() if ".layer." in n and "LayerNorm" not in n)
    dense = sum(tensors[f"{stem}.weight"].size for stem in tiny.linear_stems(config))
    assert packed < 0.4 * dense


def test_not_onto_itself(tmp_path: Path) -> None:
    config = tiny.bert_config()
    folder = tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config))
    with pytest.raises(ModelError, match="is the model's own folder; give another to pack into"):
        pack(read_checkpoint(folder), folder)


# --- block lists ------------------------------------------------------------------------------------------------------


@given(rows=st.integers(1, 9), columns=st.integers(1, 21), density=st.floats(0, 1), seed=st.integers(0, 999))
def test_blocks_and_back(rows: int, columns: int, density: float, seed: int) -> None:
    random = np.random.RandomState(seed)
    values = (random.randint(-127, 128, (rows, columns)) * (random.uniform(size=(rows, columns)) < density)).astype(
        np.int8
    )
    blocks = to_blocks(values, np.ones(rows, np.float32))
    assert fault(blocks.start, blocks.index, blocks.values, rows=rows, columns=columns) is None
    np.testing.assert_array_equal(to_dense(blocks), values)


@given(data=st.data())
def test_every_broken_list_is_noticed(data: st.DataObject) -> None:
    """Whatever is changed in a list, either it is refused or it is still a list within bounds."""
    values = np.random.RandomState(0).randint(-127, 128, (5, 16)).astype(np.int8)
    values[1] = 0
    b = to_blocks(values, np.ones(5, np.float32))
    start, index = b.start.copy(), b.index.copy()
    target = data.draw(st.sampled_from([start, index]))
    target[data.draw(st.integers(0, len(target) - 1))] = data.draw(st.integers(0, 60_000))
    if fault(start, index, b.values, rows=5, columns=16) is None:
        assert start[0] == 0
        assert start[-1] == len(index)
        assert (np.diff(start.astype(int)) >= 0).all()
        assert index.max() < 4


def sparse_model(folder: Path) -> Path:
    config = tiny.bert_config(num_hidden_layers=1)
    tensors = tiny.bert_tensors(config)
    for seed, stem in enumerate(tiny.linear_stems(config)):
        tiny.prune(tensors, stem, 0.2, (1, 4), seed)
    return tiny.write_model(folder, config, tensors)


@pytest.fixture
def packed_folder(tmp_path: Path) -> Path:
    pack(read_checkpoint(sparse_model(tmp_path / "source")), tmp_path / "packed")
    return tmp_path / "packed"


QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[QUERY + "_index"].__setitem__(0, 32), "block index 32 past the last, 31"),
        (lambda t: t[QUERY + "_index"].__setitem__(1, t[QUERY + "_index"][0]), "do not rise within a row"),
        (lambda t: t[QUERY + "_start"].__setitem__(5, 60_000), "rows do not partition the"),
        (lambda t: t[QUERY + "_start"].__setitem__(0, 1), "rows do not partition the"),
        (lambda t: t.__setitem__(QUERY + "_start", t[QUERY + "_start"][:-1].copy()), r"shapes \(128,\)"),
        (
            lambda t: t.__setitem__(QUERY + "_index", t[QUERY + "_index"].astype(np.uint32)),
            "types uint32, uint32, int8",
        ),
        (lambda t: t.__setitem__(QUERY + "_values", t[QUERY + "_values"][:-1].copy()), "shapes"),
        (lambda t: t.pop(QUERY + "_values"), f"missing {QUERY}_values"),
        (lambda t: t.pop(QUERY + "_scale"), f"missing {QUERY}_scale"),
        (lambda t: t[QUERY + "_scale"].__setitem__(0, np.nan), "found scales"),
        (lambda t: t.__setitem__(QUERY, np.ones((128, 128), np.float32)), "is stored twice, whole and as blocks"),
    ],
)
def test_hostile_packed_files(packed_folder: Path, change: Any, message: str) -> None:
    file = packed_folder / "model.safetensors"
    tensors = {n: t.copy() for n, t in load_file(file).items()}
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(ModelError, match=message):
        load(packed_folder)


@pytest.mark.parametrize("keep", [0, 7, 1000, -1, -5000])
def test_truncated_packed_files(packed_folder: Path, keep: int) -> None:
    file = packed_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load(packed_folder)


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, bytes]]:
    """What a portable and a packed folder hold, both with a tokenizer.json."""
    folder = tmp_path_factory.mktemp("whole")
    sparse_model(folder / "portable")
    backend = HFTokenizer(models.WordPiece({t: i for i, t in enumerate(tiny.VOCABULARY)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.save(str(folder / "portable" / "tokenizer.json"))
    pack(read_checkpoint(folder / "portable"), folder / "packed")
    return [{f.name: f.read_bytes() for f in (folder / kind).iterdir()} for kind in ("portable", "packed")]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Ways to everything inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way for key, v in inside for way in ((*here, key), *places(v, (*here, key)))]


@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_no_change_of_a_file_escapes(model_files: list[dict[str, bytes]], data: st.DataObject) -> None:
    """Whatever is changed in a folder, it answers with numbers or is refused by an error of ours."""
    files = dict(data.draw(st.sampled_from(model_files)))
    name = data.draw(st.sampled_from(["config.json", "tokenizer.json", "model.safetensors"]))
    if name.endswith(".json") and data.draw(st.booleans()):
        described = json.loads(files[name])
        *way, last = data.draw(st.sampled_from(places(described)))
        inside = described
        for key in way:
            inside = inside[key]
        inside[last] = data.draw(JSON)
        files[name] = json.dumps(described).encode()
    else:
        content = bytearray(files[name])
        header = 4000 if name == "model.safetensors" else len(content)  # the rest of it is weights, all alike
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
        files[name] = bytes(content)
    with tempfile.TemporaryDirectory() as folder:
        for each, stored in files.items():
            (Path(folder) / each).write_bytes(stored)
        try:
            answer = load(folder, threads=1).answer("who built the tower", "the tower was built by anna")
        except Error:
            return
    assert answer is None or 0 <= answer.score <= 1


def test_other_versions_are_refused(packed_folder: Path) -> None:
    config = json.loads((packed_folder / "config.json").read_text())
    config["thinbert"]["packed"] = 2
    (packed_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="packed with version 2 of the format; this thinbert reads version 1"):
        load(packed_folder)


# --- the cache --------------------------------------------------------------------------------------------------------


def test_a_portable_model_is_packed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("THINBERT_CACHE", str(tmp_path / "cache"))
    config = tiny.bert_config()
    folder = tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config))
    with caplog.at_level(logging.INFO, "thinbert"):
        first = load(folder).answer("who", "the tower")
        assert [r.message.startswith(f"packing {folder} into ") for r in caplog.records] == [True]
        caplog.clear()
        assert load(folder).answer("who", "the tower") == first
        assert caplog.records == []
    (made,) = (tmp_path / "cache" / f"packed-1-{__version__}").iterdir()
    assert {f.name for f in made.iterdir()} == {"config.json", "model.safetensors", "vocab.txt"}
    # other weights, another entry
    tiny.write_model(folder, config, tiny.bert_tensors(config, seed=5))
    load(folder)
    assert len(list(made.parent.iterdir())) == 2


def test_a_damaged_entry_of_the_cache_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THINBERT_CACHE", str(tmp_path / "cache"))
    config = tiny.bert_config()
    folder = tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config))
    expected = load(folder).answer("who", "the tower")
    (made,) = (tmp_path / "cache" / f"packed-1-{__version__}").iterdir()
    whole = (made / "model.safetensors").read_bytes()
    for harm in (
        lambda: (made / "model.safetensors").write_bytes(whole[:1000]),
        lambda: (made / "config.json").unlink(),
        lambda: (made / "model.safetensors").unlink(),
    ):
        harm()
        assert load(folder).answer("who", "the tower") == expected
        assert (made / "model.safetensors").read_bytes() == whole
        assert list(made.parent.iterdir()) == [made]


def test_what_killed_packings_leave_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    """Unfinished files are taken away by the next; another's work only when it is a day old."""
    out = tmp_path / "out"
    out.mkdir()
    (out / ".config.json.0123abcd.tmp").write_text("{")
    pack(read_checkpoint(tiny_folder), out)
    (out / ".model.safetensors.0123abcd.tmp").write_bytes(b"half")
    pack(read_checkpoint(tiny_folder), out)
    assert {f.name for f in out.iterdir()} == {"config.json", "model.safetensors", "vocab.txt"}

    monkeypatch.setenv("THINBERT_CACHE", str(tmp_path / "cache"))
    kept = tmp_path / "cache" / f"packed-1-{__version__}"
    for name, age in (("packing-old", 2), ("packing-new", 0)):
        (kept / name / "model").mkdir(parents=True)
        os.utime(kept / name, (time.time() - age * 86_400,) * 2)
    load(tiny_folder)
    assert sorted(f.name for f in kept.iterdir() if f.name.startswith("packing-")) == ["packing-new"]


def test_two_processes_may_mend_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    """One may take away what the other has just put there, for the damaged one that it saw."""
    monkeypatch.setenv("THINBERT_CACHE", str(tmp_path / "cache"))
    kept, looks = cache._kept, []

    def other(target: Path) -> Checkpoint | None:
        looks.append(target)
        if len(looks) == 2:  # after ours was put there
            shutil.rmtree(target)
        return kept(target)

    monkeypatch.setattr(cache, "_kept", other)
    assert load(tiny_folder).answers
    assert len(looks) == 3


def test_a_model_without_a_tokenizer_is_not_packed(tmp_path: Path) -> None:
    config = tiny.bert_config()
    folder = tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config))
    (folder / "vocab.txt").unlink()
    with pytest.raises(ModelError, match="no tokenizer; expected "):
        pack(read_checkpoint(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_a_home(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user has none: what helps is said, and the doctor says there is no cache."""
    monkeypatch.delenv("THINBERT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    with pytest.raises(
        ModelError, match=r"there is no home folder; set THINBERT_CACHE; .* or load with precision float32"
    ):
        load(tiny_folder)
    assert examine()["cache"].startswith("none: there is no home folder")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("THINBERT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "thinbert"


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("THINBERT_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        ModelError, match="cannot be written: Not a directory; set THINBERT_CACHE, or load with precision"
    ):
        load(tiny_folder)
    assert load(tiny_folder, precision="float32")
