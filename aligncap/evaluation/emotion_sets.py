"""Wrong emotions: overlap on emotion wheels, flips of valence and arousal (docs/hallucination.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from aligncap.captions.emotions import affect, labels
from aligncap.captions.wheels import Feeling, families_said, feelings, overlap, sectors, true_sectors
from aligncap.io import load_data
from aligncap.manifest import Utterance

DEAD_ZONE = 0.25  # valence and arousal no further from 0 than this have no sign
_WEAK = 0.5  # weight of "slightly sad"

Affect = tuple[float, float]


@dataclass(frozen=True)
class EmotionSets:
    """What a caption says of the emotion, held against the clip.

    `precision` is None where no emotion is asserted, all three where the clip's emotion is not known.
    `valence_flip` and `arousal_flip` are None unless the caption names an emotion and the clip's own lies
    outside of the dead zone.
    """

    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    valence_flip: bool | None = None
    arousal_flip: bool | None = None


@cache
def _weak() -> frozenset[str]:
    words = load_data("voice_words.yaml")
    return frozenset((*words["en"]["weak"], *words["zh"]["weak"]))


def _mean_affect(found: Sequence[Feeling], rename: Mapping[str, str]) -> Affect | None:
    """Mean (valence, arousal) of the emotion words asserted, weakened ones by half; None without any."""
    places = [
        (affect(rename.get(f.label, f.label)), _WEAK if f.degree in _weak() else 1.0)
        for f in found
        if f.label is not None and not f.negated
    ]
    if not places:
        return None
    total = sum(weight for _, weight in places)
    return (
        sum(point[0] * weight for point, weight in places) / total,
        sum(point[1] * weight for point, weight in places) / total,
    )


def _flip(said: float, true: float) -> bool | None:
    """Whether the sign is the other one; None where the true value has none."""
    if abs(true) <= DEAD_ZONE:
        return None
    return bool(abs(said) > DEAD_ZONE and np.sign(said) != np.sign(true))


def emotion_sets(
    caption: str, utterance: Utterance, label_map: Mapping[str, str] | None = None
) -> EmotionSets:
    """Overlap and flips of one caption; `label_map` renames emotions named: {"calm": "neutral"}."""
    rename = label_map or {}
    label = utterance.emotion if utterance.emotion in labels() else None
    truth = true_sectors(label, [families_said(text, rename) for text in utterance.captions])
    if truth is None:
        return EmotionSets()
    families = families_said(caption, rename)
    score = overlap(sectors(families), truth)
    said = _mean_affect(feelings(caption), rename)
    told = [feeling for text in utterance.captions for feeling in feelings(text)]
    own = affect(label) if label else _mean_affect(told, rename)
    precision = score.precision if families else None
    if said is None or own is None:
        return EmotionSets(precision, score.recall, score.f1)
    return EmotionSets(precision, score.recall, score.f1, _flip(said[0], own[0]), _flip(said[1], own[1]))
