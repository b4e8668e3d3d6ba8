"""The server under load, beside FastAPI around ONNX Runtime, with the load generator on the same cores. See README.md.

    python bench/serve.py DATA/squad-dev-v1.1.json.xz [--connections 1 8 64] [--seconds 60] [--out FILE.json]

wrk (Debian: wrk) posts SQuAD's questions with their paragraphs to /predict. Before and after each row the engine's own
rate is measured on the same questions, in one process and without HTTP: what a server cannot exceed, and drifts as it.
Before a server is timed, its answers to some questions are compared with the pipeline's.
"""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare import add_threads, report
from models import as_float

HERE = Path(__file__).parent
QUESTIONS, COMPARED = 2000, 100
AGREEMENT = 0.6  # of answers, word for word, below which a server is not timed: int8 of peers gives other spans
PEERS = ("int8", "f32")
# wrk's own scripting language: each thread walks through the bodies from a place of its own
SCRIPT = """
local bodies, n = {}, 0
for line in io.lines("%s") do n = n + 1; bodies[n] = line end
local at, threads = 0, 0
function setup(thread) thread:set("id", threads); threads = threads + 1 end
function init(args) at = (id or 0) * 997 end
function request()
  at = at + 1
  return wrk.format("POST", "/predict", {["Content-Type"] = "application/json"}, bodies[at %% n + 1])
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %%d %%d %%f %%f %%f %%f %%d\\n", summary.requests - e.status, summary.duration,
    latency:percentile(50), latency:percentile(95), latency:percentile(99), latency.max,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def ask(url: str, question: dict[str, str]) -> str:
    request = urllib.request.Request(url, json.dumps(question).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return str(json.load(response)["answer"])


@dataclass(frozen=True)
class Load:
    """What every server is asked, and how."""

    script: Path  # wrk's
    rate: Callable[[], float]  # questions a second of the engine alone
    expected: list[tuple[dict[str, str], str]]  # questions, and what the pipeline answers
    args: argparse.Namespace


def load(name: str, command: list[str], port: int, given: Load) -> list[dict[str, Any]]:
    environment = os.environ | {"OMP_NUM_THREADS": str(given.args.threads)}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    try:
        return measure(name, process, f"http://127.0.0.1:{port}/predict", given)
    finally:
        process.terminate()
        process.wait()


def measure(name: str, process: subprocess.Popen[bytes], url: str, given: Load) -> list[dict[str, Any]]:
    for _ in range(600):
        try:
            ask(url, {"question": "Who?", "context": "Anna built it."})
            break
        except OSError:
            if process.poll() is not None:
                raise SystemExit(f"{name}: the server ended with {process.returncode}") from None
            time.sleep(0.1)
    else:
        raise SystemExit(f"{name}: the server does not answer")
    same = sum(ask(url, question) == answer for question, answer in given.expected) / len(given.expected)
    if same < AGREEMENT:
        raise SystemExit(f"{name}: {same:.0%} of its answers are the pipeline's; it was not timed")
    rows = []
    engine = given.rate()
    for connections in given.args.connections:
        before = resident_mb(process.pid)
        wrk = ["wrk", "-t1", f"-c{connections}", f"-d{given.args.seconds}s", "--timeout", "30s"]
        wrk += ["-s", str(given.script), url]
        out = subprocess.run(wrk, capture_output=True, text=True, check=True).stdout
        found = re.search(r"RESULT (\S+) (\S+) (\S+) (\S+) (\S+) (\S+) (\S+)", out)
        if found is None:
            raise SystemExit(f"wrk said nothing that is understood:\n{out}")
        requests, duration, p50, p95, p99, longest, errors = map(float, found.groups())
        mb, last, engine = resident_mb(process.pid), engine, given.rate()
        row = {"server": name, "connections": connections, "requests_per_second": requests / (duration / 1e6)}
        row |= {"engine_rate": (last + engine) / 2, "same_answers": same}
        row |= {"p50_ms": p50 / 1e3, "p95_ms": p95 / 1e3, "p99_ms": p99 / 1e3, "max_ms": longest / 1e3}
        rows.append(row | {"errors": errors, "mb_before": before, "mb_after": mb})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=int, default=60)
    add_threads(parser)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed; on Debian: apt install wrk")

    import thinbert
    from thinbert.tasks.squad import read_squad

    every = read_squad(args.data).questions
    asked = every[:: max(1, len(every) // QUESTIONS)][:QUESTIONS]
    pipeline = thinbert.pipeline("question-answering", model=thinbert.load(args.model, threads=args.threads))
    batch = [{"question": q.question, "context": q.context} for q in asked]
    pipeline(batch[:200])

    def engine_rate() -> float:
        begun = time.perf_counter()
        pipeline(batch)
        return len(batch) / (time.perf_counter() - begun)

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bodies = Path(folder) / "bodies.jsonl"
        bodies.write_text("".join(json.dumps(one) + "\n" for one in batch))
        script = Path(folder) / "post.lua"
        script.write_text(SCRIPT % bodies)
        expected = [
            (question, found["answer"]) for question, found in zip(batch, pipeline(batch[:COMPARED]), strict=False)
        ]
        given = Load(script, engine_rate, expected, args)
        port = free_port()
        ours = [sys.executable, "-m", "thinbert", "serve", "--model", args.model, "--port", str(port), "--quiet"]
        rows += load("thinbert", [*ours, "--threads", str(args.threads)], port, given)
        for peer in args.peers:
            port = free_port()
            command = [sys.executable, str(HERE / "engines" / "ort_server.py"), str(as_float(args.model)), str(port)]
            name = f"FastAPI + ONNX Runtime {peer}"
            rows += load(name, [*command, peer, str(args.threads)], port, given)
    print("\n| server | connections | requests a second | the engine's rate | of it | p50 | p99 | errors | MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for r in rows:
        rate, engine = r["requests_per_second"], r["engine_rate"]
        print(
            f"| {r['server']} | {r['connections']} | {rate:.0f} | {engine:.0f} | {100 * rate / engine:.0f} % | "
            f"{r['p50_ms']:.0f} ms | {r['p99_ms']:.0f} ms | "
            f"{r['errors']:.0f} | {r['mb_before']:.0f} to {r['mb_after']:.0f} |"
        )
    report(args.out, args.threads, seconds=args.seconds, rows=rows)


if __name__ == "__main__":
    main()
