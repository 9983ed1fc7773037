"""Candidates: several sampled captions of each clip of a manifest, with what made them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from aligncap.data.manifest import read_manifest
from aligncap.data.split import choose_evenly
from aligncap.inference.batch import Job, job_of, over_clips
from aligncap.inference.captioner import Captioner
from aligncap.inference.sampling import sample_captions
from aligncap.models.checkpoints import model_key
from aligncap.utils.distributed import launched
from aligncap.utils.errors import UserError
from aligncap.utils.io import write_jsonl
from aligncap.utils.journal import journaled


def check_settings(num: int, temperature: float, top_p: float, **whole: int | None) -> None:
    """
    Raises:
        UserError: a setting is out of range; `whole` are those that must be at least 1.
    """
    for name, value in {"num": num, **whole}.items():
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: at least 1 is needed")
    if temperature < 0 or (temperature == 0 and num > 1):
        raise UserError(
            f"--temperature {temperature}: give a number above 0; at 0 all {num} candidates would be the same"
        )
    if not 0 < top_p <= 1:
        raise UserError(f"--top-p {top_p}: give a number above 0 and at most 1")


def write_candidates(
    model: str | Path,
    manifest: str | Path,
    out: str | Path,
    *,
    num: int = 8,
    temperature: float = 1.0,
    top_p: float = 0.95,
    seed: int = 0,
    max_new_tokens: int = 48,
    batch_size: int = 16,
    dtype: str = "float32",
    device: str = "auto",
    limit: int | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Sample `num` captions of each clip and write `out`, in the manifest's order.

    Under `accelerate launch` or torchrun the processes share the clips; all return the same, the first one
    writes. Neither their number nor a stop on the way changes a caption.

    Args:
        model: folder of a merged checkpoint or of a training run.
        device: "auto" gives each process its own GPU where there are any.
        limit: that many clips only, see `choose_evenly`.

    Returns:
        rows {"id", "audio", "candidate", "caption", "model", "seed", "settings", "manifest"}, and one message
        for each clip that cannot be used.

    Raises:
        UserError: a setting, the manifest or the checkpoint is at error, or `out` cannot be written.
    """
    check_settings(num, temperature, top_p, limit=limit, batch_size=batch_size, max_new_tokens=max_new_tokens)
    out = Path(out)
    utterances = read_manifest(manifest)
    jobs = every = [job_of(manifest, u) for u in utterances]
    if limit is not None:
        jobs = [every[i] for i in choose_evenly(utterances, limit, seed)]
    made: dict[str, Any] = {
        "num": num,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
    }
    settings = {**made, "dtype": dtype}
    group, own_device = launched(device)
    captioner = Captioner.from_pretrained(model, device=own_device, dtype=dtype)

    def say(clips: list[np.ndarray], jobs: list[Job], means: list[Tensor | None]) -> list[list[str]]:
        ids, cues = [job.id for job in jobs], [job.cues for job in jobs]
        return sample_captions(captioner, clips, ids, means=means, cues=cues, seed=seed, **made)

    with journaled(out, {"candidates": settings, "model": model_key(model), "seed": seed}, group) as journal:
        # Speakers are heard in all clips, so that --limit does not change what one sounds like.
        errors = over_clips(captioner, jobs, journal, say, batch_size, "candidates", every=every, group=group)
        named = Path(os.path.relpath(Path(manifest).resolve(), out.resolve().parent)).as_posix()
        rows = [
            {
                "id": job.id,
                "audio": job.audio,
                "candidate": number,
                "caption": caption,
                "model": str(model),
                "seed": seed,
                "settings": settings,
                "manifest": named,
            }
            for job in jobs
            if job.key in journal
            for number, caption in enumerate(journal[job.key])
        ]
        if group.rank == 0:
            write_jsonl(out, rows)
    return rows, errors
