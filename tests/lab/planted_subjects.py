"""Subjects whose faults are known, and the clips that they hear: labels are told by pitch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
from transformers import WhisperFeatureExtractor

from aligncap.audio.level import level_dbfs
from aligncap.data.manifest import Utterance, write_manifest
from aligncap.lab.asking import Asked, Reply
from aligncap.utils.errors import UserError

PITCH = {"angry": 360.0, "happy": 240.0, "neutral": 160.0, "sad": 105.0}  # Hz
LABELS = list(PITCH)
SENTENCES = ["Kids are talking by the door.", "Dogs are sitting by the door."]
EVEN = np.log(np.full(4, 0.2))
TO_NEUTRAL = np.log([0.02, 0.02, 0.74, 0.02])


def write_clips(folder: Path, speakers: int = 12, slowed: float = 1.0) -> Path:
    """A manifest of `speakers` x 4 clips of .3 s; `slowed` 1.5: of 24 kHz in files that say 16 kHz."""
    clips = []
    time = np.arange(round(0.3 * 16_000 * slowed)) / 16_000 / slowed
    for s in range(speakers):
        for label, hertz in PITCH.items():
            name = f"{s:02d}-{label}.wav"
            wave = 0.1 * np.sin(2 * np.pi * (hertz + s) * time)
            soundfile.write(folder / name, wave, 16_000)
            u = Utterance(name[:-4], ".", name, "made", speaker=f"s{s}", emotion=label)
            u.transcript = SENTENCES[s % 2]
            clips.append(u)
    write_manifest(folder / "m.jsonl", clips)
    return folder / "m.jsonl"


def hears_pitch(samples: np.ndarray) -> str | None:
    """The label whose pitch a clip has; None of silence, noise, and what is too soft."""
    if level_dbfs(samples) < -45:
        return None
    active = samples[np.abs(samples) > 0] if (samples != 0).mean() < 0.5 else samples
    power = np.abs(np.fft.rfft(active, n=1 << 14)) ** 2
    if (
        power.max() < 30 * power[power > 0.001 * power.max()].mean()
        and (power > 0.05 * power.max()).sum() > 100
    ):
        return None  # noise
    hertz = float(power.argmax() / (1 << 14) * 16_000)
    return min(PITCH, key=lambda label: abs(np.log(hertz / PITCH[label])))


Say = Callable[[np.ndarray, str | None, str | None], tuple[str, np.ndarray]]


class Planted:
    """Says what `say(samples, label that is heard, question)` gives: answer and log-masses of labels."""

    labels = LABELS
    language = "en"
    max_seconds = 29.0

    def __init__(self, say: Say, *, can_be_asked: bool = True) -> None:
        self.say, self.can_be_asked, self.asked = say, can_be_asked, 0

    def ask(self, clips: Sequence[np.ndarray], asked: Sequence[Asked]) -> list[list[Reply]]:
        rows = []
        for place, clip in enumerate(clips):
            heard = hears_pitch(clip)
            row = []
            for one in asked:
                question = one.questions[place]
                if question is not None and not self.can_be_asked:
                    raise UserError("its prompt has no place for a question")
                said, scores = self.say(clip, heard, question)
                row.append(Reply(said, [said] * one.samples, scores))
                self.asked += 1
            rows.append(row)
        return rows

    def features(self):
        return WhisperFeatureExtractor(), 80, 1500

    @contextmanager
    def _nothing(self):
        yield

    def with_hop(self, share: float):
        return None


def knows(heard: str | None, prior: np.ndarray = EVEN, nats: float = 3.0) -> np.ndarray:
    """Log-masses that favour the label heard by `nats` over the prior."""
    scores = prior + nats * np.array([label == heard for label in LABELS])
    return scores - np.logaddexp.reduce(scores)


def hearing(_clip, heard, question):
    """Hears, answers what it is asked, writes down one of two sentences by the clip's length parity."""
    if question and "capital" in question:
        return "Paris", EVEN
    if question and ("word for word" in question or "逐字" in question):
        return "no words", EVEN
    if question is None or question == "":
        return f"The voice sounds {heard or 'odd'}.", knows(heard)
    return heard or "neutral", knows(heard)


def always_neutral(_clip, _heard, question):
    return "The speaker sounds neutral." if not question else "neutral", knows("neutral")


def silently(_clip, heard, question):
    """Its probabilities know, under a prior that makes every answer neutral."""
    return "The speaker sounds neutral." if not question else "neutral", knows(heard, TO_NEUTRAL, 1.5)


def template(_clip, _heard, _question):
    return "The speaker talks in a clear and natural tone of voice today.", EVEN


def nonsense(clip, _heard, _question):
    number = int(np.abs(clip).sum() * 1e4) % 997
    return f"{number} things and {number % 7} more {number % 13}", EVEN


def random_labels(clip, _heard, question):
    draw = np.random.default_rng(int(np.abs(clip).sum() * 1e6) % 2**31)
    label = LABELS[draw.integers(4)]
    return f"It sounds {label}." if not question else label, knows(LABELS[draw.integers(4)])


def follows_the_question(_clip, heard, question):
    """Says what the question suggests, else what it hears."""
    if question and question.startswith("The speaker is "):
        return question.split()[3].rstrip("."), knows(heard)
    return hearing(_clip, heard, question)
