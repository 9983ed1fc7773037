"""What is computed once before training: encoder features, what the teacher says.

A row that is missing is computed when a cache is filled; reading a missing row is an error. Processes share
the rows, and each writes its shards one after another, so a killed run goes on from the last.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from aligncap.audio.augment import CHANNEL_VERSION, through_channel
from aligncap.audio.files import load_audio
from aligncap.audio.members import size_of
from aligncap.models.configuration_aligncap import AlignCapConfig
from aligncap.models.modeling_aligncap import AlignCapForConditionalGeneration
from aligncap.models.precision import autocast
from aligncap.models.processing_aligncap import AlignCapProcessor
from aligncap.training.collators import join_prompt_and_response, response_positions
from aligncap.training.divergences import coverage, most_likely, pack
from aligncap.utils.distributed import ALONE, Group
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.tensor_cache import (
    AUDIO_VERSION,
    TensorCache,
    digest,
    fill,
    fingerprint,
    hash_of,
    require_space,
)

_log = logging.getLogger(__name__)


MOST = 20e9  # bytes of a cache that a run fills without being asked to


class Pairs(Protocol):
    """Token ids of prompts and responses: a list of them, a `data.CaptionRows`, or several in one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[list[int], list[int]]: ...


class FeatureCache(TensorCache):
    """Pooled encoder frames: half precision on disk, float32 when they are read.

    float16 and not bfloat16: some dimensions of Whisper lie a hundred standard deviations off 0, where
    bfloat16 errs by an eighth of one, float16 by a hundredth. Frames beyond its range stay as they are.
    """

    def __getitem__(self, key: str) -> Tensor:
        return super().__getitem__(key).float()

    def write(self, rows: dict[str, Tensor]) -> None:
        most = torch.finfo(torch.float16).max
        super().write({key: row.half() if row.abs().max() < most else row for key, row in rows.items()})


def feature_cache(
    root: Path, model: AlignCapForConditionalGeneration, processor: AlignCapProcessor
) -> FeatureCache:
    """Cache of the pooled encoder frames of `model`."""
    config = model.config
    description = {
        "kind": "pooled encoder frames",
        "dtype": "float16",
        "encoder": fingerprint(model.model.audio_tower),
        "encoder_layer": config.encoder_layer,
        "pool_size": config.pool_size,
        "margin_seconds": config.margin_seconds,
        "features": processor.feature_extractor.to_dict(),
        "audio_version": AUDIO_VERSION,
    }
    return FeatureCache(root / f"frames-{digest(description)}", description)


def frames_size(config: AlignCapConfig, seconds: float) -> float:
    """Bytes of the cached frames of so much speech; of all layers of large-v3 264 kB a second."""
    numbers = config.audio_width * max(config.mixed_layers, 1)
    return seconds / (0.02 * config.pool_size) * numbers * 2


def augmented_key(key: str) -> str:
    """Under which a cache holds a clip as heard through another channel."""
    return f"{key}+channel{CHANNEL_VERSION}"


@torch.no_grad()
def fill_features(
    cache: TensorCache,
    model: AlignCapForConditionalGeneration,
    processor: AlignCapProcessor,
    paths: Mapping[str, Path],
    batch: int = 8,
    group: Group = ALONE,
    augmented: bool = False,
) -> None:
    """Compute the pooled frames of every file in `paths` (key to file) that the cache lacks.

    With `augmented`, of every file through another channel (`audio.augment`), under `augmented_key`.

    Raises:
        UserErrors: files that cannot be read, all of them, in every process; what could be read is kept.
    """
    errors: list[str] = []

    if augmented:
        paths = {augmented_key(key): path for key, path in paths.items()}

    def compute(keys: Sequence[str]) -> dict[str, Tensor]:
        clips = {}
        for key in keys:
            try:
                clips[key] = load_audio(paths[key], max_seconds=processor.max_seconds)
                if augmented:
                    clips[key] = through_channel(clips[key], key)
            except UserError as error:
                errors.append(str(error))
        if not clips:
            return {}
        mel = processor.features(list(clips.values())).to(model.device)
        pooled = model.model.encode_audio(**mel)
        lengths = pooled.mask.sum(1).tolist()
        return {k: f[:n].cpu().clone() for k, f, n in zip(clips, pooled.frames, lengths, strict=True)}

    # Clips of like size share a batch: files' sizes stand in for their lengths.
    ordered = sorted(paths, key=lambda k: size_of(paths[k]))
    title = "encoding speech" + (", augmented" if augmented else "")
    fill(cache, ordered, compute, batch, title, group)
    if errors := sum(group.gather(errors), []):
        raise UserErrors(errors)


def teacher_key(prompt_ids: list[int], response_ids: list[int]) -> str:
    """Key of one row of the teacher's cache."""
    return digest(prompt_ids, response_ids)


def cached_teacher(
    root: Path,
    model: AlignCapForConditionalGeneration,
    pairs: Pairs,
    pad: int,
    *,
    dtype: torch.dtype,
    top_k: int,
    temperature: float,
    group: Group = ALONE,
) -> tuple[TensorCache, dict[str, float] | None]:
    """The filled cache of what the teacher says of `pairs`, response positions only.

    With `top_k` 0 it holds the last hidden states of the language model: with the frozen head on top they
    give the whole distribution exactly, at 576 numbers a token for SmolLM2 in place of 49,152. Otherwise it
    holds the most likely tokens at this temperature, as `divergences.pack` lays them: the mass of the other
    tokens at one temperature does not tell their mass at another. Its key holds the head too, which hidden
    states leave to the run that reads them.

    Args:
        model: without adapters, not yet wrapped or sharded.

    Returns:
        The cache, and with `top_k` the mass that these tokens hold (`divergences.coverage`).

    Raises:
        UserError: the disk has no room for what is not there yet.
    """
    llm = model.model.language_model
    description: dict[str, object]

    def room(tokens: int) -> None:
        remedy = "make room, give a smaller teacher_top_k, or teacher_cache no"
        require_space(root, states_size(tokens, model, dtype, top_k), "what the teacher says", remedy, group)

    if not top_k:
        description = {"kind": "teacher hidden states", "llm": fingerprint(llm), "dtype": str(dtype)}
        states = TensorCache(root / f"teacher-{digest(description)}", description)
        fill_states(states, llm, pairs, pad, dtype, group=group, before=room)
        return states, None
    head, limit = model.get_output_embeddings(), model.config.audio_token_id
    description = {
        "kind": "teacher's most likely tokens",
        "llm": fingerprint(llm),
        "head": hash_of(head.state_dict()),
        "vocabulary": limit,
        "dtype": str(dtype),
        "top_k": top_k,
        "temperature": temperature,
    }
    cache = TensorCache(root / f"teacher-top-{digest(description)}", description)

    def keep(hidden: Tensor) -> Tensor:
        return pack(*most_likely(head_logits(head, hidden)[:, :limit], top_k, temperature))

    keys = fill_states(cache, llm, pairs, pad, dtype, group=group, keep=keep, before=room)
    held = coverage((cache[key] for key in keys), top_k)
    if group.rank == 0:
        _log.info(
            "the teacher's %d likeliest tokens hold %.4f of its mass on average over response tokens, "
            "at least %.4f",
            *(top_k, held["mean"], held["least"]),
        )
    return cache, held


def states_size(
    tokens: int, model: AlignCapForConditionalGeneration, dtype: torch.dtype, top_k: int
) -> float:
    """Bytes that `cached_teacher` keeps of so many response tokens."""
    width = model.get_output_embeddings().in_features
    return float(tokens) * ((2 * top_k + 1) * 4 if top_k else width * dtype.itemsize)


@torch.no_grad()
def fill_states(
    cache: TensorCache,
    llm: nn.Module,
    pairs: Pairs,
    pad: int,
    dtype: torch.dtype,
    batch: int = 32,
    group: Group = ALONE,
    keep: Callable[[Tensor], Tensor] = lambda hidden: hidden,
    before: Callable[[int], None] = lambda tokens: None,
) -> list[str]:
    """Cache what `keep` makes of the last hidden states (response tokens, width) of each pair.

    Args:
        llm: the bare language model, without head and adapters.
        before: is told the response tokens that the cache lacks, before they are computed.

    Returns:
        Keys of the pairs, each once, in their order.
    """
    places: dict[str, tuple[int, int]] = {}  # of each key its length and a place among the pairs
    lacking = 0
    for place in range(len(pairs)):
        prompt, response = pairs[place]
        key = teacher_key(prompt, response)
        lacking += len(response) if key not in places and key not in cache else 0
        places.setdefault(key, (len(prompt) + len(response), place))
    before(lacking)

    def compute(keys: Sequence[str]) -> dict[str, Tensor]:
        chosen = [pairs[places[k][1]] for k in keys]
        inputs = join_prompt_and_response([p for p, _ in chosen], [r for _, r in chosen], pad)
        mask = response_positions(inputs.pop("labels"))
        position_ids = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        device = next(llm.parameters()).device
        with autocast(device.type, dtype):
            hidden = llm(
                **{k: v.to(device) for k, v in inputs.items()},
                position_ids=position_ids.to(device),
                use_cache=False,
            ).last_hidden_state
        return {k: keep(h[m].to(dtype)).cpu() for k, h, m in zip(keys, hidden, mask.to(device), strict=True)}

    fill(cache, sorted(places, key=lambda k: places[k][0]), compute, batch, "teacher reads", group)
    return list(places)


def head_logits(head: nn.Module, hidden: Tensor) -> Tensor:
    """Logits of hidden states in the precision that these were computed in.

    Mixed precision wraps the model's own forward only, and here the head is called beside it.
    """
    with autocast(hidden.device.type, hidden.dtype):
        return head(hidden)
