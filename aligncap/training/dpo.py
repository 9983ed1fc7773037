"""`train dpo`: DPO on judged caption pairs (AlignCap, PO-Regularisation; Rafailov et al. 2023, eq. 7).

The printed loss of AlignCap has β outside log σ and no minus sign; this is the standard one,
−log σ(β (log π/π_ref (chosen) − log π/π_ref (rejected))), and trl's other loss types by option.
"""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import datasets
import torch
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, set_seed
from trl import DPOConfig, DPOTrainer

from aligncap.models.checkpoints import (
    is_adapter,
    load_checkpoint,
    load_folder,
    load_for_inference,
    model_key,
    save_base,
)
from aligncap.models.modeling_aligncap import AlignCapForConditionalGeneration
from aligncap.models.processing_aligncap import AlignCapProcessor
from aligncap.training.adapters import lora_config
from aligncap.training.clips import read_clips
from aligncap.training.collators import PreferenceCollator
from aligncap.training.config import FEATURE_CACHE, IDLE, FeatureCaching, RunConfig
from aligncap.training.data import ClipInputs, cached_inputs, keeps_features
from aligncap.training.dev_score import DevScore, Watch
from aligncap.training.kernels import FLEX, attention
from aligncap.training.preference_data import (
    PreferenceDataset,
    cached_reference,
    manifest_of_pairs,
    read_pairs,
)
from aligncap.training.resume import begin
from aligncap.training.sharding import place, shards_weights
from aligncap.training.shared_prefix import score_responses, why_not_packed
from aligncap.training.trainer import BucketedTrainer, fit
from aligncap.utils.errors import UserError, nearest
from aligncap.utils.io import write_json
from aligncap.utils.options import Dropout, NaturalInt, PositiveFloat, PositiveInt, option

_log = logging.getLogger(__name__)
LOSSES = (
    "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down "
    "discopop sft sigmoid_norm"
).split()
# Options of trl and ours that our rows, collator and loss pass by.
_IDLE = (
    "average_tokens_across_devices dataset_num_proc llm_weights max_length max_response_tokens "
    "model_init_kwargs packing pad_to_multiple_of pad_token padding_free precompute_ref_batch_size "
    "ref_model_mixup_alpha ref_model_sync_steps router_aux_loss_coef sync_ref_model tokens_per_batch "
    "truncation_mode trust_remote_code use_weighting"
).split()


@dataclass
class SpeechDPOConfig(RunConfig, DPOConfig):
    """DPO on judged caption pairs, from a distilled checkpoint.

    The reference is that checkpoint: the same weights with the new adapter off. Writes to OUTPUT_DIR: the
    trained adapter (and projector), `base/` on which they stand when the start was an adapter, the processor,
    run.json, log.jsonl, tensorboard logs and checkpoints.

    Examples:
        aligncap train dpo --config dpo --model runs/distill
        aligncap train dpo --model runs/distill --train_pairs runs/pairs.jsonl --output_dir runs/dpo
        accelerate launch --config_file configs/accelerate/cpu2.yaml scripts/train.py dpo --config dpo
    """

    REQUIRED: ClassVar[dict[str, str]] = {"model": "runs/distill", "train_pairs": "runs/pairs.jsonl"}
    IDLE: ClassVar[dict[str, str]] = {
        **IDLE,
        **dict.fromkeys(_IDLE, ""),
        "label_smoothing_factor": "label_smoothing",
        "precompute_ref_log_probs": "reference_cache",
    }

    model: str | None = option(None, "Checkpoint to start from: a training run's folder or a merged one.")
    train_pairs: str | None = option(None, "Pairs written by `aligncap pairs`.")
    train_manifest: str | None = option(
        None, "Manifest of the pairs' clips; default: the one the pairs name."
    )
    dev_manifest: str | None = option(
        None, "Manifest whose clips are captioned and judged by the rubric during training."
    )
    pair_kinds: str = option("all", "Comma-separated kinds of pairs to use.")
    train_projector: bool = option(True, "Train the projector beside LoRA.")
    projector_learning_rate: PositiveFloat | None = option(
        5e-5, "Learning rate of the projector; none: learning_rate."
    )
    reference_cache: Literal["auto", "yes", "no"] = option(
        "auto",
        "Let the reference read all pairs before training; auto: if each is read at least once.",
    )
    shared_prefix: bool = option(
        True, "Read prompt and audio once a pair; false: once for each of its two captions."
    )
    packed_attention: Literal["mask", "flex"] = option(
        "mask",
        "Of pairs with a shared prefix: a mask over pairs of tokens, or FlexAttention's blocks of them "
        "(flex: GPUs alone; compiles at the start).",
    )
    feature_cache: FeatureCaching = option("auto", FEATURE_CACHE)
    cache_dir: str = option("runs/cache", "Folder of the caches.")
    dev_clips: PositiveInt = option(120, "Dev clips to caption at each evaluation.")
    patience: NaturalInt = option(0, "Stop after so many evaluations without a better dev score; 0: never.")
    alarm_chosen_drop: float = option(
        5.0, "Alarm when chosen captions lose more than this many nats against the reference."
    )
    alarm_length_growth: float = option(0.25, "Alarm when dev captions grow by more than this share.")
    alarm_top_share: float = option(
        0.15, "Alarm when more than this share of dev captions are one and the same."
    )

    lora_dropout: Dropout = 0.0
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
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    eval_steps: float | None = 40
    save_steps: float = 40
    gradient_checkpointing: bool = False

    def own_errors(self) -> list[str]:
        errors = []
        for name in ("model", "train_pairs"):
            value = getattr(self, name)
            if value and not Path(value).exists():
                errors.append(f"{name}: {value}: no such file or folder")
        if self.reference_cache == "yes" and self.ld_alpha is not None:
            errors.append(
                "reference_cache=yes: cannot serve ld_alpha, which weighs tokens by the other caption"
            )
        if self.lora_dropout and self.disable_dropout:
            errors.append("lora_dropout: has no effect unless disable_dropout is false")
        if self.packed_attention == "flex" and not self.shared_prefix:
            errors.append("packed_attention=flex: has no effect with shared_prefix=false; leave it out")
        elif self.packed_attention == "flex" and (self.use_cpu or not torch.cuda.is_available()):
            errors.append("packed_attention=flex: torch has no backward pass of it on CPUs; choose mask")
        for loss in self.loss_type:
            if loss not in LOSSES:
                errors.append(
                    f"loss_type {loss!r}: unknown{nearest(loss, LOSSES)}; choose from {', '.join(LOSSES)}"
                )
        if "exo_pair" in self.loss_type and not self.label_smoothing:
            errors.append("loss_type exo_pair: needs label_smoothing above 0, like 0.001")
        if self.loss_weights and len(self.loss_weights) != len(self.loss_type):
            errors.append(
                f"loss_type={self.loss_type}, loss_weights={self.loss_weights}: give a weight for each loss"
            )
        if self.dev_manifest:
            # The best checkpoint by the dev score is kept, so it must be there to be kept.
            if self.save_steps != self.eval_steps:
                errors.append(f"save_steps={self.save_steps}, eval_steps={self.eval_steps}: must be equal")
            self.load_best_model_at_end = True
            self.metric_for_best_model = "eval_rubric"
            self.greater_is_better = True
            self.eval_on_start = True  # not where a run goes on, see trainer.fit
        elif self.patience:
            errors.append("patience: early stopping needs dev_manifest")
        return errors

    def kinds(self) -> tuple[str, ...] | None:
        """Kinds of pairs to train on, None for all."""
        return None if self.pair_kinds == "all" else tuple(k.strip() for k in self.pair_kinds.split(","))


class SpeechDPOTrainer(BucketedTrainer, DPOTrainer):
    """trl's DPOTrainer on rows that hold audio (`PreferenceDataset`).

    Args:
        model: plain: it is given the adapters of `peft_config`, or of `args`; the reference is itself with
            them off. A PeftModel: as in trl.
        dev_score: takes the place of an evaluation loss.
    """

    model: Any
    args: SpeechDPOConfig

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: SpeechDPOConfig,
        processing_class: AlignCapProcessor,
        train_dataset: PreferenceDataset,
        eval_dataset: PreferenceDataset | None = None,
        dev_score: DevScore | None = None,
        peft_config: PeftConfig | None = None,
        data_collator: PreferenceCollator | None = None,
        **kwargs: Any,
    ) -> None:
        self.dev_score = dev_score
        # The Trainer asks for a set to evaluate on, though `evaluate` does without.
        held_out = eval_dataset or (train_dataset if dev_score else None)
        self.rows = {"train": train_dataset, "eval": held_out}
        # trl insists on a datasets.Dataset, which would copy the audio; `_prepare_dataset` puts the rows in.
        numbers = {
            name: datasets.Dataset.from_dict({"row": list(range(len(rows)))}) if rows else None
            for name, rows in self.rows.items()
        }
        if not isinstance(model, PeftModel):
            set_seed(args.seed)
            peft_config = peft_config or lora_config(model, args, projector=args.train_projector)
            model.requires_grad_(False)
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            train_dataset=numbers["train"],
            eval_dataset=numbers["eval"],
            peft_config=peft_config,
            data_collator=data_collator or PreferenceCollator(processing_class),
            **kwargs,
        )
        self.precompute_ref_logps = train_dataset.reference is not None
        base = self.model.get_base_model()
        reason = why_not_packed(base.model.language_model) if args.shared_prefix else None
        if reason and self.is_world_process_zero():
            _log.info("shared_prefix: off, since %s; each caption takes a row of its own", reason)
        score_responses(base, args.shared_prefix and reason is None)
        if args.packed_attention == "flex" and reason is None:
            base.model.language_model.set_attn_implementation(FLEX)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset if isinstance(dataset, PreferenceDataset) else self.rows[dataset_name]

    def describe_batches(self) -> dict[str, float]:
        """Nothing: the rows whose padding it would tell are packed in pairs."""
        return {}

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """trl's loss; audio that is not cached is encoded once for policy and reference."""
        inputs = dict(inputs)
        if "input_features" in inputs:
            mel = {name: inputs.pop(name) for name in ("input_features", "input_features_mask")}
            with torch.no_grad():
                inputs |= model(**mel, encode_only=True)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Caption the dev clips and judge them by the rubric; without a dev score, as trl does."""
        if self.dev_score is None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        self.model.eval()
        model = self.accelerator.unwrap_model(self.model)
        # Blocks would be made and compiled anew for each length of a caption.
        llm = model.get_base_model().model.language_model
        flex = llm.config._attn_implementation == FLEX
        with self.accelerator.autocast(), attention(llm, "sdpa") if flex else nullcontext():
            own = self.accelerator.process_index, self.accelerator.num_processes
            scores = self.dev_score(model, *own, sharded=own[1] > 1 and shards_weights(self.args))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def run_dpo(config: SpeechDPOConfig) -> int:
    """Refine a checkpoint on pairs; 130 when interrupted."""
    run = begin("train dpo", config)
    path = str(config.train_pairs)
    clips = read_clips(manifest_of_pairs(path, config.train_manifest), captions=False, group=run.group)
    dev = [read_clips(config.dev_manifest, group=run.group)] if config.dev_manifest else []
    pairs = read_pairs(path, clips, config.kinds())
    model: Any
    with config.main_process_first(local=False, desc="base model"):
        model, processor = load_start(str(config.model), run.out / "base")
        lora_config(model, config, projector=config.train_projector)  # refused before anything long
    place(model, run.device, run.sharded)
    limit = model.config.max_response_tokens
    rows = PreferenceDataset.of(path, pairs, clips, ClipInputs(processor), limit)
    used = clips.chosen(sorted({pair.clip for pair in pairs}))
    if keeps_features(config.feature_cache, model, [used, *dev], augment=False):
        rows = replace(rows, inputs=cached_inputs(model, processor, [used, *dev], run.cache, group=run.group))
        model.leave_out_encoder()
    if wants_reference_cache(config, len(rows)):
        model.to(run.device)
        found = cached_reference(run.cache, model, rows, dtype=config.compute_dtype, group=run.group)
        rows = replace(rows, reference=found)
    batch = config.per_device_eval_batch_size
    score = [DevScore(d, rows.inputs, number=config.dev_clips, batch=batch, limit=limit) for d in dev]
    limits = config.alarm_chosen_drop, config.alarm_length_growth, config.alarm_top_share
    trainer = SpeechDPOTrainer(
        model=model,
        args=config,
        train_dataset=rows,
        processing_class=processor,
        dev_score=score[0] if score else None,
        callbacks=[Watch(config.beta, *limits, patience=config.patience)],
    )
    code = fit(trainer, run, [clips, *dev], {"start": config.model, "pairs": len(rows)})
    if code == 0 and trainer.is_world_process_zero():
        _compare_with_start(trainer)
    return code


def wants_reference_cache(args: SpeechDPOConfig, pairs: int) -> bool:
    """Whether the reference reads the pairs before training: as asked, or where it costs no more."""
    if args.ld_alpha is not None:
        return False  # a caption's sum then depends on the length of the other one
    if args.reference_cache != "auto":
        return args.reference_cache == "yes"
    if shards_weights(args):
        return False  # one device might not hold the model whole
    steps = args.max_steps if args.max_steps > 0 else pairs  # by epochs: each pair is read
    return steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size >= pairs


def load_start(start: str, folder: Path) -> tuple[AlignCapForConditionalGeneration, AlignCapProcessor]:
    """The checkpoint to start from, its adapter folded in.

    `folder` then names it as the base, on which the new adapter stands.
    """
    place = Path(start).resolve()
    if not is_adapter(place):
        return load_checkpoint(place)  # type: ignore[return-value]
    mark = folder / "made_of.json"
    made_of = model_key(place)
    if mark.is_file() and json.loads(mark.read_text(encoding="utf-8"))["start"] != made_of:
        raise UserError(
            f"{folder}: was made from another --model; go on with that one, or choose another output_dir"
        )
    if not mark.is_file():
        model, processor = load_for_inference(place)
        processor.save_pretrained(folder)
        save_base(model, folder, student=place)
        write_json(mark, {"start": made_of})
    return load_folder(folder)


def _compare_with_start(trainer: SpeechDPOTrainer) -> None:
    scores = {r["step"]: r["eval_rubric"] for r in trainer.state.log_history if "eval_rubric" in r}
    if 0 in scores and len(scores) > 1:
        best = max((step for step in scores if step), key=lambda step: scores[step])
        print(f"dev rubric score: {scores[0]:.2f} at the start, {scores[best]:.2f} at step {best}, now kept")
        if scores[best] <= scores[0]:
            _log.warning("alarm: no checkpoint did better than the start; keep the start")
