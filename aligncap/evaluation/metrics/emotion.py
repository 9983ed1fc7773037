"""Does the caption name the right emotion? Read from its words, through the lexicon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aligncap.data.manifest import Utterance
from aligncap.text.emotions import (
    Feeling,
    affect,
    emotion_of,
    families_said,
    feelings,
    labels,
    overlap,
    sectors,
    true_sectors,
)
from aligncap.utils.io import load_data
from aligncap.utils.statistics import Statistic, mean

NONE = "none"  # the column of captions without an emotion word


@dataclass(frozen=True)
class Emotions:
    """What was so and what was said, clip by clip.

    `labels` are the labels that occur in the references (rows of the confusion matrix); `columns` are those,
    then other emotions that captions name, then "none". `truth[i]` is a row number or -1 where clip i has no
    label; `said[i]` is a column number.
    """

    labels: list[str]
    columns: list[str]
    truth: NDArray[np.int64]
    said: NDArray[np.int64]

    def confusion(self, clips: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Counts (labels, columns); rows: what was so, columns: what was said; of `clips` only."""
        use = self.truth >= 0 if clips is None else (self.truth >= 0) & clips
        matrix = np.zeros((len(self.labels), len(self.columns)), np.int64)
        np.add.at(matrix, (self.truth[use], self.said[use]), 1)
        return matrix


def read_emotions(
    captions: Sequence[str], utterances: Sequence[Utterance], label_map: Mapping[str, str] | None = None
) -> Emotions:
    """The emotion that each caption names beside the label of its clip.

    `label_map` renames what captions say, for a set that has no such label: {"calm": "neutral"}.
    """
    found = [emotion_of(caption) or NONE for caption in captions]
    said = [(label_map or {}).get(label, label) for label in found]
    labels = sorted({u.emotion for u in utterances if u.emotion is not None})
    others = sorted(set(said) - set(labels) - {NONE})
    columns = [*labels, *others, NONE]
    row = {label: number for number, label in enumerate(labels)}
    column = {label: number for number, label in enumerate(columns)}
    truth = [-1 if u.emotion is None else row[u.emotion] for u in utterances]
    return Emotions(
        labels,
        columns,
        np.array(truth, dtype=np.int64),
        np.array([column[label] for label in said], dtype=np.int64),
    )


def uar(confusion: NDArray[np.int64]) -> float | None:
    """Unweighted average recall: the mean over labels of the share said rightly.

    Labels without clips are left out; None when no label has any.


    >>> uar(np.array([[3, 1, 0], [0, 1, 1]]))  # 3 of 4 and 1 of 2
    0.625
    """
    total = confusion.sum(axis=1)
    hits = confusion.diagonal()[: len(total)]
    return float((hits[total > 0] / total[total > 0]).mean()) if total.any() else None


def uar_of_sums(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """UAR of rows of sums: hits of each label, then clips of each; labels without clips are left out."""
    hits, total = np.split(sums, 2, axis=-1)
    recall = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
    result: NDArray[np.float64] = recall.sum(axis=-1) / (total > 0).sum(axis=-1)
    return result


def emotion_statistics(emotions: Emotions) -> dict[str, Statistic]:
    """emotion_accuracy, emotion_uar and emotion_none_share; the first two only over clips with a label.

    A caption without an emotion word is wrong. Accuracy and UAR are absent when no
    clip has a label.
    """
    none = mean((emotions.said == len(emotions.columns) - 1).astype(np.float64))
    if not emotions.labels:
        return {"emotion_none_share": none}
    known = (emotions.truth >= 0).astype(np.float64)
    right = (emotions.truth == emotions.said).astype(np.float64)
    labels = np.arange(len(emotions.labels))
    total = (emotions.truth[:, None] == labels).astype(np.float64)
    return {
        "emotion_accuracy": Statistic(
            np.column_stack([right, known]), lambda sums: sums[..., 0] / sums[..., 1]
        ),
        "emotion_uar": Statistic(np.concatenate([total * right[:, None], total], axis=1), uar_of_sums),
        "emotion_none_share": none,
    }


def by_speaker(emotions: Emotions, utterances: Sequence[Utterance]) -> list[dict[str, Any]]:
    """Clips, accuracy and UAR of each known speaker: [{"speaker", "gender", "clips", "accuracy", "uar"}]."""
    names = [(u.corpus, u.speaker) for u in utterances]
    genders = {(u.corpus, u.speaker): u.gender for u in utterances}
    corpora = {u.corpus for u in utterances}
    number = {name: place for place, name in enumerate(sorted({n for n in names if n[1] is not None}))}
    where = np.array([number.get(name, -1) for name in names])
    rows = []
    for name, place in number.items():
        confusion = emotions.confusion(where == place)
        clips = int(confusion.sum())
        if clips:
            rows.append(
                {
                    "speaker": f"{name[0]}/{name[1]}" if len(corpora) > 1 else name[1],
                    "gender": genders[name],
                    "clips": clips,
                    "accuracy": float(confusion.diagonal()[: len(emotions.labels)].sum() / clips),
                    "uar": uar(confusion),
                }
            )
    return rows


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
