"""The kinds of preference pairs: which captions of a clip stand against which."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from aligncap.data.manifest import Utterance
from aligncap.text.claims import claims_of, is_true, manner_claims
from aligncap.text.counterfactual import flip_claim, flip_emotion, is_near
from aligncap.text.emotions import emotion_of
from aligncap.utils.errors import UserError, UserErrors, nearest

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


CHOSEN = ("reference", "best")
JUDGED = ("best-worst", "reference-worst")
_SHOWN = 5  # clips named in a message


def read_clips(rows: Sequence[Mapping[str, Any]], utterances: Sequence[Utterance]) -> list[Clip]:
    """Clips in the order of the rows, their candidates best first.

    Raises:
        UserErrors: clips that the utterances do not hold.
        UserError: a judged reference that the manifest no longer has.
    """
    by_id = {u.id: u for u in utterances}
    missing = sorted({row["id"] for row in rows} - by_id.keys())
    if missing:
        raise UserErrors([f"the manifest does not hold {some(missing)}; name the right one with --manifest"])
    clips: dict[str, Clip] = {}
    judged: dict[tuple[str, int], float] = {}
    for row in rows:
        utterance = by_id[row["id"]]
        clip = clips.setdefault(
            row["id"], Clip(utterance, row["audio"], row.get("manifest"), emotion=emotion_named(utterance))
        )
        score = float(row["verdict"]["overall"])
        if row["kind"] == "candidate":
            clip.candidates.append(Text(row["caption"], score, False))
        else:
            judged[row["id"], row["reference"]] = score
            if row["caption"] != dict(enumerate(utterance.captions)).get(row["reference"]):
                raise UserError(
                    f"reference {row['reference']} of {row['id']!r} is not the manifest's; "
                    "the manifest has changed since: judge again"
                )
    for clip in clips.values():
        # a stable sort: of equal scores the first candidate stays first
        clip.candidates.sort(key=lambda text: -(text.score or 0.0))
        clip.references = [
            Text(caption, judged.get((clip.utterance.id, i)), True)
            for i, caption in enumerate(clip.utterance.captions)
        ]
    return list(clips.values())


def check_candidates(clips: Sequence[Clip], kinds: Sequence[str], chosen: str) -> None:
    """Raise UserError where the kinds need more candidates than there are."""
    needing = [k for k in kinds if k in JUDGED or chosen == "best"]
    if needing and not any(clip.candidates for clip in clips):
        raise UserError(f"no scored candidate, which {', '.join(needing)} need; run `aligncap candidates`")
    least = 2 if "best-worst" in kinds else 1 if needing else 0
    if not any(len(clip.candidates) >= least for clip in clips):
        raise UserError(
            f"{'best-worst' if least > 1 else needing[0]} needs at least {least} scored candidates a clip, "
            "which no clip has; ask `aligncap candidates` for more, or choose other --kinds"
        )


def one_judge(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The judge's name and versions; UserError where there are several judges."""
    judges = sorted({row["verdict"]["judge"] for row in rows})
    if len(judges) > 1:
        raise UserError(
            f"verdicts of several judges ({', '.join(judges)}), whose scores do not compare; keep one's"
        )
    return {
        "judge": judges[0] if judges else None,
        "versions": sorted({str(row["verdict"].get("version")) for row in rows}),
    }


def check_options(
    kinds: Sequence[str],
    chosen: str,
    min_margin: float,
    max_similarity: float,
    max_length_ratio: float,
    per_clip: int,
) -> None:
    """Raise UserErrors for every option out of range."""
    errors = [
        f'unknown kind of pair "{kind}"{nearest(kind, KINDS)}; the kinds are {", ".join(KINDS)}'
        for kind in kinds
        if kind not in KINDS
    ]
    if not kinds:
        errors.append(f"no kind of pair is asked for; the kinds are {', '.join(KINDS)}")
    if chosen not in CHOSEN:
        errors.append(f'--chosen "{chosen}"{nearest(chosen, CHOSEN)}; choose {" or ".join(CHOSEN)}')
    if not 0 <= min_margin <= 10:
        errors.append(f"--min-margin {min_margin}: a number of points from 0 to 10 is needed")
    if not 0 < max_similarity <= 1:
        errors.append(f"--max-similarity {max_similarity}: a number above 0 and up to 1 is needed")
    if not 1 < max_length_ratio < math.inf:
        errors.append(f"--max-length-ratio {max_length_ratio}: a number above 1 is needed, like 2")
    if per_clip < 1:
        errors.append(f"--per-clip {per_clip}: at least one pair a clip is needed")
    if errors:
        raise UserErrors(errors)


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(f'"{name}"' for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more clips" if len(names) > _SHOWN else "")
