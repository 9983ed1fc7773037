"""OpenAI's chat completions with `input_audio`: existing clients caption by changing the base URL."""

from __future__ import annotations

import base64
import binascii
import json
import re
import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field

from aligncap.serve.batching import Options
from aligncap.serve.http import in_thread, patiently
from aligncap.serve.service import Service
from aligncap.serve.uploads import Refused, decode
from aligncap.utils.io import Row

router = APIRouter()
INSTRUCTION_CHARACTERS = 1000


class InputAudio(BaseModel):
    """Sound in base64; the format is read from the sound itself."""

    data: str
    format: str = "wav"


class Part(BaseModel):
    """One part of a message."""

    type: str
    text: str | None = None
    input_audio: InputAudio | None = None


class Message(BaseModel):
    """One message of the talk."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None


class ChatRequest(BaseModel):
    """What is read of a request; other options of OpenAI's are passed over."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool = False
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_tokens: Annotated[int, Field(ge=1, le=256)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=256)] | None = None
    seed: int = 0
    n: Literal[1] = 1

    def sound_and_text(self) -> tuple[bytes, str]:
        """Sound and text of the last message of the user.

        Raises:
            Refused: 400, there is not exactly one sound, or it is no base64.
        """
        own = [m for m in self.messages if m.role == "user"]
        parts = own[-1].content if own else None
        listed = [p for p in parts if isinstance(p, Part)] if isinstance(parts, list) else []
        sounds = [p.input_audio for p in listed if p.type == "input_audio" and p.input_audio]
        if len(sounds) != 1:
            what = f"{len(sounds)} parts of type input_audio in the last user message; send exactly one"
            raise Refused(400, f"{what}, with its data in base64 (addresses are not fetched)")
        try:
            data = base64.b64decode(re.sub(r"^data:[^,]*,", "", sounds[0].data), validate=True)
        except (binascii.Error, ValueError):
            raise Refused(400, "input_audio.data is not base64") from None
        return data, " ".join(p.text for p in listed if p.type == "text" and p.text).strip()


@router.post("/v1/chat/completions")
async def chat(body: ChatRequest, request: Request) -> Response:
    """A caption as the assistant's answer.

    With `stream` it comes word by word once it is final: proofreading may write a caption again, and a client
    of OpenAI's cannot take words back.
    """
    service: Service = request.app.state.service
    model = service.name_of(body.model)
    data, text = body.sound_and_text()
    instruction = ""
    if service.instructions and text:
        if len(text) > INSTRUCTION_CHARACTERS:
            raise Refused(400, f"a text of {len(text)} characters; {INSTRUCTION_CHARACTERS} at the most")
        instruction = text
    clip = await in_thread(lambda: decode(data, service.limits))
    if clip is None:
        row = service.no_speech(model)
    else:
        limit = body.max_completion_tokens or body.max_tokens
        options = Options(
            model,
            max_new_tokens=limit,
            temperature=body.temperature,
            top_p=body.top_p,
            instruction=instruction,
        )
        row = await patiently(request, service.caption(clip, options, body.seed))
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
    if body.stream:
        return StreamingResponse(_chunks(head, row), media_type="text/event-stream")
    return JSONResponse(
        {
            **head,
            "object": "chat.completion",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": row["caption"]},
                    "finish_reason": "stop",
                }
            ],
            "usage": _usage(service, model, 0 if clip is None else len(clip), row),
            "aligncap": {"emotion": row["emotion"], "confidence": row["confidence"]},
        }
    )


def _usage(service: Service, model: str, samples: int, row: Row) -> dict[str, int]:
    processor = service.captioners[model].processor
    heard = processor.num_audio_tokens(samples) if samples else 0
    written = len(processor.tokenizer(row["caption"], add_special_tokens=False)["input_ids"])
    return {"prompt_tokens": heard, "completion_tokens": written, "total_tokens": heard + written}


async def _chunks(head: Row, row: Row) -> AsyncIterator[str]:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"

    yield chunk({"role": "assistant", "content": ""})
    for word in re.findall(r"\S+\s*", row["caption"]):
        yield chunk({"content": word})
    yield chunk({}, "stop")
    yield "data: [DONE]\n\n"
