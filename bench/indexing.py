"""How fast files are indexed and searched. See README.md.

    python bench/indexing.py TEXT.xz [--mb 60] [--out FILE.json]

TEXT (such as enwik8-plain.txt.xz) is cut into files of some 20 kB and indexed, searched with sentences of its own, and
indexed again unchanged; then a PDF of 1,000 pages of it. Each in a process of its own, whose memory is reported.
"""

import argparse
import json
import lzma
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from compare import report

FILE = 20_000  # characters
PDF_PAGES = 1000
SEARCHES = 2000


def texts(folder: Path, text: str) -> dict[str, Any]:
    docs = folder / "docs"
    docs.mkdir()
    for number, start in enumerate(range(0, len(text), FILE)):
        (docs / f"{number:06}.txt").write_text(text[start : start + FILE], encoding="utf-8")
    size = sum(f.stat().st_size for f in docs.iterdir())
    from thinbert.corpus.index import Corpus

    begun = time.perf_counter()
    corpus = Corpus.create(folder / "index")
    changes = corpus.update([str(docs)])
    seconds = time.perf_counter() - begun
    begun = time.perf_counter()
    corpus.update([str(docs)])
    again = time.perf_counter() - begun
    on_disk = sum(f.stat().st_size for f in (folder / "index").iterdir())
    return {
        "files": changes.added,
        "mb": size / 1e6,
        "passages": corpus.passages,
        "mb_per_second": size / 1e6 / seconds,
        "unchanged_seconds": again,
        "index_mb": on_disk / 1e6,
    }


def search(folder: Path, text: str) -> dict[str, Any]:
    from thinbert.corpus.index import Corpus

    corpus = Corpus.open(folder / "index")
    mixed = random.Random(0)
    times = []
    for number in range(SEARCHES + 50):
        start = mixed.randrange(len(text) - 200)
        words = text[start : start + 200].split()[1:11]
        begun = time.perf_counter()
        hits = corpus.search("What is known of " + " ".join(words) + "?", 20)
        if number >= 50:
            times.append(1e3 * (time.perf_counter() - begun))
        assert hits
    return {
        "passages": corpus.passages,
        "ms_median": float(np.median(times)),
        "ms_p95": float(np.quantile(times, 0.95)),
    }


def pdf(folder: Path, text: str) -> dict[str, Any]:
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import files

    plain = "".join(c if c.isascii() and c.isprintable() and c not in "()\\" else " " for c in text)
    pages = [
        [plain[start + line : start + line + 85] for line in range(0, 2800, 85)]
        for start in range(0, PDF_PAGES * 2800, 2800)
    ]
    (folder / "big.pdf").write_bytes(files.pdf(pages))
    from thinbert.corpus.index import Corpus

    begun = time.perf_counter()
    changes = Corpus.create(folder / "pdf-index").update([str(folder / "big.pdf")])
    return {"pages": changes.pages, "pages_per_second": changes.pages / (time.perf_counter() - begun)}


def measured(work: Callable[[Path, str], dict[str, Any]], folder: Path, text: str, pipe: Any) -> None:
    found = work(folder, text)
    base = len(text) * (1 if text.isascii() else 4) / 1e6  # the text itself, which only this benchmark holds
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    pipe.send(found | {"peak_mb": peak, "of_it_the_text_mb": base})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--mb", type=float, default=60)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    text = lzma.decompress(args.text.read_bytes()).decode(errors="replace")[: int(args.mb * 1e6)]
    results = {}
    with tempfile.TemporaryDirectory() as name:
        context = multiprocessing.get_context("spawn")
        for work in (texts, search, pdf):
            ours, theirs = context.Pipe()
            process = context.Process(target=measured, args=(work, Path(name), text, theirs))
            process.start()
            results[work.__name__] = ours.recv()
            process.join()
            print(work.__name__, json.dumps(results[work.__name__]), flush=True)
    report(args.out, len(os.sched_getaffinity(0)), **results)


if __name__ == "__main__":
    main()
