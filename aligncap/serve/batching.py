"""Requests of many clients on one model: they wait in a queue and are captioned together.

One thread runs the model. It takes the request that has waited longest, and with it whatever else is waiting
with the same options, up to a batch; a moment's wait lets the others of a burst come in.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from aligncap.inference.captioner import Captioner
from aligncap.inference.confidence import confidence_row
from aligncap.inference.sampling import sample_captions
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What a client may choose of a caption; requests of the same options share a batch.

    `model` is the name of one of the served; with `temperature` the caption is sampled, by the request's own
    seed, whatever else is in the batch.
    """

    model: str
    beams: int = 1
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 0.9
    emotions: tuple[str, ...] = ()
    instruction: str = ""
    confidence: bool = True


@dataclass
class _Waiting:
    """A request in the queue: a clip with its options, or (`call`) other work for the model's thread."""

    future: Future[Any]
    deadline: float
    clip: np.ndarray | None = None
    options: Options | None = None
    seed: int = 0
    on_text: Callable[[str], None] | None = None
    call: Callable[[], Any] | None = None


class Expired(Exception):
    """A request was not begun within its time."""


class Closed(Exception):
    """The server is shutting down and takes nothing new."""


class TextStreamer(BaseStreamer):
    """Passes on the text of each row of a batch while it is written.

    Args:
        sinks: of each row, given every new piece of text; None: nobody listens.
        ends: tokens that end a caption.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sinks: Sequence[Callable[[str], None] | None],
        ends: Sequence[int],
    ) -> None:
        self.tokenizer, self.sinks, self.ends = tokenizer, list(sinks), set(ends)
        self.tokens: list[list[int]] = [[] for _ in sinks]
        self.told = ["" for _ in sinks]
        self.ended: set[int] = set()
        self.prompt = True  # what comes first is not written by the model

    def put(self, value: Tensor) -> None:
        """One token of each row."""
        if self.prompt:
            self.prompt = False
            return
        for row, token in enumerate(value.reshape(-1).tolist()):
            if token in self.ends:
                self.ended.add(row)
            if row not in self.ended:
                self.tokens[row].append(token)
                self._tell(row)

    def _tell(self, row: int, last: bool = False) -> None:
        sink = self.sinks[row]
        if sink is None:
            return
        (text,) = self.tokenizer.batch_decode([self.tokens[row]], skip_special_tokens=True)
        text = text.lstrip()
        if text.endswith("\ufffd") and not last:  # in the middle of a character
            return
        if new := text[len(self.told[row]) :]:
            self.told[row] = text
            try:
                sink(new)
            except Exception:  # a client that left must not end the others' batch
                self.sinks[row] = None

    def end(self) -> None:
        """What was held back."""
        for row in range(len(self.sinks)):
            self._tell(row, last=True)


@dataclass
class Batcher:
    """The queue and its thread.

    Args:
        captioners: by name.
        batch_size: clips that are decoded at a time; wait: seconds that a batch waits for more.
        on_batch: told the size and the seconds of each batch.
    """

    captioners: Mapping[str, Captioner]
    batch_size: int = 16
    wait: float = 0.01
    on_batch: Callable[[int, float], None] = lambda size, seconds: None
    _queue: deque[_Waiting] = field(default_factory=deque)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _closing: bool = False
    _thread: threading.Thread | None = None

    def start(self) -> Batcher:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="aligncap-model", daemon=True)
        self._thread.start()
        return self

    def close(self, timeout: float | None = None) -> None:
        """Take nothing new, finish what is held, end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._queue)

    def caption(
        self,
        clip: np.ndarray,
        options: Options,
        *,
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
        timeout: float = 60.0,
    ) -> Future[Row]:
        """A caption of 16 kHz samples: {"caption", "emotion", "confidence", "probabilities"}.

        Args:
            on_text: given each new piece of the greedy caption while it is written, in the model's thread.
            timeout: seconds in which it must have begun; else the future has `Expired`.

        Raises:
            Closed: the server is shutting down.
        """
        future: Future[Row] = Future()
        deadline = time.monotonic() + timeout
        self._put(_Waiting(future, deadline, clip, options, seed, on_text))
        return future

    def call(self, work: Callable[[], T], timeout: float = 60.0) -> Future[T]:
        """Other work for the model's thread, in its turn.

        Raises:
            Closed: the server is shutting down.
        """
        future: Future[T] = Future()
        self._put(_Waiting(future, time.monotonic() + timeout, call=work))
        return future

    def _put(self, item: _Waiting) -> None:
        with self._changed:
            if self._closing:
                raise Closed
            self._queue.append(item)
            self._changed.notify_all()

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            live = []
            for item in batch:
                if not item.future.set_running_or_notify_cancel():
                    continue  # given up; from here on it cannot be
                if time.monotonic() > item.deadline:
                    item.future.set_exception(Expired())
                else:
                    live.append(item)
            if live:
                self._work(live)

    def _next(self) -> list[_Waiting] | None:
        """The batch that is next; None when there will be none."""
        with self._changed:
            while not self._queue:
                if self._closing:
                    return None
                self._changed.wait()
            first = self._queue[0]
            if first.call is not None:
                return [self._queue.popleft()]
            until = time.monotonic() + self.wait
            while (left := until - time.monotonic()) > 0 and len(self._alike(first)) < self.batch_size:
                if self._closing:
                    break
                self._changed.wait(left)
            batch = self._alike(first)
            taken = set(map(id, batch))
            self._queue = deque(item for item in self._queue if id(item) not in taken)
            return batch

    def _alike(self, first: _Waiting) -> list[_Waiting]:
        alike = [item for item in self._queue if item.call is None and item.options == first.options]
        return alike[: self.batch_size]

    def _work(self, batch: list[_Waiting]) -> None:
        start = time.monotonic()
        try:
            first = batch[0]
            found = [first.call()] if first.call is not None else self._captions(batch)
        except Exception as error:
            if len(batch) > 1:  # one clip that cannot be captioned must not take the others with it
                for item in batch:
                    self._work([item])
                return
            if not isinstance(error, UserError):
                _log.error("a request failed: %s", type(error).__name__)
            batch[0].future.set_exception(error)
            return
        for item, row in zip(batch, found, strict=True):
            item.future.set_result(row)
        if batch[0].call is None:
            self.on_batch(len(batch), time.monotonic() - start)

    def _captions(self, batch: Sequence[_Waiting]) -> list[Row]:
        options = batch[0].options
        assert options is not None
        captioner = self.captioners[options.model]
        if options.instruction:
            captioner = captioner.asking(options.instruction)
        # In the order of length, as the command has them, so that padding is least.
        order = sorted(range(len(batch)), key=lambda i: -len(_clip(batch[i])))
        items = [batch[i] for i in order]
        clips = [_clip(item) for item in items]
        rows = _sampled(captioner, clips, items, options) if options.temperature else None
        if rows is None:
            rows = _searched(captioner, clips, items, options)
        found: list[Row] = [{}] * len(batch)
        for place, row in zip(order, rows, strict=True):
            found[place] = row
        return found


def _clip(item: _Waiting) -> np.ndarray:
    assert item.clip is not None
    return item.clip


def _sampled(
    captioner: Captioner, clips: Sequence[np.ndarray], items: Sequence[_Waiting], options: Options
) -> list[Row]:
    drawn = sample_captions(
        captioner,
        clips,
        [str(item.seed) for item in items],
        num=1,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=0,
        max_new_tokens=options.max_new_tokens,
    )
    for item, (caption,) in zip(items, drawn, strict=True):
        if item.on_text is not None:
            item.on_text(caption)
    return [confidence_row(caption) for (caption,) in drawn]


@torch.inference_mode()
def _searched(
    captioner: Captioner, clips: Sequence[np.ndarray], items: Sequence[_Waiting], options: Options
) -> list[Row]:
    asked: dict[str, object] = {"num_beams": options.beams, "max_new_tokens": options.max_new_tokens}
    sinks = [item.on_text for item in items]
    if options.beams == 1 and any(sinks):
        ends = torch.as_tensor(captioner.model.generation_config.eos_token_id).reshape(-1).tolist()
        asked["streamer"] = TextStreamer(captioner.processor.tokenizer, sinks, ends)
    inputs = captioner.heard(clips, emotions=options.emotions)
    if not options.confidence:
        return [confidence_row(text) for text in captioner.said(inputs, options.emotions, **asked)]
    said = captioner.sure_captions(inputs, options.emotions, **asked)
    return [
        confidence_row(caption, named) | {"probabilities": named and named.probabilities}
        for caption, named in said
    ]
