"""What all pictures share: colours, a bare axis, PNG bytes."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

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
