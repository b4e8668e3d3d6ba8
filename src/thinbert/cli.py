"""The command line: parse, make one library call, print. Everything else lives in the library.

Exit codes: 0 done, 1 no answer found, 2 wrong usage or unusable input, 70 a fault of ours, 130 interrupted.
"""

import functools
import io
import json
import logging
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from thinbert import __version__, progress, show
from thinbert.errors import Error

if TYPE_CHECKING:
    from thinbert.api import Model

app = typer.Typer(
    name="thinbert",
    help="Thin BERT-family encoders on the CPU you have: ask, evaluate, inspect.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelOption = Annotated[str, typer.Option("--model", "-m", help="Model folder, hub id, or `default`, the bundled one.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", help="Threads. (default: THINBERT_THREADS, or the cores this process may use)"),
]
PrecisionOption = Annotated[
    str, typer.Option("--precision", help="int8, the engine, or float32, the NumPy reference: slow and exact.")
]
MaxMbOption = Annotated[
    float | None, typer.Option("--max-mb", min=0.0, help="Files larger than this are left out. (default: 100)")
]
PassagesOption = Annotated[
    int | None,
    typer.Option(
        min=1, max=10_000, help="How many passages of the documents to read, of those that fit best. (default: 20)"
    ),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="Probability of no answer above which to say so. (default: the model's own)"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]

_INTERRUPTED = 130  # the exit code
_INDEX = Path(".thinbert-index")  # of `thinbert index` and `thinbert ask`, where none is named


def main() -> NoReturn:
    """Entry point of the `thinbert` command."""
    # who closes them wants to hear nothing, and not that there is nowhere to write
    sys.stdout, sys.stderr = (stream or Path(os.devnull).open("w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character still gets the rest
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("thinbert: %(message)s"))
    log = logging.getLogger("thinbert")  # not the root: what libraries have to say is for programmers
    log.addHandler(handler)
    log.setLevel(logging.INFO)  # what takes long is said
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # of failed attempts, the error of the last says it all
    try:
        code = app(standalone_mode=False)  # what typer.Exit carried, if a command raised it
        if code == _INTERRUPTED:
            raise KeyboardInterrupt  # which typer had made an exit of
    except Error as e:
        _fail(str(e))
    except (KeyboardInterrupt, typer.Abort):
        print("thinbert: interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except (OSError, MemoryError) as e:
        _fail(f"{type(e).__name__}: {e}")
    except SystemExit as e:
        # click's 1 for an output that nobody reads any more; here 1 says that there is no answer
        sys.exit(128 + signal.SIGPIPE if e.code == 1 else e.code)
    except Exception as e:
        usage = getattr(e, "show", None)  # click's own usage errors print themselves
        if usage is None:
            traceback.print_exc()
            sys.exit(70)  # and not 1, which says that there is no answer
        usage()
        sys.exit(getattr(e, "exit_code", 2))
    except BaseException:  # a panic of a library in Rust
        traceback.print_exc()
        sys.exit(70)
    sys.exit(code or 0)


class _OneLine(logging.Formatter):
    """What is logged may quote files of others."""

    def format(self, record: logging.LogRecord) -> str:
        return show.one_line(super().format(record))


def _fail(message: str) -> NoReturn:
    print(f"thinbert: {show.one_line(message)}", file=sys.stderr)
    sys.exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"thinbert {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command("ask")
def _ask(
    question: Annotated[str, typer.Argument(help="The question, in quotes.")],
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders or patterns ('*.pdf'); - reads standard input."),
    ] = None,
    context: Annotated[str | None, typer.Option(help="Read this text instead of files.")] = None,
    index: Annotated[
        Path | None,
        typer.Option(help="Search an index of `thinbert index`. (default without files: .thinbert-index)"),
    ] = None,
    model: ModelOption = "default",
    top_k: Annotated[
        int, typer.Option("--top-k", "-k", min=1, help="How many answers to give; scores below 0.005 only with --json.")
    ] = 1,
    passages: PassagesOption = None,
    threshold: ThresholdOption = None,
    max_mb: MaxMbOption = None,
    precision: PrecisionOption = "int8",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question from documents, with the place of the answer.

    Reads text, Markdown, HTML, PDF, Word, CSV, JSON lines and SQuAD JSON. Exits with 1 where they hold no answer.
    """
    from thinbert.api import load
    from thinbert.corpus.ask import READ, ask
    from thinbert.corpus.documents import MAX_MB, Report, read_documents, text_document
    from thinbert.corpus.index import Corpus
    from thinbert.errors import InputError

    if index is None and context is None and not paths and _INDEX.is_dir():
        index = _INDEX
    if (context is not None) + bool(paths) + (index is not None) != 1:
        _fail("give files to read, - for standard input, --context TEXT, or --index FOLDER (one of them)")
    if max_mb is not None and not paths:
        _fail("--max-mb is for files to read, and none are named (an index has its own: thinbert index --max-mb)")
    report = Report()
    if index is not None:
        corpus = Corpus.open(index)
        if not corpus.passages:
            raise InputError(f"{index}: the index is empty; add documents with thinbert index FOLDER --index {index}")
    elif context is not None:
        corpus = Corpus.in_memory([text_document("context", context)])
    else:
        with progress.counting("files", after=2.0) as count:
            documents = read_documents(paths or (), report, max_mb=MAX_MB if max_mb is None else max_mb)
            corpus = Corpus.in_memory(progress.counted(documents, count))
        if not corpus.passages:
            raise InputError(show.nothing_read(report, paths or []))
    loaded = load(model, precision=precision, threads=threads)
    started = time.perf_counter()
    found = ask(loaded, question, corpus, top_k=top_k, passages=passages or READ, threshold=threshold)
    seconds = time.perf_counter() - started
    stale = corpus.stale(found.files) if index is not None else []
    if as_json:
        show.print_json(show.ask_json(question, found, report, stale, model, seconds))
    else:
        show.print_skipped(report)
        show.print_found(found, corpus.passages)
        for file in stale:
            name, run = show.one_line(show.shown(file)), f"thinbert index --index {index}"
            print(
                f"note: {name} has changed or gone since it was indexed; run {run}, or where its folder is gone "
                f"{run} --forget FOLDER",
                file=sys.stderr,
            )
    raise typer.Exit(0 if found.citations else 1)


@app.command("index")
def _index(
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Folders, files or patterns. Without any, the files that are indexed are looked at again."),
    ] = None,
    index: Annotated[Path, typer.Option(help="Folder of the index.")] = _INDEX,
    max_mb: MaxMbOption = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Take the files and folders named out of the index, gone or not.")
    ] = False,
    listing: Annotated[bool, typer.Option("--list", help="List what is indexed, and change nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a searchable index of documents, or bring it up to date: only what changed is read again.

    Files that are gone from the folders named are removed.
    """
    from dataclasses import asdict

    from thinbert.corpus.documents import MAX_MB
    from thinbert.corpus.index import Corpus
    from thinbert.errors import InputError

    if listing and (paths or forget or max_mb is not None):
        _fail("--list shows what is indexed and reads nothing: give it neither files nor --forget nor --max-mb")
    if forget and (not paths or max_mb is not None):
        _fail("--forget takes files or folders, and reads nothing: name some, without --max-mb")
    if listing:
        files = Corpus.open(index).files()
        if as_json:
            show.print_json([asdict(f) for f in files])
            return
        for f in files:
            counted = f"{show.count(f.pages, 'page')}, {show.count(f.passages, 'passage')}"
            print(f"{show.one_line(show.shown(f.path))}  {counted}, {show.size(f.size)}")
        print(f"{show.count(len(files), 'file')} in {index}")
        return
    if forget:
        corpus = Corpus.open(index)
        removed = corpus.forget(paths or ())
        if as_json:
            indexed = {"files": len(corpus.files()), "passages": corpus.passages}
            show.print_json({"index": str(index), "removed": removed, "indexed": indexed})
        else:
            print(f"{removed} removed; {show.count(corpus.passages, 'passage')} in {index}")
        return
    corpus = Corpus.create(index) if paths else Corpus.open(index)
    started = time.perf_counter()
    with progress.counting("MB") as count:
        changes = corpus.update(
            paths or (),
            max_mb=MAX_MB if max_mb is None else max_mb,
            progress=lambda done, of: count(done // 1_000_000, of // 1_000_000),
        )
    seconds = time.perf_counter() - started
    if as_json:
        indexed = {"files": len(corpus.files()), "passages": corpus.passages}
        show.print_json({"index": str(index), **asdict(changes), "indexed": indexed, "seconds": seconds})
        raise typer.Exit(0 if corpus.passages else 2)
    show.print_skipped(changes.report)
    kinds = ((changes.added, "added"), (changes.updated, "updated"), (changes.removed, "removed"))
    done = ", ".join(f"{n} {what}" for n, what in (*kinds, (changes.unchanged, "unchanged")) if n) or "no files"
    read = ""
    if changes.bytes:
        read = f"; {show.size(changes.bytes)}, {show.count(changes.pages, 'page')} in {seconds:.1f} s"
    print(f"{done}{read}; {show.count(corpus.passages, 'passage')} in {index}")
    if not corpus.passages:
        raise InputError(show.nothing_read(changes.report, paths or [str(index)]))


@app.command("batch")
def _batch(
    source: Annotated[str, typer.Argument(help=".jsonl, .csv or SQuAD .json, plain, .gz or .xz; - reads JSON lines.")],
    out: Annotated[str, typer.Option("--out", "-o", help=".jsonl or .csv, plain or .gz; - writes JSON lines.")],
    model: ModelOption = "default",
    index: Annotated[Path | None, typer.Option(help="Answer from an index; records then need no context.")] = None,
    passages: PassagesOption = None,
    threshold: ThresholdOption = None,
    question_field: Annotated[
        str | None, typer.Option(help="Field that holds the question. (default: question)")
    ] = None,
    context_field: Annotated[
        str | None, typer.Option(help="Field that holds the text, or a list of texts. (default: context)")
    ] = None,
    text_field: Annotated[
        str | None, typer.Option(help="Field that holds the text to classify. (default: text)")
    ] = None,
    pair_field: Annotated[
        str | None, typer.Option(help="Field that holds its pair, where there is one. (default: text_pair)")
    ] = None,
    on_error: Annotated[
        str, typer.Option(help="keep: write `error` in the record's place and go on; or stop.")
    ] = "keep",
    shard: Annotated[
        str, typer.Option(help="i/n: only every n-th record, from the i-th; for several machines.")
    ] = "1/1",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many records.")] = None,
    precision: PrecisionOption = "int8",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a file of questions, or classify a file of texts, keeping order and fields. An interrupted run goes on."""
    from thinbert import batch
    from thinbert.api import load
    from thinbert.errors import InputError

    if on_error not in ("keep", "stop"):
        raise InputError(f"--on-error {on_error}; expected keep or stop")
    part = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard)
    if part is None:
        raise InputError(f"--shard {shard}; expected i/n, such as 1/4")
    loaded = load(model, precision=precision, threads=threads)
    if not loaded.answers and index is None:
        loaded.require_class_head()
    named = {"question": question_field, "context": context_field, "text": text_field, "pair": pair_field}
    fields = {name: field for name, field in named.items() if field is not None}
    kind = "an index" if index is not None else "a question-answering model" if loaded.answers else "a classifier"
    read = ("question",) if index is not None else ("question", "context") if loaded.answers else ("text", "pair")
    for name in fields:
        if name not in read:
            raise InputError(f"--{name}-field is not for {kind}, which reads {' and '.join(read)}")
    if passages is not None and index is None:
        raise InputError("--passages is for --index")
    if threshold is not None and not loaded.answers:
        raise InputError("--threshold is for questions")
    ask, state = None, None
    if index is not None:
        from thinbert.corpus.ask import READ
        from thinbert.corpus.ask import ask as over
        from thinbert.corpus.index import Corpus

        loaded.require_span_head()
        corpus = Corpus.open(index)
        ask = functools.partial(over, loaded, corpus=corpus, passages=passages or READ, threshold=threshold)
        state = corpus.state()
    started = time.perf_counter()
    first_error = ""

    def note(error: str) -> None:
        nonlocal first_error
        first_error = first_error or error

    again = out != "-" and source != "-"  # what was read and what was written can be had again
    with progress.counting("records") as count, _kept(f"{out}.partial" if again else None):
        counts = batch.run(
            source,
            out,
            loaded,
            ask=ask,
            threshold=threshold,
            fields=batch.Fields(**fields),
            identity={"precision": precision, "index": state, "passages": passages},
            shard=(int(part[1]), int(part[2])),
            limit=limit,
            stop_on_error=on_error == "stop",
            progress=count,
            note=note,
        )
    seconds = time.perf_counter() - started
    if as_json:
        print(json.dumps({"out": out, **counts, "seconds": seconds}), file=sys.stderr if out == "-" else sys.stdout)
    else:
        errors = f", {counts['errors']} with errors" if counts["errors"] else ""
        rate = f"{counts['now']} in {seconds:.1f} s, {counts['now'] / max(seconds, 1e-9):.1f} a second"
        where = "; nothing is written" if out != "-" and 0 < counts["done"] == counts["errors"] else f"in {out}"
        print(f"{show.count(counts['done'], 'record')}{errors} ({rate}) {where}", file=sys.stderr)
        if first_error:
            print(f"the first: {show.one_line(first_error)}", file=sys.stderr)
    if counts["done"] and counts["errors"] == counts["done"]:
        raise typer.Exit(2)  # nothing could be computed: a field of another name, most likely


@contextmanager
def _kept(where: str | None) -> Iterator[None]:
    """Tells whoever interrupts that what is done is not lost."""
    try:
        yield
    except KeyboardInterrupt:
        if where is not None:
            print(f"thinbert: what is done is kept in {where}; the same command goes on", file=sys.stderr)
        raise


@app.command("serve")
def _serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help="NAME=MODEL or MODEL; may be repeated. (default: the bundled one, as `default`)"
        ),
    ] = None,
    index: Annotated[Path | None, typer.Option(help="Index to answer from; made if it is not there.")] = None,
    uploads: Annotated[
        Path | None, typer.Option(help="Folder that keeps uploaded files. (default: INDEX-uploads)")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines too.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any that is free.")] = 8800,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="Key that requests must carry; may be repeated. (default: THINBERT_API_KEY, one key)"),
    ] = None,
    origin: Annotated[
        list[str] | None, typer.Option(help="Origin of other pages whose scripts may ask (CORS); may be repeated.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that requests may use for this server, such as a proxy's; may be repeated. "
            "(default: localhost's names on 127.0.0.1, any on other addresses)"
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds for a request; four times as many for an upload.")
    ] = 30.0,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests in flight; more are told to try again.")] = 256,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Size of a request.")] = 2.0,
    max_upload_mb: Annotated[float, typer.Option(min=0.001, help="Size of an upload.")] = 100.0,
    log_content: Annotated[bool, typer.Option("--log-content", help="Log questions and answers too.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Log no requests.")] = False,
    precision: PrecisionOption = "int8",
    threads: ThreadsOption = None,
) -> None:
    """Serve answers over HTTP, with a page to ask and add documents, and the APIs that other clients speak.

    Without --index, uploads are kept until the server ends.
    """
    from thinbert.errors import InputError

    try:
        from thinbert.serve.run import serve
    except ModuleNotFoundError as e:
        if e.name and e.name.startswith("thinbert"):
            raise
        raise InputError(f"serving needs {e.name}: pip install 'thinbert[serve]'") from e
    from thinbert.serve.app import Settings

    settings = Settings(
        max_body_mb=max_body_mb,
        max_upload_mb=max_upload_mb,
        max_waiting=max_waiting,
        timeout=timeout,
        keys=tuple(api_key or ([os.environ["THINBERT_API_KEY"]] if "THINBERT_API_KEY" in os.environ else ())),
        origins=tuple(origin or ()),
        hosts=tuple(allow_host or ()),
        log=not quiet,
        log_content=log_content,
    )
    serve(model or ["default"], index, uploads, host, port, settings, precision=precision, threads=threads)


@app.command("evaluate")
def _evaluate(
    model: Annotated[str, typer.Argument(help="Model folder, hub id, or `default`.")],
    data: Annotated[Path, typer.Argument(help="SQuAD JSON or flat JSONL; GLUE's TSV with --task. Plain, .gz or .xz.")],
    out: Annotated[Path, typer.Option(help="Folder for predictions and metrics; questions answered in it are kept.")],
    task: Annotated[str, typer.Option(help="squad, or classification: sst2, mnli, qqp, qnli.")] = "squad",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions or texts.")] = None,
    max_answer_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, in tokens. (default: 30)")
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=3, help="Tokens of a window. (default: 384 for questions, 128 for texts, or the model's limit)"
        ),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens neighbouring windows share. (default: 128, or half a window)")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Probability of no answer above which the prediction is empty, for data with unanswerable questions. "
            "(default: the model's own, or 0.5)",
        ),
    ] = None,
    precision: PrecisionOption = "int8",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer every question of a data set and score the answers as SQuAD does, or classify and score as GLUE does."""
    from thinbert.api import load
    from thinbert.errors import InputError

    if task != "squad":
        given = {"max-answer-tokens": max_answer_tokens, "stride": stride, "threshold": threshold}
        for name, value in given.items():
            if value is not None:
                raise InputError(f"--{name} is for questions; {task} is classification")
        loaded = load(model, precision=precision, threads=threads)
        _evaluate_classes(loaded, precision, task, data, out, limit, max_length, as_json)
        return
    from thinbert.tasks.evaluate import Settings, evaluate, threshold_of
    from thinbert.tasks.qa import MAX_ANSWER_TOKENS, N_BEST
    from thinbert.tasks.squad import read_squad

    dataset = read_squad(data)
    if threshold is not None and not dataset.may_be_unanswerable:
        raise InputError(f"{data} has no unanswerable questions, so --threshold has no meaning for it")
    loaded = load(model, precision=precision, threads=threads)
    loaded.require_span_head()
    max_length, stride = loaded.window_size(max_length, stride)
    threshold = threshold_of(loaded) if threshold is None else threshold
    settings = Settings(max_answer_tokens or MAX_ANSWER_TOKENS, max_length, stride, N_BEST, precision)
    with progress.counting("questions") as count, _kept(str(out)):
        scores = evaluate(loaded, dataset, out, settings, threshold=threshold, limit=limit, progress=count)
    if as_json:
        show.print_json({"model": model, "data": str(data), "out": str(out), **scores})
    else:
        show.print_scores(scores)
        print(f"predictions and metrics in {out}")


def _evaluate_classes(
    model: "Model",
    precision: str,
    task: str,
    data: Path,
    out: Path,
    limit: int | None,
    max_length: int | None,
    as_json: bool,
) -> None:
    from thinbert.errors import InputError
    from thinbert.tasks import glue
    from thinbert.tasks.evaluate import evaluate_classes

    if task not in glue.TASKS:
        raise InputError(f"task {task!r}; thinbert evaluates squad, {', '.join(glue.TASKS)}")
    model.require_class_head()
    if max_length is not None and max_length > model.config.positions:
        raise InputError(f"windows of {max_length} tokens; model {model.name} takes at most {model.config.positions}")
    dataset = glue.read_glue(data, glue.TASKS[task])
    with progress.counting("texts") as count:
        scores = evaluate_classes(
            model, dataset, out, precision=precision, limit=limit, max_length=max_length, progress=count
        )
    if as_json:
        show.print_json({"model": model.name, "data": str(data), "out": str(out), **scores})
        return
    low, high = scores["accuracy_interval"]
    f1 = f", F1 {scores['f1']:.2f}" if "f1" in scores else ""
    print(f"{task}: accuracy {scores['accuracy']:.2f} (95 %: {low:.2f} to {high:.2f}){f1}, {scores['total']} texts")
    print(f"predictions and metrics in {out}")


@app.command("compare")
def _compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of `thinbert evaluate`: the first, then those set beside it.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Set evaluations of the same questions side by side: differences with 95 % intervals (paired bootstrap)."""
    from dataclasses import asdict

    from rich.table import Column, Table
    from rich.text import Text

    from thinbert.errors import InputError
    from thinbert.tasks.bootstrap import compare

    if len(runs) < 2:
        raise InputError("compare needs two folders of evaluations or more")
    found = {str(run): compare(runs[0], run) for run in runs[1:]}
    if as_json:
        show.print_json({run: [asdict(d) | {"difference": d.difference} for d in each] for run, each in found.items()})
        return
    print(f"first: {show.one_line(str(runs[0]))}")
    run_name = Column("run", overflow="fold")
    table = Table(run_name, "metric", "first", "this", "difference", "95 %", "p", box=None, header_style="bold")
    for run, each in found.items():
        for d in each:
            around = f"{d.low:+.2f} to {d.high:+.2f}"
            numbers = (
                f"{d.base:.2f}",
                f"{d.other:.2f}",
                f"{d.difference:+.2f}",
                around,
                f"{d.p:.3f}" if d.p >= 0.001 else "<0.001",
            )
            table.add_row(Text(run), d.metric, *numbers)
    show.console().print(table)


@app.command("score")
def _score(
    data: Annotated[Path, typer.Argument(help="SQuAD JSON or flat JSONL, plain, .gz or .xz.")],
    predictions: Annotated[Path, typer.Argument(help="JSON object: question id -> answer.")],
    na_prob: Annotated[
        Path | None, typer.Option(help="JSON object: id -> probability of no answer (SQuAD 2.0).")
    ] = None,
    na_prob_thresh: Annotated[
        float | None, typer.Option(help="Predict no answer where the probability is greater. (default: 1)")
    ] = None,
) -> None:
    """Score a predictions file as the official SQuAD script for that data does, digit for digit, and print its JSON."""
    from thinbert.errors import InputError
    from thinbert.tasks.metrics import score_v1, score_v2
    from thinbert.tasks.squad import read_json_object, read_squad

    dataset = read_squad(data)
    answers = read_json_object(predictions)
    odd = next((q for q, a in answers.items() if not isinstance(a, str)), None)
    if odd is not None:
        raise InputError(f"{predictions}: the prediction for {odd!r} is not a string")
    if not dataset.may_be_unanswerable:
        for option, value in (("--na-prob", na_prob), ("--na-prob-thresh", na_prob_thresh)):
            if value is not None:
                raise InputError(f"{data} has no unanswerable questions, so {option} has no meaning for it")
        missing = sum(q.id not in answers for q in dataset.questions)
        if missing:
            print(f"thinbert: {missing} questions have no prediction and score 0", file=sys.stderr)
        show.print_json(score_v1(dataset.golds, answers))
        return
    probabilities = None
    if na_prob is not None:
        probabilities = read_json_object(na_prob)
        odd = next((q for q, p in probabilities.items() if isinstance(p, bool) or not isinstance(p, int | float)), None)
        if odd is not None:
            raise InputError(f"{na_prob}: the probability for {odd!r} is not a number")
    show.print_json(
        score_v2(dataset.golds, answers, probabilities, threshold=1.0 if na_prob_thresh is None else na_prob_thresh)
    )


@app.command("inspect")
def _inspect(
    model: Annotated[str, typer.Argument(help="Model folder, hub id, or `default`.")],
    as_json: JsonOption = False,
) -> None:
    """Show what is left of a pruned model: densities, patterns, heads and neurons alive."""
    from thinbert.model.checkpoint import read_checkpoint
    from thinbert.model.sparsity import measure

    sparsity = measure(read_checkpoint(model))
    if as_json:
        show.print_json(sparsity.as_json())
    else:
        show.print_sparsity(sparsity)


@app.command("pack")
def _pack(
    model: Annotated[str, typer.Argument(help="Model folder, hub id, or `default`.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    as_json: JsonOption = False,
) -> None:
    """Pack a model: dead heads and neurons cut out exactly, int8 weights, sparse matrices as block lists."""
    from thinbert.model.checkpoint import read_checkpoint
    from thinbert.model.pack import pack

    source = read_checkpoint(model)
    try:
        pack(source, out)
    except OSError as e:
        _fail(f"{out}: cannot be written: {e.strerror or e}")
    before = sum(f.stat().st_size for f in source.files)
    after = sum(f.stat().st_size for f in read_checkpoint(out).files)
    if as_json:
        show.print_json({"model": model, "out": str(out), "bytes_before": before, "bytes_after": after})
    else:
        print(f"{out}: weights {before / 1e6:.1f} MB to {after / 1e6:.1f} MB")


@app.command("doctor")
def _doctor(
    model: Annotated[str | None, typer.Argument(help="Also show the plan for this model.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what this machine runs: processor features, instruction set, threads, and what sparsity is worth here."""
    from thinbert.runtime.doctor import examine

    report = examine(model)
    if as_json:
        show.print_json(report)
    else:
        show.print_report(report)


@app.command("bench")
def _bench(
    model: Annotated[str, typer.Argument(help="Model folder, hub id, or `default`.")],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a sequence.")] = 128,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at a time.")] = 1,
    rounds: Annotated[int, typer.Option(min=3, help="Timed runs.")] = 50,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time the engine on random tokens, after comparing it with the NumPy reference."""
    from thinbert.runtime.doctor import time_model

    result = time_model(model, tokens=tokens, batch=batch, rounds=rounds, threads=threads)
    if as_json:
        show.print_json(result)
        return
    print(
        f"{result['median_ms']:.2f} ms ± {result['spread_ms']:.2f}, {result['tokens_per_second']:.0f} tokens/s, "
        f"{result['isa']}, {show.count(result['threads'], 'thread')}, {result['resident_mb']:.0f} MB resident; "
        f"hidden states within {result['largest_difference']:.3f} of float32's, which reach {result['size']:.1f}"
    )
    print("time: " + ", ".join(f"{part} {share:.0%}" for part, share in result["shares"].items()))


@app.command("recipes")
def _recipes(as_json: JsonOption = False) -> None:
    """List the recipes that `thinbert compress` carries out."""
    recipe = _train_ring("recipe")
    rows = []
    for name, path in recipe.built_in().items():
        whole = recipe.read_recipe(name)
        row = {"name": name, "about": whole.about, "source": whole.source, "scales": recipe.scales_of(name)}
        rows.append(row | {"file": str(path)})
    if as_json:
        show.print_json(rows)
        return
    for row in rows:
        print(f"{row['name']}  ({', '.join(row['scales'])})\n    {row['about']}\n    after {row['source']}")


@app.command("compress")
def _compress(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe (see `thinbert recipes`), or a YAML file.")],
    out: Annotated[Path, typer.Option(help="Folder for models, logs and scores; an interrupted run in it goes on.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder with the data sets. (default: THINBERT_DATA)", envvar="THINBERT_DATA")
    ] = None,
    scale: Annotated[
        str, typer.Option(help="full (as published), small (hours on two cores) or smoke (steps on tiny files).")
    ] = "full",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE, such as base=FOLDER or stages.squad.rate=1e-4. May be repeated."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show stages, data and steps; estimate time and memory from a few steps of each."
        ),
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write event files for TensorBoard, to OUT/tensorboard.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a thin model: prune, distil, quantise, export and score, as a recipe says."""
    from thinbert.errors import InputError

    module = _train_ring("recipe")
    if dry_run and tensorboard:
        raise InputError("--tensorboard has nothing to show of a --dry-run")
    read = module.read_recipe(recipe, scale, changes=_changes(changes or []))
    if data is None:
        raise InputError("no data folder; give --data FOLDER, or set THINBERT_DATA")
    run = _train_ring("run")
    with progress.stages() as report, _kept(None if dry_run else str(out)):
        if tensorboard:
            report = run.tensorboard(report, out / "tensorboard")
        place = module.Place(
            recipe=read, scale=scale, data=data, out=out, say=lambda text: print(text, file=sys.stderr), report=report
        )
        result = run.estimate(place) if dry_run else run.run(place)
    if not result:
        return  # one of several processes, of which the main one speaks
    if as_json:
        show.print_json(result)
    elif dry_run:
        seeds = ", ".join(map(str, read.seeds))
        print(f"{read.name}, {scale} scale: from {read.base}, {show.count(len(read.stages), 'stage')}, seeds {seeds}")
        for stage, row in zip(read.stages, result, strict=True):
            often = "once" if stage.once else "for each seed"
            print(
                f"{row['stage']:16s} {row['task']:7s} {row['examples']:8d} examples  {row['steps']:7d} steps  "
                f"{show.duration(row['seconds'])} {often}, at most {row['peak_memory_mb']:.0f} MB so far, "
                f"from {', '.join(row['data'])}"
            )
        print("not counted: scores, on the way and at the end, and what teachers say once of a task's examples")
    else:
        for name, scores in result.items():
            shown = (
                f"{k} {v:.2f}" + (f" ({of[0]:.2f} to {of[1]:.2f})" if (of := scores.get(f"{k}_range")) else "")
                for k, v in scores.items()
                if isinstance(v, float)
            )
            print(f"{name:16s} {', '.join(shown)}")
        print(f"models in {out}")


def _train_ring(module: str) -> Any:
    """A module of the train ring. Raises InputError with the command to install it where it is not."""
    from importlib import import_module

    from thinbert.errors import InputError

    try:
        return import_module(f"thinbert.compress.{module}")
    except ModuleNotFoundError as e:
        if e.name and e.name.startswith("thinbert"):
            raise
        raise InputError(f"training needs {e.name}: pip install 'thinbert[train]'") from e


def _changes(given: list[str]) -> dict[str, str]:
    from thinbert.errors import InputError

    for change in given:
        if "=" not in change:
            raise InputError(f"--set {change}: expected KEY=VALUE")
    return dict(change.split("=", 1) for change in given)
