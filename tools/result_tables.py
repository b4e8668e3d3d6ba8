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


def patterns() -> str:
    lines = ["| model | tokens | thinbert int8 | OpenVINO int8 | ratio |", "|---|---|---|---|---|"]
    for case in read("patterns.json")["cases"] + read("large-hybrid.json")["cases"]:
        ours, peer = case["engines"][OURS], case["engines"][PEER]
        times = f"{ours['median_ms']:.1f} ± {ours['spread_ms']:.1f} | {peer['median_ms']:.1f} ± {peer['spread_ms']:.1f}"
        lines.append(f"| {case['model']} | {case['tokens']} | {times} | {peer['ratio_to_ours']:.2f}x |")
    return "\n".join(lines)


def squad() -> str:
    lines = ["| engine | questions a second | F1 | ours |", "|---|---|---|---|"]
    for row in read("squad.json")["rows"]:
        rate = f"{row['questions_per_second']:.0f} | {row['f1']:.2f} | {row['ours_over_it']:.2f}x"
        lines.append(f"| {row['engine']} | {rate} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print("\n\n".join([all_engines(), patterns(), squad()]))
