"""What this machine makes of the engine: what it runs with, why, and what each sparsity pattern is worth."""

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thinbert._core import cpu_features, instruction_sets
from thinbert.api import Reference, load
from thinbert.errors import InputError
from thinbert.model.checkpoint import read_checkpoint
from thinbert.runtime.cache import cache_folder, packed
from thinbert.runtime.engine import FORMS, ISA_VARIABLE, Engine, choose_isa, choose_threads, measure, processor

DENSITIES = (0.5, 0.35, 0.2, 0.1)


def examine(model: str | None = None) -> dict[str, Any]:
    """Everything `thinbert doctor` prints; with a model, also the form planned for each of its matrices. What products
    cost is measured anew, and kept for the models that are loaded from then on."""
    isa = choose_isa()
    features = cpu_features()
    sets = [
        {
            "name": name,
            "built": built,
            "usable": built and supported,
            "missing": [f for f in needs if f not in features],
        }
        for name, needs, built, supported in instruction_sets()
    ]
    measured = measure(isa)
    forced = os.environ.get(ISA_VARIABLE)
    report: dict[str, Any] = {
        "processor": processor(),
        "features": features,
        "isa": isa,
        "why": f"{ISA_VARIABLE} says so" if forced else "the best this processor has",
        "threads": choose_threads(),
        "instruction_sets": sets,
        "cache": _cache(),
        "costs_ns": dict(zip(FORMS, measured, strict=True)),
        "speedups": [speedups(measured, density) for density in DENSITIES],
    }
    if model is not None:
        engine = Engine(packed(read_checkpoint(model)))
        report |= {"model": model, "plan": engine.forms}
    return report


def _cache() -> str:
    try:
        return str(cache_folder())
    except OSError as e:
        return f"none: {e.strerror}"


def speedups(costs: Sequence[float], density: float) -> dict[str, float]:
    """How many times faster than dense a matrix of this density is in the form the engine would choose, where a block
    in each of FORMS costs so much. Unstructured weights at density p occupy 1 - (1 - p)^4 of the 1x4 blocks, and
    1 - (1 - p)^16 of the 4x4 blocks."""
    dense, four, one = costs

    def best(blocks4x4: float, blocks1x4: float) -> float:  # shares of blocks that are occupied
        return dense / min(dense, four * blocks4x4, 4 * one * blocks1x4)

    return {
        "density": density,
        "1x4": best(1 - (1 - density) ** 4, density),
        "4x4": best(density, density),
        "unstructured": best(1 - (1 - density) ** 16, 1 - (1 - density) ** 4),
    }


def time_model(
    model: str, *, tokens: int, batch: int = 1, rounds: int = 50, threads: int | None = None
) -> dict[str, Any]:
    """Median milliseconds of one forward pass over `batch` random sequences of `tokens` tokens, in the engine.

    Hidden states are first compared with the float32 reference's: the difference is what int8 costs on random tokens.

    Raises:
        InputError: sequences longer than the model takes.
    """
    loaded = load(model, threads=threads)
    if tokens > loaded.config.positions:
        raise InputError(f"sequences of {tokens} tokens; model {loaded.name} takes from 1 to {loaded.config.positions}")
    engine = loaded.runtime
    assert isinstance(engine, Engine)
    random = np.random.RandomState(0)
    ids = random.randint(0, loaded.config.vocabulary, tokens * batch).astype(np.int32)
    types = np.zeros(tokens * batch, np.int32)
    lengths = [tokens] * batch
    ours = engine.hidden(ids, types, lengths)
    resident = _resident_mb()
    exact = Reference(read_checkpoint(model)).hidden(ids, types, lengths)
    times = []
    for _ in range(rounds + 3):
        started = time.perf_counter()
        engine.hidden(ids, types, lengths)
        times.append(1e3 * (time.perf_counter() - started))
    low, median, high = statistics.quantiles(times[3:], n=4)
    profiles = [engine.profile(ids, types, lengths) for _ in range(9)]
    seconds = {part: statistics.median(p[part] for p in profiles) for part in profiles[0]}
    return {
        "median_ms": median,
        "spread_ms": high - low,
        "tokens_per_second": 1e3 * tokens * batch / median,
        "model": model,
        "tokens": tokens,
        "batch": batch,
        "isa": engine.isa,
        "threads": engine.threads,
        "resident_mb": resident,
        "shares": {part: s / sum(seconds.values()) for part, s in seconds.items()},
        "largest_difference": float(np.abs(ours - exact).max()),
        "size": float(np.abs(exact).max()),
    }


def _resident_mb() -> float:
    """Resident memory of this process in MB (10^6 bytes)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # no /proc
        return float("nan")
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
