"""What the tests of the talking app share: fakes of senses and a writer, and an endpoint with bad manners."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch
from served import service

from aligncap.senses.moments import SEVEN
from aligncap.senses.sense import Reading
from aligncap.serve.perception import Perceiver
from aligncap.serve.personas import read_personas
from aligncap.serve.talk import Talk


def scores(**shares: float) -> np.ndarray:
    """(7,): the named emotions have these shares, the others what is left."""
    rest = (1 - sum(shares.values())) / (7 - len(shares))
    return np.array([shares.get(name, rest) for name in SEVEN])


class FakeSense:
    """A sense that says what it was made with, and keeps the moments that it was shown."""

    width = 3

    def __init__(self, kind: str, said: np.ndarray | Exception, seconds: float = 0.0) -> None:
        self.kind, self.said, self.seconds, self.moments = kind, said, seconds, []

    def read(self, moments):
        time.sleep(self.seconds)
        self.moments += moments
        if isinstance(self.said, Exception):
            raise self.said
        return Reading(np.stack([self.said] * len(moments)), [torch.zeros(0, 3)] * len(moments))

    def boxes(self, pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[:2]
        return np.array([[0.9, width / 4, height / 4, width * 3 / 4, height * 3 / 4]])


class FakeWriter:
    """Says its pieces; keeps the messages and whether it was told to stop."""

    at_once = 2
    careful = True

    def __init__(self, *pieces: str, pause: float = 0.0, error: Exception | None = None) -> None:
        self.pieces, self.pause, self.error = pieces, pause, error
        self.asked: list[list[dict[str, str]]] = []
        self.stopped = threading.Event()

    def write(self, messages, say, enough) -> None:
        self.asked.append(list(messages))
        for piece in self.pieces:
            time.sleep(self.pause)
            if enough():
                self.stopped.set()
                return
            say(piece)
        if self.error:
            raise self.error


def talk(writer=None, senses=(), own=None, transcribe=None, **options) -> Talk:
    own = own or service()
    perceiver = Perceiver(own, {s.kind: s for s in senses}, transcribe=transcribe, **options)
    return Talk(own, perceiver, writer or FakeWriter("I hear you. ", "What then?"), read_personas(), "a fake")


def events(one: Talk, said, **options) -> list[tuple[str, dict]]:
    return [event for event in one.events(one.prepared(said, **options)) if event is not None]


def chunk(text: str | None, finish: str | None = None) -> bytes:
    """An event of a streamed chat completion."""
    delta = {} if text is None else {"content": text}
    row = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    return f"data: {json.dumps(row)}\n\n".encode()


@contextmanager
def endpoint(*pieces: bytes, status: int = 200, kind: str = "text/event-stream", pause: float = 0.0):
    """The base URL of an endpoint that answers everything with these pieces, and what it was asked."""
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            asked.append({"path": self.path, "key": self.headers["Authorization"]})
            asked[-1]["body"] = json.loads(self.rfile.read(length))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            try:
                for piece in pieces:
                    self.wfile.write(piece)
                    self.wfile.flush()
                    time.sleep(pause)
            except OSError:
                pass  # of a client that has had enough

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
