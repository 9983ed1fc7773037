"""The report's pictures, as PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GREY, BLUE, ORANGE = "#1f2933", "#8a94a0", "#2563a8", "#d9822b"
_COLOURS = [BLUE, ORANGE, "#3f8f5f", "#8a5fa8", "#b0413e", "#4f7f8f"]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=130, facecolor="white")
    return buffer.getvalue()


def _plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")


def confusion_picture(
    matrix: NDArray[np.int64], labels: Sequence[str], columns: Sequence[str], title: str
) -> bytes:
    """Confusion matrix (labels, columns): colour and percentage are shares of the row, below are counts."""
    total = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, total, out=np.zeros(matrix.shape), where=total > 0)
    figure = _figure(1.9 + 0.66 * len(columns), 1.5 + 0.6 * len(labels))
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(*matrix.shape):
        if matrix[row, column]:
            colour = "white" if share[row, column] > 0.55 else INK
            text = f"{100 * share[row, column]:.0f} %"
            axes.text(column, row - 0.12, text, ha="center", va="center", color=colour, fontsize=9)
            count = f"{matrix[row, column]}"
            axes.text(
                column, row + 0.24, count, ha="center", va="center", color=colour, fontsize=6.5, alpha=0.8
            )
    axes.set_xticks(range(len(columns)), [_plain(c) for c in columns], rotation=40, ha="right", fontsize=9)
    names = [f"{_plain(label)} ({n})" for label, n in zip(labels, total[:, 0], strict=True)]
    axes.set_yticks(range(len(labels)), names, fontsize=9)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(labels) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.axvline(len(labels) - 0.5, color=GREY, linewidth=1.2, linestyle="--")
    axes.set_xlabel("emotion the caption names", color=GREY)
    axes.set_ylabel("label of the clip (clips)", color=GREY)
    axes.set_title(_plain(title), fontsize=11, color=INK, loc="left")
    for side in axes.spines.values():
        side.set_visible(False)
    return _png(figure)


def speakers_picture(systems: Mapping[str, Mapping[str, float]], chance: float) -> bytes:
    """UAR of every speaker, a column of dots a system; `systems` maps system to speaker to UAR."""
    figure = _figure(max(4.6, 1.6 + 1.9 * len(systems)), 3.8)
    axes = figure.add_subplot()
    for place, (colour, values) in enumerate(zip(_cycle(len(systems)), systems.values(), strict=True)):
        names = sorted(values, key=lambda name: values[name])
        uars = np.array([values[name] for name in names])
        axes.plot(
            np.full(len(uars), place), uars, "o", color=colour, alpha=0.75, markersize=6, markeredgewidth=0
        )
        axes.plot([place - 0.14, place + 0.14], [uars.mean()] * 2, color=INK, linewidth=1.6, zorder=1)
        if len(names) <= 12:
            for name, dot, y in zip(names, uars, _spread(uars, 0.045), strict=True):
                axes.plot([place + 0.05, place + 0.2], [dot, y], color="#c5ccd3", linewidth=0.7, zorder=0)
                axes.text(place + 0.22, y, _plain(name), va="center", fontsize=7.5, color=GREY)
    axes.axhline(chance, color=GREY, linewidth=1, linestyle="--")
    axes.text(-0.55, chance + 0.012, "chance", color=GREY, fontsize=8)
    axes.set_xticks(range(len(systems)), [_plain(name) for name in systems])
    axes.set_xlim(-0.6, len(systems) - 0.3)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("UAR of one speaker", color=GREY)
    _bare(axes)
    return _png(figure)


def right_wrong_picture(
    names: Sequence[str], right: Sequence[Any], wrong: Sequence[Any], chance: float
) -> bytes:
    """Bars with intervals for the right and the wrong audio, each metric on an axis of its own."""
    figure = _figure(2.2 + 1.6 * len(names), 3.2)
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name, a, b in zip(panels, names, right, wrong, strict=True):
        for place, (cell, colour) in enumerate(((a, BLUE), (b, GREY))):
            axes.bar(place, cell["value"], color=colour, width=0.62)
            top = cell["value"]
            if cell["low"] is not None:
                axes.plot([place, place], [cell["low"], cell["high"]], color=INK, linewidth=1.4)
                top = max(top, cell["high"])
            axes.annotate(
                f"{cell['value']:.2f}",
                (place, top),
                (0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
        if name.startswith("Emotion UAR"):
            axes.axhline(chance, color=ORANGE, linewidth=1.2, linestyle="--")
            axes.set_xlabel("dashed: chance", color=ORANGE, fontsize=8)
        axes.set_xticks([0, 1], ["right\naudio", "wrong\naudio"], fontsize=9)
        axes.set_xlim(-0.5, 1.5)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
        axes.set_title(name, fontsize=10, color=INK)
        _bare(axes)
    return _png(figure)


def _spread(heights: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """Ascending heights moved apart until neighbours are `gap` from each other, so that names can be read."""
    at = heights.astype(np.float64)
    for _ in range(200):
        lack = np.clip(gap - np.diff(at), 0, None)
        if lack.max(initial=0) < 1e-3:
            break
        at[:-1] -= lack / 2
        at[1:] += lack / 2
    return at


def _cycle(number: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(number)]


def _bare(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c5ccd3")
    axes.tick_params(colors=INK, labelsize=9)
