"""Several senses on the same moments: how right each is, in all and by emotion, in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from aligncap.senses.moments import SEVEN, Moment
from aligncap.utils.drawing import confusion_picture
from aligncap.utils.errors import UserErrors
from aligncap.utils.f1 import f1_sums, macro_f1, weighted_f1
from aligncap.utils.io import Row, atomic_open
from aligncap.utils.statistics import (
    Clusters,
    Statistic,
    clusters_of,
    intervals,
    paired_differences,
    ratio,
    recall_sums,
    uar,
)

TITLES = {"macro_f1": "macro F1", "weighted_f1": "weighted F1", "uar": "UAR", "accuracy": "accuracy"}


@dataclass
class Unit:
    """A moment as `clusters_of` takes it; a manifest's speakers carry the name of their corpus."""

    speaker: str | None
    corpus: str = ""


def refuse_absent(*paths: str | None) -> None:
    """Raises UserErrors: every path that is given and leads to no file."""
    if absent := [path for path in paths if path and not Path(path).is_file()]:
        raise UserErrors([f"{path}: no such file" for path in absent])


def named(scores: np.ndarray) -> list[str | None]:
    """The likeliest emotion of each row (n, 7); None of a row of nan."""
    return [None if np.isnan(row).any() else SEVEN[int(row.argmax())] for row in scores]


def statistics_of(moments: Sequence[Moment], scores: np.ndarray) -> dict[str, Statistic]:
    """Macro F1, weighted F1, UAR and accuracy of labelled moments; one without a score counts as wrong."""
    truth, said = [m.label for m in moments], named(scores)
    sums, recalls = f1_sums(truth, said, SEVEN), recall_sums(truth, said, SEVEN)
    hits = np.column_stack([sums[:, :7].sum(1), np.ones(len(sums))])
    return {
        "macro_f1": Statistic(sums, macro_f1, 1.0),
        "weighted_f1": Statistic(sums, weighted_f1, 1.0),
        "uar": Statistic(recalls, uar, 1.0),
        "accuracy": Statistic(hits, lambda s: s[..., 0] / s[..., 1], 1.0),
    }


def units_of(moments: Sequence[Moment]) -> Clusters:
    """Speakers as units of intervals; moments of unknown speaker stand for themselves."""
    return clusters_of([Unit(m.speaker) for m in moments])


def macro_f1_of(moments: Sequence[Moment], scores: np.ndarray) -> float:
    """What dev sets choose by."""
    return statistics_of(moments, scores)["macro_f1"].value


def measured(moments: Sequence[Moment], scores: np.ndarray) -> Row:
    """Scores with 95 % intervals by speaker, and of each emotion how often it is known, and rightly said.

    Args:
        moments: those without a label do not count.
        scores: (n, 7); a row of nan is never right.

    Returns:
        {"moments", "units", the scores of TITLES, "by_emotion": {label: {"recall", "precision", "moments",
        "said"}}}
    """
    own, scores = labelled(moments, scores)
    units, said = units_of(own), named(scores)
    of, by = (np.array([[x == e for e in SEVEN] for x in c], float) for c in ([m.label for m in own], said))
    parts = {}
    for i, emotion in enumerate(SEVEN):
        if of[:, i].any() or by[:, i].any():
            hits = of[:, i] * by[:, i]
            cells = intervals({"recall": ratio(hits, of[:, i]), "precision": ratio(hits, by[:, i])}, units)
            parts[emotion] = {**cells, "moments": int(of[:, i].sum()), "said": int(by[:, i].sum())}
    cells = intervals(statistics_of(own, scores), units)
    return {"moments": len(own), "units": units.note, **cells, "by_emotion": parts}


def difference(moments: Sequence[Moment], first: np.ndarray, second: np.ndarray) -> Row:
    """Second minus first on the same moments, by score, with intervals and p by speaker."""
    own, first = labelled(moments, first)
    own, second = labelled(moments, second)
    return paired_differences(statistics_of(own, first), statistics_of(own, second), units_of(own))


def labelled(moments: Sequence[Moment], scores: np.ndarray) -> tuple[list[Moment], np.ndarray]:
    """Moments with a label, and their rows of scores."""
    places = [i for i, moment in enumerate(moments) if moment.label]
    return [moments[i] for i in places], scores[places]


def table_of(rows: Mapping[str, Row], title: str) -> Table:
    """A table of `measured` rows, one a line."""
    notes = {name: row["units"] for name, row in rows.items()}
    one = len(set(notes.values())) == 1
    note = next(iter(notes.values())) if one else "\n".join(f"{n}: {units}" for n, units in notes.items())
    table = Table("", "n", *TITLES.values(), title=title, caption=note, pad_edge=False)
    for name, row in rows.items():
        table.add_row(name, f"{row['moments']}", *(_shown(row[key]) for key in TITLES))
    return table


def _shown(cell: Mapping[str, float | None]) -> str:
    """A value, and its interval in the line below, so that four fit beside each other."""
    value, low, high = ("–" if (x := cell[k]) is None else f"{x:.3f}" for k in ("value", "low", "high"))
    return value if low == "–" else f"{value}\n[{low[low < '1' :]}, {high[high < '1' :]}]"


def write_confusion(path: Path, moments: Sequence[Moment], scores: np.ndarray, title: str, what: str) -> None:
    """Write the picture of the confusion matrix; `what` says what its columns are."""
    own, scores = labelled(moments, scores)
    truth, said = [m.label for m in own], named(scores)
    labels = [label for label in SEVEN if label in truth]
    columns = [*labels, *(label for label in SEVEN if label in said and label not in labels)]
    columns += ["none"] * (None in said)
    matrix = np.zeros((len(labels), len(columns)), np.int64)
    for label, word in zip(truth, said, strict=True):
        matrix[labels.index(str(label)), columns.index(word or "none")] += 1
    with atomic_open(path, "wb") as file:
        file.write(confusion_picture(matrix, labels, columns, title, what))
