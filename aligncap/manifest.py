"""The manifest: a JSONL file, one utterance a line. Every verb reads one, most write one.

The format is described for people in data/manifest.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Utterance:
    """One clip and what is known about it.

    `root` is the corpus folder (absolute, or relative to the manifest's own folder); `audio` is a path
    under it. `emotion` is a label of data/labels.yaml. `captions`, `clues` and `p_act` run in parallel:
    `clues[i]` are the emotion clues of `captions[i]`, `p_act[i]` the acoustic prompt made of them.
    `cues` are values measured from the samples (see aligncap/audio/cues.py), `cue_words` their wording.
    """

    id: str
    root: str
    audio: str
    corpus: str
    language: str = "en"
    speaker: str | None = None
    gender: str | None = None  # "female" or "male"
    transcript: str | None = None
    emotion: str | None = None
    intensity: str | None = None  # "normal" or "strong"
    duration: float | None = None  # seconds
    sha256: str | None = None  # of the file's bytes
    captions: list[str] = field(default_factory=list)
    clues: list[list[str]] = field(default_factory=list)
    p_act: list[str] = field(default_factory=list)
    cues: dict[str, float] = field(default_factory=dict)
    cue_words: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)  # whatever else the corpus says
