"""The table of a GPU: steps of training, candidates, captions; shapes of real models, random weights.

    scripts/gpu_check.sh                  # what runs this: the machine's tests, then the table
    python scripts/benchmarks/gpu.py run --tiny     # the same at tiny shapes, on a CPU in a minute

Each cell (model, seconds of a clip, stage) runs in a process of its own and appends its rows to
OUT/gpu.jsonl as they come. A cell that is there is not run again; what does not fit into --minutes is left.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from common import GIB, benchmark, main, peak_memory, watch_memory
from shapes import ENCODERS, SHAPES, Encoder, Shape, terms

from aligncap.models.precision import training_dtype

TINY = (Shape(2, 64, 128, 4, 2, 512, True), Encoder(2, 32, 64, 2, 80))
LARGE = ENCODERS["whisper-large-v3"]
Size = tuple[str, Shape, Encoder]
SIZES: dict[str, Size] = {name: (name, SHAPES[name], LARGE) for name in ("Llama-3.2-1B", "Qwen2.5-7B")}
SIZES |= {f"tiny {family}": (family, *TINY) for family in ("Llama", "Qwen2")}
COLUMNS = "way,seconds,tokens a second,clips a second,MFU,peak GiB,formula,× rival,waits".split(",")


def cells(tiny: bool) -> list[tuple[str, float, str]]:
    """What is measured, the most wanted first."""
    names = [name for name in SIZES if name.startswith("tiny") == tiny]
    lengths = (1.0, 2.0) if tiny else (5.0, 29.0)  # longer clips leave no room for the margin within 30 s
    stages = ("distill", "dpo", "generate")
    if tiny:  # one of each is enough to see that it runs
        return [(names[0], 1.0, "distill"), (names[1], 2.0, "dpo"), (names[1], 1.0, "generate")]
    return [(name, seconds, stage) for seconds in lengths for stage in stages for name in names]


def device_name() -> str:
    """The device and the versions that a row belongs to."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    return f"{name}, torch {torch.__version__}"


def matmul_rate(dtype: torch.dtype, device: str) -> float:
    """FLOP/s of a large square product on this device, best of several: what MFU is a share of."""
    size = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        wait(device)
        began = time.perf_counter()
        for _ in range(4):
            torch.mm(a, b)
        wait(device)
        best = min(best, (time.perf_counter() - began) / 4)
    return 2 * size**3 / best


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def host_waits(run: Any, device: str) -> int | None:
    """How often the host waits for the GPU in one step; None on a CPU."""
    if device != "cuda":
        return None
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchron" in str(each.message) for each in found)


@benchmark(size="", seconds=0.0, stage="", batch=8, least=5.0, out=Path)
def cell(a: argparse.Namespace) -> None:
    """One cell; its rows are appended to --out."""
    from gpu_layouts import STAGES

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype, why = training_dtype("auto")
    rate = matmul_rate(dtype, device)
    key = {"size": a.size, "seconds": a.seconds, "stage": a.stage, "batch": a.batch, "device": device_name()}
    with tempfile.TemporaryDirectory() as folder:
        ways = STAGES[a.stage](SIZES[a.size], device, a.batch, a.seconds, Path(folder))
        for name, way in ways.items():
            row: dict[str, Any] = key | {"way": name, "precision": why, "rate": rate}
            try:
                row |= measured(way, device, rate, SIZES[a.size][1], a.least)
            except torch.OutOfMemoryError as error:
                row["error"] = f"out of memory: {str(error)[:120]}"
            append(a.out, row)


def measured(way: Any, device: str, rate: float, shape: Shape, least: float) -> dict[str, Any]:
    """Seconds a step, and what follows: three steps at least, and `least` seconds of them."""
    for _ in range(2):
        way.run()
    wait(device)
    waits = host_waits(way.run, device)
    watch_memory()
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < least and len(taken) < 50:
        began = time.perf_counter()
        way.run()
        wait(device)
        taken.append(time.perf_counter() - began)
    step = statistics.median(taken)
    found: dict[str, Any] = {"step": step, "steps": len(taken), "tokens": way.tokens / step, "waits": waits}
    found |= {"peak": peak_memory(), "rival": way.rival}
    if way.flops:
        found |= {"flops": way.flops, "mfu": way.flops / step / rate}
    if way.memory:
        found["formula"] = sum(terms(shape, **way.memory).values())
    if way.clips:
        found["clips"] = way.clips / step
    return found


def append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of this device; of a line that a kill cut short nothing."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if row["device"] == device_name()]


@benchmark(minutes=20.0, out=Path("runs/gpu_check"), tiny=False, batch=8)
def run(a: argparse.Namespace) -> None:
    """All cells that --minutes allow, then the table, in OUT/gpu.md too."""
    began, file = time.monotonic(), a.out / "gpu.jsonl"
    a.out.mkdir(parents=True, exist_ok=True)
    batch, least = (2, 0.0) if a.tiny else (a.batch, 5.0)
    left_out = []
    for name, seconds, stage in cells(a.tiny):
        words = f"{name}, {seconds:g} s, {stage}"
        done = [r for r in read(file) if (r["size"], r["seconds"], r["stage"]) == (name, seconds, stage)]
        if any(row["way"] == "whole" for row in done):
            continue
        rest = a.minutes * 60 - (time.monotonic() - began)
        reason = ""
        if stage == "dpo" and (lacks := missing("trl")):
            reason = lacks
        elif rest < 20:
            reason = "no time was left"
        else:
            options = (
                "--size",
                name,
                "--seconds",
                seconds,
                "--stage",
                stage,
                "--batch",
                batch,
                "--least",
                least,
            )
            command = [sys.executable, __file__, "cell"]
            command += [*map(str, options), "--out", str(file)]
            print(words, flush=True)
            try:
                made = subprocess.run(command, timeout=rest, capture_output=True, text=True, env=os.environ)
                reason = made.stderr.strip().splitlines()[-1] if made.returncode else ""
            except subprocess.TimeoutExpired:
                reason = "stopped when the time was over; its rows so far are kept"
        if reason:
            left_out.append(f"{words}: {reason}")
        else:
            key = {"size": name, "seconds": seconds, "stage": stage, "device": device_name()}
            append(file, key | {"way": "whole"})
    text = table(read(file), left_out)
    (a.out / "gpu.md").write_text(text, encoding="utf-8")
    print(text)
    failed = [line for line in left_out if "no time" not in line and "time was over" not in line]
    if a.tiny and failed:
        sys.exit("\n".join(failed))


def missing(name: str) -> str:
    """Why a package cannot be imported here; "" if it can."""
    try:
        __import__(name)
    except ImportError as error:
        return f"{error}; see scripts/gpu_check.sh --help"
    return ""


def table(rows: list[dict[str, Any]], left_out: list[str]) -> str:
    """Markdown: a table for each model, length of clips and stage, and what was left out."""
    lines = [f"# {device_name()}\n"]
    groups: dict[tuple[str, float], dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["way"] != "whole":
            groups.setdefault((row["size"], row["seconds"]), {})[row["way"]] = row
    for (size, seconds), ways in groups.items():
        some = next(iter(ways.values()))
        lines.append(
            f"\n{size}, clips of {seconds:g} s, batch of {some['batch']}, {some['precision']}; a matrix "
        )
        lines[-1] += f"product runs at {some['rate'] / 1e12:.3g} TFLOP/s\n"
        lines += ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        for name, row in ways.items():
            if "error" in row:
                lines.append(f"| {name} | {row['error']} |" + " |" * (len(COLUMNS) - 2))
                continue
            rival = ways.get(row["rival"], {}).get("step")
            told = [name, f"{row['step']:.4g}", f"{row['tokens']:,.0f}"]
            told += [
                f"{row['clips']:.1f}" if "clips" in row else "",
                f"{row['mfu']:.1%}" if "mfu" in row else "",
            ]
            told += [f"{row['peak'] / GIB:.2f}", f"{row['formula'] / GIB:.2f}" if "formula" in row else ""]
            told += [
                f"{rival / row['step']:.2f}" if rival else "",
                "" if row["waits"] is None else str(row["waits"]),
            ]
            lines.append("| " + " | ".join(told) + " |")
    if left_out:
        lines += ["\nLeft out:\n", *(f"- {line}" for line in left_out)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(__doc__)
