"""Many clips captioned: shared over processes, bad files reported, nothing finished ever lost."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from aligncap.audio.files import load_audio
from aligncap.data.manifest import Utterance, audio_path, read_manifest
from aligncap.inference.captioner import Captioner, batches_by_size
from aligncap.inference.conditions import make
from aligncap.models.speakers import speaker_name
from aligncap.text.prompts import measured_cues
from aligncap.utils.distributed import ALONE, Group
from aligncap.utils.errors import UserError
from aligncap.utils.io import write_jsonl
from aligncap.utils.journal import Journal, journaled
from aligncap.utils.tensor_cache import digest

SOUND_ENDINGS = (".wav", ".flac", ".ogg", ".mp3")
CONDITIONS = ("right", "wrong", "silence", "noise", "same-words", "whisper")


@dataclass(frozen=True)
class Job:
    """One caption to write: the clip's id, the file named in the output, and what is heard.

    `path` is the file that is heard, `speaker` whose voice is in it ("corpus/speaker") and `cues` what was
    measured in it. Under a condition other than "right", `heard` is the id of the clip that is heard, and
    `made` the kind of sound made of it (of `aligncap.inference.conditions.MADE`) with `seed`; None: the clip
    as it is. Of made sound nothing is measured.
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
    - "silence", "noise", "whisper": sound made of the clip (see `aligncap.inference.conditions`), of a
      speaker whom nobody knows: nothing of the voice may come in by another door.
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


Say = Callable[[list[np.ndarray], list[Job], list[Tensor | None]], Sequence[Any]]


def over_clips(
    captioner: Captioner,
    jobs: Sequence[Job],
    journal: Journal,
    say: Say,
    batch_size: int,
    title: str,
    *,
    every: Sequence[Job],
    group: Group = ALONE,
) -> list[str]:
    """What `say` makes of each job's clip, kept in `journal` under the job's key.

    Clips always meet in the same batches, of like length and the longest first, so that neither the number of
    processes nor a stop on the way changes what is said.

    Args:
        say: (samples at 16 kHz, their jobs, the mean of each one's speaker) of a batch to one row a clip.
        every: all clips of the manifest, which tell what each speaker sounds like.

    Returns:
        One message for each file that cannot be used, the same in every process.
    """
    at = {job.key: job for job in jobs}
    keys = list(at)
    batches = [
        [keys[i] for i in batch] for batch in batches_by_size([job.path for job in at.values()], batch_size)
    ]
    left = {at[key].speaker for batch in batches if any(k not in journal for k in batch) for key in batch}
    speakers = [job.speaker for job in every]
    means = captioner.speaker_means([job.path for job in every], speakers, wanted=left, group=group)
    voices = dict(zip(speakers, means, strict=True)) | {None: None}
    errors: dict[str, str] = {}

    def compute(batch: Sequence[str]) -> dict[str, Any]:
        heard: dict[str, np.ndarray] = {}
        for key in batch:
            try:
                heard[key] = at[key].sound(captioner.processor.max_seconds)
            except UserError as error:
                errors[key] = str(error)
        if all(key in journal for key in heard):
            return {}
        own = [at[key] for key in heard]
        rows = say(list(heard.values()), own, [voices.get(job.speaker) for job in own])
        return dict(zip(heard, rows, strict=True))

    group.share_out(journal, batches, compute, title)
    errors = group.merge(errors)
    return [errors[key] for key in keys if key in errors]


def caption_jobs(
    captioner: Captioner,
    jobs: Sequence[Job],
    out: Path | None,
    settings: dict[str, Any],
    batch_size: int,
    *,
    every: Sequence[Job] | None = None,
    seed: int = 0,
    group: Group = ALONE,
    **options: Any,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Caption every job and write `out`, in the jobs' order.

    Args:
        out: JSONL to write; None writes nothing and keeps nothing.
        settings: what the captions depend on; a partial file of other settings is not taken up.
        every: all clips of the manifest as they are, which tell what each speaker sounds like, whatever part
            of them is captioned; default: `jobs`.
        seed: of sampled captions, with `do_sample` among the options.
        group: the processes that share the clips; all return the same, the first one writes.
        options: of `generate`.

    Returns:
        rows {"id", "audio", "caption"}, with "condition", "heard" and "made" where that is not the clip as it
        is (see `Job`), and one message for each file that could not be captioned.

    Raises:
        UserError: `out` cannot be written, or several processes have none.
    """
    if out is None and group.count > 1:
        raise UserError("several processes meet in a file: give --out, or start one process")
    every = jobs if every is None else every
    clips = digest([(str(job.path), job.speaker, job.cues) for part in (jobs, every) for job in part])

    def say(clips: list[np.ndarray], jobs: list[Job], means: list[Tensor | None]) -> list[dict[str, Any]]:
        if options.get("do_sample"):
            # A batch's own numbers depend on no other batch and on no process.
            torch.manual_seed(crc32(f"{seed} {[job.id for job in jobs]}".encode()))
        captions = captioner.generate(clips, means, [job.cues for job in jobs], **options)
        return [job.row(caption) for job, caption in zip(jobs, captions, strict=True)]

    with journaled(out, {**settings, "clips": clips}, group) as journal:
        errors = over_clips(captioner, jobs, journal, say, batch_size, "captioning", every=every, group=group)
        rows = [journal[job.key] for job in jobs if job.key in journal]
        if out is not None and group.rank == 0:
            write_jsonl(out, rows)
    return rows, errors
