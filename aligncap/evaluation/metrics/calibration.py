"""Whether captions are right as often as they are sure: expected calibration error, accuracy by coverage.

Counted where caption rows have "confidence" (`aligncap caption --confidence`), over the clips with a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aligncap.utils.errors import UserError
from aligncap.utils.io import Row
from aligncap.utils.statistics import BINS, Floats, calibration_error, jackknife

if TYPE_CHECKING:
    from aligncap.evaluation.scoring import Scored

POINTS = 200  # of a curve
METHOD = (
    f"{BINS} bins of equal numbers of clips (equal confidences stay together), over clips with a confidence"
)


def coverage_curve(confidence: Floats, right: Floats, clips: int) -> list[Row]:
    """Accuracy of the most confident captions, [{"least", "coverage", "accuracy"}], from all to fewest.

    A point for each confidence there is, at most POINTS of them, evenly.

    Args:
        confidence, right: of the captions that have a confidence.
        clips: all clips with a label: what `coverage` is a share of.
    """
    order = np.argsort(-np.asarray(confidence), kind="stable")
    sure, hits = np.asarray(confidence)[order], np.cumsum(np.asarray(right, dtype=np.float64)[order])
    ends: list[int] = np.flatnonzero(np.append(sure[1:] < sure[:-1], True)).tolist() if len(sure) else []
    ends = [ends[i * (len(ends) - 1) // (POINTS - 1)] for i in range(POINTS)] if len(ends) > POINTS else ends
    return [
        {"least": float(sure[i]), "coverage": (i + 1) / clips, "accuracy": float(hits[i] / (i + 1))}
        for i in ends
    ][::-1]


def calibration(seeds: Sequence[Scored]) -> Row | None:
    """ "ece" with its interval over speakers, and what it is made of; None where no row has a confidence.

    A caption that leaves the emotion open is counted by its guess. Seeds of a system are one set of clips; a
    speaker is left out of all of them.

    Raises:
        UserError: a confidence is no number from 0 to 1.
    """
    if not any("confidence" in row for scored in seeds for row in scored.rows):
        return None
    sure, right, cluster, clips = [], [], [], 0
    for scored in seeds:
        rename = scored.counted["emotions_renamed"]
        rows = zip(scored.rows, scored.emotions.truth, scored.clusters.index.tolist(), strict=True)
        for row, label, unit in rows:
            clips += label is not None
            value, said = row.get("confidence"), row.get("emotion")
            if value is None or label is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise UserError(f"id {row['id']!r}: confidence {value!r} is no number from 0 to 1")
            sure.append(value)
            right.append(rename.get(said, said) == label)
            cluster.append(unit)
    if not sure:
        return None
    confidence, hits, units = np.array(sure), np.array(right, dtype=np.float64), np.array(cluster)
    number = seeds[0].clusters.count
    kept: list[NDArray[np.bool_]] = [units != unit for unit in range(number)]
    without = np.array([calibration_error(confidence[own], hits[own]) for own in kept])
    sizes = np.bincount(units, minlength=number).astype(np.float64)
    return {
        "ece": jackknife(calibration_error(confidence, hits), without, sizes, 1.0),
        "confidence": float(confidence.mean()),
        "accuracy": float(hits.mean()),
        "clips": len(sure),
        "coverage": len(sure) / clips,
        "curve": coverage_curve(confidence, hits, clips),
        "method": METHOD,
    }
