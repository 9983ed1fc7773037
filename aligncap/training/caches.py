"""What is computed once before training: encoder features (here) and what the teacher says
(teacher_cache.py).

A row that is missing is computed by `fill_*`; reading a missing row is an error, never a silent recompute.
Processes share the rows, and each writes its shards one after another, so a killed run goes on from the last.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from aligncap.audio.files import load_audio
from aligncap.models.hub import resolve
from aligncap.models.speakers import chosen_clips, means_of_rows, stack_means
from aligncap.training.collators import join_prompt_and_response, response_positions
from aligncap.training.config import DistillConfig
from aligncap.training.sharding import shards_weights
from aligncap.training.top_k import coverage, most_likely, pack
from aligncap.utils.distributed import ALONE, Group
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.tensor_cache import AUDIO_VERSION, TensorCache, digest, fill, fingerprint, hash_of


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
        UserErrors: files that cannot be read, all of them, in every process; what could be read is kept.
    """
    errors: list[str] = []

    def compute(keys: Sequence[str]) -> dict[str, Tensor]:
        clips = {}
        for key in keys:
            try:
                clips[key] = load_audio(paths[key], max_seconds=processor.max_seconds)
            except UserError as error:
                errors.append(str(error))
        if not clips:
            return {}
        mel = processor.log_mel(list(clips.values())).to(model.device)
        pooled = model.model.encode_audio(**mel)
        lengths = pooled.mask.sum(1).tolist()
        return {k: f[:n].cpu().clone() for k, f, n in zip(clips, pooled.frames, lengths, strict=True)}

    # Clips of like size share a batch: files' sizes stand in for their lengths.
    ordered = sorted(paths, key=lambda k: paths[k].stat().st_size)
    fill(cache, ordered, compute, batch, "encoding speech", group)
    if errors := sum(group.gather(errors), []):
        raise UserErrors(errors)


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


Pairs = list[tuple[list[int], list[int]]]  # token ids of prompt and response


def states_cache(root: Path, llm: nn.Module, dtype: torch.dtype) -> TensorCache:
    """Cache of the teacher's last hidden states at response positions, (response tokens, width) a row."""
    description = {"kind": "teacher hidden states", "llm": fingerprint(llm), "dtype": str(dtype)}
    return TensorCache(root / f"teacher-{digest(description)}", description)


def top_k_cache(root: Path, model: Any, dtype: torch.dtype, top_k: int, temperature: float) -> TensorCache:
    """Cache of the teacher's `top_k` most likely tokens at response positions, as `top_k.pack` lays them.

    The temperature is part of the key: the mass of the other tokens at one temperature does not tell their
    mass at another. So is the head, which the cached hidden states leave to the run that reads them.

    Args:
        model: an AlignCapForConditionalGeneration without adapters.
    """
    description = {
        "kind": "teacher's most likely tokens",
        "llm": fingerprint(model.model.language_model),
        "head": hash_of(model.get_output_embeddings().state_dict()),
        "vocabulary": model.config.audio_token_id,
        "dtype": str(dtype),
        "top_k": top_k,
        "temperature": temperature,
    }
    return TensorCache(root / f"teacher-top-{digest(description)}", description)


def teacher_key(prompt_ids: list[int], response_ids: list[int]) -> str:
    return digest(prompt_ids, response_ids)


def fill_states(
    cache: TensorCache,
    llm: Any,
    pairs: Pairs,
    pad: int,
    dtype: torch.dtype,
    batch: int = 32,
    group: Group = ALONE,
) -> None:
    """Last hidden states of the bare language model (adapters off) that predict each response token.

    With the frozen head on top they give the teacher's whole distribution exactly, at 576 numbers a token
    for SmolLM2 in place of 49,152.
    """
    _fill(cache, llm, pairs, pad, dtype, batch, group, lambda hidden: hidden)


def fill_top_k(
    cache: TensorCache,
    model: Any,
    pairs: Pairs,
    pad: int,
    dtype: torch.dtype,
    batch: int = 32,
    group: Group = ALONE,
) -> dict[str, float]:
    """The teacher's most likely tokens for each response token, and how much of its mass they hold.

    Args:
        cache: of `top_k_cache`, for the same `model` and `dtype`.

    Returns:
        `top_k.coverage` of all `pairs`, those that the cache held before included.
    """
    k, temperature = cache.description["top_k"], cache.description["temperature"]
    head, limit = model.get_output_embeddings(), model.config.audio_token_id

    def keep(hidden: Tensor) -> Tensor:
        return pack(*most_likely(head_logits(head, hidden)[:, :limit], k, temperature))

    _fill(cache, model.model.language_model, pairs, pad, dtype, batch, group, keep)
    return coverage((cache[key] for key in dict.fromkeys(teacher_key(p, r) for p, r in pairs)), k)


def head_logits(head: nn.Module, hidden: Tensor) -> Tensor:
    """Logits of hidden states in the precision that these were computed in.

    Mixed precision wraps the model's own forward only, and here the head is called beside it.
    """
    half = hidden.dtype == torch.bfloat16
    with torch.autocast(hidden.device.type, dtype=torch.bfloat16, enabled=half):
        return head(hidden)


@torch.no_grad()
def _fill(
    cache: TensorCache,
    llm: Any,
    pairs: Pairs,
    pad: int,
    dtype: torch.dtype,
    batch: int,
    group: Group,
    keep: Callable[[Tensor], Tensor],
) -> None:
    """Cache what `keep` makes of the states (response tokens, width) of each pair."""
    by_key = {teacher_key(p, r): (p, r) for p, r in pairs}

    def compute(keys: Sequence[str]) -> dict[str, Tensor]:
        chosen = [by_key[k] for k in keys]
        inputs = join_prompt_and_response([p for p, _ in chosen], [r for _, r in chosen], pad)
        mask = response_positions(inputs.pop("labels"))
        position_ids = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        device = next(llm.parameters()).device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            hidden = llm(
                **{k: v.to(device) for k, v in inputs.items()},
                position_ids=position_ids.to(device),
                use_cache=False,
            ).last_hidden_state
        return {k: keep(h[m].to(dtype)).cpu() for k, h, m in zip(keys, hidden, mask.to(device), strict=True)}

    ordered = sorted(by_key, key=lambda k: len(by_key[k][0]) + len(by_key[k][1]))
    fill(cache, ordered, compute, batch, "teacher reads", group)


def wants_teacher_cache(args: DistillConfig, rows: int, batch: float) -> bool:
    """Whether the teacher is read before training: as asked, or where it costs no more than reading live.

    `batch`: rows that one process reads at a time.
    """
    if args.teacher_top_k:
        return True  # training reads no head of it, which may then be sharded
    if shards_weights(args):  # only the model's own forward may use the head's weights
        if args.teacher_cache == "yes" and args.process_index == 0:
            print(
                "teacher_cache=yes: cannot be read with weights in shards, so the teacher is read live; "
                "teacher_top_k can",
                file=sys.stderr,
            )
        return False
    if args.teacher_cache != "auto":
        return args.teacher_cache == "yes"
    if args.max_steps < 0:  # by epochs
        return args.num_train_epochs >= 1
    return args.max_steps * batch * args.gradient_accumulation_steps * args.world_size >= rows


def check_top_k(args: DistillConfig) -> None:
    """Before anything long: there are as many tokens as are to be cached.

    Raises:
        UserError: `teacher_top_k` is above the vocabulary.
    """
    if not args.teacher_top_k:
        return
    words = len(AutoTokenizer.from_pretrained(resolve(args.llm)))
    if args.teacher_top_k > words:
        raise UserError(
            f"teacher_top_k={args.teacher_top_k}: {args.llm} has {words} tokens; "
            "choose fewer, or 0 for all of them, exactly"
        )


def read_teacher(
    args: DistillConfig, model: Any, pad: int, pairs: Pairs, group: Group = ALONE
) -> tuple[TensorCache, dict[str, Any]]:
    """The filled cache of the teacher on `pairs`, and what run.json says of it.

    Args:
        model: an AlignCapForConditionalGeneration without adapters, not yet wrapped or sharded.
    """
    root, llm = Path(args.cache_dir), model.model.language_model
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    if not args.teacher_top_k:
        states = states_cache(root, llm, dtype)
        fill_states(states, llm, pairs, pad, dtype, group=group)
        return states, {}
    states = top_k_cache(root, model, dtype, args.teacher_top_k, args.temperature)
    held = fill_top_k(states, model, pairs, pad, dtype, group=group)
    if args.process_index == 0:
        print(
            f"the teacher's {args.teacher_top_k} likeliest tokens hold {held['mean']:.4f} of its mass "
            f"on average over response tokens, at least {held['least']:.4f}",
            file=sys.stderr,
        )
    return states, {"teacher_coverage": held}
