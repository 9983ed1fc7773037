"""Kill a command with SIGKILL at random moments, resume it, and hold the result against an unbroken run's.

Used by tests/test_kills.py and tests/training/test_resume.py.

Imports take longer than the commands do on tiny models. So a command is a fork of a process that has done
them, which is this file run as a script. Unbroken runs have one of their own: strings are hashed otherwise in
it than where runs are killed, as in any two processes, and what hangs on the order of a set is found.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from aligncap.cli import main

IMPORTED = (
    "aligncap.preferences.candidates",
    "aligncap.preferences.judge",
    "aligncap.preferences.judges.openai",
    "aligncap.training.distill",
    "aligncap.training.dpo",
)


@dataclass
class Found:
    """How a killed and resumed run differs from the unbroken one.

    `lost` and `repeated` count steps of the log or rows; `greatest` is the greatest difference of a loss or a
    weight; `errors` are what differs, in words.
    """

    lost: int = 0
    repeated: int = 0
    greatest: float = 0.0
    errors: list[str] = field(default_factory=list)

    def __add__(self, other: Found) -> Found:
        return Found(
            self.lost + other.lost,
            self.repeated + other.repeated,
            max(self.greatest, other.greatest),
            self.errors + other.errors,
        )

    @property
    def equal(self) -> bool:
        return not (self.lost or self.repeated or self.greatest or self.errors)


@dataclass(frozen=True)
class Case:
    """A command to kill.

    `words` gives what follows `aligncap`, for a folder that the command writes in alone; `resume` are the
    words that going on adds. `phase` names what a run that began at a time was doing when it was killed;
    `compare` takes the folders of the unbroken and of the resumed run.
    """

    name: str
    words: Callable[[Path], list[str]]
    resume: tuple[str, ...]
    phase: Callable[[Path, float], str]
    compare: Callable[[Path, Path], Found]


@dataclass
class Result:
    name: str
    phases: list[str] = field(default_factory=list)
    found: Found = field(default_factory=Found)


def fork() -> None:
    """For each line of stdin a fork that runs a command; its process id and, at its end, its exit code."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # a fork that ends need not copy all memory to clear it
    for line in sys.stdin:
        words, said, environment = json.loads(line)
        pid = os.fork()
        os.setpgid(pid, pid)
        if not pid:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for number in (1, 2):
                os.dup2(os.open(said, os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
            os.environ.update(environment)
            for seed in (random.seed, np.random.seed, torch.seed):  # forks begin with the same random numbers
                seed()
            sys.exit(main(words))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


@functools.cache
def forking(of: str) -> subprocess.Popen[bytes]:
    """The process that makes the forks of this kind."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
    process = subprocess.Popen([sys.executable, __file__], **pipes)
    atexit.register(process.wait)
    atexit.register(process.terminate)  # before it waits
    return process


class Command:
    """A command in a process group of its own; what it says goes to `folder`.said."""

    def __init__(self, words: list[str], folder: Path, of: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.parent, self.code = forking(of), None
        line = json.dumps([words, str(said_by(folder)), dict(os.environ)]) + "\n"
        self.parent.stdin.write(line.encode())
        self.pid = int(self.parent.stdout.readline())

    def wait(self, seconds: float | None = None) -> int | None:
        """Its exit code; None: it still runs after so many seconds."""
        if self.code is None and select.select([self.parent.stdout], [], [], seconds)[0]:
            self.code = int(self.parent.stdout.readline())
        return self.code

    def kill(self) -> None:
        with suppress(ProcessLookupError):  # it ended just now
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()


def said_by(folder: Path) -> Path:
    return folder.with_name(folder.name + ".said")


def finish(process: Command, folder: Path) -> None:
    """Wait for the end.

    Raises:
        RuntimeError: the command failed.
    """
    if process.wait():
        tail = said_by(folder).read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{folder}: exit code {process.code}\n{tail}")


def unbroken(case: Case, folder: Path) -> tuple[float, float]:
    """Run to the end.

    Returns:
        Seconds to the first file, before which nothing can be lost (0 where that is the last thing), and in
        all.
    """
    process = Command(case.words(folder), folder, "unbroken")
    began, first = time.time(), 0.0
    while process.wait(0.02) is None:
        if not first and any(folder.iterdir()):
            first = time.time() - began
    finish(process, folder)
    seconds = time.time() - began
    return (first if first < 0.8 * seconds else 0.0), seconds


def kill_and_compare(
    case: Case, reference: Path, work: Path, kills: int, moments: Iterator[float], most_lives: int = 50
) -> Result:
    """Kill `kills` times in all, over as many fresh folders as that takes, and compare each with `reference`.

    Args:
        moments: seconds from the start of a process to its death; a process that is done before lives on.
    """
    result = Result(case.name)
    for life in range(most_lives):
        if len(result.phases) == kills:
            break
        folder = work / f"life-{life}"
        more: tuple[str, ...] = ()
        while True:
            process = Command([*case.words(folder), *more], folder, "killed")
            began = time.time()
            if process.wait(next(moments) if len(result.phases) < kills else None) is not None:
                break
            process.kill()
            result.phases.append(case.phase(folder, began))
            more = case.resume
        finish(process, folder)
        result.found += case.compare(reference, folder)
    return result


def uniform(first: float, last: float, seed: int) -> Iterator[float]:
    """Random moments between `first` and `last`."""
    rng = random.Random(seed)
    while True:
        yield rng.uniform(first, last)


def training_phase(folder: Path, began: float) -> str:
    """What a training run was at, by what it has written since `began`."""
    out = folder / "out"
    log = out / "log.jsonl"
    torn = [p for p in out.glob("checkpoint-*") if not (p / "trainer_state.json").exists()]
    if log.exists() and log.stat().st_mtime > began:
        rows = [line for line in log.read_text().split("\n") if line.endswith("}")]
        step = json.loads(rows[-1])["step"] if rows else 0
        if rows and "train_runtime" in rows[-1]:
            return "final saving"
        return f"saving {torn[0].name}" if torn else f"step {step}"
    run = out / "run.json"
    if run.exists() and run.stat().st_mtime > began:
        return "start of training"
    if (out / "base/made_of.json").exists():
        return "loading, caches"
    return "saving base" if (out / "base").exists() else "features, base"


def rows_phase(name: str, of: int) -> Callable[[Path, float], str]:
    """Phase of a command that keeps finished rows in the file `name` until the end."""

    def phase(folder: Path, began: float) -> str:
        path = folder / name
        if not path.exists():
            return "before the first row"
        return f"{path.read_text(errors='replace').count(chr(10))} of {of} lines"

    return phase


def compare_training(reference: Path, folder: Path) -> Found:
    """Losses and scores at every step, weights, files and caches of two runs, in `out` and `cache`."""
    found = Found()
    ours, theirs = (_log(f / "out/log.jsonl") for f in (folder, reference))
    found.lost = sum((Counter(k for k, _ in theirs) - Counter(k for k, _ in ours)).values())
    found.repeated = sum((Counter(k for k, _ in ours) - Counter(k for k, _ in theirs)).values())
    before = dict(theirs)
    found.greatest = max((abs(value - before.get(key, value)) for key, value in ours), default=0.0)
    for name in ("adapter_model.safetensors", "base/model.safetensors"):
        if (reference / "out" / name).exists():
            pair = [load_file(f / "out" / name) for f in (reference, folder)]
            found += _same_tensors(name, *pair)
    found += _same_files(reference / "out", folder / "out")
    caches = [_cache_rows(f / "cache") for f in (reference, folder)]
    found += _same_tensors("caches", *(tensors for tensors, _ in caches))
    found.repeated += caches[1][1]
    return found + _same_files(reference / "cache", folder / "cache")


def _log(path: Path) -> list[tuple[tuple[int, str], float]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    names = ("loss", "eval_loss", "eval_rubric")
    return [((row["step"], name), row[name]) for row in rows for name in names if name in row]


def _same_tensors(name: str, a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> Found:
    if a.keys() != b.keys():
        return Found(lost=len(a.keys() - b.keys()), errors=[f"{name}: other tensors"])
    gaps = [(x.double() - b[key].double()).abs().max().item() for key, x in a.items() if x.numel()]
    return Found(greatest=max(gaps, default=0.0))


def _cache_rows(folder: Path) -> tuple[dict[str, torch.Tensor], int]:
    """Rows of all caches, and how many stand twice."""
    rows, doubled = {}, 0
    for shard in sorted(folder.rglob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            for key in file.keys():
                name = f"{shard.parent.relative_to(folder)}/{key}"
                doubled += name in rows
                rows[name] = file.get_tensor(key)
    return rows, doubled


def _same_files(a: Path, b: Path) -> Found:
    """The same names of files.

    But for those of tensorboard, which writes some for each start, and processes.json, which a checkpoint
    lacks that was killed right behind its last file; `training.resume.is_whole` does without it.
    """

    def counts(path: Path) -> bool:
        return path.is_file() and "tfevents" not in path.name and path.name != "processes.json"

    names = [{str(p.relative_to(f)) for p in f.rglob("*") if counts(p)} for f in (a, b)]
    errors = [f"missing: {b / name}" for name in sorted(names[0] - names[1])]
    return Found(errors=errors + [f"left over: {b / name}" for name in sorted(names[1] - names[0])])


def compare_rows(name: str) -> Callable[[Path, Path], Found]:
    """Lines of the JSONL file `name`, which must be equal byte for byte, and no other file beside it."""

    def compare(reference: Path, folder: Path) -> Found:
        theirs, ours = ((f / name).read_bytes() for f in (reference, folder))
        before, after = (Counter(text.split(b"\n")) for text in (theirs, ours))
        found = Found(sum((before - after).values()), sum((after - before).values()))
        if ours != theirs:
            found.errors.append(f"{folder / name}: other bytes")
        return found + _same_files(reference, folder)

    return compare


if __name__ == "__main__":
    fork()
