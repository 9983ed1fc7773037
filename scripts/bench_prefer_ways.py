"""What scripts/bench_prefer.py times: our step and its rivals in their own layout, and what they multiply."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step_flops import BACKWARD, encoder_flops, llm_flops
from torch import Tensor
from torch.nn import functional as F
from trl import DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from aligncap.audio.files import load_audio
from aligncap.data.manifest import audio_path, read_manifest
from aligncap.models.checkpoints import load_folder
from aligncap.text.prompts import response_ids
from aligncap.training.config import SpeechDPOConfig
from aligncap.training.data import ClipInputs, PreferenceCollator, manifest_of_pairs, read_pairs
from aligncap.training.dpo import SpeechDPOTrainer
from aligncap.training.shared_prefix import pack_pairs
from aligncap.training.trainer import lora_config

OURS, LOGITS, HEAD = "ours", "all logits", "trl's head"
REFERENCES = ("reference live", "reference cached")


def real_rows(a: argparse.Namespace, model: Any, processor: Any, seconds: float) -> list[dict[str, Any]]:
    """`a.batch` pairs spread over the file; clips repeated to `seconds`, with their pooled frames."""
    pairs_file = str(a.pairs or a.run / "pairs.jsonl")
    manifest = manifest_of_pairs(pairs_file, None)
    pairs = read_pairs(pairs_file, manifest, read_manifest(Path(manifest)), None)
    around = ClipInputs(processor, None).around(None)
    rows = []
    for pair in pairs[:: max(1, len(pairs) // a.batch)][: a.batch]:
        clip = np.resize(load_audio(audio_path(manifest, pair.utterance)), round(seconds * 16_000))
        with torch.no_grad():
            frames = model.model.encode_audio(**processor.log_mel([clip])).frames[0]
        count = processor.tokens_of_frames(len(frames))
        rows.append(
            {
                "prompt_ids": [*around[0], *[processor.audio_token_id] * count, *around[1]],
                "samples": clip,
                "frames": frames,
                **({"speaker_mean": frames.mean(0)} if processor.speaker_relative else {}),
                "chosen_ids": response_ids(processor.tokenizer, pair.chosen, 64),
                "rejected_ids": response_ids(processor.tokenizer, pair.rejected, 64),
            }
        )
    return rows


def trl_batch(rows: list[dict[str, Any]], processor: Any) -> dict[str, Tensor]:
    """trl's collation: chosen rows, then rejected rows, padded on the right; the audio of each."""
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
    batch |= processor.log_mel([row["samples"] for row in rows] * 2)
    if "speaker_mean" in rows[0]:
        batch["speaker_means"] = torch.stack([row["speaker_mean"] for row in rows] * 2)
    return batch


def dpo(model: Any, batch: dict[str, Tensor], args: SpeechDPOConfig) -> Tensor:
    """DPO and the cross-entropy of chosen captions by their weights, from logits at all positions."""
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
    weights = args.loss_weights or [1.0]
    return weights[0] * -F.logsigmoid(args.beta * margins).mean() + weights[1] * sft


class Ways:
    """Model, batches and the loss of each way: `losses[way, reference]()`."""

    def __init__(self, a: argparse.Namespace, seconds: float, folder: str) -> None:
        start = a.model or next(
            p for p in (a.run / "start", a.run / "model") if (p / "config.json").is_file()
        )
        base: Any
        base, processor = load_folder(start)
        pairs = str(a.pairs or a.run / "pairs.jsonl")
        self.args = SpeechDPOConfig(
            output_dir=folder,
            model=str(start),
            train_pairs=pairs,
            report_to="none",
            precision=a.precision,
            use_cpu=True,
        )
        self.rows = real_rows(a, base, processor, seconds)
        base.requires_grad_(False)
        base.model.multi_modal_projector.speaker_dropout = 0.0
        trainer = SpeechDPOTrainer(
            model=base,
            peft_config=lora_config(base, self.args, projector=True),
            args=self.args,
            rows=self.rows,
            data_collator=PreferenceCollator(processor),
            processing_class=processor,
        )
        model: Any = trainer.model
        self.model = model
        generator = torch.Generator().manual_seed(0)
        for name, parameter in model.named_parameters():  # away from the reference, where all losses are ln 2
            if "lora_B" in name:
                parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
        model.train()
        ours_forward = base.forward
        add_fused_lm_head(base, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
        trl_forward = base.forward
        self.ours = PreferenceCollator(processor)(self.rows)
        self.trl = trl_batch(self.rows, processor)
        base.forward = ours_forward
        with torch.no_grad(), model.disable_adapter():
            labels = self.ours["input_ids"].masked_fill(self.ours["completion_mask"] == 0, -100)
            inputs = {k: v for k, v in self.ours.items() if k != "completion_mask"}
            sums = model(**inputs, labels=labels, fused_lm_head=True).log_probs.sum(1).chunk(2)
        cached = dict(zip(("ref_chosen_logps", "ref_rejected_logps"), sums, strict=True))

        def loss_of(way: str, more: dict[str, Tensor]) -> Tensor:
            trainer.precompute_ref_logps = bool(more)
            base.forward = trl_forward if way == HEAD else ours_forward
            if way == OURS:
                return trainer.compute_loss(model, self.ours | more)
            if way == LOGITS:
                return dpo(model, self.trl | more, self.args)
            return DPOTrainer._compute_loss(trainer, model, self.trl | more, False)

        self.losses: dict[tuple[str, str], Callable[[], Tensor]] = {
            (way, reference): lambda way=way, more=more: loss_of(way, more)  # type: ignore[misc]
            for reference, more in zip(REFERENCES, ({}, cached), strict=True)
            for way in (OURS, LOGITS, HEAD)
        }

    def step(self, way: tuple[str, str], bf16: bool) -> tuple[float, dict[str, Tensor]]:
        """Forward and backward; the loss and its gradients."""
        self.model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = self.losses[way]()
        loss.backward()
        return loss.item(), {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}

    def check(self) -> str:
        """Losses and gradients of ours are those of the rival, given the same pooled frames, in float32."""
        live = self.step((LOGITS, REFERENCES[0]), False)[0]
        encoded = self.trl
        frames = {name: torch.cat([value, value]) for name, value in self.ours.items() if "frames" in name}
        self.trl = {k: v for k, v in encoded.items() if "input_features" not in k} | frames
        losses, apart = [], 0.0
        for reference in REFERENCES:
            wanted, gradients = self.step((LOGITS, reference), False)
            gradients = {name: g.clone() for name, g in gradients.items()}
            largest = max(gradient.norm() for gradient in gradients.values())
            found, ours = self.step((OURS, reference), False)
            assert gradients.keys() == ours.keys()
            for name, gradient in gradients.items():
                # The speaker's projector has next to no gradient: of it, rounding is all there is.
                size = max(gradient.norm(), 1e-3 * largest)
                apart = max(apart, float((ours[name] - gradient).norm() / size))
            assert abs(found - wanted) < 1e-5, (found, wanted)
            losses += [found, wanted]
        assert apart < 1e-4, apart
        self.trl = encoded
        assert abs(live - losses[0]) < 1e-3, (live, losses[0])  # frames of single clips, and of the batch
        head = self.step((HEAD, REFERENCES[0]), False)[0]
        return (
            f"float32 loss {losses[0]:.5f}; all logits {abs(losses[0] - losses[1]):.1e} apart, gradients "
            f"{apart:.1e}; with their own frames {abs(live - losses[0]):.1e}; trl's head, to which the audio "
            f"placeholder is a word, {abs(head - losses[0]):.1e}"
        )

    def flops(self, way: str, reference: str) -> float:
        """Matrix multiplications of a step; the projector's are left out."""
        live, plain = reference == REFERENCES[0], self.model.get_base_model()
        if way == OURS:
            labels = self.ours["input_ids"].masked_fill(self.ours["completion_mask"] == 0, -100)
            layout = pack_pairs(self.ours["input_ids"], self.ours["attention_mask"], labels)
            (rows, length), scored = layout.inputs["input_ids"].shape, int(layout.keep.sum())
            encoded = 0.0
        else:
            rows, length = self.trl["input_ids"].shape
            scored = rows * (length - (way == HEAD))
            encoded = encoder_flops(plain, *self.trl["input_features"].shape[::2])
        llm, head = plain.model.language_model, 2 * plain.lm_head.weight.numel() * scored
        again = way == HEAD  # trl's head computes its logits once more in the backward pass
        policy = llm_flops(llm, (rows, length), True, True) + (1 + BACKWARD + again) * head
        read = llm_flops(llm, (rows, length), False, False) + head
        return policy + encoded + live * (read + encoded)
