"""Intervals and tests whose unit is the speaker; UAR; judges' agreement.

Clips of one speaker are not independent, so speakers are left out (jackknife), or exchanged between two
systems (sign-flip test), each with all of its clips. Every score is a function of sums over clips, so both
need sums over speakers only. Level and coverage: docs/statistics.md, tests/utils/test_statistics.py.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aligncap.utils.io import Row

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Interval = dict[str, float | None]
K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

FEWEST = 12  # speakers below which nothing is claimed
EXCHANGES = 9999  # of speakers that are tried: all that there are, or so many random ones
BINS = 10  # of the calibration error
_CELLS = 4_000_000  # of the matrix of exchanges held at a time


class Spoken(Protocol):
    """A clip, such as an utterance of a manifest; speakers of two corpora are two."""

    corpus: str
    speaker: str | None


@dataclass(frozen=True)
class Statistic:
    """A score made of sums over clips: `score(sums.sum(axis=0))`.

    `sums` is (clips, k); `score` takes (..., k) and gives (...), between 0 and `top`, which may be infinite;
    None: it may be negative.
    """

    sums: Floats
    score: Callable[[Floats], Floats]
    top: float | None = None

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
    top = None if (above < 0).any() else 1.0 if (above <= below).all() else np.inf
    return Statistic(np.column_stack([above, below]), lambda sums: sums[..., 0] / sums[..., 1], top)


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


def calibration_error(confidence: Floats, right: Floats, bins: int = BINS) -> float:
    """Expected calibration error: of bins by confidence, the mean of |mean confidence - accuracy|, by clips.

    Bins have equal mass; clips of one confidence share a bin. NaN without clips.

    >>> calibration_error(np.array([0.9, 0.9, 0.9, 0.9]), np.array([1, 1, 1, 0]))  # 0.9 sure, 0.75 right
    0.15
    """
    from scipy.stats import rankdata

    if not len(confidence):
        return float("nan")
    place = np.floor((rankdata(confidence) - 0.5) / len(confidence) * bins).astype(int)
    gaps = np.bincount(place, np.asarray(confidence) - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def chance_p(
    truth: Sequence[object], said: Sequence[object], groups: Sequence[object], tries: int = 4999
) -> float:
    """One-sided p of a UAR at least as high if what is said did not depend on the label.

    Labels change places within a group (a speaker), `tries` times at random: exact where, of a group's clips,
    none is told from another by its label, however few the speakers are. It says nothing of other speakers.
    Groups of one clip change places among each other.
    """
    names = sorted(set(truth), key=str)
    own = np.array([names.index(label) for label in truth])
    answers = np.array([names.index(label) if label in names else -1 for label in said])
    sizes = {group: list(groups).count(group) for group in set(groups)}
    number = {group: place for place, group in enumerate(g for g, n in sizes.items() if n > 1)}
    index = np.array([number.get(group, len(number)) for group in groups])
    weight = 1 / np.bincount(own, minlength=len(names))
    score = float(weight[own[own == answers]].sum())
    rng, order = np.random.default_rng(0), np.argsort(index, kind="stable")
    places, own, answers = index[order], own[order], answers[order]
    large, rows = 1, max(1, _CELLS // len(own))
    for done in range(0, tries, rows):
        draw = rng.random((min(rows, tries - done), len(own)))
        moved = own[np.argsort(places + draw, axis=1)]  # each group keeps its places
        found = np.where(moved == answers, weight[moved], 0.0).sum(axis=1)
        large += int((found >= score - 1e-9).sum())
    return large / (1 + tries)


def over_seeds(runs: Sequence[Run]) -> dict[str, Statistic]:
    """One statistic a score: the mean over training seeds of each seed's score, all on the same clips.

    This is the one way in which seeds are pooled. Leaving out a speaker leaves it out of every seed, so an
    interval tells what other speakers would change, and not what other seeds would. Scores that a run lacks
    are left out.
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

    tops = [part.top for part in parts if part.top is not None]
    top = max(tops) if len(tops) == len(parts) else None
    return Statistic(np.concatenate([part.sums for part in parts], axis=1), score, top)


def pooled(runs: Sequence[Run], clusters: Clusters) -> dict[str, Interval]:
    """`intervals` of `over_seeds`, with "spread" and "runs", the number of seeds, in each cell."""
    cells = intervals(over_seeds(runs), clusters)
    for name, cell in cells.items():
        cell |= {"spread": spread([run[name].value for run in runs]), "runs": len(runs)}
    return cells


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds (divided by n - 1); None of one seed, or where one has no score."""
    return float(np.std(values, ddof=1)) if len(values) > 1 and np.isfinite(values).all() else None


@dataclass(frozen=True)
class Clusters:
    """The units: `index[i]` is the cluster of clip i, 0 to `count` - 1; `note` says so in words."""

    index: Ints
    count: int
    speakers: int
    unknown: int
    note: str

    def sums(self, values: Floats) -> Floats:
        """Sums over the clips of each cluster, (clips, k) to (clusters, k)."""
        from scipy.sparse import csr_array  # scipy is not needed to train

        clips = np.arange(len(self.index))
        shape = (self.count, len(clips))
        return np.asarray(csr_array((np.ones(len(clips)), (self.index, clips)), shape) @ values)


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
    if speakers < FEWEST:
        note += f"; fewer than {FEWEST}: no claim"
    return Clusters(np.array(index, dtype=np.int64), len(number), speakers, unknown, note)


# ---- intervals


def intervals(statistics: Run, clusters: Clusters) -> dict[str, Interval]:
    """Value and 95 % interval of each statistic: {"name": {"value", "low", "high"}}, None where undefined."""
    return {
        name: jackknife(statistic.value, *left_out(statistic, clusters), statistic.top)
        for name, statistic in statistics.items()
    }


def left_out(statistic: Statistic, clusters: Clusters) -> tuple[Floats, Floats]:
    """The score without each cluster, and the number of its clips that the score counts, (clusters,) each."""
    counts = (statistic.sums != 0).any(axis=1)
    sums = clusters.sums(np.column_stack([statistic.sums, counts]))
    with np.errstate(divide="ignore", invalid="ignore"):
        return statistic.score((sums.sum(axis=0) - sums)[:, :-1]), sums[:, -1]


def error_of(without: Floats, clips: Floats) -> tuple[Floats, float]:
    """Standard error by the jackknife, and its degrees of freedom; NaN where a single cluster decides.

    Speakers of few clips say less about the error than those of many, so the degrees are one less than the
    effective number of clusters, (sum of clips)² by the sum of squares (Kish): n - 1 where all are as large.
    """
    n = len(without)
    if n < 2 or not np.isfinite(without).all():
        return np.array(np.nan), np.nan
    return np.sqrt((n - 1) * without.var(axis=0)), max(1.0, float(clips.sum() ** 2 / (clips**2).sum()) - 1)


def jackknife(value: float, without: Floats, clips: Floats, top: float | None = None) -> Interval:
    """95 % interval by t · standard error of `error_of`; None where undefined.

    Of a score between 0 and `top` on the scale of log(x / (1 - x / top)), where its error is the error by the
    slope (delta method): the interval stays within, and covers skewed scores better.
    """
    from scipy.stats import t

    if not np.isfinite(value):
        return {"value": None, "low": None, "high": None}
    error, freedom = error_of(without, clips)
    if np.isnan(freedom):
        return {"value": value, "low": None, "high": None}
    reach = float(t.ppf(0.975, freedom) * error)
    if top is None or not 0 < value < top:
        return {"value": value, "low": value - reach, "high": value + reach}
    rest = 1 - value / top
    ends = [value / rest * np.exp(side * min(30.0, reach / (value * rest))) for side in (-1, 1)]
    low, high = (float(end / (1 + end / top)) for end in ends)
    return {"value": value, "low": low, "high": high}


def bootstrap(
    values: Floats, clusters: Clusters, score: Callable[[Floats], float], draws: int = 999
) -> Interval:
    """Value and 95 % interval of a score that jumps, such as the layer at which a mean curve turns.

    The jackknife needs scores that are smooth in the means; here clusters are drawn with replacement, each
    with all of its clips, and the interval is between percentiles (Efron 1979). None of fewer than two
    clusters; draws without a score are left out.

    Args:
        values: (clips, k); score: of their mean (k,), NaN where it is undefined.
    """
    sums = clusters.sums(np.column_stack([values, np.ones(len(values))]))
    value = float(score(values.mean(axis=0)))
    if clusters.count < 2 or not np.isfinite(value):
        return {"value": value if np.isfinite(value) else None, "low": None, "high": None}
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(clusters.count, np.full(clusters.count, 1 / clusters.count), draws) @ sums
    found = np.array([score(row[:-1] / row[-1]) for row in drawn])
    low, high = np.percentile(found[np.isfinite(found)], [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high)}


# ---- tests


def paired_differences(
    first: Run, second: Run, clusters: Clusters, null: Mapping[str, float] | None = None
) -> dict[str, Interval]:
    """Second minus first on the same clips: {"name": {"value", "low", "high", "p", "units"}}.

    Only of scores that both have. `p` is two-sided, of `exchanged`; of a score in `null`, that the difference
    is this number (a margin), and of other numbers of seeds, of the t test to which the interval belongs. It
    is None for fewer than FEWEST "units", the speakers whose clips count.
    """
    from scipy.stats import t

    result: dict[str, Interval] = {}
    for name in (name for name in first if name in second):
        a, b = first[name], second[name]
        gap = difference(a, b)
        without, clips = left_out(gap, clusters)
        cell = jackknife(b.value - a.value, without, clips)
        units = min(clusters.speakers, int(np.count_nonzero(clips)))
        cell |= {"p": None, "units": units}
        if units >= FEWEST and cell["low"] is not None and cell["value"] is not None:
            margin = (null or {}).get(name, 0.0)
            if not margin and a.sums.shape == b.sums.shape:
                cell["p"] = float(exchanged(gap, clusters))
            else:
                error, freedom = error_of(without, clips)
                away = abs(cell["value"] - margin)
                cell["p"] = float(2 * t.sf(away / error, freedom)) if error else float(not away)
        result[name] = cell
    return result


def difference(a: Statistic, b: Statistic) -> Statistic:
    """b - a, of the sums of both side by side."""
    width = a.sums.shape[1]
    both = np.concatenate([a.sums, b.sums], axis=1)
    return Statistic(both, lambda sums: b.score(sums[..., width:]) - a.score(sums[..., :width]))


def exchanged(gap: Statistic, clusters: Clusters) -> Floats:
    """Two-sided p of a `difference` of two systems whose sums are equally many.

    The share of exchanges of the two systems' captions, speaker by speaker, that make a difference at least
    as large: exact where it makes no difference which system spoke (sign-flip test). All exchanges,
    or the data as they are and EXCHANGES random ones.
    """
    sums = clusters.sums(gap.sums)
    total, (a, b) = sums.sum(axis=0), np.split(sums, 2, axis=1)
    moved = np.concatenate([b - a, a - b], axis=1)
    moved = moved[moved.any(axis=1)]
    if not len(moved):
        return np.ones(())
    large, tried = np.zeros(()), 0
    with np.errstate(divide="ignore", invalid="ignore"):
        least = np.abs(gap.score(total)) - 1e-12  # a hair's breadth for sums added in another order
        for block in _exchanges(len(moved)):
            large = large + (~(np.abs(gap.score(total + block @ moved)) < least)).sum(axis=0)
            tried += len(block)
    return large / tried if 2 ** (len(moved) - 1) <= EXCHANGES else (1 + large) / (1 + tried)


def _exchanges(units: int) -> Iterator[Floats]:
    """Which units change places, (some exchanges, units); one and the exchange of all others are the same."""
    if (number := 2 ** (units - 1)) <= EXCHANGES:
        yield (np.arange(number)[:, None] >> np.arange(units) & 1).astype(np.float64)
        return
    rng, rows = np.random.default_rng(0), max(1, _CELLS // units)
    for done in range(0, EXCHANGES, rows):
        yield rng.integers(0, 2, (min(rows, EXCHANGES - done), units)).astype(np.float64)


def holm(ps: Mapping[K, float]) -> dict[K, float]:
    """Each p corrected for their number (Holm 1979).

    >>> holm({"a": 0.01, "b": 0.04})
    {'a': 0.02, 'b': 0.04}
    """
    least, corrected = 0.0, {}
    for place, name in enumerate(sorted(ps, key=lambda name: ps[name])):
        least = max(least, min(1.0, ps[name] * (len(ps) - place)))
        corrected[name] = least
    return {name: corrected[name] for name in ps}


def correct(cells: Mapping[K, Interval]) -> None:
    """Add "p_holm" to each cell of a table: Holm's p over all that have one, None elsewhere."""
    corrected = holm({key: p for key, cell in cells.items() if (p := cell["p"]) is not None})
    for key, cell in cells.items():
        cell["p_holm"] = corrected.get(key)


def compared(
    systems: Mapping[str, T],
    name: str,
    against: str | None,
    gaps_of: Callable[[T, T], dict[str, Interval]],
) -> dict[str, dict[str, Interval]]:
    """Differences of `name` to each other system, or of each other to `against`, with Holm's p over all.

    Args:
        gaps_of: second minus first, by score.

    Returns:
        {"one − two": {score: difference}}.
    """
    base, gaps = against or name, {}
    for rival in systems:
        if rival != base:
            one, two = (rival, base) if against else (base, rival)
            gaps[f"{one} − {two}"] = gaps_of(systems[two], systems[one])
    correct({(pair, score): cell for pair, cells in gaps.items() for score, cell in cells.items()})
    return gaps


def sure(p: float | None) -> bool:
    """Whether there is a p, and it is below 0.05."""
    return p is not None and p < 0.05


# ---- agreement of two judges

GROUPS = 200  # of clips that are left out in turn for the overall tau, which sorts all captions each time


def noted_intervals(statistics: Run, clusters: Clusters, why: str) -> dict[str, Row]:
    """`intervals` with a "note": `why` where a value is undefined, or that its interval is."""
    return {name: _noted(cell, why) for name, cell in intervals(statistics, clusters).items()}


def _noted(cell: Interval, why: str) -> Row:
    note = why if cell["value"] is None else "rests on one clip" if cell["low"] is None else ""
    return {**cell, "note": note}


def tau_b(a: Floats, b: Floats) -> float:
    """Kendall's tau-b of two judges' scores (captions,); NaN where a judge ties all."""
    from scipy.stats import kendalltau

    return float(kendalltau(a, b).statistic) if len(a) > 1 else np.nan


def overall_tau(a: Floats, b: Floats, clusters: Clusters, why: str) -> Row:
    """Kendall's tau-b over all captions, (captions,) each; clusters are left out in up to GROUPS groups."""
    value, group = tau_b(a, b), clusters.index % GROUPS
    groups = range(min(GROUPS, clusters.count) if np.isfinite(value) else 0)
    without = np.array([tau_b(a[group != g], b[group != g]) for g in groups])
    return _noted(jackknife(value, without, np.bincount(group).astype(np.float64)), why)


def weighted_kappa(a: Floats, b: Floats) -> Statistic:
    """Quadratic-weighted kappa (Cohen 1968) of two judges' scores (captions,), rounded half up.

    1 - mean (a - b)² / mean (a - b')², b' being B's score of any caption; NaN where the latter is 0. The same
    as `sklearn.metrics.cohen_kappa_score` with weights="quadratic".
    """
    a, b = (np.floor(x + 0.5) for x in (a, b))

    def score(sums: Floats) -> Floats:
        n, a, b, squares, apart = (sums[..., k] for k in range(5))
        return 1 - _ratio(apart * n, squares * n - 2 * a * b)

    return Statistic(np.column_stack([np.ones_like(a), a, b, a * a + b * b, (a - b) ** 2]), score)


def _ratio(part: ArrayLike, whole: ArrayLike) -> Floats:
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole > 0)
