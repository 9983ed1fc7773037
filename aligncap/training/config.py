"""Options that the training commands share: transformers' own, plus ours. Defaults are the measured recipe.

Each command's own options stand in its module: `TeacherConfig`, `AlignConfig`, `SpeechSFTConfig`,
`DistillConfig`, `SpeechDPOConfig`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from transformers import TrainingArguments

from aligncap.models.hub import DEFAULT_ENCODER, DEFAULT_LLM
from aligncap.models.precision import training_dtype
from aligncap.models.quantise import Weights, quantise_errors
from aligncap.text.prompts import speaker_words
from aligncap.training.sharding import launch_errors, shards_weights
from aligncap.utils.errors import UserErrors
from aligncap.utils.options import (
    Dropout,
    NaturalInt,
    PositiveFloat,
    PositiveInt,
    Range,
    changed,
    option,
    range_errors,
)

T = TypeVar("T")


def _each(names: str, value: T) -> dict[str, T]:
    return dict.fromkeys(names.split(), value)


# Ranges of numbers that transformers and trl declare without one.
RANGES: dict[str, Range] = {
    **_each("per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps", Range(1)),
    **_each("save_total_limit torch_empty_cache_steps dataloader_prefetch_factor ddp_timeout", Range(1)),
    **_each("dataloader_num_workers seed data_seed", Range(0)),
    **_each("learning_rate num_train_epochs save_steps eval_steps logging_steps", Range(0, open_low=True)),
    **_each("adam_epsilon beta discopop_tau", Range(0, open_low=True)),
    **_each("warmup_steps weight_decay max_grad_norm eval_delay neftune_noise_alpha", Range(0)),
    **_each("adam_beta1 adam_beta2", Range(0, 1, open_high=True)),
    "max_steps": Range(-1),
    "label_smoothing": Range(0, 0.5, open_high=True),
    "ld_alpha": Range(0, 1),
}

# Inherited options that change nothing here, and what does in their place.
IDLE: dict[str, str] = {
    **_each("bf16 fp16 bf16_full_eval fp16_full_eval", "precision"),
    "label_smoothing_factor": "smoothing",
    **_each("do_train do_eval do_predict prediction_loss_only eval_do_concat_batches", ""),
    **_each("eval_accumulation_steps eval_use_gather_object include_for_metrics batch_eval_metrics", ""),
    **_each("use_cache use_liger_kernel liger_kernel_config length_column_name", ""),
    **_each("torch_compile torch_compile_backend torch_compile_mode", "compile_layers"),
    **_each("remove_unused_columns label_names", ""),
}
FeatureCaching = Literal["auto", "yes", "no"]
FEATURE_CACHE = (
    "Encode all speech once and keep it; no: in every step; auto: if the features take no more than 20 GB."
)
USE_P_ACT = "Show the teacher the acoustic prompt; false: the transcript alone (an ablation)."


@dataclass
class RunConfig(TrainingArguments):
    """Options that all training commands share.

    Raises:
        UserErrors: every number out of its range, unknown choice, option without effect, missing file.
    """

    MANY_PROCESSES: ClassVar[bool] = True
    REQUIRED: ClassVar[dict[str, str]] = {"train_manifest": "data/train.jsonl"}  # of the command: an example
    IDLE: ClassVar[dict[str, str]] = IDLE

    output_dir: str | None = option(None, "Folder of the run; made if missing.")
    dev_manifest: str | None = option(None, "Manifest whose loss is reported during training.")
    lora_r: PositiveInt = option(8, "Rank of LoRA.")
    lora_alpha: PositiveInt = option(16, "Scale of LoRA.")
    lora_dropout: Dropout = option(0.05, "Dropout in LoRA.")
    lora_targets: str = option(
        "auto", "Comma-separated linear layers of the LLM to adapt; auto: q and v projections."
    )
    max_response_tokens: PositiveInt = option(
        64, "Longest caption, its end token included; the model keeps it as the limit of its own captions."
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "What is trained stays float32; auto: bfloat16 where the device has it, on GPUs without it float16 "
        "with scaled losses.",
    )
    compile_layers: bool = option(
        False, "Compile the LLM's layers by torch.compile: minutes at the start, faster steps on GPUs."
    )
    llm_weights: Weights = option(
        "full",
        "How the frozen LLM is held in training: full, int8, nf4 (4 bits; aligncap[bits]); full weights are "
        "saved and merged.",
    )
    tokens_per_batch: NaturalInt = option(
        0,
        "Rows of like length share a batch of so many tokens, padding included; "
        "0: per_device_train_batch_size rows.",
    )
    length_buckets: bool = option(False, "Rows of like length share a batch of a fixed number of rows.")
    packing: bool = option(
        False,
        "Several texts share a row of the LLM, each seeing itself alone: 3 % of padding or less "
        "(docs/batches.md). With tokens_per_batch rows of any length share a batch.",
    )

    dataloader_num_workers: NaturalInt | None = option(  # type: ignore[assignment]
        None, "Processes that read and decode sound, of each that trains; none: 0 on a CPU, else up to 8."
    )

    learning_rate: float = 1e-3
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 32
    num_train_epochs: float | None = option(None, "Passes over the data, in place of max_steps.")  # type: ignore[assignment]
    max_steps: int = 150
    warmup_steps: float = 0.05
    weight_decay: float = 0.01
    lr_scheduler_type: str = "linear"
    logging_steps: float = 10
    save_steps: float = 100
    save_total_limit: int | None = 2
    report_to: None | str | list[str] = "tensorboard"
    remove_unused_columns: bool = False
    # With it the host reads each step's loss to see whether it is a number, and waits for the GPU.
    logging_nan_inf_filter: bool = False
    # Everything that is trained has a gradient in every step (tests/training/test_kernels.py).
    ddp_find_unused_parameters: bool | None = False
    label_names: list[str] | None = field(default_factory=lambda: ["labels"])

    @staticmethod
    def complete_words(words: list[str]) -> list[str]:
        """Of `--max_steps` and `--num_train_epochs`, the last counts, whatever the defaults are."""
        places = {word.partition("=")[0]: place for place, word in enumerate(words)}
        steps, epochs = (places.get(name, -1) for name in ("--max_steps", "--num_train_epochs"))
        if epochs > steps >= 0:
            return [*words, "--max_steps", "-1"]
        if steps > epochs >= 0 and "-1" not in (
            words[steps].partition("=")[2],
            *words[steps + 1 : steps + 2],
        ):
            return [*words, "--num_train_epochs", "none"]
        return words

    def __post_init__(self) -> None:
        errors = [
            *range_errors(self, RANGES),
            *_idle_errors(self),
            *self._run_errors(),
            *launch_errors(self),
            *quantise_errors(self.llm_weights),
            *self.own_errors(),
        ]
        if errors:
            raise UserErrors(errors)
        if self.num_train_epochs is None:
            self.num_train_epochs = 3.0
        elif self.max_steps == type(self).max_steps:
            self.max_steps = -1
        if self.dev_manifest and self.eval_strategy == "no":
            self.eval_strategy, self.eval_steps = "steps", self.eval_steps or self.save_steps
        if not torch.cuda.is_available():
            self.use_cpu = True
        if self.dataloader_num_workers is None:
            self.dataloader_num_workers = 0 if self.use_cpu else spare_cores()
        dtype, self.precision_reason = training_dtype(self.precision)
        if dtype == torch.float16 and shards_weights(self):
            dtype, self.precision_reason = torch.float32, "float32: weights in shards, and no bfloat16"
        self.bf16, self.fp16 = dtype == torch.bfloat16, dtype == torch.float16
        super().__post_init__()

    @property
    def compute_dtype(self) -> torch.dtype:
        """What forward passes compute in; what is trained is float32."""
        return torch.bfloat16 if self.bf16 else torch.float16 if self.fp16 else torch.float32

    def own_errors(self) -> list[str]:
        """What a subclass finds wrong with its options, a line each."""
        return []

    def _run_errors(self) -> list[str]:
        errors = []
        if not self.output_dir:
            errors.append("output_dir is missing: name a folder for the run, e.g. --output_dir runs/first")
        for name in ("train_manifest", "dev_manifest"):
            value = getattr(self, name, None)
            if value and not Path(value).is_file():
                errors.append(
                    f"{name}: {value}: no such file; make it with `aligncap prepare` … `aligncap clues`"
                )
        if self.llm_weights != "full" and shards_weights(self):
            errors.append(f"llm_weights={self.llm_weights}: not with weights in shards; choose full, or ddp")
        if self.precision == "float16":
            if self.use_cpu or not torch.cuda.is_available():
                errors.append("precision=float16: needs a GPU; choose auto, float32 or bfloat16")
            elif shards_weights(self):
                errors.append("precision=float16: not with weights in shards; choose float32 or bfloat16")
        if self.max_steps == 0:
            errors.append("max_steps=0: must be at least 1; -1 with num_train_epochs")
        if (
            self.tokens_per_batch
            and self.per_device_train_batch_size != type(self).per_device_train_batch_size
        ):
            errors.append(
                f"tokens_per_batch={self.tokens_per_batch} and per_device_train_batch_size="
                f"{self.per_device_train_batch_size}: which of them cuts the batches? leave one out"
            )
        if self.packing and self.length_buckets:
            errors.append("packing and length_buckets: packed rows need not be alike; leave one out")
        if self.train_sampling_strategy == "group_by_length":
            errors.append("train_sampling_strategy=group_by_length: cannot be had; use length_buckets")
        elif (self.tokens_per_batch or self.length_buckets) and self.train_sampling_strategy != "random":
            errors.append("train_sampling_strategy: has no effect with buckets by length; leave one out")
        return errors


@dataclass
class CaptionConfig(RunConfig):
    """Options of the commands that learn from captions."""

    train_manifest: str | None = option(None, "Manifest to learn from, with captions and P_act.")
    llm: str = option(DEFAULT_LLM, "Language model: name, folder or hub id.")
    smoothing: Dropout = option(0.0, "Label smoothing of the cross-entropy.")


SHAPE = (  # options of a student that a checkpoint brings
    "encoder encoder_layer pool_size stack_size projector queries projector_hidden projector_dropout"
    " summary_token speaker_token emotion_token show_cues"
).split()


@dataclass
class StudentConfig(CaptionConfig):
    """Options of the speech student: its parts, and its projector before decoding is trained."""

    balance: bool = option(
        True, "Repeat clips of rarer emotion labels, up to four times; clips without a label stand once."
    )
    start: str | None = option(
        None,
        "Trained student to go on from: its encoder, projector and LLM, and its adapter, which learns on; of "
        "a merged model with a fresh one. --llm and the alignment have no part then.",
    )
    encoder: str = option(
        DEFAULT_ENCODER, "Speech encoder, name or folder; docs/encoders.md lists the families."
    )
    encoder_layer: str = option("mix", "last, mix, or the number of encoder layers to run.")
    pool_size: PositiveInt = option(16, "Encoder frames (20 ms) averaged into one.")
    stack_size: PositiveInt = option(4, "Pooled frames stacked into one audio token.")
    projector: str = option("mlp", "mlp, linear, conv, qformer, or one of your own (docs/encoders.md).")
    queries: PositiveInt = option(32, "Of qformer: audio tokens of a clip.")
    projector_hidden: PositiveInt = option(512, "Width of the projector's hidden layer.")
    projector_dropout: Dropout = option(0.3, "Dropout in the projector.")
    summary_token: bool = option(True, "Add one token of the clip's mean and standard deviation.")
    speaker_token: bool = option(True, "Add one token that says who speaks: a woman or a man.")
    emotion_token: bool = option(
        True, "Add one token that says the emotion, read linearly from the encoder (docs/architecture.md)."
    )
    augment: bool = option(
        True, "Hear every second caption's clip through another channel: equaliser, room, noise, codec."
    )
    show_cues: bool = option(
        False, "Show the student the manifest's measured cues, in training and captioning."
    )
    align_by: Literal["clues", "contrastive"] = option(
        "clues",
        "Projector alignment: to the words of P_act (clues), or clip to text (contrastive, CL-Align).",
    )
    align_steps: NaturalInt = option(
        400, "Steps of projector alignment before decoding; 0: none, and words of tokens are not fitted."
    )
    align_learning_rate: PositiveFloat = option(1e-3, "Its learning rate.")
    feature_cache: FeatureCaching = option("auto", FEATURE_CACHE)
    cache_dir: str = option("runs/cache", "Folder of the caches.")

    def own_errors(self) -> list[str]:
        errors = super().own_errors()
        if self.encoder_layer not in ("last", "mix") and not self.encoder_layer.isdigit():
            errors.append(f"encoder_layer={self.encoder_layer}: choose last, mix or a number")
        if self.start:
            if not Path(self.start).is_dir():
                errors.append(f"start: {self.start}: no such folder; give the folder of a trained student")
            own = f"with start it is that of {self.start}; leave it out"
            errors += [f"{name}: {own}" for name in changed(self, SHAPE)]
        return errors

    def model_options(self) -> dict[str, Any]:
        """Options of the model and its processor, as `models.build.build` takes them."""
        names = (
            "pool_size stack_size projector_hidden projector_dropout summary_token show_cues "
            "max_response_tokens"
        )
        layer = self.encoder_layer
        own: dict[str, Any] = {"encoder_layer": int(layer) if layer.isdigit() else layer}
        own |= {"speakers": speaker_words() if self.speaker_token else []}
        own |= {
            "projector_type": self.projector,
            "queries": self.queries if self.projector == "qformer" else 0,
        }
        return own | {name: getattr(self, name) for name in names.split()}

    @property
    def aligns(self) -> bool:
        """Whether a fresh projector is aligned before decoding is trained, which reads acoustic prompts."""
        return self.align_steps > 0 and not self.start

    def align_options(self) -> dict[str, Any]:
        """Options of `align.align`."""
        rate, steps = self.align_learning_rate, self.align_steps
        return {"way": self.align_by, "steps": steps, "learning_rate": rate, "seed": self.seed}


def spare_cores(most: int = 8) -> int:
    """Cores of this machine that each training process may have beside its own; at least 1."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(most, _cores() // processes - 1))


def _cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _idle_errors(config: RunConfig) -> list[str]:
    own = {f.name for f in fields(config)}
    return [
        f"{name}: has no effect here; " + (f"use {instead}" if instead in own else "leave it out")
        for name in changed(config, config.IDLE)
        for instead in [config.IDLE[name]]
    ]
