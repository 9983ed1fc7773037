"""Pictures of a conflict study: bars of behaviour, curves of lens and probe, heat maps of patches, heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aligncap.utils.drawing import BLUE, COLOURS, GREY, INK, ORANGE, PALE, bare, figure, plain, png
from aligncap.utils.io import Row
from aligncap.utils.statistics import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PARTS = {"audio": BLUE, "text": ORANGE, "neither": PALE}


def behaviour_picture(table: Row) -> bytes:
    """Of the conflicts, shares that follow audio, text and neither: a panel a place, a bar a part."""
    places = table["conflict"]
    shown = {
        place: {n: c for n, c in cells.items() if not n.startswith("pair=")}
        for place, cells in places.items()
    }
    longest = max(len(cells) for cells in shown.values())
    picture = figure(5.2 * len(shown), 1.3 + 0.3 * longest)
    panels = picture.subplots(1, len(shown), squeeze=False)[0]
    for axes, (place, cells) in zip(panels, shown.items(), strict=True):
        names = list(cells)[::-1]
        left = np.zeros(len(names))
        for winner, colour in PARTS.items():
            values = np.array([cells[n][winner]["value"] or 0.0 for n in names])
            axes.barh(names, values, left=left, color=colour, height=0.72, label=winner)
            left += values
        for y, name in enumerate(names):
            cell = cells[name]["audio"]
            if cell["low"] is not None:
                axes.plot([max(0, cell["low"]), min(1, cell["high"])], [y, y], color=INK, lw=1.1)
        axes.set(xlim=(0, 1), xlabel="share of answers; line: interval of audio")
        axes.set_title(f"another emotion in the {place}", fontsize=11, color=INK, loc="left")
        bare(axes)
    handles, names = panels[0].get_legend_handles_labels()
    picture.legend(
        handles,
        [f"follows {n}" if n != "neither" else n for n in names],
        loc="outside upper right",
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    return png(picture)


def lens_picture(found: Row, blocks: int) -> bytes:
    """Δlogit by layer, a panel a lens, a line a group, the layer where it turns or is half made marked."""
    kinds = [kind for kind in ("raw", "tuned") if kind in found]
    picture = figure(6.2 * len(kinds), 4.2)
    panels = picture.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        axes.axhline(0, color=GREY, lw=0.8)
        for colour, (name, cell) in zip(COLOURS * 2, found[kind]["groups"].items(), strict=False):
            _curve(axes, cell, colour, f"{name} ({cell['trials']})")
            mark = cell["rise"]
            if mark["value"] is not None:
                at = round(mark["value"])
                axes.plot([at], [cell["mean"][at]], "o", color=colour, ms=6, mec=INK, mew=0.6)
        axes.set(xlim=(0, blocks), xlabel="layer", ylabel="Δlogit: log p(T) − log p(A)")
        axes.set_title(f"{kind} lens", fontsize=11, color=INK, loc="left")
        bare(axes)
    handles, names = panels[0].get_legend_handles_labels()
    title = "dot: from here on beyond half of its final value"
    picture.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8.5,
        title=title,
        title_fontsize=8.5,
    )
    return png(picture)


def _curve(axes: Axes, cell: Row, colour: str, label: str, style: str = "-") -> None:
    layers = np.arange(len(cell["mean"]))
    axes.plot(layers, cell["mean"], style, color=colour, lw=1.7, label=plain(label))
    low, high = (
        np.array([np.nan if v is None else v for v in cell[end]], dtype=float) for end in ("low", "high")
    )
    axes.fill_between(layers, low, high, color=colour, alpha=0.13, lw=0)


def probe_picture(found: Row) -> bytes:
    """UAR by layer of what is read from tokens of sound and from the answer position, a panel a condition."""
    picture = figure(5.4 * len(found), 3.6)
    panels = picture.subplots(1, len(found), squeeze=False, sharey=True)[0]
    colours = {"A from audio": COLOURS[0], "A from answer": COLOURS[2], "T from answer": COLOURS[1]}
    for axes, (condition, part) in zip(panels, found.items(), strict=True):
        axes.axhline(part["chance"], color=GREY, lw=0.9, ls=":")
        for name, colour in colours.items():
            if rows := part.get(name):
                cell = {
                    key: [r[k] for r in rows]
                    for key, k in (("mean", "value"), ("low", "low"), ("high", "high"))
                }
                _curve(axes, cell, colour, name)
        axes.set(ylim=(0, 1.02), xlabel="layer", ylabel="UAR of a linear probe")
        axes.set_title(f"{condition} ({part['trials']})", fontsize=11, color=INK, loc="left")
        bare(axes)
    handles, names = panels[-1].get_legend_handles_labels()
    picture.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return png(picture)


def patching_picture(found: Row) -> bytes:
    """Heat maps of effects in logits: text against audio, patched and cut; rows groups, columns windows."""
    groups = [name for name in found if name != "windows"]
    paths = ("text", "audio", "cut text", "cut audio")
    picture = figure(11.0, 1.6 + 2 * (0.75 + 0.32 * len(groups)))
    panels = picture.subplots(2, 2, squeeze=False)
    values = {
        path: np.array([[c["effect"]["value"] or 0.0 for c in found[g][path]] for g in groups])
        for path in paths
    }
    most = max(1e-6, *(float(np.abs(v).max()) for v in values.values()))
    for axes, path in zip(panels.flat, paths, strict=True):
        spans = found["windows"]["cuts" if path.startswith("cut") else "states"]
        image = _heat(axes, values[path], groups, [f"{a}–{b}" for a, b in spans], most)
        what = {
            "text": "text patched: towards A",
            "audio": "audio patched: towards T",
            "cut text": "answer → text cut: towards A",
            "cut audio": "answer → audio cut: towards T",
        }[path]
        axes.set_title(what, fontsize=10.5, color=INK, loc="left")
        axes.set_xlabel("layers" if not path.startswith("cut") else "blocks", fontsize=9)
    picture.colorbar(image, ax=panels, shrink=0.7, label="change in logits, one scale for all")
    return png(picture)


def back_picture(part: Row, pairs: Sequence[Sequence[int]]) -> bytes:
    """Effect of later states of sound in earlier layers: rows from where, columns into where."""
    layers = sorted({layer for pair in pairs for layer in pair})
    grid = np.full((len(layers), len(layers)), np.nan)
    for (later, earlier), cell in zip(pairs, part["back"], strict=True):
        grid[layers.index(later), layers.index(earlier)] = cell["effect"]["value"]
    picture = figure(4.6, 3.9)
    axes = picture.subplots()
    names = [str(layer) for layer in layers]
    most = max(1e-6, float(np.nanmax(np.abs(grid))) if np.isfinite(grid).any() else 1.0)
    image = _heat(axes, grid, names, names, most)
    axes.set(xlabel="put into the state of layer", ylabel="sound as of layer")
    picture.colorbar(image, ax=axes, shrink=0.8, label="logits towards A")
    return png(picture)


def heads_picture(found: Row) -> bytes:
    """Pull and shares of every head: a row a head, a column a block."""
    names = ("pull", "audio share", "text share")
    grids = [np.array(found[name]).T for name in names]
    picture = figure(12.0, 1.2 + 0.2 * max(6, len(grids[0])))
    panels = picture.subplots(1, 3)
    for axes, name, grid in zip(panels, names, grids, strict=True):
        signed = name == "pull"
        most = max(1e-6, float(np.abs(grid).max()))
        limits: Row = {"vmin": -most if signed else 0.0, "vmax": most, "cmap": "RdBu" if signed else "Blues"}
        image = axes.imshow(grid, aspect="auto", interpolation="nearest", **limits)
        step = max(1, grid.shape[1] // 8)
        axes.set_xticks(range(0, grid.shape[1], step), [str(i + 1) for i in range(0, grid.shape[1], step)])
        axes.set(xlabel="block", ylabel="head")
        axes.set_title(
            {"pull": "pull towards the voice"}.get(name, f"{name} of attention"), fontsize=10.5, loc="left"
        )
        picture.colorbar(image, ax=axes, shrink=0.85)
    return png(picture)


def remedies_picture(found: Row) -> bytes:
    """Share that follows the voice before and after each kind's best remedy, and the price beside it."""
    parts = [p for p in ("conflict", "audio", "consistent") if p in found["before"]]
    rows: dict[str, Mapping[str, Any]] = {"as it is": found["before"]}
    rows |= {f"{kind}: {part['best']}": part["after"] for kind, part in found["kinds"].items()}
    picture = figure(9.0, 1.2 + 0.5 * len(rows))
    axes = picture.subplots()
    high = 0.8 / len(parts)
    for i, part in enumerate(parts):
        y = np.arange(len(rows))[::-1] - high * (i - (len(parts) - 1) / 2)
        values = [row[part]["value"] or 0.0 for row in rows.values()]
        axes.barh(y, values, height=high * 0.9, color=COLOURS[i], label=part)
        for place, row in zip(y, rows.values(), strict=True):
            if row[part]["low"] is not None:
                axes.plot(
                    [max(0, row[part]["low"]), min(1, row[part]["high"])], [place, place], color=INK, lw=1
                )
    axes.set_yticks(np.arange(len(rows))[::-1], list(rows))
    axes.set(xlim=(0, 1), xlabel="share of answers that are the voice's emotion")
    bare(axes)
    picture.legend(loc="outside upper right", ncols=3, frameon=False, fontsize=9)
    return png(picture)


def _heat(axes: Axes, grid: Floats, rows: Sequence[str], columns: Sequence[str], most: float) -> Any:
    image = axes.imshow(grid, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    axes.set_xticks(range(len(columns)), columns, fontsize=7.5, rotation=45 if len(columns) > 8 else 0)
    for (y, x), value in np.ndenumerate(grid):
        if np.isfinite(value):
            colour = "white" if abs(value) > 0.6 * most else INK
            axes.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=7, color=colour)
    axes.spines[:].set_visible(False)
    return image
