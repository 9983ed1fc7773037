"""What is computed once before training: encoder features (here) and what the teacher says
(teacher_cache.py).

A row that is missing is computed by `fill_*`; reading a missing row is an error, never a silent recompute.
Processes share the rows, and each writes its shards one after another, so a killed run goes on from the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aligncap.audio.files import load_audio
from aligncap.errors import Faults, UserError
from aligncap.models.speakers import chosen_clips, means_of_rows, stack_means
from aligncap.processes import ALONE, Group
from aligncap.tensor_cache import AUDIO_VERSION, TensorCache, digest, fill, fingerprint


def feature_cache(root: Path, model: Any, processor: Any) -> TensorCache:
    """Cache of pooled encoder frames of `model` (an AlignCapForConditionalGeneration)."""
    config = model.config
    description = {
        "kind": "pooled encoder frames",
        "encoder": fingerprint(model.model.audio_tower),
        "encoder_layer": config.encoder_layer,
        "pool_size": config.pool_size,
        "margin_seconds": config.margin_seconds,
        "features": processor.feature_extractor.to_dict(),
        "audio_version": AUDIO_VERSION,
    }
    return TensorCache(root / f"frames-{digest(description)}", description)


@torch.no_grad()
def fill_features(
    cache: TensorCache,
    model: Any,
    processor: Any,
    paths: dict[str, Path],
    batch: int = 8,
    group: Group = ALONE,
) -> None:
    """Compute the pooled frames of every file in `paths` (key to file) that the cache lacks.

    Raises:
        Faults: files that cannot be read, all of them, in every process; what could be read is kept.
    """
    faults: list[str] = []

    def compute(keys: Sequence[str]) -> dict[str, Tensor]:
        clips = {}
        for key in keys:
            try:
                clips[key] = load_audio(paths[key], max_seconds=processor.max_seconds)
            except UserError as error:
                faults.append(str(error))
        if not clips:
            return {}
        mel = processor.log_mel(list(clips.values())).to(model.device)
        pooled = model.model.encode_audio(**mel)
        lengths = pooled.mask.sum(1).tolist()
        return {k: f[:n].cpu().clone() for k, f, n in zip(clips, pooled.frames, lengths, strict=True)}

    # Clips of like size share a batch: files' sizes stand in for their lengths.
    ordered = sorted(paths, key=lambda k: paths[k].stat().st_size)
    fill(cache, ordered, compute, batch, "encoding speech", group)
    if faults := sum(group.gather(faults), []):
        raise Faults(faults)


def speaker_voices(cache: TensorCache, keys: list[str], speakers: Sequence[str | None]) -> dict[str, Tensor]:
    """By each clip's key the mean frame of its speaker, nan where it is unknown; see `models.speakers`.

    Args:
        keys, speakers: of all clips of a manifest, in its order; a clip that stands twice counts once.
    """
    once = dict(zip(keys, speakers, strict=True))
    names, own = list(once), list(once.values())
    frames = {i: cache[names[i]] for places in chosen_clips(own).values() for i in places}
    like = cache[names[0]].float().mean(0)
    means = stack_means(means_of_rows(own, frames), like)
    return dict(zip(names, means, strict=True))
