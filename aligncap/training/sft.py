"""`train sft`: the speech student learns captions by cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aligncap.training.align import make_student
from aligncap.training.collators import SpeechCollator
from aligncap.training.config import StudentConfig
from aligncap.training.data import read_clips, speech_datasets
from aligncap.training.resume import begin
from aligncap.training.trainer import CaptionTrainer, fit
from aligncap.utils.options import NaturalInt, PositiveFloat, option


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

    train_llm: bool = option(True, "Adapt the LLM by LoRA; false: train the projector alone.")
    projector_learning_rate: PositiveFloat | None = option(
        3e-4, "Learning rate of the projector once aligned; none: learning_rate."
    )
    encoder_lora: NaturalInt = option(
        0, "Rank of LoRA in the encoder, which then runs in every step; 0: it is frozen."
    )
    feature_cache: bool = option(True, "Read encoder features from the cache; false: encode in every step.")

    def own_errors(self) -> list[str]:
        errors = super().own_errors()
        if self.encoder_lora and not self.train_llm:
            errors.append("encoder_lora: with train_llm=false the projector alone learns; leave one out")
        if self.encoder_lora:  # layers above encoder_layer have adapters too, and are not run
            self.ddp_find_unused_parameters = None
        return errors

    @property
    def reads_cache(self) -> bool:
        """Whether what the encoder hears is computed once."""
        return self.feature_cache and not self.encoder_lora


class SpeechSFTTrainer(CaptionTrainer):
    """`CaptionTrainer` on speech (`data.SpeechDataset`): the projector is trained in full beside LoRA."""

    args: SpeechSFTConfig
    trains_projector = True

    def collator(self, processing_class: Any) -> SpeechCollator:
        return SpeechCollator(processing_class)


def run_sft(config: SpeechSFTConfig) -> int:
    """Train the student on captions; 130 when interrupted."""
    run = begin("train sft", config)
    manifests = [read_clips(path, p_act=config.align_steps > 0) for path in run.manifests]
    student = make_student(run, config, manifests)
    inputs = student.inputs if config.reads_cache else student.inputs.live()
    train, *dev = speech_datasets(student.rows, inputs)
    trainer = SpeechSFTTrainer(
        model=student.model,
        args=config,
        train_dataset=train,
        eval_dataset=dev[0] if dev else None,
        processing_class=student.processor,
    )
    return fit(trainer, run, manifests)
