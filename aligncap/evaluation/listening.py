"""Proof of listening: what a captioner's scores lose when it does not hear the clip that is scored.

The audio gain of a score is the score on the right audio less that under a condition (`CONDITIONS` of
`aligncap.inference.batch`), or the other way round where less is better, so that a listener gains. Both
are means over training seeds (`over_seeds`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from aligncap.data.manifest import Utterance
from aligncap.evaluation.metrics import SCORES, figure, interval, signed, template
from aligncap.evaluation.scoring import Scored, most_frequent, score
from aligncap.text.emotions import emotion_of
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row
from aligncap.utils.statistics import correct, intervals, over_seeds, paired_differences, sure

SHOWN = ("emotion_uar", "cider_d", "rubric_score", "wrong_claim_share")  # of all that are in the JSON
HEARD = {
    "wrong": "wrong audio",
    "silence": "silence",
    "noise": "noise",
    "same-words": "same words",
    "same-speaker": "another clip of the speaker",
    "same-emotion": "same emotion, another speaker",
    "whisper": "whisper",
}
VOICELESS = ("wrong", "silence", "noise")  # nothing of the clip's voice: a listener's scores must fall
USUAL = (*VOICELESS, "same-words")  # what every report should have


@dataclass(frozen=True)
class Listening:
    """What captions lose without the clip.

    `conditions` is {condition: {score: {"right", "heard", "gain"}, "said": {"captions", "emotions"},
    "made": {"clip" or kind of sound: number}}}, the gain being of `paired_differences`, the
    others of `intervals`. "same-words" has "follows": {"clips", score: {"voice", "words", "gain"}}: captions
    of clips for which another recording was played, scored against its references and their own clip's.
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
        """What the gains say, in sentences (data/listening.txt.j2); the first says whether it listens.

        It does where the score falls on every condition captioned that has nothing of the clip's voice, by p
        after Holm; of few speakers there is no claim. The score is emotion UAR, or CIDEr-D without labels.
        """
        labelled = all("emotion_uar" in part for part in self.conditions.values())
        metric = "emotion_uar" if labelled else "cider_d"
        voiceless = {n: self.conditions[n][metric] for n in VOICELESS if n in self.conditions}
        gains = {name: dict(cell["gain"]) for name, cell in voiceless.items()}
        correct(gains)
        falls = [name for name, gain in gains.items() if sure(gain["p_holm"]) and gain["value"] > 0]
        text = template("listening.txt.j2").render(
            conditions=self.conditions,
            metric=metric,
            titles=HEARD,
            voiceless=voiceless,
            falls=falls,
            stays=[name for name in voiceless if name not in falls],
            few=[gain["units"] for gain in gains.values() if gain["p_holm"] is None],
        )
        return text.splitlines()


def audio_gains(
    right: Sequence[Scored],
    conditions: Mapping[str, Sequence[Scored]],
    whole: Sequence[Utterance],
    *,
    label_map: Mapping[str, str] | None = None,
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
    for name, seeds in conditions.items():
        check_condition(name, [row for scored in seeds for row in scored.rows])
    found: dict[str, Row] = {}
    for name in (name for name in HEARD if conditions.get(name)):
        other = conditions[name]
        found[name] = {
            **_gains(("right", "heard"), right, other),
            "said": _said([caption for scored in other for caption in scored.captions]),
            "made": dict(Counter(row.get("made") or "clip" for scored in other for row in scored.rows)),
        }
    known = {u.id: u for u in whole}
    swapped = [_swapped(scored, known) for scored in conditions.get("same-words", ())]
    if ids := [name for name in (swapped[0] if swapped else {}) if all(name in part for part in swapped)]:
        how: Row = {"label_map": label_map, "whole": whole, "wordnet": "none", "similarity": "none"}
        voice, words = [], []
        for part in swapped:
            heard, captions = map(list, zip(*(part[name] for name in ids), strict=True))
            voice.append(score(heard, captions, **how))
            words.append(score([known[name] for name in ids], captions, **how))
        gains = _gains(("voice", "words"), voice, words)
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


def _swapped(scored: Scored, known: Mapping[str, Utterance]) -> dict[str, tuple[Utterance, str]]:
    """Of each clip for which another recording of the words was played: that recording and the caption."""
    return {
        row["id"]: (known[row["heard"]], row["caption"])
        for row in scored.rows
        if not row.get("made") and row["id"] in known and row.get("heard") in known
    }


def _gains(names: tuple[str, str], first: Sequence[Scored], second: Sequence[Scored]) -> Row:
    """{score: {names[0], names[1], "gain"}}: by what `first` is better than `second`; each is its seeds."""
    a, b = (over_seeds([scored.statistics for scored in seeds]) for seeds in (first, second))
    shared = [name for name in SCORES if SCORES[name].better != "neither" and name in a and name in b]
    less = {name for name in shared if SCORES[name].better == "less"}
    low, high = ({n: (x if n in less else y)[n] for n in shared} for x, y in ((a, b), (b, a)))
    clusters = second[0].clusters
    one, two = (intervals({n: part[n] for n in shared}, clusters) for part in (a, b))
    gains = paired_differences(low, high, clusters)
    return {n: {names[0]: one[n], names[1]: two[n], "gain": gains[n]} for n in shared}


def _said(captions: Sequence[str]) -> Row:
    """The most frequent captions, and the emotions that captions name with their shares."""
    named = Counter(emotion_of(caption) or "none" for caption in captions)
    return {
        "captions": most_frequent(captions, 3),
        "emotions": {label: n / len(captions) for label, n in named.most_common()},
    }


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
            if key == "heard":
                gain = part[metric]["gain"]
                text.append(f"\ngain {signed(metric, gain['value'])} {interval(metric, gain)}".rstrip())
            cells.append(text)
        sheet.add_row(name, *cells)

    for name, part in listening.conditions.items():
        if not sheet.row_count:
            add("right audio", "right", part)
        add(HEARD[name], "heard", part)
        if "follows" in part:
            add("… by the voice", "voice", part["follows"])
    return sheet
