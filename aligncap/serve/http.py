"""HTTP's side of the service: bodies within limits, tokens, answers to errors, clients that leave."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aligncap.serve.batching import Closed, Expired
from aligncap.serve.service import Service, too_late
from aligncap.serve.uploads import Refused
from aligncap.utils.errors import UserError

TOKENS_VARIABLE = "ALIGNCAP_TOKENS"  # comma-separated; none: everybody may ask
GUARDED = ("/v1/", "/metrics")
GONE = 499  # nginx's code for a client that left, for the counts alone
T = TypeVar("T")
_log = logging.getLogger("aligncap.serve")


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


def tokens() -> list[str]:
    """The bearer tokens that are accepted; none: everybody may ask."""
    return [token for word in os.environ.get(TOKENS_VARIABLE, "").split(",") if (token := word.strip())]


def accepted(given: str, known: Sequence[str]) -> bool:
    """Whether a token is one of the known, compared in constant time."""
    return any([hmac.compare_digest(given.encode(), token.encode()) for token in known])


def error_row(status: int, message: str) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kind = (
        "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    )
    return {"error": {"message": message, "type": kind, "param": None, "code": str(status)}}


def error_response(status: int, message: str, retry_after: int | None = None) -> JSONResponse:
    """An error with its status; `retry_after` in seconds."""
    headers = {"Retry-After": str(retry_after)} if retry_after else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_row(status, message), status, headers)


class Guard:
    """Before a request's body is read: its token, its place in the queue, its size; after: a line in the log.

    The line names method, path, status and seconds: nothing of what was sent or answered.
    """

    def __init__(self, app: ASGIApp, service: Service, known: Sequence[str]) -> None:
        self.app, self.service, self.known = app, service, known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request of /v1 or /metrics; all else is passed on."""
        if scope["type"] != "http" or not scope["path"].startswith(GUARDED):
            await self.app(scope, receive, send)
            return
        start, status = time.monotonic(), GONE

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path = scope["path"] if scope["path"] in PATHS else "other"
        try:
            await self._admit(scope, receive, noted)
        finally:
            seconds = time.monotonic() - start
            self.service.requests.labels(path, str(status)).inc()
            self.service.seconds.labels(path).observe(seconds)
            _log.info("%s %s %d %.2f s", scope["method"], path, status, seconds)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        given = headers.get(b"authorization", b"").decode("latin-1")
        if self.known and not accepted(given.removeprefix("Bearer ").strip(), self.known):
            await error_response(401, "a bearer token is needed")(scope, receive, send)
            return
        if scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        most = self.service.limits.bytes
        if scope["path"] == "/v1/chat/completions":
            most = most * 4 // 3 + 100_000  # base64, and what is around it
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > most:
            await error_response(413, f"the body has more than {most} bytes")(scope, receive, send)
            return
        try:
            with self.service.admitted():
                await self.app(scope, _counted(receive, most), send)
        except Refused as refused:
            after = self.service.retry_after if refused.status in (429, 503) else None
            await error_response(refused.status, refused.message, after)(scope, receive, send)


PATHS = ("/v1/captions", "/v1/timeline", "/v1/chat/completions", "/v1/talk", "/v1/models", "/metrics")


def _counted(receive: Receive, most: int) -> Receive:
    """`receive` that gives up where a body is longer than it said."""
    total = 0

    async def counted() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > most:
            raise Refused(413, f"the body has more than {most} bytes")
        return message

    return counted


def answered(service: Service, error: Exception) -> JSONResponse:
    """The answer to an error of a request."""
    if isinstance(error, Expired):
        error = too_late(service.timeout)
    if isinstance(error, Refused):
        after = service.retry_after if error.status in (429, 503) else None
        return error_response(error.status, error.message, after)
    if isinstance(error, UserError):
        return error_response(422, str(error))
    if isinstance(error, Closed):
        return error_response(503, "the server is shutting down")
    return error_response(500, "the request failed")


async def patiently(request: Request, future: Future[T], every: float = 0.25) -> T:
    """The result of work in the queue; the work is given up when the client leaves.

    Raises:
        ClientLeft: nobody waits for it any more.
    """
    waited = asyncio.wrap_future(future)
    while True:
        done, _ = await asyncio.wait({waited}, timeout=every)
        if done:
            return waited.result()
        if await request.is_disconnected():
            future.cancel()
            raise ClientLeft


async def in_thread(work: Callable[[], T]) -> T:
    """Blocking work off the event loop."""
    from starlette.concurrency import run_in_threadpool

    return await run_in_threadpool(work)
