"""The one training loop: batches in, a trained model out, resumable at any step. It does not know which paper it runs.

A run's folder:

    state.pt     model, masks, optimiser and step, written atomically: what a killed run goes on from
    log.jsonl    one line of JSON per logged step
    settings.json   what the run was asked for; a resumed run must ask for the same
"""

import ctypes
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, set_seed
from numpy.typing import NDArray
from torch import Tensor, nn

from thinbert.compress.data import Features, batch
from thinbert.compress.encoder import Encoder
from thinbert.compress.masks import density, magnitude_masks, saliency
from thinbert.compress.recipe import Report
from thinbert.compress.schedule import PruneSchedule, linear_rate, rewinding_rate
from thinbert.errors import Error, InputError
from thinbert.files import leftovers, replacing, write_atomic

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # options of mallopt(3)
CLIP = 1.0  # largest norm of all gradients together
# Settings that may change under way. A rate that was too high is lowered, and every line of the log has it; the second
# changes rounding and, where there is dropout or masking, random numbers.
_FREE = ("rate", "micro_tokens", "log_every", "save_every")
_SAVE_SECONDS = 300.0  # the most that is lost, where steps are long


class TrainError(Error):
    """Training cannot go on; what it had reached is kept."""


@dataclass(frozen=True)
class Settings:
    """How to train, whatever the objective."""

    rate: float  # peak learning rate
    warmup: float = 0.01  # share of all steps
    weight_decay: float = 0.01
    dropout: float = 0.1
    seed: int = 0
    micro_tokens: int = 8192  # at a time: a larger batch is worked through in parts
    log_every: int = 50
    save_every: int = 200
    rewind: bool = False  # learning-rate rewinding while pruning


@dataclass(frozen=True)
class Pruning:
    """Gradual magnitude pruning of the layers' matrices."""

    schedule: PruneSchedule
    block: tuple[int, int] = (1, 1)
    scope: str = "uniform"
    criterion: str = "magnitude"


class Objective(nn.Module):
    """What a batch costs: the `forward` of a subclass maps a Batch to the sum of its examples' losses.

    The encoder is `self.model`; a teacher is kept out of its parameters.
    """

    def __init__(self, model: Encoder) -> None:
        super().__init__()
        self.model = model


def one_accelerator(**options: Any) -> Accelerator:
    """What knows devices and other processes. Precision and the parts of a batch are our own: what the user's
    configuration of accelerate says of them is not followed, as it would change what a recipe makes."""
    whole = GradientAccumulationPlugin(num_steps=1)
    return Accelerator(mixed_precision="no", gradient_accumulation_plugin=whole, **options)


def train(
    objective: Objective,
    features: Features,
    plan: Sequence[NDArray[np.int64]],
    settings: Settings,
    out: Path,
    *,
    pruning: Pruning | None = None,
    report: Report = lambda line: None,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    evaluate_every: int = 0,
    stop_after: int | None = None,
) -> bool:
    """Trains through the plan, one optimiser step for each of its batches, going on from `out` where a run was cut off.

    The same plan, settings and number of processes give the same model, whether or not the run was interrupted: all
    randomness of a step is a function of the seed and the step.

    Args:
        plan: example numbers of each step's batch (see data.order).
        report: called with each line of the log, for progress bars.
        evaluate: called every `evaluate_every` steps but the last; what it returns goes into the log. Where it cannot
            write what it needs, the log says so, and training goes on.
        stop_after: stop, saved, after so many steps in this call.
    Returns:
        whether the plan is done.
    Raises:
        TrainError: the loss is not finite, memory is short, or the state cannot be written. The last good state is
            kept.
        InputError: `out` holds another run.
    """
    accelerator = one_accelerator()
    model, steps = objective.model, len(plan)
    model.set_dropout(settings.dropout)
    # without defaults: a later version may know more settings
    told = {f.name: getattr(settings, f.name) for f in fields(settings) if getattr(settings, f.name) != f.default}
    shaping = {name: value for name, value in told.items() if name not in _FREE}
    described: dict[str, Any] = {"settings": shaping, "pruning": asdict(pruning) if pruning else None}
    described |= {"steps": steps, "examples": features.sha256()}
    if accelerator.num_processes > 1:  # each draws its own random numbers
        described["processes"] = accelerator.num_processes
    if accelerator.is_main_process:
        _enter(out, described)
    accelerator.wait_for_everyone()
    # the optimiser looks after masters in float32; biases and norms do not decay
    decayed = [p for p in objective.parameters() if p.requires_grad and p.ndim >= 2]
    others = [p for p in objective.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.rate, fused=True)
    locked = model.masks()  # what is gone before the first step stays gone, also in a run that is taken up again
    step, logged, total, line = _resume(out / "state.pt", objective, optimizer, accelerator.device)
    saved = step
    if accelerator.is_main_process:
        _mend_log(out / "log.jsonl", step, line)
    if step == 0 and pruning is not None and pruning.schedule.due(0) and pruning.schedule.sparsity(0) > 0:
        model.set_masks(_new_masks(model, pruning, 0, locked, optimizer))  # before anything is learnt
    prepared, optimizer = accelerator.prepare(objective, optimizer)
    objective.train()

    begun, first, kept_at, tokens = time.perf_counter(), step, time.monotonic(), 0
    while step < steps:
        rate = settings.rate * _rate(step, steps, settings, pruning)
        for group in optimizer.param_groups:
            group["lr"] = rate
        set_seed((settings.seed * 1_000_003 + step + accelerator.process_index * 7919) % 2**32)
        kept = f"The state of step {saved} is kept in {out}" if saved else "No state was kept yet"
        try:
            loss, count = _backward(accelerator, prepared, features, plan[step], settings)
            norm = accelerator.clip_grad_norm_(prepared.parameters(), CLIP)
            if not torch.isfinite(norm):
                raise TrainError(
                    f"step {step}: the loss or its gradient is not finite; give a learning rate below "
                    f"{settings.rate:g}, and go on. {kept}"
                )
            optimizer.step()
            optimizer.zero_grad()
            if pruning is not None and pruning.schedule.due(step + 1):
                model.set_masks(_new_masks(model, pruning, step + 1, locked, optimizer))
        except RuntimeError as e:
            if not isinstance(e, torch.OutOfMemoryError) and "can't allocate memory" not in str(e):
                raise
            raise TrainError(
                f"step {step}: out of memory; lower micro_tokens ({settings.micro_tokens}), and go on. {kept}"
            ) from e
        step += 1
        total += accelerator.reduce(loss)
        tokens += count
        last = step == steps or (stop_after is not None and step - first >= stop_after)
        due = evaluate is not None and evaluate_every > 0 and step % evaluate_every == 0 and step < steps
        line = {}
        if step % settings.log_every == 0 or last or due:
            seconds = time.perf_counter() - begun
            read = int(accelerator.reduce(torch.tensor(tokens, device=accelerator.device)))
            line = {
                "step": step,
                "of": steps,
                "loss": round(total.item() / (step - logged), 5),
                "rate": rate,
                "norm": round(norm.item(), 4),
            }
            line |= {"tokens_per_second": round(read / seconds), "seconds": round(seconds, 1)}
            if masks := model.masks():
                line["density"] = round(density(masks), 5)
            total, logged = torch.zeros_like(total), step
        is_time = step % settings.save_every == 0 or time.monotonic() - kept_at > _SAVE_SECONDS
        # before evaluating, which takes memory and disk, and may end the process each time it is tried
        if (is_time or last or due) and accelerator.is_main_process:
            where = {"step": step, "logged": logged, "total": total, "line": line}
            _save(out / "state.pt", objective, optimizer, where)
            saved, kept_at = step, time.monotonic()
        if due and evaluate is not None and accelerator.is_main_process:
            paused = time.perf_counter()
            try:
                line |= evaluate()
            except OSError as e:
                line["not_evaluated"] = e.strerror or str(e)
            objective.train()
            begun += time.perf_counter() - paused
        if line and accelerator.is_main_process:
            try:
                with (out / "log.jsonl").open("a") as log:
                    log.write(json.dumps(line) + "\n")
            except OSError as e:
                raise TrainError(f"{out}: cannot be written: {e.strerror}; the state of step {saved} is kept") from e
            report(line)
        if last:
            break
    accelerator.wait_for_everyone()
    return step >= steps


def _backward(
    accelerator: Accelerator,
    prepared: nn.Module,
    features: Features,
    numbers: NDArray[np.int64],
    settings: Settings,
) -> tuple[Tensor, int]:
    """Gradients of the mean loss over the batch; this process's part of that mean, and how many tokens it read.

    The batch is dealt out to processes and worked through in parts of `micro_tokens`: both change nothing but the order
    of additions, because every part is divided by the number of examples in the whole; and the random numbers, of which
    each part draws its own.
    """
    mine = numbers[accelerator.process_index :: accelerator.num_processes]
    lengths = features.lengths
    parts: list[list[int]] = [[]]
    for n in mine.tolist():
        if parts[-1] and max(lengths[n], lengths[parts[-1]].max()) * (len(parts[-1]) + 1) > settings.micro_tokens:
            parts.append([])
        parts[-1].append(n)
    total, tokens = torch.zeros((), device=accelerator.device), 0
    for number, part in enumerate(parts):
        # a process without examples of its own still takes part in the exchange of gradients
        given = batch(features, np.array(part or numbers[:1])).to(accelerator.device)
        own = 1.0 if part else 0.0
        with accelerator.no_sync(prepared) if number + 1 < len(parts) else nullcontext():
            # our own, not accelerate's, whose precision is settled once for a whole process
            with torch.autocast(accelerator.device.type, torch.bfloat16):
                loss = prepared(given) * (own / len(numbers))
            # gradients are averaged over processes, and the loss was divided by the examples of all of them
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
        tokens += int(given.lengths.sum()) if part else 0
    return total, tokens


def time_steps(
    objective: Objective, features: Features, plan: Sequence[NDArray[np.int64]], settings: Settings
) -> float:
    """Mean seconds of an optimiser step over the batches of a plan, after one that is not counted."""
    accelerator = one_accelerator()
    objective.model.set_dropout(settings.dropout)
    objective.train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=0.0, fused=True)
    prepared, optimizer = accelerator.prepare(objective, optimizer)
    begun = 0.0
    for number, batch_numbers in enumerate([plan[0], *plan]):
        if number == 1:
            begun = time.perf_counter()
        _backward(accelerator, prepared, features, batch_numbers, settings)
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - begun) / len(plan)


def _new_masks(
    model: Encoder, pruning: Pruning, step: int, locked: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {name: linear.weight.detach() for name, linear in model.prunable().items()}
    if pruning.criterion == "fisher" and step > 0:
        # Adam's second moment is a running mean of squared gradients: the diagonal of the empirical Fisher information
        state = getattr(optimizer, "optimizer", optimizer).state
        unfelt = [name for name, linear in model.prunable().items() if "exp_avg_sq" not in state[linear.weight]]
        if unfelt:
            raise TrainError(f"criterion fisher: the loss gives {unfelt[0]} no gradient; use magnitude")
        squares = {name: state[linear.weight]["exp_avg_sq"] for name, linear in model.prunable().items()}
        weights = {name: saliency(weight, squares[name]) for name, weight in weights.items()}
    sparsity = pruning.schedule.sparsity(step)
    device = next(iter(weights.values())).device  # which `locked` was taken before the model went to
    locked = {name: mask.to(device) for name, mask in locked.items()}
    return magnitude_masks(weights, sparsity, block=pruning.block, scope=pruning.scope, locked=locked)


def _rate(step: int, steps: int, settings: Settings, pruning: Pruning | None) -> float:
    warmup = math.ceil(settings.warmup * steps)
    if settings.rewind and pruning is not None:
        return rewinding_rate(step, steps=steps, warmup=warmup, prune=pruning.schedule)
    return linear_rate(step, steps=steps, warmup=warmup)


def _save(path: Path, objective: nn.Module, optimizer: torch.optim.Optimizer, where: Mapping[str, Any]) -> None:
    """Raises TrainError where the disk is full or the folder cannot be written; an older state stays."""
    masks = {name: m.mask for name, m in objective.named_modules() if getattr(m, "mask", None) is not None}
    model = {name: p.detach() for name, p in objective.named_parameters()}
    state = {"model": model, "masks": masks, "optimizer": optimizer.state_dict(), **where}
    try:
        with replacing(path) as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as e:
        fault: BaseException | None = e  # torch's writer fails once more, over what made it fail
        while fault is not None and not isinstance(fault, OSError):
            fault = fault.__context__
        reason = e if fault is None else fault.strerror
        raise TrainError(f"{path}: cannot be written: {reason}; the state before it is kept") from e


def _resume(
    path: Path, objective: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> tuple[int, int, Tensor, dict[str, Any]]:
    """Puts back what `_save` kept. Returns the number of steps done, of the last that was logged, the sum of the
    losses since then, and the line of the log that was to follow, or nothing."""
    if not path.exists():
        return 0, 0, torch.zeros((), device=device), {}
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # whatever a damaged file makes torch raise
        raise InputError(f"{path}: not a training state ({e}); delete it to start over") from e
    with torch.no_grad():
        for name, parameter in objective.named_parameters():
            parameter.copy_(state["model"][name])
    modules = dict(objective.named_modules())
    for name, mask in state["masks"].items():
        modules[name].mask = mask.to(device)
    optimizer.load_state_dict(state["optimizer"])
    step = int(state["step"])
    total = state.get("total", torch.zeros(())).to(device)  # 0.1 kept no sum, and no line
    return step, int(state.get("logged", step)), total, state.get("line", {})


def _mend_log(path: Path, step: int, line: Mapping[str, Any]) -> None:
    """Drops what a killed run logged past the state that is gone on from, and a torn last line; adds that state's line
    where the run did not come to it."""
    if not path.exists() and not line:
        return
    kept = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            known = json.loads(text)
        except ValueError:
            continue
        if known["step"] <= step:
            kept.append(known)
    if line and (not kept or kept[-1]["step"] < step):
        kept.append(line)
    write_atomic(path, "".join(json.dumps(each) + "\n" for each in kept).encode())


def _enter(out: Path, described: dict[str, Any]) -> None:
    """Makes the folder, or checks that it holds this very run."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for file in leftovers(out):
            file.unlink()
        known = out / "settings.json"
        text = json.dumps(described, indent=1) + "\n"
        if not known.exists():
            write_atomic(known, text.encode())
        before, now = json.loads(known.read_text()), json.loads(text)
        if changed := [key for key in {**before, **now} if before.get(key) != now.get(key)]:
            raise InputError(
                f"{out}: holds a run with other {' and '.join(changed)}; give another folder, or delete it"
            )
    except OSError as e:
        raise TrainError(f"{out}: cannot be written: {e.strerror}") from e


def prepare_process() -> None:
    """Lets torch use the cores this process may use, as the engine does, and keep the memory it has had.

    A step frees large tensors and asks for the same again. What glibc gives back to the kernel in between comes back
    cleared, page by page, which is a tenth of a step's time (all-MiniLM-L6-v2, two cores).
    """
    from thinbert.runtime.engine import choose_threads

    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes on this machine, where there are several
    torch.set_num_threads(max(1, choose_threads() // beside))
    with suppress(OSError, AttributeError):  # another C library has no such call
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**29), (_MMAP_MAX, 0)):
            mallopt(option, value)
