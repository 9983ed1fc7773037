"""`train teacher`: the text LLM learns transcript + P_act -> caption.

Merged, it is the LLM of teacher and student.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel

from aligncap.models.build import load_llm
from aligncap.models.checkpoints import llm_dtype, save_whole
from aligncap.models.hub import resolve
from aligncap.models.quantise import quantise
from aligncap.training.clips import read_clips
from aligncap.training.collators import TextCollator
from aligncap.training.config import USE_P_ACT, CaptionConfig
from aligncap.training.data import CaptionRows, TextDataset
from aligncap.training.resume import begin
from aligncap.training.sharding import load_whole
from aligncap.training.trainer import BucketedTrainer, CaptionTrainer, fit
from aligncap.utils.io import workplace
from aligncap.utils.options import option


@dataclass
class TeacherConfig(CaptionConfig):
    """SFT of the text LLM on transcript + P_act -> caption; the adapters are merged at the end.

    Writes to OUTPUT_DIR: a plain causal LM with its tokenizer, run.json, log.jsonl, tensorboard logs and
    checkpoints.

    Examples:
        aligncap train teacher --config teacher
        aligncap train teacher --train_manifest data/train.jsonl --output_dir runs/teacher --max_steps 60
    """

    learning_rate: float = 5e-4
    use_p_act: bool = option(True, USE_P_ACT)


class TeacherTrainer(CaptionTrainer):
    """`CaptionTrainer` on text (`data.TextDataset`); `processing_class` is the tokenizer, which can pad."""

    args: TeacherConfig

    def collator(self, processing_class: Any) -> TextCollator:
        return TextCollator(processing_class.pad_token_id)


def run_teacher(config: TeacherConfig) -> int:
    """Train, merge and save the teacher; 130 when interrupted."""
    run = begin("train teacher", config)
    manifests = [read_clips(path, p_act=config.use_p_act, group=run.group) for path in run.manifests]
    model, tokenizer = load_llm(config.llm)
    quantise(model, model, config.llm_weights)
    limit, use_p_act = config.max_response_tokens, config.use_p_act
    train, *dev = (
        TextDataset(
            CaptionRows.of(clips, tokenizer, max_response_tokens=limit, use_p_act=use_p_act, once=True)
        )
        for clips in manifests
    )
    trainer = TeacherTrainer(
        model=model,
        args=config,
        train_dataset=train,
        eval_dataset=dev[0] if dev else None,
        processing_class=tokenizer,
    )

    def save(trainer: BucketedTrainer, out: Path) -> None:
        with workplace(out / "adapter") as adapter:
            trainer.save_model(str(adapter))  # gathers weights that lie in shards
            load_whole(config)
            if trainer.is_world_process_zero():
                whole, tokenizer = load_llm(config.llm)
                tokenizer.save_pretrained(out)
                merged = PeftModel.from_pretrained(whole, adapter).merge_and_unload()
                save_whole(merged, out, llm_dtype(resolve(config.llm)))
        trainer.accelerator.wait_for_everyone()

    return fit(trainer, run, manifests, save=save)
