"""Time against tokens, and where it goes: the engine alone, batch 1.

python bench/curve.py [--model base-1x4-80] [--threads 2] [--out FILE.json] [--figure FILE.svg]
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from compare import add_threads, report
from models import PATTERNS, make

TOKENS = (16, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 448, 512)
ROUNDS = 30
# the palette of Okabe and Ito, told apart by everyone
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#CC79A7", "#F0E442", "#999999")


def measure(engine: Any, vocabulary: int, tokens: int) -> dict[str, Any]:
    ids = np.random.RandomState(tokens).randint(0, vocabulary, tokens).astype(np.int32)
    types, times = np.zeros(tokens, np.int32), []
    for _ in range(ROUNDS + 3):
        started = time.perf_counter()
        engine.span_logits(ids, types, [tokens])
        times.append(1e3 * (time.perf_counter() - started))
    profiles = [engine.profile(ids, types, [tokens]) for _ in range(ROUNDS)]
    seconds = {part: statistics.median(p[part] for p in profiles) for part in profiles[0]}
    total = sum(seconds.values())
    shares = {part: s / total for part, s in seconds.items()}
    return {"tokens": tokens, "median_ms": statistics.median(times[3:]), "shares": shares}


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "thinbert", "font.size": 11}
    from matplotlib import pyplot

    parts = sorted(rows[0]["shares"], key=lambda part: -rows[-1]["shares"][part])
    tokens = [row["tokens"] for row in rows]
    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
    layers = [[row["median_ms"] * row["shares"][part] for row in rows] for part in parts]
    axes.stackplot(tokens, *layers, labels=parts, colors=COLOURS)
    axes.plot(tokens, [row["median_ms"] for row in rows], "k.-", linewidth=1, markersize=5)
    axes.set(title=title, xlabel="tokens", ylabel="milliseconds", xlim=(tokens[0], tokens[-1]), ylim=0)
    axes.set_xticks([t for t in tokens if t % 64 == 0])
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="upper left", frameon=False)  # in the order they are stacked
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base-1x4-80")
    add_threads(parser)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()

    import thinbert

    model = thinbert.load(str(make(args.model)) if args.model in PATTERNS else args.model, threads=args.threads)
    rows = []
    for tokens in TOKENS:
        rows.append(measure(model.runtime, model.config.vocabulary, tokens))
        shares = ", ".join(f"{part} {share:.0%}" for part, share in rows[-1]["shares"].items())
        print(f"{tokens:4d} tokens {rows[-1]['median_ms']:6.2f} ms: {shares}", flush=True)
    if args.figure:
        draw(rows, f"{args.model}, batch 1, {args.threads} threads", args.figure)
    report(args.out, args.threads, model=args.model, rows=rows)


if __name__ == "__main__":
    main()
