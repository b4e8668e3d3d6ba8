"""Routes for questions to documents, and for the documents: upload, list, read, remove."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, File, HTTPException, Request, Response, UploadFile
from fastapi.responses import FileResponse
from pydantic import Field

from thinbert.corpus.ask import READ, Found, Place, ask
from thinbert.corpus.documents import text_document
from thinbert.corpus.index import Corpus, id_of
from thinbert.serve.batching import current_ticket
from thinbert.serve.library import Library, listed
from thinbert.serve.server import Body, Server, Text


class Ask(Body):
    """A question to the indexed documents, or to a text that comes with it."""

    question: Text
    context: Text | None = None
    top_k: int = Field(3, ge=1, le=50)
    passages: int = Field(READ, ge=1, le=200)
    threshold: float | None = Field(default=None, ge=0, le=1)


def routes(server: Server) -> APIRouter:
    api = APIRouter(prefix="/v1", tags=["documents"])

    def library() -> Library:
        if server.library is None:
            raise HTTPException(404, "this server has no documents; start it with --index FOLDER")
        return server.library

    @api.post("/ask", summary="A question to the documents, or to a text that comes with it")
    async def asked(request: Request, body: Ask) -> dict[str, Any]:
        model = server.model(None, answers=True)
        own = None if body.context is not None else library()

        def work() -> dict[str, Any]:
            corpus = Corpus.in_memory([text_document("context", body.context or "")]) if own is None else own.corpus
            found = ask(
                model, body.question, corpus, top_k=body.top_k, passages=body.passages, threshold=body.threshold
            )
            return _found(found, own)

        started = time.perf_counter()  # the loop's own clock steps by milliseconds
        found = await server.compute(request, work)
        answer = found | {"seconds": round(time.perf_counter() - started, 5)}
        server.note(request, asked=body.model_dump(), answered=answer["answer"])
        return answer

    @api.get("/documents", summary="What is indexed")
    async def documents(request: Request) -> list[dict[str, Any]]:
        held = library()
        return [asdict(e) for e in await server.compute(request, lambda: listed(held.entries()))]

    @api.post("/documents", summary="Add files", status_code=201)
    async def upload(request: Request, response: Response, files: Annotated[list[UploadFile], File()]) -> Any:
        held = library()
        added, refused, failure, ended = [], [], HTTPException(422), False
        for sent in files:
            # the client says what its bytes mean, and they need not be text
            name = (sent.filename or "document").encode(errors="replace").decode()

            # a file lies on disk until its turn comes
            def store(name: str = name, file: BinaryIO = sent.file) -> dict[str, Any]:
                entry, new = held.add(name, file.read(), wanted=_is_wanted)
                return asdict(entry) | {"new": new}

            try:
                if not ended:
                    added.append(await server.compute(request, store, changes=True))
                    continue
            except HTTPException as e:  # what was added before it is added, and said
                failure = e
                ended = e.status_code in (499, 503)  # the client, the server, or who else writes: the others fare alike
            refused.append({"name": name, "error": failure.detail})
        if not added:
            response.status_code = failure.status_code
            response.headers.update(failure.headers or {})
            return {"error": "; ".join(f"{r['error']}" for r in refused[:3]), "added": [], "refused": refused}
        return {"added": added, "refused": refused}

    @api.delete("/documents/{id}", summary="Remove an upload", status_code=204)
    async def remove(request: Request, id: str) -> None:
        held = library()
        await server.compute(request, lambda: held.remove(id), changes=True)

    @api.get("/documents/{id}/pages/{page}", summary="The text of a page, as it was indexed")
    async def page(request: Request, id: str, page: int) -> dict[str, Any]:
        held = library()
        if not 0 < page < 1 << 31:
            raise HTTPException(404, f"no page {page}")
        found, (before, after) = await server.compute(request, lambda: held.page(id, page))
        headings = [{"start": at, "text": heading} for at, heading in found.headings]
        place = {"number": found.number, "label": found.label, "before": before, "after": after}
        return {**place, "text": found.text, "headings": headings}

    @api.head("/documents/{id}/file", include_in_schema=False)
    @api.get("/documents/{id}/file", summary="The file itself")
    async def file(request: Request, id: str) -> FileResponse:
        held = library()
        path: Path = await server.compute(request, lambda: held.path(id))
        # shown in place only where a browser runs nothing of it; all else is downloaded
        kinds = {".pdf": "application/pdf", ".txt": "text/plain; charset=utf-8", ".md": "text/plain; charset=utf-8"}
        kind = kinds.get(path.suffix.lower())
        how = "inline" if kind else "attachment"
        return FileResponse(
            path,
            media_type=kind or "application/octet-stream",
            filename=held.name(str(path)),
            content_disposition_type=how,
            # the strict policy of pages keeps browsers from showing a PDF
            headers={"Content-Security-Policy": "frame-ancestors 'none'"} if kind == "application/pdf" else {},
        )

    return api


def _is_wanted() -> bool:
    ticket = current_ticket.get()
    return ticket is None or not ticket.cancelled


def _found(found: Found, library: Library | None) -> dict[str, Any]:
    def place(p: Place) -> dict[str, Any]:
        """Clients know a file by its number, and never learn where it lies here."""
        if library is None:
            return {**p.fields(), "document": None}
        return {**p.fields(), "file": library.name(p.file), "document": id_of(p.file)}

    stale = [id_of(path) for path in library.corpus.stale(found.files)] if library is not None else []
    return {
        "answer": found.citations[0].text if found.citations else None,
        "score": found.citations[0].score if found.citations else None,
        "no_answer": found.no_answer,
        "threshold": found.threshold,
        "citations": [c.fields(place) for c in found.citations],
        "rejected": found.rejected.fields(place) if found.rejected else None,
        "passages_read": found.read,
        "stale": stale,  # of the cited files: those that have changed since, or are gone
    }
