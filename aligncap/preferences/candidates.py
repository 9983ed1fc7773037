"""Candidates: several sampled captions of each clip of a manifest, with what made them."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from aligncap.errors import UserError
from aligncap.io import write_jsonl
from aligncap.journal import Journal
from aligncap.manifest import audio_path, read_manifest
from aligncap.models.captioner import Captioner, batches_by_size
from aligncap.models.checkpoints import model_key
from aligncap.models.sampling import sample_captions
from aligncap.models.speakers import speaker_name
from aligncap.progress import track
from aligncap.prompts.acoustic import measured_cues
from aligncap.splits import choose_evenly


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
    writes. Clips always meet in the same batches, so that neither the number of processes nor a stop on the
    way changes a caption.

    Args:
        model: folder of a merged checkpoint or of a training run.
        device: "auto" gives each process its own GPU where there are any.
        limit: that many clips only, see `choose_evenly`.

    Returns:
        rows {"id", "audio", "candidate", "caption", "model", "seed", "settings", "manifest"}, and one message
        for each clip that cannot be used.

    Raises:
        UserError: a setting, the manifest or the checkpoint is at fault, or `out` cannot be written.
    """
    check_settings(num, temperature, top_p, limit=limit, batch_size=batch_size, max_new_tokens=max_new_tokens)
    out = Path(out)
    every = utterances = read_manifest(manifest)
    if limit is not None:
        utterances = [utterances[i] for i in choose_evenly(utterances, limit, seed)]
    paths = [audio_path(manifest, u) for u in utterances]
    keys = [f"{u.id}\t{path}" for u, path in zip(utterances, paths, strict=True)]
    made: dict[str, Any] = {
        "num": num,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
    }
    settings = {**made, "dtype": dtype}
    rank, processes, own_device = _process(device)
    captioner = Captioner.from_pretrained(model, device=own_device, dtype=dtype)
    try:
        journal = Journal(out, {"candidates": settings, "model": model_key(model), "seed": seed}, rank)
        _gather({})  # none begins to write before all have read the same
        batches = batches_by_size(paths, batch_size)
        batches = [b for b in batches if any(keys[i] not in journal.rows for i in b)][rank::processes]
        faults: dict[int, str] = {}
        # Of all clips, so that neither --limit nor a stop on the way changes what a speaker sounds like.
        paths_of_all = [audio_path(manifest, u) for u in every]
        voices = captioner.speaker_means(paths_of_all, [speaker_name(u) for u in every]) if batches else []
        voice = dict(zip((u.id for u in every), voices, strict=False))
        try:
            for batch in track(batches, None, "candidates") if rank == 0 else batches:
                clips, broken = captioner.load(paths, batch)
                faults |= {i: str(error) for i, error in broken.items()}
                if all(keys[i] in journal.rows for i in clips):
                    continue
                ids = [utterances[i].id for i in clips]
                captions = sample_captions(
                    captioner,
                    list(clips.values()),
                    ids,
                    means=[voice[i] for i in ids],
                    cues=[measured_cues(utterances[i].cue_words) for i in clips],
                    seed=seed,
                    **made,
                )
                for i, candidates in zip(clips, captions, strict=True):
                    journal.add(keys[i], candidates)
            faults = _gather(faults)
            journal.reread()
        except BaseException:
            journal.close(done=False)
            raise
        named = Path(os.path.relpath(Path(manifest).resolve(), out.resolve().parent)).as_posix()
        rows = [
            {
                "id": u.id,
                "audio": u.audio,
                "candidate": number,
                "caption": caption,
                "model": str(model),
                "seed": seed,
                "settings": settings,
                "manifest": named,
            }
            for u, key in zip(utterances, keys, strict=True)
            for number, caption in enumerate(journal.rows.get(key, ()))
        ]
        _gather({})  # the parts stay until every process has read them
        if rank == 0:
            write_jsonl(out, rows)
        journal.close(done=rank == 0)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written: {error.strerror}; what is done is kept beside it"
        ) from error
    return rows, [faults[i] for i in sorted(faults)]


def _process(device: str) -> tuple[int, int, str]:
    """Number of this process, number of processes, and this one's device."""
    import torch
    from accelerate import PartialState

    cpu = device == "cpu" or not torch.cuda.is_available()
    # A process that is done waits for the others, however long their clips take.
    state = PartialState(cpu, timeout=timedelta(days=7))
    if device in ("auto", "cuda") and not cpu:
        device = str(state.device)
    return state.process_index, state.num_processes, "cpu" if device == "auto" else device


def _gather(found: dict[int, str]) -> dict[int, str]:
    """What all processes found; each waits for all."""
    from accelerate.utils import gather_object

    return {key: value for part in gather_object([found]) for key, value in part.items()}
