"""Can a caption find its clip among others (docs/hallucination.md)?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb

import numpy as np
from numpy.typing import NDArray

from aligncap.captions.claims import Claim, is_true
from aligncap.captions.wheels import feelings
from aligncap.manifest import Utterance

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
