"""Numbers of a results table: systems with several seeds, resampled together and compared.

Every score is a function of sums over clips (`bootstrap.Statistic`), so that runs of several seeds are one
statistic too: their sums side by side, and the mean of their scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from aligncap.errors import UserError
from aligncap.evaluation.bootstrap import (
    Clusters,
    Floats,
    Statistic,
    clusters_of,
    intervals,
    paired_differences,
)
from aligncap.evaluation.tables import Cell, Difference
from aligncap.manifest import Utterance

Statistics = Mapping[str, Statistic]


def _mean_of_seeds(sums: Floats, parts: Sequence[Callable[[Floats], Floats]]) -> Floats:
    pieces = np.split(sums, len(parts), axis=-1)
    return np.mean([form(piece) for form, piece in zip(parts, pieces, strict=True)], axis=0)


def over_seeds(runs: Sequence[Statistics], keep: Sequence[bool] | None = None) -> dict[str, Statistic]:
    """One statistic a metric: the mean over runs (seeds) of their scores, on the same clips.

    A draw of speakers is so a draw for all seeds at once. `keep` chooses clips. Metrics that a run lacks are
    left out.
    """
    mask = _mask(keep)
    return {
        name: Statistic(
            np.concatenate([run[name].sums[mask] for run in runs], axis=1),
            partial(_mean_of_seeds, parts=[run[name].score for run in runs]),
        )
        for name in runs[0]
        if all(name in run for run in runs) and len({run[name].sums.shape[1] for run in runs}) == 1
    }


def cells(
    runs: Sequence[Statistics],
    utterances: Sequence[Utterance],
    metrics: Sequence[str],
    *,
    keep: Sequence[bool] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Cell]:
    """Mean over seeds with its 95 % interval (speakers) and the spread over seeds; metrics by name."""
    pooled = {name: s for name, s in over_seeds(runs, keep).items() if name in metrics}
    found = intervals(pooled, _clusters(utterances, keep), resamples=resamples, seed=seed) if pooled else {}
    mask = _mask(keep)
    result = {}
    for name, told in found.items():
        value = told["value"]
        if value is None or not np.isfinite(value):
            continue
        alone = [_alone(run, name, mask) for run in runs]
        spread = float(np.std(alone, ddof=1)) if len(alone) > 1 else None
        result[name] = Cell(value, told["low"], told["high"], spread)
    return result


def _mask(keep: Sequence[bool] | None) -> Any:
    return slice(None) if keep is None else np.array(keep, dtype=bool)


def _alone(run: Statistics, name: str, mask: Any) -> float:
    return float(run[name].score(run[name].sums[mask].sum(axis=0)))


def _clusters(utterances: Sequence[Utterance], keep: Sequence[bool] | None) -> Clusters:
    if keep is None:
        return clusters_of(utterances)
    return clusters_of([u for u, kept in zip(utterances, keep, strict=True) if kept])


def differences(
    first: Sequence[Statistics],
    second: Sequence[Statistics],
    utterances: Sequence[Utterance],
    metrics: Sequence[str],
    *,
    keep: Sequence[bool] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Difference]:
    """Second minus first, run by run of the same seed, on the same clips.

    `p_speakers` is `paired_differences`' bootstrap by speaker; `p_clips` a permutation test that exchanges
    the two systems' captions of a clip (all seeds together) at random: the share of `resamples` exchanges,
    and the data as they are, with a difference at least as large. The first asks whether other speakers
    would say the same, and is coarse with few of them; the second whether it could be chance in these clips.

    Raises:
        UserError: the two have different numbers of runs.
    """
    if len(first) != len(second):
        raise UserError(
            f"{len(first)} runs cannot be paired with {len(second)}; compare what has the same seeds"
        )
    a, b = over_seeds(first, keep), over_seeds(second, keep)
    same = [n for n in metrics if n in a and n in b and a[n].sums.shape == b[n].sums.shape]
    if not same:
        return {}
    gaps = paired_differences(
        {n: a[n] for n in same},
        {n: b[n] for n in same},
        _clusters(utterances, keep),
        resamples=resamples,
        seed=seed,
    )
    mask = _mask(keep)
    rng = np.random.default_rng(seed)
    exchanged = rng.integers(0, 2, (resamples, len(a[same[0]].sums))).astype(np.float64)
    found = {}
    for name in same:
        gap = gaps[name]
        value, p_speakers = gap["value"], gap["p"]
        if value is None or p_speakers is None or not np.isfinite(value):
            continue
        moved = exchanged @ (b[name].sums - a[name].sums)
        with np.errstate(all="ignore"):
            chance = b[name].score(b[name].sums.sum(axis=0) - moved) - a[name].score(
                a[name].sums.sum(axis=0) + moved
            )
        # a hair's breadth for sums added in another order
        as_large = int((np.abs(chance) >= abs(value) - 1e-12).sum())
        p_clips = (1 + as_large) / (1 + resamples)
        alone = [
            _alone(other, name, mask) - _alone(one, name, mask)
            for one, other in zip(first, second, strict=True)
        ]
        agree = sum(np.sign(difference) == np.sign(value) for difference in alone)
        found[name] = Difference(
            value, gap["low"], gap["high"], p_speakers, p_clips, (int(agree), len(alone))
        )
    return found


def holm(gaps: Mapping[str, Difference]) -> dict[str, Difference]:
    """The same differences with `p_holm`: p corrected for their number (Holm 1979).

    >>> a, b = (Difference(1, 0, 2, p, p, (3, 3)) for p in (0.01, 0.04))
    >>> [gap.p_holm for gap in holm({"a": a, "b": b}).values()]
    [0.02, 0.04]
    """
    order = sorted(gaps, key=lambda name: gaps[name].p)
    least, corrected = 0.0, {}
    for place, name in enumerate(order):
        least = max(least, min(1.0, gaps[name].p * (len(order) - place)))
        corrected[name] = replace(gaps[name], p_holm=least)
    return {name: corrected[name] for name in gaps}


def outcome(gap: Difference, *, less_is_better: bool, at_least: bool = False) -> str:
    """What became of "second is better than first": holds, holds within chance, or does not hold.

    `at_least` asks only that the second is not worse.
    """
    low, high = (gap.low, gap.high) if not less_is_better else _turned(gap)
    value = -gap.value if less_is_better else gap.value
    if at_least:
        if value >= 0:
            return "holds"
        return "worse, but within chance" if high is None or high >= 0 else "does not hold"
    if value > 0:
        return "holds" if gap.p < 0.05 and low is not None and low > 0 else "right way, but within chance"
    return "does not hold"


def _turned(gap: Difference) -> tuple[float | None, float | None]:
    return (None if gap.high is None else -gap.high), (None if gap.low is None else -gap.low)
