"""Fits how `thinbert ask` weighs a passage's place in the search (RETRIEVAL in corpus/ask.py).

python tools/fit_ranking.py TRAIN.json[.xz] [--model default] [--hold-out 0.05] [--questions 600]

The articles that training held out (recipes' `hold_out`; the same rule picks them) are one corpus, and their questions
are asked of it. Of every passage that is read, the log odds that it holds the answer (the model's) and how far its
search score is behind the best are known, and whether its best span is a gold answer in the gold paragraph: a logistic
regression says what the second is worth in units of the first. Prints the value and how well the top answers are
ranked with it and around it.
"""

import argparse
from pathlib import Path

import numpy as np

import thinbert
from thinbert.corpus import ask as asking
from thinbert.corpus.documents import Document
from thinbert.corpus.index import Corpus
from thinbert.corpus.pages import Page
from thinbert.tasks.calibration import auroc, calibration_error, log_odds, logistic
from thinbert.tasks.metrics import f1_v1
from thinbert.tasks.squad import read_squad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("--hold-out", type=float, default=0.05)
    parser.add_argument("--questions", type=int, default=600)
    args = parser.parse_args()

    from thinbert.compress.sources import held_out_articles

    every = read_squad(args.train).questions
    held = held_out_articles((q.article for q in every), args.hold_out)
    mine = [q for q in every if q.article in held]
    texts = list(dict.fromkeys(q.context for q in mine))
    corpus = Corpus.in_memory([Document("held out", tuple(Page(t, n + 1) for n, t in enumerate(texts)))])
    asked = mine[:: max(1, len(mine) // args.questions)][: args.questions]
    model = thinbert.load(args.model)
    print(f"{len(held)} articles, {corpus.passages} passages, {len(asked)} questions")

    odds, behind, right, groups = [], [], [], []
    for number, q in enumerate(asked):
        hits = corpus.search(q.question, asking.READ)
        readings = model.read_many(((q.question, [h.text]) for h in hits), n_best=1, threshold=1.0)
        for hit, reading in zip(hits, readings, strict=True):
            if not reading.answers:
                continue
            odds.append(-float(log_odds([reading.no_answer])[0]))
            behind.append(1 - hit.score / hits[0].score)
            gold = texts[hit.page - 1] == q.context
            right.append(gold and max(f1_v1(reading.answers[0].text, a) for a in q.answers) > 0.5)
            groups.append(number)
    x, b, y, g = np.array(odds), np.array(behind), np.array(right), np.array(groups)
    slope, weight, offset = logistic(np.stack([x, -b, np.ones_like(x)], axis=1), y.astype(float), np.zeros(3))
    print(f"log odds of being right = {slope:.3f} * (odds) - {weight:.3f} * (behind) + {offset:.3f}")
    print(f"RETRIEVAL = {weight / slope:.2f}")
    for value in (share * weight / slope for share in (0, 0.25, 0.5, 0.7, 1, 2)):
        score = x - value * b
        top = [np.flatnonzero(g == n)[np.argmax(score[g == n])] for n in np.unique(g)]
        p = 1 / (1 + np.exp(-score))
        print(
            f"  {value:5.2f}: top answer right {100 * y[top].mean():.1f} %, "
            f"AUROC {auroc(score, y.tolist()):.4f}, calibration error {calibration_error(p, y.tolist()):.3f}"
        )


if __name__ == "__main__":
    main()
