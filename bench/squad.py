"""Questions a second on real SQuAD windows, tokenising and decoding counted for all. See README.md.

    python bench/squad.py DATA.json[.xz] [--model default] [--questions 600] [--rounds 3] [--out FILE.json]

Every engine answers the same questions through the same windows and the same span decoder; only the forward pass
differs. Peers take one window at a time, padded to 384 tokens or to the next multiple of 16 (OpenVINO is compiled for
each of them; for every length it takes 13 GB). OpenVINO's int8 also takes as many at a time as there are threads, each
on one of them, and batches of 8 windows of about the same length, padded to their longest's, out of all windows of
hundreds of questions. Ours is what `thinbert evaluate` runs. The last line of the output is one JSON object.
"""

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from compare import ENGINES, OURS, Worker, add_threads, by_length, rates, report, turns

HERE = Path(__file__).parent
MAX_LENGTH, BUCKET, BATCH = 384, 16, 8
CALIBRATION = 200  # questions
PEERS = tuple(
    f"{engine}, {how}"
    for engine in ("OpenVINO int8", "OpenVINO bf16", "ONNX Runtime int8", "ONNX Runtime f32")
    for how in ("padded", "bucketed", *(("streams", "batches") if engine == "OpenVINO int8" else ()))
)


class Peer:
    """A peer as a thinbert runtime: window by window, padded or not, or several windows at a time."""

    def __init__(self, engine: Any, how: str) -> None:
        self._engine, self._how = engine, how
        self._step = {"padded": MAX_LENGTH, "exact": 1}.get(how, BUCKET)

    def span_logits(self, ids: np.ndarray, types: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
        ends = np.cumsum(lengths)[:-1]
        windows = list(zip(np.split(ids, ends), np.split(types, ends), strict=True))
        if self._how == "streams":
            return np.concatenate(self._engine.forward_many(windows, self._step))
        if self._how == "batches":
            return np.concatenate(by_length(windows, BATCH, lambda some: self._engine.forward_batch(some, BUCKET)))
        padded = [-(-n // self._step) * self._step for n in lengths]
        done = [self._engine.forward(i[None], t[None], n)[0] for (i, t), n in zip(windows, padded, strict=True)]
        return np.concatenate(done)

    def class_logits(self, ids: np.ndarray, types: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
        raise AssertionError("see classify.py")


def calibrate(model: str, questions: Sequence[Any], timed: int, folder: Path) -> None:
    """Real windows for a peer that is quantised by example: of the last questions, none of which is timed."""
    from models import keep_samples

    import thinbert

    if timed > len(questions) - CALIBRATION:
        raise SystemExit(
            f"{timed} questions to time, of {len(questions)}: the last {CALIBRATION} are to calibrate with"
        )
    loaded = thinbert.load(model)
    windows = []
    for q in questions[-CALIBRATION:]:
        tokens = loaded.tokenizer(q.question), loaded.tokenizer(q.context)
        windows += loaded.windows(*tokens, max_length=MAX_LENGTH, stride=128)
    keep_samples(folder, [(w.ids, w.types) for w in windows])


def worker(args: argparse.Namespace) -> None:
    """Answers all questions for each line on standard input, each alone if the line says so; says how long it took and
    what it answered."""
    sys.path.insert(0, str(HERE / "engines"))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import thinbert
    from thinbert.tasks.squad import read_squad

    name, _, how = args.worker.partition(", ")
    model = thinbert.load(args.model, threads=args.threads)
    if name != OURS:
        file, precision, _ = ENGINES[name]
        if how in ("streams", "batches"):
            thinbert.api._TOKENS_IN_FLIGHT = 1 << 16  # many to choose from; at the end streams wait for one another
        model.runtime = Peer(importlib.import_module(file).Engine(args.folder, args.threads, precision), how)
    questions = read_squad(args.data).questions[: args.questions]
    pairs = [(q.question, [q.context]) for q in questions]
    list(model.read_many(pairs))  # compiles every length and warms up
    print(json.dumps({}), file=answers, flush=True)
    for line in sys.stdin:
        alone = json.loads(line).get("alone", False)
        started = time.perf_counter()
        readings = [model.read(*pair) for pair in pairs] if alone else list(model.read_many(pairs))
        seconds = time.perf_counter() - started
        texts = {q.id: r.answers[0].text if r.answers else "" for q, r in zip(questions, readings, strict=True)}
        print(json.dumps({"seconds": seconds, "answers": texts}), file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("--questions", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    add_threads(parser)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return

    from models import as_float

    from thinbert.tasks.metrics import score_v1
    from thinbert.tasks.squad import read_squad

    dataset = read_squad(args.data)
    golds = dataset.golds[: args.questions]
    folder = as_float(args.model)
    calibrate(args.model, dataset.questions, args.questions, folder)
    rest = ["--folder", str(folder), "--questions", str(args.questions), "--threads", str(args.threads)]
    workers = {
        name: Worker(name, [__file__, str(args.data), "--worker", name, "--model", args.model, *rest], args.threads)
        for name in (OURS, *PEERS)
    }
    answers = turns(workers, args.rounds)
    for w in workers.values():
        w.close()
    f1 = {name: score_v1(golds, each[-1]["answers"])["f1"] for name, each in answers.items()}
    report(args.out, args.threads, questions=len(golds), rows=rates(answers, len(golds), "questions", f1=f1))


if __name__ == "__main__":
    main()
