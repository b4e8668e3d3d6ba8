"""The server's routes. Each parses, calls the library in a thread, and answers; batching and limits are elsewhere."""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, FastAPI, File, HTTPException, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from thinbert import __version__
from thinbert.api import Model
from thinbert.corpus.ask import READ, Citation, Found, ask
from thinbert.corpus.documents import text_document
from thinbert.corpus.index import BusyError, Corpus
from thinbert.errors import Error, InputError
from thinbert.pipelines import QuestionAnsweringPipeline, TextClassificationPipeline
from thinbert.serve import protocol
from thinbert.serve.batching import Batcher, CancelledError, Ticket, current_ticket
from thinbert.serve.library import Library, UnknownDocumentError, listed, name_of, number_of
from thinbert.serve.limits import Guard, Metrics
from thinbert.tasks.classify import class_names, logits, softmax

_MOST_FAULTS = 20  # of a request that are named
_VERSION = "1"  # of the models, in the words of the Open Inference Protocol
_WEB = files("thinbert.serve") / "web"
_PAGES = {"index.html": "text/html", "app.js": "text/javascript", "style.css": "text/css", "docs.html": "text/html"}
_PAGES |= {"docs.js": "text/javascript", "icon.svg": "image/svg+xml"}


@dataclass(frozen=True)
class Settings:
    max_body_mb: float = 2.0  # of a question with its text
    max_upload_mb: float = 100.0
    max_waiting: int = 256  # requests in flight, after which others are turned away
    timeout: float = 30.0  # seconds for a request
    threads: int = 32  # requests that are worked on at a time; the engine has its own
    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()  # that browsers may ask from, other than our own page
    hosts: tuple[str, ...] = ()  # names the server goes by; any, where there are none
    log: bool = True
    log_content: bool = False  # questions and answers too


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


Text = Annotated[str, Field(min_length=1)]
T = TypeVar("T")
# A list is given up at its first fault: a small request must not make a large answer.
Some = Annotated[list[T], Field(min_length=1, max_length=1000, fail_fast=True)]


class QuestionContext(Body):
    question: Text
    context: Text


class Parameters(Body):
    """Options of the question-answering and text-classification pipelines of transformers."""

    top_k: int | None = Field(default=None, ge=1, le=100)
    doc_stride: int | None = Field(default=None, ge=0, le=512)
    max_answer_len: int | None = Field(default=None, ge=1, le=512)
    max_seq_len: int | None = Field(default=None, ge=8, le=512)
    max_question_len: int | None = Field(default=None, ge=1, le=512)
    handle_impossible_answer: bool | None = None
    align_to_words: bool | None = None
    function_to_apply: str | None = Field(default=None, pattern="^(softmax|sigmoid|none)$")


class TextPair(Body):
    text: Text
    text_pair: str | None = None


class HuggingFaceRequest(BaseModel):
    """`inputs` is a question with its context, or a text (or a pair) for a classifier; or a list of such."""

    inputs: QuestionContext | TextPair | Text | Some[QuestionContext | TextPair | Text]
    parameters: Parameters = Field(default_factory=Parameters)


class Predict(Body):
    question: Text
    context: Text
    top_k: int = Field(1, ge=1, le=100)


class Ask(Body):
    """A question to the indexed documents, or to a text that comes with it."""

    question: Text
    context: Text | None = None
    top_k: int = Field(3, ge=1, le=50)
    passages: int = Field(READ, ge=1, le=200)
    threshold: float | None = Field(default=None, ge=0, le=1)


class Server:
    """What the routes share: models behind batchers, documents, threads, and the number of requests in flight."""

    def __init__(self, models: Mapping[str, Model], library: Library | None, settings: Settings) -> None:
        if not models:
            raise InputError("no model to serve")
        if not all(key.strip() for key in settings.keys):
            raise InputError("a key is empty; everybody would have it")
        self.models, self.library, self.settings = dict(models), library, settings
        self.metrics = Metrics()
        self._batchers = []
        for model in {id(m): m for m in self.models.values()}.values():  # one may go by several names
            batcher = Batcher(model.runtime, observe=self.metrics.observe_pass)
            self._batchers.append(batcher)
            model.runtime = batcher
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="thinbert")
        self._changes = ThreadPoolExecutor(
            1, thread_name_prefix="thinbert-documents"
        )  # they wait for each other anyway
        self.in_flight = 0
        self.ready = False

    def model(self, name: str | None, *, answers: bool) -> tuple[str, Model]:
        """The model of that name, or the first that can do it. Raises HTTPException 404."""
        if name is not None:
            found = self.models.get(name)
            if found is None:
                raise HTTPException(404, f"no model {name[:80]!r}; there are {', '.join(self.models)}")
            if found.answers != answers:
                can = "classifies texts" if not found.answers else "answers questions"
                raise HTTPException(422, f"model {name} {can}; these inputs ask for something else")
            return name, found
        for known, model in self.models.items():
            if model.answers == answers:
                return known, model
        what = "answers questions" if answers else "classifies texts"
        raise HTTPException(422, f"no model here {what}; start the server with one (--model)")

    async def compute(self, request: Request, work: Callable[[], T], *, changes: bool = False) -> T:
        """Runs the work in a thread, unless too many wait, it takes too long, or the client goes.

        Args:
            changes: the work changes the documents; it has a thread of its own, and four times as long.

        Raises HTTPException: 429, 504 or (seen by nobody) 499; 422 where the work refuses its input.
        """
        if self.in_flight >= self.settings.max_waiting:
            raise HTTPException(429, "too many requests wait; try again", headers={"Retry-After": "1"})
        ticket = Ticket()

        def ticketed() -> T:
            current_ticket.set(ticket)
            if ticket.cancelled:
                raise CancelledError("the request was withdrawn")
            return work()

        self.in_flight += 1
        self.metrics.in_flight.set(self.in_flight)
        loop = asyncio.get_running_loop()
        pool, timeout = (self._changes, 4 * self.settings.timeout) if changes else (self._pool, self.settings.timeout)
        job: asyncio.Future[T] = loop.run_in_executor(pool, contextvars.copy_context().run, ticketed)
        gone: asyncio.Future[None] = asyncio.ensure_future(_gone(request))
        either: set[asyncio.Future[Any]] = {job, gone}
        try:
            await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if job.done():
                return job.result()
            if gone.done():
                raise HTTPException(499, "the client has gone")
            raise HTTPException(504, f"not done within {timeout:g} seconds")
        except (CancelledError, BusyError) as e:
            raise HTTPException(503, str(e), headers={"Retry-After": "1"}) from None
        except (InputError, ValueError) as e:
            raise HTTPException(422, str(e)) from None
        finally:
            if not job.done():  # whatever ended the waiting, a server that closes too
                ticket.cancel()
                job.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody waits for it
            gone.cancel()
            self.in_flight -= 1
            self.metrics.in_flight.set(self.in_flight)

    @property
    def takes_requests(self) -> bool:
        return self.ready and all(batcher.alive for batcher in self._batchers)

    def note(self, request: Request, **content: Any) -> None:
        """Puts what was asked and answered into the log, where that was wanted."""
        if self.settings.log_content:
            request.scope.setdefault("state", {})["log"] = content

    def close(self) -> None:
        """Ends after what is in flight; what has not begun is dropped."""
        for pool in (self._pool, self._changes):
            pool.shutdown(wait=True, cancel_futures=True)
        for batcher in self._batchers:
            batcher.close()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def create_app(
    models: Mapping[str, Model], library: Library | None = None, settings: Settings | None = None
) -> FastAPI:
    """The application, for uvicorn or any other ASGI server.

    Args:
        models: name -> model; the first that answers questions serves /, /predict and /v1/ask. Their engines are put
            behind batchers.
        library: documents to answer from.
    """
    settings = settings or Settings()
    server = Server(models, library, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server.ready = True
        yield
        server.ready = False
        server.close()

    app = FastAPI(
        title="thinbert",
        version=__version__,
        summary="Questions answered from texts and documents, and texts classified, on the CPU you have.",
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere; ours does not
        redoc_url=None,
    )
    app.state.server = server
    for routes in (_health(server), _web(), _inference(server), _documents(server), _open_inference(server)):
        app.include_router(routes)

    @app.exception_handler(StarletteHTTPException)
    async def failed(request: Request, e: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": e.detail}, e.status_code, headers=e.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, e: RequestValidationError) -> JSONResponse:
        found = [{"field": ".".join(map(str, d["loc"][1:])), "message": d["msg"]} for d in e.errors()[:_MOST_FAULTS]]
        shown = "; ".join(f"{d['field'] or 'body'}: {d['message']}" for d in found[:5])
        return JSONResponse({"error": shown, "fields": found}, 422)

    @app.exception_handler(Error)
    async def refused(request: Request, e: Error) -> JSONResponse:
        return JSONResponse({"error": str(e)}, 404 if isinstance(e, UnknownDocumentError) else 422)

    app.add_middleware(
        Guard,
        metrics=server.metrics,
        keys=settings.keys,
        max_body=lambda path: int(
            1e6 * (settings.max_upload_mb if path == "/v1/documents" else settings.max_body_mb) + 4096
        ),
        hosts=settings.hosts,
        origins=settings.origins,
        log=settings.log,
    )
    if settings.origins:  # outermost: browsers ask it first, without a key
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.origins), allow_methods=["*"], allow_headers=["*"]
        )
    return app


# --- is it there ------------------------------------------------------------------------------------------------------


def _health(server: Server) -> APIRouter:
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz", summary="The process runs")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/readyz", summary="It takes requests", responses={503: {"description": "Starting, or closing"}})
    async def readyz() -> JSONResponse:
        if not server.takes_requests:
            return JSONResponse({"status": "not ready"}, 503)
        return JSONResponse({"status": "ready"})

    @routes.get("/metrics", summary="Counters for Prometheus")
    async def metrics() -> Response:
        if server.library is not None:
            server.metrics.documents.set(len(server.library.entries()))
        return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return routes


def _web() -> APIRouter:
    routes = APIRouter(include_in_schema=False)

    def page(name: str) -> Response:
        return Response((_WEB / name).read_bytes(), media_type=_PAGES[name], headers={"Cache-Control": "no-cache"})

    @routes.get("/")
    async def index() -> Response:
        return page("index.html")

    @routes.get("/docs")
    async def docs() -> Response:
        return page("docs.html")

    @routes.get("/web/{name}")
    async def asset(name: str) -> Response:
        if name not in _PAGES:
            raise HTTPException(404, "no such file")
        return page(name)

    return routes


# --- one text at a time -----------------------------------------------------------------------------------------------


def _inference(server: Server) -> APIRouter:
    routes = APIRouter(tags=["inference"])
    shape = "`{score, start, end, answer}`, or `{label, score}`; a list of them with top_k or a list of inputs"

    async def hugging_face(request: Request, body: HuggingFaceRequest, name: str | None) -> Any:
        inputs = body.inputs if isinstance(body.inputs, list) else [body.inputs]
        kinds = {isinstance(item, QuestionContext) for item in inputs}
        if len(kinds) > 1:
            raise HTTPException(422, "inputs: questions and texts to classify are mixed")
        answers = kinds.pop()
        _, model = server.model(name, answers=answers)
        given = {k: v for k, v in body.parameters.model_dump().items() if v is not None}
        own = QuestionAnsweringPipeline.options if answers else TextClassificationPipeline.options
        for option in given:
            if option not in own:
                raise HTTPException(422, f"parameters.{option}: not for this task; expected {', '.join(own)}")
        plain = [item.model_dump() if isinstance(item, BaseModel) else item for item in inputs]
        run: Callable[..., Any] = (QuestionAnsweringPipeline if answers else TextClassificationPipeline)(model)
        if answers:
            results = await server.compute(request, lambda: run(plain, **given))
            if isinstance(body.inputs, list) and len(inputs) == 1:
                results = [results]
        else:
            results = await server.compute(request, lambda: run(plain, **given))
            # one text gives a list of its classes, best first, as the inference API of Hugging Face did
            results = [r if isinstance(r, list) else [r] for r in results]
            results = results if isinstance(body.inputs, list) else results[0]
        server.note(request, asked=plain, answered=results)
        return results

    @routes.post("/", summary="As Hugging Face's inference API", response_description=shape)
    async def root(request: Request, body: HuggingFaceRequest) -> Any:
        return await hugging_face(request, body, None)

    @routes.post("/models/{name}", summary="The same, by the model's name", response_description=shape)
    async def named(request: Request, name: str, body: HuggingFaceRequest) -> Any:
        return await hugging_face(request, body, name)

    @routes.post("/predict", summary="A question and a text", response_description=shape)
    async def predict(request: Request, body: Predict | Some[Predict]) -> Any:
        _, model = server.model(None, answers=True)
        asked = body if isinstance(body, list) else [body]
        pipeline = QuestionAnsweringPipeline(model)

        def work() -> list[Any]:
            return [
                pipeline(question=one.question, context=one.context, top_k=one.top_k, max_answer_len=30)
                for one in asked
            ]

        results = await server.compute(request, work)
        server.note(request, asked=[one.model_dump() for one in asked], answered=results)
        return results if isinstance(body, list) else results[0]

    return routes


# --- documents --------------------------------------------------------------------------------------------------------


def _documents(server: Server) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["documents"])

    def library() -> Library:
        if server.library is None:
            raise HTTPException(404, "this server has no documents; start it with --index FOLDER")
        return server.library

    @routes.post("/ask", summary="A question to the documents, or to a text that comes with it")
    async def asked(request: Request, body: Ask) -> dict[str, Any]:
        _, model = server.model(None, answers=True)
        own = None if body.context is not None else library()

        def work() -> Found:
            corpus = Corpus.in_memory([text_document("context", body.context or "")]) if own is None else own.corpus
            return ask(model, body.question, corpus, top_k=body.top_k, passages=body.passages, threshold=body.threshold)

        loop = asyncio.get_running_loop()
        started = loop.time()
        found = await server.compute(request, work)
        answer = _found(found, own is not None) | {"milliseconds": round(1e3 * (loop.time() - started), 2)}
        server.note(request, asked=body.model_dump(), answered=answer["answer"])
        return answer

    @routes.get("/documents", summary="What is indexed")
    async def documents(request: Request) -> list[dict[str, Any]]:
        held = library()
        return [asdict(e) for e in await server.compute(request, lambda: listed(held.entries()))]

    @routes.post("/documents", summary="Add files", status_code=201)
    async def upload(request: Request, response: Response, files: Annotated[list[UploadFile], File()]) -> Any:
        held = library()
        contents = [(f.filename or "document", await f.read()) for f in files]
        added, refused, status = [], [], 422
        for name, content in contents:

            def store(name: str = name, content: bytes = content) -> dict[str, Any]:
                entry, new = held.add(name, content, wanted=_is_wanted)
                return asdict(entry) | {"new": new}

            try:
                added.append(await server.compute(request, store, changes=True))
            except HTTPException as e:  # what was added before it is added, and said
                status = e.status_code
                refused.append({"name": name, "error": e.detail})
        if not added:
            response.status_code = status
            return {"error": "; ".join(f"{r['error']}" for r in refused[:3]), "added": [], "refused": refused}
        return {"added": added, "refused": refused}

    @routes.delete("/documents/{number}", summary="Remove an upload", status_code=204)
    async def remove(request: Request, number: str) -> None:
        held = library()
        await server.compute(request, lambda: _known(lambda: held.remove(number)), changes=True)

    @routes.get("/documents/{number}/pages/{page}", summary="The text of a page, as it was indexed")
    async def page(request: Request, number: str, page: int) -> dict[str, Any]:
        held = library()
        if not 0 < page < 1 << 31:
            raise HTTPException(404, f"no page {page}")
        found = await server.compute(request, lambda: _known(lambda: held.page(number, page)))
        headings = [{"start": at, "text": heading} for at, heading in found.headings]
        return {"number": found.number, "label": found.label, "text": found.text, "headings": headings}

    @routes.get("/documents/{number}/file", summary="The file itself")
    async def file(request: Request, number: str) -> FileResponse:
        held = library()
        path: Path = await server.compute(request, lambda: _known(lambda: held.path(number)))
        # shown in place only where a browser runs nothing of it; all else is downloaded
        kinds = {".pdf": "application/pdf", ".txt": "text/plain; charset=utf-8", ".md": "text/plain; charset=utf-8"}
        kind = kinds.get(path.suffix.lower())
        how = "inline" if kind else "attachment"
        return FileResponse(
            path,
            media_type=kind or "application/octet-stream",
            filename=name_of(str(path)),
            content_disposition_type=how,
            # the strict policy of pages keeps browsers from showing a PDF
            headers={"Content-Security-Policy": "frame-ancestors 'none'"} if kind == "application/pdf" else {},
        )

    return routes


def _is_wanted() -> bool:
    ticket = current_ticket.get()
    return ticket is None or not ticket.cancelled


def _known(work: Callable[[], T]) -> T:
    """What `compute` would make a 422 is a 404 here."""
    try:
        return work()
    except UnknownDocumentError as e:
        raise HTTPException(404, str(e)) from None


def _found(found: Found, indexed: bool) -> dict[str, Any]:
    def citation(c: Citation) -> dict[str, Any]:
        place: dict[str, Any] = {"document": number_of(c.place.file) if indexed else None}
        place |= {
            "file": name_of(c.place.file),
            "page": c.place.page,
            "page_label": c.place.label,
            "line": c.line,
            "heading": c.heading,
        }
        return {
            "answer": c.text,
            "score": c.score,
            **place,
            "start": c.place.start,
            "end": c.place.end,
            "sentence": c.sentence,
            "sentence_start": c.sentence_start,
            "also": [
                {
                    "document": number_of(p.file) if indexed else None,
                    "file": name_of(p.file),
                    "page": p.page,
                    "start": p.start,
                    "end": p.end,
                }
                for p in c.also
            ],
        }

    return {
        "answer": found.citations[0].text if found.citations else None,
        "score": found.citations[0].score if found.citations else None,
        "no_answer": found.no_answer,
        "threshold": found.threshold,
        "citations": [citation(c) for c in found.citations],
        "rejected": citation(found.rejected) if found.rejected else None,
        "passages_read": found.read,
    }


# --- Open Inference Protocol ------------------------------------------------------------------------------------------


def _open_inference(server: Server) -> APIRouter:
    routes = APIRouter(prefix="/v2", tags=["open inference protocol"])
    header = "Inference-Header-Content-Length"

    @routes.get("", summary="The server")
    async def about() -> dict[str, Any]:
        return {"name": "thinbert", "version": __version__, "extensions": ["binary_tensor_data"]}

    @routes.get("/health/live", summary="The process runs")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @routes.get("/health/ready", summary="It takes requests")
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": server.takes_requests}, 200 if server.takes_requests else 503)

    def model_of(name: str, version: str | None) -> Model:
        model = server.models.get(name)
        if model is None or version not in (None, _VERSION):
            raise HTTPException(
                404, f"no model {name[:80]!r} of version {version or _VERSION}; there are {_names(server)}"
            )
        return model

    @routes.get("/models/{name}", summary="A model's inputs and outputs")
    @routes.get("/models/{name}/versions/{version}", include_in_schema=False)
    async def described(name: str, version: str | None = None) -> dict[str, Any]:
        model = model_of(name, version)
        inputs, outputs = _signature(model)
        return {
            "name": name,
            "versions": [_VERSION],
            "platform": "thinbert",
            "inputs": [{"name": n, "datatype": "BYTES", "shape": [-1]} for n in inputs],
            "outputs": [{"name": n, "datatype": t, "shape": [-1]} for n, t in outputs],
        }

    @routes.get("/models/{name}/ready", summary="Whether a model takes requests")
    @routes.get("/models/{name}/versions/{version}/ready", include_in_schema=False)
    async def model_ready(name: str, version: str | None = None) -> dict[str, Any]:
        model_of(name, version)
        return {"name": name, "ready": server.takes_requests}

    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": _INFER}}}}

    @routes.post("/models/{name}/infer", summary="Infer, in JSON or with binary tensors", openapi_extra=body)
    @routes.post("/models/{name}/versions/{version}/infer", include_in_schema=False)
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        model = model_of(name, version)
        try:
            asked = protocol.parse(await request.body(), request.headers.get(header))
            first = protocol.texts(asked, "question" if model.answers else "text")
            second = None
            if model.answers or "text_pair" in asked.inputs:
                second = protocol.texts(asked, "context" if model.answers else "text_pair", first)
            pairs = second.data if second is not None else None
            outputs = await server.compute(request, lambda: _infer(model, first.data, pairs))
            content, length = protocol.answer(asked, name, _VERSION, outputs, first.shape)
            server.note(request, asked={n: t.data for n, t in asked.inputs.items()}, answered=list(outputs[0][2]))
        except InputError as e:
            raise HTTPException(422, str(e)) from None
        if length is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={header: str(length)})

    return routes


_INFER = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "inputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "datatype", "shape", "data"],
                "properties": {
                    "name": {"type": "string"},
                    "datatype": {"type": "string", "enum": ["BYTES"]},
                    "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                    "data": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
        "outputs": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
    },
}


def _names(server: Server) -> str:
    return ", ".join(server.models)


def _signature(model: Model) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    if model.answers:
        numbers = (("score", "FP32"), ("start", "INT64"), ("end", "INT64"), ("no_answer", "FP32"))
        return ("question", "context"), (("answer", "BYTES"), *numbers)
    return ("text", "text_pair"), (("label", "BYTES"), ("score", "FP32"))


def _infer(model: Model, first: Sequence[str], second: Sequence[str] | None) -> list[tuple[str, str, list[Any]]]:
    described = _signature(model)[1]
    rows: list[tuple[Any, ...]] = []
    if model.answers:
        for reading in model.read_many((q, [c]) for q, c in zip(first, second or (), strict=True)):
            best = reading.best
            place = (best.text, best.score, best.start, best.end) if best else ("", 0.0, 0, 0)
            rows.append((*place, reading.no_answer))
    else:
        other: Sequence[str | None] = second if second is not None else [None] * len(first)
        for values in logits(model, zip(first, other, strict=True)):
            shares = softmax(values)
            best_class = int(shares.argmax())
            rows.append((class_names(model, len(shares))[best_class], float(shares[best_class])))
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(described)
    return [(name, datatype, list(column)) for (name, datatype), column in zip(described, columns, strict=True)]
