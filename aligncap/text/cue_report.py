"""Pictures and tables of measured cues by emotion: is anger really loud, and sadness slow?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aligncap.data.manifest import Utterance
from aligncap.text.claims import Dimension, dimensions, relative_cues
from aligncap.utils.drawing import figure, png
from aligncap.utils.errors import UserError
from aligncap.utils.io import atomic_open, data_path, write_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = {"cues.png": "Relative cues by emotion", "levels.png": "Share of each wording level by emotion"}
UNLABELLED = "(no label)"
# Okabe and Ito's palette, told apart by colour-blind readers; one colour an emotion in every panel
COLOURS = {
    "neutral": "#999999",
    "calm": "#56B4E9",
    "happy": "#F0E442",
    "sad": "#0072B2",
    "angry": "#D55E00",
    "fearful": "#CC79A7",
    "disgusted": "#009E73",
    "surprised": "#E69F00",
}
OTHER_COLOUR = "#D9D9D9"
LEVEL_COLOURS = ("#5E8FC4", "#E6E6E6", "#E8985A")  # below, near, above the norm
OTHER_TITLES = {"pause_share": "Share of pauses", "voiced_share": "Share of voiced speech"}

Shares = list[tuple[str, int, list[float]]]  # (emotion, measured clips, share of each level)


def write_cue_report(utterances: Sequence[Utterance], out_folder: str | Path) -> Path:
    """Write `index.html`, `cues.png` and `levels.png` about utterances that hold cues.

    Levels are worded afresh from the cues by the thresholds of data/cue_words.yaml.

    Returns:
        Path of the page.

    Raises:
        UserError: no utterance holds cues, or the folder cannot be written.
    """
    import pandas as pd
    from jinja2 import Environment

    measured = [u for u in utterances if u.cues]
    if not measured:
        raise UserError("no utterance holds measured cues; run `aligncap annotate` first")
    table = pd.DataFrame(relative_cues(measured))
    groups = table.groupby([u.emotion or UNLABELLED for u in measured])
    titles = {d.cue: d.title for d in dimensions().values()}
    titles |= {cue: OTHER_TITLES.get(cue, cue) for cue in sorted(set(table) - titles.keys())}
    titles = {cue: title for cue, title in titles.items() if cue in table}
    shares = [(d, _shares(groups, d) if d.cue in table else []) for d in dimensions().values()]
    out = Path(out_folder)
    for name, picture in zip(PICTURES, (_draw_cues(groups, titles), _draw_levels(shares)), strict=True):
        with atomic_open(out / name, "wb") as file:
            file.write(png(picture))
    template = data_path("cue_report.html.j2").read_text(encoding="utf-8")
    html = (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            clips=len(measured),
            speakers=len({u.speaker for u in measured}),
            pictures=PICTURES,
            titles=titles,
            counts=groups.size().to_dict(),
            medians=groups.median().to_dict("index"),
            shares=shares,
        )
    )
    write_text(out / "index.html", html)
    return out / "index.html"


def _values(groups: Any, cue: str) -> dict[str, pd.Series]:
    """Measured values of a cue by emotion, emotions without any left out."""
    found = {emotion: values.dropna() for emotion, values in groups[cue]}
    return {emotion: values for emotion, values in found.items() if len(values)}


def _shares(groups: Any, dimension: Dimension) -> Shares:
    """Shares of the levels by emotion, emotions from the low to the high level."""
    rows = []
    for emotion, values in _values(groups, dimension.cue).items():
        ranks = [dimension.level_of(value).rank for value in values]
        rows.append((emotion, len(ranks), [ranks.count(rank) / len(ranks) for rank in (-1, 0, 1)]))
    return sorted(rows, key=lambda row: row[2][2] - row[2][0])


def _panels(count: int, emotions: int) -> tuple[Figure, list[Axes]]:
    """A figure of panels in two columns, each as high as its emotions need."""
    rows = -(-count // 2)
    picture = figure(12, rows * (1.2 + 0.34 * max(emotions, 1)))
    picture.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # type: ignore[union-attr, call-arg]
    panels: Any = picture.subplots(rows, 2, squeeze=False)
    for panel in panels.flat[count:]:
        panel.set_axis_off()
    return picture, list(panels.flat[:count])


def _draw_cues(groups: Any, titles: dict[str, str]) -> Figure:
    """Box plots of each cue, emotions from the lowest median at the bottom; outer levels shaded and named."""
    picture, panels = _panels(len(titles), len(groups))
    by_cue = {d.cue: d for d in dimensions().values()}
    for panel, (cue, title) in zip(panels, titles.items(), strict=True):
        _draw_boxes(panel, _values(groups, cue), title, by_cue.get(cue))
    return picture


def _draw_boxes(panel: Axes, values: dict[str, pd.Series], title: str, dimension: Dimension | None) -> None:
    order = sorted(values, key=lambda emotion: float(values[emotion].median()))
    boxes = panel.boxplot(
        [values[emotion] for emotion in order],
        orientation="horizontal",
        tick_labels=order,
        patch_artist=True,
        widths=0.65,
        medianprops={"color": "black", "linewidth": 2},
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": "#777777"},
    )
    for box, emotion in zip(boxes["boxes"], order, strict=True):
        box.set_facecolor(COLOURS.get(emotion, OTHER_COLOUR))
    low, high = np.percentile(np.concatenate(list(values.values())), [0.5, 99.5])
    below, above = (dimension.below, dimension.above) if dimension else (0.0, 0.0)
    left, right = min(low, below - 0.5, -2.0) - 0.2, max(high, above + 0.5, 2.0) + 0.2
    panel.set_xlim(left, right)
    panel.axvline(0, color="#555555", linewidth=0.8, zorder=0)
    if dimension:
        names = [level.name for level in dimension.levels]
        for start, end, name, side, at in (
            (left, below, names[0], "left", 0.015),
            (above, right, names[2], "right", 0.985),
        ):
            panel.axvspan(start, end, color="#F1F1F1", zorder=-1)
            panel.text(at, 1.01, name, transform=panel.transAxes, ha=side, va="bottom", style="italic")
    panel.set_title(title, fontweight="bold")
    panel.set_xlabel("deviations from the speaker's norm")


def _draw_levels(shares: Sequence[tuple[Dimension, Shares]]) -> Figure:
    picture, panels = _panels(len(shares), max(len(rows) for _, rows in shares))
    for panel, (dimension, rows) in zip(panels, shares, strict=True):
        left = np.zeros(len(rows))
        for i, (level, colour) in enumerate(zip(dimension.levels, LEVEL_COLOURS, strict=True)):
            widths = np.array([100 * row[i] for *_, row in rows])
            names = [emotion for emotion, *_ in rows]
            bars = panel.barh(names, widths, left=left, color=colour, label=level.name, edgecolor="white")
            texts = [f"{width:.0f}" if width >= 8 else "" for width in widths]
            panel.bar_label(bars, texts, label_type="center", fontsize=9)
            left += widths
        panel.set_title(dimension.title, fontweight="bold", loc="left")
        panel.set_xlim(0, 100)
        panel.set_xlabel("percent of clips")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False, handlelength=1)
    return picture
