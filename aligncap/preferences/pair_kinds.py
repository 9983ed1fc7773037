"""The kinds of preference pairs: which captions of a clip stand against which."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from aligncap.data.manifest import Utterance
from aligncap.text.claims import claims_of, is_true, manner_claims, relative_cues
from aligncap.text.counterfactual import flip_claim, flip_emotion, is_near
from aligncap.text.emotions import emotion_of
from aligncap.text.lexicon import caption_length, caption_words
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import Row

SPARE = 3  # flips tried beyond those that are needed
OTHERS = 12  # captions of other clips looked at for one pair
_SHOWN = 5  # clips named in a message


@dataclass(frozen=True, slots=True)
class Text:
    """A caption of a clip with its score (0 to 10), None where no judge saw it."""

    caption: str
    score: float | None
    reference: bool


@dataclass(slots=True)
class Pair:
    """One preference; `log_ratio` is log(length of chosen / length of rejected).

    `log_ratio_before` is that of the pair that chance alone had taken in its place; `dropped` says why it was
    left out in the end.
    """

    clip: Clip
    kind: str
    chosen: Text
    rejected: Text
    log_ratio: float
    log_ratio_before: float = 0.0
    dropped: str | None = None

    @property
    def margin(self) -> float | None:
        """Points between the two captions, None where one was not judged."""
        if self.chosen.score is None or self.rejected.score is None:
            return None
        return round(self.chosen.score - self.rejected.score, 6)

    @property
    def key(self) -> tuple[str, str, str]:
        """Clip and captions."""
        return self.clip.utterance.id, self.chosen.caption, self.rejected.caption

    def row(self) -> Row:
        """The pair as a line of a pairs file."""
        a, b = self.chosen, self.rejected
        return {
            "id": self.clip.utterance.id,
            "audio": self.clip.audio,
            "chosen": a.caption,
            "rejected": b.caption,
            "kind": self.kind,
            "chosen_score": a.score,
            "rejected_score": b.score,
            "margin": self.margin,
            "manifest": self.clip.manifest,
        }


@dataclass(slots=True)
class Clip:
    """What is known about one clip: its captions with their scores, candidates best first.

    `emotion` is its label, or the emotion that most captions name where there is no label.
    """

    utterance: Utterance
    audio: str
    manifest: str | None
    emotion: str | None
    candidates: list[Text] = field(default_factory=list)
    references: list[Text] = field(default_factory=list)

    def tied(self, place: int) -> list[Text]:
        """Candidates with the score of the one at this place."""
        return [text for text in self.candidates if text.score == self.candidates[place].score]

    def pair(self, kind: str, chosen: Text, rejected: Text | str) -> Pair:
        """A pair of two captions; of a written one the score is that of an equal caption of the clip."""
        if isinstance(rejected, str):
            texts = (*self.candidates, *self.references)
            scores = [t.score for t in texts if t.score is not None and same(t.caption, rejected)]
            rejected = Text(rejected, max(scores, default=None), False)
        a, b = (max(1, caption_length(text.caption)) for text in (chosen, rejected))
        return Pair(self, kind, chosen, rejected, math.log(a / b))


def emotion_named(utterance: Utterance) -> str | None:
    """The label, or the emotion that most captions name where there is no label."""
    if utterance.emotion:
        return utterance.emotion
    named = [e for e in map(emotion_of, utterance.captions) if e]
    return max(sorted(set(named)), key=named.count, default=None)


def same(a: str, b: str) -> bool:
    """Whether two captions are equal but for case, spaces and punctuation."""
    return caption_words(a) == caption_words(b)


def read_clips(rows: Sequence[Row], utterances: Sequence[Utterance]) -> list[Clip]:
    """Clips in the order of the rows, their candidates best first.

    Raises:
        UserErrors: clips that the utterances do not hold.
        UserError: a judged reference that the manifest no longer has.
    """
    by_id = {u.id: u for u in utterances}
    if missing := sorted({row["id"] for row in rows} - by_id.keys()):
        raise UserErrors([f"the manifest does not hold {some(missing)}; name the right one with --manifest"])
    clips: dict[str, Clip] = {}
    judged: dict[tuple[str, int], float] = {}
    for row in rows:
        utterance = by_id[row["id"]]
        if row["id"] not in clips:
            clips[row["id"]] = Clip(utterance, row["audio"], row.get("manifest"), emotion_named(utterance))
        score = float(row["verdict"]["overall"])
        if row["kind"] == "candidate":
            clips[row["id"]].candidates.append(Text(row["caption"], score, False))
            continue
        judged[row["id"], row["reference"]] = score
        if row["caption"] != dict(enumerate(utterance.captions)).get(row["reference"]):
            raise UserError(
                f"reference {row['reference']} of {row['id']!r} is not the manifest's; "
                "the manifest has changed since: judge again"
            )
    for name, clip in clips.items():
        # a stable sort: of equal scores the first candidate stays first
        clip.candidates.sort(key=lambda text: -(text.score or 0.0))
        clip.references = [
            Text(c, judged.get((name, i)), True) for i, c in enumerate(clip.utterance.captions)
        ]
    return list(clips.values())


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(f'"{name}"' for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more clips" if len(names) > _SHOWN else "")


Option = Pair | str  # a pair, or why there is none


@dataclass(frozen=True)
class Sources:
    """What pairs are made from besides the clip itself."""

    labels: frozenset[str]  # emotions of the data, which flips choose from
    others: Mapping[tuple[str | None, str], Sequence[tuple[Utterance, str]]]  # by gender and language
    relative: Mapping[str, Mapping[str, float]]  # measured cues by clip
    chosen: str  # "reference" or "best", for flips and other clips
    per_clip: int

    @classmethod
    def of(
        cls, clips: Sequence[Clip], utterances: Sequence[Utterance], chosen: str, per_clip: int
    ) -> Sources:
        """What the utterances of a manifest give."""
        others: dict[tuple[str | None, str], list[tuple[Utterance, str]]] = {}
        for u in utterances:
            if (emotion := emotion_named(u)) and u.captions:
                others.setdefault((u.gender, u.language), []).append((u, emotion))
        relative = {u.id: cues for u, cues in zip(utterances, relative_cues(utterances), strict=True)}
        labels = {u.emotion for u in utterances if u.emotion} or {c.emotion for c in clips if c.emotion}
        return cls(frozenset(labels), others, relative, chosen, per_clip)

    def bases(self, clip: Clip) -> list[Text]:
        """Captions that counterfactual ones are set against."""
        if self.chosen == "reference":
            return clip.references
        return clip.tied(0) if clip.candidates else []


def _best_worst(clip: Clip, sources: Sources, rng: Random) -> list[list[Option]]:
    if len(clip.candidates) < 2:
        return [["fewer than two scored candidates"]]
    return [
        [clip.pair("best-worst", a, b) for a in clip.tied(k) for b in clip.tied(-1 - k) if a is not b]
        for k in range(min(sources.per_clip, len(clip.candidates) // 2))
    ]


def _reference_worst(clip: Clip, sources: Sources, rng: Random) -> list[list[Option]]:
    if not clip.references:
        return [["no reference caption"]]
    if not clip.candidates:
        return [["no scored candidate"]]
    return [
        [clip.pair("reference-worst", a, b) for a in clip.references for b in clip.tied(-1 - k)]
        for k in range(min(sources.per_clip, len(clip.references), len(clip.candidates)))
    ]


def _flipped(
    clip: Clip, sources: Sources, rng: Random, flip: Callable[[Text], Option | None]
) -> list[list[Option]]:
    bases, per_clip = sources.bases(clip), sources.per_clip
    if not bases:
        return [[f"no {sources.chosen} caption"]]
    drawn = rng.sample(bases, len(bases))
    tries = range(per_clip + SPARE)
    options: list[Option] = [flip(drawn[i % len(drawn)]) or "nothing to flip" for i in tries]
    return [options] * min(per_clip, len(bases))


def _flipped_emotion(clip: Clip, sources: Sources, rng: Random) -> list[list[Option]]:
    label = clip.emotion
    targets = {name for name in sources.labels if label is None or not is_near(name, label)}

    def flip(base: Text) -> Option | None:
        if not base.reference and label and emotion_of(base.caption) not in (label, None):
            return "the chosen caption names another emotion"
        flipped = flip_emotion(base.caption, rng, targets)
        return flipped and clip.pair("flipped-emotion", base, flipped)

    return _flipped(clip, sources, rng, flip)


def _flipped_claim(clip: Clip, sources: Sources, rng: Random) -> list[list[Option]]:
    measured = clip.utterance.cue_words
    cues = sources.relative.get(clip.utterance.id, {})

    def flip(base: Text) -> Option | None:
        flipped = flip_claim(base.caption, rng)
        if flipped is None:
            return None
        claimed = manner_claims([base.caption])
        ((dimension, level),) = manner_claims([flipped]) - claimed
        holds = [is_true(c, cues) for c in claims_of(flipped) if (c.dimension, c.level) == (dimension, level)]
        if measured.get(dimension) == level or True in holds:
            return "the flipped claim would be true"
        if not base.reference and dimension in measured and (dimension, measured[dimension]) not in claimed:
            return "the chosen caption's claim is false"
        return clip.pair("flipped-claim", base, flipped)

    return _flipped(clip, sources, rng, flip)


def _other_clip(clip: Clip, sources: Sources, rng: Random) -> list[list[Option]]:
    bases, label, own = sources.bases(clip), clip.emotion, clip.utterance
    if not bases:
        return [[f"no {sources.chosen} caption"]]
    if label is None:
        return [["no emotion known"]]
    pool = sources.others.get((own.gender, own.language), ())
    fits = [other for other, emotion in pool if other.id != own.id and not is_near(emotion, label)]
    if not fits:
        return [["no other clip of another emotion and the same gender"]]
    options: list[Option] = []
    for other in rng.sample(fits, min(OTHERS, len(fits))):
        caption = rng.choice(other.captions)
        # a caption can name another emotion than its clip's label, and so be true here
        if not is_near(emotion_of(caption) or "", label):
            options.append(clip.pair("other-clip", rng.choice(bases), caption))
    return [options or ["no other clip of another emotion and the same gender"]] * sources.per_clip


# Each makes, for every pair that a clip could give, the options to choose from.
KINDS: dict[str, Callable[[Clip, Sources, Random], list[list[Option]]]] = {
    "best-worst": _best_worst,
    "reference-worst": _reference_worst,
    "flipped-emotion": _flipped_emotion,
    "flipped-claim": _flipped_claim,
    "other-clip": _other_clip,
}
