"""Engines side by side on the same weights and tokens: verified, then timed, taking turns. See README.md.

    python bench/compare.py [--models base-1x4-80 …] [--tokens 32 128 384] [--batch 1] [--rounds 8] [--threads 2]
                             [--engines "OpenVINO int8" …] [--out FILE.json]

The last line of the output is one JSON object.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from models import PATTERNS, as_float, make

HERE = Path(__file__).parent

# name -> file in engines/, precision, and the root-mean-square error of logits allowed, relative to their size. It is
# there to catch a wrong weight or input; what a precision costs is measured with trained weights (docs/results.md).
# OpenVINO's int8 is not judged: calibrated on random weights its error is large and means nothing; its float32, from
# the same conversion, is.
ENGINES = {
    "thinbert int8": ("ours", "int8", 0.5),
    "OpenVINO int8": ("ov", "int8", float("inf")),
    "OpenVINO bf16": ("ov", "bf16", 0.1),
    "OpenVINO f32": ("ov", "f32", 1e-3),
    "ONNX Runtime int8": ("ort", "int8", 0.3),
    "ONNX Runtime f32": ("ort", "f32", 1e-3),
    "torch bf16": ("pytorch", "bf16", 0.1),
    "torch f32": ("pytorch", "f32", 1e-3),
}
OURS = "thinbert int8"

# Seconds before each turn: the thread pools of BLAS and OpenMP spin for some 20 ms after their last work, on the cores
# that the next engine needs.
PAUSE = 0.1
RUNS = 5  # timed runs a turn, after an untimed one


def inputs(batch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens [B, L], the first twelve as the question."""
    ids = np.random.RandomState(length).randint(5, 1000, (batch, length)).astype(np.int32)
    return ids, np.tile((np.arange(length) >= 12).astype(np.int32), (batch, 1))


def worker(name: str, model: str, threads: int) -> None:
    """Serves one engine on standard input and output: a request a line, answered by times and, when asked, logits."""
    sys.path.insert(0, str(HERE / "engines"))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    file, precision, _ = ENGINES[name]
    engine = importlib.import_module(file).Engine(model, threads, precision)
    print(json.dumps(engine.describe()), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        ids, types = inputs(request["batch"], request["tokens"])
        logits = engine.forward(ids, types)  # warms caches and threads after the pause
        times = []
        for _ in range(request["runs"]):
            started = time.perf_counter()
            engine.forward(ids, types)
            times.append(1e3 * (time.perf_counter() - started))
        print(
            json.dumps({"ms": times, "logits": logits.tolist() if request["logits"] else None}),
            file=answers,
            flush=True,
        )


class Worker:
    """A process that answers each line of JSON with another; its first line describes it. What it says of itself is
    shown where it ends before its time."""

    def __init__(self, name: str, command: Sequence[str], threads: int) -> None:
        self._name, self._said = name, tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)},
        )
        self.description: dict[str, Any] = self._read()

    def ask(self, **request: Any) -> dict[str, Any]:
        time.sleep(PAUSE)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._said.seek(0)
            last = self._said.read()[-2000:].decode(errors="replace")
            raise SystemExit(f"{last}\n{self._name} stopped with exit code {code}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def turns(workers: dict[str, Worker], rounds: int, **request: Any) -> dict[str, list[dict[str, Any]]]:
    """What each worker answers, asked in turns, so that what slows the machine for a while slows all of them."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, w in workers.items():
            answers[name].append(w.ask(**request))
    return answers


def rates(answers: dict[str, list[dict[str, Any]]], count: int, unit: str, **scores: dict[str, float]) -> list[Any]:
    """Rows of a table, printed too: how many of `count` things each engine does a second, its scores, ours over it."""
    seconds = {name: [a["seconds"] for a in each] for name, each in answers.items()}
    rate = {name: count / statistics.median(each) for name, each in seconds.items()}
    rows = []
    for name, each in rate.items():
        ratio = rate[OURS] / each
        own = {score: of[name] for score, of in scores.items()}
        of_rounds = [count / max(seconds[name]), count / min(seconds[name])]
        rows.append({"engine": name, f"{unit}_per_second": each, "of_rounds": of_rounds, **own, "ours_over_it": ratio})
        around = " to ".join(f"{r:.1f}" for r in of_rounds)
        shown = "".join(f"   {score} {value:.2f}" for score, value in own.items())
        print(f"{name:32s} {each:7.1f} {unit}/s ({around}){shown}   ours {ratio:.2f}x", flush=True)
    return rows


def by_length(rows: Sequence[Any], size: int, compute: Callable[[Sequence[Any]], Iterable[Any]]) -> list[Any]:
    """What is computed of tokenised rows, so many of about the same length at a time, in the order of the rows."""
    out: list[Any] = [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    for numbers in (order[i : i + size] for i in range(0, len(order), size)):
        for i, one in zip(numbers, compute([rows[i] for i in numbers]), strict=True):
            out[i] = one
    return out


def add_threads(parser: argparse.ArgumentParser) -> None:
    from thinbert.runtime.engine import choose_threads

    parser.add_argument("--threads", type=int, default=choose_threads(), help="of every engine (%(default)s)")


def report(out: Path | None, threads: int, **results: Any) -> None:
    """Prints results as one line of JSON, with date and machine, and writes them to `out`."""
    from thinbert._core import cpu_features
    from thinbert.runtime.engine import system

    machine = {"platform": system(), "threads": threads, "cpu_features": cpu_features()}
    result = {"date": datetime.now(UTC).date().isoformat(), "machine": machine, **results}
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def compare(workers: dict[str, Worker], exact: Any, batch: int, tokens: int, rounds: int) -> dict[str, Any]:
    ids, types = inputs(batch, tokens)
    expected = exact.forward(ids.ravel(), types.ravel(), [tokens] * batch).reshape(batch, tokens, 2)
    row: dict[str, Any] = {"tokens": tokens, "batch": batch, "engines": {}}
    for name, w in workers.items():
        logits = np.array(w.ask(batch=batch, tokens=tokens, runs=0, logits=True)["logits"])
        error = float(np.sqrt(np.mean((logits - expected) ** 2) / np.mean(expected**2)))
        if not error <= ENGINES[name][2]:
            raise SystemExit(f"{name}, {tokens} tokens: relative error {error:.3f} of the logits; nothing was timed")
        row["engines"][name] = {"relative_error": round(error, 5)}
    for name, answers in turns(workers, rounds, batch=batch, tokens=tokens, runs=RUNS, logits=False).items():
        low, middle, high = statistics.quantiles([ms for answer in answers for ms in answer["ms"]], n=4)
        row["engines"][name] |= {"median_ms": round(middle, 3), "spread_ms": round(high - low, 3)}
    ours = row["engines"][OURS]["median_ms"]
    for engine in row["engines"].values():
        engine["ratio_to_ours"] = round(engine["median_ms"] / ours, 3)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(PATTERNS))
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 128, 384])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    add_threads(parser)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", choices=list(ENGINES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.models[0], args.threads)
        return

    import thinbert

    cases = []
    descriptions: dict[str, Any] = {}
    for model in args.models:
        ours = str(make(model)) if model in PATTERNS else model
        theirs = ours if model in PATTERNS else str(as_float(model))
        exact = thinbert.load(ours, precision="float32")
        rest = ["--threads", str(args.threads), "--models"]
        workers = {
            name: Worker(name, [__file__, "--worker", name, *rest, ours if name == OURS else theirs], args.threads)
            for name in dict.fromkeys([OURS, *args.engines])
        }
        descriptions |= {name: w.description for name, w in workers.items()}
        for tokens in args.tokens:
            row = {"model": model, **compare(workers, exact, args.batch, tokens, args.rounds)}
            cases.append(row)
            print(f"{model}, {args.batch} x {tokens} tokens")
            for name, e in row["engines"].items():
                print(
                    f"  {name:18s} {e['median_ms']:8.2f} ms ± {e['spread_ms']:5.2f}   {e['ratio_to_ours']:5.2f}x ours"
                    f"   error {e['relative_error']:.4f}",
                    flush=True,
                )
        for w in workers.values():
            w.close()
    report(args.out, args.threads, engines=descriptions, cases=cases)


if __name__ == "__main__":
    main()
