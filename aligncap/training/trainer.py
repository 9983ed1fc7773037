"""What all trainers share: the token-normalised loss, two learning rates, logs and interruption.

`fit` is the last phase of every training command: record the run, train to its end or to an interruption.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import EvalLoopOutput

from aligncap.training.adapters import freeze_adapters, lora_config, take_up_adapter
from aligncap.training.batches import LengthBuckets, bucket_loader, describe, length_buckets
from aligncap.training.clips import Clips
from aligncap.training.collators import IGNORE, Row, packed, response_positions
from aligncap.training.config import RunConfig
from aligncap.training.kernels import lay_out
from aligncap.training.packing import language_model, needs_mask, with_mask
from aligncap.training.resume import (
    PROCESSES,
    Moved,
    Run,
    cut_log,
    finished,
    record_run,
    resume_command,
    take_up_end,
)
from aligncap.training.shard_order import shard_order
from aligncap.training.sharding import shard_as_configured
from aligncap.utils.io import write_json

_log = logging.getLogger(__name__)


class BucketedTrainer(Trainer):
    """A Trainer with `LengthBuckets` and rates of projector and encoder, where the options ask for them."""

    args: RunConfig
    model: Any

    @functools.cached_property
    def buckets(self) -> LengthBuckets | None:
        return length_buckets(self.args, self.train_dataset)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        return shard_order(self.args, self.train_dataset) or super()._get_train_sampler(train_dataset)

    def get_train_dataloader(self) -> DataLoader:
        plain = self.data_collator  # what is evaluated is not packed: a loss of each row is asked for
        if self.args.packing:
            self.data_collator = packed(plain, self.buckets.width if self.buckets else 0)
        try:
            if self.buckets is None:
                return super().get_train_dataloader()
            rows: Any = self.train_dataset
            return bucket_loader(self.accelerator, self.args, rows, self.buckets, self.data_collator)
        finally:
            self.data_collator = plain

    def get_total_train_batch_size(self, args: TrainingArguments) -> int:
        """Rows of a step, of which the Trainer's samples a second are made."""
        if self.buckets is None or not self.args.tokens_per_batch:
            return super().get_total_train_batch_size(args)
        rows = len(self.buckets.lengths) / len(self.buckets)
        return round(args.world_size * args.gradient_accumulation_steps * rows)

    def describe_batches(self) -> dict[str, float]:
        """`batches.summary`, logged; {} with the Trainer's own batches of plain rows."""
        if self.buckets is None and not self.args.packing:
            return {}
        found, words = describe(self.args, self.train_dataset, self.buckets)
        _log.info("batches: %s", words)
        return found

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        parts = {"multi_modal_projector": "projector_learning_rate", "audio_tower": "encoder_learning_rate"}
        found = {part: getattr(self.args, option, None) for part, option in parts.items()}
        rates: dict[str, float] = {part: rate for part, rate in found.items() if rate}
        if self.optimizer is not None or not rates:
            return super().create_optimizer(model)
        groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                own = "" if "lora_" in name else next((part for part in rates if part in name), "")
                groups.setdefault((own, parameter.dim() > 1), []).append(parameter)
        kind, options = self.get_optimizer_cls_and_kwargs(self.args)
        self.optimizer = kind(
            [
                {
                    "params": parameters,
                    "lr": rates.get(part, self.args.learning_rate),
                    "weight_decay": self.args.weight_decay if decays else 0.0,
                }
                for (part, decays), parameters in groups.items()
            ],
            **options,
        )
        return super().create_optimizer(model)


class CaptionTrainer(BucketedTrainer):
    """Cross-entropy on response tokens, end-of-text included; logits are computed at their positions only.

    The loss is the sum over tokens divided by their number in the global batch, so batches of any size,
    accumulation steps and processes give the same run; an evaluation's is that over all its tokens.

    Args:
        model: with adapters (a PeftModel), or plain: it is given those of `peft_config`, or of `args`.
        processing_class: processor or tokenizer of the model, for the collator and to be saved beside it.
    """

    # The loss is divided by the global number of response tokens here, so accumulation must not divide again.
    loss_is_scaled_for_ga = True
    trains_projector = False

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: RunConfig,
        processing_class: Any = None,
        peft_config: PeftConfig | None = None,
        data_collator: Callable[[list[Row]], dict[str, Tensor]] | None = None,
        **kwargs: Any,
    ) -> None:
        if data_collator is None:
            if processing_class is None:
                raise ValueError("give processing_class, the model's processor or tokenizer")
            data_collator = self.collator(processing_class)
        if not isinstance(model, PeftModel):
            set_seed(args.seed)
            wanted = peft_config or lora_config(model, args, projector=self.trains_projector)
            model = get_peft_model(model.requires_grad_(False), wanted)
            if start := getattr(args, "start", None):
                take_up_adapter(model, start)
            if not getattr(args, "train_llm", True):
                freeze_adapters(model)
        super().__init__(
            model=model, args=args, processing_class=processing_class, data_collator=data_collator, **kwargs
        )
        self.writes_mask = args.packing and needs_mask(language_model(model))

    def collator(self, processing_class: Any) -> Callable[[list[Row]], dict[str, Tensor]]:
        """What makes batches of rows by default."""
        raise NotImplementedError

    def response_logits(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (response tokens, text vocabulary) and the tokens themselves."""
        labels = inputs["labels"]
        logits = self.kept_logits(model, {k: v for k, v in inputs.items() if not k.startswith("teacher_")})
        targets = labels[:, 1:][labels[:, 1:] != IGNORE]
        if logits.dim() != 2 or len(logits) != len(targets):
            raise ValueError("the model ignores boolean logits_to_keep; its forward cannot be trained here")
        return self.drop_placeholder(logits), targets

    def kept_logits(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Logits of the positions that predict response tokens, (response tokens, vocabulary)."""
        inputs = dict(inputs)
        keep = response_positions(inputs.pop("labels"))
        if self.writes_mask and "attention_mask" not in inputs:
            inputs = with_mask(language_model(self.accelerator.unwrap_model(model)), inputs)
        return model(**inputs, logits_to_keep=keep, use_cache=False).logits

    def drop_placeholder(self, logits: Tensor) -> Tensor:
        """Cut off the masked ids from the audio placeholder upwards: their log-probability is no number."""
        limit = getattr(self.accelerator.unwrap_model(self.model).config, "audio_token_id", None)
        return logits[:, :limit]

    def predictions(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """What `summed_loss` compares, each of one row a response token."""
        return self.response_logits(model, inputs)

    def summed_loss(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Loss summed over tokens, in nats."""
        smoothing = getattr(self.args, "smoothing", 0.0)
        return F.cross_entropy(logits.float(), tokens, reduction="sum", label_smoothing=smoothing)

    def token_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Summed loss over the response tokens of `inputs`."""
        return self.summed_loss(*self.predictions(model, inputs))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        tokens = (inputs["labels"][:, 1:] != IGNORE).sum()
        loss = self.token_loss(model, dict(inputs))
        loss = loss / (tokens if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # the count is global, DDP averages gradients
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, Tensor, None]:
        """In place of logits (rows, 2): each row's summed loss and number of tokens."""
        with torch.no_grad(), self.compute_loss_context_manager():
            batch = self._prepare_inputs(inputs)
            counts = (batch["labels"][:, 1:] != IGNORE).sum(1)
            parts = (part.split(counts.tolist()) for part in self.predictions(model, dict(batch)))
            sums = torch.stack([self.summed_loss(*row) for row in zip(*parts, strict=True)])
        return None, torch.stack([sums.float(), counts.float()], 1), None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """transformers', with the loss a mean over tokens in place of one over batches."""
        output = super().evaluation_loop(*args, **kwargs)
        loss, tokens = np.asarray(output.predictions, dtype=np.float64).sum(0)
        metrics = (output.metrics or {}) | {
            f"{kwargs.get('metric_key_prefix', 'eval')}_loss": float(loss / tokens)
        }
        return output._replace(metrics=metrics)


class Interruption(TrainerCallback):
    """Ctrl-C or a termination signal ends the run after the step under way, with a checkpoint."""

    def __init__(self) -> None:
        self.asked = False
        self._since = 0.0
        self._former: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self._group: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if args.world_size > 1:
            self._group = torch.distributed.new_group(backend="gloo")
        for number in (signal.SIGINT, signal.SIGTERM):
            self._former[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, *_: object) -> None:
        # A launcher passes the terminal's Ctrl-C on by signals of its own: only a later SIGINT is impatience.
        if self.asked and number == signal.SIGINT and time.monotonic() - self._since > 2:
            raise KeyboardInterrupt
        if self.asked:
            return
        self.asked, self._since = True, time.monotonic()
        _log.info("stopping after this step; a checkpoint will be saved")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if args.world_size > 1:  # all processes stop at one step, or their collectives would not match
            asked = torch.tensor(float(self.asked))  # on the host: no step waits for its GPU
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, self._group)
            self.asked = bool(asked.item())
        if self.asked:
            control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)


class JsonLog(TrainerCallback):
    """Every log as a line of OUT/log.jsonl, with the seconds of training, those before a stop included.

    Each checkpoint notes how many processes wrote it: a resumed run may have others.
    """

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if state.is_world_process_zero:
            self.start -= cut_log(Path(str(args.output_dir)) / "log.jsonl", state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        # The sum of the losses since the last log is in no checkpoint.
        control.should_log = control.should_log or control.should_save

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        if state.is_world_process_zero and logs:
            row = {"step": state.global_step, "seconds": round(time.perf_counter() - self.start, 2), **logs}
            with (Path(str(args.output_dir)) / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            write_json(folder / PROCESSES, args.world_size)


def fit(
    trainer: BucketedTrainer,
    run: Run,
    manifests: Sequence[Clips],
    record: Mapping[str, object] | None = None,
    save: Callable[[BucketedTrainer, Path], None] = lambda trainer, out: trainer.save_model(str(out)),
) -> int:
    """Train to the end, and save; or to an interruption, with a checkpoint.

    Args:
        manifests: what is learnt from and evaluated on, for the run's provenance.
        record: what run.json says besides.
        save: called in every process, since weights may lie in shards.

    Returns:
        The command's exit code: 0, or 130 when it was interrupted.
    """
    args, stop = trainer.args, Interruption()
    trainer.add_callback(stop)
    trainer.add_callback(JsonLog())
    if run.checkpoint:
        trainer.add_callback(Moved(run.checkpoint))
    trainer.accelerator.wait_for_everyone()  # all have chosen a checkpoint before the run's record changes
    first = trainer.is_world_process_zero()
    if first:
        _log.info("precision: %s", args.precision_reason)
        batches = trainer.describe_batches()
        record_run(run, manifests, **(record or {}), **({"batches": batches} if batches else {}))
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if run.checkpoint and finished(args, run.checkpoint) and not sharded:
        take_up_end(trainer, run.checkpoint)
    else:
        args.eval_on_start = args.eval_on_start and not run.checkpoint
        shard_as_configured(trainer)
        if args.dataloader_num_workers:  # tokenizers' threads do not outlive a fork, of which they would warn
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        lay_out(trainer.accelerator.unwrap_model(trainer.model), args, sharded)
        trainer.train(resume_from_checkpoint=run.checkpoint)
        if stop.asked and (step := trainer.state.global_step) < trainer.state.max_steps:
            if first:
                _log.info("stopped at step %d; go on with:\n  %s", step, resume_command())
            return 130
    save(trainer, run.out)
    return run.done()
