"""The native engine from Python: which instruction set, how many threads, and one call per batch."""

import json
import math
import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

from thinbert import __version__
from thinbert._core import Encoder, Matrix, cpu_features, instruction_sets, measure_costs
from thinbert.errors import InputError, ModelError, quoted
from thinbert.files import write_atomic
from thinbert.model.blocks import to_dense
from thinbert.model.checkpoint import Checkpoint
from thinbert.model.config import ACTIVATIONS
from thinbert.model.families import FAMILIES
from thinbert.model.quantize import SCALE_SUFFIX, quantize_rows
from thinbert.model.weights import Array, Ints
from thinbert.runtime.cache import cache_folder

ISA_VARIABLE, THREADS_VARIABLE = "THINBERT_ISA", "THINBERT_THREADS"
HEAD_SIZES = (32, 64)
COSTS_FILE = "costs.json"  # in the cache folder: processor and instruction set -> nanoseconds by form
FORMS = ("dense", "4x4", "1x4")  # by the numbers of core/weights.h

_CGROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_SPAN, _CLASSES, _HIDDEN = 0, 1, 2  # what core/python.cc is asked for


def choose_isa(name: str | None = None) -> str:
    """The instruction set to use: `name`, THINBERT_ISA, or the best this processor has.

    Raises:
        InputError: it is unknown, was not built in, or is not on this CPU.
    """
    sets = instruction_sets()
    wanted = name or os.environ.get(ISA_VARIABLE)
    if not wanted:
        return str(next(n for n, _, built, supported in sets if built and supported))
    for known, needs, built, supported in sets:
        if known == wanted:
            if not built:
                raise InputError(f"instruction set {wanted} is not built into this thinbert")
            if not supported:
                missing = ", ".join(f for f in needs if f not in cpu_features())
                raise InputError(f"instruction set {wanted} is not on this CPU: it lacks {missing}")
            return wanted
    raise InputError(f"unknown instruction set {wanted!r}; known are {', '.join(n for n, *_ in sets)}")


def choose_threads(threads: int | None = None) -> int:
    """How many threads to use: `threads`, THINBERT_THREADS, or the cores this process may use (affinity and cgroup)."""
    if threads is None and (text := os.environ.get(THREADS_VARIABLE)):
        if not re.fullmatch("[0-9]{1,9}", text):
            raise InputError(f"{THREADS_VARIABLE} is {quoted(text)}; expected a number of threads")
        threads = int(text)
    if threads is None:
        return usable_cores()
    if not 1 <= threads <= 1024:
        raise InputError(f"{threads} threads; expected from 1 to 1024")
    return threads


def usable_cores() -> int:
    """Cores this process may run on: its affinity, less where a cgroup limits its share of time."""
    cores: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no cgroups here
        cores = min((cores, *map(_quota, _cgroups(_OWN_GROUPS.read_text()))))
    return max(1, int(cores))


def _cgroups(own: str) -> Iterator[Path]:
    """Folders of the cgroups that may limit a process, from the lines of its /proc/PID/cgroup: its own, and those
    above. In a container they may be named as the host does, and only the topmost is there."""
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):  # version 2, or 1
            top = _CGROUPS / controllers
            yield from (top / above for above in (path.lstrip("/"), *map(str, Path(path.lstrip("/")).parents)))


def _quota(group: Path) -> float:
    """Cores that a cgroup's share of time is worth; infinite where it has no limit."""
    for quota, period in (("cpu.max", None), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # of version 2, and 1
        with suppress(OSError, ValueError, ZeroDivisionError):
            words = (group / quota).read_text().split() + ((group / period).read_text().split() if period else [])
            return int(words[0]) / int(words[1]) if words[0] not in ("max", "-1") else math.inf
    return math.inf


@cache
def costs(isa: str) -> tuple[float, ...]:
    """Nanoseconds for a block in each of FORMS, measured once on this kind of processor and kept in the cache."""
    key, known = _costs_key(isa), _read_costs()
    if key in known:
        return known[key]
    return measure(isa)


def measure(isa: str) -> tuple[float, ...]:
    """The costs measured now, and kept where the cache can be written."""
    key, found = _costs_key(isa), tuple(measure_costs(isa))
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_atomic(cache_folder() / COSTS_FILE, json.dumps({**_read_costs(), key: found}, indent=1).encode())
    except OSError:
        pass  # a few ms at each start are no reason to stop
    return found


def _costs_key(isa: str) -> str:
    return f"thinbert {__version__}, {isa}, {processor()}, {' '.join(cpu_features())}"


def _read_costs() -> dict[str, tuple[float, ...]]:
    """What the file holds, less what cannot be costs."""
    try:
        stored = json.loads((cache_folder() / COSTS_FILE).read_text())
        return {
            key: tuple(values)
            for key, values in stored.items()
            if len(values) == len(FORMS) and all(isinstance(v, float) and 0 < v < 1e9 for v in values)
        }
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def processor() -> str:
    """What this processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def system() -> str:
    """The operating system and its version, without the name that its maker gave the build."""
    return f"{platform.system()} {platform.release().partition('-')[0]}, {platform.machine()}"


class Engine:
    """An encoder in the native engine. One batch runs at a time; calls from several threads wait for each other."""

    def __init__(self, checkpoint: Checkpoint, *, threads: int | None = None, isa: str | None = None) -> None:
        """
        Raises:
            ModelError: the encoder has a shape the engine does not run.
            InputError: the threads or instruction set asked for cannot be had.
        """
        config = checkpoint.config
        if config.head_size not in HEAD_SIZES:
            raise ModelError(
                f"model {checkpoint.name} has heads of size {config.head_size}; the engine runs {HEAD_SIZES}. "
                'Load it with precision="float32"'
            )
        self._pid = os.getpid()
        self.isa, self.threads = choose_isa(isa), choose_threads(threads)
        eps = config.norm_eps if config.norm == "layer_norm" else -1.0
        activation, known = ACTIVATIONS.index(config.activation), list(costs(self.isa))
        try:
            self._core = Encoder(self.isa, self.threads, config.width, config.head_size, activation, eps, known)
        except RuntimeError as e:
            raise InputError(f"{self.threads} threads cannot be started ({e}); ask for fewer") from None
        family = FAMILIES[config.family]
        stems = {field: family.prefix + stem for field, stem in family.embeddings.items()}
        tables = [_table(checkpoint, stem) for field, stem in stems.items() if field != "norm"]
        self._core.set_embeddings(tables, *_norm(checkpoint, stems["norm"]))
        self.forms: list[dict[str, str]] = []  # of each layer's matrices
        for i in range(config.layers):
            stems = {field: family.prefix + stem.format(i=i) for field, stem in family.layer.items()}
            matrices = {f: _matrix(checkpoint, stem) for f, stem in stems.items() if not f.endswith("_norm")}
            norms = (*_norm(checkpoint, stems["attention_norm"]), *_norm(checkpoint, stems["ffn_norm"]))
            forms = self._core.add_layer(config.heads[i], config.ffn[i], list(matrices.values()), *norms)
            self.forms.append({field: FORMS[form] for field, form in zip(matrices, forms, strict=True)})
        span = checkpoint.span()
        if span is not None:
            self._core.set_span(span.weight, span.bias)
        head = checkpoint.classify()
        if head is not None:
            pooler, out = head.hidden, head.out
            self._core.set_classes(pooler.weight, pooler.bias, head.activation == "tanh", out.weight, out.bias)
        checkpoint.release()  # the engine has its own copy of the layers

    def span_logits(self, token_ids: Ints, token_types: Ints, lengths: Sequence[int]) -> Array:
        """Start and end logits [T, 2] of ragged sequences."""
        return self._run(token_ids, token_types, lengths, _SPAN)

    def class_logits(self, token_ids: Ints, token_types: Ints, lengths: Sequence[int]) -> Array:
        """Class logits [B, classes] of ragged sequences."""
        return self._run(token_ids, token_types, lengths, _CLASSES)

    def hidden(self, token_ids: Ints, token_types: Ints, lengths: Sequence[int]) -> Array:
        """Hidden states [T, D] after the last layer."""
        return self._run(token_ids, token_types, lengths, _HIDDEN)

    def profile(self, token_ids: Ints, token_types: Ints, lengths: Sequence[int]) -> dict[str, float]:
        """Seconds that one pass spends in each of its parts, the mean of all threads."""
        self._same_process()
        return self._core.profile(*_inputs(token_ids, token_types, lengths))

    def _run(self, token_ids: Ints, token_types: Ints, lengths: Sequence[int], what: int) -> Array:
        self._same_process()
        try:
            return np.asarray(self._core.forward(*_inputs(token_ids, token_types, lengths), what))
        except ValueError as e:
            raise InputError(str(e)) from e

    def _same_process(self) -> None:
        if os.getpid() != self._pid:
            raise ModelError("this model was loaded before a fork, and its threads stayed behind; load it in the child")


def _inputs(token_ids: Ints, token_types: Ints, lengths: Sequence[int]) -> tuple[Ints, Ints, Ints]:
    """As the core wants them: contiguous, and of its own type."""
    ids, types = (np.ascontiguousarray(a, np.int32) for a in (token_ids, token_types))
    return ids, types, np.array(lengths, np.int32)


def _norm(checkpoint: Checkpoint, stem: str) -> tuple[Array, Array]:
    return checkpoint.array(f"{stem}.weight"), checkpoint.array(f"{stem}.bias")


def _matrix(checkpoint: Checkpoint, stem: str) -> Matrix:
    b = checkpoint.blocks(f"{stem}.weight")
    scale = np.require(b.scale, requirements=["C", "A"])
    return Matrix(b.rows, b.columns, b.start, b.index, b.values, scale, checkpoint.array(f"{stem}.bias"))


def _table(checkpoint: Checkpoint, name: str) -> tuple[np.ndarray, Array]:
    """An embedding table as int8 rows, read in place where it is stored so."""
    stored = checkpoint.tensors.get(name)
    if stored is None:
        stored = to_dense(checkpoint.blocks(name))
    elif stored.dtype != np.int8:
        return quantize_rows(checkpoint.array(name))
    return stored, np.require(checkpoint.tensors[name + SCALE_SUFFIX], requirements=["C", "A"])
