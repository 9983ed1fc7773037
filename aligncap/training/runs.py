"""What every training run shares: adapters, interruption, logs, resume, the record of the run."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.pytorch_utils import Conv1D

from aligncap.errors import UserError
from aligncap.heard import Heard, heard_in_training, merge_heard, read_heard, write_heard
from aligncap.io import write_json
from aligncap.models.precision import suit_bfloat16
from aligncap.run_record import write_run_record
from aligncap.training.arguments import RunArguments
from aligncap.training.batches import BucketedTrainer
from aligncap.training.resume import (
    PROCESSES,
    check_same_run,
    clear_remains,
    cut_log,
    finished,
    last_checkpoint,
    resume_command,
)
from aligncap.training.sharding import load_whole, shard_as_configured

_TARGETS = (("q_proj", "v_proj"), ("c_attn",), ("query_key_value",), ("qkv_proj",))


def lora_targets(llm: nn.Module, wanted: str, prefix: str = "") -> str:
    """Regular expression of the linear layers to adapt, anchored at the language model.

    Anchoring matters: Whisper's layers carry the same names.

    Raises:
        UserError: the language model has no such layers.
    """
    names = {name.rsplit(".", 1)[-1] for name, _ in llm.named_modules()}
    groups = _TARGETS if wanted == "auto" else (tuple(part.strip() for part in wanted.split(",")),)
    for group in groups:
        if set(group) <= names:
            return rf"{prefix}.*\.({'|'.join(map(re.escape, group))})"
    raise UserError(
        f"lora_targets={wanted!r}: the language model has no such layers; choose from its linear layers"
    )


def lora_config(model: Any, args: RunArguments, *, projector: bool) -> LoraConfig:
    """LoRA on the language model; with `projector` it is trained in full and saved beside the adapter."""
    speech = hasattr(getattr(model, "model", None), "multi_modal_projector")
    llm, prefix = (model.model.language_model, r"model\.language_model") if speech else (model, "")
    return LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=lora_targets(llm, args.lora_targets, prefix),
        modules_to_save=["multi_modal_projector"] if projector else None,
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in llm.modules()),  # GPT-2's layers
    )


def add_adapters(model: PreTrainedModel, args: RunArguments, *, projector: bool) -> PeftModel:
    """`model` with fresh adapters; see `lora_config`."""
    return get_peft_model(model, lora_config(model, args, projector=projector))


def freeze_adapters(model: nn.Module) -> None:
    """Leave the adapters as they begin, which changes nothing of the LLM: only the projector is trained."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(False)


def two_rate_optimizer(trainer: Trainer) -> torch.optim.Optimizer | None:
    """The optimizer of the options, with a learning rate of its own for the projector.

    None where the options name no such rate: the Trainer's own will do.
    """
    args: Any = trainer.args
    rate = getattr(args, "projector_learning_rate", None)
    if not rate:
        return None
    model: Any = trainer.model
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = ("multi_modal_projector" in name, parameter.dim() > 1)
            groups.setdefault(key, []).append(parameter)
    kind, options = trainer.get_optimizer_cls_and_kwargs(args)
    return kind(
        [
            {
                "params": parameters,
                "lr": rate if projector else args.learning_rate,
                "weight_decay": args.weight_decay if decays else 0.0,
            }
            for (projector, decays), parameters in groups.items()
        ],
        **options,
    )


class Interruption(TrainerCallback):
    """Ctrl-C or a termination signal ends the run after the step under way, with a checkpoint."""

    def __init__(self) -> None:
        self.asked = False
        self._since = 0.0
        self._former: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._former[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, *_: Any) -> None:
        # A launcher passes the terminal's Ctrl-C on by signals of its own: only a later SIGINT is impatience.
        if self.asked and number == signal.SIGINT and time.monotonic() - self._since > 2:
            raise KeyboardInterrupt
        if self.asked:
            return
        self.asked, self._since = True, time.monotonic()
        print("stopping after this step; a checkpoint will be saved", file=sys.stderr)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if args.world_size > 1:  # all processes stop at one step, or their collectives would not match
            asked = torch.tensor(float(self.asked), device=args.device)
            torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
            self.asked = bool(asked.item())
        if self.asked:
            control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)


class JsonLog(TrainerCallback):
    """Every log as a line of OUT/log.jsonl, with the seconds of training, those before a stop included."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            self.start -= cut_log(Path(str(args.output_dir)) / "log.jsonl", state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        # The sum of the losses since the last log is in no checkpoint.
        control.should_log = control.should_log or control.should_save

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            row = {"step": state.global_step, "seconds": round(time.perf_counter() - self.start, 2), **logs}
            with (Path(str(args.output_dir)) / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


class CountProcesses(TrainerCallback):
    """Notes in each checkpoint how many processes wrote it: a resumed run may have others."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            write_json(folder / PROCESSES, args.world_size)


def prepare_folder(args: RunArguments) -> Path:
    """The run's folder, proven writable before anything long begins."""
    out = Path(str(args.output_dir))
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".write-probe"
        probe.write_text("")
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"output_dir {out}: cannot be written: {error.strerror}") from error
    if args.process_index == 0 and (out / "run.json").exists() and not args.resume_from_checkpoint:
        raise UserError(
            f"{out}: holds a run already; add --resume_from_checkpoint true, or choose another --output_dir"
        )
    checkpoint = last_checkpoint(args)  # a resume from nowhere is refused before anything long
    if checkpoint:
        check_same_run(args, checkpoint)
    if args.process_index == 0 and args.resume_from_checkpoint:
        clear_remains(out)
        where = f"goes on from {checkpoint}" if checkpoint else f"{out}: no checkpoint yet; begins again"
        print(where, file=sys.stderr)
    load_whole(args)
    return out


def train(
    trainer: BucketedTrainer, args: RunArguments, verb: str, data: list[str | Path], **record: Any
) -> bool:
    """Train to the end or to an interruption.

    Returns:
        True when the run is complete, False when it was interrupted (checkpoint saved, command printed).
    """
    stop = Interruption()
    trainer.add_callback(stop)
    trainer.add_callback(JsonLog())
    trainer.add_callback(CountProcesses())
    checkpoint = last_checkpoint(args)
    trainer.accelerator.wait_for_everyone()  # all have chosen before the record of the run changes
    if trainer.is_world_process_zero():
        print(f"precision: {args.precision_reason}", file=sys.stderr)
        if batches := trainer.describe_batches():
            record["batches"] = batches
        write_run_record(str(args.output_dir), verb, args.to_dict(), data, seed=args.seed, **record)
        manifests = [path for path in data if path != getattr(args, "train_pairs", None)]
        starts = [getattr(args, name, None) for name in ("model", "llm")]
        heard = heard_in_training(manifests, starts)
        write_heard(str(args.output_dir), merge_heard(heard, read_heard(str(args.output_dir)) or Heard()))
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if checkpoint and finished(args, checkpoint) and not sharded:
        take_up_end(trainer, args, checkpoint)
        return True
    if checkpoint:
        args.eval_on_start = False
    shard_as_configured(trainer)
    if args.bf16 and not sharded:  # a shard's weights are of one precision
        suit_bfloat16(trainer.accelerator.unwrap_model(trainer.model))
    trainer.train(resume_from_checkpoint=checkpoint)
    if stop.asked and trainer.state.global_step < trainer.state.max_steps:
        if trainer.is_world_process_zero():
            print(
                f"stopped at step {trainer.state.global_step}; go on with:\n  {resume_command()}",
                file=sys.stderr,
            )
        return False
    return True


def take_up_end(trainer: Trainer, args: RunArguments, checkpoint: str) -> None:
    """Bring `trainer` to where training left it when it came to its end at `checkpoint`."""
    trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    best = trainer.state.best_model_checkpoint if args.load_best_model_at_end else None
    trainer._load_from_checkpoint(best or checkpoint)
    if trainer.is_world_process_zero():
        cut_log(Path(str(args.output_dir)) / "log.jsonl", trainer.state.global_step, done=True)
