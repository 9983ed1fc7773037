"""Other layouts of a training step, restated on our model, and the multiplications of a step.

Tests assert that every layout gives our loss and gradient; `scripts/benchmarks/training.py` times them.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import with_adapters
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset
from trl import DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from aligncap.models.checkpoints import load_folder
from aligncap.models.encoders import encode_frames, layer_index, pool_frames
from aligncap.models.precision import suit_half
from aligncap.training.caches import cached_teacher
from aligncap.training.clips import read_clips
from aligncap.training.collators import IGNORE, SpeechCollator, response_positions
from aligncap.training.data import CaptionRows, ClipInputs, SpeechDataset, cached_inputs
from aligncap.training.distill import DistillConfig, DistillTrainer
from aligncap.training.dpo import SpeechDPOConfig, SpeechDPOTrainer
from aligncap.training.preference_data import PreferenceDataset
from aligncap.training.shared_prefix import pack_pairs

# What a layout reads of a batch, by how its audio and its teacher come to it.
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
BACKWARD = 1  # through frozen weights: the gradient of the input, none of the weights


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

    def every_logit(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Student's and teacher's logits (batch, length, vocabulary), and the labels of both."""
        base = self.accelerator.unwrap_model(model)
        teacher = {
            k.removeprefix("teacher_"): inputs.pop(k) for k in list(inputs) if k.startswith("teacher_")
        }
        with torch.no_grad(), base.disable_adapter():
            read = {name: teacher[name] for name in ("input_ids", "attention_mask")}
            target = model(**read, use_cache=False).logits
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


def arguments(folder: Path, manifest: Path, precision: str, **more: Any) -> DistillConfig:
    """Options of `train distill` as they are by default, without cross-entropy, writing nothing."""
    return DistillConfig(
        output_dir=str(folder / "run"),
        train_manifest=str(manifest),
        report_to="none",
        precision=precision,
        ce_weight=0.0,
        **more,
    )


def datasets(
    base: Path, manifest: Path, rows: int, top_k: int, dtype: torch.dtype, folder: Path
) -> tuple[Any, dict[str, SpeechDataset]]:
    """`rows` clips spread over the manifest, one caption each, as a dataset by each kind of teacher.

    "mel" has live audio and teacher; caches go to `folder`.
    """
    model, processor = load_folder(base)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    every = read_clips(str(manifest), p_act=True)
    clips = every.chosen(range(0, len(every.keys), max(1, len(every.keys) // rows))[:rows])
    for i, u in enumerate(clips.utterances):
        place = i % len(u.captions)
        u.captions, u.p_act = [u.captions[place]], [u.p_act[place]]
    texts = CaptionRows.of(clips, processor.tokenizer, max_response_tokens=64)
    inputs = cached_inputs(model, processor, [clips], folder)
    found = {
        name: SpeechDataset(texts, i, teacher=True) for name, i in (("live", inputs), ("mel", inputs.live()))
    }
    for name, k in (("states", 0), ("top-k", top_k)):
        pairs, pad = ConcatDataset([texts]), processor.tokenizer.pad_token_id
        cache, _ = cached_teacher(folder, model, pairs, pad, dtype=dtype, top_k=k, temperature=1.0)
        found[name] = SpeechDataset(texts, inputs, teacher=True, states=cache)
    return processor, found


def collect(
    base: Path, manifest: Path, rows: int, top_k: int, dtype: torch.dtype, folder: Path
) -> dict[str, Tensor]:
    """All that any layout reads of one batch of real rows."""
    processor, found = datasets(base, manifest, rows, top_k, dtype, folder)
    collate, batch = SpeechCollator(processor), {}
    for name in ("mel", "live", "states", "top-k"):
        batch |= collate([found[name][i] for i in range(rows)])
    samples = [found["mel"][i]["samples"] for i in range(rows)]
    padded = processor.feature_extractor(
        samples, sampling_rate=16_000, padding="max_length", return_tensors="pt"
    )
    return batch | {"padded_features": padded["input_features"]}


def pick(everything: dict[str, Tensor], audio: str, teacher: str) -> dict[str, Tensor]:
    """What one layout reads of a batch."""
    names = ("input_ids", "attention_mask", "labels", *AUDIO[audio], *TEACHER[teacher])
    return {name: everything[name] for name in names if name in everything}


def students(
    base: Path, args: DistillConfig, kinds: dict[str, type], half: bool = False, encoder: bool = True
) -> tuple[Any, dict[str, Any]]:
    """The adapted model, in mixed precision where `args` say so, and one trainer on it of each kind.

    `half`: laid out for bfloat16 as our training does it, where `args` say bfloat16; `encoder`: held, which
    our training does not do where features are cached.
    """
    model, processor = load_folder(base)
    model.requires_grad_(False)
    torch.manual_seed(0)
    adapted = with_adapters(model, args, projector=True)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # fresh adapters are zero, and the teacher's equal
            torch.nn.init.normal_(parameter, std=0.02)
    trainers = {
        name: kind(model=adapted, args=args, train_dataset=[0], data_collator=SpeechCollator(processor))
        for name, kind in kinds.items()
    }
    if half and args.bf16:
        suit_half(adapted)
    if not encoder:
        model.leave_out_encoder()
    # As Trainer.train does it: mixed precision is laid around the model's forward here and nowhere else.
    return next(iter(trainers.values())).accelerator.prepare_model(adapted), trainers


def loss_and_gradient(trainer: Any, model: Any, batch: dict[str, Tensor]) -> tuple[float, Tensor]:
    """Without dropout: the loss, and the gradient of everything trained, as one vector."""
    model.eval()
    loss = trainer.compute_loss(model, trainer._prepare_inputs(dict(batch)))
    loss.backward()
    gradient = torch.cat([p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return loss.item(), gradient


def agreement(rival: tuple[float, Tensor], *ours: tuple[float, Tensor]) -> str:
    """How far results of `loss_and_gradient` agree; the last is of a top-k teacher, a lower bound.

    Raises:
        AssertionError: losses differ by more than 1e-4 of theirs, gradients by more than 4e-3 (features
            that are cached are float16), or the bound is above the loss.
    """
    (loss, gradient), (top, _) = rival, ours[-1]
    apart = max(abs(other - loss) / loss for other, _ in ours[:-1])
    turned = max(float((other - gradient).norm() / gradient.norm()) for _, other in ours[:-1])
    assert apart < 1e-4 and turned < 4e-3 and 0 < top <= loss * (1 + 1e-5), (apart, turned, top, loss)
    return f"loss {loss:.5f}, apart {apart:.0e}, gradients {turned:.0e} of their size; top-k {top:.5f}"


def linear_weights(module: nn.Module, adapters: bool) -> int:
    """Numbers in the matrices of `module`'s linear layers: the adapters', or all others."""
    return sum(
        layer.weight.numel()
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and ("lora_" in name) == adapters
    )


def llm_flops(llm: Any, shape: tuple[int, int], backward: bool, adapters: bool) -> float:
    """Multiplications and additions of a pass over (rows, length), padding included; attention over all."""
    rows, length = shape
    config: Any = llm.config
    frozen = 2 * linear_weights(llm, False) * rows * length
    trained = 2 * linear_weights(llm, True) * rows * length if adapters else 0
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    attention = 4 * rows * length**2 * width * config.num_hidden_layers
    if not backward:
        return frozen + trained + attention
    return frozen * (1 + BACKWARD) + 3 * (trained + attention)


def encoder_flops(model: Any, rows: int, mel_frames: int) -> float:
    """Of one pass of Whisper, as far as `model` reads it, over `mel_frames` of 10 ms, padding included."""
    encoder = model.model.audio_tower
    layers = layer_index(model.config.encoder_layer, len(encoder.layers))
    layers = len(encoder.layers) if layers is None else layers
    frames = mel_frames // 2
    convolutions = (
        2 * rows * (encoder.conv1.weight.numel() * mel_frames + encoder.conv2.weight.numel() * frames)
    )
    linear = 2 * sum(linear_weights(layer, False) for layer in encoder.layers[:layers]) * rows * frames
    attention = 4 * rows * frames**2 * encoder.config.d_model * layers
    return convolutions + linear + attention


def step_flops(model: Any, batch: dict[str, Tensor], everywhere: bool) -> dict[str, float]:
    """Of each part of one distillation step, from matrices and shapes; softmaxes and norms are not counted.

    Args:
        model: an AlignCapForConditionalGeneration with adapters in it.
        batch: what the layout reads (`pick`).
        everywhere: logits at every position, as the rivals have them, not at response positions alone.
    """
    llm, head = model.model.language_model, 2 * model.lm_head.weight.numel()
    response = int((batch["labels"] != IGNORE).sum())
    rows, length = batch["input_ids"].shape
    parts = {
        "LLM forward": llm_flops(llm, (rows, length), False, True),
        "head and loss": head * (rows * length if everywhere else response) * (1 + BACKWARD),
    }
    parts["LLM backward"] = llm_flops(llm, (rows, length), True, True) - parts["LLM forward"]
    audio = batch.get("padded_features", batch.get("input_features"))
    if audio is not None:
        parts["encoder"] = encoder_flops(model, rows, audio.shape[-1])
    tokens = int((batch["input_ids"] >= model.config.audio_token_id).sum())
    parts["projector"] = 6 * linear_weights(model.model.multi_modal_projector, False) * tokens
    if "teacher_input_ids" in batch:
        many, long = batch["teacher_input_ids"].shape
        parts["teacher's LLM"] = llm_flops(llm, (many, long), False, False)
        parts["teacher's head"] = head * (many * long if everywhere else response)
    elif "teacher_hidden" in batch:
        parts["teacher's head"] = head * response
    return parts


def trl_batch(rows: list[dict[str, Any]], processor: Any) -> dict[str, Tensor]:
    """trl's collation of pairs: chosen rows, then rejected rows, padded on the right; the audio of each."""
    texts = [(row["prompt_ids"], row[side]) for side in ("chosen_ids", "rejected_ids") for row in rows]
    longest = max(len(prompt) + len(response) for prompt, response in texts)
    ids = torch.full((len(texts), longest), processor.tokenizer.pad_token_id)
    mask, completion = torch.zeros_like(ids), torch.zeros_like(ids)
    for i, (prompt, response) in enumerate(texts):
        end = len(prompt) + len(response)
        ids[i, :end] = torch.tensor(prompt + response)
        mask[i, :end] = 1
        completion[i, len(prompt) : end] = 1
    batch = {"input_ids": ids, "attention_mask": mask, "completion_mask": completion}
    batch |= processor.features([row["samples"] for row in rows] * 2)
    return batch


def dpo_loss(model: Any, batch: dict[str, Tensor], beta: float, weights: list[float]) -> Tensor:
    """DPO and the cross-entropy of chosen captions by their weights, from logits at all positions.

    The reference (adapters off) is read live, unless its log-probabilities are in the batch.
    """
    others = ("completion_mask", "ref_chosen_logps", "ref_rejected_logps")
    inputs = {name: value for name, value in batch.items() if name not in others}
    completion = batch["completion_mask"][:, 1:]

    def log_probs() -> Tensor:
        logits = model(**inputs, use_cache=False).logits[:, :-1].float()
        words = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
        return (words * completion).sum(1)

    if "ref_chosen_logps" in batch:
        references = [batch["ref_chosen_logps"], batch["ref_rejected_logps"]]
    else:
        with torch.no_grad(), model.disable_adapter():
            references = list(log_probs().chunk(2))
    chosen, rejected = log_probs().chunk(2)
    margins = (chosen - references[0]) - (rejected - references[1])
    sft = -chosen.sum() / completion.chunk(2)[0].sum()
    return weights[0] * -F.logsigmoid(beta * margins).mean() + weights[1] * sft


OURS, LOGITS, HEAD = "ours", "all logits", "trl's head"
LIVE, KNOWN = "reference live", "reference cached"


class Rows(list[Any]):
    """Rows that a DPOTrainer takes for a PreferenceDataset."""

    reference = None


class Pairs:
    """A model with adapters away from the reference, one batch of pairs in both layouts, and their losses."""

    def __init__(
        self, start: Path, file: Path, batch: int, seconds: float, precision: str, folder: str
    ) -> None:
        base: Any
        base, processor = load_folder(start)
        options = {"precision": precision, "use_cpu": True, "report_to": "none", "output_dir": folder}
        self.args = SpeechDPOConfig(model=str(start), train_pairs=str(file), **options)
        found, rows = PreferenceDataset.from_pairs(file, inputs := ClipInputs(processor)), Rows()
        before, after = inputs.around()
        for i in range(0, len(found), max(1, len(found) // batch))[:batch]:
            row = found[i]
            row["samples"] = np.resize(row["samples"], round(seconds * 16_000))
            with torch.no_grad():
                row["frames"] = base.model.encode_audio(**processor.features([row["samples"]])).frames[0]
            tokens = [processor.audio_token_id] * processor.tokens_of_frames(len(row["frames"]))
            row["prompt_ids"] = [*before, *tokens, *after]
            rows.append(row)
        trainer: Any = SpeechDPOTrainer(base, self.args, processor, rows)  # type: ignore[arg-type]
        self.model: Any = trainer.model.train()
        generator = torch.Generator().manual_seed(0)
        for name, parameter in self.model.named_parameters():  # away from where all losses are ln 2
            if "lora_B" in name:
                parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
        ours_forward = base.forward
        add_fused_lm_head(base, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
        trl_forward = base.forward
        self.ours, self.trl = trainer.data_collator(rows), trl_batch(rows, processor)
        base.forward = ours_forward
        self.labels = self.ours["input_ids"].masked_fill(self.ours["completion_mask"] == 0, -100)
        with torch.no_grad(), self.model.disable_adapter():
            read = {k: v for k, v in self.ours.items() if k != "completion_mask"}
            sums = self.model(**read, labels=self.labels, fused_lm_head=True).log_probs.sum(1).chunk(2)
        known = dict(zip(("ref_chosen_logps", "ref_rejected_logps"), sums, strict=True))

        def loss(way: str, more: dict[str, Tensor]) -> Tensor:
            trainer.precompute_ref_logps = bool(more)
            base.forward = trl_forward if way == HEAD else ours_forward
            if way == OURS:
                return trainer.compute_loss(self.model, self.ours | more)
            if way == LOGITS:
                weights = self.args.loss_weights or [1.0]
                return dpo_loss(self.model, self.trl | more, self.args.beta, weights)
            return DPOTrainer._compute_loss(trainer, self.model, self.trl | more, False)

        self.losses = {
            (way, reference): partial(loss, way, more)
            for reference, more in ((LIVE, {}), (KNOWN, known))
            for way in (OURS, LOGITS, HEAD)
        }

    def as_trained(self, half: bool) -> None:
        """Laid out as `train dpo` does it: for bfloat16, and without the encoder, whose frames are cached."""
        if half:
            suit_half(self.model)
        self.model.get_base_model().leave_out_encoder()

    def step(
        self, way: tuple[str, str], bf16: bool = False, turn: int = 0
    ) -> tuple[float, dict[str, Tensor]]:
        """Forward and backward; the loss and its gradients."""
        self.model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = self.losses[way]()
        loss.backward()
        return loss.item(), {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}

    def check(self) -> str:
        """Losses and gradients of ours are those of "all logits", given the same frames, in float32."""
        live = self.step((LOGITS, LIVE))[0]
        encoded = self.trl
        frames = {name: torch.cat([value, value]) for name, value in self.ours.items() if "frames" in name}
        self.trl = {k: v for k, v in encoded.items() if "input_features" not in k} | frames
        apart, gap, wanted, found = 0.0, 0.0, 0.0, 0.0
        for reference in (LIVE, KNOWN):
            (wanted, theirs), (found, ours) = (self.step((way, reference)) for way in (LOGITS, OURS))
            # A tensor with next to no gradient has rounding alone.
            least = 1e-3 * max(gradient.norm() for gradient in theirs.values())
            apart = max(
                apart, *(float((ours[n] - g).norm() / max(g.norm(), least)) for n, g in theirs.items())
            )
            gap = max(gap, abs(found - wanted))
        self.trl = encoded
        assert gap < 1e-5 and apart < 1e-4 and abs(live - wanted) < 1e-3, (gap, apart, live - wanted)
        head = self.step((HEAD, LIVE))[0]
        return (
            f"float32 loss {found:.5f}; all logits {gap:.1e} apart, gradients {apart:.1e}; with their own "
            f"frames {abs(live - found):.1e}; trl's head, which takes the placeholder for a word, "
            f"{abs(head - found):.1e}"
        )

    def flops(self, way: str, reference: str) -> float:
        """Matrix multiplications of a step; the projector's are left out."""
        plain, encoded = self.model.get_base_model(), 0.0
        shape = tuple(self.trl["input_ids"].shape)
        scored = shape[0] * (shape[1] - (way == HEAD))
        if way == OURS:
            layout = pack_pairs(self.ours["input_ids"], self.ours["attention_mask"], self.labels)
            shape, scored = tuple(layout.inputs["input_ids"].shape), int(layout.keep.sum())
        else:
            encoded = encoder_flops(plain, *self.trl["input_features"].shape[::2])
        llm, head = plain.model.language_model, 2 * plain.lm_head.weight.numel() * scored
        again = way == HEAD  # trl's head computes its logits once more in the backward pass
        policy = llm_flops(llm, shape, True, True) + (1 + BACKWARD + again) * head
        read = llm_flops(llm, shape, False, False) + head + encoded
        return policy + encoded + (read if reference == LIVE else 0)
