"""Who writes the answers of a talk: an OpenAI-compatible endpoint, or a small language model in this process.

Both take the messages of OpenAI's chat completions and say the answer piece by piece while it is written.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from aligncap.models.hub import load_pretrained, resolve
from aligncap.serve.batching import TextStreamer
from aligncap.utils.errors import UserError
from aligncap.utils.openai_endpoint import OPENAI_URL, key_and_url, room_option

ANSWER_TOKENS = 220
SMALL_TOKENS = 80  # of an answer of a small model, which strays where it goes on
STREAM_BYTES = 2_000_000  # of an endpoint's answer with all that frames it
Messages = Sequence[Mapping[str, str]]


class AnswerFailed(Exception):
    """No answer, or half of one: the HTTP status and why, without content."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Writer(Protocol):
    """Writes answers; `at_once` of them at a time. `careful`: it may be asked where somebody is in danger."""

    at_once: int
    careful: bool

    def write(self, messages: Messages, say: Callable[[str], None], enough: Callable[[], bool]) -> None:
        """Say an answer in pieces; give up where `enough` is true.

        Raises:
            AnswerFailed: it cannot be written, or not to its end.
        """


class Endpoint:
    """An OpenAI-compatible endpoint.

    Not by OpenAI's client: neither the bytes nor the seconds of a whole stream can be limited there.

    Args:
        url: None: that of the environment, else OpenAI's own. The key comes from the environment.
        timeout: seconds to connect and between two pieces, and four times that for a whole answer.

    Raises:
        UserError: no key, or an address that is none.
    """

    at_once = 16
    careful = True

    def __init__(self, url: str | None, model: str, timeout: float = 30.0) -> None:
        self._key, found = key_and_url("the talking app", url, None, "--endpoint")
        self.url, self.model, self.timeout = (found or OPENAI_URL).rstrip("/"), model, timeout

    def write(self, messages: Messages, say: Callable[[str], None], enough: Callable[[], bool]) -> None:
        """See `Writer`."""
        import httpx

        body = {"model": self.model, "messages": list(messages), "stream": True}
        body[room_option(self.url)] = ANSWER_TOKENS
        headers = {"Authorization": f"Bearer {self._key}"}
        try:
            with (
                httpx.Client(timeout=self.timeout) as client,
                client.stream("POST", f"{self.url}/chat/completions", json=body, headers=headers) as answer,
            ):
                if answer.status_code != 200:
                    raise AnswerFailed(502, f"the endpoint answered with status {answer.status_code}")
                kind = answer.headers.get("content-type", "").partition(";")[0].strip()
                lines = _lines(answer.iter_bytes(), time.monotonic() + 4 * self.timeout)
                if kind == "application/json":  # of a server that knows no streams
                    say(_content(_parsed("".join(lines)), "message"))
                elif kind == "text/event-stream":
                    _say_events(lines, say, enough)
                else:
                    raise AnswerFailed(502, "the endpoint's answer is no chat completion; is its path right?")
        except httpx.TimeoutException:
            raise AnswerFailed(504, f"the endpoint was silent for {self.timeout:g} s") from None
        except httpx.RemoteProtocolError:
            raise AnswerFailed(502, "the endpoint broke off") from None
        except (httpx.HTTPError, httpx.InvalidURL):
            raise AnswerFailed(502, "the endpoint cannot be reached") from None


def _lines(pieces: Iterator[bytes], until: float) -> Iterator[str]:
    """Lines of a stream within STREAM_BYTES and the time of `time.monotonic`."""
    rest, total = bytearray(), 0
    for piece in pieces:
        total += len(piece)
        if total > STREAM_BYTES:
            raise AnswerFailed(502, f"the endpoint sent more than {STREAM_BYTES} bytes")
        if time.monotonic() > until:
            raise AnswerFailed(504, "the endpoint was too slow")
        rest += piece
        if b"\n" in piece:
            *whole, rest = rest.split(b"\n")
            yield from (line.decode("utf-8", "replace").rstrip("\r") for line in whole)
    yield rest.decode("utf-8", "replace")


def _say_events(lines: Iterator[str], say: Callable[[str], None], enough: Callable[[], bool]) -> None:
    ended = False
    for line in lines:
        if enough():
            return
        name, _, data = line.partition(":")
        if name != "data":
            continue
        if data.strip() == "[DONE]":
            return
        row = _parsed(data)
        if piece := _content(row, "delta"):
            say(piece)
        choices = row.get("choices") or [{}]
        ended = ended or bool(choices[0].get("finish_reason"))
    if not ended:
        raise AnswerFailed(502, "the endpoint broke off")


def _parsed(text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or row.get("error"):
        raise AnswerFailed(502, "the endpoint's answer is no chat completion")
    return row


def _content(row: dict[str, Any], part: str) -> str:
    """Text of the first choice; empty where an event has none."""
    try:
        choices = row["choices"]
        found = choices[0][part].get("content") if choices else None
    except (KeyError, IndexError, TypeError, AttributeError):
        raise AnswerFailed(502, "the endpoint's answer is no chat completion") from None
    return found if isinstance(found, str) else ""


class LocalLLM:
    """A small instruct model through transformers, one answer at a time, said sentence by sentence.

    Args:
        name: folder, default name or hub name.

    Raises:
        UserError: no such model, or it has no chat template.
    """

    at_once = 1
    careful = False  # asked about death, SmolLM2-135M wrote what nobody in danger should read

    def __init__(self, name: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = resolve(name)
        self.tokenizer = load_pretrained(AutoTokenizer, folder)
        if not self.tokenizer.chat_template:
            raise UserError(
                f"{name}: has no chat template; name an instruct model as --llm, or an --endpoint"
            )
        self.model = load_pretrained(AutoModelForCausalLM, folder, dtype=dtype).to(device).eval()

    @torch.inference_mode()
    def write(self, messages: Messages, say: Callable[[str], None], enough: Callable[[], bool]) -> None:
        """See `Writer`."""
        inputs = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device)
        if inputs["input_ids"].shape[1] + SMALL_TOKENS > self.model.config.max_position_embeddings:
            raise AnswerFailed(413, "the talk is too long for this language model")
        sentences = _Sentences(say)
        ends = torch.as_tensor(self.model.generation_config.eos_token_id).reshape(-1).tolist()

        def stop(ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            return torch.full((len(ids),), enough(), device=ids.device)

        self.model.generate(
            **inputs,
            max_new_tokens=SMALL_TOKENS,
            do_sample=False,
            repetition_penalty=1.1,
            no_repeat_ngram_size=4,
            streamer=TextStreamer(self.tokenizer, [sentences.take], ends),
            stopping_criteria=[stop],
        )
        sentences.end()


class _Sentences:
    """Passes on whole sentences; of what is left at the end, only what comes without any before it."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.rest, self.said = say, "", False

    def take(self, piece: str) -> None:
        """The next piece of text."""
        self.rest += piece
        if ends := list(re.finditer(r"[.!?]+['\")]*\s+|[。！？]+", self.rest)):
            whole, self.rest = self.rest[: ends[-1].end()], self.rest[ends[-1].end() :]
            self.say(whole)
            self.said = True

    def end(self) -> None:
        """Nothing comes after this."""
        if not self.said or re.search(r"[.!?。！？]['\")]*\s*\Z", self.rest):
            self.say(self.rest)
