"""Pictures and tables of measured cues by emotion: is anger really loud, and sadness slow?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
    table = pd.DataFrame(relative_cues(measured), index=[u.emotion or UNLABELLED for u in measured])
    titles = {d.cue: d.title for d in dimensions().values() if d.cue in table}
    titles |= {cue: OTHER_TITLES.get(cue, cue) for cue in sorted(set(table) - titles.keys())}
    none = pd.Series(dtype=float)
    shares = [(d, _shares(table.get(d.cue, none).dropna(), d)) for d in dimensions().values()]
    pictures = {
        "cues.png": ("Relative cues by emotion", _draw_cues(table, titles)),
        "levels.png": ("Share of each wording level by emotion", _draw_levels(shares)),
    }
    out = Path(out_folder)
    for name, (_, picture) in pictures.items():
        with atomic_open(out / name, "wb") as file:
            file.write(png(picture))
    template = Environment(autoescape=True).from_string(data_path("cue_report.html.j2").read_text("utf-8"))
    html = template.render(
        clips=len(measured),
        speakers=len({u.speaker for u in measured}),
        pictures={name: title for name, (title, _) in pictures.items()},
        titles=titles,
        counts=table.groupby(level=0).size(),
        medians=table.groupby(level=0).median().to_dict("index"),
        shares=shares,
    )
    write_text(out / "index.html", html)
    return out / "index.html"


def _shares(values: pd.Series, dimension: Dimension) -> pd.DataFrame:
    """By emotion its measured "clips" and the share of each level, emotions from the low to the high one."""
    ranks = values.map(lambda value: dimension.level_of(value).rank)
    levels = {level.name: ranks.eq(level.rank).groupby(level=0).mean() for level in dimension.levels}
    table = values.groupby(level=0).size().to_frame("clips").assign(**levels)
    low, _, high = levels.values()
    return table.loc[(high - low).sort_values(kind="stable").index]


def _panels(count: int, emotions: int) -> tuple[Figure, list[Axes]]:
    """A figure of panels in two columns, each as high as its emotions need."""
    rows = -(-count // 2)
    picture = figure(12, rows * (1.2 + 0.34 * max(emotions, 1)))
    picture.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # type: ignore[union-attr, call-arg]
    panels = picture.subplots(rows, 2, squeeze=False)
    for panel in panels.flat[count:]:
        panel.set_axis_off()
    return picture, list(panels.flat[:count])


def _draw_cues(table: pd.DataFrame, titles: dict[str, str]) -> Figure:
    """Box plots of each cue, emotions from the lowest median at the bottom; outer levels shaded and named."""
    picture, panels = _panels(len(titles), table.index.nunique())
    by_cue = {d.cue: d for d in dimensions().values()}
    for panel, (cue, title) in zip(panels, titles.items(), strict=True):
        values = table[cue].dropna()
        order = list(values.groupby(level=0).median().sort_values(kind="stable").index)
        boxes = panel.boxplot(
            [values.loc[[emotion]] for emotion in order],
            orientation="horizontal",
            tick_labels=order,
            patch_artist=True,
            widths=0.65,
            medianprops={"color": "black", "linewidth": 2},
            flierprops={"marker": ".", "markersize": 3, "markeredgecolor": "#777777"},
        )
        for box, emotion in zip(boxes["boxes"], order, strict=True):
            box.set_facecolor(COLOURS.get(emotion, OTHER_COLOUR))
        dimension = by_cue.get(cue)
        below, above = (dimension.below, dimension.above) if dimension else (0.0, 0.0)
        low, high = np.percentile(values, [0.5, 99.5])
        left, right = min(low, below - 0.5, -2.0) - 0.2, max(high, above + 0.5, 2.0) + 0.2
        panel.set(xlim=(left, right), xlabel="deviations from the speaker's norm")
        panel.axvline(0, color="#555555", linewidth=0.8, zorder=0)
        if dimension:
            panel.axvspan(left, below, color="#F1F1F1", zorder=-1)
            panel.axvspan(above, right, color="#F1F1F1", zorder=-1)
            panel.set_title(dimension.levels[0].name, loc="left", fontsize="medium", style="italic")
            panel.set_title(dimension.levels[2].name, loc="right", fontsize="medium", style="italic")
        panel.set_title(title, fontweight="bold")
    return picture


def _draw_levels(shares: Sequence[tuple[Dimension, pd.DataFrame]]) -> Figure:
    """Bars of the levels' shares, one panel a dimension."""
    picture, panels = _panels(len(shares), max(len(rows) for _, rows in shares))
    for panel, (dimension, rows) in zip(panels, shares, strict=True):
        left = np.zeros(len(rows))
        for level, colour in zip(dimension.levels, LEVEL_COLOURS, strict=True):
            widths = 100 * rows[level.name].to_numpy()
            bars = panel.barh(
                rows.index, widths, left=left, color=colour, label=level.name, edgecolor="white"
            )
            texts = [f"{width:.0f}" if width >= 8 else "" for width in widths]
            panel.bar_label(bars, texts, label_type="center", fontsize=9)
            left += widths
        panel.set_title(dimension.title, fontweight="bold", loc="left")
        panel.set(xlim=(0, 100), xlabel="percent of clips")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False, handlelength=1)
    return picture
