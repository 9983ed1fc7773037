"""Training curves: what the logs of one or many runs say, seeds under their mean."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aligncap.drawing import GREY, INK, bare, cycle, figure, plain, png
from aligncap.errors import Faults
from aligncap.io import atomic_open, read_jsonl

Curves = dict[str, dict[int, float]]

# what a training log may hold, in the order of the panels
CURVES = {
    "align": "projector alignment, loss (smoothed)",
    "loss": "training loss",
    "eval_loss": "dev loss",
    "rewards/margins": "reward margin",
    "rewards/chosen": "reward of chosen captions",
    "eval_rubric": "dev rubric (0 to 10)",
    "eval_uar": "dev emotion UAR",
    "learning_rate": "learning rate",
}


def training_curves(folders: Mapping[str, Sequence[Path]], out: Path) -> Path:
    """Write `out`: loss, learning rate, dev scores and what else the logs of training runs hold.

    Runs of one name are seeds: thin lines, and their mean over the steps that all of them have as a thick
    one. Losses of different kinds (cross-entropy, KL, DPO) share a panel and have no common scale.

    Args:
        folders: name to the output folders of `aligncap train`, each with log.jsonl.

    Raises:
        Faults: folders without a log, or with an empty one, all of them.
    """
    faults: list[str] = []
    logs: dict[str, list[Curves]] = {name: [] for name in folders}
    for name, paths in folders.items():
        for path in paths:
            if not (path / "log.jsonl").is_file():
                faults.append(f"{path}: no log.jsonl here; give the output_dir of `aligncap train`")
                continue
            logs[name].append(_curves_of(path))
            if not logs[name][-1]:
                faults.append(f"{path}/log.jsonl: no step is logged yet; wait for logging_steps")
    if faults:
        raise Faults(faults)
    shown = [key for key in CURVES if any(key in run for runs in logs.values() for run in runs)]
    across = min(len(shown), 3)
    down = -(-len(shown) // across)
    picture = figure(0.6 + 3.5 * across, 0.7 + 2.6 * down)
    panels = picture.subplots(down, across, squeeze=False)
    for axes in panels.flat[len(shown) :]:
        axes.set_axis_off()
    for axes, key in zip(panels.flat, shown, strict=False):
        for colour, runs in zip(cycle(len(logs)), logs.values(), strict=True):
            _draw_curve(axes, [run[key] for run in runs if key in run], colour)
        axes.set_title(CURVES[key], fontsize=10, color=INK, loc="left")
        axes.set_xlabel("step", color=GREY, fontsize=8.5)
        if key == "learning_rate":
            axes.yaxis.set_major_formatter("{x:g}")
        bare(axes)
    lines: list[Any] = [
        panels.flat[0].plot([], [], color=colour, linewidth=2.2, label=plain(_with_seeds(name, len(runs))))[0]
        for colour, (name, runs) in zip(cycle(len(logs)), logs.items(), strict=True)
    ]
    picture.legend(
        handles=lines,
        loc="outside lower center",
        ncols=min(len(lines), across + 1),
        frameon=False,
        fontsize=9.5,
    )
    with atomic_open(out, "wb") as file:
        file.write(png(picture))
    return out


def named_runs(words: Sequence[str]) -> dict[str, list[Path]]:
    """Runs by name, of "NAME=FOLDER" or of a folder, whose name is taken without the seed at its end.

    >>> named_runs(["runs/distill-0", "runs/distill-1", "best=runs/prefer"])["distill"]
    [PosixPath('runs/distill-0'), PosixPath('runs/distill-1')]
    """
    runs: dict[str, list[Path]] = {}
    for word in words:
        name, sign, folder = word.rpartition("=")
        path = Path(folder if sign else word)
        runs.setdefault(name or re.sub(r"[-_]\d+$", "", path.name), []).append(path)
    return runs


def _curves_of(run: Path) -> Curves:
    """Step to value of each curve of a run; of a step that was logged twice, the later."""
    found: Curves = {}
    for row in read_jsonl(run / "log.jsonl"):
        for key in CURVES:
            if isinstance(row.get(key), int | float):
                found.setdefault(key, {})[int(row["step"])] = float(row[key])
    if (run / "align.jsonl").is_file():
        losses = {int(row["step"]): float(row["loss"]) for row in read_jsonl(run / "align.jsonl")}
        window = max(1, len(losses) // 20)
        steps, values = sorted(losses), [losses[step] for step in sorted(losses)]
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        found["align"] = dict(zip(steps[window - 1 :], smooth.tolist(), strict=True))
    return found


def _draw_curve(axes: Any, runs: Sequence[Mapping[int, float]], colour: str) -> None:
    dots = {"marker": "o", "markersize": 3.5} if runs and max(map(len, runs)) <= 8 else {}
    for run in runs if len(runs) > 1 else ():
        axes.plot(sorted(run), [run[step] for step in sorted(run)], color=colour, linewidth=0.8, alpha=0.45)
    steps = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    means = [float(np.mean([run[step] for run in runs])) for step in steps]
    axes.plot(steps, means, color=colour, linewidth=2.2, **dots)


def _with_seeds(name: str, seeds: int) -> str:
    return f"{name} ({seeds} seed{'s' * (seeds > 1)})"
