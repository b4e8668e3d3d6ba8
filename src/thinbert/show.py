"""What the command line prints: answers, scores, reports. People's text is made safe before it reaches a terminal."""

import json
import os
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any
from unicodedata import category

from thinbert.corpus.pages import BLOCKS

if TYPE_CHECKING:
    from thinbert.corpus.ask import Citation, Found, Place
    from thinbert.corpus.documents import Report
    from thinbert.model.sparsity import Sparsity


_ALSO = 3  # other places of an answer that are named
_JOINERS = "\u200c\u200d"
_LEAST = 0.005  # what scores less would be shown as 0.00: more answers are not worth a reader's time then


def print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=not speaks_unicode(sys.stdout), indent=2))


def speaks_unicode(stream: Any) -> bool:
    """Whether a stream has all characters. To others JSON is escaped as JSON is, not as Python would."""
    return str(getattr(stream, "encoding", None)).lower().replace("-", "") in ("utf8", "utf16", "utf32")


def console() -> Any:
    from rich.console import Console

    # what is printed comes from files; programs that read it want a row to be a line
    width = None if sys.stdout.isatty() else 160
    return Console(highlight=False, markup=False, emoji=False, width=width)


def one_line(text: str) -> str:
    """Text from a file, made safe to print: no line breaks, no terminal control codes, nothing that turns a line round.
    What is not seen inside of words, such as soft hyphens, is not there; what joins letters or signs is."""
    if text.isprintable():
        return text
    return "".join(ch if ch.isprintable() or ch in _JOINERS else "" if category(ch) == "Cf" else " " for ch in text)


def shown(path: str) -> str:
    """A path as people here call it: from where they are, if it is below."""
    try:
        here = os.path.join(os.getcwd(), "")  # noqa: PTH109, PTH118
    except OSError:  # which was deleted
        return path
    return path.removeprefix(here)


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{max(1, minutes)} min"


def count(number: int, thing: str) -> str:
    """1 page, 2 pages."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def size(of: int) -> str:
    return f"{of / 1e6:.1f} MB" if of >= 1e5 else f"{of / 1e3:.1f} kB" if of >= 100 else count(of, "byte")


def print_found(found: "Found", passages: int) -> None:
    """Args: passages: how many there are, read or not."""
    from rich.text import Text

    out = console()
    if not found.citations:
        where = (
            f"in the {count(found.read, 'passage')} that fit best" if found.read < passages else "in these documents"
        )
        out.print(Text(f"No answer {where} (probability {found.no_answer:.0%}).", style="bold yellow"))
        if found.rejected is not None:
            out.print(Text("Best rejected candidate:", style="dim"))
            _print_citation(found.rejected)
        return
    _print_citation(found.citations[0])
    for citation in found.citations[1:]:
        if citation.score >= _LEAST:
            out.print()
            _print_citation(citation)


def _print_citation(c: "Citation") -> None:
    from rich.padding import Padding
    from rich.text import Text

    out = console()
    score = f"{c.score:.2f}" if c.score >= _LEAST else "<0.01"
    out.print(Text.assemble((one_line(c.text), "bold green"), (f"  score {score}", "dim")), soft_wrap=True)
    under = f"  under “{one_line(c.heading)}”" if c.heading else ""
    place = _place(c.place) if _suffix(c.place) in _LINELESS else f"{_place(c.place)}:{c.place.column}"
    out.print(Text.assemble((f"  {place}", "cyan"), (under, "dim")), soft_wrap=True)
    first, last = c.place.start - c.sentence_start, c.place.end - c.sentence_start
    before, answer, after = map(one_line, (c.sentence[:first], c.sentence[first:last], c.sentence[last:]))
    if out.color_system is not None and not out.no_color:
        sentence = Text.assemble(before, (answer, "bold green"), after)
        out.print(Padding(sentence, (0, 0, 0, 2), expand=False))
    else:  # no colour to show the answer with: mark it; and one line, for programs that read it
        out.print(Text(f"  {before}[{answer}]{after}"), soft_wrap=True)
    if c.also:
        places = Counter(map(_place, c.also))  # several in one file that has no lines are called the same
        named = [f"{place} ({n} times)" if n > 1 else place for place, n in list(places.items())[:_ALSO]]
        more = f" and {len(places) - _ALSO} more" if len(places) > _ALSO else ""
        out.print(Text(f"  also in {'; '.join(named)}{more}", style="dim"), soft_wrap=True)


# How places are called in files that are no plain text, by suffix: the lines of their text are not lines of the file.
_PAGES = {".pdf": "page", ".json": "paragraph"} | dict.fromkeys((".csv", ".tsv", ".jsonl", ".ndjson"), "line")
_LINELESS = (*_PAGES, *BLOCKS)


def _suffix(place: "Place") -> str:
    return os.path.splitext(place.file)[1].lower()  # noqa: PTH122


def _place(place: "Place") -> str:
    """file:line; file, page n (the label printed on it); or the file alone, where it has neither."""
    file, suffix = one_line(shown(place.file)), _suffix(place)
    if suffix in _PAGES:
        label = f" ({one_line(place.label)})" if place.label and place.label != str(place.page) else ""
        return f"{file}, {_PAGES[suffix]} {place.page}{label}"
    return file if suffix in BLOCKS else f"{file}:{place.line}"


def ask_json(
    question: str, found: "Found", report: "Report", stale: list[str], model: str, seconds: float
) -> dict[str, Any]:
    best = found.citations[0].fields() if found.citations else {"answer": None}
    return {
        "question": question,
        **best,
        "no_answer": found.no_answer,
        "threshold": found.threshold,
        "citations": [c.fields() for c in found.citations],
        "rejected": found.rejected.fields() if found.rejected else None,
        "passages_read": found.read,
        "skipped": [{"file": name, "reason": reason} for name, reason in report.skipped],
        "notes": [{"file": name, "note": note} for name, note in report.notes],
        "stale": stale,
        "model": model,
        "seconds": seconds,
    }


def nothing_read(report: "Report", names: list[str]) -> str:
    """Why there is nothing to ask."""
    if len(report.skipped) == 1:
        return ": ".join(report.skipped[0])
    if report.skipped:
        return f"none of {len(report.skipped)} files can be read; the first: {': '.join(report.skipped[0])}"
    others = ", ".join(f"{suffix} ({n})" for suffix, n in sorted(report.others.items())[:5])
    found = f"found {others}" if others else "found none"
    return (
        f"{', '.join(names[:3])}: no documents; {found}, expected .txt .md .html .pdf .docx .csv .jsonl or SQuAD .json"
    )


def print_skipped(report: "Report") -> None:
    """What was not read, on standard error."""
    for name, reason in report.skipped:
        print(f"skipped: {one_line(shown(name))}: {one_line(reason)}", file=sys.stderr)
    for name, note in report.notes:
        print(f"note: {one_line(shown(name))}: {one_line(note)}", file=sys.stderr)
    if report.others:
        kinds = ", ".join(f"{n} {suffix}" for suffix, n in sorted(report.others.items(), key=lambda item: -item[1])[:6])
        print(f"passed over files of other kinds: {one_line(kinds)}", file=sys.stderr)


def print_scores(scores: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("", "exact", "F1", "questions", box=None, header_style="bold")
    for prefix, title in (("", "all"), ("HasAns_", "answerable"), ("NoAns_", "unanswerable")):
        if f"{prefix}exact" in scores:
            numbers = (f"{scores[f'{prefix}exact']:.2f}", f"{scores[f'{prefix}f1']:.2f}", str(scores[f"{prefix}total"]))
            table.add_row(title, *numbers)
            if not prefix:
                table.add_row(
                    "95 %", *(" to ".join(f"{v:.2f}" for v in scores[f"{n}_interval"]) for n in ("exact", "f1"))
                )
    if "best_exact" in scores:
        table.add_row("best threshold", f"{scores['best_exact']:.2f}", f"{scores['best_f1']:.2f}", "")
    console().print(table)
    if "no_answer_auroc" in scores:
        print(f"no-answer probability: AUROC {scores['no_answer_auroc']:.3f}")
    if scores["questions_per_second"]:
        print(
            f"{count(scores['answered_now'], 'question')} in {scores['seconds']:.0f} s, "
            f"{scores['questions_per_second']:.1f} a second"
        )


def print_sparsity(s: "Sparsity") -> None:
    from rich.table import Column, Table

    out = console()
    summary = Table(box=None, show_header=False)
    summary.add_column(no_wrap=True)
    summary.add_column(overflow="fold")
    for name, value in (
        ("model", one_line(s.model)),
        ("family", f"{s.family}, {s.layers} layers, width {s.width}, {' and '.join(s.heads) or 'no task'} head"),
        ("pattern", s.pattern),
        ("linear weights", f"{s.linear_density:.1%} kept"),
        (
            "all parameters",
            f"{s.overall_density:.1%} kept: {s.parameters / 1e6:.1f} of {s.parameters_original / 1e6:.1f} M",
        ),
        ("heads", f"{s.heads_total - s.heads_removed} of {s.heads_total} alive ({s.heads_removed} removed)"),
        ("FFN neurons", f"{s.neurons_total - s.neurons_removed} of {s.neurons_total} alive"),
        ("file", f"{s.file_bytes / 1e6:.1f} MB"),
        ("ignored tensors", one_line(", ".join(s.ignored)) or "none"),
    ):
        summary.add_row(name, value)
    out.print(summary)
    out.print()
    names = ("layer", "heads", "neurons", "query", "key", "value", "output", "FFN in", "FFN out")
    table = Table(*(Column(name, overflow="fold") for name in names), box=None)
    for layer in range(s.layers):
        # the pattern of all is said above
        cells = [
            _cell(t.density, "dense" if t.pattern == s.pattern else t.pattern) for t in s.tensors if t.layer == layer
        ]
        table.add_row(str(layer), str(s.heads_alive[layer]), str(s.neurons_alive[layer]), *cells)
    out.print(table)


def print_report(report: dict[str, Any]) -> None:
    from rich.table import Table

    print(f"processor     {report['processor']}")
    print(f"features      {', '.join(report['features']) or 'none that matter'}")
    print(f"runs with     {report['isa']}, {count(report['threads'], 'thread')} ({report['why']})")
    for s in report["instruction_sets"]:
        state = "usable" if s["usable"] else f"lacks {', '.join(s['missing'])}" if s["built"] else "not built in"
        print(f"              {s['name']}: {state}")
    print(f"cache         {report['cache']}")
    print("\nWhat sparsity is worth here: the products of one thread against the same matrix dense.")
    table = Table("kept", "1x4 blocks", "4x4 blocks", "unstructured", box=None)
    for row in report["speedups"]:
        table.add_row(f"{row['density']:.0%}", *(f"{row[p]:.1f}x" for p in ("1x4", "4x4", "unstructured")))
    console().print(table)
    if "plan" in report:
        print(f"\nPlan for {one_line(report['model'])}:")
        for i, layer in enumerate(report["plan"]):
            print(f"  layer {i}: " + ", ".join(f"{name} {form}" for name, form in layer.items()))


def _cell(density: float, pattern: str) -> str:
    return f"{density:.1%}" if pattern == "dense" else f"{density:.1%} {pattern}"
