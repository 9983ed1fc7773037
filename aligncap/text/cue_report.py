"""Pictures and tables of measured cues by emotion: is anger really loud, and sadness slow?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aligncap.data.manifest import Utterance
from aligncap.text.claims import Dimension, Level, dimensions
from aligncap.utils.errors import UserError
from aligncap.utils.io import atomic_open, write_text

if TYPE_CHECKING:
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

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Voice cues by emotion</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222;
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
img { max-width: 100%; height: auto } table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid #ddd }
td { font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left }
thead th { border-bottom: 2px solid #888; vertical-align: bottom }
.wide { overflow-x: auto }
</style></head><body>
<h1>Voice cues by emotion</h1>
<p>{{ clips }} clips of {{ speakers }} speakers. Values are relative: 0 is the speaker's own norm
(or that of the gender, where a speaker has few clips), 1 is one usual deviation above it.</p>
{% for file, title in pictures.items() %}<h2>{{ title }}</h2><p><img src="{{ file }}" alt="{{ title }}"></p>
{% endfor %}
<h2>Medians</h2>
<div class="wide"><table><thead><tr><th>emotion</th><th>clips</th>
{% for title in titles.values() %}<th>{{ title }}</th>{% endfor %}</tr></thead><tbody>
{% for emotion, row in medians.items() %}<tr><td>{{ emotion }}</td><td>{{ counts[emotion] }}</td>
{% for cue in titles %}<td>{{ "%+.2f"|format(row[cue]) if cue in row else "–" }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<h2>Wording levels, percent of clips</h2>
{% for dimension, rows in shares %}<h3>{{ dimension.title }}</h3>
<p>{{ dimension.levels[0].name }} below {{ dimension.below }}, {{ dimension.levels[2].name }} above
{{ dimension.above }}</p>
<div class="wide"><table><thead><tr><th>emotion</th><th>measured</th>
{% for level in dimension.levels %}<th>{{ level.name }}</th>{% endfor %}</tr></thead><tbody>
{% for emotion, measured, row in rows %}<tr><td>{{ emotion }}</td><td>{{ measured }}</td>
{% for share in row %}<td>{{ "%.0f"|format(100 * share) }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% endfor %}</body></html>
"""


def write_cue_report(utterances: Sequence[Utterance], out_folder: str | Path) -> Path:
    """Write `index.html`, `cues.png` and `levels.png` about utterances that hold cues.

    Levels are worded afresh from the cues by the thresholds of data/cue_words.yaml.

    Returns:
        Path of the page.

    Raises:
        UserError: no utterance holds cues, or the folder cannot be written.
    """
    from jinja2 import Environment

    from aligncap.audio.cues import relative

    measured = [u for u in utterances if u.cues]
    if not measured:
        raise UserError("no utterance holds measured cues; run `aligncap annotate` first")
    values = relative([u.cues for u in measured], [u.speaker for u in measured], [u.gender for u in measured])
    by_emotion: dict[str, list[dict[str, float]]] = defaultdict(list)
    for utterance, cues in zip(measured, values, strict=True):
        by_emotion[utterance.emotion or UNLABELLED].append(cues)
    by_emotion = dict(sorted(by_emotion.items()))
    titles = _titles(values)
    shares = [(d, _shares(by_emotion, d)) for d in dimensions().values()]
    out = Path(out_folder)
    _save(_draw_cues(by_emotion, titles), out / "cues.png")
    _save(_draw_levels(shares), out / "levels.png")
    page = Environment(autoescape=True).from_string(PAGE)
    html = page.render(
        clips=len(measured),
        speakers=len({u.speaker for u in measured}),
        pictures=PICTURES,
        titles=titles,
        counts={emotion: len(rows) for emotion, rows in by_emotion.items()},
        medians={emotion: _medians(rows, titles) for emotion, rows in by_emotion.items()},
        shares=shares,
    )
    write_text(out / "index.html", html)
    return out / "index.html"


def _titles(values: Sequence[dict[str, float]]) -> dict[str, str]:
    """Title by cue, the worded ones first."""
    present = {cue for row in values for cue in row}
    titles = {d.cue: d.title for d in dimensions().values()}
    titles |= {cue: OTHER_TITLES.get(cue, cue) for cue in sorted(present - titles.keys())}
    return {cue: title for cue, title in titles.items() if cue in present}


def _column(rows: Sequence[dict[str, float]], cue: str) -> list[float]:
    return [row[cue] for row in rows if cue in row]


def _medians(rows: Sequence[dict[str, float]], cues: dict[str, str]) -> dict[str, float]:
    return {cue: float(np.median(_column(rows, cue))) for cue in cues if _column(rows, cue)}


def _shares(
    by_emotion: dict[str, list[dict[str, float]]], dimension: Dimension
) -> list[tuple[str, int, list[float]]]:
    """(emotion, clips with this cue, share of each level), emotions from the low to the high level."""
    table = []
    for emotion, rows in by_emotion.items():
        levels: list[Level] = [dimension.level_of(value) for value in _column(rows, dimension.cue)]
        if levels:
            share = [sum(level.rank == rank for level in levels) / len(levels) for rank in (-1, 0, 1)]
            table.append((emotion, len(levels), share))
    return sorted(table, key=lambda row: row[2][2] - row[2][0])


def _draw_cues(by_emotion: dict[str, list[dict[str, float]]], titles: dict[str, str]) -> Figure:
    from matplotlib.figure import Figure

    columns = 2
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(12, rows * (1.1 + 0.34 * len(by_emotion))), layout="constrained")
    panels: Any = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat[len(titles) :]:
        panel.set_axis_off()
    by_cue = {d.cue: d for d in dimensions().values()}
    for panel, (cue, title) in zip(panels.flat, titles.items(), strict=False):
        _draw_panel(panel, {e: _column(rows, cue) for e, rows in by_emotion.items()}, title, by_cue.get(cue))
    return figure


def _draw_panel(panel: Axes, groups: dict[str, list[float]], title: str, dimension: Dimension | None) -> None:
    """Box plots of one cue, emotions from the lowest median at the bottom; outer levels shaded and named."""
    order = sorted((e for e, values in groups.items() if values), key=lambda e: float(np.median(groups[e])))
    boxes = panel.boxplot(
        [groups[emotion] for emotion in order],
        orientation="horizontal",
        tick_labels=order,
        patch_artist=True,
        widths=0.65,
        medianprops={"color": "black", "linewidth": 2},
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": "#777777"},
    )
    for box, emotion in zip(boxes["boxes"], order, strict=True):
        box.set_facecolor(COLOURS.get(emotion, OTHER_COLOUR))
    everything = np.concatenate([groups[emotion] for emotion in order])
    low, high = np.percentile(everything, [0.5, 99.5])
    bounds = (dimension.below, dimension.above) if dimension else (0.0, 0.0)
    left, right = min(low, bounds[0] - 0.5, -2.0), max(high, bounds[1] + 0.5, 2.0)
    panel.set_xlim(left - 0.2, right + 0.2)
    panel.axvline(0, color="#555555", linewidth=0.8, zorder=0)
    if dimension:
        for start, end, level, place in (
            (left - 0.2, dimension.below, dimension.levels[0], "left"),
            (dimension.above, right + 0.2, dimension.levels[2], "right"),
        ):
            panel.axvspan(start, end, color="#F1F1F1", zorder=-1)
            at = (0.015, 0.985)[place == "right"]
            panel.text(at, 1.01, level.name, transform=panel.transAxes, ha=place, va="bottom", style="italic")
    panel.set_title(title, fontweight="bold")
    panel.set_xlabel("deviations from the speaker's norm")


def _draw_levels(shares: Sequence[tuple[Dimension, list[tuple[str, int, list[float]]]]]) -> Figure:
    from matplotlib.figure import Figure

    emotions = max((len(rows) for _, rows in shares), default=1)
    columns = 2
    lines = -(-len(shares) // columns)
    figure = Figure(figsize=(12, lines * (1.2 + 0.34 * max(emotions, 1))), layout="constrained")
    panels: Any = figure.subplots(lines, columns, squeeze=False)
    for panel in panels.flat[len(shares) :]:
        panel.set_axis_off()
    for panel, (dimension, rows) in zip(panels.flat, shares, strict=False):
        names = [emotion for emotion, *_ in rows]
        left = np.zeros(len(rows))
        for i, (level, colour) in enumerate(zip(dimension.levels, LEVEL_COLOURS, strict=True)):
            widths = np.array([100 * share[i] for *_, share in rows])
            panel.barh(names, widths, left=left, color=colour, label=level.name, edgecolor="white")
            for y, (width, start) in enumerate(zip(widths, left, strict=True)):
                if width >= 8:
                    panel.text(start + width / 2, y, f"{width:.0f}", ha="center", va="center", fontsize=9)
            left += widths
        panel.set_title(dimension.title, fontweight="bold", loc="left")
        panel.set_xlim(0, 100)
        panel.set_xlabel("percent of clips")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False, handlelength=1)
    return figure


def _save(figure: Figure, path: Path) -> None:
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # type: ignore[union-attr, call-arg]
    with atomic_open(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)
