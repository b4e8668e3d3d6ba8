"""The native engine: equal to its NumPy twin, and the same to the last bit on every instruction set."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import int8_twin
import tiny
from thinbert._core import Encoder, Matrix, instruction_sets
from thinbert.api import Model, Reference, load
from thinbert.errors import InputError, ModelError
from thinbert.model.blocks import ENDINGS, to_blocks
from thinbert.model.checkpoint import Checkpoint, read_checkpoint
from thinbert.model.config import ACTIVATIONS
from thinbert.model.families import FAMILIES
from thinbert.model.pack import pack
from thinbert.model.quantize import SCALE_SUFFIX, quantize_rows
from thinbert.model.reference import class_logits
from thinbert.runtime import engine as engine_module
from thinbert.runtime.engine import COSTS_FILE, FORMS, Engine, choose_isa, choose_threads, costs, usable_cores

ISAS = [name for name, _, built, supported in instruction_sets() if built and supported]
LABELS = {"id2label": {"0": "no", "1": "maybe", "2": "yes"}}
LENGTHS = [9, 1, 23, 64, 16, 17, 48]


def checkpoint_of(folder: Path, config: dict[str, Any], block: tuple[int, int] | None = None) -> Checkpoint:
    distil = config["model_type"] == "distilbert"
    tensors = tiny.distilbert_tensors(config) if distil else tiny.bert_tensors(config)
    if block:
        for seed, stem in enumerate(tiny.linear_stems(config)):
            tiny.prune(tensors, stem, 0.3, block, seed)
    return read_checkpoint(tiny.write_model(folder / "m", config, tensors))


MODELS = [
    pytest.param(tiny.bert_config(), None, id="dense"),
    pytest.param(tiny.bert_config(), (1, 4), id="1x4"),
    pytest.param(tiny.bert_config(), (4, 1), id="4x1"),
    pytest.param(tiny.bert_config(num_attention_heads=2), (32, 32), id="32x32-heads-of-64"),
    pytest.param(tiny.bert_config(), (1, 1), id="unstructured"),
    pytest.param(tiny.bert_config(hidden_act="gelu_new"), None, id="gelu_new"),
    pytest.param(tiny.bert_config(hidden_act="relu", intermediate_size=203), None, id="relu-odd-width"),
    pytest.param(tiny.bert_config(intermediate_size=1600, num_hidden_layers=1), (1, 4), id="three-pieces"),
    # pieces of 752 rows: the second begins inside a group of 32
    pytest.param(tiny.bert_config(intermediate_size=1500, num_hidden_layers=1), (1, 4), id="two-odd-pieces"),
    pytest.param(tiny.bert_config(layer_norm_type="no_norm", num_hidden_layers=1), None, id="no_norm"),
    pytest.param(tiny.distilbert_config(), None, id="distilbert"),
]


@pytest.mark.parametrize(("config", "block"), MODELS)
def test_engine_is_its_numpy_twin(tmp_path: Path, config: dict[str, Any], block: tuple[int, int] | None) -> None:
    # one layer: where a value lies between two steps, the other rounding moves everything after it a little
    config = {**config, "num_hidden_layers": 1, "n_layers": 1}
    checkpoint = checkpoint_of(tmp_path, config, block)
    ids, types, lengths = tiny.ragged(LENGTHS, token_types=config["model_type"] == "bert")
    engine = Engine(checkpoint).hidden(ids, types, lengths)
    twin = int8_twin.hidden(checkpoint, ids, types, lengths)
    exact = Reference(checkpoint).hidden(ids, types, lengths)
    size = np.abs(exact).max()
    apart = np.abs(engine - twin).max(axis=1) / size
    assert np.mean(apart < 1e-5) > 0.5  # one key rounded the other way moves all of its sequence
    assert apart.max() < 2e-2
    # and the twin is not just any approximation: it is far closer to the engine than float arithmetic is
    assert np.abs(engine - twin).mean() < 0.25 * np.abs(engine - exact).mean()
    assert np.abs(engine - exact).mean() < 2e-2 * size


def forced(checkpoint: Checkpoint, isa: str, form: int, threads: int) -> Encoder:
    """An engine with every matrix in one form."""
    config, family = checkpoint.config, FAMILIES[checkpoint.config.family]
    encoder = Encoder(
        isa, threads, config.width, config.head_size, ACTIVATIONS.index(config.activation), 1e-12, [1.0, 1.0, 1.0]
    )
    names = {f: family.prefix + stem for f, stem in family.embeddings.items()}
    tables = [quantize_rows(checkpoint.array(names[f])) for f in ("token", "position", "token_type")]
    norm = checkpoint.norm(names["norm"])
    encoder.set_embeddings(tables, norm.weight, norm.bias)
    for i in range(config.layers):
        layer = checkpoint.layer(i)
        matrices = []
        for field in ("query", "key", "value", "attention_output", "ffn_in", "ffn_out"):
            linear = getattr(layer, field)
            b = to_blocks(*quantize_rows(linear.weight))
            matrices.append(Matrix(b.rows, b.columns, b.start, b.index, b.values, b.scale, linear.bias))
        norms = (layer.attention_norm, layer.ffn_norm)
        parts = [part for n in norms for part in (n.weight, n.bias)]
        given = encoder.add_layer(config.heads[i], config.ffn[i], matrices, *parts, form)
        assert given == [form] * 6
    random = np.random.RandomState(5)
    shapes = ((config.width, config.width), (config.width,), (3, config.width), (3,))
    head = [random.standard_normal(shape).astype(np.float32) for shape in shapes]
    encoder.set_classes(head[0], head[1], True, head[2], head[3])
    return encoder


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bit_equal_on_every_instruction_set_form_and_thread_count(tmp_path: Path, activation: str) -> None:
    # 1500: two pieces of 752 rows, and the second begins inside what would be a group of 32
    config = tiny.bert_config(hidden_act=activation, intermediate_size=1500 if activation == "relu" else 803)
    checkpoint = checkpoint_of(tmp_path, config, None)
    # 14 vectors: own tiles for two threads, two vectors shared by three; 3 vectors: shared by all
    inputs = [tiny.ragged(lengths) for lengths in (LENGTHS, [41])]
    plain = forced(checkpoint, "generic", 0, 1)
    expected = [
        [plain.forward(ids, types, np.array(lengths, np.int32), what) for what in (1, 2)]
        for ids, types, lengths in inputs
    ]
    assert "generic" in ISAS
    for isa in ISAS:
        for form in range(len(FORMS)):
            for threads in (1, 2, 3):
                encoder = forced(checkpoint, isa, form, threads)
                assert (encoder.isa, encoder.threads) == (isa, threads)
                for (ids, types, lengths), right in zip(inputs, expected, strict=True):
                    for what in (1, 2):
                        got = encoder.forward(ids, types, np.array(lengths, np.int32), what)
                        said = f"{isa}, {FORMS[form]}, {threads} threads, {what}"
                        np.testing.assert_array_equal(got, right[what - 1], err_msg=said)


def test_bit_equal_with_odd_layers(tmp_path: Path) -> None:
    """Two pieces of a width, a layer without heads, one without neurons, more threads than vectors."""
    config = tiny.bert_config(hidden_size=832, num_attention_heads=26, intermediate_size=96, num_hidden_layers=3)
    tensors = tiny.bert_tensors(config)
    for seed, stem in enumerate(tiny.linear_stems(config)):
        tiny.prune(tensors, stem, 0.2, (1, 4), seed)
    tensors["bert.encoder.layer.0.attention.self.value.weight"][:] = 0
    tensors["bert.encoder.layer.1.intermediate.dense.weight"][:] = 0
    tensors["bert.encoder.layer.2.attention.self.value.weight"][64:] = 0
    pack(read_checkpoint(tiny.write_model(tmp_path / "m", config, tensors)), tmp_path / "packed")
    checkpoint = read_checkpoint(tmp_path / "packed")
    assert (checkpoint.config.heads, checkpoint.config.ffn) == ((0, 26, 2), (96, 0, 96))
    ids, types, lengths = tiny.ragged([3, 30])
    plain = forced(checkpoint, "generic", 0, 1)
    expected, classes = (plain.forward(ids, types, np.array(lengths, np.int32), what) for what in (2, 1))
    exact = Reference(checkpoint).hidden(ids, types, lengths)
    assert np.abs(expected - exact).mean() < 2e-2 * np.abs(exact).max()
    for isa in ISAS:
        for form in range(len(FORMS)):
            for threads in (1, 2, 5):
                said = f"{isa}, {FORMS[form]}, {threads} threads"
                encoder = forced(checkpoint, isa, form, threads)
                got = encoder.forward(ids, types, np.array(lengths, np.int32), 2)
                np.testing.assert_array_equal(got, expected, err_msg=said)
                got = encoder.forward(ids, types, np.array(lengths, np.int32), 1)
                np.testing.assert_array_equal(got, classes, err_msg=said)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_classes_are_those_of_first_tokens(tmp_path: Path, family: str, threads: int) -> None:
    """The engine computes the last layer for first tokens only; its twin for all: of many sequences, whose tiles are
    several, and of few."""
    config = tiny.bert_config(**LABELS) if family == "bert" else tiny.distilbert_config(**LABELS)
    make = tiny.bert_tensors if family == "bert" else tiny.distilbert_tensors
    checkpoint = read_checkpoint(tiny.write_model(tmp_path / "m", config, make(config, head="classify")))
    head = checkpoint.classify()
    assert head is not None
    engine = Engine(checkpoint, threads=threads)
    for lengths in ([1 + 7 * n % 40 for n in range(150)], LENGTHS, [64], [1]):
        ids, types, _ = tiny.ragged(lengths, token_types=family == "bert")
        firsts = engine.hidden(ids, types, lengths)[np.cumsum([0, *lengths[:-1]])]
        expected = class_logits(head, firsts)
        got = engine.class_logits(ids, types, lengths)
        assert got.shape == expected.shape == (len(lengths), len(head.out.bias))
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_scores_past_all_bounds(tmp_path: Path) -> None:
    """Where the best key is ahead by tens of thousands, it has all the weight."""
    config = tiny.bert_config(num_hidden_layers=1)
    tensors = tiny.bert_tensors(config)
    for name in ("query", "key"):
        tensors[f"bert.encoder.layer.0.attention.self.{name}.weight"] *= 300
    checkpoint = read_checkpoint(tiny.write_model(tmp_path / "m", config, tensors))
    ids, types, lengths = tiny.ragged([40])
    expected = int8_twin.hidden(checkpoint, ids, types, lengths)
    for isa in ISAS:
        got = Engine(checkpoint, isa=isa).hidden(ids, types, lengths)
        assert np.mean(np.abs(got - expected).max(axis=1) < 1e-3 * np.abs(expected).max()) > 0.9


@pytest.mark.parametrize("power", [-66, 40, 90])
def test_scales_of_queries_and_keys_cancel(tmp_path: Path, power: int) -> None:
    """Scaled by powers of two, nothing is rounded otherwise, however large or small they get."""
    config = tiny.bert_config(num_hidden_layers=1)
    tensors = tiny.bert_tensors(config)
    ids, types, lengths = tiny.ragged([40, 3])
    folder = tiny.write_model(tmp_path / "plain", config, tensors)
    expected = Engine(read_checkpoint(folder)).hidden(ids, types, lengths)
    for name, factor in (("query", 2.0**power), ("key", 2.0**-power)):
        for part in ("weight", "bias"):
            tensors[f"bert.encoder.layer.0.attention.self.{name}.{part}"] *= np.float32(factor)
    checkpoint = read_checkpoint(tiny.write_model(tmp_path / "scaled", config, tensors))
    for isa in ISAS:
        np.testing.assert_array_equal(Engine(checkpoint, isa=isa).hidden(ids, types, lengths), expected, err_msg=isa)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_overflows_is_never_a_number(tmp_path: Path, activation: str) -> None:
    """One token spoils all that attend to it, as in float arithmetic, and no other sequence."""
    config = tiny.bert_config(hidden_act=activation, **LABELS)
    tensors = tiny.bert_tensors(config, head="classify")
    ids, types, lengths = tiny.ragged([20, 3])
    tensors["bert.embeddings.position_embeddings.weight"][3] = 3e38
    checkpoint = read_checkpoint(tiny.write_model(tmp_path / "m", config, tensors))
    for runtime in (Reference(checkpoint), *(Engine(checkpoint, isa=isa) for isa in ISAS)):
        tokens = np.isnan(runtime.hidden(ids, types, lengths)).any(axis=1)
        assert tokens.tolist() == [True] * 20 + [False] * 3
        classes = runtime.class_logits(ids, types, lengths)
        assert np.isnan(classes).any(axis=1).tolist() == [True, False]


def test_a_head_that_overflows_is_never_a_number(tmp_path: Path) -> None:
    """Also where heads beside it do not, and the range of their token is found value by value."""
    config = tiny.bert_config(num_hidden_layers=1)
    tensors = tiny.bert_tensors(config)
    for name, bias in (("query", 100), ("key", 1e37)):  # whose product is infinite for each token
        tensors[f"bert.encoder.layer.0.attention.self.{name}.bias"][:32] = bias
    checkpoint = read_checkpoint(tiny.write_model(tmp_path / "m", config, tensors))
    ids, types, lengths = tiny.ragged([20, 3])
    for isa in ISAS:
        assert np.isnan(Engine(checkpoint, isa=isa).hidden(ids, types, lengths)).all()


def test_very_many_short_sequences(tmp_path: Path) -> None:
    """More vectors than the square root of what an int holds."""
    config = tiny.bert_config(
        hidden_size=32,
        num_attention_heads=1,
        intermediate_size=32,
        num_hidden_layers=1,
        max_position_embeddings=8,
        **LABELS,
    )
    checkpoint = read_checkpoint(tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config, head="classify")))
    ids, types, lengths = tiny.ragged([1] * 100_000)
    engine = Engine(checkpoint, threads=1)
    for compute in (engine.hidden, engine.class_logits):
        again = compute(ids[-100:], types[-100:], lengths[-100:])
        np.testing.assert_array_equal(compute(ids, types, lengths)[-100:], again)


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer takes all addresses")
def test_memory_that_is_not_there(tmp_path: Path) -> None:
    """Is an error, and not a fault in some thread."""
    code = (
        "import sys, resource, numpy as np, thinbert\nm = thinbert.load(sys.argv[1], threads=2)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)\n"
        "n = np.ones(60 * 20_000, np.int32)\n"
        "try: m.forward(n, n * 0, [60] * 20_000)\nexcept MemoryError: print('said')\n"
        "try: thinbert.load(sys.argv[1], threads=1000)\nexcept thinbert.InputError as e: print(e)\n"
    )
    folder = tiny.write_model(tmp_path / "m", config := tiny.bert_config(), tiny.bert_tensors(config))
    load(folder)  # packed before
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60)
    said, threads = done.stdout.splitlines()
    assert said == "said"
    assert threads.startswith("1000 threads cannot be started (")
    assert done.returncode == 0


def test_extreme_bytes_do_not_saturate(tmp_path: Path) -> None:
    """All weights at the ends of their range, and activations too: where 16-bit shortcuts overflow."""
    config = tiny.bert_config(num_hidden_layers=1, hidden_act="relu")
    tensors = tiny.bert_tensors(config)
    for name in tensors:
        if name.endswith("intermediate.dense.weight"):
            tensors[name] = np.ones_like(tensors[name])
        if name.endswith("output.LayerNorm.bias"):
            tensors[name] = np.full_like(tensors[name], 50)
    checkpoint = read_checkpoint(tiny.write_model(tmp_path / "m", config, tensors))
    ids, types, lengths = tiny.ragged([20])
    expected = int8_twin.hidden(checkpoint, ids, types, lengths)
    for isa in ISAS:
        got = Engine(checkpoint, isa=isa).hidden(ids, types, lengths)
        assert np.abs(got - expected).mean() < 1e-3 * np.abs(expected).max()


def test_batching_changes_nothing(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, tiny.bert_config(), (1, 4))
    engine = Engine(checkpoint)
    ids, types, lengths = tiny.ragged(LENGTHS)
    together, start = engine.span_logits(ids, types, lengths), 0
    for n in lengths:
        at = slice(start, start + n)
        np.testing.assert_array_equal(engine.span_logits(ids[at], types[at], [n]), together[at])
        start += n


def test_same_answers_as_float(default_model: Model) -> None:
    reference = load("default", precision="float32")
    context = (
        "Frédéric Chopin (1 March 1810 – 17 October 1849) was a Polish composer and pianist. "
        "The Eiffel Tower stands on the Champ de Mars in Paris and is named after the engineer Gustave Eiffel. "
        "Bread is made from flour and water."
    )
    for question in (
        "When did Chopin live?",
        "What was Chopin's nationality?",
        "Where is the Eiffel Tower?",
        "Who is the Eiffel Tower named after?",
        "What is bread made from?",
    ):
        ours, theirs = default_model.read(question, [context]), reference.read(question, [context])
        assert ours.answers[0].text == theirs.answers[0].text
        assert ours.answers[0].score == pytest.approx(theirs.answers[0].score, abs=0.1)


def test_many_python_threads_share_an_engine(tmp_path: Path) -> None:
    engine = Engine(checkpoint_of(tmp_path, tiny.bert_config()))
    inputs = [tiny.ragged([5 + i], seed=i) for i in range(16)]
    expected = [engine.span_logits(*i) for i in inputs]
    got: list[Any] = [None] * len(inputs)

    def work(i: int) -> None:
        for _ in range(20):
            got[i] = engine.span_logits(*inputs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_after_a_fork(tmp_path: Path, tiny_folder: Path) -> None:
    code = (
        "import os, sys, thinbert\nm = thinbert.load(sys.argv[1])\nif os.fork() == 0:\n"
        "    try: m.answer('who', 'the tower')\n"
        "    except thinbert.ModelError as e: print(e, flush=True)\n    os._exit(0)\n"
        "os.wait()\nprint(m.answer('who', 'the tower').text)"
    )
    command = [sys.executable, "-c", code, str(tiny_folder)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    assert out[0] == "this model was loaded before a fork, and its threads stayed behind; load it in the child"
    assert out[1]


def test_a_child_may_load_its_own(tiny_folder: Path) -> None:
    """What it was born with is let go of without waiting for threads that it does not have."""
    code = (
        "import os, sys, thinbert\nm = thinbert.load(sys.argv[1], threads=3)\nif os.fork() == 0:\n"
        "    m = thinbert.load(sys.argv[1], threads=3)\n    print(m.answer('who', 'the tower').text, flush=True)\n"
        "    sys.exit(7)\nprint(os.waitstatus_to_exitcode(os.wait()[1]))\nprint(m.answer('who', 'the tower').text)"
    )
    command = [sys.executable, "-c", code, str(tiny_folder)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    assert (out[0], out[1]) == (out[2], "7")


# --- choices ----------------------------------------------------------------------------------------------------------


def test_the_forced_instruction_set_is_the_one_that_runs(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for isa in ISAS:
        monkeypatch.setenv("THINBERT_ISA", isa)
        assert load(tiny_folder).runtime._core.isa == isa  # type: ignore[attr-defined]
    monkeypatch.delenv("THINBERT_ISA")
    assert choose_isa() == ISAS[0]


def test_instruction_sets_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match="unknown instruction set 'sse9'; known are amx, avx512vnni, avxvnni, avx2, generic"
    ):
        choose_isa("sse9")
    sets = [
        ("avx512vnni", ["avx512_vnni", "avx2"], True, False),
        ("avx2", ["avx2"], False, True),
        ("generic", [], True, True),
    ]
    monkeypatch.setattr("thinbert.runtime.engine.instruction_sets", lambda: sets)
    monkeypatch.setattr("thinbert.runtime.engine.cpu_features", lambda: ["avx2"])
    with pytest.raises(InputError, match="instruction set avx512vnni is not on this CPU: it lacks avx512_vnni"):
        choose_isa("avx512vnni")
    with pytest.raises(InputError, match="instruction set avx2 is not built into this thinbert"):
        choose_isa("avx2")
    assert choose_isa() == "generic"


def test_threads(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_threads() == usable_cores() >= 1
    monkeypatch.setenv("THINBERT_THREADS", "3")
    assert choose_threads() == 3
    assert choose_threads(1) == 1
    assert load(tiny_folder).runtime.threads == 3  # type: ignore[attr-defined]
    for bad in (0, -1, 5000):
        with pytest.raises(InputError, match=f"{bad} threads; expected from 1 to 1024"):
            choose_threads(bad)
    monkeypatch.setenv("THINBERT_THREADS", "many")
    with pytest.raises(InputError, match="THINBERT_THREADS is 'many'; expected a number of threads"):
        choose_threads()
    monkeypatch.setenv("THINBERT_THREADS", "1" * 5000)
    with pytest.raises(InputError, match="THINBERT_THREADS is '1111"):
        choose_threads()
    affinity = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(affinity)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, affinity)


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "max 100000"}, 64),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/a.slice/b.service", {"a.slice/cpu.max": "350000 100000", "a.slice/b.service/cpu.max": "max 100000"}, 3),
        ("4:memory:/x\n3:cpu,cpuacct:/x", {"cpu,cpuacct/x/cpu.cfs_quota_us": "400000"}, 64),
        (
            "3:cpu,cpuacct:/x",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "400000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
            4,
        ),
        ("3:cpu:/docker/1", {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "50000"}, 3),
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("0::/", {"cpu.max": "damaged"}, 64),
        ("damaged", {}, 64),
    ],
)
def test_cores_that_cgroups_leave(
    own: str, files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    (tmp_path / "own").write_text(f"{own}\n")
    monkeypatch.setattr(engine_module, "_CGROUPS", tmp_path)
    monkeypatch.setattr(engine_module, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64))
    assert usable_cores() == cores


def test_precisions(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="precision 'int4'; thinbert computes in int8 or float32"):
        load(tiny_folder, precision="int4")


def test_head_sizes_the_engine_does_not_run(tmp_path: Path) -> None:
    config = tiny.bert_config(hidden_size=96, num_attention_heads=2)
    folder = tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config))
    with pytest.raises(ModelError, match=r'has heads of size 48; the engine runs .* Load it with precision="float32"'):
        load(folder)
    assert load(folder, precision="float32").answer("who", "the tower")


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_bad_calls_are_refused(tiny_folder: Path, precision: str) -> None:
    model = load(tiny_folder, precision=precision)
    one = np.zeros(1, np.int32)
    for arguments, message in (
        ((one, np.zeros(2, np.int32), [1]), "1 token ids and 2 token types for lengths that sum to 1"),
        ((one, one, [2]), "1 token ids and 1 token types for lengths that sum to 2; expected as many of each"),
        ((one, one, [0, 1]), f"length 0; model {model.name} takes from 1 to 64"),
        ((one, one, [-1, 2]), "length -1; .* takes from 1 to 64"),
        ((np.zeros(65, np.int32), np.zeros(65, np.int32), [65]), "length 65; .* takes from 1 to 64"),
        ((one + 10_000, one, [1]), "token id 10000; .* takes from 0 to "),
        ((one - 1, one, [1]), "token id -1; "),
        ((np.array([2**32]), one, [1]), "token id 4294967296; "),
        ((one, one + 2, [1]), "token type 2; .* takes from 0 to 1"),
        ((one + 0.5, one, [1]), r"token ids are float64 \[1\]; expected whole numbers in one dimension"),
        ((one[None], one, [1]), r"token ids are int32 \[1, 1\]"),
        ((one[:0], one[:0], []), r"token ids are int32 \[0\]"),
    ):
        with pytest.raises(InputError, match=message):
            model.forward(*arguments)


def test_lengths_of_any_whole_type(tiny_folder: Path) -> None:
    ids = np.full(360, 7, np.int32)
    for precision in ("int8", "float32"):
        model = load(tiny_folder, precision=precision)
        wanted = model.forward(ids, ids * 0, [60] * 6)
        for kind in (np.uint8, np.int8, np.int64):
            np.testing.assert_array_equal(model.forward(ids, ids * 0, np.full(6, 60, kind)), wanted)  # type: ignore[arg-type]


def test_arrays_that_change_after_they_were_checked(tiny_folder: Path) -> None:
    """Another thread may write to them while a call waits for its turn: it computes what it was given."""
    engine, calls = Engine(read_checkpoint(tiny_folder), threads=1), 8
    ids, lengths = np.full(60 * 500, 7, np.int32), [60] * 500
    wanted = engine.span_logits(ids, ids * 0, lengths)
    given = [ids.copy() for _ in range(calls)]
    with ThreadPoolExecutor(calls) as pool:
        found = [pool.submit(engine.span_logits, each, ids * 0, lengths) for each in given]
        while not found[0].done():  # by when the others wait
            time.sleep(0.001)
        for each in given:
            each[:] = 2**31 - 1
        results = [f.exception() or f.result() for f in found]
    for result in results:  # one that came late was given what it cannot compute
        assert isinstance(result, InputError) or np.array_equal(result, wanted)
    assert sum(isinstance(result, np.ndarray) for result in results) > 1


def test_a_table_stored_as_blocks_is_the_table(tmp_path: Path) -> None:
    config = tiny.bert_config()
    folder = tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config))
    pack(read_checkpoint(folder), tmp_path / "packed")
    name = "bert.embeddings.word_embeddings.weight"
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    ids, types, lengths = tiny.ragged([9, 23], token_types=True)
    tensors[name] = tensors[name] // 3  # which quantised anew would have other scales
    save_file(tensors, tmp_path / "packed" / "model.safetensors")
    whole = Engine(read_checkpoint(tmp_path / "packed")).hidden(ids, types, lengths)
    b = to_blocks(tensors.pop(name), tensors[name + SCALE_SUFFIX])
    tensors |= dict(zip((name + e for e in ENDINGS), (b.start, b.index, b.values), strict=True))
    save_file(tensors, tmp_path / "packed" / "model.safetensors")
    blocks = Engine(read_checkpoint(tmp_path / "packed")).hidden(ids, types, lengths)
    np.testing.assert_array_equal(whole, blocks)


def test_the_core_reads_nothing_out_of_bounds(tiny_folder: Path) -> None:
    """Whatever it is given, by whomever."""
    checkpoint = read_checkpoint(tiny_folder)
    engine, one = Engine(checkpoint), np.zeros(1, np.int32)
    for arguments, message in (
        ((one, np.zeros(2, np.int32), [1]), "ids and types differ in length"),
        ((one, one, [2]), "lengths do not sum to the number of tokens"),
        ((one, one, [0]), "a length out of range"),
        ((np.zeros(65, np.int32), np.zeros(65, np.int32), [65]), "a length out of range"),
        ((one + 10_000, one, [1]), "a token id out of range"),
        ((one - 1, one, [1]), "a token id out of range"),
        ((one, one + 2, [1]), "a token type out of range"),
    ):
        with pytest.raises(InputError, match=message):
            engine.span_logits(*arguments)
    encoder = Encoder(ISAS[0], 1, 64, 32, 0, 1e-12, [1.0, 1.0, 1.0])
    norm = np.ones(64, np.float32)
    table = (np.zeros((8, 64), np.int8), np.ones(8, np.float32))
    for bad in (table[0].astype(np.float32), np.zeros((8, 128), np.int8)[:, ::2]):
        with pytest.raises(TypeError, match="int8"):
            encoder.set_embeddings([table, (bad, table[1])], norm, norm)
    with pytest.raises(ValueError, match="two or three tables"):
        encoder.set_embeddings([table], norm, norm)
    encoder.set_embeddings([table, table], norm, norm)
    with pytest.raises(ValueError, match="no layers"):
        encoder.forward(one, one, one + 1, 2)
    start = np.zeros(65, np.uint32)
    start[1:] = 1
    index = np.zeros(1, np.uint16)
    changed = Matrix(64, 64, start, index, np.ones((1, 4), np.int8), norm, norm)
    index[0] = 16  # once it is made
    empty = Matrix(64, 64, np.zeros(65, np.uint32), np.zeros(0, np.uint16), np.zeros((0, 4), np.int8), norm, norm)
    for matrices, form, message in (
        ([empty] * 6, 3, "no such form"),
        ([empty] * 5, 0, "a layer has six matrices"),
        ([*[empty] * 5, None], 0, "a layer has six matrices"),
        ([changed] * 6, 0, "index past the columns"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder.add_layer(2, 64, matrices, norm, norm, norm, norm, form)
    assert encoder.add_layer(2, 64, [empty] * 6, norm, norm, norm, norm, 2) == [2] * 6


def test_arrays_are_not_converted() -> None:
    zeros = np.zeros(2, np.float32)
    start, index, values = np.zeros(3, np.uint32), np.zeros(0, np.uint16), np.zeros((0, 4), np.int8)
    Matrix(2, 4, start, index, values, zeros, zeros)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        Matrix(2, 4, start.astype(np.int64), index, values, zeros, zeros)


def test_costs_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THINBERT_CACHE", str(tmp_path / "cache"))
    measured: list[str] = []

    def measure(isa: str) -> list[float]:
        measured.append(isa)
        return [0.5, 0.6, 0.25]

    def anew() -> tuple[float, ...]:  # as another process would ask
        costs.cache_clear()
        return costs("generic")

    monkeypatch.setattr(engine_module, "measure_costs", measure)
    try:
        assert anew() == anew() == (0.5, 0.6, 0.25)
        assert measured == ["generic"]
        file = tmp_path / "cache" / COSTS_FILE
        for broken in ("", "[]", "{", file.read_text().replace("0.5", '"x"'), file.read_text().replace("0.5", "-1.0")):
            file.write_text(broken)
            assert anew() == (0.5, 0.6, 0.25)
        assert len(measured) == 6
        file.unlink()
        file.mkdir()  # cannot be written: measured each time, and no more than that
        assert anew() == (0.5, 0.6, 0.25)
        assert anew() == (0.5, 0.6, 0.25)
    finally:
        costs.cache_clear()
