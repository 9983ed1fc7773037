"""Many clips captioned: shared over processes, bad files reported, nothing finished ever lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from aligncap.errors import UserError
from aligncap.io import write_jsonl
from aligncap.journal import Journal, journaled
from aligncap.models.caption_files import Job
from aligncap.models.captioner import Captioner, batches_by_size
from aligncap.processes import ALONE, Group
from aligncap.tensor_cache import digest

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
    faults: dict[str, str] = {}

    def compute(batch: Sequence[str]) -> dict[str, Any]:
        heard: dict[str, np.ndarray] = {}
        for key in batch:
            try:
                heard[key] = at[key].sound(captioner.processor.max_seconds)
            except UserError as error:
                faults[key] = str(error)
        if all(key in journal for key in heard):
            return {}
        own = [at[key] for key in heard]
        rows = say(list(heard.values()), own, [voices.get(job.speaker) for job in own])
        return dict(zip(heard, rows, strict=True))

    group.share_out(journal, batches, compute, title)
    faults = group.merge(faults)
    return [faults[key] for key in keys if key in faults]


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
        faults = over_clips(captioner, jobs, journal, say, batch_size, "captioning", every=every, group=group)
        rows = [journal[job.key] for job in jobs if job.key in journal]
        if out is not None and group.rank == 0:
            write_jsonl(out, rows)
    return rows, faults
