"""What is computed once before training: encoder features and teacher states.

A row that is missing is computed by `fill_*`; reading a missing row is an error, never a silent recompute.
Processes share the rows, and each writes its shards one after another, so a killed run goes on from the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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


def teacher_cache(root: Path, llm: nn.Module, dtype: torch.dtype) -> TensorCache:
    """Cache of the teacher's last hidden states at response positions."""
    description = {"kind": "teacher hidden states", "llm": fingerprint(llm), "dtype": str(dtype)}
    return TensorCache(root / f"teacher-{digest(description)}", description)


def teacher_key(prompt_ids: list[int], response_ids: list[int]) -> str:
    return digest(prompt_ids, response_ids)


@torch.no_grad()
def fill_teacher(
    cache: TensorCache,
    llm: Any,
    pairs: list[tuple[list[int], list[int]]],
    pad: int,
    dtype: torch.dtype,
    batch: int = 32,
    group: Group = ALONE,
) -> None:
    """Last hidden states of the bare language model (adapters off) that predict each response token.

    With the frozen head on top they give the teacher's whole distribution exactly, at 576 numbers a token
    for SmolLM2 in place of 49,152.
    """
    from aligncap.training.collators import join_prompt_and_response
    from aligncap.training.distill import response_positions

    by_key = {teacher_key(p, r): (p, r) for p, r in pairs}

    def compute(keys: Sequence[str]) -> dict[str, Tensor]:
        chosen = [by_key[k] for k in keys]
        inputs = join_prompt_and_response([p for p, _ in chosen], [r for _, r in chosen], pad)
        keep = response_positions(inputs.pop("labels"))
        position_ids = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        device = next(llm.parameters()).device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            hidden = llm(
                **{k: v.to(device) for k, v in inputs.items()},
                position_ids=position_ids.to(device),
                use_cache=False,
            ).last_hidden_state
        return {k: h[m].to(dtype).cpu() for k, h, m in zip(keys, hidden, keep.to(device), strict=True)}

    ordered = sorted(by_key, key=lambda k: len(by_key[k][0]) + len(by_key[k][1]))
    fill(cache, ordered, compute, batch, "teacher reads", group)
