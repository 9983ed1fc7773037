"""95 % intervals by resampling speakers, paired differences between two systems, UAR, and judges' agreement.

Clips of one speaker are not independent, so speakers are drawn with replacement, each with all of its clips
(Efron & Tibshirani 1993, percentile interval; cluster bootstrap). Every score is a function of sums over
clips, so a thousand resamples are one matrix product: (resamples, clusters) times (clusters, sums).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, t

from aligncap.utils.errors import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Interval = dict[str, float | None]

FEW = 10  # fewer clusters than this make a coarse interval, usually too narrow
_CELLS = 4_000_000  # of the matrix of draws held at a time


class Spoken(Protocol):
    """A clip, such as an utterance of a manifest; speakers of two corpora are two."""

    corpus: str
    speaker: str | None


@dataclass(frozen=True)
class Statistic:
    """A score made of sums over clips: `score(sums.sum(axis=0))`.

    `sums` is (clips, k); `score` takes (..., k) and gives (...).
    """

    sums: Floats
    score: Callable[[Floats], Floats]

    @property
    def value(self) -> float:
        """The score of all clips."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(self.score(self.sums.sum(axis=0)))


Run = Mapping[str, Statistic]  # what was scored of one training seed, by the name of the score


def mean(values: Floats) -> Statistic:
    """The mean of one value a clip (clips,)."""
    return ratio(values, np.ones(len(values)))


def ratio(above: Floats, below: Floats) -> Statistic:
    """Sum over clips of `above` by that of `below`, (clips,) each."""
    return Statistic(np.column_stack([above, below]), lambda sums: sums[..., 0] / sums[..., 1])


def recall_sums(truth: Sequence[object], said: Sequence[object], labels: Sequence[object]) -> Floats:
    """What `uar` needs of each clip, (clips, 2 x labels): named rightly as each label, and of each label."""
    clips = np.array([[own == label for label in labels] for own in truth], dtype=np.float64)
    right = np.array([[own == other] for own, other in zip(truth, said, strict=True)])
    return np.concatenate([clips * right, clips], axis=1)


def uar(sums: Floats) -> Floats:
    """Unweighted average recall of sums of `recall_sums`, (..., 2 x labels) to (...).

    The mean over labels of the share of their clips that are named rightly. Labels without clips are left
    out; NaN where none has any.

    >>> float(uar(np.array([3, 1, 4, 2])))  # 3 of 4 and 1 of 2
    0.625
    """
    hits, total = np.split(np.asarray(sums, dtype=np.float64), 2, axis=-1)
    recall = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
    return _ratio(recall.sum(axis=-1), (total > 0).sum(axis=-1))


def over_seeds(runs: Sequence[Run]) -> dict[str, Statistic]:
    """One statistic a score: the mean over training seeds of each seed's score, all on the same clips.

    This is the one way in which seeds are pooled. A resample scores every seed on the same drawn speakers and
    takes the mean, so an interval tells what other speakers would change, and not what other seeds would.
    Scores that a run lacks are left out.
    """
    return {name: averaged([run[name] for run in runs]) for name in runs[0] if all(name in r for r in runs)}


def averaged(parts: Sequence[Statistic]) -> Statistic:
    """The mean of several scores of the same clips; each keeps sums of its own."""
    if len(parts) == 1:
        return parts[0]
    ends = np.cumsum([part.sums.shape[1] for part in parts])[:-1]

    def score(sums: Floats) -> Floats:
        pieces = np.split(sums, ends, axis=-1)
        scores = [part.score(piece) for part, piece in zip(parts, pieces, strict=True)]
        return np.asarray(np.mean(scores, axis=0))

    return Statistic(np.concatenate([part.sums for part in parts], axis=1), score)


def pooled(runs: Sequence[Run], clusters: Clusters, *, resamples: int, seed: int) -> dict[str, Interval]:
    """`intervals` of `over_seeds`, with "spread" and "runs", the number of seeds, in each cell."""
    cells = intervals(over_seeds(runs), clusters, resamples=resamples, seed=seed)
    for name, cell in cells.items():
        cell |= {"spread": spread([run[name].value for run in runs]), "runs": len(runs)}
    return cells


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds (divided by n - 1); None of one seed, or where one has no score."""
    return float(np.std(values, ddof=1)) if len(values) > 1 and np.isfinite(values).all() else None


def jackknife(value: float, without: Floats) -> Interval:
    """A share that is no sum over clips, and its 95 % interval by the jackknife (± t · standard error).

    `without` is the share without each cluster, (clusters,), NaN where there is none.
    """
    without = without[np.isfinite(without)]
    n = len(without)
    if n < 2:
        return {"value": value, "low": None, "high": None}
    reach = float(t.ppf(0.975, n - 1) * np.sqrt((n - 1) * without.var()))
    return {"value": value, "low": max(0.0, value - reach), "high": min(1.0, value + reach)}


@dataclass(frozen=True)
class Clusters:
    """What is drawn: `index[i]` is the cluster of clip i, 0 to `count` - 1; `note` says so in words."""

    index: Ints
    count: int
    speakers: int
    unknown: int
    note: str


def clusters_of(clips: Sequence[Spoken]) -> Clusters:
    """Speakers as clusters; clips of unknown speaker, and those of a lone speaker, stand for themselves."""
    names = [None if u.speaker is None else (u.corpus, u.speaker) for u in clips]
    speakers = len({name for name in names if name is not None})
    unknown = names.count(None)
    if speakers < 2 and not (speakers and unknown):
        note = "clips (speakers unknown)" if not speakers else "clips (one speaker only)"
        return Clusters(np.arange(len(names)), len(names), speakers, unknown, note)
    number: dict[object, int] = {}
    keys = (place if name is None else name for place, name in enumerate(names))
    index = [number.setdefault(key, len(number)) for key in keys]
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
    if not parts:
        return [{} for _ in statistics]
    flat = np.concatenate(parts, axis=1)
    by_cluster = np.zeros((clusters.count, flat.shape[1]))
    np.add.at(by_cluster, clusters.index, flat)
    sums = np.concatenate([draw @ by_cluster for draw in _draws(clusters.count, resamples, seed)])
    pieces = iter(np.split(sums, np.cumsum([part.shape[1] for part in parts])[:-1], axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return [{name: s.score(next(pieces)) for name, s in system.items()} for system in statistics]


def _cell(value: float, scores: Floats) -> Interval:
    """Value and percentile interval; None for what is no number, such as a share of nothing."""
    scores = scores[np.isfinite(scores)]
    low, high = np.quantile(scores, [0.025, 0.975]).tolist() if len(scores) else (None, None)
    return {"value": value if np.isfinite(value) else None, "low": low, "high": high}


def intervals(
    statistics: Run, clusters: Clusters, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """Value and 95 % interval of each statistic: {"name": {"value", "low", "high"}}, None where undefined."""
    (drawn,) = _resampled([statistics], clusters, resamples, seed)
    return {name: _cell(statistic.value, drawn[name]) for name, statistic in statistics.items()}


def paired_differences(
    first: Run, second: Run, clusters: Clusters, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """Second minus first on the same clips: {"name": {"value", "low", "high", "p"}}.

    Only of scores that both have. Both systems are scored on the same draws, which takes out what speakers
    have in common. `p` is the two-sided share of resamples on the other side of zero (twice the smaller tail,
    at most 1 and at least 1/resamples).
    """
    both = [name for name in first if name in second]
    systems = [{name: system[name] for name in both} for system in (first, second)]
    a, b = _resampled(systems, clusters, resamples, seed)
    result: dict[str, Interval] = {}
    for name in both:
        gap = b[name] - a[name]
        gap = gap[np.isfinite(gap)]
        tail = min(np.mean(gap <= 0), np.mean(gap >= 0)) if len(gap) else 0.5
        result[name] = _cell(second[name].value - first[name].value, gap)
        result[name]["p"] = float(min(1, max(2 * tail, 1 / resamples)))
    return result


# ---- agreement of two judges

MOST_CLIPS = 4000  # clips beyond which the overall tau gets no interval: each resample sorts all captions


def noted_intervals(
    statistics: Run, clusters: Clusters, why: str, *, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """`intervals` with a "note": `why` where a value is undefined, or in how many resamples it is."""
    (drawn,) = _resampled([statistics], clusters, resamples, seed)
    return {name: _noted(statistic.value, drawn[name], why) for name, statistic in statistics.items()}


def _noted(value: float, drawn: Floats, why: str) -> dict[str, Any]:
    if not np.isfinite(value):
        return {"value": None, "low": None, "high": None, "note": why}
    undefined = np.mean(~np.isfinite(drawn)) if len(drawn) else 0.0
    note = f"undefined in {undefined:.0%} of resamples" if undefined > 0.005 else ""
    return {**_cell(value, drawn), "note": note}


def tau_b(a: Floats, b: Floats) -> float:
    """Kendall's tau-b of two judges' scores (captions,); NaN where a judge ties all."""
    return float(kendalltau(a, b).statistic) if len(a) > 1 else np.nan


def overall_tau(
    a: Floats, b: Floats, clusters: Clusters, why: str, *, resamples: int, seed: int
) -> dict[str, Any]:
    """Kendall's tau-b over all captions, (captions,) each, with an interval up to MOST_CLIPS clusters."""
    value = tau_b(a, b)
    if not np.isfinite(value):
        return _noted(value, np.empty(0), why)
    if clusters.count > MOST_CLIPS:
        note = f"no interval for more than {MOST_CLIPS} clips"
        return {"value": value, "low": None, "high": None, "note": note}
    times = (row[clusters.index] for rows in _draws(clusters.count, resamples, seed) for row in rows)
    picked = (np.repeat(np.arange(len(a)), count.astype(np.int64)) for count in times)
    return _noted(value, np.array([tau_b(a[places], b[places]) for places in picked]), why)


def weighted_kappa(a: Floats, b: Floats) -> Statistic:
    """Quadratic-weighted kappa (Cohen 1968) of two judges' scores (captions,), rounded half up.

    1 - mean (a - b)² / mean (a - b')², b' being B's score of any caption; NaN where the latter is 0. The same
    as `sklearn.metrics.cohen_kappa_score` with weights="quadratic", which takes seconds for a thousand
    resamples; sums take milliseconds.
    """
    a, b = (np.floor(x + 0.5) for x in (a, b))

    def score(sums: Floats) -> Floats:
        n, a, b, squares, apart = (sums[..., k] for k in range(5))
        return 1 - _ratio(apart * n, squares * n - 2 * a * b)

    return Statistic(np.column_stack([np.ones_like(a), a, b, a * a + b * b, (a - b) ** 2]), score)


def _ratio(part: Any, whole: Any) -> Floats:
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole > 0)
