"""Does the caption name the right emotion? Read from its words, through the lexicon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aligncap.data.manifest import Utterance
from aligncap.text.answers import NONE
from aligncap.text.emotions import (
    Mention,
    affect,
    emotion_of,
    families_said,
    feelings,
    labels,
    overlap,
    sectors,
    true_sectors,
)
from aligncap.text.lexicon import weak_degrees
from aligncap.utils.io import Row
from aligncap.utils.statistics import Floats, Statistic, mean, ratio, recall_sums, uar


@dataclass(frozen=True)
class Emotions:
    """The label of each clip (None: unknown) beside the emotion that its caption names (NONE: no word)."""

    truth: list[str | None]
    said: list[str]

    @property
    def labels(self) -> list[str]:
        """The labels that clips have: rows of the confusion matrix."""
        return sorted({label for label in self.truth if label is not None})

    @property
    def columns(self) -> list[str]:
        """Columns of the confusion matrix: the labels, other emotions that captions name, NONE."""
        return [*self.labels, *sorted(set(self.said) - {*self.labels, NONE}), NONE]

    def confusion(self) -> NDArray[np.int64]:
        """Counts (labels, columns) of the clips with a label; rows: the label, columns: what is said."""
        row, column = ({name: i for i, name in enumerate(names)} for names in (self.labels, self.columns))
        matrix = np.zeros((len(row), len(column)), np.int64)
        for label, said in zip(self.truth, self.said, strict=True):
            if label is not None:
                matrix[row[label], column[said]] += 1
        return matrix


def joined(parts: Sequence[Emotions], labels: Sequence[str] | None = None) -> Emotions:
    """Several seeds or corpora as one set; of clips with one of `labels` only, if they are given."""
    pairs = [pair for part in parts for pair in zip(part.truth, part.said, strict=True)]
    pairs = [(truth, said) for truth, said in pairs if labels is None or truth in labels]
    return Emotions([truth for truth, _ in pairs], [said for _, said in pairs])


def read_emotions(
    captions: Sequence[str], utterances: Sequence[Utterance], label_map: Mapping[str, str] | None = None
) -> Emotions:
    """The emotion that each caption names beside the label of its clip.

    `label_map` renames what captions say, for a set that has no such label: {"calm": "neutral"}.
    """
    rename = label_map or {}
    said = [emotion_of(caption) or NONE for caption in captions]
    return Emotions([u.emotion for u in utterances], [rename.get(label, label) for label in said])


def emotion_statistics(emotions: Emotions) -> dict[str, Statistic]:
    """emotion_accuracy, emotion_uar and emotion_none_share; the first two only over clips with a label.

    A caption without an emotion word is wrong. Accuracy and UAR are absent where no clip has a label.
    """
    none = mean(np.array([said == NONE for said in emotions.said], dtype=np.float64))
    if not emotions.labels:
        return {"emotion_none_share": none}
    sums = recall_sums(emotions.truth, emotions.said, emotions.labels)
    hits, clips = np.split(sums, 2, axis=1)
    return {
        "emotion_accuracy": ratio(hits.sum(axis=1), clips.sum(axis=1)),
        "emotion_uar": Statistic(sums, uar, 1.0),
        "emotion_none_share": none,
    }


def by_speaker(emotions: Emotions, utterances: Sequence[Utterance]) -> list[Row]:
    """Clips, accuracy and UAR of each known speaker: [{"speaker", "gender", "clips", "accuracy", "uar"}]."""
    sums = recall_sums(emotions.truth, emotions.said, emotions.labels)
    kept = [i for i, u in enumerate(utterances) if u.speaker is not None and u.emotion is not None]
    speakers = pd.Series(
        [(utterances[i].corpus, utterances[i].speaker) for i in kept], index=kept, dtype=object
    )
    several = len({u.corpus for u in utterances}) > 1
    rows = []
    for (corpus, speaker), own in speakers.groupby(speakers):
        total = sums[own.index].sum(axis=0)
        rows.append(
            {
                "speaker": f"{corpus}/{speaker}" if several else speaker,
                "gender": utterances[own.index[-1]].gender,
                "clips": len(own),
                "accuracy": float(total[: len(emotions.labels)].sum() / len(own)),
                "uar": float(uar(total)),
            }
        )
    return rows


DEAD_ZONE = 0.25  # valence and arousal no further from 0 than this have no sign
_WEAK = 0.5  # weight of "slightly sad"


@dataclass(frozen=True)
class EmotionSets:
    """The emotions that a caption names, compared with the clip's.

    `precision` is None where no emotion is asserted, all three where the clip's emotion is not known.
    `valence_flip` and `arousal_flip` are None unless the caption names an emotion and the clip's own lies
    outside of the dead zone.
    """

    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    valence_flip: bool | None = None
    arousal_flip: bool | None = None


def _mean_affect(found: Sequence[Mention], rename: Mapping[str, str]) -> Floats | None:
    """Mean (valence, arousal) of the emotion words asserted, weakened ones by half; None without any."""
    asserted = [m for m in found if m.label and not m.negated]
    if not asserted:
        return None
    weights = [_WEAK if m.degree in weak_degrees() else 1.0 for m in asserted]
    return np.average([affect(rename.get(m.label, m.label)) for m in asserted], axis=0, weights=weights)


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
    precision = score.precision if families else None
    said = _mean_affect(feelings(caption), rename)
    of_references = [mention for text in utterance.captions for mention in feelings(text)]
    own = affect(label) if label else _mean_affect(of_references, rename)
    if said is None or own is None:
        return EmotionSets(precision, score.recall, score.f1)
    return EmotionSets(precision, score.recall, score.f1, _flip(said[0], own[0]), _flip(said[1], own[1]))
