"""All paragraphs of SQuAD 1.1 dev as one corpus, the question alone given: retrieval, reading, time. See README.md.

    python bench/corpus.py DATA/squad-dev-v1.1.json.xz [--questions 1000] [--passages 5 20] [--out FILE]

Ours is `thinbert ask` over an index in memory. The peer is what people put together: bm25s for the passages (its
English stop words, PyStemmer), and transformers' reader of the same model in float32 for the answer. Both read the
same number of passages. Its spans are ranked by their logits, which passages share; probabilities within each
passage, as question-answering pipelines give them, do worse. Questions of both are answered in turns, one by one, as
a person asks them. F1 of reading the gold paragraph is the ceiling. The peer needs bm25s, PyStemmer, torch and
transformers.
"""

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from compare import PAUSE, report
from models import as_float

RANKS = (1, 5, 10, 20)
WARM = 20  # questions before the clock


class Peer:
    """bm25s and a transformers reader."""

    def __init__(self, texts: list[str], folder: Path, threads: int) -> None:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--passages", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    import thinbert
    from thinbert.corpus.ask import ask
    from thinbert.corpus.documents import Document
    from thinbert.corpus.index import Corpus
    from thinbert.corpus.pages import Page
    from thinbert.tasks.metrics import f1_v1
    from thinbert.tasks.squad import read_squad

    everything = read_squad(args.data).questions
    texts = list(dict.fromkeys(q.context for q in everything))
    page_of = {text: n + 1 for n, text in enumerate(texts)}
    questions = everything[:: max(1, len(everything) // args.questions)][: args.questions]
    corpus = Corpus.in_memory([Document("squad", tuple(Page(t, n + 1) for n, t in enumerate(texts)))])
    model = thinbert.load(args.model, threads=args.threads)
    peer = Peer(texts, as_float(args.model), args.threads)
    print(f"{len(texts)} paragraphs, {corpus.passages} passages, {len(questions)} questions", flush=True)

    def f1(text: str, question: Any) -> float:
        return 100 * max(f1_v1(text, answer) for answer in question.answers)

    recall = {name: dict.fromkeys(RANKS, 0) for name in ("thinbert", "bm25s")}
    searching: list[float] = []
    for q in questions:
        begun = time.perf_counter()
        hits = corpus.search(q.question, max(RANKS))
        searching.append(1e3 * (time.perf_counter() - begun))
        ours = list(dict.fromkeys(h.page for h in hits))
        theirs = [n + 1 for n in peer.find(q.question, max(RANKS))]
        for name, pages in (("thinbert", ours), ("bm25s", theirs)):
            for k in RANKS:
                recall[name][k] += page_of[q.context] in pages[:k]
    shares = {name: {k: v / len(questions) for k, v in found.items()} for name, found in recall.items()}
    for name, found in shares.items():
        print(f"{name:9s} recall " + ", ".join(f"@{k} {v:.3f}" for k, v in found.items()), flush=True)

    gold = [model.read(q.question, [q.context], threshold=1.0).best for q in questions]
    ceiling = statistics.mean(f1(a.text if a else "", q) for a, q in zip(gold, questions, strict=True))
    print(f"F1 of reading the gold paragraph: {ceiling:.2f}", flush=True)
    rows = []
    for k in args.passages:
        times: dict[str, list[float]] = {"thinbert": [], "peer": []}
        scores: dict[str, list[float]] = {"thinbert": [], "peer": []}
        for number, q in enumerate([*questions[:WARM], *questions]):
            for name in times:
                time.sleep(PAUSE)  # until threads of the other spin no longer
                begun = time.perf_counter()
                if name == "thinbert":
                    found = ask(model, q.question, corpus, passages=k, threshold=1.0)
                    text = found.citations[0].text if found.citations else ""
                else:
                    text = peer.answer(q.question, k)
                if number >= WARM:
                    times[name].append(1e3 * (time.perf_counter() - begun))
                    scores[name].append(f1(text, q))
        row = {"passages": k}
        for name in times:
            row[name] = {"f1": statistics.mean(scores[name]), "ms": statistics.median(times[name])}
        row["ratio"] = row["peer"]["ms"] / row["thinbert"]["ms"]
        rows.append(row)
        print(
            f"{k} passages: thinbert F1 {row['thinbert']['f1']:.2f}, {row['thinbert']['ms']:.1f} ms; "
            f"bm25s and transformers F1 {row['peer']['f1']:.2f}, {row['peer']['ms']:.1f} ms ({row['ratio']:.2f}x)",
            flush=True,
        )
    quantiles = {"median": statistics.median(searching), "p95": float(np.quantile(searching, 0.95))}
    report(
        args.out, args.threads, questions=len(questions), recall=shares, search_ms=quantiles, gold_f1=ceiling, rows=rows
    )


if __name__ == "__main__":
    main()
