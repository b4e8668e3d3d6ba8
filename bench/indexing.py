"""How fast files are indexed and searched, and in how much memory. See README.md.

    python bench/indexing.py TEXT.xz [--mb 60] [--copies 2] [--out FILE.json]

TEXT (such as enwik8-plain.txt.xz) is cut into files of some 20 kB, every copy at other places, and indexed, searched
with words of its own, and indexed again unchanged; then a PDF of 1,000 pages of it. Each in a process of its own that
does nothing else, whose largest resident size is reported.
"""

import argparse
import json
import lzma
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from compare import report

from thinbert.runtime.engine import usable_cores

FILE = 20_000  # characters
PDF_PAGES = 1000
SEARCHES = 2000


def write_texts(folder: Path, text: str, copies: int) -> None:
    for copy in range(copies):
        (folder / str(copy)).mkdir(parents=True)
        shift = copy * FILE // copies
        for number, start in enumerate(range(shift, len(text), FILE)):
            (folder / str(copy) / f"{number:06}.txt").write_text(text[start : start + FILE], encoding="utf-8")


def write_pdf(path: Path, text: str) -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import files

    plain = "".join(c if c.isascii() and c.isprintable() and c not in "()\\" else " " for c in text[: 2800 * PDF_PAGES])
    pages = [
        [plain[start + line : start + line + 85] for line in range(0, 2800, 85)]
        for start in range(0, PDF_PAGES * 2800, 2800)
    ]
    path.write_bytes(files.pdf(pages))


def questions(text: str) -> list[str]:
    mixed = random.Random(0)
    starts = (mixed.randrange(len(text) - 200) for _ in range(SEARCHES + 50))
    return ["What is known of " + " ".join(text[s : s + 200].split()[1:11]) + "?" for s in starts]


def texts(folder: Path, _: list[str]) -> dict[str, Any]:
    from thinbert.corpus.index import Corpus

    begun = time.perf_counter()
    corpus = Corpus.create(folder / "index")
    changes = corpus.update([str(folder / "docs")])
    seconds = time.perf_counter() - begun
    begun = time.perf_counter()
    corpus.update([str(folder / "docs")])
    again = time.perf_counter() - begun
    on_disk = sum(f.stat().st_size for f in (folder / "index").iterdir())
    return {
        "files": changes.added,
        "mb": changes.bytes / 1e6,
        "passages": corpus.passages,
        "mb_per_second": changes.bytes / 1e6 / seconds,
        "unchanged_seconds": again,
        "index_mb": on_disk / 1e6,
    }


def search(folder: Path, asked: list[str]) -> dict[str, Any]:
    from thinbert.corpus.index import Corpus

    corpus = Corpus.open(folder / "index")
    times = []
    for number, question in enumerate(asked):
        begun = time.perf_counter()
        corpus.search(question, 20)
        if number >= 50:
            times.append(1e3 * (time.perf_counter() - begun))
    return {
        "passages": corpus.passages,
        "ms_median": float(np.median(times)),
        "ms_p95": float(np.quantile(times, 0.95)),
    }


def pdf(folder: Path, _: list[str]) -> dict[str, Any]:
    from thinbert.corpus.index import Corpus

    begun = time.perf_counter()
    changes = Corpus.create(folder / "pdf-index").update([str(folder / "big.pdf")])
    return {"pages": changes.pages, "pages_per_second": changes.pages / (time.perf_counter() - begun)}


def measured(work: Callable[[Path, list[str]], dict[str, Any]], folder: Path, asked: list[str], pipe: Any) -> None:
    found = work(folder, asked)
    # of this program: getrusage would count what the process was before it became this one
    status = Path("/proc/self/status").read_text()
    pipe.send(found | {"peak_mb": int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--mb", type=float, default=60)
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    text = lzma.decompress(args.text.read_bytes()).decode(errors="replace")[: int(args.mb * 1e6)]
    results = {}
    with tempfile.TemporaryDirectory() as name:
        write_texts(Path(name) / "docs", text, args.copies)
        write_pdf(Path(name) / "big.pdf", text)
        asked = questions(text)
        del text
        context = multiprocessing.get_context("spawn")
        for work in (texts, search, pdf):
            ours, theirs = context.Pipe()
            process = context.Process(target=measured, args=(work, Path(name), asked, theirs))
            process.start()
            theirs.close()  # or its end would not be seen
            results[work.__name__] = ours.recv()
            process.join()
            print(work.__name__, json.dumps(results[work.__name__]), flush=True)
    report(args.out, usable_cores(), **results)


if __name__ == "__main__":
    main()
