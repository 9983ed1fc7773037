"""The kinds of preference pairs: which captions of a clip stand against which."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from aligncap.captions.claims import claims_of, is_true
from aligncap.captions.counterfactual import flip_claim, flip_emotion, is_near
from aligncap.captions.cue_words import manner_claims
from aligncap.captions.emotions import emotion_of
from aligncap.manifest import Utterance

SPARE = 3  # flips tried beyond those that are needed
OTHERS = 12  # captions of other clips looked at for one pair
_WORD = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+(?:['’-][^\W_\u3400-\u9fff]+)*")


def words_of_text(text: str) -> list[str]:
    """Words in lower case; every Chinese character is one."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True, slots=True)
class Text:
    """A caption of a clip with its score (0 to 10), None where no judge saw it."""

    caption: str
    score: float | None
    reference: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """One preference; `emotion` is the clip's label, `log_ratio` log(words of chosen / words of rejected)."""

    id: str
    audio: str
    manifest: str | None
    kind: str
    chosen: Text
    rejected: Text
    emotion: str | None
    log_ratio: float

    @property
    def margin(self) -> float | None:
        if self.chosen.score is None or self.rejected.score is None:
            return None
        return round(self.chosen.score - self.rejected.score, 6)

    def row(self) -> dict[str, Any]:
        """The pair as a line of a pairs file."""
        return {
            "id": self.id,
            "audio": self.audio,
            "chosen": self.chosen.caption,
            "rejected": self.rejected.caption,
            "kind": self.kind,
            "chosen_score": self.chosen.score,
            "rejected_score": self.rejected.score,
            "margin": self.margin,
            "manifest": self.manifest,
        }


@dataclass(slots=True)
class Clip:
    """What is known about one clip: its captions with their scores, candidates best first."""

    utterance: Utterance
    audio: str
    manifest: str | None
    candidates: list[Text] = field(default_factory=list)
    references: list[Text] = field(default_factory=list)
    emotion: str | None = None

    def scored(self, caption: str) -> float | None:
        """Score of a caption of this clip, whoever wrote it; the highest of several."""
        texts = (*self.candidates, *self.references)
        return max((t.score for t in texts if t.score is not None and same(t.caption, caption)), default=None)

    def pair(self, kind: str, chosen: Text, rejected: Text | str) -> Pair:
        if isinstance(rejected, str):
            rejected = Text(rejected, self.scored(rejected), False)
        a, b = (max(1, len(words_of_text(t.caption))) for t in (chosen, rejected))
        return Pair(
            self.utterance.id,
            self.audio,
            self.manifest,
            kind,
            chosen,
            rejected,
            self.emotion,
            math.log(a / b),
        )


def emotion_named(utterance: Utterance) -> str | None:
    """The label, or the emotion that most captions name where there is no label."""
    if utterance.emotion:
        return utterance.emotion
    named = [e for e in map(emotion_of, utterance.captions) if e]
    return max(sorted(set(named)), key=named.count, default=None)


def same(a: str, b: str) -> bool:
    """Whether two captions are equal but for case, spaces and punctuation."""
    return words_of_text(a) == words_of_text(b)


@dataclass(frozen=True)
class Sources:
    """What pairs are made from besides the clip itself."""

    labels: frozenset[str]  # emotions of the data, which flips choose from
    others: Mapping[tuple[str | None, str], Sequence[tuple[Utterance, str]]]  # by gender and language
    chosen: str  # "reference" or "best", for flips and other clips
    per_clip: int
    relative: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # measured cues by clip


# a pair, or why there is none
Option = Pair | str
Maker = Callable[[Clip, Sources, Random], list[list[Option]]]


def _tied(texts: Sequence[Text], place: int) -> list[Text]:
    return [t for t in texts if t.score == texts[place].score]


def _best_worst(clip: Clip, sources: Sources, rng: Random) -> list[list[Option]]:
    ranked = clip.candidates
    if len(ranked) < 2:
        return [["fewer than two scored candidates"]]
    return [
        [clip.pair("best-worst", a, b) for a in _tied(ranked, k) for b in _tied(ranked, -1 - k) if a is not b]
        for k in range(min(sources.per_clip, len(ranked) // 2))
    ]


def _reference_worst(clip: Clip, sources: Sources, rng: Random) -> list[list[Option]]:
    if not clip.references:
        return [["no reference caption"]]
    if not clip.candidates:
        return [["no scored candidate"]]
    return [
        [clip.pair("reference-worst", a, b) for a in clip.references for b in _tied(clip.candidates, -1 - k)]
        for k in range(min(sources.per_clip, len(clip.references), len(clip.candidates)))
    ]


def _bases(clip: Clip, sources: Sources) -> list[Text]:
    return clip.references if sources.chosen == "reference" else _tied(clip.candidates, 0)


def _flipped(
    clip: Clip, sources: Sources, rng: Random, flip: Callable[[Text], Option | None]
) -> list[list[Option]]:
    bases = _bases(clip, sources)
    if not bases:
        return [[f"no {sources.chosen} caption"]]
    drawn = rng.sample(bases, len(bases))
    tries = sources.per_clip + SPARE
    options: list[Option] = [flip(drawn[i % len(drawn)]) or "nothing to flip" for i in range(tries)]
    return [options] * min(sources.per_clip, len(bases))


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
        ((dimension, level),) = manner_claims([flipped]) - manner_claims([base.caption])
        holds = [is_true(c, cues) for c in claims_of(flipped) if (c.dimension, c.level) == (dimension, level)]
        if measured.get(dimension) == level or True in holds:
            return "the flipped claim would be true"
        if (
            not base.reference
            and dimension in measured
            and (dimension, measured[dimension]) not in manner_claims([base.caption])
        ):
            return "the chosen caption's claim is false"
        return clip.pair("flipped-claim", base, flipped)

    return _flipped(clip, sources, rng, flip)


def _other_clip(clip: Clip, sources: Sources, rng: Random) -> list[list[Option]]:
    bases, label, own = _bases(clip, sources), clip.emotion, clip.utterance
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


KINDS: dict[str, Maker] = {
    "best-worst": _best_worst,
    "reference-worst": _reference_worst,
    "flipped-emotion": _flipped_emotion,
    "flipped-claim": _flipped_claim,
    "other-clip": _other_clip,
}
