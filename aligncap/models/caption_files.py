"""Caption many files into a JSONL file: resumable, bad files reported, nothing finished ever lost."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from torch import Tensor

from aligncap.audio.conditions import make
from aligncap.audio.files import load_audio
from aligncap.errors import UserError
from aligncap.io import write_jsonl
from aligncap.journal import Journal
from aligncap.manifest import Utterance, audio_path, read_manifest
from aligncap.models.captioner import Captioner
from aligncap.models.speakers import speaker_name
from aligncap.progress import track
from aligncap.prompts.acoustic import measured_cues
from aligncap.tensor_cache import digest

__all__ = [
    "CONDITIONS",
    "Job",
    "Journal",
    "caption_jobs",
    "jobs_of_files",
    "jobs_of_manifest",
    "with_condition",
    "with_wrong_audio",
]

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


def jobs_of_manifest(manifest: str | Path) -> list[Job]:
    """One job an utterance."""
    return [
        Job(u.id, u.audio, audio_path(manifest, u), speaker_name(u), cues=measured_cues(u.cue_words))
        for u in read_manifest(manifest)
    ]


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


def caption_jobs(
    captioner: Captioner,
    jobs: list[Job],
    out: Path | None,
    settings: dict[str, Any],
    batch_size: int,
    *,
    every: Sequence[Job] | None = None,
    **options: Any,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Caption every job and write `out`, in the jobs' order.

    Args:
        out: JSONL to write; None writes nothing and keeps nothing.
        settings: what the captions depend on; a partial file of other settings is not taken up.
        every: all clips of the manifest as they are, which tell what each speaker sounds like, whatever part
            of them is captioned; default: `jobs`.
        options: of `generate`.

    Returns:
        rows {"id", "audio", "caption"}, with "condition", "heard" and "made" where that is not the clip as it
        is (see `Job`), and one message for each file that could not be captioned.
    """
    keys = [job.key for job in jobs]
    every = jobs if every is None else every
    clips = digest([(str(job.path), job.speaker, job.cues) for part in (jobs, every) for job in part])
    try:
        journal = Journal(out, {**settings, "clips": clips})
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from error
    todo = [i for i, key in enumerate(keys) if key not in journal.rows]
    faults: dict[int, str] = {}
    voices = _voices(captioner, every) if todo else {}
    try:
        for start in track(range(0, len(todo), 8 * batch_size), None, "captioning"):
            chosen = todo[start : start + 8 * batch_size]
            sounds, unusable = _sounds([jobs[i] for i in chosen], captioner.processor.max_seconds)
            faults |= {chosen[place]: fault for place, fault in unusable.items()}
            usable = [i for place, i in enumerate(chosen) if place not in unusable]
            means = [voices.get(jobs[i].speaker) for i in usable]
            cues = [jobs[i].cues for i in usable]
            for index, caption in captioner.stream(sounds, batch_size, means, cues, **options):
                if isinstance(caption, UserError):
                    faults[usable[index]] = str(caption)
                else:
                    journal.add(keys[usable[index]], jobs[usable[index]].row(caption))
    except OSError as error:
        journal.close(done=False)
        raise UserError(
            f"{journal.path}: cannot be written: {error.strerror}; what is done is kept there"
        ) from error
    except BaseException:
        journal.close(done=False)
        raise
    rows = [journal.rows[key] for key in keys if key in journal.rows]
    if out is not None:
        write_jsonl(out, rows)
    journal.close(done=True)
    return rows, [faults[i] for i in sorted(faults)]


def _voices(captioner: Captioner, jobs: Sequence[Job]) -> dict[str | None, Tensor | None]:
    """Mean of each speaker."""
    speakers = [job.speaker for job in jobs]
    means = captioner.speaker_means([job.path for job in jobs], speakers)
    return {speaker: mean for speaker, mean in zip(speakers, means, strict=True) if speaker is not None}


def _sounds(jobs: Sequence[Job], max_seconds: float) -> tuple[list[Path | np.ndarray], dict[int, str]]:
    """What the captioner hears: paths, or samples of all where any is made, so that lengths compare.

    Returns:
        The sounds of the usable jobs in order, and what is wrong with the others by their place.
    """
    if not any(job.made for job in jobs):
        return [job.path for job in jobs], {}
    sounds: list[Path | np.ndarray] = []
    faults = {}
    for place, job in enumerate(jobs):
        try:
            samples = load_audio(job.path, max_seconds=max_seconds)
        except UserError as error:
            faults[place] = str(error)
            continue
        # The clip's own seed: its noise depends on no other clip and on no order.
        sounds.append(
            make(job.made, samples, crc32(f"{job.seed} {job.id}".encode())) if job.made else samples
        )
    return sounds, faults
