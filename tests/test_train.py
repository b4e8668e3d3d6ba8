"""The training loop: it learns, resumes to the same bits, prunes on schedule, and keeps what it had when it fails."""

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch

import thinbert.compress.train as train_module
import tiny
from thinbert.compress.data import Batch, Features, batch, collect, order, squad_features, unanswerable
from thinbert.compress.encoder import Encoder, from_checkpoint
from thinbert.compress.masks import density, magnitude_masks
from thinbert.compress.objectives import SpanLoss, TorchTeacher
from thinbert.compress.recipe import Distillation
from thinbert.compress.schedule import PruneSchedule, rewinding_rate
from thinbert.compress.train import Objective, Pruning, Settings, TrainError, train
from thinbert.errors import InputError
from thinbert.model.checkpoint import Checkpoint, read_checkpoint
from thinbert.model.tokenizer import read_tokenizer
from thinbert.tasks.squad import Question

SETTINGS = Settings(rate=1e-3, warmup=0.1, dropout=0.1, log_every=4, save_every=5)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    config = tiny.bert_config()
    return read_checkpoint(tiny.write_model(tmp_path / "base", config, tiny.bert_tensors(config)))


def fresh(checkpoint: Checkpoint) -> Encoder:
    torch.manual_seed(0)
    return from_checkpoint(checkpoint, {"span": 0})[0]


def examples(count: int = 48, seed: int = 0) -> Features:
    """Sequences in which the answer is where the token 7 stands."""
    random = np.random.RandomState(seed)

    def one() -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
        length = random.randint(6, 40)
        ids = random.randint(8, 40, length).astype(np.int32)
        place = random.randint(1, length)
        ids[place] = 7
        return ids, np.zeros(length, np.int32), {"start": place, "end": place}

    return collect(one() for _ in range(count))


def plan_of(features: Features, passes: float = 2) -> list[np.ndarray]:
    return order(features.lengths, tokens=200, passes=passes, seed=1)


def log_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_it_learns(checkpoint: Checkpoint, tmp_path: Path) -> None:
    features = examples(200)
    model = fresh(checkpoint)
    settings = Settings(rate=3e-3, warmup=0.1, dropout=0.0, log_every=10)
    assert train(SpanLoss(model), features, plan_of(features, 12), settings, tmp_path / "run")
    lines = log_of(tmp_path / "run")
    assert lines[-1]["loss"] < 0.3 * lines[0]["loss"]
    assert {"step", "of", "loss", "rate", "norm", "tokens_per_second", "seconds"} <= lines[0].keys()
    assert lines[-1]["step"] == lines[-1]["of"]


def test_a_resumed_run_is_the_same_run(checkpoint: Checkpoint, tmp_path: Path) -> None:
    features, pruning = examples(), Pruning(PruneSchedule(0.5, 2, 10, 14, 2), block=(1, 4))
    plan = plan_of(features, 3)
    assert len(plan) > 14
    whole, parts = fresh(checkpoint), fresh(checkpoint)
    train(SpanLoss(whole), features, plan, SETTINGS, tmp_path / "whole", pruning=pruning)
    while not train(SpanLoss(parts), features, plan, SETTINGS, tmp_path / "parts", pruning=pruning, stop_after=4):
        parts = fresh(checkpoint)  # as a new process would
    for (name, a), b in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)
    assert whole.masks().keys() == parts.masks().keys()
    for name, mask in whole.masks().items():
        assert torch.equal(mask, parts.masks()[name])
    assert log_of(tmp_path / "whole")[-1]["density"] == pytest.approx(0.5, abs=0.01)
    assert density(whole.masks()) == pytest.approx(0.5, abs=0.01)


def script_of(checkpoint: Checkpoint, folder: Path, *, dropout: float, passes: int) -> Path:
    """A program that trains into the folder it is given, and says which process it was."""
    script = folder / "run.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        from dataclasses import replace
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_train import SETTINGS, SpanLoss, examples, fresh, plan_of, train
        from accelerate import PartialState
        from thinbert.model.checkpoint import read_checkpoint
        features, settings = examples(), replace(SETTINGS, dropout={dropout})
        model = fresh(read_checkpoint({str(checkpoint.folder)!r}))
        train(SpanLoss(model), features, plan_of(features, {passes}), settings, Path(sys.argv[1]))
        Path(sys.argv[1] + f"-{{PartialState().process_index}}").touch()
        """)
    )
    return script


def test_killed_at_any_step(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """kill -9 in the middle; the next process goes on, and ends with the loss of the run that was not killed."""
    script = script_of(checkpoint, tmp_path, dropout=0.1, passes=3)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, script, killed], env=environment, stdout=subprocess.DEVNULL)
    while not (killed / "state.pt").exists():
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert torch.load(killed / "state.pt", weights_only=True)["step"] < len(plan_of(examples(), 3))
    for out in (killed, tmp_path / "whole"):
        subprocess.run([sys.executable, script, out], check=True, env=environment, stdout=subprocess.DEVNULL)
    ends = [torch.load(out / "state.pt", weights_only=True) for out in (killed, tmp_path / "whole")]
    assert ends[0]["step"] == ends[1]["step"] == len(plan_of(examples(), 3))
    for name, a in ends[0]["model"].items():
        torch.testing.assert_close(a, ends[1]["model"][name], rtol=0, atol=0, msg=name)


def test_a_killed_run_logs_what_one_that_was_not_killed_logs(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Also of the steps between the last line and the state."""
    features, settings = examples(), replace(SETTINGS, log_every=4, save_every=3)
    plan = plan_of(features, 3)

    class Ends(SpanLoss):
        left = 6

        def forward(self, given: Batch) -> torch.Tensor:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().forward(given)

    with pytest.raises(KeyboardInterrupt):
        train(Ends(fresh(checkpoint)), features, plan, settings, tmp_path / "killed")
    for out in (tmp_path / "killed", tmp_path / "whole"):
        train(SpanLoss(fresh(checkpoint)), features, plan, settings, out)
    killed, whole = (
        [(line["step"], line["loss"], line["norm"]) for line in log_of(tmp_path / out)] for out in ("killed", "whole")
    )
    assert killed == whole


def test_a_run_that_is_killed_while_it_is_measured_keeps_its_line(checkpoint: Checkpoint, tmp_path: Path) -> None:
    features, settings = examples(), replace(SETTINGS, log_every=4)
    plan = plan_of(features, 3)

    def killed() -> dict[str, float]:
        raise KeyboardInterrupt

    def measured(out: str, evaluate: Callable[[], dict[str, float]]) -> None:
        train(
            SpanLoss(fresh(checkpoint)), features, plan, settings, tmp_path / out, evaluate=evaluate, evaluate_every=6
        )

    with pytest.raises(KeyboardInterrupt):
        measured("killed", killed)
    for out in ("killed", "whole"):
        measured(out, dict)
    lines = [[(line["step"], line["loss"]) for line in log_of(tmp_path / out)] for out in ("killed", "whole")]
    assert lines[0] == lines[1]


def test_a_log_that_cannot_be_written(checkpoint: Checkpoint, tmp_path: Path) -> None:
    features, out = examples(), tmp_path / "run"
    out.mkdir()
    (out / "log.jsonl").symlink_to(tmp_path / "gone" / "log.jsonl")
    with pytest.raises(TrainError, match=r"run: cannot be written: No such file or directory; the state of step 0 is"):
        train(SpanLoss(fresh(checkpoint)), features, plan_of(features), SETTINGS, out)


def test_two_processes_make_what_one_makes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    script = script_of(checkpoint, tmp_path, dropout=0.0, passes=2)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # `accelerate launch` starts several processes on CPUs through MPI alone; both tell them of each other alike
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment["ACCELERATE_USE_CPU"] = "true"
    subprocess.run([*launch, script, tmp_path / "two"], check=True, env=environment, capture_output=True, timeout=300)
    subprocess.run([sys.executable, script, tmp_path / "one"], check=True, env=environment, capture_output=True)
    assert (tmp_path / "two-1").exists()
    assert not (tmp_path / "one-1").exists()
    assert json.loads((tmp_path / "two" / "settings.json").read_text())["processes"] == 2
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-2)
        assert a["norm"] == pytest.approx(b["norm"], rel=0.1)  # which AdamW would not feel, but clipping does
    assert one[-1]["loss"] < one[0]["loss"]
    ends = [torch.load(tmp_path / out / "state.pt", weights_only=True)["model"] for out in ("one", "two")]
    begin, a, b = (
        torch.cat([t.flatten() for _, t in sorted(model.items())])
        for model in (dict(SpanLoss(fresh(checkpoint)).named_parameters()), *ends)
    )
    assert (a - b).norm() < 0.1 * (a - begin).norm()


def test_zeros_that_are_locked_stay_gone_while_more_are_pruned(checkpoint: Checkpoint, tmp_path: Path) -> None:
    features, pruning = examples(), Pruning(PruneSchedule(0.6, 1, 6, 8, 2))
    gone = {name: torch.rand_like(m.weight) < 0.3 for name, m in fresh(checkpoint).linears().items()}

    def locked() -> Encoder:
        model = fresh(checkpoint)
        model.set_masks({name: ~mask for name, mask in gone.items()})
        return model

    model = locked()
    while not train(
        SpanLoss(model), features, plan_of(features), SETTINGS, tmp_path / "run", pruning=pruning, stop_after=5
    ):
        model = locked()
    assert density(model.masks()) == pytest.approx(0.4, abs=0.01)
    for name, mask in model.masks().items():
        assert not (mask & gone[name]).any()


def test_a_loss_that_some_weights_do_not_feel(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Fisher pruning says so, where it would have nothing to go by."""
    torch.manual_seed(0)
    model = from_checkpoint(checkpoint, {"span": 0, "nsp": 0})[0]  # the pooler is prunable, and spans pass it by
    pruning = Pruning(PruneSchedule(0.5, 2, 4, 4, 1), criterion="fisher")
    features = examples()
    with pytest.raises(TrainError, match="criterion fisher: the loss gives classify_hidden no gradient; use magnitude"):
        train(SpanLoss(model), features, plan_of(features), SETTINGS, tmp_path / "run", pruning=pruning)


def test_any_seed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    features = examples()
    settings = replace(SETTINGS, seed=2**40)
    assert train(SpanLoss(fresh(checkpoint)), features, plan_of(features), settings, tmp_path / "run")


def test_the_log_has_every_step_once(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Also where a killed run had logged more than it had saved, and half a line."""
    features, out = examples(), tmp_path / "run"
    plan = plan_of(features, 3)
    train(SpanLoss(fresh(checkpoint)), features, plan, SETTINGS, out, stop_after=5)
    with (out / "log.jsonl").open("a") as log:
        log.write('{"step": 8, "loss": 1}\n{"step": 12, "lo')
    train(SpanLoss(fresh(checkpoint)), features, plan, SETTINGS, out)
    train(SpanLoss(fresh(checkpoint)), features, plan, SETTINGS, tmp_path / "whole")
    steps = [line["step"] for line in log_of(out)]
    assert steps == sorted({5, *(line["step"] for line in log_of(tmp_path / "whole"))})


def test_all_at_once_is_before_the_first_step(checkpoint: Checkpoint, tmp_path: Path) -> None:
    features, model, whole = examples(), fresh(checkpoint), fresh(checkpoint)
    pruning = Pruning(PruneSchedule(0.5, 0, 0, 0, 1), block=(1, 4))
    train(SpanLoss(model), features, plan_of(features), SETTINGS, tmp_path / "run", pruning=pruning)
    assert log_of(tmp_path / "run")[0]["density"] == pytest.approx(0.5, abs=0.01)
    weights = {name: linear.weight for name, linear in whole.prunable().items()}
    for name, mask in magnitude_masks(weights, 0.5, block=(1, 4)).items():
        assert torch.equal(mask, model.masks()[name])


def test_weights_that_the_loss_does_not_feel_go_first(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """By the Fisher criterion: what is large and never moves the loss is worth less than what is small and does."""
    features, model = examples(), fresh(checkpoint)
    idle = model.linears()["layers.1.ffn_in"]
    with torch.no_grad():  # neurons whose output nothing reads, with large weights
        idle.weight[:32] *= 50
        model.linears()["layers.1.ffn_out"].weight[:, :32] = 0
    pruning = Pruning(PruneSchedule(0.5, 4, 8, 8, 2), criterion="fisher")
    model.linears()["layers.1.ffn_out"].mask = model.linears()["layers.1.ffn_out"].weight != 0
    train(SpanLoss(model), features, plan_of(features), SETTINGS, tmp_path / "run", pruning=pruning)
    assert idle.mask is not None
    assert not idle.mask[:32].any()
    assert float(idle.mask.float().mean()) == pytest.approx(0.5, abs=0.01)


def test_scores_on_the_way_change_nothing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    features = examples()
    plain, scored = fresh(checkpoint), fresh(checkpoint)
    plan = plan_of(features, 3)

    def evaluate() -> dict[str, float]:
        scored.eval()
        return {"dev_f1": torch.rand(()).item()}  # uses the random numbers too

    train(SpanLoss(plain), features, plan, SETTINGS, tmp_path / "plain")
    train(SpanLoss(scored), features, plan, SETTINGS, tmp_path / "scored", evaluate=evaluate, evaluate_every=6)
    for a, b in zip(plain.parameters(), scored.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    lines = log_of(tmp_path / "scored")
    assert [line["step"] for line in lines if "dev_f1" in line] == list(range(6, len(plan), 6))
    assert all("loss" in line for line in lines)


def test_parts_of_a_batch_add_up(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A batch worked through in parts gives the gradients of the whole."""
    features = examples()
    plan = [np.arange(len(features))] * 3
    ends = []
    for micro in (10_000, 120):
        model = fresh(checkpoint)
        settings = Settings(rate=1e-3, warmup=0, dropout=0.0, micro_tokens=micro)
        train(SpanLoss(model), features, plan, settings, tmp_path / str(micro))
        ends.append(log_of(tmp_path / str(micro))[-1])
    assert ends[0]["loss"] == pytest.approx(ends[1]["loss"], rel=2e-2)
    assert ends[0]["norm"] == pytest.approx(ends[1]["norm"], rel=5e-2)


class Broken(SpanLoss):
    steps = 0

    def forward(self, given: Batch) -> torch.Tensor:
        self.steps += 1
        return super().forward(given) * (float("nan") if self.steps > 7 else 1.0)


def test_nan_stops_and_keeps_the_last_good_state(checkpoint: Checkpoint, tmp_path: Path) -> None:
    features = examples()
    with pytest.raises(
        TrainError, match=r"step 7: the loss or its gradient is not finite; give a learning rate below 0.001, and go on"
    ):
        train(Broken(fresh(checkpoint)), features, plan_of(features), SETTINGS, tmp_path / "run")
    kept = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert kept["step"] == 5
    assert all(bool(p.isfinite().all()) for p in kept["model"].values())
    lower = replace(SETTINGS, rate=1e-4)
    assert train(SpanLoss(fresh(checkpoint)), features, plan_of(features), lower, tmp_path / "run")
    rates = {line["step"]: line["rate"] for line in log_of(tmp_path / "run")}
    assert max(rate for step, rate in rates.items() if step > 5) <= 1e-4


def test_short_memory_says_what_helps(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what helps may be changed in a run that is gone on with."""
    features, plan = examples(), plan_of(examples())
    train(SpanLoss(fresh(checkpoint)), features, plan, SETTINGS, tmp_path / "run", stop_after=4)

    def short(*args: object) -> tuple[torch.Tensor, int]:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried"
        )

    for where in ("thinbert.compress.train._backward", "torch.optim.AdamW.step"):  # which allocates its moments
        with monkeypatch.context() as patch:
            patch.setattr(where, short)
            with pytest.raises(TrainError, match=r"step 4: out of memory; lower micro_tokens .*of step 4 is kept"):
                train(SpanLoss(fresh(checkpoint)), features, plan, SETTINGS, tmp_path / "run")
    assert train(SpanLoss(fresh(checkpoint)), features, plan, replace(SETTINGS, micro_tokens=50), tmp_path / "run")


def test_the_rate_is_rewound(checkpoint: Checkpoint, tmp_path: Path) -> None:
    features, schedule = examples(), PruneSchedule(0.5, 2, 10, 14, 4)
    plan, settings = plan_of(features, 3), replace(SETTINGS, rewind=True, log_every=1)
    train(SpanLoss(fresh(checkpoint)), features, plan, settings, tmp_path / "run", pruning=Pruning(schedule))
    warmup = math.ceil(settings.warmup * len(plan))
    shares = [line["rate"] / settings.rate for line in log_of(tmp_path / "run")]
    assert shares == pytest.approx(
        [rewinding_rate(step, steps=len(plan), warmup=warmup, prune=schedule) for step in range(len(plan))]
    )
    assert shares[6] > shares[5]  # back up, with the mask at step 6


def test_a_full_disk_stops_and_keeps_the_last_good_state(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, out = examples(), tmp_path / "run"
    train(SpanLoss(fresh(checkpoint)), features, plan_of(features), SETTINGS, out, stop_after=5)

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            if self.tell() > 100_000:
                raise OSError(28, "No space left on device")
            return super().write(data)

    real = train_module.replacing

    @contextmanager
    def full(path: Path) -> Iterator[IO[bytes]]:
        with real(path) as file:
            yield Full()
            file.write(b"never")

    monkeypatch.setattr(train_module, "replacing", full)
    with pytest.raises(TrainError, match=r"state\.pt: cannot be written: No space left on device; the state before it"):
        train(SpanLoss(fresh(checkpoint)), features, plan_of(features), SETTINGS, out)
    assert torch.load(out / "state.pt", weights_only=True)["step"] == 5
    assert sorted(f.name for f in out.iterdir()) == ["log.jsonl", "settings.json", "state.pt"]


def test_another_run_in_the_folder_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    features, out = examples(), tmp_path / "run"
    train(SpanLoss(fresh(checkpoint)), features, plan_of(features), SETTINGS, out, stop_after=1)
    with pytest.raises(InputError, match="holds a run with other settings; give another folder, or delete it"):
        train(SpanLoss(fresh(checkpoint)), features, plan_of(features), replace(SETTINGS, warmup=0.5), out)
    with pytest.raises(InputError, match="holds a run with other examples"):
        train(SpanLoss(fresh(checkpoint)), examples(seed=1), plan_of(features), SETTINGS, out)
    known = out / "settings.json"
    alone = json.loads(known.read_text())
    known.write_text(json.dumps(alone | {"processes": 2}))
    with pytest.raises(InputError, match="holds a run with other processes"):
        train(SpanLoss(fresh(checkpoint)), features, plan_of(features), SETTINGS, out)
    known.write_text(json.dumps(alone))
    (out / "state.pt").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not a training state"):
        train(SpanLoss(fresh(checkpoint)), features, plan_of(features), SETTINGS, out)


def test_a_teacher_is_followed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A student that only sees a teacher's logits learns what the teacher knows."""
    features = examples(200)

    def teacher(numbers: np.ndarray) -> list[np.ndarray]:
        known = []
        for number in numbers:
            ids = features.ids[features.example(int(number))]
            known.append(np.repeat((ids == 7)[:, None] * 8.0, 2, axis=1).astype(np.float16))
        return known

    model = fresh(checkpoint)
    objective = SpanLoss(model, Distillation(hard=0, logits=1, temperature=2), teacher)
    settings = Settings(rate=3e-3, warmup=0.1, dropout=0.0, log_every=10)
    train(objective, features, plan_of(features, 12), settings, tmp_path / "run")
    given = batch(features, np.arange(20))
    with torch.no_grad():
        logits = model.span_logits(model(given.ids, given.types, given.lengths)).masked_fill(
            ~given.mask[..., None], -1e4
        )
    assert (logits.argmax(1) == torch.stack([given.labels["start"], given.labels["end"]], 1)).float().mean() > 0.9


def test_states_are_followed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A pruned student drawn to the hidden states and attention of the model it was comes closer to them."""
    features, dense, student = examples(100), fresh(checkpoint), fresh(checkpoint)
    terms = Distillation(hard=0, logits=0, hidden=1, attention=0.1)
    objective = SpanLoss(student, terms, states=TorchTeacher(dense, attention=True))
    assert len(list(objective.parameters())) == len(list(student.parameters()))  # the teacher's are not trained
    given = batch(features, np.arange(20))
    with torch.no_grad():
        assert objective(given).item() == pytest.approx(0, abs=1e-6)
    before = {name: p.clone() for name, p in dense.named_parameters()}
    pruning = Pruning(PruneSchedule(0.5, 0, 0, 0, 1))
    settings = Settings(rate=1e-3, warmup=0.1, dropout=0.0, log_every=5)
    train(objective, features, plan_of(features, 10), settings, tmp_path / "run", pruning=pruning)
    lines = log_of(tmp_path / "run")
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    for name, p in dense.named_parameters():
        assert torch.equal(p, before[name])


def test_every_kth_layer_of_a_teacher_is_followed(tmp_path: Path) -> None:
    """Of a teacher whose layers 2 and 4 are those of the student, nothing is to be learnt."""
    config = tiny.bert_config(num_hidden_layers=4)
    tensors = tiny.bert_tensors(config)
    for name in list(tensors):  # layers 0 and 2 do nothing: what they add is nothing, and norms of norms are the same
        if re.search(r"layer\.[02]\.(attention\.)?output\.dense", name):
            tensors[name][:] = 0
        if "LayerNorm.weight" in name:
            tensors[name][:] = 1
        if "LayerNorm.bias" in name:
            tensors[name][:] = 0
    deep = read_checkpoint(tiny.write_model(tmp_path / "deep", config, tensors))
    fewer = {re.sub(r"layer\.1\.", "layer.0.", n): t for n, t in tensors.items() if not re.search(r"layer\.[023]\.", n)}
    fewer |= {re.sub(r"layer\.3\.", "layer.1.", n): t for n, t in tensors.items() if "layer.3." in n}
    shallow = read_checkpoint(tiny.write_model(tmp_path / "shallow", {**config, "num_hidden_layers": 2}, fewer))
    terms = Distillation(hard=0, logits=0, hidden=1, attention=1)
    objective = SpanLoss(fresh(shallow), terms, states=TorchTeacher(fresh(deep), attention=True)).eval()
    with torch.no_grad():
        assert objective(batch(examples(20), np.arange(20))).item() == pytest.approx(0, abs=1e-3)


def test_a_step_is_adamw_s(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Gradients clipped, matrices decayed, biases and norms not."""
    features, numbers = examples(), np.arange(20)
    settings = Settings(rate=1e-2, warmup=0, weight_decay=0.3, dropout=0.0)
    model, plain = fresh(checkpoint), fresh(checkpoint)
    train(SpanLoss(model), features, [numbers] * 2, settings, tmp_path / "run")
    groups = [[p for p in plain.parameters() if (p.ndim >= 2) == decays] for decays in (True, False)]
    optimizer = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": 0.3}, {"params": groups[1], "weight_decay": 0.0}], fused=True
    )
    for rate in (1e-2, 5e-3):
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            loss = SpanLoss(plain)(batch(features, numbers)) / 20
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        assert norm > 1.5  # so that clipping is seen
        optimizer.step()
        optimizer.zero_grad()
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)


def test_random_numbers_are_of_the_seed_and_the_step(checkpoint: Checkpoint, tmp_path: Path) -> None:
    features = examples()

    def losses(seed: int) -> list[float]:
        settings = Settings(rate=1e-12, warmup=0, dropout=0.5, seed=seed, log_every=1)
        out = tmp_path / str(seed)
        train(SpanLoss(fresh(checkpoint)), features, [np.arange(20)] * 3, settings, out)
        return [line["loss"] for line in log_of(out)]

    assert len({*losses(0), *losses(1)}) == 6


def test_batches_hold_every_example_once_and_few_pad() -> None:
    lengths = np.random.RandomState(0).randint(10, 300, 5000)
    plan = order(lengths, tokens=3000, passes=1.0, seed=3)
    assert sorted(np.concatenate(plan).tolist()) == list(range(5000))
    assert all(lengths[b].max() * len(b) <= 3000 for b in plan)
    padded = sum(int(lengths[b].max()) * len(b) for b in plan)
    assert padded < 1.03 * lengths.sum()
    again = order(lengths, tokens=3000, passes=2.5, seed=3)
    assert [b.tolist() for b in again[: len(plan)]] == [b.tolist() for b in plan]
    assert len(again) == pytest.approx(2.5 * len(plan), rel=0.02)
    assert [b.tolist() for b in again[len(plan) : 2 * len(plan)]] != [b.tolist() for b in plan]  # anew each pass
    assert [b.tolist() for b in order(lengths, tokens=3000, passes=1.0, seed=4)] != [b.tolist() for b in plan]


CONTEXT = "The lighthouse was built in 1871. Its keeper, Ida Marsh, lived there for thirty years."


@pytest.mark.parametrize("size", [7, 12, 256])
def test_batches_of_examples_are_full(size: int) -> None:
    """But the last of each pass: a batch that is not weighs its examples more."""
    lengths = np.random.default_rng(0).integers(5, 300, 9000)
    sizes = [len(batch) for batch in order(lengths, examples=size, passes=1, seed=3)]
    assert sum(n != size for n in sizes) <= 1
    assert sum(sizes) == len(lengths)


def test_labels_stand_where_the_answer_stands(checkpoint: Checkpoint) -> None:
    tokenizer = read_tokenizer(checkpoint.folder, vocabulary=checkpoint.config.vocabulary)
    start = CONTEXT.index("Ida Marsh")
    asked = Question("a", "Who kept it?", CONTEXT, ("Ida Marsh",), (start,))
    none = Question("b", "Who painted it?", CONTEXT, (), ())
    features = squad_features([asked, none], tokenizer, max_length=24, stride=8)
    context = tokenizer(CONTEXT)
    first = int(np.flatnonzero(context.starts <= start)[-1])
    last = int(np.flatnonzero(context.ends >= start + len("Ida Marsh"))[0])
    found = 0
    for n in range(len(features)):
        ids = features.ids[features.example(n)]
        begin, end = features.labels["start"][n], features.labels["end"][n]
        if begin:
            np.testing.assert_array_equal(ids[begin : end + 1], context.ids[first : last + 1])
            found += 1
        else:
            assert end == 0
    assert found >= 1
    assert len(features) > 2  # several windows
    # wherever it is: each window that holds the whole of it says so, also at its edges
    text = " ".join("abcdefghijklmnopqrstuvwxyz")
    letters = tokenizer(text).ids
    for at in range(25):
        q = Question("q", "0", text, (text[2 * at : 2 * at + 3],), (2 * at,))
        features = squad_features([q], tokenizer, max_length=14, stride=5)
        assert len(features) > 3
        for n in range(len(features)):
            ids = features.ids[features.example(n)].tolist()
            begin = next((i for i in range(len(ids) - 1) if ids[i : i + 2] == letters[at : at + 2].tolist()), None)
            expected = (0, 0) if begin is None else (begin, begin + 1)
            assert (features.labels["start"][n], features.labels["end"][n]) == expected
    with pytest.raises(ValueError, match="has no answer_start"):
        squad_features([Question("c", "Who?", CONTEXT, ("Ida",))], tokenizer)
    with pytest.raises(ValueError, match=r"has 'he lig' at its answer_start, not 'Ida Ma'"):
        squad_features([Question("d", "Who?", CONTEXT, ("Ida Ma",), (1,))], tokenizer)


def test_unanswerable_pairs_hold_no_answer() -> None:
    # the town of every second paragraph is named in the next one too
    contexts = [f"Paragraph {i} speaks of town{i} and river{i} at length, not of Town{i - i % 2}." for i in range(12)]
    questions = [
        Question(str(i), f"Which town does paragraph {i} name?", c, (f"town{i}",), (c.index("town"),), article=i // 6)
        for i, c in enumerate(contexts)
    ]
    made = unanswerable(questions, share=1.0, seed=0)
    assert len(made) == len(questions)
    assert made == unanswerable(questions, share=1.0, seed=0)
    by_id = {q.id: q for q in questions}
    for q in made:
        asked = by_id[q.id.removesuffix("-unanswerable")]
        assert q.answers == ()
        assert q.context != asked.context
        assert q.article == asked.article
        assert q.context in contexts[q.article * 6 : q.article * 6 + 6]
        assert not re.search(rf"\b{asked.answers[0]}\b", q.context, re.IGNORECASE)
    assert 0 < len(unanswerable(questions, share=0.3, seed=0)) < len(questions)


def test_an_objective_must_say_what_a_batch_costs(checkpoint: Checkpoint) -> None:
    with pytest.raises(NotImplementedError):
        Objective(fresh(checkpoint))(batch(examples(2), np.arange(2)))
