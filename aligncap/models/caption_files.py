"""Caption many files into a JSONL file: resumable, bad files reported, nothing finished ever lost."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aligncap.errors import UserError
from aligncap.io import write_jsonl
from aligncap.journal import Journal
from aligncap.manifest import audio_path, read_manifest
from aligncap.models.captioner import Captioner
from aligncap.progress import track

__all__ = ["Job", "Journal", "caption_jobs", "jobs_of_files", "jobs_of_manifest", "with_wrong_audio"]

SOUND_ENDINGS = (".wav", ".flac", ".ogg", ".mp3")


@dataclass(frozen=True)
class Job:
    """One caption to write: the clip's id, the file named in the output, and the file that is heard."""

    id: str
    audio: str
    path: Path


def jobs_of_files(arguments: Sequence[str]) -> list[Job]:
    """Sound files named one by one or by folder (searched to the bottom).

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
    return [replace(job, id=job.audio) if times[job.id] > 1 else job for job in jobs]


def jobs_of_manifest(manifest: str | Path) -> list[Job]:
    """One job an utterance."""
    return [Job(u.id, u.audio, audio_path(manifest, u)) for u in read_manifest(manifest)]


def with_wrong_audio(jobs: list[Job], seed: int) -> list[Job]:
    """Every id hears another id's clip.

    A random cyclic shift of a random order, so no clip stays in place.
    """
    if len(jobs) < 2:
        raise UserError("wrong audio needs at least two clips")
    order = list(range(len(jobs)))
    random.Random(seed).shuffle(order)
    heard = dict(zip(order, order[1:] + order[:1], strict=True))
    return [Job(job.id, job.audio, jobs[heard[i]].path) for i, job in enumerate(jobs)]


def caption_jobs(
    captioner: Captioner,
    jobs: list[Job],
    out: Path | None,
    settings: dict[str, Any],
    batch_size: int,
    **options: Any,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Caption every job and write `out`, in the jobs' order.

    Args:
        out: JSONL to write; None writes nothing and keeps nothing.
        settings: what the captions depend on; a partial file of other settings is not taken up.
        options: of `generate`.

    Returns:
        rows {"id", "audio", "caption"} and one message for each file that could not be captioned.
    """
    keys = [f"{job.id}\t{job.path}" for job in jobs]
    try:
        journal = Journal(out, settings)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from error
    todo = [i for i, key in enumerate(keys) if key not in journal.rows]
    faults: dict[int, str] = {}
    try:
        for start in track(range(0, len(todo), 8 * batch_size), None, "captioning"):
            chosen = todo[start : start + 8 * batch_size]
            for index, caption in captioner.stream([jobs[i].path for i in chosen], batch_size, **options):
                job = jobs[chosen[index]]
                if isinstance(caption, UserError):
                    faults[chosen[index]] = str(caption)
                else:
                    journal.add(keys[chosen[index]], {"id": job.id, "audio": job.audio, "caption": caption})
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
