"""The application: its routes put together, what it says to faults, and what stands before it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from thinbert import __version__
from thinbert.api import Model
from thinbert.errors import Error
from thinbert.serve import documents, inference, protocol
from thinbert.serve.library import Library
from thinbert.serve.limits import Guard
from thinbert.serve.server import Server, Settings

__all__ = ["Settings", "create_app"]

_MOST_FAULTS = 20  # of a request that are named
_WEB = files("thinbert.serve") / "web"
_PAGES = {"index.html": "text/html", "app.js": "text/javascript", "style.css": "text/css", "docs.html": "text/html"}
_PAGES |= {"docs.js": "text/javascript", "icon.svg": "image/svg+xml"}


class Refusal(BaseModel):
    """What every answer says that is no result."""

    error: str
    fields: list[dict[str, str]] = []  # of a request that cannot be read: `field` and `message` of each fault


_REFUSALS = {
    401: "A key is needed",
    403: "Asked by a page of another origin, or under a name the server does not go by",
    404: "No such model, document or page",
    408: "The rest of the request did not come in time",
    413: "Larger than this server takes",
    422: "Cannot be read, or not by this model",
    429: "Too many requests wait; try again",
    500: "A fault of the server's own, which its log describes",
    503: "The server is closing, or another process writes to the index; try again",
    504: "Not done in time",
    507: "The disk is full, or may not be written",
}


def create_app(
    models: Mapping[str, Model], library: Library | None = None, settings: Settings | None = None
) -> FastAPI:
    """The application, for uvicorn or any other ASGI server.

    Args:
        models: name -> model; the first that answers questions serves /, /predict and /v1/ask. Their engines are put
            behind batchers.
        library: documents to answer from.
    """
    server = Server(models, library, settings or Settings())
    settings = server.settings

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
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Refusal, "description": why} for status, why in _REFUSALS.items()
    }
    # the guard checks keys; this says so to those who read the description
    keys = [Security(HTTPBearer(auto_error=False))] if settings.keys else []
    for routes in (inference.routes(server), documents.routes(server), inference.open_inference(server)):
        app.include_router(routes, responses=refusals, dependencies=keys)
    # last: each request looks through the routes in this order
    app.include_router(_metrics(server), responses={n: refusals[n] for n in (401, 403)}, dependencies=keys)
    for routes in (_health(server), _web()):
        app.include_router(routes)

    @app.exception_handler(ClientDisconnect)
    def gone(request: Request, e: ClientDisconnect) -> JSONResponse:
        """In the middle of its body: for the log, as nobody reads it."""
        return JSONResponse({"error": "the client has gone"}, 499)

    @app.exception_handler(StarletteHTTPException)
    async def failed(request: Request, e: StarletteHTTPException) -> JSONResponse:
        if isinstance(e.__cause__, ClientDisconnect):
            return gone(request, e.__cause__)
        if e.status_code == 400 and e.__cause__ is not None and "json" in request.headers.get("content-type", ""):
            # what FastAPI says where it is not the grammar that fails, but the encoding, the depth or a number
            return JSONResponse({"error": f"not JSON that can be read: {e.__cause__}"}, 422)
        if e.status_code == 400 and isinstance(e.__cause__, OSError):  # of a form whose files are laid on the disk
            return JSONResponse({"error": f"the upload cannot be kept: {e.__cause__.strerror}"}, 507)
        if e.status_code == 400 and request.headers.get("content-type", "").startswith("multipart/"):
            return JSONResponse({"error": f"the form cannot be read: {e.detail}"}, 422)
        return JSONResponse({"error": e.detail}, e.status_code, headers=e.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, e: RequestValidationError) -> JSONResponse:
        kind = request.headers.get("content-type", "")
        if e.body is not None and isinstance(e.body, bytes) and "json" not in kind:
            return JSONResponse({"error": f"Content-Type is {kind[:80] or 'missing'}; expected application/json"}, 422)
        found = list({(f["field"], f["message"]): f for f in map(_fault, e.errors())}.values())[:_MOST_FAULTS]
        shown = "; ".join(f"{d['field'] or 'body'}: {d['message']}" for d in found[:5])
        return JSONResponse({"error": shown, "fields": found}, 422)

    @app.exception_handler(Error)
    async def refused(request: Request, e: Error) -> JSONResponse:
        return JSONResponse({"error": str(e)}, 422)

    app.add_middleware(
        Guard,
        metrics=server.metrics,
        known=lambda path: path in app.openapi()["paths"],
        keys=settings.keys,
        max_body=_bytes(settings.max_body_mb),
        max_bodies=settings.max_waiting,
        uploads="/v1/documents",
        max_upload=_bytes(settings.max_upload_mb),
        patience=settings.timeout,
        hosts=settings.hosts,
        origins=settings.origins,
        log=settings.log,
    )
    if settings.origins:  # outermost: browsers ask it first, without a key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Retry-After", protocol.HEADER],
        )
    return app


def _bytes(megabytes: float) -> int:
    return int(1e6 * megabytes) + 4096  # of what stands around a text or file


def _fault(error: Mapping[str, Any]) -> dict[str, str]:
    """One of pydantic's complaints: the field as the request has it, what is wrong, and what was found."""
    if error["type"] == "json_invalid":
        return {"field": "", "message": f"not valid JSON: {error['ctx']['error']}, character {error['loc'][-1]}"}
    # of a union, pydantic's place names the type that did not fit; fields are numbers and names in small letters
    place = [str(p) for p in error["loc"][1:] if isinstance(p, int) or (p.isidentifier() and p.islower())]
    value = error.get("input")
    shown = "" if isinstance(value, Mapping | list) or error["type"] == "missing" else f"; found {str(value)[:40]!r}"
    return {"field": ".".join(place), "message": f"{error['msg']}{shown}"}


def _health(server: Server) -> APIRouter:
    routes = APIRouter(tags=["health"])

    @routes.head("/healthz", include_in_schema=False)
    @routes.get("/healthz", summary="The process runs")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @routes.head("/readyz", include_in_schema=False)
    @routes.get("/readyz", summary="It takes requests", responses={503: {"description": "Starting, or closing"}})
    async def readyz() -> JSONResponse:
        if not server.ready:
            return JSONResponse({"status": "not ready"}, 503)
        return JSONResponse({"status": "ready"})

    @routes.head("/v2/health/live", include_in_schema=False)
    @routes.get("/v2/health/live", summary="The process runs, as the Open Inference Protocol asks")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @routes.head("/v2/health/ready", include_in_schema=False)
    @routes.get("/v2/health/ready", summary="It takes requests, as the Open Inference Protocol asks")
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": server.ready}, 200 if server.ready else 503)

    return routes


def _metrics(server: Server) -> APIRouter:
    routes = APIRouter(tags=["health"])

    @routes.get("/metrics", summary="Counters for Prometheus")
    async def metrics() -> Response:
        if server.library is not None:
            server.metrics.documents.set(server.library.count)
        return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return routes


def _web() -> APIRouter:
    routes = APIRouter(include_in_schema=False)

    def page(name: str) -> Response:
        return Response((_WEB / name).read_bytes(), media_type=_PAGES[name], headers={"Cache-Control": "no-cache"})

    @routes.head("/")
    @routes.get("/")
    async def index() -> Response:
        return page("index.html")

    @routes.head("/docs")
    @routes.get("/docs")
    async def docs() -> Response:
        return page("docs.html")

    @routes.head("/web/{name}")
    @routes.get("/web/{name}")
    async def asset(name: str) -> Response:
        if name not in _PAGES:
            raise HTTPException(404, "no such file")
        return page(name)

    return routes
