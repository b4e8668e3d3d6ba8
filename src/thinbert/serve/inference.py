"""Routes for a question and its text, or a text to classify: Hugging Face's, ours, and the Open Inference Protocol."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, HTTPException, Path, Request, Response
from pydantic import BaseModel, Field

from thinbert import __version__
from thinbert.api import Model
from thinbert.errors import InputError
from thinbert.pipelines import WITHOUT_EFFECT, QuestionAnsweringPipeline, TextClassificationPipeline
from thinbert.serve import protocol
from thinbert.serve.server import Body, Server, Text
from thinbert.tasks.classify import best_class, logits

_VERSION = "1"  # of the models, in the words of the Open Inference Protocol

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
    parameters: Parameters | None = None


class Predict(Body):
    question: Text
    context: Text
    top_k: int = Field(1, ge=1, le=100)


def routes(server: Server) -> APIRouter:
    api = APIRouter(tags=["inference"])
    shape = (
        "`{score, start, end, answer}`, a list of them with top_k or a list of inputs; "
        "of texts to classify for each a list of `{label, score}`, best first"
    )

    async def hugging_face(request: Request, body: HuggingFaceRequest, name: str | None) -> Any:
        inputs = body.inputs if isinstance(body.inputs, list) else [body.inputs]
        kinds = {isinstance(item, QuestionContext) for item in inputs}
        if len(kinds) > 1:
            raise HTTPException(422, "inputs: questions and texts to classify are mixed")
        answers = kinds.pop()
        model = server.model(name, answers=answers)
        options = body.parameters.model_dump() if body.parameters else {}
        given = {k: v for k, v in options.items() if v is not None and k not in WITHOUT_EFFECT}
        own = QuestionAnsweringPipeline.options if answers else TextClassificationPipeline.options
        for option in given:
            if option not in own:
                raise HTTPException(422, f"parameters.{option}: not for this task; expected {', '.join(own)}")
        plain = [item.model_dump() if isinstance(item, BaseModel) else item for item in inputs]
        reads = model if not given else None  # windows that overlap by much take long for any text
        run: Callable[..., Any] = (QuestionAnsweringPipeline if answers else TextClassificationPipeline)(model)
        if not answers:  # all classes, where no number of them is asked for
            given.setdefault("top_k", None)
        results = await server.compute(request, lambda: run(plain, **given), reads=reads)
        if answers and isinstance(body.inputs, list) and len(inputs) == 1:
            results = [results]
        server.note(request, asked=plain, answered=results)
        return results

    @api.post("/", summary="As Hugging Face's inference API", response_description=shape)
    async def root(request: Request, body: HuggingFaceRequest) -> Any:
        return await hugging_face(request, body, None)

    @api.post("/models/{name}", summary="The same, by the model's name", response_description=shape)
    async def named(request: Request, name: str, body: HuggingFaceRequest) -> Any:
        return await hugging_face(request, body, name)

    @api.post("/predict", summary="A question and a text", response_description=shape)
    async def predict(request: Request, body: Predict | Some[Predict]) -> Any:
        model = server.model(None, answers=True)
        asked = body if isinstance(body, list) else [body]
        pipeline = QuestionAnsweringPipeline(model)

        def work() -> list[Any]:
            return [
                pipeline(question=one.question, context=one.context, top_k=one.top_k, max_answer_len=30)
                for one in asked
            ]

        results = await server.compute(request, work, reads=model)
        server.note(request, asked=[one.model_dump() for one in asked], answered=results)
        return results if isinstance(body, list) else results[0]

    return api


# --- Open Inference Protocol ------------------------------------------------------------------------------------------


def open_inference(server: Server) -> APIRouter:
    routes = APIRouter(prefix="/v2", tags=["open inference protocol"])
    header = protocol.HEADER
    some_name, some_model = next(iter(server.models.items()))
    Name = Annotated[str, Path(examples=[some_name])]

    @routes.get("", summary="The server")
    async def about() -> dict[str, Any]:
        return {"name": "thinbert", "version": __version__, "extensions": ["binary_tensor_data"]}

    def model_of(name: str, version: str | None) -> Model:
        model = server.models.get(name)
        if model is None or version not in (None, _VERSION):
            there = ", ".join(server.models)
            raise HTTPException(404, f"no model {name[:80]!r} of version {version or _VERSION}; there are {there}")
        return model

    @routes.get("/models/{name}", summary="A model's inputs and outputs")
    @routes.get("/models/{name}/versions/{version}", include_in_schema=False)
    async def described(name: Name, version: str | None = None) -> dict[str, Any]:
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
    async def model_ready(name: Name, version: str | None = None) -> dict[str, Any]:
        model_of(name, version)
        return {"name": name, "ready": server.ready}

    required = [name for name in _signature(some_model)[0] if name != "text_pair"]
    tensors = [{"name": name, "datatype": "BYTES", "shape": [1], "data": [f"some {name}"]} for name in required]
    schema = {**_INFER, "example": {"inputs": tensors}}
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}

    @routes.post("/models/{name}/infer", summary="Infer, in JSON or with binary tensors", openapi_extra=body)
    @routes.post("/models/{name}/versions/{version}/infer", include_in_schema=False)
    async def infer(request: Request, name: Name, version: str | None = None) -> Response:
        model = model_of(name, version)
        try:
            asked = protocol.parse(await request.body(), request.headers.get(header))
            first = protocol.texts(asked, "question" if model.answers else "text")
            second = None
            if model.answers or "text_pair" in asked.inputs:
                name_of_second = "context" if model.answers else "text_pair"
                second = protocol.texts(asked, name_of_second, first, may_be_empty=not model.answers)
            pairs = second.data if second is not None else None
            outputs = await server.compute(request, lambda: _infer(model, first.data, pairs), reads=model)
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
        other = [pair if pair.strip() else None for pair in second] if second is not None else [None] * len(first)
        for values in logits(model, zip(first, other, strict=True)):
            rows.append(best_class(model, values))
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(described)
    return [(name, datatype, list(column)) for (name, datatype), column in zip(described, columns, strict=True)]
