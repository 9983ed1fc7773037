"""The start of a run, and going on from a checkpoint: which one is whole, whether it is the same run."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from aligncap.data.provenance import (
    Provenance,
    manifests_provenance,
    merge_provenance,
    read_provenance,
    training_provenance,
    write_provenance,
)
from aligncap.training.clips import Clips
from aligncap.training.config import RunConfig
from aligncap.training.sharding import launch_flags, load_whole, shards_weights
from aligncap.utils.distributed import Group
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import Row, file_sha256, write_jsonl
from aligncap.utils.run_record import write_run_record

_log = logging.getLogger(__name__)

# Options of ours that change no number, or none but for rounding.
_FREE = set(
    "cache_dir compile_layers dataloader_num_workers ddp_find_unused_parameters eval_steps feature_cache "
    "gradient_checkpointing label_names logging_nan_inf_filter logging_steps output_dir packed_attention "
    "patience reference_cache "
    "remove_unused_columns report_to save_steps save_total_limit shared_prefix teacher_cache "
    "per_device_eval_batch_size".split()
)
# Options of transformers and trl that change numbers.
_BINDING = set(
    "adam_beta1 adam_beta2 adam_epsilon bf16 data_seed disable_dropout f_divergence_type fp16 "
    "label_smoothing ld_alpha lr_scheduler_kwargs max_grad_norm optim seed train_sampling_strategy".split()
)
_DATA = ("train_manifest", "dev_manifest", "train_pairs")  # told apart by what is in them
_LENGTH = ("max_steps", "num_train_epochs")  # a run may be made longer, on another schedule
PROCESSES = "processes.json"  # of a checkpoint: how many wrote it
_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps", "processes")


@dataclass(frozen=True)
class Run:
    """A training run that may begin.

    manifests: paths of the training manifest and, where there is one, of the dev manifest.
    checkpoint: where the run goes on from; None: it begins. group: the processes that share it.
    sharded: whether weights will lie in shards.
    provenance: what its start was trained on.
    """

    command: str
    config: RunConfig
    out: Path
    cache: Path
    manifests: list[str]
    checkpoint: str | None
    group: Group
    device: torch.device
    sharded: bool
    provenance: Provenance

    def done(self) -> int:
        """Say where the model is; the exit code of a complete run."""
        if self.group.rank == 0:
            print(f"trained: {self.out}")
        return 0


def begin(command: str, config: RunConfig) -> Run:
    """Everything that can refuse a run before anything long: its options, folder, checkpoint and start.

    Raises:
        UserErrors: options that the command needs are missing; a resumed run had other options or data.
        UserError: the folder cannot be written or holds a run, the checkpoint is not whole.
    """
    errors = [
        f"{name} is missing: e.g. --{name} {example}"
        for name, example in config.REQUIRED.items()
        if not getattr(config, name)
    ]
    if config.eval_strategy != "no" and not config.dev_manifest:
        errors.append(f"eval_strategy={config.eval_strategy}: there is nothing to evaluate; set dev_manifest")
    if errors:
        raise UserErrors(errors)
    out = Path(str(config.output_dir))
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".write-probe"
        probe.write_text("")
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"output_dir {out}: cannot be written: {error.strerror}") from error
    group = Group(config.process_index, config.world_size)
    if group.rank == 0 and (out / "run.json").exists() and not config.resume_from_checkpoint:
        raise UserError(
            f"{out}: holds a run already; add --resume_from_checkpoint true, or choose another --output_dir"
        )
    checkpoint = last_checkpoint(config)
    if checkpoint:
        check_same_run(config, checkpoint)
    if group.rank == 0 and config.resume_from_checkpoint:
        clear_remains(out)
        _log.info(f"goes on from {checkpoint}" if checkpoint else f"{out}: no checkpoint yet; begins again")
    load_whole(config)

    def named(*names: str) -> list[str]:
        return [str(path) for name in names if (path := getattr(config, name, None))]

    return Run(
        command,
        config,
        out,
        cache=Path(getattr(config, "cache_dir", out)),
        manifests=named("train_manifest", "dev_manifest"),
        checkpoint=checkpoint,
        group=group,
        device=config.device,
        sharded=shards_weights(config),
        provenance=training_provenance([], named("start") or named("model", "llm")),
    )


def record_run(run: Run, manifests: Sequence[Clips], **record: object) -> None:
    """Write run.json and provenance.json of a run on `manifests`."""
    paths = [clips.manifest for clips in manifests]
    data = [str(path) for path in (getattr(run.config, "train_pairs", None), *paths) if path]
    write_run_record(run.out, run.command, run.config.to_dict(), data, seed=run.config.seed, **record)
    read = manifests_provenance({clips.manifest: clips.utterances for clips in manifests})
    before = read_provenance(run.out) or Provenance()
    write_provenance(run.out, merge_provenance(run.provenance, read, before))


def last_checkpoint(args: RunConfig) -> str | None:
    """Checkpoint to resume from.

    A path, or the newest whole one of the folder when `resume_from_checkpoint` is true; None where there is
    none yet.

    Raises:
        UserError: the path holds no whole checkpoint.
    """
    wanted = args.resume_from_checkpoint
    if not wanted or str(wanted).lower() == "false":
        return None
    if str(wanted).lower() != "true":
        if not Path(str(wanted)).is_dir():
            raise UserError(f"resume_from_checkpoint {wanted}: no such folder")
        if not is_whole(Path(str(wanted))):
            raise UserError(
                f"resume_from_checkpoint {wanted}: not a whole checkpoint; give true for the newest that is"
            )
        return str(wanted)
    whole = [path for path in _checkpoints(Path(str(args.output_dir))) if is_whole(path)]
    return str(max(whole, key=_step)) if whole else None


def _checkpoints(folder: Path) -> list[Path]:
    return [p for p in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]


def _step(path: Path) -> int:
    return int(path.name.split("-")[1])


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end.

    trainer_state.json is what transformers writes last, but for the random states of processes other than
    the first, which are written meanwhile.
    """
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    try:
        processes = int(json.loads((checkpoint / PROCESSES).read_text(encoding="utf-8")))
    except (OSError, ValueError):  # killed before it was noted
        processes = _record(checkpoint.parent).get("processes", 1)
    alone = (checkpoint / "rng_state.pth").is_file() or not any(checkpoint.glob("rng_state_*.pth"))
    return alone or all((checkpoint / f"rng_state_{rank}.pth").is_file() for rank in range(processes))


def clear_remains(folder: Path) -> None:
    """Remove what a killed run left in its folder: torn checkpoints, temporary files of safetensors.

    A torn checkpoint would count among those that `save_total_limit` keeps.
    """
    for checkpoint in _checkpoints(folder):
        if not is_whole(checkpoint):
            shutil.rmtree(checkpoint, ignore_errors=True)
    for place in (folder, folder / "base", *_checkpoints(folder)):
        for path in place.glob(".tmp*"):
            if re.fullmatch(r"\.tmp[A-Za-z0-9]{6}", path.name) and path.is_file():
                path.unlink(missing_ok=True)


def finished(args: RunConfig, checkpoint: str) -> bool:
    """Whether training had come to its end, by its length or out of patience, at this checkpoint.

    transformers, resumed from there, would train one step more.
    """
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    if args.max_steps > 0:
        over = state.global_step >= args.max_steps
    else:
        over = (state.epoch or 0) >= float(args.num_train_epochs or 0)
    patience = getattr(args, "patience", 0)
    return over or bool(patience and out_of_patience(state.log_history, patience))


def out_of_patience(history: Sequence[Row], patience: int) -> bool:
    """Whether the last `patience` dev scores of a log did not better the one before them."""
    scores = [row["eval_rubric"] for row in history if "eval_rubric" in row]
    return bool(scores) and len(scores) - 1 - scores.index(max(scores)) >= patience


class Moved(TrainerCallback):
    """The best checkpoint of a run that was moved lies beside the one that it goes on from."""

    def __init__(self, checkpoint: str) -> None:
        self.folder = Path(checkpoint).parent

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        best = state.best_model_checkpoint
        if best and not Path(best).is_dir() and (beside := self.folder / Path(best).name).is_dir():
            state.best_model_checkpoint = str(beside)


def take_up_end(trainer: Trainer, checkpoint: str) -> None:
    """Bring `trainer` to where training left it when it came to its end at `checkpoint`."""
    trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    Moved(checkpoint).on_train_begin(trainer.args, trainer.state, trainer.control)
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    trainer._load_from_checkpoint(best or checkpoint)
    if trainer.is_world_process_zero():
        cut_log(Path(str(trainer.args.output_dir)) / "log.jsonl", trainer.state.global_step, done=True)


def check_same_run(args: RunConfig, checkpoint: str) -> None:
    """Refuse to go on with other options or data than the run of `checkpoint` began with, by its run.json.

    Raises:
        UserErrors: every option and file that differs and changes numbers; longer runs are only warned of.
    """
    record = _record(Path(checkpoint).parent)
    config, hashes = record.get("config"), record.get("data")
    if not (isinstance(config, dict) and isinstance(hashes, dict)):
        return
    now = json.loads(json.dumps(args.to_dict(), default=str))
    before = {**config, "processes": record.get("processes", 1)}
    now["processes"] = args.world_size
    errors = [
        f"{name}={now[name]}: the run in {Path(checkpoint).parent} began with {before[name]}"
        for name in sorted(_binding(args))
        if name in before and name in now and not _same(before[name], now[name])
    ]
    batch, batch_before = (math.prod(int(v.get(name) or 1) for name in _BATCH) for v in (now, before))
    if batch != batch_before:
        errors.append(f"{' × '.join(_BATCH)}={batch}: the run began with {batch_before}")
    named = [str(path) for name in _DATA if (path := getattr(args, name, None))]
    for path in dict.fromkeys([*named, *hashes]):
        if Path(path).is_file() and file_sha256(path) not in (
            hashes.values() if path not in hashes else [hashes[path]]
        ):
            errors.append(f"{path}: is not what the run began with")
    if errors:
        raise UserErrors(
            [f"{error}; go on with the same, or choose another --output_dir" for error in errors]
        )
    for name in (*_LENGTH, *_BATCH):
        if name in before and name in now and before[name] != now[name] and args.process_index == 0:
            _log.warning(
                "%s=%s: the run began with %s; its losses will not be those of an unbroken run",
                *(name, now[name], before[name]),
            )


def _binding(args: RunConfig) -> set[str]:
    """Options whose change changes numbers: ours, and those of transformers and trl that we know of."""
    kinds = (kind for kind in type(args).__mro__ if kind.__module__.startswith("aligncap"))
    ours = {name for kind in kinds for name in kind.__annotations__ if not name.startswith("alarm_")}
    return (ours | _BINDING) - _FREE - {*_DATA, *_LENGTH, *_BATCH}


def _same(a: object, b: object) -> bool:
    if isinstance(a, str) and isinstance(b, str) and Path(a).exists() and Path(b).exists():
        return Path(a).resolve() == Path(b).resolve()
    return bool(a == b)


def _record(folder: Path) -> Row:
    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def cut_log(path: Path, step: int, *, done: bool = False) -> float:
    """Take from a log what was written after `step`, whose training is done again, and torn lines.

    Nothing of a run that begins anew is kept, and no summary of a part of one that goes on (`done`: of one
    that is over).

    Returns:
        Seconds that the rows kept had taken.
    """
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and 0 < step and row.get("step", 0) <= step:
            if done or "train_runtime" not in row:
                rows.append(row)
    if path.exists():
        write_jsonl(path, rows)
    return float(max((row.get("seconds", 0.0) for row in rows), default=0.0))


def resume_command() -> str:
    """The command that goes on from the last checkpoint."""
    words, rest = [], list(sys.argv[1:])
    while rest:
        word = rest.pop(0)
        if word.replace("-", "_").startswith("__resume_from_checkpoint"):
            if "=" not in word and rest and not rest[0].startswith("--"):
                rest.pop(0)
        else:
            words.append(word)
    script = Path(sys.argv[0])
    start = ["aligncap"] if script.name == "aligncap" else ["python", str(script)]
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        start = ["accelerate", "launch", *launch_flags(), "--num_processes", processes, str(script)]
    return shlex.join([*start, *words, "--resume_from_checkpoint", "true"])
