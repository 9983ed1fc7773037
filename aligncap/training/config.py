"""Options of the training verbs: transformers' own, plus ours. Deerrors are the measured recipe."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar, cast

import torch
import yaml
from transformers import TrainingArguments
from trl import DPOConfig, TrlParser

from aligncap.models.hub import DEFAULT_ENCODER, DEFAULT_LLM
from aligncap.models.precision import has_bfloat16
from aligncap.training.sharding import launch_errors
from aligncap.utils.errors import UserError, UserErrors, nearest

A = TypeVar("A", bound="RunConfig")


USE_P_ACT = "Show the teacher the acoustic prompt; no: transcript alone (an ablation)."


@dataclass
class RunConfig(TrainingArguments):
    """Shared by all training verbs."""

    output_dir: str | None = field(default=None, metadata={"help": "Folder of the run; made if missing."})
    dev_manifest: str | None = field(
        default=None, metadata={"help": "Manifest whose loss is reported during training."}
    )
    lora_r: int = field(default=8, metadata={"help": "Rank of LoRA."})
    lora_alpha: int = field(default=16, metadata={"help": "Scale of LoRA."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout in LoRA."})
    lora_targets: str = field(
        default="auto",
        metadata={"help": "Comma-separated linear layers of the LLM to adapt; auto: q and v projections."},
    )
    max_response_tokens: int = field(
        default=64, metadata={"help": "Longer captions are cut, their end token kept."}
    )
    precision: str = field(
        default="auto", metadata={"help": "auto, float32 or bfloat16 (what is trained stays float32)."}
    )
    tokens_per_batch: int = field(
        default=0,
        metadata={
            "help": "Rows of like length share a batch of so many tokens, padding included; "
            "0: per_device_train_batch_size rows."
        },
    )
    length_buckets: bool = field(
        default=False, metadata={"help": "Rows of like length share a batch of a fixed number of rows."}
    )

    learning_rate: float = 1e-3
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 32
    max_steps: int = 150
    warmup_steps: float = 0.05
    weight_decay: float = 0.01
    lr_scheduler_type: str = "linear"
    logging_steps: float = 10
    save_steps: float = 100
    save_total_limit: int | None = 2
    report_to: None | str | list[str] = "tensorboard"
    remove_unused_columns: bool = False
    label_names: list[str] | None = field(default_factory=lambda: ["labels"])

    def __post_init__(self) -> None:
        errors = []
        if not self.output_dir:
            errors.append("output_dir is missing: name a folder for the run, e.g. --output_dir runs/first")
        for name in ("train_manifest", "dev_manifest"):
            value = getattr(self, name, None)
            if value and not Path(value).is_file():
                errors.append(
                    f"{name}: {value}: no such file; make it with `aligncap prepare` … `aligncap clues`"
                )
        if self.precision not in ("auto", "float32", "bfloat16"):
            errors.append(f"precision={self.precision!r}: choose auto, float32 or bfloat16")
        for name in (
            "lora_r",
            "lora_alpha",
            "max_response_tokens",
            "pool_size",
            "stack_size",
            "projector_hidden",
        ):
            if getattr(self, name, 1) < 1:
                errors.append(f"{name}={getattr(self, name)}: must be 1 or more")
        for name in ("smoothing", "lora_dropout", "projector_dropout", "speaker_dropout"):
            if not 0 <= getattr(self, name, 0.0) < 1:
                errors.append(f"{name}={getattr(self, name)}: must lie in [0, 1)")
        errors += [*launch_errors(self), *self.batch_errors(), *self.own_errors()]
        if errors:
            raise UserErrors(errors)
        if self.dev_manifest and self.eval_strategy == "no":
            self.eval_strategy, self.eval_steps = "steps", self.eval_steps or self.save_steps
        if not torch.cuda.is_available():
            self.use_cpu = True
        self.bf16, self.precision_reason = choose_precision(self.precision)
        super().__post_init__()

    def batch_errors(self) -> list[str]:
        """UserErrors of the options that say which rows share a batch."""
        errors = []
        if self.tokens_per_batch < 0:
            errors.append(f"tokens_per_batch={self.tokens_per_batch}: must be 0 (off) or more")
        if (
            self.tokens_per_batch
            and self.per_device_train_batch_size != type(self).per_device_train_batch_size
        ):
            errors.append(
                f"tokens_per_batch={self.tokens_per_batch} and per_device_train_batch_size="
                f"{self.per_device_train_batch_size}: which of them cuts the batches? leave one out"
            )
        if (self.tokens_per_batch or self.length_buckets) and self.train_sampling_strategy != "random":
            errors.append("train_sampling_strategy: has no effect with buckets by length; leave one out")
        return errors

    def own_errors(self) -> list[str]:
        """UserErrors of the options that a subclass adds."""
        return []


@dataclass
class CaptionConfig(RunConfig):
    """Shared by the verbs that learn from captions."""

    train_manifest: str | None = field(
        default=None, metadata={"help": "Manifest to learn from, with captions and P_act."}
    )
    llm: str = field(default=DEFAULT_LLM, metadata={"help": "Language model: name, folder or hub id."})
    smoothing: float = field(default=0.0, metadata={"help": "Label smoothing of the cross-entropy."})

    def own_errors(self) -> list[str]:
        if self.train_manifest:
            return []
        return ["train_manifest is missing: name a manifest, e.g. --train_manifest data/train.jsonl"]


@dataclass
class TeacherConfig(CaptionConfig):
    """`train teacher`: SFT of the text LLM on transcript + P_act -> caption, adapters merged at the end."""

    max_steps: int = 150
    learning_rate: float = 5e-4
    use_p_act: bool = field(default=True, metadata={"help": USE_P_ACT})


@dataclass
class SpeechSFTConfig(CaptionConfig):
    """`train sft`: cross-entropy on captions from speech."""

    balance: bool = field(default=True, metadata={"help": "Repeat clips of rarer emotion labels."})
    encoder: str = field(
        default=DEFAULT_ENCODER, metadata={"help": "Speech encoder: any Whisper, name or folder."}
    )
    encoder_layer: str = field(
        default="mix", metadata={"help": "last, mix, or the number of encoder layers to run."}
    )
    pool_size: int = field(default=16, metadata={"help": "Encoder frames (20 ms) averaged into one."})
    stack_size: int = field(default=4, metadata={"help": "Pooled frames stacked into one audio token."})
    projector_hidden: int = field(default=512, metadata={"help": "Width of the projector's hidden layer."})
    projector_dropout: float = field(default=0.3, metadata={"help": "Dropout in the projector."})
    summary_token: bool = field(
        default=True, metadata={"help": "Add one token of the clip's mean and spread."}
    )
    speaker_relative: bool = field(
        default=True,
        metadata={"help": "Hear each clip against the mean of its speaker's clips (unlabelled)."},
    )
    speaker_dropout: float = field(
        default=0.1, metadata={"help": "Share of training clips whose speaker is taken for unknown."}
    )
    show_cues: bool = field(
        default=False,
        metadata={"help": "Show the student the manifest's measured cues, in training and captioning."},
    )
    train_llm: bool = field(
        default=True, metadata={"help": "Adapt the LLM by LoRA; no: train the projector alone."}
    )
    align_by: str = field(
        default="clues",
        metadata={"help": "Projector alignment: clues (to the words of P_act) or contrastive (CL-Align)."},
    )
    align_steps: int = field(
        default=400,
        metadata={"help": "Steps of projector alignment with clue words before decoding; 0: none."},
    )
    align_learning_rate: float = field(default=1e-3, metadata={"help": "Its learning rate."})
    projector_learning_rate: float | None = field(
        default=3e-4, metadata={"help": "Learning rate of the projector once aligned; none: learning_rate."}
    )
    feature_cache: bool = field(
        default=True, metadata={"help": "Compute encoder features once, before training."}
    )
    cache_dir: str = field(default="runs/cache", metadata={"help": "Folder of the caches."})

    def own_errors(self) -> list[str]:
        from aligncap.training.align import WAYS

        errors = super().own_errors()
        if self.align_by not in WAYS:
            errors.append(f"align_by={self.align_by!r}: choose {' or '.join(WAYS)}")
        return errors


@dataclass
class AlignConfig(SpeechSFTConfig):
    """`train align`: the projector alone, drawn to text before decoding; no LLM is run (CL-Align)."""

    IDLE: ClassVar[tuple[str, ...]] = (
        "dev_manifest",
        "learning_rate",
        "max_steps",
        "per_device_train_batch_size",
        "tokens_per_batch",
        "length_buckets",
        "projector_learning_rate",
        "smoothing",
        "train_llm",
        "lora_r",
        "lora_alpha",
    )

    def own_errors(self) -> list[str]:
        options = {f.name: f.default for f in dataclasses.fields(self)}
        return [
            *super().own_errors(),
            *(
                f"{name}: has no effect here; leave it out"
                for name in self.IDLE
                if getattr(self, name) != options[name]
            ),
        ]


@dataclass
class DistillConfig(SpeechSFTConfig):
    """`train distill`: KL to the same LLM reading transcript and P_act."""

    divergence: str = field(default="forward_kl", metadata={"help": "forward_kl, reverse_kl or jsd."})
    temperature: float = field(
        default=1.0, metadata={"help": "Softens both distributions; the loss is scaled by T²."}
    )
    jsd_beta: float = field(default=0.5, metadata={"help": "β of the generalised Jensen-Shannon divergence."})
    ce_weight: float = field(default=0.0, metadata={"help": "λ of the added cross-entropy."})
    use_p_act: bool = field(default=True, metadata={"help": USE_P_ACT})
    targets: str = field(
        default="references", metadata={"help": "references, or teacher: captions the teacher writes."}
    )
    teacher_cache: str = field(
        default="auto",
        metadata={
            "help": "Compute the teacher's states before training: yes, no, or auto: if each is read once."
        },
    )
    teacher_top_k: int = field(
        default=0,
        metadata={
            "help": "Cache the teacher's k likeliest tokens, others in one bucket; 0: all tokens, exactly."
        },
    )

    def own_errors(self) -> list[str]:
        from aligncap.training.divergences import NAMES

        errors = super().own_errors()
        if self.divergence not in NAMES:
            errors.append(f"divergence={self.divergence!r}: choose from {', '.join(NAMES)}")
        if self.targets not in ("references", "teacher"):
            errors.append(f"targets={self.targets!r}: choose references or teacher")
        if self.teacher_cache not in ("auto", "yes", "no"):
            errors.append(f"teacher_cache={self.teacher_cache!r}: choose auto, yes or no")
        if self.teacher_top_k < 0:
            errors.append(f"teacher_top_k={self.teacher_top_k}: must be 0 (exact) or above")
        if self.teacher_top_k > 0 and self.teacher_cache == "no":
            errors.append(
                f"teacher_top_k={self.teacher_top_k}: is read from a cache; leave out teacher_cache=no"
            )
        if self.temperature <= 0:
            errors.append(f"temperature={self.temperature}: must be above 0")
        if not 0 < self.jsd_beta < 1:
            errors.append(f"jsd_beta={self.jsd_beta}: must lie between 0 and 1")
        return errors


def choose_precision(wanted: str) -> tuple[bool, str]:
    """Whether to compute in bfloat16, and why: the one place where precision is decided."""
    if wanted != "auto":
        return wanted == "bfloat16", f"{wanted}, as asked"
    able = has_bfloat16()
    device = "the GPU" if torch.cuda.is_available() else "this CPU"
    return able, f"{'bfloat16' if able else 'float32'}: {device} {'has' if able else 'lacks'} it"


def parse(kind: type[A], argv: list[str]) -> A:
    """Arguments from `--config FILE.yaml` and `--key value` flags, flags winning.

    Raises:
        UserError: the YAML cannot be read.
        UserErrors: unknown keys, each with the nearest known one.
    """
    known = {f.name for f in dataclasses.fields(kind) if f.init}
    argv = [
        part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])
    ]
    flags = {word.lstrip("-").replace("-", "_").split("=")[0] for word in argv}
    if "num_train_epochs" in flags and "max_steps" not in flags:
        argv = [*argv, "--max_steps", "-1"]
    errors = []
    for i, word in enumerate(argv):
        path = argv[i + 1] if word == "--config" and i + 1 < len(argv) else word.removeprefix("--config=")
        if word == "--config" or word.startswith("--config="):
            errors += [f"{path}: {error}" for error in _unknown(_read_config(path), known)]
        elif word.startswith("--"):
            name = word[2:].split("=")[0].replace("-", "_")
            if name not in known | {n.removeprefix("no_") for n in known} and not (
                name.startswith("no_") and name[3:] in known
            ):
                errors += _unknown([name], known)
    if errors:
        raise UserErrors(errors)
    try:
        (arguments,) = _Parser(cast(Any, (kind,))).parse_args_and_config(argv)
    except (ValueError, TypeError) as error:
        raise UserError(f"options: {error}") from error
    return arguments


class _Parser(TrlParser):
    """A wrong value is one clear line, not the usage of a hundred options."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"options: {message}")


def usage(kinds: dict[str, type[RunConfig]]) -> str:
    """Help text: examples, and for a single verb its own options with their defaults."""
    lines = ["usage: aligncap train VERB --config FILE.yaml [--key value …]", ""]
    for verb, kind in kinds.items():
        lines.append(f"{verb:8} {' '.join((kind.__doc__ or '').split())}")
    if len(kinds) == 1:
        ((_, kind),) = kinds.items()
        lines += ["", "options (and all of transformers.TrainingArguments):"]
        inherited = {f.name for f in dataclasses.fields(TrainingArguments)}
        idle = getattr(kind, "IDLE", ())
        ours = {
            name
            for base in kind.__mro__
            if base.__module__.startswith("aligncap")
            for name in base.__annotations__
        }
        for f in dataclasses.fields(kind):
            if f.name not in idle and (f.name not in inherited or f.name in ours):
                factory = f.default_factory
                default = f.default if factory is dataclasses.MISSING else factory()
                lines.append(f"  --{f.name} [{default}]  {f.metadata.get('help', '')}".rstrip())
    lines += [
        "",
        "examples:",
        "  aligncap train teacher --config configs/recipes/teacher.yaml",
        "  aligncap train distill --config configs/recipes/distill.yaml --seed 1 --output_dir runs/distill-1",
        "  aligncap train prefer --config configs/recipes/prefer.yaml --model runs/distill",
        "  accelerate launch --config_file configs/accelerate/cpu2.yaml scripts/train.py distill --config …",
    ]
    return "\n".join(lines)


def _read_config(path: str) -> list[str]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a mapping of options is needed")
    return [str(key) for key in content]


def _unknown(names: list[str], known: set[str]) -> list[str]:
    errors = []
    for name in names:
        if name not in known and name != "env":
            near = difflib.get_close_matches(name, known, 1)
            errors.append(f"unknown option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return errors


LOSSES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
)
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")


@dataclass
class SpeechDPOConfig(RunConfig, DPOConfig):
    """`train prefer`: DPO on judged caption pairs, from a distilled checkpoint.

    The reference is that checkpoint: the same weights with the new adapter off.
    """

    model: str | None = field(
        default=None, metadata={"help": "Checkpoint to start from: a training run's folder or a merged one."}
    )
    train_pairs: str | None = field(default=None, metadata={"help": "Pairs written by `aligncap pairs`."})
    train_manifest: str | None = field(
        default=None, metadata={"help": "Manifest of the pairs' clips; default: the one the pairs name."}
    )
    dev_manifest: str | None = field(
        default=None,
        metadata={"help": "Manifest whose clips are captioned and judged by the rubric during training."},
    )
    pair_kinds: str = field(default="all", metadata={"help": "Comma-separated kinds of pairs to use."})
    train_projector: bool = field(default=True, metadata={"help": "Train the projector beside LoRA."})
    projector_learning_rate: float | None = field(
        default=5e-5, metadata={"help": "Learning rate of the projector; none: learning_rate."}
    )
    reference_cache: str = field(
        default="auto",
        metadata={
            "help": "Compute the reference's log-probabilities before training: yes, no, or auto: "
            "if each pair is read at least once."
        },
    )
    shared_prefix: bool = field(
        default=True,
        metadata={"help": "Read prompt and audio once a pair; no: once for each of its two captions."},
    )
    feature_cache: bool = field(
        default=True, metadata={"help": "Compute encoder features once, before training."}
    )
    cache_dir: str = field(default="runs/cache", metadata={"help": "Folder of the caches."})
    dev_clips: int = field(default=120, metadata={"help": "Dev clips to caption at each evaluation."})
    patience: int = field(
        default=0, metadata={"help": "Stop after so many evaluations without a better dev score; 0: never."}
    )
    alarm_chosen_drop: float = field(
        default=5.0,
        metadata={"help": "Alarm when chosen captions lose more than this many nats against the reference."},
    )
    alarm_length_growth: float = field(
        default=0.25, metadata={"help": "Alarm when dev captions grow by more than this share."}
    )
    alarm_top_share: float = field(
        default=0.15,
        metadata={"help": "Alarm when more than this share of dev captions are one and the same."},
    )

    # Options of trl that our rows and collator pass by.
    IDLE: ClassVar[tuple[str, ...]] = (
        "dataset_num_proc",
        "max_length",
        "model_init_kwargs",
        "pad_to_multiple_of",
        "pad_token",
        "padding_free",
        "precompute_ref_batch_size",
        "precompute_ref_log_probs",
        "ref_model_mixup_alpha",
        "ref_model_sync_steps",
        "router_aux_loss_coef",
        "sync_ref_model",
        "tokens_per_batch",  # the loss is a mean over a batch's pairs: batches of few would count for more
        "truncation_mode",
        "trust_remote_code",
        "use_weighting",
    )

    lora_dropout: float = 0.0
    max_steps: int = 80
    learning_rate: float = 3e-4
    beta: float = 0.1
    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid", "sft"],
        metadata={"help": "trl's losses, added up: sigmoid (DPO), ipo, hinge, robust, … and sft."},
    )
    loss_weights: list[float] | None = field(
        default_factory=lambda: [1.0, 0.2], metadata={"help": "Their weights."}
    )
    eval_steps: float | None = 40
    save_steps: float = 40
    gradient_checkpointing: bool = False
    ddp_find_unused_parameters: bool | None = False

    def own_errors(self) -> list[str]:
        errors = []
        for name, example in (("model", "runs/distill"), ("train_pairs", "runs/pairs.jsonl")):
            value = getattr(self, name)
            if not value:
                errors.append(f"{name} is missing: e.g. --{name} {example}")
            elif not Path(value).exists():
                errors.append(f"{name}: {value}: no such file or folder")
        if self.reference_cache not in ("auto", "yes", "no"):
            errors.append(f"reference_cache={self.reference_cache!r}: choose auto, yes or no")
        if self.reference_cache == "yes" and self.ld_alpha is not None:
            errors.append(
                "reference_cache=yes: cannot serve ld_alpha, which weighs tokens by the other caption"
            )
        options = {f.name: f for f in fields(self)}
        for name in self.IDLE:
            if getattr(self, name) != options[name].default:
                errors.append(f"{name}: has no effect here; leave it out")
        if self.lora_dropout and self.disable_dropout:
            errors.append("lora_dropout: has no effect unless --disable_dropout false")
        for loss in self.loss_type:
            if loss not in LOSSES:
                errors.append(
                    f"loss_type {loss!r}: unknown{nearest(loss, LOSSES)}; choose from {', '.join(LOSSES)}"
                )
        if "exo_pair" in self.loss_type and not self.label_smoothing:
            errors.append("loss_type exo_pair: needs --label_smoothing above 0, like 0.001")
        if self.f_divergence_type not in DIVERGENCES:
            errors.append(
                f"f_divergence_type={self.f_divergence_type!r}: choose from {', '.join(DIVERGENCES)}"
            )
        if self.loss_weights and len(self.loss_weights) != len(self.loss_type):
            errors.append(
                f"loss_type={self.loss_type}, loss_weights={self.loss_weights}: give a weight for each loss"
            )
        for name in ("dev_clips", "beta"):
            if getattr(self, name) <= 0:
                errors.append(f"{name}={getattr(self, name)}: must be above 0")
        if self.dev_manifest:
            # The best checkpoint by the dev score is kept, so it must be there to be kept.
            if self.save_steps != self.eval_steps:
                errors.append(f"save_steps={self.save_steps}, eval_steps={self.eval_steps}: must be equal")
            self.load_best_model_at_end = True
            self.metric_for_best_model = "eval_rubric"
            self.greater_is_better = True
            self.eval_on_start = True  # not where a run goes on, see runs.train
        elif self.patience:
            errors.append("patience: early stopping needs --dev_manifest")
        return errors

    def kinds(self) -> tuple[str, ...] | None:
        """Kinds of pairs to train on, None for all."""
        return None if self.pair_kinds == "all" else tuple(k.strip() for k in self.pair_kinds.split(","))
