"""BLEU and CIDEr-D from n-gram counts that are made once, as numpy arrays, for all captions and references.

Own code rather than sacrebleu's, because resampling needs BLEU's counts clip by clip, which sacrebleu keeps
to itself, and because COCO's guard against empty counts differs from sacrebleu's smoothings where no 4-gram
matches. Where both are defined they agree; the tests hold the two side by side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = Sequence[str]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

ORDERS = 4  # n-grams of one to four words
SIGMA = 6.0  # of CIDEr-D's length penalty, in bigrams
_SMALL, _TINY = 1e-9, 1e-15  # COCO's guards against division by zero and against a product of zero


@dataclass(frozen=True)
class Grams:
    """Counts of the n-grams of one order: `count[i]` times n-gram `gram[i]` in sentence `sentence[i]`.

    Sorted by sentence, then n-gram; `kinds` is the number of different n-grams.
    """

    sentence: Ints
    gram: Ints
    count: Ints
    kinds: int


@dataclass(frozen=True)
class CaptionSet:
    """Captions and references as n-gram counts. Caption i is sentence i of `captions`.

    `clip_of[r]` is the clip that sentence r of `references` belongs to; lengths are in tokens.
    """

    captions: list[Grams]
    references: list[Grams]
    clip_of: Ints
    caption_lengths: Ints
    reference_lengths: Ints

    @property
    def clips(self) -> int:
        return len(self.caption_lengths)


def count_ngrams(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> CaptionSet:
    """Count the n-grams of every caption and of its references (at least one each)."""
    flat = [*captions, *chain.from_iterable(references)]
    lengths = np.fromiter(map(len, flat), np.int64, len(flat))
    vocabulary: dict[str, int] = defaultdict(count().__next__)
    words = np.fromiter(map(vocabulary.__getitem__, chain.from_iterable(flat)), np.int64, lengths.sum())
    sentence = np.repeat(np.arange(len(flat)), lengths)
    end = np.cumsum(lengths)[sentence]
    start, gram = np.arange(len(words)), words
    split, kinds = len(captions), 0
    hypotheses, targets = [], []
    for order in range(1, ORDERS + 1):
        if order > 1:
            longer = start + order - 1 < end[start]
            start = start[longer]
            gram = _ranks(gram[longer] * len(vocabulary) + words[start + order - 1], kinds * len(vocabulary))
        kinds = int(gram.max()) + 1 if len(gram) else 1
        keys, times = _counted(sentence[start] * kinds + gram)
        row, kind = np.divmod(keys, kinds)
        cut = int(np.searchsorted(row, split))
        hypotheses.append(Grams(row[:cut], kind[:cut], times[:cut], kinds))
        targets.append(Grams(row[cut:] - split, kind[cut:], times[cut:], kinds))
    per_clip = np.fromiter(map(len, references), np.int64, len(references))
    clip_of = np.repeat(np.arange(len(references)), per_clip)
    return CaptionSet(hypotheses, targets, clip_of, lengths[:split], lengths[split:])


def _ranks(keys: Ints, limit: int) -> Ints:
    """The place of each key among the different keys in order; keys are below `limit`.

    A table where it is not much longer than the keys, as with the small vocabularies of captions: it takes a
    tenth of the time of sorting.
    """
    if limit > 16 * len(keys):
        _, ranks = np.unique(keys, return_inverse=True)
        return ranks
    seen = np.zeros(limit, np.int64)
    seen[keys] = 1
    return (np.cumsum(seen) - 1)[keys]


def _counted(keys: Ints) -> tuple[Ints, Ints]:
    """The different keys in order, and how often each occurs.

    By sorting, where np.unique uses a hash table that takes ten times as long on such keys (numpy 2.4).
    """
    keys = np.sort(keys)
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[first], np.diff(first, append=len(keys))


def _find(keys: Ints, sorted_keys: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Where each key stands in `sorted_keys`, and whether it is there at all."""
    if not len(sorted_keys):
        return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
    place = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return place, sorted_keys[place] == keys


def bleu_counts(sets: CaptionSet) -> Floats:
    """BLEU's sufficient statistics, one row a clip: (clips, 10).

    Columns: matched n-grams of order 1-4 (clipped by the most generous reference), n-grams of order 1-4,
    caption length, length of the reference closest in length (of two equally close, the shorter).
    """
    counts = np.zeros((sets.clips, 2 * ORDERS + 2))
    for order in range(ORDERS):
        captions, references = sets.captions[order], sets.references[order]
        keys = sets.clip_of[references.sentence] * references.kinds + references.gram
        by_key = np.argsort(keys, kind="stable")
        keys = keys[by_key]
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        most = np.maximum.reduceat(references.count[by_key], first) if len(first) else keys
        place, found = _find(captions.sentence * captions.kinds + captions.gram, keys[first])
        matched = np.minimum(captions.count[found], most[place[found]])
        counts[:, order] = np.bincount(captions.sentence[found], matched, sets.clips)
        counts[:, ORDERS + order] = np.maximum(sets.caption_lengths - order, 0)
    counts[:, -2] = sets.caption_lengths
    off = np.abs(sets.reference_lengths - sets.caption_lengths[sets.clip_of])
    nearest = np.lexsort((sets.reference_lengths, off, sets.clip_of))
    counts[:, -1] = sets.reference_lengths[nearest[np.flatnonzero(np.diff(sets.clip_of, prepend=-1))]]
    return counts


def bleu_scores(counts: Floats) -> Floats:
    """BLEU-1 to BLEU-4 (..., 4) of summed counts (..., 10), as COCO computes them (Papineni et al. 2002).

    With c the caption length and r the closest reference length: min(1, exp(1 - r/c)) times the geometric
    mean of the n-gram precisions. "the man sounds sad" against "the man sounds very sad" matches 4 of 4 words
    and 2 of 3 pairs: BLEU-2 = exp(1 - 5/4) * sqrt(1 * 2/3) = 0.6359.
    """
    matched, total = counts[..., :ORDERS], counts[..., ORDERS : 2 * ORDERS]
    product = np.cumprod((matched + _TINY) / (total + _SMALL), axis=-1)
    scores = product ** (1.0 / np.arange(1, ORDERS + 1))
    ratio = (counts[..., -2:-1] + _TINY) / (counts[..., -1:] + _SMALL)
    with np.errstate(over="ignore"):
        penalty = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
    result: Floats = scores * penalty
    return result


def cider_d(sets: CaptionSet) -> Floats:
    """CIDEr-D of each clip (clips,), 0 to 10 (Vedantam et al. 2015, with clipping and length penalty).

    Document frequencies come from the references of these very clips, so a score depends on the company it is
    in, and one clip alone scores 0.
    """
    total = np.zeros(len(sets.clip_of))
    bigrams = (
        np.maximum(sets.reference_lengths - 1, 0) - np.maximum(sets.caption_lengths - 1, 0)[sets.clip_of]
    )
    penalty = np.exp(-(bigrams**2) / (2 * SIGMA**2))
    for captions, references in zip(sets.captions, sets.references, strict=True):
        keys = sets.clip_of[references.sentence] * references.kinds + references.gram
        seen, _ = _counted(keys)
        frequency = np.bincount(seen % references.kinds, minlength=references.kinds)
        rarity = np.log(sets.clips) - np.log(np.maximum(frequency, 1))
        mine, theirs = captions.count * rarity[captions.gram], references.count * rarity[references.gram]
        my_norm = np.sqrt(np.bincount(captions.sentence, mine**2, sets.clips))
        their_norm = np.sqrt(np.bincount(references.sentence, theirs**2, len(sets.clip_of)))
        place, found = _find(keys, captions.sentence * captions.kinds + captions.gram)
        product = np.minimum(mine[place[found]], theirs[found]) * theirs[found]
        # bincount of nothing is whole-numbered even with weights.
        dot = np.bincount(references.sentence[found], product, len(sets.clip_of)).astype(np.float64)
        norms = my_norm[sets.clip_of] * their_norm
        total += np.divide(dot, norms, out=np.zeros_like(dot), where=norms > 0) * penalty
    sums = np.bincount(sets.clip_of, total, sets.clips)
    scores: Floats = 10.0 * sums / (ORDERS * np.bincount(sets.clip_of, minlength=sets.clips))
    return scores


def distinct(sentences: Grams, clusters: Ints) -> tuple[Any, Ints, Ints]:
    """(different n-grams, of them those said in one cluster only, per cluster; n-grams of each cluster)."""
    amount = int(clusters.max()) + 1
    cluster = clusters[sentences.sentence]
    pairs, _ = _counted(sentences.gram * amount + cluster)
    kind, where = np.divmod(pairs, amount)
    shared = np.bincount(kind, minlength=sentences.kinds)
    alone = np.bincount(where[shared[kind] == 1], minlength=amount)
    return (
        int(np.count_nonzero(shared)),
        alone,
        np.bincount(cluster, sentences.count, amount).astype(np.int64),
    )
