"""How far speech and text states lie apart, in numbers: measured on the states, never on their picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Floats = NDArray[np.float64]
TITLES = {
    "mixing": "neighbours of the other modality",
    "pair_gap": "own pair's cosine less the others'",
    "recall_at_1": "speech finds its own text",
    "emotion_at_1": "speech finds a text of its emotion",
}
NEIGHBOURS = 10


def state_numbers(
    speech: Tensor,
    text: Tensor,
    *,
    texts: Sequence[str],
    emotions: Sequence[str | None],
    speakers: Sequence[str | None],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Mixing, pair gap and retrieval of n pairs of states (n, width), by cosine.

    mixing: share of the other modality among the ten nearest of all other states, over both modalities;
    `chance` is its value when they are fully mixed, n / (2n - 1).
    pair_gap: cosine of a clip's speech and text less its mean cosine with other clips' texts.
    recall_at_1: share of clips whose nearest text is their own (same words: the same text); emotion_at_1:
    whose nearest text is of a clip with their label.

    Args:
        texts: what the teacher read of each clip; clips that share it are one and the same answer.

    Returns:
        {"clips", "texts", name: {"value", "low", "high", "chance"}}: 95 % intervals by resampling speakers,
        clips where speakers are unknown or one; None for what cannot be measured.
    """
    count = len(texts)
    speech, text = (F.normalize(states.double(), dim=-1) for states in (speech, text))
    across = (speech @ text.T).numpy()
    groups = np.unique(np.array(texts), return_inverse=True)[1]
    same_text = groups[:, None] == groups[None, :]
    labels = np.array([e or "" for e in emotions])
    known = labels != ""
    same_label = (labels[:, None] == labels[None, :]) & known[:, None]
    nearest = across.argmax(1)
    everyone = np.arange(count)
    others = (~same_text).sum(1)
    mean_other = np.where(~same_text, across, 0).sum(1) / np.maximum(others, 1)
    gap = np.where(others > 0, np.diag(across) - mean_other, np.nan)
    values: dict[str, tuple[Floats, float]] = {
        "mixing": (_mixing(torch.cat([speech, text]), count), count / (2 * count - 1)),
        "pair_gap": (gap, 0.0),
        "recall_at_1": (same_text[everyone, nearest].astype(float), float(same_text.mean())),
        "emotion_at_1": (
            np.where(known, same_label[everyone, nearest], np.nan).astype(float),
            float(same_label[known].mean()) if known.any() else 0.0,
        ),
    }
    clusters = _clusters(speakers)
    numbers: dict[str, Any] = {"clips": count, "texts": int(groups.max()) + 1}
    for name, (each, chance) in values.items():
        numbers[name] = _with_interval(each, clusters, resamples, seed) | {"chance": chance}
    return numbers


def _mixing(states: Tensor, count: int) -> Floats:
    """Of each clip's two states, the mean share of the other modality among their neighbours, (count,)."""
    near = states @ states.T
    near.fill_diagonal_(-torch.inf)
    nearest = near.topk(min(NEIGHBOURS, len(states) - 1)).indices
    is_text = torch.arange(len(states)) >= count
    other = (is_text[nearest] != is_text[:, None]).double().mean(1)
    return ((other[:count] + other[count:]) / 2).numpy()


def _clusters(speakers: Sequence[str | None]) -> NDArray[np.int64]:
    """A number for each speaker; clips of an unknown one stand for themselves, as do those of a lone one."""
    if len({s for s in speakers if s}) < 2:
        return np.arange(len(speakers))
    names = [s or f"clip {i}" for i, s in enumerate(speakers)]
    return np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)


def _with_interval(
    each: Floats, clusters: NDArray[np.int64], resamples: int, seed: int
) -> dict[str, float | None]:
    """Mean of the values that are numbers, and its percentile interval over drawn clusters."""
    good = ~np.isnan(each)
    if not good.any():
        return {"value": None, "low": None, "high": None}
    number = int(clusters.max()) + 1
    sums = np.zeros((number, 2))
    np.add.at(sums, clusters[good], np.column_stack([each[good], np.ones(good.sum())]))
    drawn = np.random.default_rng(seed).integers(0, number, (resamples, number))
    total = sums[drawn].sum(1)
    total = total[total[:, 1] > 0]
    low, high = np.quantile(total[:, 0] / total[:, 1], [0.025, 0.975])
    return {"value": float(each[good].mean()), "low": float(low), "high": float(high)}
