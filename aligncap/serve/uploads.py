"""What clients send, looked at before it is decoded: its size, its kind, its length."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aligncap.audio import speech
from aligncap.audio.files import AudioError, load_audio, open_sound
from aligncap.inference.captioner import is_silent

MOST_CHANNELS = 16
# Beginnings of files: what libsndfile reads, and what people send instead.
SOUND = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b"ID3", b"FORM", b"caff", b".snd")
OTHER = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x1a\x45\xdf\xa3": "webm or mkv video",
    b"%PDF": "a PDF",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"<": "text",
    b"{": "text",
}


class Refused(Exception):
    """An upload that is not taken: the HTTP status and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Limits:
    """What is taken: bytes of an upload, seconds of a clip and of a recording."""

    bytes: int = 25_000_000
    clip_seconds: float = 29.0
    recording_seconds: float = 3600.0


def refuse_kind(head: bytes) -> None:
    """
    Args:
        head: the first 16 bytes or more.

    Raises:
        Refused: 415, the content is not sound of a kind that is read; 400, there is none.
    """
    remedy = "send wav, flac, ogg or mp3"
    if not head:
        raise Refused(400, f"no sound was sent; {remedy}")
    if head[:4] in (b"RIFF", b"RIFX") and head[8:12] not in (b"WAVE", b"WAVEfmt "[:4]):
        raise Refused(415, f"a RIFF file that is no wav (an AVI video?); {remedy}")
    if head[4:8] == b"ftyp":
        raise Refused(415, f"mp4 or m4a; {remedy}: take the sound out of a video first")
    mpeg = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[:3] != b"\xff\xd8\xff"
    if not (mpeg or head.startswith(SOUND)):
        kind = next((name for start, name in OTHER.items() if head.startswith(start)), "no sound file")
        raise Refused(415, f"{kind}, whatever its name; {remedy}")


def check_length(source: bytes | str | Path, most: float, advice: str) -> float:
    """Seconds of a sound file, by its header; no samples are read.

    Raises:
        Refused: 413, it is longer than `most` seconds; 415, it cannot be read or has too many channels.
    """
    try:
        with open_sound(source, "upload") as file:
            seconds, channels = file.frames / file.samplerate, file.channels
    except AudioError as error:
        raise Refused(415, str(error)) from None
    if channels > MOST_CHANNELS:
        raise Refused(415, f"{channels} channels; {MOST_CHANNELS} at the most")
    if seconds > most:
        raise Refused(413, f"{seconds:.0f} s of sound, the limit is {most:g} s; {advice}")
    return seconds


def decode(data: bytes, limits: Limits) -> np.ndarray | None:
    """16 kHz samples of a clip, None where nobody speaks.

    Raises:
        Refused: 413, 415, or 422: silence apart, sound that cannot be used (too short, clipped, corrupt).
    """
    refuse_kind(data[:16])
    check_length(data, limits.clip_seconds, "cut it, or send it to /v1/timeline")
    try:
        samples = load_audio(data, name="upload", max_seconds=limits.clip_seconds)
    except AudioError as error:
        if is_silent(error):
            return None
        raise Refused(413 if error.kind == "long" else 422, str(error)) from None
    return samples if speech.has_speech(samples) else None


def wav_of(rate: int, samples: np.ndarray) -> bytes:
    """Samples as a wav file's content."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
