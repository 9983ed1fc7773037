"""Options of `train prefer`: trl's DPOConfig, plus ours. Defaults are the measured recipe."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar

from trl import DPOConfig

from aligncap.naming import nearest
from aligncap.training.arguments import RunArguments

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
class PreferArguments(RunArguments, DPOConfig):
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

    def own_faults(self) -> list[str]:
        faults = []
        for name, example in (("model", "runs/distill"), ("train_pairs", "runs/pairs.jsonl")):
            value = getattr(self, name)
            if not value:
                faults.append(f"{name} is missing: e.g. --{name} {example}")
            elif not Path(value).exists():
                faults.append(f"{name}: {value}: no such file or folder")
        if self.reference_cache not in ("auto", "yes", "no"):
            faults.append(f"reference_cache={self.reference_cache!r}: choose auto, yes or no")
        if self.reference_cache == "yes" and self.ld_alpha is not None:
            faults.append(
                "reference_cache=yes: cannot serve ld_alpha, which weighs tokens by the other caption"
            )
        options = {f.name: f for f in fields(self)}
        for name in self.IDLE:
            if getattr(self, name) != options[name].default:
                faults.append(f"{name}: has no effect here; leave it out")
        if self.lora_dropout and self.disable_dropout:
            faults.append("lora_dropout: has no effect unless --disable_dropout false")
        for loss in self.loss_type:
            if loss not in LOSSES:
                faults.append(
                    f"loss_type {loss!r}: unknown{nearest(loss, LOSSES)}; choose from {', '.join(LOSSES)}"
                )
        if "exo_pair" in self.loss_type and not self.label_smoothing:
            faults.append("loss_type exo_pair: needs --label_smoothing above 0, like 0.001")
        if self.f_divergence_type not in DIVERGENCES:
            faults.append(
                f"f_divergence_type={self.f_divergence_type!r}: choose from {', '.join(DIVERGENCES)}"
            )
        if self.loss_weights and len(self.loss_weights) != len(self.loss_type):
            faults.append(
                f"loss_type={self.loss_type}, loss_weights={self.loss_weights}: give a weight for each loss"
            )
        for name in ("dev_clips", "beta"):
            if getattr(self, name) <= 0:
                faults.append(f"{name}={getattr(self, name)}: must be above 0")
        if self.dev_manifest:
            # The best checkpoint by the dev score is kept, so it must be there to be kept.
            if self.save_steps != self.eval_steps:
                faults.append(f"save_steps={self.save_steps}, eval_steps={self.eval_steps}: must be equal")
            self.load_best_model_at_end = True
            self.metric_for_best_model = "eval_rubric"
            self.greater_is_better = True
            self.eval_on_start = True  # not where a run goes on, see runs.train
        elif self.patience:
            faults.append("patience: early stopping needs --dev_manifest")
        return faults

    def kinds(self) -> tuple[str, ...] | None:
        """Kinds of pairs to train on, None for all."""
        return None if self.pair_kinds == "all" else tuple(k.strip() for k in self.pair_kinds.split(","))
