"""Proof of listening: what a captioner's scores lose when it does not hear the clip that is scored.

The audio gain of a score is the score on the right audio less that under a condition (`CONDITIONS` of
`aligncap.inference.batch`), or the other way round where less is better, so that a listener gains. Both
are resampled together by speaker and are means over training seeds (`over_seeds`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from aligncap.data.manifest import Utterance
from aligncap.evaluation.metrics import SCORES, figure, interval, signed
from aligncap.evaluation.scoring import Scored, most_frequent, score
from aligncap.text.emotions import emotion_of
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row
from aligncap.utils.statistics import (
    Clusters,
    Interval,
    clusters_of,
    intervals,
    over_seeds,
    paired_differences,
)

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
VOICELESS = ("wrong", "silence", "noise")  # nothing of the clip's voice: a listener's scores must fall
USUAL = (*VOICELESS, "same-words")  # what every report should have


@dataclass(frozen=True)
class Listening:
    """What captions lose without the clip.

    `conditions` is {condition: {score: {"right", "heard", "gain"}, "said": {"captions", "emotions"},
    "made": {"clip" or kind of sound: number}}}, the three being {"value", "low", "high"} (and "p" of the
    gain). "same-words" has "follows": {"clips", score: {"voice", "words", "gain"}}: captions of clips for
    which another recording was played, scored against the references of that recording and of their own clip.
    """

    conditions: dict[str, Row]

    @property
    def missing(self) -> list[str]:
        """The usual conditions that were not captioned."""
        return [name for name in USUAL if name not in self.conditions]

    @property
    def shown(self) -> list[str]:
        """Of SHOWN, the scores that every condition has."""
        cells = self.conditions.values()
        return [name for name in SHOWN if cells and all(name in part for part in cells)]

    @property
    def verdict(self) -> list[str]:
        """What the gains say, in sentences; the first says whether it listens."""
        return [_listens(self.conditions), *_observations(self.conditions)]


def audio_gains(
    right: Sequence[Scored],
    conditions: Mapping[str, Sequence[Scored]],
    whole: Sequence[Utterance],
    *,
    label_map: Mapping[str, str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Listening:
    """Audio gain of one captioner under each condition.

    Args:
        right: its captions of the clips themselves, by training seed.
        conditions: its captions of the same clips by what it heard instead, as `aligncap caption
            --condition` writes them.
        whole: the set that speakers' norms are taken from.

    Raises:
        UserError: no such condition, or captions that were written under another one.
    """
    drawing = {"resamples": resamples, "seed": seed}
    for name, seeds in conditions.items():
        check_condition(name, [row for scored in seeds for row in scored.rows])
    found: dict[str, Row] = {}
    for name in (name for name in HEARD if conditions.get(name)):
        other = conditions[name]
        found[name] = {
            **_gains(("right", "heard"), right, other, right[0].clusters, **drawing),
            "said": _said([caption for scored in other for caption in scored.captions]),
            "made": dict(Counter(row.get("made") or "clip" for scored in other for row in scored.rows)),
        }
    swapped = [_swapped(scored, whole) for scored in conditions.get("same-words", ())]
    ids = [name for name in (swapped[0] if swapped else {}) if all(name in part for part in swapped)]
    if ids:
        known = {u.id: u for u in whole}
        own = [known[name] for name in ids]
        against: dict[str, list[Scored]] = {"voice": [], "words": []}
        for part in swapped:
            captions = [part[name][1] for name in ids]
            for which, clips in (("voice", [part[name][0] for name in ids]), ("words", own)):
                against[which].append(
                    score(
                        clips, captions, label_map=label_map, whole=whole, wordnet="none", similarity="none"
                    )
                )
        gains = _gains(("voice", "words"), against["voice"], against["words"], clusters_of(own), **drawing)
        found["same-words"]["follows"] = {"clips": len(ids), **gains}
    return Listening(found)


def check_condition(name: str, rows: Sequence[Row]) -> None:
    """Refuse captions of another condition than the one they are given as."""
    if name not in HEARD:
        raise UserError(f"condition {name!r}: choose among {', '.join(HEARD)}")
    others = {str(row["condition"]) for row in rows if row.get("condition", name) != name}
    if others:
        raise UserError(
            f"captions given as {name!r} were written of {', '.join(sorted(others))}; "
            "name each file by what was heard"
        )


def _swapped(scored: Scored, whole: Sequence[Utterance]) -> dict[str, tuple[Utterance, str]]:
    """Of each clip for which another recording of the words was played: that recording and the caption."""
    known = {u.id: u for u in whole}
    return {
        row["id"]: (known[row["heard"]], row["caption"])
        for row in scored.rows
        if not row.get("made") and row["id"] in known and row.get("heard") in known
    }


def _gains(
    names: tuple[str, str],
    first: Sequence[Scored],
    second: Sequence[Scored],
    clusters: Clusters,
    **drawing: int,
) -> Row:
    """{score: {names[0], names[1], "gain"}}: by what `first` is better than `second`; each is its seeds."""
    a, b = (over_seeds([scored.statistics for scored in seeds]) for seeds in (first, second))
    alone = [intervals(part, clusters, **drawing) for part in (a, b)]
    more, less = paired_differences(b, a, clusters, **drawing), paired_differences(a, b, clusters, **drawing)
    return {
        name: {
            names[0]: alone[0][name],
            names[1]: alone[1][name],
            "gain": (less if SCORES[name].better == "less" else more)[name],
        }
        for name in SCORES
        if name in more and SCORES[name].better != "neither"
    }


def _said(captions: Sequence[str]) -> Row:
    """The most frequent captions, and the emotions that captions name with their shares."""
    named = Counter(emotion_of(caption) or "none" for caption in captions)
    return {
        "captions": most_frequent(captions, 3),
        "emotions": {label: n / len(captions) for label, n in named.most_common()},
    }


def _listens(conditions: Mapping[str, Row]) -> str:
    """Whether it listens, in a sentence.

    It does where the score falls on every condition captioned that has nothing of the clip's voice: the 95 %
    interval of the gain leaves out zero. The score is emotion UAR, of clips without labels CIDEr-D.
    """
    metric, title = _lead(conditions)
    cells = {name: conditions[name][metric] for name in VOICELESS if name in conditions}
    if not cells:
        return "Whether it listens is not shown: captions of wrong audio, silence or noise are missing."
    falls = [name for name, cell in cells.items() if _above_zero(cell["gain"])]
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
    return f"{text}."


def _observations(conditions: Mapping[str, Row]) -> list[str]:
    """What is said of silence and noise, and what captions follow when words and voice disagree."""
    metric, title = _lead(conditions)
    sentences, named = [], []
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
        end = "follow the voice" if _above_zero(cell["gain"]) else "are not shown to follow the voice"
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


def _lead(conditions: Mapping[str, Row]) -> tuple[str, str]:
    labelled = all("emotion_uar" in cells for cells in conditions.values())
    return ("emotion_uar", "emotion UAR") if labelled else ("cider_d", "CIDEr-D")


def _above_zero(gain: Interval) -> bool:
    return (gain["low"] or 0) > 0


def _gain(metric: str, cell: Row) -> str:
    return f"{signed(metric, cell['gain']['value'])} {interval(metric, cell['gain'])}".strip()


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def table(listening: Listening) -> Table:
    """The conditions in a terminal: score, interval, and audio gain with its interval."""
    sheet = Table(title="Proof of listening", caption="gain: what the right audio is worth, 95 % interval")
    sheet.add_column("heard")
    for metric in listening.shown:
        sheet.add_column(SCORES[metric].title, justify="right")

    def add(name: str, key: str, part: Row) -> None:
        cells = []
        for metric in listening.shown:
            cell = part.get(metric, {}).get(key, {"value": None})
            text = Text(figure(metric, cell["value"]))
            text.append(f" {interval(metric, cell)}", style="dim")
            text.append(f"\ngain {_gain(metric, part[metric])}" if key == "heard" else "")
            cells.append(text)
        sheet.add_row(name, *cells)

    for name, part in listening.conditions.items():
        if not sheet.row_count:
            add("right audio", "right", part)
        add(HEARD[name], "heard", part)
        if "follows" in part:
            add("… by the voice", "voice", part["follows"])
    return sheet
