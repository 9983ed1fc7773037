"""Rank and score agreement of two judges, with intervals from resampled clips.

Captions of one clip are not independent, so clips are drawn with replacement, each with all of its captions
(percentile interval, Efron & Tibshirani 1993). Every statistic is a function of sums over clips or over pairs
of clips, so all resamples are a few matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

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
