"""What captions say that is not so, or is so of any clip: wrong claims and gender, leaks, generic ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aligncap.captions import rubric
from aligncap.captions.claims import Claim, check, claims_of, genders_of, is_true
from aligncap.captions.emotions import emotion_words
from aligncap.captions.lexicon import is_chinese
from aligncap.captions.wording_faults import leaks
from aligncap.evaluation.bootstrap import Statistic, mean
from aligncap.manifest import Utterance

MEASURES = (
    "wrong_claim_share",
    "wrong_claims_per_caption",
    "caption_with_wrong_claim_share",
    "claims_per_caption",
    "wrong_gender_share",
    "generic_share",
    "very_generic_share",
    "fit_share",
    "transcript_leak_share",
    "rubric_score",
)
GENERIC = 0.05  # a caption as true of more than one other clip in twenty says little about this one
VERY_GENERIC = 0.1

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class ClipMeasures:
    """What one caption says that is not so.

    `right`, `wrong` and `unknown` are its different acoustic claims, None where claims are not read or the
    clip has no cues; `claims` is their number. `wrong_gender` is None unless the caption gives a gender and
    the clip's is known. `fit` is the share of the other clips of which everything it says is as true, None
    without cues. `leak` is None without transcript. `rubric` is the offline judge's overall mark (0 to 10).
    """

    claims: int | None
    right: tuple[str, ...] | None
    wrong: tuple[str, ...] | None
    unknown: tuple[str, ...] | None
    wrong_gender: bool | None
    fit: float | None
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
    others = _Others(whole, [e.relative for e in evidence], label_map or {})
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
        found.append(
            ClipMeasures(
                claims=len({claim.key for claim in claims}) if read else None,
                right=right,
                wrong=wrong,
                unknown=unknown,
                wrong_gender=bool(genders - {u.gender}) if genders and u.gender else None,
                fit=others.share(caption, place) if read else None,
                leak=leaks(caption, u.transcript) if u.transcript else None,
                rubric=None if mark is None else mark.overall,
            )
        )
    return found


class _Others:
    """Of which clips is what a caption says as true? One row of yes and no for every fact, computed once."""

    def __init__(
        self, whole: Sequence[Utterance], cues: Sequence[Mapping[str, float]], label_map: Mapping[str, str]
    ) -> None:
        self.label_map = label_map
        self.cues = cues
        self.emotions = np.array([u.emotion or "" for u in whole])
        self.genders = np.array([u.gender or "" for u in whole])
        self.claims: dict[tuple[str, str, bool], Bools] = {}

    def share(self, caption: str, place: int) -> float | None:
        """Share of the clips other than number `place`; what is not known of a clip fits it."""
        if len(self.emotions) < 2:
            return None
        fits = np.ones(len(self.emotions), dtype=bool)
        mentions = [(self.label_map.get(m.label, m.label), m.negated) for m in emotion_words(caption)]
        said = [label for label, negated in mentions if not negated]
        denied = [label for label, negated in mentions if negated]
        unlabelled = self.emotions == ""
        if said:
            fits &= np.isin(self.emotions, said) | unlabelled
        fits &= ~np.isin(self.emotions, denied) | unlabelled
        genders = genders_of(caption)
        if genders:
            fits &= np.isin(self.genders, sorted(genders)) | (self.genders == "")
        for claim in claims_of(caption):
            fits &= self._true(claim)
        return float((fits.sum() - fits[place]) / (len(fits) - 1))

    def _true(self, claim: Claim) -> Bools:
        if claim.key not in self.claims:
            truths = [is_true(claim, cues) is not False for cues in self.cues]
            self.claims[claim.key] = np.array(truths, dtype=bool)
        return self.claims[claim.key]


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
        "rubric": f"version {rubric.version()}, {rubric.data_hash()[:12]}; fluency by rules alone",
    }
