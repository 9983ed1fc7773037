"""What is captioned, and what is heard for it: sound files, and clips of a manifest under a condition."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args
from zlib import crc32

import numpy as np

from aligncap.audio.files import load_audio
from aligncap.data.manifest import Utterance, audio_path, read_manifest
from aligncap.inference.conditions import MADE, other_clips
from aligncap.models.context import Kind, group_of
from aligncap.text.prompts import measured_cues
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import Row

SOUND_ENDINGS = (".wav", ".flac", ".ogg", ".mp3")
Condition = Literal[
    "right", "wrong", "silence", "noise", "same-words", "same-speaker", "same-emotion", "whisper"
]
CONDITIONS: tuple[str, ...] = get_args(Condition)


@dataclass(frozen=True)
class Job:
    """One caption to write: the clip's id, the file named in the output, and what is heard.

    `path` is the file that is heard, `group` the speaker or session beside whose clips, and `cues` what was
    measured in it. Under a condition other than "right", `heard` is the id of the clip that is heard, and
    `made` the kind of sound made of it (of `aligncap.inference.conditions.MADE`) with `seed`; None: the clip
    as it is. Of made sound nothing is measured.
    """

    id: str
    audio: str
    path: Path
    group: str | None = None
    cues: str | None = None
    condition: str = "right"
    heard: str | None = None
    made: str | None = None
    seed: int = 0

    @property
    def key(self) -> str:
        """What a caption is kept under."""
        key = f"{self.id}\t{self.path}"
        return key if self.made is None else f"{key}\t{self.made}\t{self.seed}"

    def sound(self, max_seconds: float) -> np.ndarray:
        """Samples at 16 kHz that are heard.

        Raises:
            UserError: the file cannot be used.
        """
        samples = load_audio(self.path, max_seconds=max_seconds)
        if self.made is None:
            return samples
        # The clip's own seed: its noise depends on no other clip and on no order.
        return MADE[self.made](samples, crc32(f"{self.seed} {self.id}".encode()))

    def row(self, caption: str) -> Row:
        """The line of the output."""
        row: Row = {"id": self.id, "audio": self.audio, "caption": caption}
        if self.condition != "right":
            row |= {"condition": self.condition, "heard": self.heard}
            if self.made is not None:
                row["made"] = self.made
        return row


def jobs_of_files(arguments: Sequence[str], kind: Kind | None = None) -> list[Job]:
    """Sound files named one by one or by folder (searched to the bottom), with `kind` all of one group.

    Raises:
        UserError: a folder holds no sound file.
    """
    jobs = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SOUND_ENDINGS)
            if not found:
                raise UserError(f"{path}: no sound files in this folder ({', '.join(SOUND_ENDINGS)})")
            jobs += [Job(str(p.relative_to(path).with_suffix("")), str(p), p) for p in found]
        else:
            jobs.append(Job(path.stem, argument, path))
    times = Counter(job.id for job in jobs)
    return [replace(job, id=job.audio if times[job.id] > 1 else job.id, group=kind) for job in jobs]


def job_of(manifest: str | Path, u: Utterance, kind: Kind | None = None) -> Job:
    """The caption of an utterance of a manifest."""
    return Job(u.id, u.audio, audio_path(manifest, u), group_of(u, kind), cues=measured_cues(u.cue_words))


def jobs_of_manifest(manifest: str | Path, kind: Kind | None = None) -> list[Job]:
    """One job an utterance."""
    return [job_of(manifest, u, kind) for u in read_manifest(manifest)]


def with_condition(
    jobs: Sequence[Job], utterances: Sequence[Utterance], condition: str, seed: int = 0
) -> list[Job]:
    """The same captions to write, under a condition of what is heard.

    - "right": each clip, as it is.
    - "wrong": another clip, by a random cyclic shift of a random order, so that none stays in its place.
    - "silence", "noise", "whisper": sound made of the clip (see `aligncap.inference.conditions`), of a
      speaker whom nobody knows: nothing of the voice may come in by another way.
    - "same-words": the words kept, the voice changed. Another recording of the same words with another
      emotion where there is one, by the same speaker or else by another of the same gender, drawn by `seed`;
      otherwise the clip's words in a whisper.
    - "same-speaker", "same-emotion": another clip of the speaker, with another emotion; another speaker's of
      the same emotion (`other_clips`).

    Args:
        utterances: what is known of the clips; without it, "same-words" whispers all.

    Raises:
        UserError: no such condition, or "wrong" with fewer than two clips.
        UserErrors: clips without another one of their speaker or emotion.
    """
    if condition == "right":
        return list(jobs)
    if condition not in CONDITIONS:
        raise UserError(f"condition {condition!r}: choose among {', '.join(CONDITIONS)}")
    if condition == "wrong":
        if len(jobs) < 2:
            raise UserError("wrong audio needs at least two clips")
        order = list(range(len(jobs)))
        random.Random(seed).shuffle(order)
        others = dict(zip(order, order[1:] + order[:1], strict=True))
        return [_hearing(job, jobs[others[i]], condition) for i, job in enumerate(jobs)]
    made = "whisper" if condition == "same-words" else condition
    at = {job.id: job for job in jobs}
    swaps = {} if condition in MADE else other_clips(condition, [u for u in utterances if u.id in at], seed)
    if condition.startswith("same-") and made == condition and (left := [i for i in at if i not in swaps]):
        raise UserErrors([f"{i}: no other clip for --condition {condition}; leave it out" for i in left])
    return [
        _hearing(job, at[swaps[job.id]], condition)
        if job.id in swaps
        else replace(job, group=None, cues=None, condition=condition, heard=job.id, made=made, seed=seed)
        for job in jobs
    ]


def _hearing(job: Job, other: Job, condition: str) -> Job:
    """`job` with the clip of `other` to hear."""
    return replace(other, id=job.id, audio=job.audio, condition=condition, heard=other.id)
