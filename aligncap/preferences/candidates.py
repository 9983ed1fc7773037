"""Candidates: several sampled captions of each clip of a manifest, with what made them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from torch import Tensor

from aligncap.data.manifest import read_manifest
from aligncap.data.split import choose_evenly
from aligncap.inference.batch import over_clips
from aligncap.inference.captioner import Captioner
from aligncap.inference.jobs import Job, job_of
from aligncap.inference.sampling import sample_captions
from aligncap.models.checkpoints import model_key
from aligncap.models.precision import dtype_name
from aligncap.preferences.judges import relative_name
from aligncap.utils.distributed import launched
from aligncap.utils.io import Row, write_jsonl
from aligncap.utils.journal import journaled
from aligncap.utils.options import Config, NonNegativeFloat, PositiveInt, Range, option


@dataclass
class CandidatesConfig(Config):
    """Several sampled captions of each clip, for judges to score. A stopped run goes on where it stopped.

    Examples:
        aligncap candidates --model runs/distill --manifest train.jsonl --out candidates.jsonl
        accelerate launch --config_file configs/accelerate/gpu8.yaml -m aligncap candidates \\
            --model runs/distill --manifest train.jsonl --num 8 --out candidates.jsonl
    """

    MANY_PROCESSES: ClassVar[bool] = True

    model: str = option(help="Folder of a merged model or of a training run.")
    manifest: str = option(help="Manifest of the clips.")
    out: str = option(help="Candidates file to write.")
    num: PositiveInt = option(8, "Captions of each clip.")
    temperature: NonNegativeFloat = option(0.7, "Sampling temperature.")
    top_p: Annotated[float, Range(0, 1, open_low=True)] = option(0.95, "Probability mass that is sampled.")
    seed: int = option(0, "Seed of the samples.")
    max_new_tokens: PositiveInt | None = option(None, "Longest caption. Default: the model's own limit.")
    batch_size: PositiveInt = option(16, "Clips that are decoded at a time.")
    speech_gate: bool = option(
        False, "Of a clip without speech all candidates say so, as `caption` does; else the model is asked."
    )
    limit: PositiveInt | None = option(None, "That many clips only, labels as even as they come.")
    dtype: Literal["auto", "float32", "bfloat16"] = option("float32", "Precision of the model.")
    device: str = option("auto", "auto gives each process a GPU of its own where there are any.")

    def own_errors(self) -> list[str]:
        if self.temperature == 0 and self.num > 1:
            return [f"temperature=0: at 0 all {self.num} candidates would be the same; it must be above 0"]
        return []


def write_candidates(config: CandidatesConfig) -> tuple[list[Row], list[str]]:
    """Sample captions of each clip and write them to `config.out`, in the manifest's order.

    Under `accelerate launch` or torchrun the processes share the clips; all return the same, the first one
    writes. Neither their number nor a stop on the way changes a caption.

    Returns:
        rows {"id", "audio", "candidate", "caption", "model", "seed", "settings", "manifest"}, and one message
        for each clip that cannot be used.

    Raises:
        UserError: the manifest or the checkpoint is wrong, or `out` cannot be written.
    """
    out = Path(config.out)
    utterances = read_manifest(config.manifest)
    jobs = every = [job_of(config.manifest, u) for u in utterances]
    if config.limit is not None:
        jobs = [every[i] for i in choose_evenly(utterances, config.limit, config.seed)]
    group, device = launched(config.device)
    dtype = dtype_name(config.dtype, config.device)
    captioner = Captioner.from_pretrained(config.model, device, dtype, prior="equal")
    sampling: Row = {
        "num": config.num,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_new_tokens": config.max_new_tokens or captioner.model.config.max_response_tokens,
    }
    settings = {**sampling, "dtype": dtype}

    def sample(clips: list[np.ndarray], jobs: list[Job], contexts: list[Tensor | None]) -> list[list[str]]:
        ids, cues = [job.id for job in jobs], [job.cues for job in jobs]
        return sample_captions(
            captioner, clips, ids, contexts=contexts, cues=cues, seed=config.seed, **sampling
        )

    silent = [captioner.no_speech] * config.num
    made_with = {
        "candidates": settings,
        "speech_gate": config.speech_gate,
        "model": model_key(config.model),
        "seed": config.seed,
    }
    with journaled(out, made_with, group) as journal:
        errors = over_clips(
            captioner,
            jobs,
            journal,
            sample,
            config.batch_size,
            "candidates",
            every=every,
            group=group,
            unspoken=(lambda job: silent) if config.speech_gate else None,
        )
        journal.complete = not errors  # else the command that is given again does the rest
        shared = {
            "model": config.model,
            "seed": config.seed,
            "settings": settings,
            "manifest": relative_name(Path(config.manifest), out),
        }
        rows = [
            {"id": job.id, "audio": job.audio, "candidate": number, "caption": caption, **shared}
            | ({"speech": False} if journal[job.key] == silent else {})
            for job in jobs
            if job.key in journal
            for number, caption in enumerate(journal[job.key])
        ]
        if group.rank == 0:
            write_jsonl(out, rows)
    return rows, errors


def run_candidates(config: CandidatesConfig) -> int:
    """Write candidates; 1 where clips were left out."""
    rows, errors = write_candidates(config)
    if launched()[0].rank != 0:
        return 0
    for error in errors:
        print(error, file=sys.stderr)
    texts = len({(row["id"], row["caption"]) for row in rows})
    print(f"{config.out}: {len(rows)} candidates, {texts} different, {len(errors)} clips left out")
    return 1 if errors else 0
