"""The report's pictures as PNG bytes, and `aligncap curves`: training curves of runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

from aligncap.utils.drawing import GREY, INK, bare, cycle, figure, plain, png
from aligncap.utils.errors import UserErrors, natural
from aligncap.utils.io import Row, atomic_open, read_jsonl
from aligncap.utils.options import Config, option

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def speakers_picture(systems: Mapping[str, Mapping[str, float | Sequence[float]]], chance: float) -> bytes:
    """UAR of every speaker: a dot a speaker and seed, the speakers in the same order for each system.

    The line is the mean of the speakers, the band the range of their means over seeds.

    Args:
        systems: system to speaker to UAR, or to one UAR a seed.
    """
    speakers = sorted({speaker for values in systems.values() for speaker in values}, key=natural)
    corpora = {speaker.rpartition("-")[0] for speaker in speakers}
    short = [s.rpartition("-")[2] if len(corpora) == 1 else s for s in speakers]  # "21" for "ravdess-21"
    group = len(speakers) + 2
    width = float(np.clip(len(systems) * max(1.3, 0.24 * group), 3.6, 15))
    picture = figure(1.0 + width, 4.2)
    axes = picture.add_subplot()
    axes.text(-0.01, 1.02, "mean\nrange", transform=axes.transAxes, ha="right", fontsize=8, color=GREY)
    for start, colour, values in zip(
        range(0, group * len(systems), group), cycle(len(systems)), systems.values(), strict=True
    ):
        means = []
        for slot, speaker in enumerate(speakers, start):
            if speaker in values:
                uars = np.atleast_1d(np.asarray(values[speaker], dtype=float))
                means.append(float(uars.mean()))
                axes.plot([slot] * 2, [uars.min(), uars.max()], color=colour, alpha=0.4, linewidth=1)
                dots: Row = {"color": colour, "alpha": 0.8, "markersize": 5.5, "markeredgewidth": 0}
                axes.plot([slot] * len(uars), uars, "o", **dots)
        if means:
            ends = [start - 0.7, start + len(speakers) - 0.3]
            axes.fill_between(ends, min(means), max(means), color=colour, alpha=0.1, linewidth=0)
            axes.plot(ends, [np.mean(means)] * 2, color=INK, linewidth=1.6, zorder=1)
            text = f"{np.mean(means):.2f}\n{min(means):.2f}–{max(means):.2f}"
            axes.text(start + (len(speakers) - 1) / 2, 1.02, text, ha="center", fontsize=8, color=INK)
    axes.axhline(chance, color=GREY, linewidth=1, linestyle="--", zorder=0)
    axes.text(group * len(systems) - 1.7, chance + 0.01, "chance", ha="right", color=GREY, fontsize=8)
    bare(axes)
    places = np.arange(len(systems)) * group
    wrap = max(8, int(width / len(systems) / 0.085))
    names = [plain(fill(name, wrap)) for name in systems]
    axes.set_xticks(places + (len(speakers) - 1) / 2, names, fontsize=9.5)
    axes.tick_params(axis="x", length=0, pad=18 + 4.2 * max(map(len, short)))
    if width / (group * len(systems)) > 0.13:  # inches a speaker: room for names
        slots = [place + i for place in places for i in range(len(speakers))]
        axes.set_xticks(slots, [plain(name) for name in short] * len(systems), minor=True)
        axes.tick_params(axis="x", which="minor", length=2, labelsize=7, labelcolor=GREY, labelrotation=90)
    axes.set_xlim(-1.2, len(systems) * group - 1.4)
    axes.set_ylim(0, 1.0)
    axes.set_ylabel("UAR of one speaker", color=GREY)
    return png(picture)


def coverage_picture(curves: Mapping[str, Sequence[Row]]) -> bytes:
    """Accuracy of the most confident captions, by how many of the clips they are; a line a system.

    Args:
        curves: system to points of `metrics.calibration.coverage_curve`.
    """
    picture = figure(5.2, 3.6)
    axes = picture.add_subplot()
    for colour, (name, points) in zip(cycle(len(curves)), curves.items(), strict=True):
        places = [point["coverage"] for point in points]
        style: Row = {
            "color": colour,
            "linewidth": 2,
            "marker": "o" if len(points) < 9 else "",
            "markersize": 4,
        }
        axes.plot(places, [point["accuracy"] for point in points], label=plain(name), **style)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("share of clips with a caption this sure", color=GREY)
    axes.set_ylabel("emotion right, of these", color=GREY)
    bare(axes)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=9, loc="lower left")
    return png(picture)


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


@dataclass
class CurvesConfig(Config):
    """Training curves of runs in one picture; runs of one name are seeds, drawn thin under their mean.

    Examples:
        aligncap curves runs/distill-0 runs/distill-1 --out curves.png
        aligncap curves distill=runs/a distill=runs/b dpo=runs/c --out curves.png
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("runs",)

    runs: list[str] = option(
        help="[NAME=]RUN: output folders of `aligncap train`; a name again: another seed."
    )
    out: str = option(help="PNG to write.")


def run_curves(config: CurvesConfig) -> int:
    """`aligncap curves`."""
    print(f"curves: {training_curves(named_runs(config.runs), Path(config.out))}")
    return 0


def training_curves(folders: Mapping[str, Sequence[Path]], out: Path) -> Path:
    """Write `out`: loss, learning rate, dev scores and what else the logs of training runs hold.

    Runs of one name are seeds: thin lines, and their mean over the steps that all of them have as a thick
    one. Losses of different kinds (cross-entropy, KL, DPO) share a panel and have no common scale.

    Args:
        folders: name to the output folders of `aligncap train`, each with log.jsonl.

    Raises:
        UserErrors: folders without a log, or with an empty one, all of them.
    """
    errors: list[str] = []
    logs: dict[str, list[pd.DataFrame]] = {name: [] for name in folders}
    for name, paths in folders.items():
        for path in paths:
            if not (path / "log.jsonl").is_file():
                errors.append(f"{path}: no log.jsonl here; give the output_dir of `aligncap train`")
                continue
            logs[name].append(_curves_of(path))
            if logs[name][-1].empty:
                errors.append(f"{path}/log.jsonl: no step is logged yet; wait for logging_steps")
    if errors:
        raise UserErrors(errors)
    shown = [key for key in CURVES if any(key in run for runs in logs.values() for run in runs)]
    across = min(len(shown), 3)
    down = -(-len(shown) // across)
    picture = figure(0.6 + 3.5 * across, 0.7 + 2.6 * down)
    panels = picture.subplots(down, across, squeeze=False)
    for axes in panels.flat[len(shown) :]:
        axes.set_axis_off()
    for axes, key in zip(panels.flat, shown, strict=False):
        for colour, (name, runs) in zip(cycle(len(logs)), logs.items(), strict=True):
            label = f"{name} ({len(runs)} seed{'s' * (len(runs) > 1)})"
            _draw_curve(axes, [run[key].dropna() for run in runs if key in run], colour, plain(label))
        axes.set_title(CURVES[key], fontsize=10, color=INK, loc="left")
        axes.set_xlabel("step", color=GREY, fontsize=8.5)
        if key == "learning_rate":
            axes.yaxis.set_major_formatter("{x:g}")
        bare(axes)
    lines = [line for line in panels.flat[0].lines if not line.get_label().startswith("_")]
    ncols = min(len(lines), across + 1)
    picture.legend(handles=lines, loc="outside lower center", ncols=ncols, frameon=False, fontsize=9.5)
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


def _curves_of(run: Path) -> pd.DataFrame:
    """Curves of a run, step by curve; of a step that was logged twice, the later."""
    table = pd.DataFrame(read_jsonl(run / "log.jsonl"), columns=["step", *CURVES]).set_index("step")
    curves = table.apply(pd.to_numeric, errors="coerce").groupby(level="step").last()
    if (run / "align.jsonl").is_file():
        losses = pd.DataFrame(read_jsonl(run / "align.jsonl")).groupby("step")["loss"].last()
        smooth = losses.rolling(max(1, len(losses) // 20)).mean()
        curves = curves.drop(columns="align").join(smooth.rename("align"), how="outer")
    return curves.dropna(axis="columns", how="all")


def _draw_curve(axes: Axes, runs: Sequence[pd.Series], colour: str, label: str) -> None:
    marker = "o" if runs and max(map(len, runs)) <= 8 else ""
    for run in runs if len(runs) > 1 else ():
        axes.plot(run.index, run, color=colour, linewidth=0.8, alpha=0.45)
    mean = pd.concat(runs, axis=1, join="inner").mean(axis=1) if runs else pd.Series(dtype=float)
    axes.plot(mean.index, mean, color=colour, linewidth=2.2, marker=marker, markersize=3.5, label=label)
