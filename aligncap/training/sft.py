"""`train sft`: the speech student learns captions by cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aligncap.training.align import make_student
from aligncap.training.clips import read_clips
from aligncap.training.collators import SpeechCollator
from aligncap.training.config import StudentConfig
from aligncap.training.data import speech_datasets
from aligncap.training.resume import begin
from aligncap.training.trainer import CaptionTrainer, fit
from aligncap.utils.options import NaturalInt, PositiveFloat, changed, option


@dataclass
class SpeechSFTConfig(StudentConfig):
    """Cross-entropy on captions from speech.

    Writes to OUTPUT_DIR: the trained adapter and projector, `base/` on which they stand, the processor,
    run.json, log.jsonl, tensorboard logs and checkpoints.

    Examples:
        aligncap train sft --config sft
        aligncap train sft --config sft-projector --output_dir runs/projector
        accelerate launch --config_file configs/accelerate/cpu2.yaml scripts/train.py sft --config sft
    """

    train_llm: bool = option(
        True, "Adapt the LLM by LoRA; false: train the projector alone, and encoder_tuned."
    )
    projector_learning_rate: PositiveFloat | None = option(
        3e-4, "Learning rate of the projector once aligned; none: learning_rate."
    )
    encoder_lora: NaturalInt = option(
        0, "Rank of LoRA in the encoder, which then runs in every step; 0: it is frozen."
    )
    encoder_tuned: NaturalInt = option(
        0, "Last layers of the encoder, among those that run, to train in full; it then runs in every step."
    )
    encoder_learning_rate: PositiveFloat = option(1e-5, "Learning rate of those layers.")

    def own_errors(self) -> list[str]:
        errors = super().own_errors()
        if self.encoder_lora and not self.train_llm:
            errors.append("encoder_lora: with train_llm=false the projector alone learns; leave one out")
        if (self.encoder_lora or self.encoder_tuned) and self.feature_cache == "yes":
            errors.append(
                "feature_cache=yes: an encoder that learns gives other features each step; leave it out"
            )
        if not self.encoder_tuned and changed(self, ["encoder_learning_rate"]):
            errors.append("encoder_learning_rate: has no effect without encoder_tuned; leave it out")
        if self.encoder_lora:  # layers above encoder_layer have adapters too, and are not run
            self.ddp_find_unused_parameters = None
        return errors


class SpeechSFTTrainer(CaptionTrainer):
    """`CaptionTrainer` on speech (`data.SpeechDataset`): beside LoRA the projector is trained in full, and
    as asked the last layers of the encoder.
    """

    args: SpeechSFTConfig
    trains_projector = True

    def collator(self, processing_class: Any) -> SpeechCollator:
        return SpeechCollator(processing_class)


def run_sft(config: SpeechSFTConfig) -> int:
    """Train the student on captions; 130 when interrupted."""
    run = begin("train sft", config)
    manifests = [read_clips(path, p_act=config.aligns, group=run.group) for path in run.manifests]
    student = make_student(run, config, manifests)
    train, *dev = speech_datasets(student.rows, student.inputs)
    trainer = SpeechSFTTrainer(
        model=student.model,
        args=config,
        train_dataset=train,
        eval_dataset=dev[0] if dev else None,
        processing_class=student.processor,
    )
    return fit(trainer, run, manifests)
