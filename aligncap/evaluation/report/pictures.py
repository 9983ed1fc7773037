"""The report's pictures, as PNG bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aligncap.utils.drawing import GREY, INK, PALE, bare, cycle, figure, plain, png
from aligncap.utils.errors import UserErrors, natural
from aligncap.utils.io import atomic_open, read_jsonl

Confusion = tuple[Sequence[str], Sequence[str], NDArray[np.int64]]


def confusion_picture(
    matrix: NDArray[np.int64], labels: Sequence[str], columns: Sequence[str], title: str
) -> bytes:
    """Confusion matrix (labels, columns): colour and percentage are shares of the row, below are counts."""
    picture = figure(1.9 + 0.66 * len(columns), 1.5 + 0.6 * len(labels))
    axes = picture.add_subplot()
    _draw_confusion(axes, matrix, labels, columns, title, counts=True)
    axes.set_xlabel("emotion the caption names", color=GREY)
    axes.set_ylabel("label of the clip (clips)", color=GREY)
    return png(picture)


def confusions_picture(systems: Mapping[str, Confusion]) -> bytes:
    """Confusion matrices of several systems side by side, in percent of the row.

    Args:
        systems: name to (labels, columns, matrix) as in `confusion_picture`; the last column is "names none".
            Emotions that are no label of the clips, which differ from system to system, share a column.
    """
    across = min(len(systems), 2 if max(len(labels) for labels, *_ in systems.values()) > 5 else 3)
    down = -(-len(systems) // across)
    most = max(len(labels) for labels, *_ in systems.values())
    picture = figure(1.4 + across * (0.6 + 0.46 * (most + 2)), 0.6 + down * (1.2 + 0.42 * most))
    panels = picture.subplots(down, across, squeeze=False)
    for axes in panels.flat[len(systems) :]:
        axes.set_axis_off()
    for place, (axes, (name, (labels, columns, matrix))) in enumerate(
        zip(panels.flat, systems.items(), strict=False)
    ):
        known = len(labels)
        pooled = np.column_stack([matrix[:, :known], matrix[:, known:-1].sum(1), matrix[:, -1]])
        names = [*labels, "another", columns[-1]]
        _draw_confusion(axes, pooled, labels, names, name, counts=False)
        if place % across:
            axes.set_yticklabels([])
    picture.supxlabel("emotion the caption names", color=GREY, fontsize=9)
    picture.supylabel("label of the clip", color=GREY, fontsize=9)
    return png(picture)


def _draw_confusion(
    axes: Any,
    matrix: NDArray[np.int64],
    labels: Sequence[str],
    columns: Sequence[str],
    title: str,
    *,
    counts: bool,
) -> None:
    total = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, total, out=np.zeros(matrix.shape), where=total > 0)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(*matrix.shape):
        if matrix[row, column]:
            style = {"ha": "center", "va": "center", "color": "white" if share[row, column] > 0.55 else INK}
            percent = f"{100 * share[row, column]:.0f}"
            if counts:
                axes.text(column, row - 0.12, f"{percent} %", fontsize=9, **style)
                axes.text(column, row + 0.24, f"{matrix[row, column]}", fontsize=7, alpha=0.8, **style)
            else:
                axes.text(column, row, percent, fontsize=8.5, **style)
    turned: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(columns)), [plain(c) for c in columns], fontsize=9, **turned)
    sizes = [f" ({n})" if counts else "" for n in total[:, 0]]
    names = [plain(label) + size for label, size in zip(labels, sizes, strict=True)]
    axes.set_yticks(range(len(labels)), names, fontsize=9)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(labels) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.axvline(len(labels) - 0.5, color=GREY, linewidth=1.2, linestyle="--")
    axes.set_title(plain(title), fontsize=11, color=INK, loc="left")
    for side in axes.spines.values():
        side.set_visible(False)


def speakers_picture(systems: Mapping[str, Mapping[str, float | Sequence[float]]], chance: float) -> bytes:
    """UAR of every speaker: a dot a speaker and seed, the speakers in the same order for each system.

    The line is the mean of the speakers, the band the range of their means over seeds.

    Args:
        systems: system to speaker to UAR, or to one UAR a seed.
    """
    speakers = sorted({speaker for values in systems.values() for speaker in values}, key=natural)
    slots, group = len(speakers), len(speakers) + 2.0
    width = float(np.clip(len(systems) * max(1.3, 0.24 * group), 3.6, 15))
    picture = figure(1.0 + width, 4.2)
    axes = picture.add_subplot()
    named = width / (group * len(systems)) > 0.13  # inches a name
    slot_names: list[tuple[float, str]] = []
    for place, (colour, (_, values)) in enumerate(zip(cycle(len(systems)), systems.items(), strict=True)):
        start = place * group
        means = []
        for slot, speaker in enumerate(speakers):
            slot_names.append((start + slot, _short(speaker, speakers)))
            if speaker in values:
                uars = np.atleast_1d(np.asarray(values[speaker], dtype=float))
                means.append(float(uars.mean()))
                axes.plot([start + slot] * 2, [uars.min(), uars.max()], color=colour, alpha=0.4, linewidth=1)
                at = np.full(len(uars), start + slot)
                axes.plot(at, uars, "o", color=colour, alpha=0.8, markersize=5.5, markeredgewidth=0)
        if not means:
            continue
        ends = [start - 0.7, start + slots - 0.3]
        axes.fill_between(ends, min(means), max(means), color=colour, alpha=0.1, linewidth=0)
        axes.plot(ends, [np.mean(means)] * 2, color=INK, linewidth=1.6, zorder=1)
        text = f"{np.mean(means):.2f}\n{min(means):.2f}–{max(means):.2f}"
        axes.text(start + (slots - 1) / 2, 1.02, text, ha="center", va="bottom", fontsize=8, color=INK)
    axes.text(
        -0.01, 1.02, "mean\nrange", transform=axes.transAxes, ha="right", va="bottom", fontsize=8, color=GREY
    )
    axes.axhline(chance, color=GREY, linewidth=1, linestyle="--", zorder=0)
    axes.annotate(
        "chance", (1, chance), (-2, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
        ha="right", color=GREY, fontsize=8,
    )  # fmt: skip
    middles = [place * group + (slots - 1) / 2 for place in range(len(systems))]
    wrap = max(8, int(width / len(systems) / 0.085))
    bare(axes)
    axes.set_xticks(middles, [plain(fill(name, wrap)) for name in systems], fontsize=9.5)
    axes.tick_params(axis="x", length=0, pad=20 if named else 4)
    if named:
        axes.set_xticks([x for x, _ in slot_names], [plain(n) for _, n in slot_names], minor=True)
        axes.tick_params(axis="x", which="minor", length=2, color=PALE, labelsize=7, labelcolor=GREY)
        if max(len(name) for _, name in slot_names) > 2:
            axes.tick_params(axis="x", which="minor", labelrotation=90)
            axes.tick_params(axis="x", pad=14 + 4.2 * max(len(name) for _, name in slot_names))
    axes.set_xlim(-1.2, len(systems) * group - 1.8 + 0.4)
    axes.set_ylim(0, 1.0)
    axes.set_ylabel("UAR of one speaker", color=GREY)
    return png(picture)


def _short(speaker: str, speakers: Sequence[str]) -> str:
    """The name without the corpus that all of them begin with: "21" for "ravdess-21"."""
    corpora = {s.rpartition("-")[0] for s in speakers}
    return speaker.rpartition("-")[2] if len(corpora) == 1 else speaker


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
        UserErrors: folders without a log, or with an empty one, all of them.
    """
    errors: list[str] = []
    logs: dict[str, list[Curves]] = {name: [] for name in folders}
    for name, paths in folders.items():
        for path in paths:
            if not (path / "log.jsonl").is_file():
                errors.append(f"{path}: no log.jsonl here; give the output_dir of `aligncap train`")
                continue
            logs[name].append(_curves_of(path))
            if not logs[name][-1]:
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
