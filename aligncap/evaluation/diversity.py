"""Does the model say different things of different clips?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from aligncap.evaluation.bootstrap import Clusters, Interval, Statistic, mean
from aligncap.evaluation.ngrams import CaptionSet, distinct


def most_frequent(captions: Sequence[str], number: int = 10) -> list[dict[str, Any]]:
    """The captions said most often: [{"caption", "count", "share"}], ties in order of the text.

    Case, spaces and a full stop at the end make no difference; each is shown as it was first said.
    """
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for caption in captions:
        plain = _plain(caption)
        first.setdefault(plain, caption.strip())
        counts[plain] += 1
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:number]
    return [{"caption": first[text], "count": n, "share": n / len(captions)} for text, n in ranked]


def _plain(caption: str) -> str:
    return " ".join(caption.lower().split()).rstrip(" .。!！")


def diversity_statistics(captions: Sequence[str], lengths: np.ndarray) -> dict[str, Statistic]:
    """top_caption_share and mean_length (tokens).

    A resample counts the caption that is most frequent in the whole set: the largest share of a resample
    would be biased upwards.
    """
    plain = [_plain(caption) for caption in captions]
    top = min(Counter(plain).items(), key=lambda item: (-item[1], item[0]))[0]
    return {
        "top_caption_share": mean(np.array([text == top for text in plain], dtype=np.float64)),
        "mean_length": mean(lengths.astype(np.float64)),
    }


def distinct_share(sets: CaptionSet, order: int, clusters: Clusters) -> Interval:
    """Distinct-n (Li et al. 2016): different n-grams divided by n-grams, over all captions.

    Depends on the size of the set, so compare only systems on the same clips. The interval is by the
    jackknife (value ± t · SE from leaving out one cluster at a time), since a bootstrap repeats captions and
    so lowers the share by itself.

    "he is sad", "he is calm": words he is sad calm of 6: distinct-1 = 4/6.
    """
    from scipy.stats import t

    kinds, alone, sizes = distinct(sets.captions[order - 1], clusters.index)
    total = sizes.sum()
    if not total:
        return {"value": 0.0, "low": None, "high": None}
    value = kinds / total
    use = sizes < total
    without = (kinds - alone[use]) / (total - sizes[use])
    n = len(without)
    if n < 2:
        return {"value": float(value), "low": None, "high": None}
    error = np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    reach = float(t.ppf(0.975, n - 1) * error)
    return {
        "value": float(value),
        "low": max(0.0, float(value) - reach),
        "high": min(1.0, float(value) + reach),
    }
