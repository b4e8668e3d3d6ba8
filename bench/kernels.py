"""Each kernel on each instruction set: equal to the plain one to the last bit, then timed in a layer of a BERT-base.

    python bench/kernels.py [--tokens 16 32 48 64] [--out FILE.json]

One thread, one tile (V vectors of 16 tokens), all kernels in turns. Products: 10^9 multiplications a second on the
weights that are kept, and as a share of what the instructions do on registers alone, where that is known. All else:
nanoseconds a token. Medians.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
from compare import RUNS, report

from thinbert._core import Encoder, Matrix, instruction_sets, measure_ceiling
from thinbert.model.blocks import to_blocks
from thinbert.runtime.engine import FORMS

D, F, HEADS, VOCABULARY = 768, 3072, 12, 256
KEPT = {"dense": 1.0, "4x4": 0.2, "1x4": 0.2}  # share of blocks
BLOCKS = {"dense": (1, 1), "4x4": (4, 4), "1x4": (1, 4)}


def layer(isa: str, form: str) -> tuple[Encoder, int]:
    """A layer with every matrix in one form, and how many weights it keeps."""
    random = np.random.RandomState(0)
    encoder = Encoder(isa, 1, D, D // HEADS, 0, 1e-12, [1.0, 1.0, 1.0])
    ones, zeros = np.ones(D, np.float32), np.zeros(D, np.float32)

    def values(rows: int, columns: int) -> np.ndarray:
        w = random.randint(1, 128, (rows, columns)) * random.choice([-1, 1], (rows, columns))
        r, c = BLOCKS[form]
        kept = random.uniform(size=(rows // r, columns // c)) < KEPT[form]
        return (w * kept.repeat(r, axis=0).repeat(c, axis=1)).astype(np.int8)

    tables = [
        (random.randint(-127, 128, (rows, D)).astype(np.int8), np.full(rows, 1 / 64, np.float32))
        for rows in (VOCABULARY, 512, 2)
    ]
    encoder.set_embeddings(tables, ones, zeros)
    matrices, weights = [], 0
    for rows, columns in ((D, D), (D, D), (D, D), (D, D), (F, D), (D, F)):
        blocks = to_blocks(values(rows, columns), np.full(rows, 1 / 2000, np.float32))
        weights += 4 * len(blocks.index)
        bias = np.zeros(rows, np.float32)
        matrices.append(Matrix(rows, columns, blocks.start, blocks.index, blocks.values, blocks.scale, bias))
    encoder.add_layer(HEADS, F, matrices, ones, zeros, ones, zeros, FORMS.index(form))
    return encoder, weights


def inputs(tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, types and lengths of one sequence."""
    ids = np.random.RandomState(tokens).randint(0, VOCABULARY, tokens).astype(np.int32)
    return ids, np.zeros(tokens, np.int32), np.array([tokens], np.int32)


def speeds(profiles: list[dict[str, float]], weights: int, tokens: int) -> dict[str, float]:
    seconds = {part: statistics.median(p[part] for p in profiles) for part in profiles[0]}
    row = {"gmacs": weights * tokens / seconds["products"] / 1e9}
    for part in ("attention", "activation", "quantising", "norms"):
        row[f"{part}_ns"] = seconds[part] / tokens * 1e9
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 32, 48, 64])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    isas = [name for name, _, built, supported in instruction_sets() if built and supported]
    kernels: dict[tuple[str, str], tuple[Encoder, int]] = {}
    for form in FORMS:
        plain, _ = layer("generic", form)
        expected = {tokens: plain.forward(*inputs(tokens), 2) for tokens in args.tokens}
        for isa in isas:
            if isa == "amx" and form != "dense":
                continue  # avx512vnni's own kernel
            kernels[isa, form] = encoder, _ = layer(isa, form)
            for tokens in args.tokens:
                if not np.array_equal(encoder.forward(*inputs(tokens), 2), expected[tokens]):
                    raise SystemExit(f"{isa}, {form}, {tokens} tokens: not what plain loops compute; nothing was timed")
    found: dict[str, list[float]] = {isa: [] for isa in isas}
    profiles: dict[tuple[str, str, int], list[dict[str, float]]] = {
        (*kernel, tokens): [] for kernel in kernels for tokens in args.tokens
    }
    for number in range(args.rounds):
        for isa in isas:
            found[isa].append(measure_ceiling(isa))
        for (isa, form), (encoder, _) in kernels.items():
            if isa == "generic" and number:
                continue  # one round of plain loops is enough
            for tokens in args.tokens:  # the first pass is not timed: the caches still hold another layer
                each = [encoder.profile(*inputs(tokens)) for _ in range(1 + RUNS)]
                profiles[isa, form, tokens] += each[1:]
    ceilings = {isa: statistics.median(each) for isa, each in found.items()}  # 0 where it is not known
    rows = []
    for (isa, form, tokens), each in profiles.items():
        row = speeds(each, kernels[isa, form][1], tokens)
        share = f" ({row['gmacs'] / ceilings[isa]:4.0%})" if ceilings[isa] else ""
        print(
            f"{isa:10s} {form:5s} {tokens:3d} tokens: products {row['gmacs']:6.1f} GMAC/s{share}; ns a token: "
            + ", ".join(f"{k.removesuffix('_ns')} {v:.0f}" for k, v in row.items() if k.endswith("_ns")),
            flush=True,
        )
        rows.append({"isa": isa, "form": form, "tokens": tokens, **row})
    report(args.out, 1, ceiling_gmacs=ceilings, rows=rows)


if __name__ == "__main__":
    main()
