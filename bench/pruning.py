"""The rows of a pruning comparison side by side: scores, intervals, size, and time for a question. See README.md.

    thinbert compress pruning-comparison --data DATA --out RUN
    python bench/pruning.py RUN DATA/squad-dev-v1.1.json.xz [--base dense] [--rows NAME …] [--questions 300] …

Every stage of the recipe that answers questions, or each that is named, is a row: its packed model answers all of
SQuAD 1.1 dev (kept in RUN/evaluated), differences to the base row are paired by question. Of several seeds it is the
first. Then all rows and OpenVINO int8 of the base row answer the same questions in turns, each in a process of its own,
one question after another; OpenVINO is compiled for each length of a window. Beside a row stands the accuracy of
sst2-NAME, where that stage is of the same encoder. The last line of the output is one JSON object.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from compare import OURS, Worker, add_threads, report, turns
from models import as_float
from squad import calibrate

HERE = Path(__file__).parent
PEER = "OpenVINO int8, exact"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--base", default="dense", help="the row that others are compared with, and that OpenVINO runs")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="stages to set beside it (default: all)")
    parser.add_argument("--questions", type=int, default=300, help="to be timed")
    parser.add_argument("--rounds", type=int, default=5)
    add_threads(parser)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    import thinbert
    from thinbert.tasks.bootstrap import compare
    from thinbert.tasks.evaluate import Settings, evaluate
    from thinbert.tasks.qa import MAX_ANSWER_TOKENS, MAX_LENGTH, N_BEST, STRIDE
    from thinbert.tasks.squad import read_squad

    recipe = json.loads((args.run / "recipe.json").read_text())
    seed = args.run / f"seed-{recipe['seeds'][0]}"
    starts, before = {}, "base"
    for s in recipe["stages"]:
        starts[s["name"]], before = s["model"] or s["start"] or before, s["name"]
    names = [s["name"] for s in recipe["stages"] if s["task"].startswith("squad")]
    names = [name for name in names if (seed / name / "scores.json").exists()]
    asked = (args.base, *(names if args.rows is None else args.rows))
    if not_there := sorted({*asked} - {*names}):
        parser.error(f"{args.run} has no finished stage {', '.join(not_there)}; it has {', '.join(names)}")
    names = [name for name in names if name in asked]
    names.sort(key=lambda name: name != args.base)  # it comes first: the others are compared with it
    dataset = read_squad(args.data)
    settings = Settings(MAX_ANSWER_TOKENS, MAX_LENGTH, STRIDE, N_BEST, "int8")
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        packed, evaluated = seed / name / "packed", args.run / "evaluated" / name
        scores = evaluate(thinbert.load(str(packed), threads=args.threads), dataset, evaluated, settings)
        row = {key: scores[key] for key in ("exact", "f1", "exact_interval", "f1_interval")}
        difference = compare(args.run / "evaluated" / args.base, evaluated)[1]
        row |= {"f1_difference": difference.difference, "f1_difference_interval": [difference.low, difference.high]}
        row["mb"] = sum(f.stat().st_size for f in packed.iterdir() if f.suffix == ".safetensors") / 1e6
        moved, scored = starts.get(f"sst2-{name}"), seed / f"sst2-{name}" / "scores.json"
        same = moved in (name, starts[name]) and scored.exists()
        row["sst2_accuracy"] = json.loads(scored.read_text())["accuracy"] if same else None
        row["int8_less_float_f1"] = json.loads((seed / name / "scores.json").read_text())["int8_less_float_f1"]
        rows[name] = row
        print(f"{name}: EM {row['exact']:.2f}, F1 {row['f1']:.2f}", flush=True)

    base = str(seed / args.base / "packed")
    folder = as_float(base)
    calibrate(base, dataset.questions, args.questions, folder)
    rest = ["--folder", str(folder), "--questions", str(args.questions), "--threads", str(args.threads)]
    models = {name: (OURS, str(seed / name / "packed")) for name in names} | {PEER: (PEER, base)}
    workers = {
        name: Worker(
            name, [str(HERE / "squad.py"), str(args.data), "--worker", engine, "--model", model, *rest], args.threads
        )
        for name, (engine, model) in models.items()
    }
    answers = turns(workers, args.rounds, alone=True)
    for w in workers.values():
        w.close()
    median = {n: 1e3 * statistics.median(a["seconds"] for a in each) / args.questions for n, each in answers.items()}
    print(f"\n{PEER}, of {args.base}: {median[PEER]:.2f} ms a question\n")
    head = ("row", "EM", "F1 (95 %)", f"to {args.base} (95 %)", "int8 − float", "MB", "ms a question")
    head = (*head, "OpenVINO int8 / ours", "SST-2")
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for name, row in rows.items():
        row |= {"ms_per_question": median[name], "openvino_over_it": median[PEER] / median[name]}
        around, apart = row["f1_interval"], row["f1_difference_interval"]
        print(
            f"| {name} | {row['exact']:.2f} | {row['f1']:.2f} ({around[0]:.1f} to {around[1]:.1f}) | "
            f"{row['f1_difference']:+.2f} ({apart[0]:+.1f} to {apart[1]:+.1f}) | {row['int8_less_float_f1']:+.2f} | "
            f"{row['mb']:.1f} | {row['ms_per_question']:.2f} | {row['openvino_over_it']:.2f}x | "
            f"{'' if row['sst2_accuracy'] is None else format(row['sst2_accuracy'], '.1f')} |"
        )
    report(args.out, args.threads, questions=args.questions, base=args.base, openvino_ms=median[PEER], rows=rows)


if __name__ == "__main__":
    main()
