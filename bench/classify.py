"""Texts classified a second, tokenising counted for all. See README.md.

    python bench/classify.py DATA/sst2-dev.tsv.xz --task sst2 --model FOLDER [--twin DENSE_FOLDER] [--texts 672]
                             [--rounds 5] [--threads 2] [--out FILE.json]

Every engine classifies the same texts, tokenised by thinbert. Peers run the twin, the same task's dense model: sparsity
does nothing there. They take texts one by one with all threads, or as many at a time as there are threads, padded to a
multiple of 16; or in batches of 32 of about the same length, padded to their longest's. Ours is what `thinbert
evaluate` runs, in the order of the file; it tokenises while it computes, and peers before. The last line of the output
is one JSON object.
"""

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from compare import ENGINES, OURS, Worker, add_threads, by_length, rates, report, turns

HERE = Path(__file__).parent
BATCH, BUCKET = 32, 16
CALIBRATION = 200  # texts, of the end of the file
ONE, MANY, BATCHES = "one by one", "streams", "batches of 32"
PEERS = tuple(
    f"{engine}, {how}"
    for engine, ways in (
        ("OpenVINO int8", (ONE, MANY, BATCHES)),
        ("OpenVINO bf16", (MANY, BATCHES)),
        ("ONNX Runtime int8", (ONE, BATCHES)),
        ("torch bf16", (BATCHES,)),
    )
    for how in ways
)

Rows = list[tuple[np.ndarray, np.ndarray]]


def bucket(length: int) -> int:
    return -(-length // BUCKET) * BUCKET


def logits_of(engine: Any, how: str, rows: Rows) -> np.ndarray:
    """[B, classes] of tokenised texts by a peer."""
    if how == ONE:
        return np.concatenate([engine.classify([row], bucket(len(row[0]))) for row in rows])
    if how == MANY:
        done: np.ndarray = engine.classify_many(rows, BUCKET)
        return done
    return np.stack(by_length(rows, BATCH, lambda some: engine.classify(some, bucket(len(some[-1][0])))))


def worker(args: argparse.Namespace) -> None:
    """Classifies all texts for each line on standard input; says how long it took and what the classes are."""
    sys.path.insert(0, str(HERE / "engines"))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import thinbert
    from thinbert.tasks import classify, glue

    name, _, how = args.worker.partition(", ")
    model = thinbert.load(args.model, threads=args.threads)
    examples = glue.read_glue(args.data, glue.TASKS[args.task]).examples[: args.texts]
    texts = [(e.text, e.pair) for e in examples]
    order = classify.class_order(model.config.labels, glue.TASKS[args.task])
    if name != OURS:
        file, precision, _ = ENGINES[name]
        engine = importlib.import_module(file).Engine(args.folder, args.threads, precision)

    def run() -> np.ndarray:
        if name == OURS:
            return np.stack(list(classify.logits(model, texts, max_length=classify.MAX_LENGTH)))
        return logits_of(engine, how, [classify.encode(model.tokenizer, *text) for text in texts])

    run()  # compiles every shape and warms up
    print(json.dumps({}), file=answers, flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        logits = run()
        seconds = time.perf_counter() - started
        classes = [order[int(i)] for i in logits.argmax(axis=1)]
        print(json.dumps({"seconds": seconds, "classes": classes}), file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--twin", help="what the peers run; the model itself unless given")
    parser.add_argument("--texts", type=int, default=672)
    parser.add_argument("--rounds", type=int, default=5)
    add_threads(parser)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return

    from models import as_float, keep_samples

    import thinbert
    from thinbert.tasks import classify, glue

    data = glue.read_glue(args.data, glue.TASKS[args.task])
    if args.texts > len(data.examples) - CALIBRATION:
        parser.error(f"--texts {args.texts}, of {len(data.examples)}: the last {CALIBRATION} are to calibrate with")
    labels = [e.label for e in data.examples[: args.texts]]
    twin = args.twin or args.model
    folder = as_float(twin)
    tokenizer = thinbert.load(twin).tokenizer
    samples = [classify.encode(tokenizer, e.text, e.pair) for e in data.examples[-CALIBRATION:]]
    keep_samples(folder, samples)
    rest = ["--task", args.task, "--folder", str(folder), "--texts", str(args.texts), "--threads", str(args.threads)]
    models = {OURS: args.model, **({f"{OURS}, of the twin": twin} if args.twin else {}), **dict.fromkeys(PEERS, twin)}
    workers = {
        name: Worker(name, [__file__, str(args.data), "--worker", name, "--model", model, *rest], args.threads)
        for name, model in models.items()
    }
    answers = turns(workers, args.rounds)
    for w in workers.values():
        w.close()
    accuracy = {n: glue.score(data.task, labels, each[-1]["classes"])["accuracy"] for n, each in answers.items()}
    rows = rates(answers, len(labels), "texts", accuracy=accuracy)
    report(args.out, args.threads, task=args.task, texts=len(labels), rows=rows)


if __name__ == "__main__":
    main()
