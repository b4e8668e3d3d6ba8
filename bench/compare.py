"""Engines side by side on the same weights and tokens, batch 1: verified, then timed, taking turns. See README.md.

    python bench/compare.py [--model default] [--tokens 32 128 384] [--rounds 12] [--threads 2] [--out FILE.json]

The last line of the output is one JSON object.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from thinbert import _core

HERE = Path(__file__).parent
ENGINES = ("ours", "torch")

# float32 logits of some ten units through a dozen layers; a wrong weight or mask shows in the first digit
LARGEST_LOGIT_DIFFERENCE = 1e-3

# Seconds before each turn: the thread pools of BLAS and OpenMP spin for some 20 ms after their last work, on the cores
# that the next engine needs
PAUSE = 0.1
RUNS = 5  # timed runs a turn, after an untimed one


def inputs(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens, the first twelve as the question."""
    ids = np.random.RandomState(length).randint(1000, 30522, length).astype(np.int32)
    return ids, (np.arange(length) >= 12).astype(np.int32)


def worker(engine: str, model: str, threads: int) -> None:
    """Serves one engine on standard input and output: a length a line, answered by times and, when asked, logits."""
    # by path: the files are named after the libraries they import
    spec = importlib.util.spec_from_file_location(f"engine_{engine}", HERE / "engines" / f"{engine}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loaded = module.Engine(model, threads)
    print(json.dumps(loaded.describe()), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        ids, types = inputs(request["tokens"])
        logits = loaded.forward(ids, types)  # warms caches and threads after the pause
        times = []
        for _ in range(request["runs"]):
            started = time.perf_counter()
            loaded.forward(ids, types)
            times.append(1e3 * (time.perf_counter() - started))
        print(json.dumps({"ms": times, "logits": logits.tolist() if request["logits"] else None}), flush=True)


class Worker:
    def __init__(self, engine: str, model: str, threads: int) -> None:
        command = [sys.executable, __file__, "--worker", engine, "--model", model, "--threads", str(threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.description = self._read()

    def ask(self, tokens: int, *, runs: int = RUNS, logits: bool = False) -> dict[str, Any]:
        time.sleep(PAUSE)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"tokens": tokens, "runs": runs, "logits": logits}) + "\n")
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
            raise SystemExit(f"an engine stopped with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def compare(workers: dict[str, Worker], tokens: int, rounds: int) -> dict[str, Any]:
    logits = {name: np.array(w.ask(tokens, runs=0, logits=True)["logits"]) for name, w in workers.items()}
    difference = max(float(np.abs(x - logits["ours"]).max()) for x in logits.values())
    if difference > LARGEST_LOGIT_DIFFERENCE:
        raise SystemExit(f"{tokens} tokens: logits differ by {difference}; nothing was timed")
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, w in workers.items():
            times[name] += w.ask(tokens)["ms"]
    row: dict[str, Any] = {"tokens": tokens, "largest_logit_difference": difference}
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        row[name] = {"median_ms": round(middle, 3), "spread_ms": round(high - low, 3)}
    for name in workers:
        row[name]["ratio_to_ours"] = round(row[name]["median_ms"] / row["ours"]["median_ms"], 3)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 128, 384])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.model, args.threads)
        return

    workers = {name: Worker(name, args.model, args.threads) for name in ENGINES}
    rows = []
    for tokens in args.tokens:
        row = compare(workers, tokens, args.rounds)
        rows.append(row)
        cells = [
            f"{name} {r['median_ms']:7.2f} ms ± {r['spread_ms']:5.2f} ({r['ratio_to_ours']:.2f})"
            for name, r in ((name, row[name]) for name in workers)
        ]
        print(f"{tokens:4d} tokens: " + " · ".join(cells), flush=True)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "model": args.model,
        "machine": {"platform": platform.platform(), "threads": args.threads, "cpu_features": _core.cpu_features()},
        "engines": {name: w.description for name, w in workers.items()},
        "rows": rows,
    }
    for w in workers.values():
        w.close()
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
