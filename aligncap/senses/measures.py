"""Several senses on the same moments: how right each is, in all and by emotion, in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from aligncap.senses.moments import SEVEN, Moment
from aligncap.senses.outcome import TITLES, named, statistics_of, units_of
from aligncap.utils.drawing import confusion_picture
from aligncap.utils.errors import UserErrors
from aligncap.utils.io import Row, atomic_open
from aligncap.utils.statistics import intervals, paired_differences, ratio


def refuse_absent(*paths: str | None) -> None:
    """Raises UserErrors: every path that is given and leads to no file."""
    if absent := [path for path in paths if path and not Path(path).is_file()]:
        raise UserErrors([f"{path}: no such file" for path in absent])


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
    note = next(iter(rows.values()))["units"]
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
