"""The HTTP API: captions, timelines, OpenAI's chat completions, models, health and metrics."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from aligncap import __version__
from aligncap.inference.timeline import Options as TimelineOptions
from aligncap.inference.timeline_files import as_csv, subtitles
from aligncap.serve.batching import Closed, Expired, Options
from aligncap.serve.chat import router as chat_router
from aligncap.serve.http import (
    ClientLeft,
    Guard,
    answered,
    error_response,
    error_row,
    in_thread,
    patiently,
    tokens,
)
from aligncap.serve.listening import candidates_of, cues_of
from aligncap.serve.service import Service
from aligncap.serve.uploads import Refused, check_length, decode, refuse_kind
from aligncap.text.emotions import labels
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row

router = APIRouter()
TIMELINE_FORMATS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "srt": ("application/x-subrip", subtitles),
    "vtt": ("text/vtt", partial(subtitles, vtt=True)),
    "csv": ("text/csv", as_csv),
}


class CaptionFields(BaseModel):
    """Options of `POST /v1/captions`, as query or form fields."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    stream: bool = False
    beams: Annotated[int, Field(ge=1, le=8)] = 1
    max_new_tokens: Annotated[int, Field(ge=1, le=256)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    seed: int = 0
    emotions: str = ""  # comma-separated
    cues: bool = False
    candidates: Annotated[int, Field(ge=0, le=16)] = 0

    def options(self, service: Service) -> Options:
        """Those of the queue.

        Raises:
            Refused: 404, no such model; 422, an emotion without words.
        """
        emotions = tuple(word for part in self.emotions.split(",") if (word := part.strip()))
        if unknown := [word for word in emotions if word not in labels()]:
            raise Refused(422, f"emotions: {unknown[0]!r} has no words; there are {', '.join(labels())}")
        return Options(
            service.name_of(self.model),
            self.beams,
            self.max_new_tokens,
            self.temperature,
            self.top_p,
            emotions,
        )


class TimelineFields(BaseModel):
    """Options of `POST /v1/timeline`, as query or form fields."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    format: Annotated[str, Field(pattern="^(json|srt|vtt|csv)$")] = "json"
    speakers: Annotated[int, Field(ge=0, le=16)] = 1
    dwell: Annotated[float, Field(gt=0, le=3600)] = TimelineOptions.dwell


def service_of(request: Request) -> Service:
    """The service behind the application."""
    service: Service = request.app.state.service
    return service


async def upload(request: Request) -> tuple[bytes, dict[str, str]]:
    """Sound and options of a request: the body as it is, or the part `file` of a form.

    Raises:
        Refused: 400, no sound, or a form that cannot be read.
    """
    fields = dict(request.query_params)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await request.body(), fields
    try:
        async with request.form(max_files=1, max_fields=20) as form:
            files = [value for value in form.values() if isinstance(value, UploadFile)]
            fields |= {name: value for name, value in form.items() if isinstance(value, str)}
            if not files:
                raise Refused(400, "the form has no file; send it as the part `file`")
            return await files[0].read(), fields
    except Refused:
        raise
    except Exception as error:  # of the parser: a form that is none
        raise Refused(400, "the form cannot be read") from error


def event(name: str, row: Row) -> str:
    """A server-sent event."""
    return f"event: {name}\ndata: {json.dumps(row, ensure_ascii=False)}\n\n"


@router.post("/v1/captions")
async def captions(request: Request) -> Response:
    """A caption of one clip: JSON, or with `stream` events `token` and `done`."""
    service = service_of(request)
    data, raw = await upload(request)
    fields = CaptionFields.model_validate(raw)
    options = fields.options(service)
    clip = await in_thread(lambda: decode(data, service.limits))
    if clip is None:
        row = service.no_speech(options.model)
        if fields.stream:
            return StreamingResponse(iter([event("done", row)]), media_type="text/event-stream")
        return JSONResponse(row)

    async def finished(row: Row) -> Row:
        row = {"model": options.model, **row}
        if fields.cues or fields.candidates:
            cues = await in_thread(lambda: cues_of(clip, row["caption"]))
            row["cues"] = cues
            if fields.candidates:
                captioner = service.captioners[options.model]
                work = partial(
                    candidates_of,
                    captioner,
                    clip,
                    cues["relative"],
                    row["caption"],
                    fields.candidates,
                    fields.seed,
                )
                row["candidates"] = await patiently(request, service.batcher.call(work, service.timeout))
        return row

    if not fields.stream:
        future = service.caption(clip, options, fields.seed)
        return JSONResponse(await finished(await patiently(request, future)))

    loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str | None]()

    def tell(piece: str | None) -> None:
        loop.call_soon_threadsafe(pieces.put_nowait, piece)

    future = service.caption(clip, options, fields.seed, on_text=tell)
    future.add_done_callback(lambda _: tell(None))
    return StreamingResponse(_events(service, future, pieces, finished), media_type="text/event-stream")


async def _events(
    service: Service,
    future: Future[Row],
    pieces: asyncio.Queue[str | None],
    finished: Callable[[Row], Any],
) -> AsyncIterator[str]:
    """`token` events while the caption is written, then `done`; a caption that proofreading wrote again is
    told by "rewritten": the one in `done` counts."""
    told = ""
    try:
        while (piece := await pieces.get()) is not None:
            told += piece
            yield event("token", {"text": piece})
        row = await finished(await asyncio.wrap_future(future))
        yield event("done", row | {"rewritten": bool(told) and " ".join(told.split()) != row["caption"]})
    except Exception as error:
        answer = answered(service, error)
        yield event("error", json.loads(bytes(answer.body)))
    finally:
        future.cancel()  # of a client that left before its turn


@router.post("/v1/timeline")
async def timeline(request: Request) -> Response:
    """The timeline of a recording: JSON, or subtitles or CSV by `format`."""
    service = service_of(request)
    data, raw = await upload(request)
    fields = TimelineFields.model_validate(raw)
    model = service.name_of(fields.model)
    refuse_kind(data[:16])
    limit = service.limits.recording_seconds
    with tempfile.TemporaryDirectory(prefix="timeline-") as folder:
        path = Path(folder) / "recording"
        await in_thread(lambda: path.write_bytes(data))
        check_length(path, limit, "cut it, or use `aligncap timeline`")
        options = TimelineOptions(fields.speakers, fields.dwell, batch_size=service.batch_size)
        found = await in_thread(lambda: service.timeline(path, model, options))
    if fields.format != "json":
        kind, write = TIMELINE_FORMATS[fields.format]
        return Response(write(found), media_type=kind)
    return JSONResponse({"model": model, **found.as_row()})


@router.get("/v1/models")
async def models(request: Request) -> Row:
    """The models that are served, as OpenAI lists them."""
    rows = [
        {"id": name, "object": "model", "owned_by": "aligncap"} for name in service_of(request).captioners
    ]
    return {"object": "list", "data": rows}


@router.get("/health")
async def health(request: Request) -> JSONResponse:
    """200 while requests are taken, else 503."""
    service = service_of(request)
    row = {"status": "closing" if service.closing else "ok", "in_hand": service.in_hand}
    return JSONResponse(row | {"version": __version__}, 503 if service.closing else 200)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Counts in Prometheus' text format."""
    return Response(generate_latest(service_of(request).registry), media_type=CONTENT_TYPE_LATEST)


def make_app(service: Service, known: Sequence[str] | None = None) -> FastAPI:
    """The application of a service.

    Args:
        known: bearer tokens that are accepted; by default those of the environment, see `http.tokens`.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await in_thread(service.close)

    app = FastAPI(title="AlignCap", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.include_router(router)
    app.include_router(chat_router)
    app.add_middleware(Guard, service=service, known=tokens() if known is None else known)

    @app.exception_handler(ClientLeft)
    async def left(_: Request, __: Exception) -> Response:
        return Response(status_code=499)

    @app.exception_handler(ValidationError)
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, (ValidationError, RequestValidationError))
        parts = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        return JSONResponse(error_row(422, "; ".join(parts)), 422)

    async def failed(_: Request, error: Exception) -> Response:
        return answered(service, error)

    for kind in (Refused, Expired, Closed, UserError, Exception):
        app.add_exception_handler(kind, failed)

    @app.exception_handler(404)
    async def missing(_: Request, __: Exception) -> Response:
        return error_response(404, "no such path; see docs/serve.md")

    return app
