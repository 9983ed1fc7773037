"""Proof of listening: what a captioner's scores lose when it does not hear the clip that is scored.

The audio gain of a score is the score on the right audio less that under a condition (`CONDITIONS` of
`aligncap.inference.batch`), or the other way round where less is better, so that a listener gains. Both
are resampled together by speaker, and the captions of several seeds count together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from aligncap.data.manifest import Utterance
from aligncap.evaluation.evaluate import SCORES, Scored, Synonyms, pair_up, score
from aligncap.evaluation.metrics.ngram import most_frequent
from aligncap.evaluation.systems import LESS_IS_BETTER, NEITHER, TITLES, figure, interval
from aligncap.text.emotions import emotion_of
from aligncap.utils.drawing import BLUE, INK, ORANGE, PALE, bare, png
from aligncap.utils.drawing import figure as canvas
from aligncap.utils.errors import UserError
from aligncap.utils.statistics import (
    Clusters,
    Interval,
    Statistic,
    clusters_of,
    intervals,
    paired_differences,
)

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


Rows = Sequence[Mapping[str, Any]]
Count = Callable[[Rows], Scored]

USUAL = ("wrong", "silence", "noise", "same-words")  # what every report should have


@dataclass(frozen=True)
class Listening:
    """What captions lose without the clip.

    `conditions` is {condition: {metric: {"right", "heard", "gain"}, "said": {"captions", "emotions"},
    "made": {"clip" or kind of sound: number}}}, the three being {"value", "low", "high"} (and "p" of the
    gain). "same-words" has "follows": {"clips", metric: {"voice", "words", "gain"}}, the captions of clips
    heard in place of others, against the references of the clip heard and of the clip it stands for.
    `verdict` is sentences, `missing` the usual conditions that were not captioned.
    """

    conditions: dict[str, dict[str, Any]]
    verdict: list[str]
    missing: tuple[str, ...] = USUAL


def counter(
    references: Sequence[Utterance],
    whole: Sequence[Utterance] | None = None,
    *,
    label_map: Mapping[str, str] | None = None,
    allow_missing: bool = False,
    **options: Any,
) -> Count:
    """A function that scores a list of rows against `references`, each list once however often it is asked.

    Lists are told apart by identity and kept. `whole` is the set that speakers' norms are taken from;
    `options` are those of `score`.
    """
    known: dict[int, tuple[Rows, Scored]] = {}

    def count(rows: Rows) -> Scored:
        if id(rows) not in known:
            paired = pair_up(rows, references, allow_missing=allow_missing)
            scored = score(*paired, label_map=label_map, whole=whole or references, **options)
            known[id(rows)] = rows, scored
        return known[id(rows)][1]

    return count


def audio_gains(
    right: Sequence[Rows],
    conditions: Mapping[str, Sequence[Rows]],
    references: Sequence[Utterance],
    *,
    count: Count | None = None,
    synonyms: Synonyms = "auto",
    label_map: Mapping[str, str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Listening:
    """Audio gain of one captioner under each condition.

    Args:
        right: its captions of the clips themselves, a list of rows a training seed.
        conditions: its captions by what it heard instead, as `aligncap caption --heard` writes them.
        references: the clips that are scored, all captioned in every list.
        count: of `counter`, to share what is scored already.

    Raises:
        UserError: no such condition, or captions that were written under another one.
        UserErrors: captions and references do not match.
    """
    for name, lists in conditions.items():
        _check(name, lists)
    count = count or counter(references, synonyms=synonyms, label_map=label_map)
    found: dict[str, dict[str, Any]] = {}
    for name in HEARD:
        lists = conditions.get(name, ())
        if lists:
            base, other = ([count(rows) for rows in part] for part in (right, lists))
            found[name] = {
                **_gains(("right", "heard"), base, other, base[0].clusters, resamples, seed),
                "said": _said([caption for scored in other for caption in scored.captions]),
                "made": dict(Counter(row.get("made") or "clip" for rows in lists for row in rows)),
            }
    pairs = _swapped(conditions.get("same-words", ()), references)
    if pairs:
        captions = [caption for _, _, caption in pairs]
        own, voice = [clip for clip, _, _ in pairs], [clip for _, clip, _ in pairs]
        by_voice, by_words = (
            [
                score(
                    clips, captions, label_map=label_map, whole=references, synonyms="none", similarity="none"
                )
            ]
            for clips in (voice, own)
        )
        gains = _gains(("voice", "words"), by_voice, by_words, clusters_of(own), resamples, seed)
        found["same-words"]["follows"] = {"clips": len(pairs), **gains}
    return Listening(found, verdict(found), tuple(name for name in USUAL if name not in found))


def compare(
    first: Sequence[Scored], second: Sequence[Scored], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """Second minus first, as `compare_captions`, of what is scored already (each: its seeds)."""
    a, b = _pooled(first, second)
    gaps = paired_differences(a, b, first[0].clusters, resamples=resamples, seed=seed)
    return {name: _finite(gap) for name, gap in gaps.items()}


def _check(name: str, lists: Sequence[Rows]) -> None:
    if name not in HEARD:
        raise UserError(f"condition {name!r}: choose among {', '.join(HEARD)}")
    others = {str(row["condition"]) for rows in lists for row in rows if row.get("condition", name) != name}
    if others:
        raise UserError(
            f"captions given as {name!r} were written of {', '.join(sorted(others))}; "
            "name each file by what was heard"
        )


def _swapped(
    lists: Sequence[Rows], references: Sequence[Utterance]
) -> list[tuple[Utterance, Utterance, str]]:
    """(the clip, the clip that was heard, the caption) where another recording of the words was heard."""
    known = {u.id: u for u in references}
    return [
        (known[row["id"]], known[row["heard"]], row["caption"])
        for rows in lists
        for row in rows
        if not row.get("made") and row["id"] in known and row.get("heard") in known
    ]


def _gains(
    names: tuple[str, str],
    first: Sequence[Scored],
    second: Sequence[Scored],
    clusters: Clusters,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """{metric: {names[0], names[1], "gain"}}: what `first` is ahead of `second`; each is its seeds."""
    a, b = _pooled(first, second)
    alone = [intervals(part, clusters, resamples=resamples, seed=seed) for part in (a, b)]
    more = paired_differences(b, a, clusters, resamples=resamples, seed=seed)
    less = paired_differences(a, b, clusters, resamples=resamples, seed=seed)
    return {
        name: {
            names[0]: _finite(alone[0][name]),
            names[1]: _finite(alone[1][name]),
            "gain": _finite((less if name in LESS_IS_BETTER else more)[name]),
        }
        for name in a
        if name not in NEITHER
    }


def _pooled(first: Sequence[Scored], second: Sequence[Scored]) -> tuple[dict[str, Statistic], ...]:
    """Of each, the scores that all have, their sums over clips added over seeds."""
    parts = [*first, *second]
    both = [name for name in SCORES if all(name in scored.statistics for scored in parts)]
    return tuple(
        {
            name: Statistic(
                np.sum([s.statistics[name].sums for s in seeds], axis=0), seeds[0].statistics[name].score
            )
            for name in both
        }
        for seeds in (first, second)
    )


def _finite(cell: Interval) -> Interval:
    """None for what is no number, such as the share of wrong claims where none are made."""
    return {key: v if v is not None and math.isfinite(v) else None for key, v in cell.items()}


def _said(captions: Sequence[str]) -> dict[str, Any]:
    """The most frequent captions, and the emotions that captions name with their shares."""
    named = Counter(emotion_of(caption) or "none" for caption in captions)
    return {
        "captions": most_frequent(captions, 3),
        "emotions": {label: n / len(captions) for label, n in named.most_common()},
    }
