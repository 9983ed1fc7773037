"""Do captions say what people say of the voice? Against the words of each annotator (`extra["voice"]`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aligncap.data.manifest import Utterance
from aligncap.text.voice_tags import among_people, overlap, tags_of
from aligncap.utils.statistics import Floats, Statistic, mean

NAMES = ("tag_precision", "tag_recall", "tag_f1")


def tag_statistics(captions: Sequence[str], utterances: Sequence[Utterance]) -> dict[str, Statistic]:
    """Precision, recall and F1 of a caption's words against each annotator's, means over both.

    Absent where a clip has no annotator's words.
    """
    if not _all_told(utterances):
        return {}
    rows = [
        overlap(tags_of(caption), [tags_of(", ".join(words)) for words in u.extra["voice"].values()])
        for caption, u in zip(captions, utterances, strict=True)
    ]
    return dict(zip(NAMES, map(mean, np.array(rows).T), strict=True))


def tags_among_people(utterances: Sequence[Utterance]) -> dict[str, float]:
    """The same of each annotator against each other: what people reach. Absent with fewer than two."""
    if not _all_told(utterances) or any(len(u.extra["voice"]) < 2 for u in utterances):
        return {}
    rows: Floats = np.array([among_people(u.extra["voice"]) for u in utterances])
    return dict(zip(NAMES, map(float, rows.mean(axis=0)), strict=True))


def _all_told(utterances: Sequence[Utterance]) -> bool:
    return all(isinstance(u.extra.get("voice"), dict) and u.extra["voice"] for u in utterances)
