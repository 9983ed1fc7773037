"""What the benchmarks share: time in turns, peak memory, medians with their range, real clips, tiny parts."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
RUN = Path("runs/ravdess")
GIB = 2**30
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/training")]  # tiny parts, texts, rival layouts


Benchmark = Callable[[argparse.Namespace], None]
BENCHMARKS: dict[str, tuple[Benchmark, dict[str, Any]]] = {}


def benchmark(name: str = "", **options: Any) -> Callable[[Benchmark], Benchmark]:
    """Make a function a subcommand of its file.

    Each option is a flag with this default; a type stands for "none by default", and `run` is positional: a
    folder of scripts/quickstart.sh.
    """

    def register(function: Benchmark) -> Benchmark:
        BENCHMARKS[name or function.__name__] = (function, options)
        return function

    return register


def main(doc: str | None) -> None:
    """Run the benchmark that is asked for."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=raw)
    several = parser.add_subparsers(required=True, metavar="BENCHMARK")
    for name, (function, options) in BENCHMARKS.items():
        text = function.__doc__ or ""
        sub = several.add_parser(name, help=text.split("\n")[0], description=text, formatter_class=raw)
        sub.set_defaults(call=function)
        for key, default in options.items():
            flags = [f"--{key}"] + ([f"--{key.replace('_', '-')}"] if "_" in key else [])
            if key == "run":
                sub.add_argument(key, type=Path)
            elif default is False:
                sub.add_argument(*flags, action="store_true")
            elif isinstance(default, list):
                sub.add_argument(*flags, type=type(default[0]), nargs="+", default=default)
            else:
                kind, value = (default, None) if isinstance(default, type) else (type(default), default)
                sub.add_argument(*flags, type=Path if issubclass(kind, Path) else kind, default=value)
    given = parser.parse_args()
    given.call(given)


def read_all(trainer: Any, model: Any, batches: Any, device: Any, half: bool, tokens: int) -> float:
    """Read batches once, backwards too while training; the mean loss of their `tokens` response tokens."""
    total = 0.0
    for inputs in batches:
        inputs = {name: value.to(device) for name, value in inputs.items()}
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            loss = trainer.token_loss(model, inputs) / tokens
        if model.training:
            loss.backward()
        total += loss.item()
    model.zero_grad(set_to_none=True)
    return total


def middle(values: Sequence[float], digits: int = 2) -> str:
    """Median (least to most)."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Each value over the other of the same round."""
    return [value / other for value, other in zip(values, others, strict=True)]


def in_turns(ways: Mapping[Any, Callable[[int], Any]], rounds: int, warm: int = 0) -> dict[Any, list[float]]:
    """Seconds of each way, round by round; the first round warms up and is not counted.

    Args:
        ways: called with the number of the round.
        warm: calls before each timed one: after another way there are other holes in memory.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            for _ in range(warm):
                way(turn)
            began = time.perf_counter()
            way(turn)
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need be, the first on the left, the others on the right."""
    widths = [max(len(str(line[i])) for line in (head, *rows)) for i in range(len(head))]
    for line in (head, *rows):
        first, *rest = (str(cell) for cell in line)
        print(
            "  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))])
        )


def machine() -> str:
    """What stands beside every measurement."""
    return f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"


def alone(words: Sequence[str], processes: int = 1, **variables: str) -> Any:
    """Run this benchmark once more with `words`, in processes of its own: the JSON of its last line."""
    several = ("-m", "torch.distributed.run", "--nproc_per_node", str(processes)) if processes > 1 else ()
    command = [sys.executable, *several, sys.argv[0], *words]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def watch_memory() -> int:
    """Give back what was freed and begin to measure the peak anew; the bytes held now."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:  # not Linux: the peak is that of the whole process
        return 0


def peak_memory() -> int:
    """Bytes at the peak since `watch_memory`: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        return _status("VmHWM")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def clips_of(manifest: Path, count: int) -> list[np.ndarray]:
    """`count` clips drawn from the manifest."""
    from aligncap.audio.files import load_audio
    from aligncap.data.manifest import audio_path, read_manifest

    utterances = read_manifest(manifest)
    order = np.random.default_rng(0).permutation(len(utterances))
    chosen = [utterances[order[i % len(order)]] for i in range(count)]
    return [load_audio(audio_path(manifest, u)) for u in chosen]
