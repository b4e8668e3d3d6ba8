"""Records what the official SQuAD scripts say of hand-made cases, for test_metrics.py.

    python tests/record_squad_scores.py EVALUATE-V1.1.py EVALUATE-V2.0.py

The scripts themselves are not part of thinbert. Cases are written and drawn below; the result goes to
golden/squad_scores.json.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "squad_scores.json"

# (gold answers, prediction): every rule of the normalisation, and every way to be empty
PAIRS: list[tuple[list[str], str]] = [
    (["Gustave Eiffel"], "gustave eiffel."),
    (["the Eiffel Tower", "Eiffel"], "Eiffel Tower"),
    (["an apple"], "Apple, a fruit"),
    (["Chopin"], "Frédéric Chopin"),
    (["Frédéric Chopin"], "Frederic Chopin"),
    (["1810 – 1849"], "1810-1849"),
    (["1810–1849"], "1810–1849"),
    (["“quoted”"], "quoted"),
    (["the"], ""),
    (["the"], "a"),
    (["..."], "!"),
    (["..."], "word"),
    (["  two   spaces\tand a tab\n"], "two spaces and tab"),
    (["naïve café 🐨"], "naïve café"),
    (["ＦＵＬＬ width"], "ｆｕｌｌ width"),
    (["İstanbul"], "istanbul"),
    (["a a a b"], "a b b"),
    (["x y z", "x", "y z w"], "y z"),
    (["New York", "New York City", "NYC"], "York"),
    (["U.S."], "US"),
    (["don't"], "dont"),
    (["there"], "the re"),
    (["word"], ""),
    (["word", ""], ""),
]


def data_set(golds: list[list[str]]) -> dict[str, Any]:
    qas = [{"id": f"q{i}", "question": "?", "answers": [{"text": t} for t in g]} for i, g in enumerate(golds)]
    half = len(qas) // 2
    return {"version": "test", "data": [{"paragraphs": [{"context": "", "qas": p}]} for p in (qas[:half], qas[half:])]}


def cases() -> list[dict[str, Any]]:
    golds = [g for g, _ in PAIRS]
    answered = {f"q{i}": p for i, (_, p) in enumerate(PAIRS)}
    made = [
        {"script": "v1", "data": data_set(golds), "predictions": answered},
        {"script": "v1", "data": data_set(golds), "predictions": {k: v for k, v in answered.items() if k[-1] in "135"}},
        {"script": "v1", "data": data_set(golds), "predictions": {**answered, "not-in-the-data": "x"}},
        {"script": "v1", "data": data_set(golds), "predictions": dict.fromkeys(answered, "")},
    ]
    twice = data_set(golds)
    twice["data"].append(twice["data"][0])
    made.append({"script": "v1", "data": twice, "predictions": answered})
    made.append({"script": "v2", "data": twice, "predictions": answered})

    random = np.random.RandomState(0)
    words = ["a", "the", "one", "two", "three", "four", "Five", "six.", ",", "7", "–", "é"]
    for number in range(6):
        size = 40
        phrases = [[" ".join(random.choice(words, random.randint(1, 5))) for _ in range(3)] for _ in range(size)]
        golds = [g[: random.randint(0, 4)] if number != 1 else g for g in phrases]  # none, one or more; case 1: always
        golds = [[] for _ in phrases] if number == 2 else golds
        predicted = {
            f"q{i}": "" if random.uniform() < 0.3 else str(random.choice([*g, " ".join(random.choice(words, 2))]))
            for i, g in enumerate(phrases)
        }
        case: dict[str, Any] = {"script": "v2", "data": data_set(golds), "predictions": predicted}
        if number >= 3:  # rounded: ties between questions are the rule
            case["na_prob"] = {q: round(float(random.uniform()), 1) for q in sorted(predicted)}
            case["threshold"] = [1.0, 0.5, 0.0][number - 3]
        made.append(case)
    return made


def main() -> None:
    v1, v2 = sys.argv[1:]
    recorded = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases():
            paths = {}
            for name in ("data", "predictions", "na_prob"):
                if name in case:
                    paths[name] = str(Path(folder) / f"{name}.json")
                    Path(paths[name]).write_text(json.dumps(case[name]))
            command = [sys.executable, v1 if case["script"] == "v1" else v2, paths["data"], paths["predictions"]]
            if "na_prob" in case:
                command += ["-n", paths["na_prob"], "-t", str(case["threshold"])]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            recorded.append({**case, "expected": json.loads(out)})
    GOLDEN.write_text(json.dumps(recorded, ensure_ascii=False, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
