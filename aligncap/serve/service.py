"""The service behind page and API: models, their queue, limits, counts; no HTTP in it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from aligncap.audio.files import SAMPLE_RATE
from aligncap.inference.captioner import Captioner
from aligncap.inference.timeline import CaptionReader, make_timeline
from aligncap.inference.timeline import Options as TimelineOptions
from aligncap.inference.timeline_files import Timeline
from aligncap.serve.batching import Batcher, Closed, Expired, Options
from aligncap.serve.uploads import Limits, Refused
from aligncap.utils.io import Row

T = TypeVar("T")
SECONDS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)


@dataclass
class Service:
    """Models by name with one queue.

    Args:
        most: requests in hand at a time, waiting ones among them; more are refused with 429.
        timeout: seconds that a request may wait for its turn.
        instructions: whether a chat's text is put to the model, which must have been taught to answer.
        wait: seconds that a batch waits for more requests.
    """

    captioners: Mapping[str, Captioner]
    limits: Limits = field(default_factory=Limits)
    batch_size: int = 16
    most: int = 64
    timeout: float = 60.0
    instructions: bool = False
    wait: float = 0.01

    def __post_init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "aligncap_requests", "Requests by path and status.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "aligncap_request_seconds",
            "Seconds from request to answer.",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batches = Histogram(
            "aligncap_batch_clips",
            "Clips decoded at a time.",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )
        self.heard = Counter("aligncap_audio_seconds", "Seconds of sound captioned.", registry=self.registry)
        self.in_hand = 0
        Gauge("aligncap_in_hand", "Requests in hand.", registry=self.registry).set_function(
            lambda: self.in_hand
        )
        self.closing = False
        self._lock = threading.Lock()
        self._pace = 1.0  # seconds a clip, a moving average
        self.batcher = Batcher(self.captioners, self.batch_size, self.wait, self._note).start()

    def _note(self, clips: int, seconds: float) -> None:
        self.batches.observe(clips)
        self._pace += 0.2 * (seconds / clips - self._pace)

    @property
    def retry_after(self) -> int:
        """Seconds after which what is in hand should be done."""
        return max(1, min(60, round(self._pace * self.in_hand)))

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place among the requests in hand.

        Raises:
            Refused: 429, there is none; 503, the server is shutting down.
        """
        with self._lock:
            if self.closing:
                raise Refused(503, "the server is shutting down")
            if self.in_hand >= self.most:
                raise Refused(429, f"{self.most} requests are in hand; try again in {self.retry_after} s")
            self.in_hand += 1
        try:
            yield
        finally:
            with self._lock:
                self.in_hand -= 1

    def name_of(self, model: str | None) -> str:
        """The served name of a model; none is the first.

        Raises:
            Refused: 404, no model of that name is served.
        """
        if not model:
            return next(iter(self.captioners))
        if model not in self.captioners:
            raise Refused(404, f"no model {model!r} is served; there are {', '.join(self.captioners)}")
        return model

    def no_speech(self, model: str) -> Row:
        """The answer where nobody speaks."""
        said = self.captioners[model].no_speech
        return {"caption": said, "emotion": None, "confidence": None, "speech": False}

    def caption(
        self,
        clip: np.ndarray,
        options: Options,
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
    ) -> Future[Row]:
        """See `Batcher.caption`; sound is counted.

        Raises:
            Refused: 503, the server is shutting down.
        """
        self.heard.inc(len(clip) / SAMPLE_RATE)
        try:
            return self.batcher.caption(clip, options, seed=seed, on_text=on_text, timeout=self.timeout)
        except Closed:
            raise Refused(503, "the server is shutting down") from None

    def wait_for(self, future: Future[T], timeout: float | None = None) -> T:
        """The result of work in the queue, for threads.

        Raises:
            Refused: 503 or 504, it was not begun in time.
        """
        try:
            return future.result(timeout or 2 * self.timeout)
        except (Expired, FutureTimeout):
            future.cancel()
            raise too_late(self.timeout) from None
        except CancelledError:
            raise Refused(503, "the request was given up") from None

    def run(self, work: Callable[[], T]) -> T:
        """Work in the model's thread, waited for.

        Raises:
            Refused: as `wait_for`.
        """
        try:
            return self.wait_for(self.batcher.call(work, self.timeout))
        except Closed:
            raise Refused(503, "the server is shutting down") from None

    def timeline(self, path: str | Path, model: str, options: TimelineOptions) -> Timeline:
        """The timeline of a recording; its batches take turns with other requests.

        Raises:
            Refused: as `wait_for`; UserError: it cannot be read.
        """
        reader = CaptionReader(self.captioners[model], call=self.run)
        return make_timeline(path, reader, options)

    def close(self) -> None:
        """Finish what is held and take nothing new."""
        self.closing = True
        self.batcher.close()


def too_late(seconds: float) -> Refused:
    """What a request gets that waited too long."""
    return Refused(503, f"not begun within {seconds:g} s; try again later")
