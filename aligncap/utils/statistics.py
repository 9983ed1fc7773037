"""95 % intervals by resampling speakers, and paired differences between two systems.

Clips of one speaker are not independent, so speakers are drawn with replacement, each with all of its clips
(Efron & Tibshirani 1993, percentile interval; cluster bootstrap). Every score is a function of sums over
clips, so a thousand resamples are one matrix product: (resamples, clusters) times (clusters, sums).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from aligncap.data.manifest import Utterance
from aligncap.utils.errors import UserError

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


MOST_CLIPS = 4000  # beyond it the overall tau gets no interval: a matrix of clips by clips is needed


@dataclass(frozen=True)
class Scored:
    """Captions scored by two judges, sorted by clip: `starts` are the first places of the clips."""

    a: Floats
    b: Floats
    starts: Ints

    @property
    def clips(self) -> int:
        return len(self.starts)


def starts_of(ids: Sequence[str]) -> Ints:
    """First place of each clip in a list sorted by clip."""
    return np.array([i for i, name in enumerate(ids) if not i or name != ids[i - 1]], dtype=np.int64)


def draws(clips: int, resamples: int, seed: int) -> Floats:
    """How often each clip is drawn in each resample: (resamples, clips)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(clips, np.full(clips, 1 / clips), size=resamples).astype(np.float64)


def estimate(value: float, resampled: Floats, why: str) -> dict[str, Any]:
    """{"value", "low", "high", "note"}: 95 % percentile interval; None and the reason where undefined."""
    if not np.isfinite(value):
        return {"value": None, "low": None, "high": None, "note": why}
    finite = resampled[np.isfinite(resampled)]
    low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (np.nan, np.nan)
    bounds = [float(x) if np.isfinite(x) else None for x in (low, high)]
    undefined = 1 - len(finite) / max(1, len(resampled))
    note = f"undefined in {undefined:.0%} of resamples" if undefined > 0.005 else ""
    return {"value": float(value), "low": bounds[0], "high": bounds[1], "note": note}


def pair_counts(scored: Scored) -> Floats:
    """Pairs of captions within each clip: (clips, 5), columns as below.

    Ordered alike, ordered the other way, tied by A alone, tied by B alone, tied by both.
    """
    counts = np.zeros((scored.clips, 5))
    for clip, (start, end) in enumerate(_spans(scored)):
        i, j = np.triu_indices(end - start, 1)
        a = np.sign(scored.a[start:end][i] - scored.a[start:end][j])
        b = np.sign(scored.b[start:end][i] - scored.b[start:end][j])
        counts[clip] = [
            (a * b > 0).sum(),
            (a * b < 0).sum(),
            ((a == 0) & (b != 0)).sum(),
            ((a != 0) & (b == 0)).sum(),
            ((a == 0) & (b == 0)).sum(),
        ]
    return counts


def agreement_of(counts: Floats) -> Floats:
    """Share of pairs ordered alike, of those that neither judge ties; (..., 5) to (...)."""
    return _ratio(counts[..., 0], counts[..., 0] + counts[..., 1])


def agreement_with_ties(counts: Floats) -> Floats:
    """Share ordered alike, of the pairs that B orders; a tie of A's counts half, as a coin would do."""
    return _ratio(counts[..., 0] + counts[..., 2] / 2, counts[..., :3].sum(-1))


def clip_taus(counts: Floats) -> Floats:
    """Kendall's tau-b within each clip; NaN where a judge scores all captions of the clip alike."""
    alike, other, tied_a, tied_b = (counts[:, k] for k in range(4))
    return _ratio(alike - other, np.sqrt((alike + other + tied_b) * (alike + other + tied_a)))


def mean_clip_tau(taus: Floats, drawn: Floats) -> tuple[float, Floats]:
    """Mean tau-b of the clips that have one, and the same of each resample."""
    has = np.isfinite(taus)
    values = np.where(has, taus, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(_ratio(values.sum(), np.float64(has.sum()))), _ratio(drawn @ values, drawn @ has)


def overall_tau(scored: Scored, drawn: Floats) -> tuple[float, Floats]:
    """Kendall's tau-b over all captions, and the same of each resample (empty beyond MOST_CLIPS).

    tau-b of a resample is w'Sw / sqrt(w'Aw · w'Bw): S, A and B sum sign(a_i - a_j) sign(b_i - b_j), and the
    pairs that A and that B do not tie, over the captions of two clips; w counts how often each clip is drawn.
    """
    value = float(kendalltau(scored.a, scored.b).statistic) if len(scored.a) > 1 else np.nan
    if scored.clips > MOST_CLIPS:
        return value, np.empty(0)
    sums = [np.zeros((scored.clips, scored.clips)) for _ in range(3)]
    for clip, (start, end) in enumerate(_spans(scored)):
        a = np.sign(scored.a[start:end, None] - scored.a)
        b = np.sign(scored.b[start:end, None] - scored.b)
        for matrix, signs in zip(sums, (a * b, np.abs(a), np.abs(b)), strict=True):
            matrix[clip] = np.add.reduceat(signs.sum(0), scored.starts)
    s, in_a, in_b = (((drawn @ matrix) * drawn).sum(1) for matrix in sums)
    return value, _ratio(s, np.sqrt(in_a * in_b))


def kappa_sums(scored: Scored) -> Floats:
    """Sums over each clip that `kappa_of` needs, of scores rounded half up to integers: (clips, 6)."""
    a, b = (np.floor(x + 0.5) for x in (scored.a, scored.b))
    columns = np.column_stack([np.ones_like(a), a, b, a * a, b * b, (a - b) ** 2])
    return np.add.reduceat(columns, scored.starts, axis=0)


def kappa_of(sums: Floats) -> Floats:
    """Quadratic-weighted kappa (Cohen 1968); (..., 6) to (...).

    1 - mean (a - b)² / mean (a - b')², b' being B's score of any caption; NaN where the latter is 0.
    """
    n, a, b, aa, bb, squares = (sums[..., k] for k in range(6))
    return 1 - _ratio(squares * n, (aa + bb) * n - 2 * a * b)


def _ratio(part: Any, whole: Any) -> Floats:
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole > 0)


def _spans(scored: Scored) -> list[tuple[int, int]]:
    starts = scored.starts.tolist()
    return list(zip(starts, [*starts[1:], len(scored.a)], strict=True))
