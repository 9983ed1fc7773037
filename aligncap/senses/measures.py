"""How right scores of the seven emotions are: accuracy, UAR and F1 with intervals by speaker, tables, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from aligncap.senses.moments import SEVEN
from aligncap.utils.drawing import confusion_picture
from aligncap.utils.io import Row, atomic_open
from aligncap.utils.statistics import (
    Floats,
    Statistic,
    clusters_of,
    intervals,
    mean,
    paired_differences,
    ratio,
    recall_sums,
    uar,
)

TITLES = {"accuracy": "accuracy", "uar": "UAR", "macro_f1": "macro F1", "weighted_f1": "weighted F1"}


@dataclass(frozen=True)
class Judged:
    """Moments with labels: what they are, what scores said of them (None: nothing), whose they are."""

    truth: list[str]
    said: list[str | None]
    speakers: list[str | None]

    def __len__(self) -> int:
        return len(self.truth)

    def where(self, keep: Sequence[bool] | np.ndarray) -> Judged:
        """Only those moments that `keep` marks."""
        columns = (self.truth, self.said, self.speakers)
        return Judged(*([x for x, own in zip(column, keep, strict=True) if own] for column in columns))


@dataclass(frozen=True)
class Owned:
    """Whose a moment is, as `utils/statistics.py` asks; speakers' names hold their corpus already."""

    speaker: str | None
    corpus: str = ""


def judge(labels: Sequence[str | None], speakers: Sequence[str | None], scores: np.ndarray) -> Judged:
    """What scores (n, 7) say, of the moments with a label; of a row of nan None, which is never right."""
    known = [i for i, label in enumerate(labels) if label is not None]
    said = [None if np.isnan(scores[i]).any() else SEVEN[int(scores[i].argmax())] for i in known]
    return Judged([str(labels[i]) for i in known], said, [speakers[i] for i in known])


def f1(sums: Floats, weighted: bool = False) -> Floats:
    """Mean F1 over labels of (..., 3 x labels): right as each, of each, said to be each; (...).

    F1 of a label is 2 · right / (of it + said to be it). Labels that no moment has are left out of the mean,
    which is weighted by the labels' moments if asked to be.

    >>> float(f1(np.array([3, 1, 4, 2, 4, 2])))  # 6 / 8 and 2 / 4
    0.625
    """
    right, own, said = np.split(np.asarray(sums, dtype=np.float64), 3, axis=-1)
    scores = np.divide(2 * right, own + said, out=np.zeros_like(right), where=own + said > 0)
    weights = own if weighted else (own > 0).astype(np.float64)
    total = weights.sum(axis=-1)
    above = (scores * weights).sum(axis=-1)
    return np.divide(above, total, out=np.full(np.shape(above), np.nan), where=total > 0)


def statistics_of(judged: Judged) -> dict[str, Statistic]:
    """Accuracy, UAR, macro and weighted F1 over SEVEN."""
    recalls = recall_sums(judged.truth, judged.said, SEVEN)
    said = [[one == label for label in SEVEN] for one in judged.said]
    sums = np.concatenate([recalls, np.array(said, np.float64)], axis=1)
    right = np.array([a == b for a, b in zip(judged.truth, judged.said, strict=True)], np.float64)
    return {
        "accuracy": mean(right),
        "uar": Statistic(recalls, uar, 1.0),
        "macro_f1": Statistic(sums, f1, 1.0),
        "weighted_f1": Statistic(sums, lambda s: f1(s, weighted=True), 1.0),
    }


def measured(judged: Judged) -> Row:
    """Scores with 95 % intervals by speaker, and of each emotion how often it is known, and rightly said."""
    clusters = clusters_of([Owned(speaker) for speaker in judged.speakers])
    of, said = (np.array([[x == e for e in SEVEN] for x in c], float) for c in (judged.truth, judged.said))
    parts = {}
    for i, emotion in enumerate(SEVEN):
        if of[:, i].any() or said[:, i].any():
            ratios = {"recall": of[:, i], "precision": said[:, i]}
            cells = intervals({n: ratio(of[:, i] * said[:, i], below) for n, below in ratios.items()}, clusters)
            parts[emotion] = {**cells, "moments": int(of[:, i].sum()), "said": int(said[:, i].sum())}
    return {
        "moments": len(judged),
        "unit": clusters.note,
        **intervals(statistics_of(judged), clusters),
        "by_emotion": parts,
    }


def difference(first: Judged, second: Judged) -> Row:
    """Second minus first on the same moments, by score, with intervals and p by speaker."""
    clusters = clusters_of([Owned(speaker) for speaker in first.speakers])
    return paired_differences(statistics_of(first), statistics_of(second), clusters)


def table_of(rows: Mapping[str, Row], title: str) -> Table:
    """A table of `measured` rows, one a line."""
    table = Table("", "n", *TITLES.values(), title=title, caption=next(iter(rows.values()))["unit"])
    for name, row in rows.items():
        table.add_row(name, f"{row['moments']}", *(shown(row[key]) for key in TITLES))
    return table


def shown(cell: Mapping[str, float | None]) -> str:
    """A value, and its interval in the line below."""
    value, low, high = ("–" if (x := cell[k]) is None else f"{x:.3f}"[x < 1 :] for k in ("value", "low", "high"))
    return value if low == "–" else f"{value}\n[{low}, {high}]"


def write_confusion(path: Path, judged: Judged, title: str, what: str) -> None:
    """Write the picture of the confusion matrix; `what` says what its columns are."""
    labels = [label for label in SEVEN if label in judged.truth]
    columns = [*labels, *(label for label in SEVEN if label in judged.said and label not in labels)]
    columns += ["none"] * (None in judged.said)
    matrix = np.zeros((len(labels), len(columns)), np.int64)
    for truth, said in zip(judged.truth, judged.said, strict=True):
        matrix[labels.index(truth), columns.index(said or "none")] += 1
    with atomic_open(path, "wb") as file:
        file.write(confusion_picture(matrix, labels, columns, title, what))
