"""95 % intervals by resampling speakers, and paired differences between two systems.

Clips of one speaker are not independent, so speakers are drawn with replacement, each with all of its clips
(Efron & Tibshirani 1993, percentile interval; cluster bootstrap). Every score is a function of sums over
clips, so a thousand resamples are one matrix product: (resamples, clusters) times (clusters, sums).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aligncap.errors import UserError
from aligncap.manifest import Utterance

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Interval = dict[str, float | None]

FEW = 10  # fewer clusters than this make a coarse interval, usually too narrow
_CELLS = 4_000_000  # of the matrix of draws held at a time


@dataclass(frozen=True)
class Statistic:
    """A score made of sums over clips: `score(sums.sum(axis=0))`.

    `sums` is (clips, k); `score` takes (..., k) and gives (...).
    """

    sums: Floats
    score: Callable[[Floats], Floats]


def mean(values: Floats) -> Statistic:
    """The mean of one value a clip (clips,)."""
    return Statistic(
        np.column_stack([values, np.ones(len(values))]), lambda sums: sums[..., 0] / sums[..., 1]
    )


@dataclass(frozen=True)
class Clusters:
    """What is drawn: `index[i]` is the cluster of clip i, 0 to `count` - 1; `note` says so in words."""

    index: Ints
    count: int
    speakers: int
    unknown: int
    note: str


def clusters_of(utterances: Sequence[Utterance]) -> Clusters:
    """Speakers as clusters; clips of unknown speaker, and those of a lone speaker, stand for themselves."""
    names = [None if u.speaker is None else (u.corpus, u.speaker) for u in utterances]
    speakers = len({name for name in names if name is not None})
    unknown = names.count(None)
    if speakers < 2 and not (speakers and unknown):
        note = "clips (speakers unknown)" if not speakers else "clips (one speaker only)"
        return Clusters(np.arange(len(names)), len(names), speakers, unknown, note)
    number: dict[object, int] = {}
    index = [
        number.setdefault(place if name is None else name, len(number)) for place, name in enumerate(names)
    ]
    note = f"{speakers} speakers" + (f" and {unknown} clips of unknown speaker" if unknown else "")
    if len(number) < FEW:
        note += f"; fewer than {FEW}: a coarse interval, likely too narrow"
    return Clusters(np.array(index, dtype=np.int64), len(number), speakers, unknown, note)


def _draws(clusters: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each cluster is drawn in each resample, in blocks of (some resamples, clusters)."""
    rng = np.random.default_rng(seed)
    block = max(1, _CELLS // clusters)
    for done in range(0, resamples, block):
        rows = min(block, resamples - done)
        drawn = rng.integers(0, clusters, (rows, clusters)) + np.arange(rows)[:, None] * clusters
        yield np.bincount(drawn.ravel(), minlength=rows * clusters).reshape(rows, clusters).astype(np.float64)


def _resampled(
    statistics: Sequence[Mapping[str, Statistic]], clusters: Clusters, resamples: int, seed: int
) -> list[dict[str, Floats]]:
    """Scores (resamples,) of each system by name, from the same draws."""
    if resamples < 1:
        raise UserError(f"resamples is {resamples}; at least 1 is needed, 1000 is usual")
    parts = [statistic.sums for system in statistics for statistic in system.values()]
    flat = np.concatenate(parts, axis=1)
    by_cluster = np.zeros((clusters.count, flat.shape[1]))
    np.add.at(by_cluster, clusters.index, flat)
    sums = np.concatenate([draw @ by_cluster for draw in _draws(clusters.count, resamples, seed)])
    result, at = [], 0
    for system in statistics:
        scores = {}
        for name, statistic in system.items():
            width = statistic.sums.shape[1]
            with np.errstate(divide="ignore", invalid="ignore"):
                scores[name] = statistic.score(sums[:, at : at + width])
            at += width
        result.append(scores)
    return result


def _bounds(scores: Floats) -> tuple[float | None, float | None]:
    scores = scores[np.isfinite(scores)]
    if not len(scores):
        return None, None
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)


def intervals(
    statistics: Mapping[str, Statistic], clusters: Clusters, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """Value and 95 % interval of each statistic: {"name": {"value", "low", "high"}}."""
    drawn = _resampled([statistics], clusters, resamples, seed)[0]
    result: dict[str, Interval] = {}
    for name, statistic in statistics.items():
        low, high = _bounds(drawn[name])
        result[name] = {"value": float(statistic.score(statistic.sums.sum(axis=0))), "low": low, "high": high}
    return result


def paired_differences(
    first: Mapping[str, Statistic],
    second: Mapping[str, Statistic],
    clusters: Clusters,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Second minus first on the same clips: {"name": {"value", "low", "high", "p"}}.

    Both systems are scored on the same draws, which takes out what speakers have in common. `p` is the
    two-sided share of resamples on the other side of zero (twice the smaller tail, at most 1 and at least
    1/resamples).
    """
    a, b = _resampled([first, second], clusters, resamples, seed)
    result: dict[str, Interval] = {}
    for name in first:
        gap = b[name] - a[name]
        gap = gap[np.isfinite(gap)]
        low, high = _bounds(gap)
        values = [float(s[name].score(s[name].sums.sum(axis=0))) for s in (first, second)]
        tail = min(np.mean(gap <= 0), np.mean(gap >= 0)) if len(gap) else 0.5
        result[name] = {
            "value": values[1] - values[0],
            "low": low,
            "high": high,
            "p": float(min(1, max(2 * tail, 1 / resamples))),
        }
    return result
