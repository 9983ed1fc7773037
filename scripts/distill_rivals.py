"""Two other layouts of a distillation step, restated on our model: the rivals of scripts/bench_distill.py.

Each is a `DistillTrainer` whose loss is laid out as its original lays it out, so that model, adapters,
precision and backward pass are the same code on both sides.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aligncap.models.encoders import encode_frames, pool_frames
from aligncap.training.collators import IGNORE, response_positions
from aligncap.training.distill import DistillTrainer


def encode_padded(model: Any, features: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled frames of log-mel padded to 30 s, no attention masked, as Whisper's stock forward reads it.

    Only the layers that the model needs are run.

    Args:
        features: (batch, mel bins, 3000); own: (batch, mel frames), bool, true on the clip.
    """
    everything = torch.ones(features.shape[0], features.shape[-1], device=features.device)
    frames, _ = encode_frames(model.model.audio_tower, features, everything, model.config.encoder_layer)
    own = own[:, ::2]
    frames = frames[:, : own.shape[1]]
    return pool_frames(frames * own.view(*own.shape, *[1] * (frames.dim() - 2)), own, model.config.pool_size)


class EveryPosition(DistillTrainer):
    """Teacher live in each step, logits of both at every position, all but the response dropped after."""

    def every_logit(self, model: nn.Module, inputs: dict[str, Tensor]) -> Any:
        """Student's and teacher's logits (batch, length, vocabulary), and the teacher's part of the batch."""
        base = self.accelerator.unwrap_model(model)
        teacher = {
            k.removeprefix("teacher_"): inputs.pop(k) for k in list(inputs) if k.startswith("teacher_")
        }
        with torch.no_grad(), base.disable_adapter():
            target = model(
                input_ids=teacher["input_ids"], attention_mask=teacher["attention_mask"], use_cache=False
            ).logits
        labels = inputs.pop("labels")
        if "padded_features" in inputs:
            own = inputs.pop("input_features_mask") == 1
            # Beside the model's forward, so in its precision by hand.
            with torch.autocast(own.device.type, dtype=torch.bfloat16, enabled=self.args.bf16):
                frames, mask = encode_padded(base.get_base_model(), inputs.pop("padded_features"), own)
            inputs |= {"audio_frames": frames, "audio_frames_mask": mask}
        return model(**inputs, use_cache=False).logits, target, labels, teacher["labels"]


class UltravoxLayout(EveryPosition):
    """Ultravox's `_compute_kl_loss` (fixie-ai/ultravox, ultravox_model.py): KL of logits picked out of all.

    Left out: the cross-entropies at every position that its two passes compute beside it, and that its mask
    picks the position of a response token in place of the one before, which predicts it.
    """

    def token_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        student, teacher, labels, teacher_labels = self.every_logit(model, inputs)
        t = self.args.temperature
        log_q = F.log_softmax(student[response_positions(labels)] / t, -1)
        p = F.softmax(teacher[response_positions(teacher_labels)] / t, -1)
        return t**2 * F.kl_div(log_q, p, reduction="sum")


class TrlLayout(EveryPosition):
    """trl's GKD: its own `generalized_jsd_loss` on the block of columns that holds the responses."""

    def token_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        from trl.experimental.gkd import GKDTrainer

        student, teacher, labels, teacher_labels = self.every_logit(model, inputs)
        # Responses start in one column for all rows (left-padded prompts), as GKD's prompt_length has it.
        start = [int((x != IGNORE).any(0).nonzero()[0]) for x in (labels, teacher_labels)]
        t = self.args.temperature
        return t**2 * GKDTrainer.generalized_jsd_loss(
            student[:, start[0] - 1 : -1],
            teacher[:, start[1] - 1 : -1],
            labels=labels[:, start[0] :],
            beta=self.args.jsd_beta,
            temperature=t,
            reduction="sum",
        )
