"""What pictures share: colours, a bare axis, PNG bytes; confusion matrices, bars with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aligncap.utils.io import Row
from aligncap.utils.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY, PALE, BLUE, ORANGE = "#1f2933", "#66707b", "#c5ccd3", "#2563a8", "#d9822b"
# Told apart by colour-blind readers (after Okabe and Ito), all dark enough for a thin line on white.
COLOURS = (BLUE, ORANGE, "#1b8a6b", "#b14a86", "#8a5a2b", "#4f9fc9")


def figure(width: float, height: float) -> Figure:
    """An empty figure of `width` by `height` inches, outside of pyplot's state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def png(picture: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = BytesIO()
    picture.savefig(buffer, format="png", dpi=130, facecolor="white")
    return buffer.getvalue()


def plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")


def cycle(number: int) -> list[str]:
    """A colour for each of `number` things; the first repeats after the last."""
    return [COLOURS[i % len(COLOURS)] for i in range(number)]


def bare(axes: Axes) -> None:
    """Only the left and the lower spine, both pale."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=INK, labelsize=9)


def confusion_picture(
    matrix: NDArray[np.int64],
    labels: Sequence[str],
    columns: Sequence[str],
    title: str,
    what: str = "emotion the caption names",
) -> bytes:
    """Confusion matrix (labels, columns): colour and percentage are shares of the row, below are counts.

    Args:
        what: the columns are.
    """
    picture = figure(1.9 + 0.66 * len(columns), 1.5 + 0.6 * len(labels))
    axes = picture.add_subplot()
    total = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, total, out=np.zeros(matrix.shape), where=total > 0)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(*matrix.shape):
        if matrix[row, column]:
            colour = "white" if share[row, column] > 0.55 else INK
            style: Row = {"ha": "center", "va": "center", "color": colour}
            axes.text(column, row - 0.12, f"{100 * share[row, column]:.0f} %", fontsize=9, **style)
            axes.text(column, row + 0.24, f"{matrix[row, column]}", fontsize=7, alpha=0.8, **style)
    turned: Row = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(columns)), [plain(c) for c in columns], fontsize=9, **turned)
    names = [f"{plain(label)} ({n})" for label, n in zip(labels, total[:, 0], strict=True)]
    axes.set_yticks(range(len(labels)), names, fontsize=9)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(labels) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.axvline(len(labels) - 0.5, color=GREY, linewidth=1.2, linestyle="--")
    axes.set_title(plain(title), fontsize=11, color=INK, loc="left")
    axes.spines[:].set_visible(False)
    axes.set_xlabel(what, color=GREY)
    axes.set_ylabel("label of the clip (clips)", color=GREY)
    return png(picture)


def bars_picture(
    panels: Mapping[str, Mapping[str, Interval]], dashed: Mapping[str, tuple[float, str]]
) -> bytes:
    """Bars with 95 % intervals, a panel a score; the first bar of each panel is what the others compare with.

    Args:
        panels: title to name to value with interval.
        dashed: of some titles, where to draw a dashed line and what it is.
    """
    names = list(next(iter(panels.values()), {}))
    picture = figure(0.8 + max(2.2, 0.7 + 0.42 * len(names)) * len(panels), 3.4)
    drawn = picture.subplots(1, max(1, len(panels)), squeeze=False)[0]
    for axes, (title, cells) in zip(drawn, panels.items(), strict=False):
        for place, cell in enumerate(cells.values()):
            top = cell["value"] or 0.0
            axes.bar(place, top, color=PALE if place else BLUE, width=0.66)
            if cell["low"] is not None and cell["high"] is not None:
                axes.plot([place, place], [cell["low"], cell["high"]], color=INK, linewidth=1.4)
                top = max(top, cell["high"])
            text = "–" if cell["value"] is None else f"{cell['value']:.2f}"
            style: Row = {"textcoords": "offset points", "ha": "center", "fontsize": 8, "color": INK}
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
            axes.annotate(text, (place, top), (0, 4), bbox=box, **style)
        if title in dashed:
            axes.axhline(dashed[title][0], color=ORANGE, linewidth=1.2, linestyle="--")
            title += f"\n(dashed: {dashed[title][1]})"
        axes.set_xticks(range(len(names)), [plain(name) for name in names], rotation=40, ha="right")
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.08)
        axes.set_title(title, fontsize=9.5, color=INK)
        bare(axes)
    return png(picture)
