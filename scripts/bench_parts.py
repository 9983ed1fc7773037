"""What the benchmarks of training share: a student as it trains, batches of real rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aligncap.data.manifest import audio_files
from aligncap.models.checkpoints import load_folder
from aligncap.models.precision import suit_bfloat16
from aligncap.models.speakers import speaker_name
from aligncap.training.caches import (
    feature_cache,
    fill_features,
    fill_states,
    fill_top_k,
    speaker_voices,
    states_cache,
    top_k_cache,
)
from aligncap.training.collators import SpeechCollator
from aligncap.training.config import DistillConfig
from aligncap.training.data import SpeechRows, read_captioned
from aligncap.training.distill import DistillTrainer
from aligncap.training.trainer import add_adapters

AUDIO = {
    "frames": ("audio_frames", "audio_frames_mask"),
    "mel": ("input_features", "input_features_mask"),
    "padded": ("padded_features", "input_features_mask"),
}
TEACHER = {
    "live": ("teacher_input_ids", "teacher_attention_mask", "teacher_labels"),
    "states": ("teacher_hidden",),
    "top-k": ("teacher_top_k",),
    "none": (),
}


def arguments(folder: Path, manifest: Path, precision: str, **more: Any) -> DistillConfig:
    """Options of `train distill` as they are by default, writing nothing."""
    common: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "train_manifest": str(manifest),
        "report_to": "none",
    }
    return DistillConfig(**common, precision=precision, **more)


@dataclass
class RealRows:
    """Rows of one batch, their audio cached and live, with the model that fills caches for them."""

    model: Any
    processor: Any
    cached: SpeechRows
    live: SpeechRows


def collect_rows(base: Path, manifest: Path, rows: int, folder: Path) -> RealRows:
    """`rows` clips spread over the manifest, one caption each; caches go to `folder`."""
    model: Any
    model, processor = load_folder(base)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    utterances = read_captioned(str(manifest), need_p_act=True)
    utterances = utterances[:: max(1, len(utterances) // rows)][:rows]
    for i, u in enumerate(utterances):
        place = i % len(u.captions)
        u.captions, u.p_act = [u.captions[place]], [u.p_act[place]]
    keys, paths = audio_files(str(manifest), utterances)
    features = feature_cache(folder, model, processor)
    fill_features(features, model, processor, paths)
    voices = None
    if model.config.speaker_relative:
        voices = speaker_voices(features, keys, [speaker_name(u) for u in utterances])
    options: dict[str, Any] = {"teacher": True, "limit": 64, "keys": keys, "voices": voices}
    cached, live = (
        SpeechRows(str(manifest), utterances, processor, features=f, **options) for f in (features, None)
    )
    return RealRows(model, processor, cached, live)


def with_teacher(
    real: RealRows, dtype: torch.dtype, top_k: int, folder: Path
) -> dict[str, Callable[[], None]]:
    """By kind of cache: fill it, and let the cached rows read it."""
    llm, pad = real.model.model.language_model, real.processor.tokenizer.pad_token_id
    pairs = real.cached.teacher_pairs()

    def states() -> None:
        real.cached.states = states_cache(folder, llm, dtype)
        fill_states(real.cached.states, llm, pairs, pad, dtype)

    def likeliest() -> None:
        real.cached.states = top_k_cache(folder, real.model, dtype, top_k, 1.0)
        held = fill_top_k(real.cached.states, real.model, pairs, pad, dtype)
        print(
            f"{dtype}: the teacher's {top_k} likeliest tokens hold {held['mean']:.4f} of its mass, "
            f"at least {held['least']:.4f}"
        )

    return {"states": states, "top-k": likeliest}


def collect(
    base: Path, manifest: Path, rows: int, top_k: int, folder: Path, precisions: list[str]
) -> dict[str, dict[str, Tensor]]:
    """All that any way reads of one batch of real rows, by precision of the teacher's cached part."""
    real = collect_rows(base, manifest, rows, folder)
    collate = SpeechCollator(real.processor)
    live, cached = ([source[i] for i in range(rows)] for source in (real.live, real.cached))
    everything = collate(live) | collate(cached)
    everything["padded_features"] = real.processor.feature_extractor(
        [row["samples"] for row in live], sampling_rate=16_000, padding="max_length", return_tensors="pt"
    )["input_features"]
    found = {}
    for precision in precisions:
        found[precision] = dict(everything)
        for kind, fill in with_teacher(real, getattr(torch, precision), top_k, folder).items():
            fill()
            batch = collate([real.cached[i] for i in range(rows)])
            found[precision] |= {name: batch[name] for name in TEACHER[kind]}
    return found


def pick(everything: dict[str, Tensor], audio: str, teacher: str) -> dict[str, Tensor]:
    """What one way reads of a batch."""
    names = ("input_ids", "attention_mask", "labels", "speaker_means", *AUDIO[audio], *TEACHER[teacher])
    return {name: everything[name] for name in names if name in everything}


def students(
    base: Path, args: DistillConfig, kinds: dict[str, type], half: bool = False
) -> tuple[Any, dict[str, Any]]:
    """The adapted model, in mixed precision where `args` say so, and one trainer on it of each kind.

    `half`: laid out for bfloat16 as our training does it, where `args` say bfloat16.
    """
    model, processor = load_folder(base)
    model.requires_grad_(False)
    torch.manual_seed(0)
    adapted = add_adapters(model, args, projector=True)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # fresh adapters are zero, and the teacher's equal
            torch.nn.init.normal_(parameter, std=0.02)
    trainers = {
        name: kind(model=adapted, args=args, train_dataset=[0], data_collator=SpeechCollator(processor))
        for name, kind in kinds.items()
    }
    if half and args.bf16:
        suit_bfloat16(adapted)
    # As Trainer.train does it: mixed precision is laid around the model's forward here and nowhere else.
    return next(iter(trainers.values())).accelerator.prepare_model(adapted), trainers


def loss_and_gradient(trainer: DistillTrainer, model: Any, batch: dict[str, Tensor]) -> tuple[float, Tensor]:
    """Without dropout: the loss, and the gradient of everything trained, as one vector."""
    model.eval()
    loss = trainer.compute_loss(model, trainer._prepare_inputs(dict(batch)))
    loss.backward()
    gradient = torch.cat([p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return loss.item(), gradient
