"""What a timeline holds, and its files: JSON, subtitles, CSV, a picture, a sentence."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten

import numpy as np

from aligncap.text.emotions import affect, labels
from aligncap.utils.drawing import BLUE, GREY, INK, ORANGE, PALE, bare, figure, plain, png
from aligncap.utils.io import Row, atomic_open, write_json, write_text

FEW = 4  # changes that the summary names one by one
NOTABLE = 0.25  # of arousal or valence, -1 to 1, between the first and the last third
# One colour a label: hue by its quadrant of valence and arousal, told apart by their names in the picture.
COLOURS = {
    **{"neutral": "#9aa5b1", "calm": "#8fbfa8", "happy": "#f2c14e", "sad": "#5b7db1", "angry": "#c8443c"},
    **{"fearful": "#7d5ba6", "disgusted": "#6f8f3d", "surprised": "#e58f65"},
}


@dataclass(frozen=True)
class Utterance:
    """A segment and what is said of it.

    `emotion` is that of the smoothed timeline, `heard` the one that the caption names, `confidence` how
    likely the utterance alone makes `emotion`; `valence` and `arousal` (-1 to 1) are the means over the
    emotions' probabilities, None where no emotion was read. `speaker` counts from 1. Times are in seconds.
    """

    start: float
    end: float
    speaker: int
    caption: str | None
    emotion: str | None
    heard: str | None
    confidence: float | None
    valence: float | None
    arousal: float | None


@dataclass(frozen=True)
class Stretch:
    """Utterances of one speaker and emotion in a row; its caption is that of the surest that names it."""

    start: float
    end: float
    speaker: int
    emotion: str | None
    caption: str | None
    confidence: float | None
    valence: float | None
    arousal: float | None
    utterances: int

    @classmethod
    def of(cls, own: Sequence[Utterance]) -> Stretch:
        """The stretch of consecutive utterances."""
        agreeing = [u for u in own if u.caption and u.heard == u.emotion] or [u for u in own if u.caption]
        best = max(agreeing, key=lambda u: u.confidence or 0.0, default=None)
        sure = [u.confidence for u in own if u.confidence is not None]
        return cls(
            start=own[0].start,
            end=own[-1].end,
            speaker=own[0].speaker,
            emotion=own[0].emotion,
            caption=best.caption if best else None,
            confidence=round(float(np.mean(sure)), 4) if sure else None,
            valence=_mean([u.valence for u in own], own),
            arousal=_mean([u.arousal for u in own], own),
            utterances=len(own),
        )


def _mean(values: Sequence[float | None], of: Sequence[Utterance]) -> float | None:
    """Mean of the values that are known, by the utterances' lengths."""
    known = [(value, u.end - u.start) for value, u in zip(values, of, strict=True) if value is not None]
    if not known:
        return None
    levels, lengths = zip(*known, strict=True)
    return round(float(np.average(levels, weights=lengths)), 3)


@dataclass(frozen=True)
class Change:
    """A speaker's emotion becomes another, at `time` seconds."""

    time: float
    speaker: int
    before: str
    after: str


@dataclass(frozen=True)
class Timeline:
    """A recording's utterances, its stretches of one emotion and its changes; see `inference.timeline`."""

    seconds: float
    utterances: list[Utterance]
    stretches: list[Stretch]
    changes: list[Change]

    @property
    def speakers(self) -> int:
        """How many speak."""
        return len({u.speaker for u in self.utterances})

    @property
    def summary(self) -> str:
        """One or two sentences: who speaks how long, the emotions' shares, how they change."""
        if not self.utterances:
            return f"No speech is heard in {clock(self.seconds)}."
        spoken = sum(u.end - u.start for u in self.utterances)
        shares: dict[str, float] = {}
        for u in self.utterances:
            if u.emotion:
                shares[u.emotion] = shares.get(u.emotion, 0.0) + (u.end - u.start) / spoken
        ranked = sorted(shares.items(), key=lambda pair: -pair[1])
        speakers = "one speaker" if self.speakers == 1 else f"{self.speakers} speakers"
        told = ", ".join(f"{emotion} {share:.0%}" for emotion, share in ranked[:3] if share >= 0.05)
        first = f"{clock(spoken)} of speech by {speakers} in {clock(self.seconds)}"
        return " ".join([f"{first}: {told}." if told else f"{first}.", self._course()]).strip()

    def _course(self) -> str:
        start = next((s.emotion for s in self.stretches if s.emotion), None)
        if start is None:
            return "No emotion is named."
        if not self.changes:
            return f"The voice stays {start}." if self.speakers == 1 else "No speaker's emotion changes."
        who = self.speakers > 1
        told = ", then ".join(
            (f"speaker {c.speaker} " if who else "") + f"{c.after} at {clock(c.time)}"
            for c in self.changes[:FEW]
        )
        rest = len(self.changes) - FEW
        more = f", and {rest} more change{'s' if rest > 1 else ''}" if rest > 0 else ""
        text = f"It turns {told}{more}." if who else f"It begins {start} and turns {told}{more}."
        for name in ("arousal", "valence"):
            values = [value for u in self.utterances if (value := getattr(u, name)) is not None]
            if not values:
                continue
            third = max(1, len(values) // 3)
            difference = float(np.mean(values[-third:]) - np.mean(values[:third]))
            if len(values) >= 6 and abs(difference) >= NOTABLE:
                text += (
                    f" {name.capitalize()} {'rises' if difference > 0 else 'falls'} from beginning to end."
                )
        return text

    def as_row(self) -> Row:
        """Everything, as JSON has it."""
        return {"summary": self.summary, **asdict(self)}


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any.

    >>> clock(75.2), clock(3725)
    ('1:15', '1:02:05')
    """
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def write_timeline(folder: str | Path, timeline: Timeline) -> None:
    """Write timeline.json, .srt, .vtt, .csv and .png into `folder`; JSON last.

    Raises:
        UserError: a file cannot be written.
    """
    stem = Path(folder) / "timeline"
    write_text(stem.with_suffix(".srt"), subtitles(timeline))
    write_text(stem.with_suffix(".vtt"), subtitles(timeline, vtt=True))
    write_text(stem.with_suffix(".csv"), as_csv(timeline))
    with atomic_open(stem.with_suffix(".png"), "wb") as file:
        file.write(timeline_picture(timeline))
    write_json(stem.with_suffix(".json"), timeline.as_row())


def subtitles(timeline: Timeline, vtt: bool = False) -> str:
    """Utterances as SubRip, or as WebVTT with the speakers as voices and captions escaped."""
    mark = "." if vtt else ","
    parts = ["WEBVTT\n"] if vtt else []
    for number, u in enumerate(timeline.utterances, 1):
        times = " --> ".join(_timestamp(t, mark) for t in (u.start, u.end))
        text = " ".join(filter(None, [f"[{u.emotion}]" if u.emotion else "", u.caption or "(not captioned)"]))
        text = " ".join(text.split()).replace("-->", "→")
        if timeline.speakers > 1:
            text = f"Speaker {u.speaker}: {text}"
        parts.append(f"{number}\n{times}\n{html.escape(text, quote=False) if vtt else text}\n")
    return "\n".join(parts)


def _timestamp(seconds: float, mark: str) -> str:
    thousandths = round(seconds * 1000)
    rest, ms = divmod(thousandths, 1000)
    rest, s = divmod(rest, 60)
    hours, minutes = divmod(rest, 60)
    return f"{hours:02}:{minutes:02}:{s:02}{mark}{ms:03}"


def as_csv(timeline: Timeline) -> str:
    """A line an utterance, with a header; text that spreadsheets take for a formula gets an apostrophe."""
    buffer = io.StringIO()
    rows = [asdict(u) for u in timeline.utterances]
    writer = csv.DictWriter(buffer, list(Utterance.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        caption = row["caption"] or ""
        row["caption"] = f"'{caption}" if caption[:1] in ("=", "+", "-", "@", "\t") and caption else caption
        writer.writerow(row)
    return buffer.getvalue()


def colour_of(emotion: str | None) -> str:
    """The colour of an emotion's band; labels without their own share that of the nearest that has one."""
    if emotion is None or emotion not in labels():
        return PALE
    if emotion in COLOURS:
        return COLOURS[emotion]
    place = np.array(affect(emotion))
    return COLOURS[min(COLOURS, key=lambda known: float(np.linalg.norm(place - affect(known))))]


def timeline_picture(timeline: Timeline, captions: int = 6) -> bytes:
    """PNG: a band of emotions for each speaker, valence and arousal below, captions at the changes.

    Args:
        captions: at most so many are written out, those of the longest stretches.
    """
    picture = figure(11, 4.6 + 0.35 * timeline.speakers)
    heights = [0.5 * max(1, timeline.speakers), 2.2, 1.6]
    band, curve, notes = picture.subplots(3, 1, sharex=True, height_ratios=heights)
    minute = 60 if timeline.seconds >= 300 else 1
    end = max(timeline.seconds / minute, 1e-3)
    for stretch in timeline.stretches:
        left, width = stretch.start / minute, (stretch.end - stretch.start) / minute
        row = -stretch.speaker
        band.barh(row, width, 0.8, left, color=colour_of(stretch.emotion), linewidth=0)
        if stretch.emotion and width > 0.012 * end * len(stretch.emotion):
            style: Row = {"ha": "center", "va": "center", "fontsize": 8, "color": INK}
            band.text(left + width / 2, row, stretch.emotion, **style)
    names = sorted({u.speaker for u in timeline.utterances}) or [1]
    band.set_yticks([-n for n in names], [f"speaker {n}" for n in names], fontsize=8)
    centres = np.array([(u.start + u.end) / 2 / minute for u in timeline.utterances])
    for name, colour in (("valence", BLUE), ("arousal", ORANGE)):
        values = np.array([getattr(u, name) for u in timeline.utterances], dtype=float)  # None: nan, no point
        curve.plot(centres, values, ".", color=colour, alpha=0.35, markersize=4)
        for s in timeline.stretches:
            level = np.array([getattr(s, name)] * 2, dtype=float)
            curve.plot([s.start / minute, s.end / minute], level, color=colour, linewidth=2)
        curve.plot([], [], color=colour, label=name)
    curve.axhline(0, color=PALE, linewidth=0.8, zorder=0)
    curve.set_ylim(-1.05, 1.05)
    curve.set_ylabel("valence, arousal", color=GREY, fontsize=9)
    curve.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    for change in timeline.changes:
        for axes in (band, curve):
            axes.axvline(change.time / minute, color=INK, linewidth=0.7, linestyle=":")
    chosen = sorted(timeline.stretches, key=lambda s: s.start - s.end)[:captions]
    chosen.sort(key=lambda s: s.start)
    for place, s in enumerate(chosen):
        at = s.start / minute
        text = plain(f"{clock(s.start)}  {shorten(s.caption or '', 90, placeholder=' …')}")
        right = at > 0.55 * end
        notes.plot([at], [-place], "|", color=INK)
        notes.text(
            at + (-0.006 if right else 0.006) * end,
            -place,
            text,
            fontsize=8,
            color=INK,
            va="center",
            ha="right" if right else "left",
        )
    notes.set_ylim(-max(len(chosen), 1) + 0.4, 0.6)
    notes.set_yticks([])
    notes.set_xlim(0, end)
    notes.set_xlabel("minutes" if minute == 60 else "seconds", color=GREY)
    for axes in (band, curve, notes):
        bare(axes)
    band.set_title(
        plain(shorten(timeline.summary, 120, placeholder=" …")), fontsize=10, color=INK, loc="left"
    )
    return png(picture)
