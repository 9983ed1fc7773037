"""Going on from a checkpoint: which one is whole, whether it is the same run, what a kill left behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import TrainerState, TrainingArguments

from aligncap.training.config import RunConfig
from aligncap.training.sharding import launch_flags
from aligncap.training.watch import out_of_patience
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import file_sha256, write_jsonl

# Options of ours that change no number, or none but for rounding.
_FREE = {
    "cache_dir",
    "ddp_find_unused_parameters",
    "eval_steps",
    "feature_cache",
    "gradient_checkpointing",
    "label_names",
    "logging_steps",
    "output_dir",
    "patience",
    "reference_cache",
    "remove_unused_columns",
    "report_to",
    "save_steps",
    "save_total_limit",
    "shared_prefix",
    "teacher_cache",
}
# Options of transformers and trl that change numbers.
_BINDING = {
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "data_seed",
    "disable_dropout",
    "f_divergence_type",
    "label_smoothing",
    "ld_alpha",
    "lr_scheduler_kwargs",
    "max_grad_norm",
    "optim",
    "seed",
    "train_sampling_strategy",
}
_DATA = ("train_manifest", "dev_manifest", "train_pairs")  # told apart by what is in them
_LENGTH = ("max_steps", "num_train_epochs")  # a run may be made longer, on another schedule
PROCESSES = "processes.json"  # of a checkpoint: how many wrote it
_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps", "processes")


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
        over = (state.epoch or 0) >= args.num_train_epochs
    patience = getattr(args, "patience", 0)
    return over or bool(patience and out_of_patience(state.log_history, patience))


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
    batch, batch_before = (_product(values) for values in (now, before))
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
            print(
                f"{name}={now[name]}: the run began with {before[name]}; "
                "its losses will not be those of an unbroken run",
                file=sys.stderr,
            )


def _binding(args: RunConfig) -> set[str]:
    """Options whose change changes numbers: ours, and those of transformers and trl that we know of."""
    ours = {
        name
        for base in type(args).__mro__
        if base.__module__.startswith("aligncap")
        for name in base.__annotations__
    }
    evaluation = {f.name for f in fields(TrainingArguments) if f.name.startswith("per_device_eval")}
    watched = {name for name in ours if name.startswith("alarm_")}
    return (ours | _BINDING) - _FREE - evaluation - watched - {*_DATA, *_LENGTH, *_BATCH}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, str) and isinstance(b, str) and Path(a).exists() and Path(b).exists():
        return Path(a).resolve() == Path(b).resolve()
    return bool(a == b)


def _product(values: dict[str, Any]) -> int:
    total = 1
    for name in _BATCH:
        total *= int(values.get(name) or 1)
    return total


def _record(folder: Path) -> dict[str, Any]:
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
