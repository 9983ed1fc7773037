"""Kill a command with SIGKILL at random moments, resume it, and hold the result against an unbroken run's.

Used by tests/test_kills.py and tests/training/test_resume.py.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

ALIGNCAP = [sys.executable, "-m", "aligncap"]


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


def start(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """The command in a process group of its own; what it says goes to `folder`.said."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        said = stack.enter_context(said_by(folder).open("ab"))
        return subprocess.Popen([*ALIGNCAP, *words], stdout=said, stderr=said, start_new_session=True)


def said_by(folder: Path) -> Path:
    return folder.with_name(folder.name + ".said")


def finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for the end.

    Raises:
        RuntimeError: the command failed.
    """
    if process.wait():
        tail = said_by(folder).read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{folder}: exit code {process.returncode}\n{tail}")


def unbroken(case: Case, folder: Path) -> tuple[float, float]:
    """Run to the end.

    Returns:
        Seconds to the first file, before which nothing can be lost (0 where that is the last thing), and in
        all.
    """
    began = time.time()
    process = start(case.words(folder), folder)
    first = 0.0
    while process.poll() is None:
        if not first and any(folder.iterdir()):
            first = time.time() - began
        time.sleep(0.02)
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
            began = time.time()
            process = start([*case.words(folder), *more], folder)
            try:
                process.wait(next(moments) if len(result.phases) < kills else None)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                result.phases.append(case.phase(folder, began))
                more = case.resume
                continue
            break
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
    """The same names of files; tensorboard writes some for each start."""
    names = [
        {str(p.relative_to(f)) for p in f.rglob("*") if p.is_file() and "tfevents" not in p.name}
        for f in (a, b)
    ]
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
