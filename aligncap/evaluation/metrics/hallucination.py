"""What captions say that is not so, is so of any clip, or is no description: errors by type.

The types, their formulas and what is left out of each stand in docs/hallucination.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb

import numpy as np
from numpy.typing import NDArray

from aligncap.data.manifest import Utterance
from aligncap.evaluation.metrics.emotion import DEAD_ZONE, EmotionSets, emotion_sets
from aligncap.text import rubric
from aligncap.text.claims import Claim, check, claims_of, genders_of, is_true
from aligncap.text.emotions import feelings, wheels
from aligncap.text.instruction import breaches, language_of
from aligncap.text.lexicon import is_chinese
from aligncap.text.rubric import leaks
from aligncap.utils.statistics import Statistic, mean

AMONG = 10  # clips of the line-up: the caption's own and nine others

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Found:
    """`fit` is the share of the other clips of which everything said is true, `among` the probability that
    the caption's own clip is taken from a line-up of AMONG; None where there are too few clips."""

    fit: float | None
    among: float | None


@lru_cache(maxsize=1 << 16)
def found_among(better: int, tied: int, others: int, among: int = AMONG) -> float:
    """Probability that the best fitting of `among` clips is the right one, ties broken at random.

    The line-up is the clip itself and `among - 1` of the `others`, drawn without replacement, of which
    `better` fit better and `tied` as well. With worse = others - better - tied, k = among - 1: the sum over
    j ties drawn of C(tied, j) C(worse, k - j) / C(others, k) / (j + 1), which by Vandermonde's identity is
    (C(tied + 1 + worse, k + 1) - C(worse, k + 1)) / ((tied + 1) C(others, k)).

    >>> found_among(0, 0, 99), found_among(0, 99, 99), found_among(99, 0, 99)
    (1.0, 0.1, 0.0)
    """
    worse, k = others - better - tied, among - 1
    return (comb(tied + 1 + worse, k + 1) - comb(worse, k + 1)) / ((tied + 1) * comb(others, k))


class OtherClips:
    """Clips with what is known of them; one row of yes and no for every fact, computed once."""

    def __init__(
        self, whole: Sequence[Utterance], cues: Sequence[Mapping[str, float]], label_map: Mapping[str, str]
    ) -> None:
        self.label_map = label_map
        self.cues = cues
        self.emotions = np.array([u.emotion or "" for u in whole])
        self.genders = np.array([u.gender or "" for u in whole])
        self.rows: dict[tuple[object, ...], Bools] = {}

    def find(self, caption: str, place: int, claims: Iterable[Claim], genders: Iterable[str]) -> Found:
        """How well the caption of clip number `place` tells it from the others.

        What a caption says are its facts: one of the emotions it names (together one fact), each emotion
        that it denies, the gender, each acoustic claim. A clip fits as well as facts are true of it; what is
        not known of a clip counts as true.

        Args:
            claims: `claims_of` the caption; what is claimed twice is one fact.
            genders: `genders_of` the caption.
        """
        rows = self._facts(caption, claims, sorted(genders))
        total = len(self.emotions)
        if total < 2:
            return Found(None, None)
        true = np.zeros(total, dtype=np.int64)
        for row in rows:
            true += row
        fits = true == len(rows)
        others = total - 1
        among = None
        if total >= AMONG:
            better, tied = int((true > true[place]).sum()), int((true == true[place]).sum()) - 1
            among = found_among(better, tied, others)
        return Found(float((fits.sum() - fits[place]) / others), among)

    def _facts(self, caption: str, claims: Iterable[Claim], genders: list[str]) -> list[Bools]:
        mentions = [(self.label_map.get(f.label, f.label), f.negated) for f in feelings(caption) if f.label]
        said = tuple(sorted({label for label, negated in mentions if not negated}))
        facts: list[Bools] = [self._emotion(said)] if said else []
        facts += [
            ~self._emotion((label,)) | (self.emotions == "") for label in {n for n, no in mentions if no}
        ]
        if genders:
            key: tuple[object, ...] = ("gender", *genders)
            if key not in self.rows:
                self.rows[key] = np.isin(self.genders, genders) | (self.genders == "")
            facts.append(self.rows[key])
        for claim in {claim.key: claim for claim in claims}.values():
            key = ("claim", *claim.key)
            if key not in self.rows:
                truths = [is_true(claim, cues) is not False for cues in self.cues]
                self.rows[key] = np.array(truths, dtype=bool)
            facts.append(self.rows[key])
        return facts

    def _emotion(self, labels: tuple[str, ...]) -> Bools:
        key = ("emotion", *labels)
        if key not in self.rows:
            self.rows[key] = np.isin(self.emotions, labels) | (self.emotions == "")
        return self.rows[key]


MEASURES = (
    "emotion_set_precision",
    "emotion_set_recall",
    "emotion_set_f1",
    "valence_flip_share",
    "arousal_flip_share",
    "wrong_claim_share",
    "wrong_claims_per_caption",
    "caption_with_wrong_claim_share",
    "claims_per_caption",
    "wrong_gender_share",
    "generic_share",
    "very_generic_share",
    "fit_share",
    "found_among_10",
    "transcript_leak_share",
    "instruction_breach_share",
    "rubric_score",
)
GENERIC = 0.05  # a caption as true of more than one other clip in twenty says little about this one
VERY_GENERIC = 0.1


@dataclass(frozen=True)
class ClipMeasures:
    """What one caption says that is not so.

    `emotions` are overlap and flips of its emotion words; `breaches` names what makes it no description of a
    voice. `right`, `wrong` and `unknown` are its different acoustic claims, None where claims are not read or
    the clip has no cues; `claims` is their number. `wrong_gender` is None unless the caption gives a gender
    and the clip's is known. `fit` is the share of the other clips of which everything it says is as
    true, `among` the probability that it finds its clip among ten, both None without cues. `leak` is None
    without transcript. `rubric` is the offline judge's overall mark (0 to 10).
    """

    emotions: EmotionSets
    breaches: tuple[str, ...]
    claims: int | None
    right: tuple[str, ...] | None
    wrong: tuple[str, ...] | None
    unknown: tuple[str, ...] | None
    wrong_gender: bool | None
    fit: float | None
    among: float | None
    leak: bool | None
    rubric: float | None

    @property
    def generic(self) -> bool | None:
        """Whether what is said is as true of more than a twentieth of the other clips."""
        return None if self.fit is None else self.fit > GENERIC


def measure(
    captions: Sequence[str],
    utterances: Sequence[Utterance],
    *,
    whole: Sequence[Utterance] | None = None,
    label_map: Mapping[str, str] | None = None,
    fluency: Sequence[float] | None = None,
) -> list[ClipMeasures]:
    """Measures of each caption; `captions[i]` is of `utterances[i]`.

    Args:
        whole: the set that speakers' norms and "other clips" are taken from; `utterances` by default.
        label_map: renames emotions that captions name: {"calm": "neutral"}.
        fluency: mean log-probabilities for the rubric's mark; without them fluency goes by rules.
    """
    whole = utterances if whole is None else whole
    known = {id(u): place for place, u in enumerate(whole)}
    places = [known[id(u)] for u in utterances]
    evidence = rubric.evidence(whole)
    others = OtherClips(whole, [e.relative for e in evidence], label_map or {})
    found = []
    for i, (caption, u, place) in enumerate(zip(captions, utterances, places, strict=True)):
        cues = evidence[place].relative
        read = bool(cues) and not is_chinese(caption)
        claims = claims_of(caption) if read else []
        checked = check(claims, cues)
        right, wrong, unknown = (
            tuple(map(str, part)) if read else None
            for part in (checked.right, checked.wrong, checked.unknown)
        )
        genders = genders_of(caption)
        judged = u.emotion is not None or bool(cues)
        mark = (
            rubric.score(caption, evidence[place], None if fluency is None else fluency[i])
            if judged
            else None
        )
        line_up = others.find(caption, place, claims, genders) if read else Found(None, None)
        found.append(
            ClipMeasures(
                emotions=emotion_sets(caption, u, label_map),
                breaches=breaches(caption, language_of(u.captions)),
                claims=len({claim.key for claim in claims}) if read else None,
                right=right,
                wrong=wrong,
                unknown=unknown,
                wrong_gender=bool(genders - {u.gender}) if genders and u.gender else None,
                fit=line_up.fit,
                among=line_up.among,
                leak=leaks(caption, u.transcript) if u.transcript else None,
                rubric=None if mark is None else mark.overall,
            )
        )
    return found


def _ratio(above: Sequence[float | None], below: Sequence[float | None]) -> Statistic:
    """Sum over sum; clips where either is None count in neither."""
    known = [
        (a, b) if a is not None and b is not None else (0.0, 0.0) for a, b in zip(above, below, strict=True)
    ]
    return Statistic(np.array(known, dtype=np.float64), lambda sums: sums[..., 0] / sums[..., 1])


def hallucination_statistics(measures: Sequence[ClipMeasures]) -> dict[str, Statistic]:
    """MEASURES as sums over clips; those that no clip allows are absent."""
    wrong = [None if m.wrong is None else float(len(m.wrong)) for m in measures]
    checked = [
        None if m.right is None or m.wrong is None else float(len(m.right) + len(m.wrong)) for m in measures
    ]
    per_clip: dict[str, list[float | None]] = {
        "emotion_set_precision": [m.emotions.precision for m in measures],
        "emotion_set_recall": [m.emotions.recall for m in measures],
        "emotion_set_f1": [m.emotions.f1 for m in measures],
        "valence_flip_share": [m.emotions.valence_flip for m in measures],
        "arousal_flip_share": [m.emotions.arousal_flip for m in measures],
        "instruction_breach_share": [bool(m.breaches) for m in measures],
        "found_among_10": [m.among for m in measures],
        "wrong_claims_per_caption": wrong,
        "caption_with_wrong_claim_share": [None if n is None else float(n > 0) for n in wrong],
        "claims_per_caption": [m.claims for m in measures],
        "wrong_gender_share": [m.wrong_gender for m in measures],
        "generic_share": [m.generic for m in measures],
        "very_generic_share": [None if m.fit is None else m.fit > VERY_GENERIC for m in measures],
        "fit_share": [m.fit for m in measures],
        "transcript_leak_share": [m.leak for m in measures],
        "rubric_score": [m.rubric for m in measures],
    }
    found = {"wrong_claim_share": _ratio(wrong, checked)} if any(checked) else {}
    for name, values in per_clip.items():
        if None not in values:
            found[name] = mean(np.array(values, dtype=np.float64))
        elif any(value is not None for value in values):
            found[name] = _ratio(values, [1.0] * len(values))
    return found


def signature(measures: Sequence[ClipMeasures]) -> dict[str, object]:
    """What was counted and how, for the signature of an evaluation."""
    return {
        "clips_with_cues": sum(m.right is not None for m in measures),
        "captions_naming_a_gender": sum(m.wrong_gender is not None for m in measures),
        "clips_with_transcript": sum(m.leak is not None for m in measures),
        "claims": "acoustic claims of English captions by data/claim_words.yaml, against each speaker's norm",
        "generic": f"as true of more than {GENERIC:.0%} (very: {VERY_GENERIC:.0%}) of the other clips",
        "emotion_sets": f"mean over {len(wheels())} wheels of data/emotion_wheels.yaml; flips: no sign "
        f"within ±{DEAD_ZONE}",
        "captions_naming_an_emotion": sum(m.emotions.precision is not None for m in measures),
        "found_among_10": f"best fitting of {AMONG} clips drawn, its own one of them; chance {1 / AMONG:g}",
        "breaches": dict(Counter(name for m in measures for name in m.breaches)),
        "rubric": f"version {rubric.version()}, {rubric.data_hash()[:12]}; fluency by rules alone",
    }
