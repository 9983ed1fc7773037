"""Proof of listening in words, tables and a picture, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aligncap.drawing import BLUE, INK, ORANGE, PALE, bare, png
from aligncap.drawing import figure as canvas
from aligncap.evaluation.bootstrap import Interval
from aligncap.evaluation.systems import LESS_IS_BETTER, TITLES, figure, interval

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = ("emotion_uar", "cider_d", "rubric_score", "wrong_claim_share")  # of all that are in the JSON
HEARD = {
    "wrong": "wrong audio",
    "silence": "silence",
    "noise": "noise",
    "same-words": "same words",
    "whisper": "whisper",
}
MEANINGS = {
    "wrong": "another clip of the set",
    "silence": "digital silence, as long as the clip",
    "noise": "steady noise of the clip's length, level and long-term spectrum, which keeps some of "
    "the vocal effort",
    "same-words": "the words kept, the voice changed: the same words spoken with another emotion by the same "
    "speaker, or else by one of the same gender; where there is no such clip, the words in a whisper",
    "whisper": "the clip's words with pitch, voicing and most of the vocal effort taken out; rate, pauses "
    "and loudness contour are left",
}
DEAF = ("wrong", "silence", "noise")  # nothing of the clip's voice: a listener's scores must fall


def verdict(conditions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the gains say, in sentences; the first says whether it listens.

    It does where the score falls on every condition captioned that has nothing of the clip's voice: the 95 %
    interval of the gain leaves out zero. The score is emotion UAR, of clips without labels CIDEr-D.
    """
    sentences = []
    labelled = all("emotion_uar" in cells for cells in conditions.values())
    metric, title = ("emotion_uar", "emotion UAR") if labelled else ("cider_d", "CIDEr-D")
    cells = {name: conditions[name][metric] for name in DEAF if name in conditions}
    if cells:
        falls = [name for name, cell in cells.items() if (cell["gain"]["low"] or 0) > 0]
        stays = [name for name in cells if name not in falls]
        lead = "It listens" if not stays else "It listens in part" if falls else "It is not shown to listen"
        told = {
            name: f"{figure(metric, cell['heard']['value'])} on {HEARD[name]} (gain {_gain(metric, cell)})"
            for name, cell in cells.items()
        }
        right = figure(metric, next(iter(cells.values()))["right"]["value"])
        text = f"{lead}: {title} is {right} on the right audio"
        if falls:
            text += f" and falls to {_listed([told[name] for name in falls])}"
        if stays:
            text += f"; no fall is shown to {_listed([told[name] for name in stays])}"
        sentences.append(f"{text}.")
    else:
        sentences.append(
            "Whether it listens is not shown: captions of wrong audio, silence or noise are missing."
        )
    named = []
    for name in ("silence", "noise"):
        if name in conditions:
            label, share = next(iter(conditions[name]["said"]["emotions"].items()))
            what = "no emotion" if label == "none" else label
            named.append(f"captions of {name} name {what} ({100 * share:.0f} %)")
    if named:
        text = _listed(named)
        sentences.append(f"{text[0].upper()}{text[1:]} most often.")
    follows = conditions.get("same-words", {}).get("follows")
    if follows:
        cell = follows[metric]
        end = "follow the voice" if (cell["gain"]["low"] or 0) > 0 else "are not shown to follow the voice"
        sentences.append(
            f"With the words kept and the voice changed, {title} is "
            f"{figure(metric, cell['words']['value'])} against the clip's own references and "
            f"{figure(metric, cell['voice']['value'])} against those of the voice that is heard: "
            f"captions {end} (gap {_gain(metric, cell)})."
        )
    if "whisper" in conditions:
        cell = conditions["whisper"][metric]
        sentences.append(
            f"In a whisper {title} is {figure(metric, cell['heard']['value'])} (gain {_gain(metric, cell)}); "
            "what is left is told by rate, loudness and the sounds of the words."
        )
    return sentences


def _signed(metric: str, gain: Interval) -> dict[str, str]:
    value = gain["value"]
    sign = "+" if value is not None and value >= 0 else ""
    return {"value": f"{sign}{figure(metric, value)}", "interval": interval(metric, gain)}


def _gain(metric: str, cell: Mapping[str, Any]) -> str:
    return " ".join(_signed(metric, cell["gain"]).values()).strip()


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def shown_metrics(conditions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of SHOWN, those that every condition has."""
    return [name for name in SHOWN if conditions and all(name in cells for cells in conditions.values())]


def lines(conditions: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line for the right audio and each condition: its name, what it means, and a cell a shown metric."""
    metrics = shown_metrics(conditions)

    def cell(metric: str, value: Interval, gain: Interval | None = None) -> dict[str, Any]:
        shown = {"value": "", "interval": ""} if gain is None else _signed(metric, gain)
        return {"value": figure(metric, value["value"]), "interval": interval(metric, value), "gain": shown}

    nothing: Interval = {"value": None, "low": None, "high": None}
    result = []
    if conditions:
        first = next(iter(conditions.values()))
        right = [cell(metric, first[metric]["right"]) for metric in metrics]
        result.append({"name": "right audio", "meaning": "the clip itself", "cells": right})
    for name, cells in conditions.items():
        made = cells["made"]
        meaning = MEANINGS[name]
        if name == "same-words":
            meaning += (
                f" ({made.get('clip', 0)} captions of other clips, {made.get('whisper', 0)} of whispers)"
            )
        shown = [cell(m, cells[m]["heard"], cells[m]["gain"]) for m in metrics]
        result.append({"name": HEARD[name], "meaning": meaning, "cells": shown})
        if "follows" in cells:
            against = [
                cell(m, cells["follows"][m]["voice"]) if m in cells["follows"] else cell(m, nothing)
                for m in metrics
            ]
            meaning = "the captions of the same words against the references of the clip that is heard"
            result.append({"name": "… by the voice", "meaning": meaning, "cells": against})
    return result


def said_lines(conditions: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What captions say of silence and of noise: emotions by share, and the most frequent captions."""

    def emotions(shares: Mapping[str, float]) -> str:
        told = {**shares, **({"no emotion": shares["none"]} if "none" in shares else {})}
        return ", ".join(f"{label} {100 * told[label]:.0f} %" for label in told if label != "none")

    return [
        {
            "name": HEARD[name],
            "emotions": emotions(conditions[name]["said"]["emotions"]),
            "captions": conditions[name]["said"]["captions"],
        }
        for name in ("silence", "noise")
        if name in conditions
    ]


def table(conditions: Mapping[str, Mapping[str, Any]]) -> Table:
    """The conditions in a terminal: score, interval, and audio gain with its interval."""
    from rich.table import Table
    from rich.text import Text

    sheet = Table(title="Proof of listening", caption="gain: what the right audio is worth, 95 % interval")
    sheet.add_column("heard")
    for metric in shown_metrics(conditions):
        sheet.add_column(TITLES[metric], justify="right")
    for line in lines(conditions):
        row = [Text(line["name"])]
        for cell in line["cells"]:
            text = Text(cell["value"])
            text.append(f" {cell['interval']}", style="dim")
            gain = " ".join(cell["gain"].values())
            text.append(f"\ngain {gain}" if gain.strip() else "")
            row.append(text)
        sheet.add_row(*row)
    return sheet


def picture(conditions: Mapping[str, Mapping[str, Any]], chance: float) -> bytes:
    """Bars with 95 % intervals (PNG): the right audio in blue, then each condition; a panel a metric."""
    metrics = shown_metrics(conditions)
    names = ["right audio", *(HEARD[name] for name in conditions)]
    drawing = canvas(0.8 + max(2.2, 0.7 + 0.42 * len(names)) * len(metrics), 3.4)
    panels = drawing.subplots(1, max(1, len(metrics)), squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=False):
        first = next(iter(conditions.values()))[metric]["right"]
        cells = [first, *(parts[metric]["heard"] for parts in conditions.values())]
        for place, cell in enumerate(cells):
            top = cell["value"] or 0.0
            axes.bar(place, top, color=BLUE if place == 0 else PALE, width=0.66)
            if cell["low"] is not None:
                axes.plot([place, place], [cell["low"], cell["high"]], color=INK, linewidth=1.4)
                top = max(top, cell["high"])
            told = "–" if cell["value"] is None else f"{cell['value']:.2f}"
            axes.annotate(
                told,
                (place, top),
                (0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=INK,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            )
        title = TITLES[metric]
        if metric == "emotion_uar":
            axes.axhline(chance, color=ORANGE, linewidth=1.2, linestyle="--")
            title += "\n(dashed: chance)"
        elif metric in LESS_IS_BETTER:
            title += "\n(less is better)"
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.08)
        axes.set_title(title, fontsize=9.5, color=INK)
        bare(axes)
    return png(drawing)
