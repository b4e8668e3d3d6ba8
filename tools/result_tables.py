"""Prints the tables of docs/results.md from bench/results/*.json, in Markdown.

python tools/result_tables.py
"""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "bench" / "results"
OURS, PEER = "thinbert int8", "OpenVINO int8"


def read(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return data


def all_engines() -> str:
    cases = read("base-1x4-80.json")["cases"]
    lengths = [f"{c['tokens']} tokens" for c in cases]
    lines = [f"| BERT-base, 80 % in 1x4 blocks | {' | '.join(lengths)} |", "|---|" + "---|" * len(cases)]
    for name in cases[0]["engines"]:
        cells = []
        for case in cases:
            e = case["engines"][name]
            ratio = "" if name == OURS else f" ({e['ratio_to_ours']:.2f}x ours)"
            cells.append(f"{e['median_ms']:.1f} ± {e['spread_ms']:.1f}{ratio}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def beside_openvino(*files: str) -> str:
    lines = ["| model | batch x tokens | thinbert int8 | OpenVINO int8 | ratio |", "|---|---|---|---|---|"]
    for case in (case for file in files for case in read(file)["cases"]):
        ours, peer = case["engines"][OURS], case["engines"][PEER]
        times = f"{ours['median_ms']:.1f} ± {ours['spread_ms']:.1f} | {peer['median_ms']:.1f} ± {peer['spread_ms']:.1f}"
        size = f"{case['batch']} x {case['tokens']}"
        lines.append(f"| {case['model']} | {size} | {times} | {peer['ratio_to_ours']:.2f}x |")
    return "\n".join(lines)


def curve() -> str:
    rows = read("curve.json")["rows"]
    parts = sorted(rows[-1]["shares"], key=lambda part: -rows[-1]["shares"][part])
    lines = [f"| tokens | ms | {' | '.join(parts)} |", "|---|---|" + "---|" * len(parts)]
    for row in rows:
        shares = " | ".join(f"{100 * row['shares'][part]:.0f} %" for part in parts)
        lines.append(f"| {row['tokens']} | {row['median_ms']:.2f} | {shares} |")
    return "\n".join(lines)


def kernels(file: str) -> str:
    data = read(file)
    tokens = list(dict.fromkeys(row["tokens"] for row in data["rows"]))
    head = ["instruction set", "form", f"{tokens[0]} tokens", *map(str, tokens[1:]), "of the ceiling"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for isa, ceiling in data["ceiling_gmacs"].items():
        for form in dict.fromkeys(row["form"] for row in data["rows"]):
            speeds = [row["gmacs"] for row in data["rows"] if (row["isa"], row["form"]) == (isa, form)]
            if not speeds:
                continue
            share = f"{100 * max(speeds) / ceiling:.0f} %" if ceiling else "unknown"
            lines.append(f"| {isa} | {form} | {' | '.join(f'{s:.0f}' for s in speeds)} | {share} |")
    return "\n".join(lines)


def end_to_end(file: str, unit: str, score: str, decimals: int) -> str:
    lines = [f"| engine | {unit}s a second | {score} | thinbert is faster by |", "|---|---|---|---|"]
    for row in read(file)["rows"]:
        rate = f"{row[f'{unit}s_per_second']:.0f} | {row[score.lower()]:.{decimals}f} | {row['ours_over_it']:.2f}x"
        lines.append(f"| {row['engine']} | {rate} |")
    return "\n".join(lines)


def pruning(file: str) -> str:
    data = read(file)
    base, rows = data["base"], data["rows"]
    moved = any(row["sst2_accuracy"] is not None for row in rows.values())
    head = ["row", "EM", "F1 (95 %)", f"to {base} (95 %)", "MB", "ms", f"OpenVINO int8 of {base} takes"]
    lines = [f"| {' | '.join(head + ['SST-2'] * moved)} |", "|---" * (len(head) + moved) + "|"]
    for name, row in rows.items():
        score = f"{row['exact']:.2f} | {row['f1']:.2f} ({' to '.join(f'{end:.1f}' for end in row['f1_interval'])})"
        apart = f"{row['f1_difference']:+.2f} ({' to '.join(f'{end:+.1f}' for end in row['f1_difference_interval'])})"
        apart = "" if name == base else apart.replace("-", "−")
        speed = f"{row['mb']:.1f} | {row['ms_per_question']:.2f} | {row['openvino_over_it']:.2f}x |"
        other = "" if row["sst2_accuracy"] is None else f"{row['sst2_accuracy']:.1f}"
        lines.append(f"| {name} | {score} | {apart} | {speed}" + f" {other} |" * moved)
    return "\n".join(lines)


if __name__ == "__main__":
    tables = [
        pruning("pruning.json"),
        pruning("pruning-longer.json"),
        all_engines(),
        beside_openvino("patterns.json", "large-hybrid.json"),
        end_to_end("squad.json", "question", "F1", 2),
        end_to_end("classify.json", "text", "accuracy", 1),
        beside_openvino("zen4-patterns.json"),
        beside_openvino("xeon-patterns.json"),
        end_to_end("xeon-squad.json", "question", "F1", 2),
        kernels("xeon-kernels.json"),
        beside_openvino("batch-32.json", "sizes.json"),
        curve(),
        kernels("kernels.json"),
    ]
    print("\n\n".join(tables))
