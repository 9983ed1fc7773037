"""A turn of a talk, event by event, for the page and for programs (`POST /v1/talk`)."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import TypeAdapter, ValidationError
from starlette.concurrency import iterate_in_threadpool
from starlette.datastructures import UploadFile

from aligncap.serve.api import event
from aligncap.serve.batching import Expired
from aligncap.serve.http import ClientLeft, answered, error_row, in_thread
from aligncap.serve.perception import CAPTIONER, MOST_PICTURES, Perceiver, Said, check_picture
from aligncap.serve.personas import (
    OWN,
    TEXT_CHARACTERS,
    Persona,
    clean,
    crisis_answer,
    help_for,
    in_crisis,
    own_persona,
)
from aligncap.serve.service import Service
from aligncap.serve.talk_prompt import SAID_NOTHING, Entry, Perception, messages
from aligncap.serve.uploads import Refused, decode
from aligncap.serve.writers import AnswerFailed, Writer
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row

HISTORY_CHARACTERS = 400_000  # of a history's JSON
LOOK = 0.25  # seconds after which it is looked whether the client is still there
T = TypeVar("T")
# A name and what belongs to it; None: nothing new yet.
Event = tuple[str, Row] | None
_HISTORY = TypeAdapter(list[Entry])
_log = logging.getLogger("aligncap.serve")
router = APIRouter()


@dataclass
class Turn:
    """A turn that was checked and decoded."""

    said: Said
    persona: Persona
    history: list[Entry]


class Talk:
    """Perceives turns and has them answered.

    Args:
        personas: by key; the first is the default, and lends its questions to personas of the user's own.
        name: of the language model, for the page.
    """

    def __init__(
        self,
        service: Service,
        perceiver: Perceiver,
        writer: Writer,
        personas: Mapping[str, Persona],
        name: str = "",
    ) -> None:
        self.service, self.perceiver, self.writer = service, perceiver, writer
        self.personas, self.name = dict(personas), name
        self._closing = threading.Event()
        self._writing = ThreadPoolExecutor(writer.at_once, "aligncap-answers")

    def persona(self, key: str, sentence: str = "") -> Persona:
        """That of a key; of OWN, or of none with a sentence, one in the user's own words.

        Raises:
            Refused: 404, there is none; 422, the sentence cannot be used.
        """
        first = next(iter(self.personas))
        if key == OWN or (sentence and not key):
            try:
                return own_persona(sentence, self.personas[first])
            except UserError as error:
                raise Refused(422, str(error)) from None
        if (key or first) not in self.personas:
            raise Refused(404, f"no such persona; there are {', '.join([*self.personas, OWN])}")
        return self.personas[key or first]

    def prepared(
        self, said: Said, persona: str = "", sentence: str = "", history: str | list[Row] = "[]"
    ) -> Turn:
        """A turn, checked and decoded.

        Raises:
            Refused: nothing was sent, or something that cannot be used.
        """
        who = self.persona(persona, sentence)
        if len(said.text) > TEXT_CHARACTERS:
            raise Refused(413, f"a text of {len(said.text)} characters; {TEXT_CHARACTERS} at the most")
        try:
            if isinstance(history, str):
                if len(history) > HISTORY_CHARACTERS:
                    raise Refused(413, f"history: over {HISTORY_CHARACTERS} characters; send the last turns")
                entries = _HISTORY.validate_json(history)
            else:
                entries = _HISTORY.validate_python(history)
        except ValidationError as error:
            first = error.errors()[0]
            raise Refused(422, f"history: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        if len(said.pictures) > MOST_PICTURES:
            raise Refused(413, f"{len(said.pictures)} pictures; {MOST_PICTURES} at the most")
        for picture in said.pictures:
            check_picture(picture)
        seen = said.pictures or said.video
        if said.sound is not None:
            said.clip = decode(said.sound, self.service.limits)
            if said.clip is None and not clean(said.text) and not seen:
                raise Refused(422, "nobody speaks in the clip; speak again, or write")
        elif not clean(said.text) and not seen:
            raise Refused(400, "an empty turn: send sound, a text or a picture")
        return Turn(said, who, entries)

    def events(self, turn: Turn) -> Generator[Event]:
        """What comes of a turn: "help" (where there are crisis words), "perception" (twice: "stage" is quick,
        then deep), "token" …, "error" (where there is no answer, or half of one), and "done" with the whole.

        Close it to give the turn up.
        """
        said, seen = turn.said, Perception()
        help_text = help_for(said.text)
        if help_text:
            yield "help", {"text": help_text}
        deep = self.perceiver.deep(said)
        try:
            if said.clip is not None:
                yield from self._caption(said, seen)
                self.perceiver.fused(seen)
                yield "perception", {"stage": "quick", **seen.as_row()}
            yield from self._senses(deep, seen)
        finally:
            deep.cancel()
        self.perceiver.fused(seen)
        yield "perception", {"stage": "deep", **seen.as_row()}
        words = clean(f"{said.text} {seen.transcript or ''}")
        if help_text is None and (help_text := help_for(words)):
            yield "help", {"text": help_text}
        pieces: list[str] = []
        failed: Row | None = None
        try:
            for piece in self._answer(turn, words, seen):
                if piece is None:
                    yield None
                else:
                    pieces.append(piece)
                    yield "token", {"text": piece}
        except AnswerFailed as error:
            _log.warning("no answer: %s", error.message)
            failed = {"status": error.status, "message": error.message}
            yield "error", failed
        answer = "".join(pieces).strip() or None
        user = {"role": "user", "text": words or SAID_NOTHING, "emotion": seen.mood}
        new: list[Row] = [user]
        new += [{"role": "assistant", "text": help_text, "help": True}] if help_text else []
        new += [{"role": "assistant", "text": answer}] if answer else []
        yield (
            "done",
            {
                "perception": seen.as_row(),
                "help": help_text,
                "answer": answer,
                "failed": failed,
                "history": [*(entry.model_dump(exclude_defaults=True) for entry in turn.history), *new],
            },
        )

    def _caption(self, said: Said, seen: Perception) -> Iterator[Event]:
        assert said.clip is not None
        try:
            row = yield from _waited(self.perceiver.caption(said.clip), 2 * self.service.timeout)
            self.perceiver.with_caption(seen, said.clip, row)
        except Exception as error:
            seen.missing[CAPTIONER] = self._why(error)

    def _senses(self, deep: Future[Perception], seen: Perception) -> Iterator[Event]:
        try:
            found = yield from _waited(deep, 2 * self.service.timeout)
        except Exception as error:
            seen.missing["senses"] = self._why(error)
            return
        seen.transcript, seen.box = found.transcript, found.box
        seen.scores |= found.scores
        seen.missing |= found.missing

    def _why(self, error: Exception) -> str:
        """What a client is told of an error, which does not end the turn."""
        message: str = json.loads(bytes(answered(self.service, error).body))["error"]["message"]
        if not isinstance(error, (Refused, Expired, UserError)):
            _log.error("a part of a turn failed: %s", type(error).__name__)
        return message

    def _answer(self, turn: Turn, words: str, seen: Perception) -> Iterator[str | None]:
        """Pieces of the answer, None where there is nothing new; last the question that it lacks."""
        users = [*(entry.text for entry in turn.history if entry.role == "user"), words]
        if not self.writer.careful and (fixed := crisis_answer(users)):
            yield fixed
            return
        asked = messages(turn.persona, turn.history, words, seen, self.perceiver.trust)
        pieces: queue.Queue[str | None] = queue.Queue()
        left, begun, answer = threading.Event(), threading.Event(), ""
        until = time.monotonic() + self.service.timeout
        room = TEXT_CHARACTERS

        def say(text: str) -> None:
            nonlocal room
            text = _printable(text)[:room]
            room -= len(text)
            pieces.put(text)

        def work() -> None:
            begun.set()
            self.writer.write(asked, say, lambda: left.is_set() or room <= 0 or self._closing.is_set())

        future = self._writing.submit(work)
        future.add_done_callback(lambda _: pieces.put(None))
        try:
            while True:
                try:
                    piece = pieces.get(timeout=LOOK)
                except queue.Empty:
                    if not begun.is_set() and time.monotonic() > until:
                        raise AnswerFailed(503, "the language model is busy; try again") from None
                    yield None
                    continue
                if piece is None:
                    break
                answer += piece
                yield piece
            future.result()
        except CancelledError:
            raise AnswerFailed(503, "the server is shutting down") from None
        except (AnswerFailed, GeneratorExit):
            raise
        except Exception as error:
            _log.error("the language model failed: %s", type(error).__name__)
            raise AnswerFailed(500, "the language model failed") from None
        finally:
            left.set()
            future.cancel()
        if not answer.strip():
            raise AnswerFailed(502, "the language model said nothing")
        question = turn.persona.question_for(words, answer, len(users))
        if question and not in_crisis(users):  # whom to ask for help is no matter for a persona's questions
            yield question if answer[-1].isspace() else f" {question}"

    def close(self) -> None:
        """Begin nothing new, and end what is being written."""
        self._closing.set()
        self.perceiver.close()
        self._writing.shutdown(wait=False, cancel_futures=True)


def _waited(future: Future[T], seconds: float) -> Generator[None, None, T]:
    """The result of work in another thread; gives None from time to time until then.

    Raises:
        Refused: 503, it takes longer than `seconds`, or was given up.
    """
    until = time.monotonic() + seconds
    try:
        while not wait([future], LOOK).done:
            if time.monotonic() > until:
                raise Refused(503, f"not done within {seconds:g} s")
            yield None
        return future.result()
    except CancelledError:
        raise Refused(503, "the server is shutting down") from None
    finally:
        future.cancel()


def _printable(text: str) -> str:
    """A piece of an answer without control characters; line breaks stay."""
    text = text.encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


async def _form(request: Request) -> tuple[Said, dict[str, str]]:
    """What a form holds: parts `file`, `picture` (several) and `video`, and its fields.

    Raises:
        Refused: 400, it is no form, or cannot be read; 422, it has a part or a field of another name.
    """
    said, fields = Said(), dict[str, str]()
    try:
        async with request.form(max_files=MOST_PICTURES + 2, max_fields=20) as form:
            for name, value in form.multi_items():
                data = await value.read() if isinstance(value, UploadFile) else None
                if name == "picture" and data is not None:
                    said.pictures.append(data)
                elif name == "file" and data is not None:
                    said.sound = data
                elif name == "video" and data is not None:
                    said.video = data
                elif name in ("text", "persona", "persona_text", "history", "stream") and data is None:
                    fields[name] = str(value)
                else:
                    raise Refused(422, f"{name[:40]!r}: no such part; see docs/talk.md")
    except Refused:
        raise
    except Exception as error:  # of the parser: a form that is none
        raise Refused(400, "the form cannot be read") from error
    said.text = fields.get("text", "")
    return said, fields


@router.post("/v1/talk")
async def talk(request: Request) -> Response:
    """An answer to a turn: JSON, or with `stream` the events of `Talk.events`."""
    own: Talk = request.app.state.talk
    said, fields = await _form(request)
    history, sentence = fields.get("history") or "[]", fields.get("persona_text", "")
    turn = await in_thread(lambda: own.prepared(said, fields.get("persona", ""), sentence, history))
    if fields.get("stream", "").lower() in ("1", "true", "yes"):
        return StreamingResponse(_streamed(own.events(turn)), media_type="text/event-stream")
    done: Row = {}
    events = own.events(turn)
    try:
        async for found in iterate_in_threadpool(events):
            if await request.is_disconnected():
                raise ClientLeft
            if found is not None and found[0] == "done":
                done = found[1]
    finally:
        await in_thread(events.close)
    if failed := done["failed"]:
        return JSONResponse(done | error_row(failed["status"], failed["message"]), failed["status"])
    return JSONResponse(done)


async def _streamed(events: Generator[Event]) -> AsyncIterator[str]:
    """Events as HTTP sends them; where nothing is new, a comment, which finds out whether the client left."""
    try:
        async for found in iterate_in_threadpool(events):
            yield ": working\n\n" if found is None else event(*found)
    except Exception as error:
        _log.error("a turn failed: %s", type(error).__name__)
        yield event("error", {"status": 500, "message": "the turn failed"})
    finally:
        await in_thread(events.close)


@router.get("/v1/personas")
async def personas(request: Request) -> Row:
    """The personas by key, with name and greeting."""
    own: Talk = request.app.state.talk
    return {key: {"name": who.name, "greeting": who.greeting} for key, who in own.personas.items()}
