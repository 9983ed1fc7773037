"""Hallucination: what captions say that is wrong, is true of any clip, or is no description of a voice.

The types, their formulas and what is left out of each stand in docs/hallucination.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aligncap.data.manifest import Utterance
from aligncap.evaluation.metrics import GENERIC, VERY_GENERIC
from aligncap.evaluation.metrics.emotion import DEAD_ZONE, EmotionSets, emotion_sets
from aligncap.text import rubric
from aligncap.text.claims import Checked, Claim, check, claims_of, conflicts, dimensions, genders_of, is_true
from aligncap.text.coherence import contradictions, frame, repetitions
from aligncap.text.emotions import feelings, wheels
from aligncap.text.instruction import breaches, language_of
from aligncap.utils.statistics import Statistic, mean, ratio

AMONG = 10  # clips of the line-up: the caption's own and nine others

Bools = NDArray[np.bool_]


class Found(NamedTuple):
    """How well a caption tells its clip from others; None where there are too few clips."""

    fit: float | None  # share of the other clips of which everything said is true
    among: float | None  # probability that the caption's own clip is taken from a line-up of AMONG


class Bits(NamedTuple):
    """What acoustic claims are worth: the right ones, all; what was told, and what could have been."""

    right: float
    checked: float
    told: float
    could: float


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
        self.worths: dict[tuple[str, str, bool], float] = {}

    def find(self, caption: str, place: int, claims: Iterable[Claim], genders: Iterable[str]) -> Found:
        """How well the caption of clip number `place` tells it from the others.

        A caption states facts: that the emotion is one of those named (one fact), that it is none of those
        denied (one fact each), the gender, each acoustic claim. A clip fits a caption by the number of facts
        that are true of it; what is not known of a clip counts as true.

        Args:
            claims: `claims_of` the caption; what is claimed twice is one fact.
            genders: `genders_of` the caption.
        """
        facts = self._facts(caption, claims, tuple(sorted(genders)))
        others = len(self.emotions) - 1
        if not others:
            return Found(None, None)
        true = np.zeros(others + 1, dtype=np.int64)
        for fact in facts:
            true += fact
        fits = true == len(facts)
        among = None
        if others + 1 >= AMONG:
            better, tied = int((true > true[place]).sum()), int((true == true[place]).sum()) - 1
            among = found_among(better, tied, others)
        return Found(float((fits.sum() - fits[place]) / others), among)

    def _facts(self, caption: str, claims: Iterable[Claim], genders: tuple[str, ...]) -> list[Bools]:
        mentions = [(self.label_map.get(f.label, f.label), f.negated) for f in feelings(caption) if f.label]
        said = tuple(sorted({label for label, negated in mentions if not negated}))
        denied = {label for label, negated in mentions if negated}
        facts = [self._known(self.emotions, said)] if said else []
        facts += [~self._known(self.emotions, (label,)) | (self.emotions == "") for label in denied]
        facts += [self._known(self.genders, genders)] if genders else []
        for claim in {claim.key: claim for claim in claims}.values():
            if claim.key not in self.rows:
                self.rows[claim.key] = np.array([is_true(claim, c) is not False for c in self.cues], bool)
            facts.append(self.rows[claim.key])
        return facts

    def worth(self, claim: Claim) -> float:
        """Bits of a claim: -log2 of the share of clips for which it holds, of those with its cue measured.

        A claim that holds for none of them is worth as much as one that holds for one.
        """
        if claim.key not in self.worths:
            verdicts = [v for v in (is_true(claim, cues) for cues in self.cues) if v is not None]
            self.worths[claim.key] = math.log2(max(1, len(verdicts)) / max(1, sum(verdicts)))
        return self.worths[claim.key]

    def bits(self, place: int, checked: Checked) -> Bits:
        """Bits of the checked claims of clip number `place`, and what could have been told of it.

        That is the true level of each dimension that is worth most. What is told counts once a dimension
        towards it, and not where the caption contradicts itself.
        """
        at_odds = conflicts((*checked.right, *checked.wrong))
        told = could = 0.0
        for dimension in dimensions().values():
            levels = (Claim(dimension.name, lev.name, False, "", 0) for lev in dimension.levels if lev.words)
            most = max((self.worth(c) for c in levels if is_true(c, self.cues[place])), default=0.0)
            right = (self.worth(c) for c in checked.right if c.dimension == dimension.name not in at_odds)
            could, told = could + most, told + min(most, max(right, default=0.0))
        gained, lost = (sum(map(self.worth, claims)) for claims in (checked.right, checked.wrong))
        return Bits(gained, gained + lost, told, could)

    def _known(self, values: NDArray[np.str_], wanted: tuple[str, ...]) -> Bools:
        """Clips whose value is one of those wanted, or not known."""
        if wanted not in self.rows:
            self.rows[wanted] = np.isin(values, wanted) | (values == "")
        return self.rows[wanted]


@dataclass(frozen=True)
class ClipMeasures:
    """What one caption says that is not so; None for what the clip or its caption does not allow to tell.

    Attributes:
        emotions: overlap and flips of its emotion words.
        breaches: names of what makes it no description of a voice.
        claims: number of its different acoustic claims; needs measured cues.
        right, wrong: those of these claims that the cues bear out, and those that they do not.
        wrong_gender: of a caption that gives a gender, and a clip whose gender is known.
        fit: share of the other clips of which everything it says is as true; needs cues.
        among: probability that it finds its clip among ten; needs cues and ten clips.
        leak: whether it repeats what is said; needs a transcript.
        rubric: the offline judge's overall mark (0 to 10).
        contradicts, repeats: whether it contradicts or repeats itself (`text.coherence`).
        frame: its sentence without what it says.
        bits: what its claims are worth; needs cues.
    """

    emotions: EmotionSets
    breaches: tuple[str, ...]
    claims: int | None
    right: tuple[str, ...] | None
    wrong: tuple[str, ...] | None
    wrong_gender: bool | None
    fit: float | None
    among: float | None
    leak: bool | None
    rubric: float | None
    contradicts: bool
    repeats: bool
    frame: str
    bits: Bits | None

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
    places = {id(u): place for place, u in enumerate(whole)}
    evidence = rubric.evidence(whole)
    others = OtherClips(whole, [e.relative for e in evidence], label_map or {})
    found = []
    for i, (caption, u) in enumerate(zip(captions, utterances, strict=True)):
        place = places[id(u)]
        cues = evidence[place].relative
        read = bool(cues)
        claims = claims_of(caption) if read else []
        checked = check(claims, cues)
        right, wrong = (tuple(map(str, p)) if read else None for p in (checked.right, checked.wrong))
        genders = genders_of(caption)
        fit, among = others.find(caption, place, claims, genders) if read else (None, None)
        mark = None
        if u.emotion is not None or cues:
            mark = rubric.score(caption, evidence[place], fluency[i] if fluency else None).overall
        found.append(
            ClipMeasures(
                emotions=emotion_sets(caption, u, label_map),
                breaches=breaches(caption, language_of(u.captions)),
                claims=len({claim.key for claim in claims}) if read else None,
                right=right,
                wrong=wrong,
                wrong_gender=bool(genders - {u.gender}) if genders and u.gender else None,
                fit=fit,
                among=among,
                leak=rubric.leaks(caption, u.transcript) if u.transcript else None,
                rubric=mark,
                contradicts=bool(contradictions(caption)),
                repeats=bool(repetitions(caption)),
                frame=frame(caption),
                bits=others.bits(place, checked) if read else None,
            )
        )
    return found


_PER_CLIP: dict[str, Callable[[ClipMeasures], float | None]] = {
    "emotion_set_precision": lambda m: m.emotions.precision,
    "emotion_set_recall": lambda m: m.emotions.recall,
    "emotion_set_f1": lambda m: m.emotions.f1,
    "valence_flip_share": lambda m: m.emotions.valence_flip,
    "arousal_flip_share": lambda m: m.emotions.arousal_flip,
    "wrong_claims_per_caption": lambda m: None if m.wrong is None else len(m.wrong),
    "caption_with_wrong_claim_share": lambda m: None if m.wrong is None else len(m.wrong) > 0,
    "claims_per_caption": lambda m: m.claims,
    "wrong_gender_share": lambda m: m.wrong_gender,
    "generic_share": lambda m: m.generic,
    "very_generic_share": lambda m: None if m.fit is None else m.fit > VERY_GENERIC,
    "fit_share": lambda m: m.fit,
    "found_among_10": lambda m: m.among,
    "transcript_leak_share": lambda m: m.leak,
    "instruction_breach_share": lambda m: bool(m.breaches),
    "rubric_score": lambda m: m.rubric,
    "contradiction_share": lambda m: m.contradicts,
    "repetition_share": lambda m: m.repeats,
}
_INFORMATION = ("claim_information_precision", "claim_information_recall")
MEASURES = ("wrong_claim_share", *_INFORMATION, *_PER_CLIP, "top_frame_share")


def hallucination_statistics(measures: Sequence[ClipMeasures]) -> dict[str, Statistic]:
    """MEASURES as sums over clips; each a mean over the clips that allow it, absent where none does."""
    wrong = np.array([len(m.wrong or ()) for m in measures], dtype=np.float64)
    checked = np.array([len(m.right or ()) for m in measures], dtype=np.float64) + wrong
    found = {"wrong_claim_share": ratio(wrong, checked)} if checked.any() else {}
    bits = np.array([m.bits or (0.0, 0.0, 0.0, 0.0) for m in measures])
    for name, (above, below) in zip(_INFORMATION, (bits.T[:2], bits.T[2:]), strict=True):
        if below.any():
            found[name] = ratio(above, below)
    top, _ = Counter(m.frame for m in measures).most_common(1)[0]
    found["top_frame_share"] = mean(np.array([m.frame == top for m in measures], dtype=np.float64))
    for name, of in _PER_CLIP.items():
        values = [of(m) for m in measures]
        known = np.array([value is not None for value in values])
        if known.all():
            found[name] = mean(np.array(values, dtype=np.float64))
        elif known.any():
            found[name] = ratio(np.array([value or 0.0 for value in values]), known.astype(np.float64))
    return found


def signature(measures: Sequence[ClipMeasures]) -> dict[str, object]:
    """What was counted and how, for the signature of an evaluation."""
    return {
        "clips_with_cues": sum(m.right is not None for m in measures),
        "captions_naming_a_gender": sum(m.wrong_gender is not None for m in measures),
        "clips_with_transcript": sum(m.leak is not None for m in measures),
        "claims": "acoustic claims of English captions by data/claim_words.yaml, against each speaker's norm",
        "claim_information": "bits of a claim: -log2 of the share of clips for which it holds",
        "top_frame": Counter(m.frame for m in measures).most_common(1)[0][0],
        "generic": f"as true of more than {GENERIC:.0%} (very: {VERY_GENERIC:.0%}) of the other clips",
        "emotion_sets": f"mean over {len(wheels())} wheels of data/emotion_wheels.yaml; flips: no sign "
        f"within ±{DEAD_ZONE}",
        "captions_naming_an_emotion": sum(m.emotions.precision is not None for m in measures),
        "found_among_10": f"best fitting of {AMONG} clips drawn, its own one of them; chance {1 / AMONG:g}",
        "breaches": dict(Counter(name for m in measures for name in m.breaches)),
        "rubric": f"version {rubric.version()}, {rubric.data_hash()[:12]}; fluency by rules alone",
    }
