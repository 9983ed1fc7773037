"""F1 as sums over clips, so that it has intervals by speaker (`utils/statistics.py`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aligncap.utils.statistics import Floats


def f1_sums(truth: Sequence[object], said: Sequence[object], labels: Sequence[object]) -> Floats:
    """What `weighted_f1` and `macro_f1` need of each clip, (clips, 3 x labels): hits, clips of each label,
    answers of each label."""
    own, other = (
        np.array([[name == label for label in labels] for name in names], dtype=np.float64)
        for names in (truth, said)
    )
    return np.concatenate([own * other, own, other], axis=1)


def label_f1(sums: Floats) -> tuple[Floats, Floats]:
    """F1 of each label, and its clips, (..., labels) each, of sums of `f1_sums`."""
    hits, clips, said = np.split(sums, 3, axis=-1)
    both = clips + said
    return np.divide(2 * hits, both, out=np.zeros_like(hits), where=both > 0), clips


def weighted_f1(sums: Floats) -> Floats:
    """Mean F1 of the labels, weighted by their clips, as scikit-learn's `f1_score(average="weighted")`."""
    f1, clips = label_f1(sums)
    return np.asarray((f1 * clips).sum(axis=-1) / clips.sum(axis=-1))


def macro_f1(sums: Floats) -> Floats:
    """Mean F1 of the labels that have clips."""
    f1, clips = label_f1(sums)
    return np.asarray((f1 * (clips > 0)).sum(axis=-1) / (clips > 0).sum(axis=-1))
