"""What the tests of the service share: sound as bytes, a running service, a server on loopback."""

from __future__ import annotations

import io
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import soundfile
from tiny import make_model, voice

from aligncap import Captioner

# Whoever imports this is skipped as a whole where the extra is not installed.
for _package in ("fastapi", "uvicorn", "multipart", "prometheus_client", "gradio"):
    pytest.importorskip(_package, reason=f"the extra serve is not installed: no {_package}")

import uvicorn  # noqa: E402

from aligncap.serve.service import Service  # noqa: E402


def wav(samples=None, seconds=0.5, f0=150.0, rate=16_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, voice(seconds, f0) if samples is None else samples, rate, format="WAV")
    return buffer.getvalue()


def captioner(seed=0, **options) -> Captioner:
    options = {"max_response_tokens": 8, "emotions": ["angry", "sad"]} | options
    return Captioner(*make_model(seed=seed, **options), gate=True)


class Slow(Captioner):
    """Takes its time for a batch, whatever its size, as a GPU does."""

    seconds = 0.05
    batches: list[int]

    def heard(self, clips, *args, **options):
        self.__dict__.setdefault("batches", []).append(len(clips))
        time.sleep(self.seconds)
        return super().heard(clips, *args, **options)


def slow(seconds=0.05) -> Slow:
    found = Slow(*make_model(max_response_tokens=2), gate=True)
    found.seconds = seconds
    return found


def service(one=None, **options) -> Service:
    return Service({"tiny": one or captioner()}, **options)


@contextmanager
def running(app):
    """The base URL of an application on a free port of loopback."""
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", 0, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * 16_000), dtype=np.float32)
