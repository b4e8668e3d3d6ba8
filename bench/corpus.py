"""All paragraphs of SQuAD 1.1 dev as one corpus, the question alone given: retrieval, reading, time. See README.md.

    python bench/corpus.py DATA/squad-dev-v1.1.json.xz [--questions 1000] [--passages 5 20] [--out FILE]

Ours is `thinbert ask` over an index in memory. The peer is what people put together: bm25s for the passages (its
English stop words, PyStemmer), and transformers' reader of the same model in float32 for the answer. Both read the
same number of passages. Its spans are ranked by their logits, which passages share; probabilities within each
passage, as question-answering pipelines give them, do worse. Questions of both are answered in turns, one by one, as
a person asks them, each side in a process of its own. F1 of reading the gold paragraph is the ceiling. The peer needs
bm25s, PyStemmer, torch and transformers.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from compare import Worker, add_threads, report
from models import as_float

RANKS = (1, 5, 10, 20)
WARM = 20  # questions before the clock


class Peer:
    """bm25s and a transformers reader."""

    def __init__(self, texts: list[str], folder: str, threads: int) -> None:
        import bm25s
        import Stemmer
        import torch
        from transformers import AutoModelForQuestionAnswering, AutoTokenizer

        torch.set_num_threads(threads)
        self._torch, self._texts, self._stem = torch, texts, Stemmer.Stemmer("english")
        self._index = bm25s.BM25()
        self._bm25s = bm25s
        self._index.index(self._tokens(texts), show_progress=False)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()

    def _tokens(self, texts: list[str]) -> Any:
        return self._bm25s.tokenize(texts, stopwords="en", stemmer=self._stem, show_progress=False)

    def find(self, question: str, k: int) -> list[int]:
        found, _ = self._index.retrieve(self._tokens([question]), k=k, show_progress=False)
        return [int(n) for n in found[0]]

    def answer(self, question: str, k: int) -> str:
        """The span with the highest start + end logit of all windows of the passages."""
        texts = [self._texts[n] for n in self.find(question, k)]
        encoded = self._tokenizer(
            [question] * len(texts),
            texts,
            truncation="only_second",
            max_length=384,
            stride=128,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            padding=True,
            return_tensors="pt",
        )
        inputs = {n: encoded[n] for n in ("input_ids", "token_type_ids", "attention_mask")}
        with self._torch.inference_mode():
            out = self._model(**inputs)
        best, text = -np.inf, ""
        for row, whose in enumerate(encoded["overflow_to_sample_mapping"].tolist()):
            inside = np.array([s == 1 for s in encoded.sequence_ids(row)])
            start = np.where(inside, out.start_logits[row].numpy(), -np.inf).astype(np.float64)
            end = np.where(inside, out.end_logits[row].numpy(), -np.inf).astype(np.float64)
            scores = np.triu(start[:, None] + end[None, :]) + np.where(np.tri(len(start), k=-1), -np.inf, 0)
            scores[np.tri(len(start), k=-30).T.astype(bool)] = -np.inf
            a, b = np.unravel_index(scores.argmax(), scores.shape)
            if scores[a, b] > best:
                offsets = encoded["offset_mapping"][row]
                best, text = scores[a, b], texts[whose][int(offsets[a][0]) : int(offsets[b][1])]
        return text


class Ours:
    """`thinbert ask` over an index in memory."""

    def __init__(self, texts: list[str], folder: str, threads: int) -> None:
        import thinbert
        from thinbert.corpus.ask import ask
        from thinbert.corpus.documents import Document
        from thinbert.corpus.index import Corpus
        from thinbert.corpus.pages import Page

        self._ask, self._model = ask, thinbert.load(folder, threads=threads)
        self._corpus = Corpus.in_memory([Document("squad", tuple(Page(t, n + 1) for n, t in enumerate(texts)))])

    def find(self, question: str, k: int) -> list[int]:
        """Paragraphs of the first k passages: of some there are several."""
        return [hit.page - 1 for hit in self._corpus.search(question, k)]

    def answer(self, question: str, k: int) -> str:
        found = self._ask(self._model, question, self._corpus, passages=k, threshold=1.0)
        return found.citations[0].text if found.citations else ""


SIDES = {"thinbert": Ours, "peer": Peer}


def read(data: Path, count: int) -> tuple[list[str], list[Any]]:
    """All paragraphs, and so many questions, evenly spread."""
    from thinbert.tasks.squad import read_squad

    everything = read_squad(data).questions
    texts = list(dict.fromkeys(q.context for q in everything))
    return texts, list(everything[:: max(1, len(everything) // count)][:count])


def worker(args: argparse.Namespace) -> None:
    """Finds or answers what each line on standard input asks, and says how long it took."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    texts, questions = read(args.data, args.questions)
    side = SIDES[args.worker](texts, args.model, args.threads)
    print(json.dumps({}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        work = side.find if request["verb"] == "find" else side.answer
        begun = time.perf_counter()
        found = work(questions[request["question"]].question, request["k"])
        print(json.dumps({"found": found, "ms": 1e3 * (time.perf_counter() - begun)}), file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--passages", type=int, nargs="+", default=[5, 20])
    add_threads(parser)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return

    import thinbert
    from thinbert.tasks.metrics import f1_v1

    texts, questions = read(args.data, args.questions)
    models = {"thinbert": args.model, "peer": str(as_float(args.model))}
    rest = ["--questions", str(args.questions), "--threads", str(args.threads)]
    workers = {
        side: Worker(side, [__file__, str(args.data), "--worker", side, "--model", model, *rest], args.threads)
        for side, model in models.items()
    }
    print(f"{len(texts)} paragraphs, {len(questions)} questions", flush=True)

    def f1(text: str, question: Any) -> float:
        return 100 * max(f1_v1(text, answer) for answer in question.answers)

    recall = {side: dict.fromkeys(RANKS, 0) for side in SIDES}
    searching = []
    for number, q in enumerate(questions):
        for side, w in workers.items():
            found = w.ask(verb="find", question=number, k=max(RANKS))
            paragraphs = list(dict.fromkeys(found["found"]))
            for k in RANKS:
                recall[side][k] += q.context in (texts[n] for n in paragraphs[:k])
            if side == "thinbert":
                searching.append(found["ms"])
    shares = {side: {k: v / len(questions) for k, v in found.items()} for side, found in recall.items()}
    for side, found in shares.items():
        print(f"{side:9s} recall " + ", ".join(f"@{k} {v:.3f}" for k, v in found.items()), flush=True)

    model = thinbert.load(args.model, threads=args.threads)
    gold = [model.read(q.question, [q.context], threshold=1.0).best for q in questions]
    ceiling = statistics.mean(f1(a.text if a else "", q) for a, q in zip(gold, questions, strict=True))
    print(f"F1 of reading the gold paragraph: {ceiling:.2f}", flush=True)
    rows = []
    for k in args.passages:
        answers: dict[str, list[Any]] = {side: [] for side in SIDES}
        for number in [*range(min(WARM, len(questions))), *range(len(questions))]:
            for side, w in workers.items():
                answers[side].append(w.ask(verb="answer", question=number, k=k))
        row: dict[str, Any] = {"passages": k}
        for side, each in answers.items():
            counted = each[-len(questions) :]
            scores = [f1(a["found"], q) for a, q in zip(counted, questions, strict=True)]
            row[side] = {"f1": statistics.mean(scores), "ms": statistics.median(a["ms"] for a in counted)}
        row["ratio"] = row["peer"]["ms"] / row["thinbert"]["ms"]
        rows.append(row)
        print(
            f"{k} passages: thinbert F1 {row['thinbert']['f1']:.2f}, {row['thinbert']['ms']:.1f} ms; "
            f"bm25s and transformers F1 {row['peer']['f1']:.2f}, {row['peer']['ms']:.1f} ms ({row['ratio']:.2f}x)",
            flush=True,
        )
    for w in workers.values():
        w.close()
    quantiles = {"median": statistics.median(searching), "p95": float(np.quantile(searching, 0.95))}
    report(
        args.out, args.threads, questions=len(questions), recall=shares, search_ms=quantiles, gold_f1=ceiling, rows=rows
    )


if __name__ == "__main__":
    main()
