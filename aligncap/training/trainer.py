"""What every training run shares: adapters, interruption, logs, resume, the record of the run."""

from __future__ import annotations

import functools
import json
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils.data import DataLoader, Sampler
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.pytorch_utils import Conv1D

from aligncap.data.provenance import (
    Provenance,
    merge_provenance,
    read_provenance,
    training_provenance,
    write_provenance,
)
from aligncap.models.precision import suit_bfloat16
from aligncap.training.config import RunConfig
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
from aligncap.utils.errors import UserError
from aligncap.utils.io import write_json
from aligncap.utils.run_record import write_run_record

Spans = list[tuple[int, int]]


def padded_size(lengths: np.ndarray) -> int:
    """Tokens of one batch, padding included; `lengths` are (rows, 2): tokens of prompt and of response.

    >>> padded_size(np.array([[5, 1], [3, 4]]))
    18
    """
    return len(lengths) * int(lengths.max(0).sum())


def padding_share(lengths: np.ndarray, batches: Sequence[Sequence[int] | np.ndarray]) -> float:
    """Share of padding in all tokens of `batches` of indices into `lengths` (rows, 2).

    >>> padding_share(np.array([[5, 1], [3, 4]]), [[0, 1]])  # 13 tokens in 18 places
    0.2777777777777778
    """
    real = sum(int(lengths[batch].sum()) for batch in batches)
    return 1 - real / sum(padded_size(lengths[batch]) for batch in batches)


def places(lengths: np.ndarray, slabs: int) -> np.ndarray:
    """Place of each row in an order whose neighbours are alike in prompt and in response.

    Rows of like prompts form slabs of about equal number; each slab is sorted by response, up and down in
    turn, so that two slabs meet in like responses (after sort-tile-recursive packing, Leutenegger et al.
    1997). Rows of the same two lengths share a place.

    >>> places(np.array([[9, 1], [9, 5], [2, 5], [2, 1], [2, 1]]), slabs=2).tolist()
    [3, 2, 1, 0, 0]
    """
    prompts, responses = lengths.T
    slab = np.searchsorted(np.sort(prompts), prompts) * slabs // len(prompts)
    keys = np.stack([slab, np.where(slab % 2, -responses, responses), prompts], axis=1)
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)


def cut(lengths: np.ndarray, rows: int, tokens: int) -> Spans:
    """Cut rows, in their order, into batches [start, stop).

    Each holds at most `rows` rows and `tokens` tokens, padding included; 0: no such limit. A row longer than
    `tokens` stands alone.

    >>> cut(np.array([[3, 1], [3, 2], [9, 1], [9, 9]]), rows=0, tokens=10)
    [(0, 2), (2, 3), (3, 4)]
    """
    spans: Spans = []
    start = prompt = response = 0
    for place, (own_prompt, own_response) in enumerate(lengths.tolist()):
        prompt, response = max(prompt, own_prompt), max(response, own_response)
        count = place - start + 1
        full = 0 < rows < count or 0 < tokens < count * (prompt + response)
        if full and count > 1:
            spans.append((start, place))
            start, prompt, response = place, own_prompt, own_response
    return [*spans, (start, len(lengths))]


def round_up(spans: Spans, lengths: np.ndarray, multiple: int) -> Spans:
    """Halve the largest batches until their number is a multiple of `multiple`, or all are single rows."""
    spans = list(spans)
    while len(spans) % multiple and len(spans) < len(lengths):
        sizes = [padded_size(lengths[a:b]) if b - a > 1 else 0 for a, b in spans]
        largest = int(np.argmax(sizes))
        start, stop = spans[largest]
        middle = (start + stop) // 2
        spans[largest : largest + 1] = [(start, middle), (middle, stop)]
    return spans


class LengthBuckets(Sampler[list[int]]):
    """A batch sampler: each row once an epoch, in batches of rows of like length, the batches shuffled.

    The rows of a batch change from epoch to epoch as far as others of the same lengths can take their places,
    and where batches begin and end does not: each epoch has the same number of batches, by which the Trainer
    counts its steps and finds its place when it resumes. All of it follows from seed and epoch.

    Args:
        lengths: (rows, 2), tokens of each row's prompt and response.
        rows: rows of a batch, 0: as many as `tokens` allow.
        tokens: budget of a batch, padding included; 0: none.
        multiple: the number of batches is a multiple of it (processes × accumulation steps), so that all
            processes and all steps get equally many; only rows fewer than it leave it smaller.
    """

    def __init__(
        self, lengths: np.ndarray, *, rows: int = 0, tokens: int = 0, multiple: int = 1, seed: int = 0
    ) -> None:
        if not rows and not tokens:
            raise ValueError("rows or tokens must limit a batch")
        self.lengths, self.seed, self.epoch = lengths, seed, 0
        best = None
        for slabs in (2**k for k in range(len(lengths).bit_length())):
            place = places(lengths, slabs)
            ordered = lengths[np.argsort(place, kind="stable")]
            spans = cut(ordered, rows, tokens)
            size = sum(padded_size(ordered[a:b]) for a, b in spans)
            if best is None or size < best:
                best, self.place, self.spans = size, place, round_up(spans, ordered, multiple)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.spans)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        shuffled = rng.permutation(len(self.lengths))
        order = shuffled[np.argsort(self.place[shuffled], kind="stable")]
        for batch in rng.permutation(len(self.spans)):
            start, stop = self.spans[batch]
            yield order[start:stop].tolist()

    def shuffled(self) -> list[np.ndarray]:
        """As many batches of shuffled rows, whatever their lengths: what the buckets are held against."""
        return np.array_split(np.random.default_rng(self.seed).permutation(len(self.lengths)), len(self))

    def summary(self, teacher: np.ndarray | None = None) -> dict[str, float]:
        """Rows, batches, mean rows of a batch, share of padding, and that of shuffled batches.

        Args:
            teacher: lengths of what the teacher reads beside each row, in the layout of `lengths`.
        """
        found: dict[str, float] = {
            "rows": len(self.lengths),
            "batches": len(self),
            "rows_per_batch": len(self.lengths) / len(self),
        }
        for name, lengths in (("", self.lengths), ("teacher_", teacher)):
            if lengths is not None:
                found[f"{name}padding"] = padding_share(lengths, list(self))
                found[f"{name}padding_shuffled"] = padding_share(lengths, self.shuffled())
        return {name: round(value, 4) for name, value in found.items()}


def row_lengths(dataset: Any) -> np.ndarray:
    """(rows, 2): tokens of each row's prompt and response, from `dataset.lengths()` or from its rows."""
    if hasattr(dataset, "lengths"):
        return np.array(dataset.lengths())
    return np.array([(len(row["prompt_ids"]), len(row["response_ids"])) for row in dataset])


def length_buckets(args: RunConfig, dataset: Any) -> LengthBuckets | None:
    """The batches that the options ask for; None: the Trainer's own."""
    if not args.tokens_per_batch and not args.length_buckets:
        return None
    return LengthBuckets(
        row_lengths(dataset),
        rows=0 if args.tokens_per_batch else args.train_batch_size,
        tokens=args.tokens_per_batch,
        multiple=args.world_size * args.gradient_accumulation_steps,
        seed=args.seed if args.data_seed is None else args.data_seed,
    )


class BucketedTrainer(Trainer):
    """A Trainer that reads its rows in `LengthBuckets` where the options ask for them."""

    args: RunConfig

    @functools.cached_property
    def buckets(self) -> LengthBuckets | None:
        return length_buckets(self.args, self.train_dataset)

    def get_train_dataloader(self) -> DataLoader:
        if self.buckets is None:
            return super().get_train_dataloader()
        args = self.args
        loader = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=self.buckets,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            prefetch_factor=args.dataloader_prefetch_factor,
            in_order=args.dataloader_in_order,
        )
        loader = self.accelerator.prepare(loader)
        # accelerate and the Trainer wrap batch samplers, for processes and to resume; through all wrappers an
        # epoch reaches only what is named here.
        loader.set_sampler(self.buckets)
        return loader

    def get_total_train_batch_size(self, args: Any) -> int:
        """Rows of a step, of which the Trainer's samples a second are made."""
        if self.buckets is None or not args.tokens_per_batch:
            return super().get_total_train_batch_size(args)
        a_step = args.world_size * args.gradient_accumulation_steps
        return round(a_step * len(self.buckets.lengths) / len(self.buckets))

    def describe_batches(self) -> dict[str, float]:
        """`LengthBuckets.summary`, said on standard error; {} with the Trainer's own batches."""
        if self.buckets is None:
            return {}
        teacher = getattr(self.train_dataset, "teacher_lengths", lambda: None)()
        found = self.buckets.summary(None if teacher is None else np.array(teacher))
        padding = "; ".join(
            f"{who}padding {found[name]:.1%}, in shuffled batches {found[f'{name}_shuffled']:.1%}"
            for who, name in (("", "padding"), ("the teacher's ", "teacher_padding"))
            if name in found
        )
        print(
            f"batches: {found['rows']:.0f} rows in {found['batches']:.0f} batches, "
            f"{found['rows_per_batch']:.1f} rows each; {padding}",
            file=sys.stderr,
        )
        budget = self.args.tokens_per_batch
        longest = self.buckets.lengths.sum(1)
        if budget and (over := int((longest > budget).sum())):
            print(
                f"batches: {over} rows are longer than tokens_per_batch={budget}, up to {longest.max()}; "
                "each stands alone in its batch",
                file=sys.stderr,
            )
        return found


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


def lora_config(model: Any, args: RunConfig, *, projector: bool) -> LoraConfig:
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


def add_adapters(model: PreTrainedModel, args: RunConfig, *, projector: bool) -> PeftModel:
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


def prepare_folder(args: RunConfig) -> Path:
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
    trainer: BucketedTrainer, args: RunConfig, verb: str, data: list[str | Path], **record: Any
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
        heard = training_provenance(manifests, starts)
        write_provenance(
            str(args.output_dir),
            merge_provenance(heard, read_provenance(str(args.output_dir)) or Provenance()),
        )
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


def take_up_end(trainer: Trainer, args: RunConfig, checkpoint: str) -> None:
    """Bring `trainer` to where training left it when it came to its end at `checkpoint`."""
    trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    best = trainer.state.best_model_checkpoint if args.load_best_model_at_end else None
    trainer._load_from_checkpoint(best or checkpoint)
    if trainer.is_world_process_zero():
        cut_log(Path(str(args.output_dir)) / "log.jsonl", trainer.state.global_step, done=True)
