"""Which captions are to be written, and what is heard for each: the clip, or something in its place."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from aligncap.audio.conditions import make
from aligncap.audio.files import load_audio
from aligncap.errors import UserError
from aligncap.manifest import Utterance, audio_path, read_manifest
from aligncap.models.speakers import speaker_name
from aligncap.prompts.acoustic import measured_cues

SOUND_ENDINGS = (".wav", ".flac", ".ogg", ".mp3")
CONDITIONS = ("right", "wrong", "silence", "noise", "same-words", "whisper")


@dataclass(frozen=True)
class Job:
    """One caption to write: the clip's id, the file named in the output, and what is heard.

    `path` is the file that is heard, `speaker` whose voice is in it ("corpus/speaker") and `cues` what was
    measured in it. Under a condition other than "right", `heard` is the id of the clip that is heard, and
    `made` the kind of sound made of it (of `aligncap.audio.conditions.MADE`) with `seed`; None: the clip as
    it is. Of made sound nothing is measured.
    """

    id: str
    audio: str
    path: Path
    speaker: str | None = None
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
        return make(self.made, samples, crc32(f"{self.seed} {self.id}".encode()))

    def row(self, caption: str) -> dict[str, Any]:
        """The line of the output."""
        row: dict[str, Any] = {"id": self.id, "audio": self.audio, "caption": caption}
        if self.condition != "right":
            row |= {"condition": self.condition, "heard": self.heard}
            if self.made is not None:
                row["made"] = self.made
        return row


def jobs_of_files(arguments: Sequence[str], same_speaker: bool = False) -> list[Job]:
    """Sound files named one by one or by folder (searched to the bottom), of one speaker or of unknown ones.

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
    jobs = [replace(job, id=job.audio) if times[job.id] > 1 else job for job in jobs]
    return [replace(job, speaker="the speaker") for job in jobs] if same_speaker else jobs


def job_of(manifest: str | Path, u: Utterance) -> Job:
    """The caption of an utterance of a manifest."""
    return Job(u.id, u.audio, audio_path(manifest, u), speaker_name(u), cues=measured_cues(u.cue_words))


def jobs_of_manifest(manifest: str | Path) -> list[Job]:
    """One job an utterance."""
    return [job_of(manifest, u) for u in read_manifest(manifest)]


def with_condition(
    jobs: Sequence[Job], utterances: Sequence[Utterance], condition: str, seed: int = 0
) -> list[Job]:
    """The same captions to write, under a condition of what is heard.

    - "right": each clip, as it is.
    - "wrong": another clip (see `with_wrong_audio`).
    - "silence", "noise", "whisper": sound made of the clip (see `aligncap.audio.conditions`), of a speaker
      whom nobody knows: nothing of the voice may come in by another door.
    - "same-words": the words kept, the voice changed. Another recording of the same words with another
      emotion where there is one, by the same speaker or else by another of the same gender, drawn by `seed`;
      otherwise the clip's words in a whisper.

    Args:
        utterances: what is known of the clips; without it, "same-words" whispers all.

    Raises:
        UserError: no such condition, or "wrong" with fewer than two clips.
    """
    if condition == "right":
        return list(jobs)
    if condition == "wrong":
        return with_wrong_audio(list(jobs), seed)
    if condition not in CONDITIONS:
        raise UserError(f"condition {condition!r}: choose among {', '.join(CONDITIONS)}")
    made = "whisper" if condition == "same-words" else condition
    changed = [
        replace(job, speaker=None, cues=None, condition=condition, heard=job.id, made=made, seed=seed)
        for job in jobs
    ]
    if condition == "same-words":
        at = {job.id: job for job in jobs}
        swaps = _same_words([u for u in utterances if u.id in at], seed)
        for place, job in enumerate(jobs):
            if job.id in swaps:
                changed[place] = _hearing(job, at[swaps[job.id]], condition)
    return changed


def _hearing(job: Job, other: Job, condition: str) -> Job:
    return replace(
        job,
        path=other.path,
        speaker=other.speaker,
        cues=other.cues,
        condition=condition,
        heard=other.id,
    )


def _same_words(utterances: Sequence[Utterance], seed: int) -> dict[str, str]:
    """For each id another one: the same words with another emotion, of the same speaker or gender."""
    groups: dict[tuple[str, str, str], list[Utterance]] = defaultdict(list)
    for u in utterances:
        words = "".join(c if c.isalnum() else " " for c in (u.transcript or "").casefold()).split()
        if words and u.emotion:
            groups[u.corpus, u.language, " ".join(words)].append(u)
    swaps = {}
    for group in groups.values():
        for u in group:
            others = [v for v in group if v.emotion != u.emotion]
            own = [v for v in others if u.speaker is not None and v.speaker == u.speaker]
            chosen = own or [v for v in others if u.gender is not None and v.gender == u.gender]
            if chosen:
                swaps[u.id] = random.Random(f"{seed} {u.id}").choice(chosen).id
    return swaps


def with_wrong_audio(jobs: list[Job], seed: int) -> list[Job]:
    """Every id hears another id's clip.

    A random cyclic shift of a random order, so no clip stays in place.
    """
    if len(jobs) < 2:
        raise UserError("wrong audio needs at least two clips")
    order = list(range(len(jobs)))
    random.Random(seed).shuffle(order)
    heard = dict(zip(order, order[1:] + order[:1], strict=True))
    others = [jobs[heard[i]] for i in range(len(jobs))]
    return [_hearing(job, other, "wrong") for job, other in zip(jobs, others, strict=True)]
