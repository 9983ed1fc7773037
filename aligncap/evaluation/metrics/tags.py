"""Do captions say what people say of the voice? Against the words of each annotator (`extra["voice"]`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aligncap.data.manifest import Utterance
from aligncap.text.voice_tags import overlap, tags_of
from aligncap.utils.io import load_data
from aligncap.utils.statistics import Floats, Statistic, mean

NAMES = ("tag_precision", "tag_recall", "tag_f1")
Sets = list[frozenset[str]]


def tag_statistics(captions: Sequence[str], utterances: Sequence[Utterance]) -> dict[str, Statistic]:
    """Precision, recall and F1 of a caption's words against each annotator's, means over both; and kappa.

    The same words for every voice can have a high F1 where people list many or few; their kappa is 0. Absent
    where a clip has no annotator's words.
    """
    told = told_of(utterances)
    if not all(told):
        return {}
    said = [tags_of(caption) for caption in captions]
    return _scores([[(own, other) for other in sets] for own, sets in zip(said, told, strict=True)])


def tags_among_people(utterances: Sequence[Utterance]) -> dict[str, float]:
    """The same of each annotator against each other: what people reach. Absent with fewer than two."""
    pairs = [[(a, b) for a in sets for b in sets if a is not b] for sets in told_of(utterances)]
    found = {name: statistic.value for name, statistic in _scores(pairs).items()}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def told_of(utterances: Sequence[Utterance]) -> list[Sets]:
    """The words of each annotator of each clip; empty lists where a clip has none."""

    def words_of(voice: object) -> list[list[str]]:
        lists = list(voice.values()) if isinstance(voice, dict) else []
        told = all(isinstance(words, list) and all(isinstance(w, str) for w in words) for words in lists)
        return lists if told else []

    return [[tags_of(", ".join(words)) for words in words_of(u.extra.get("voice"))] for u in utterances]


def _scores(pairs: Sequence[Sequence[tuple[frozenset[str], frozenset[str]]]]) -> dict[str, Statistic]:
    """Scores of pairs (what is said, what is held against it) of each clip."""
    if not all(pairs):
        return {}
    rows = [[overlap(said, [told]) for said, told in own] for own in pairs]
    found = dict(zip(NAMES, map(mean, np.array([np.mean(own, axis=0) for own in rows]).T), strict=True))
    words = load_data("people.yaml")["words"]
    sums = [
        [[word in said and word in told, word in said, word in told] for said, told in own for word in words]
        for own in pairs
    ]
    counts = [np.reshape(own, (-1, len(words), 3)).sum(axis=0).ravel() for own in sums]
    sizes = np.array([[len(own)] for own in pairs])
    found["tag_kappa"] = Statistic(np.hstack([sizes, counts]).astype(np.float64), mean_kappa)
    return found


def mean_kappa(sums: Floats) -> Floats:
    """Cohen's kappa of saying each word, mean over the words that are told of some voices and not of all.

    Args:
        sums: (..., 1 + 3 x words): pairs; for each word those where it is said and told, said, told.
    """
    n = sums[..., :1]
    both, said, told = (part for part in np.moveaxis(sums[..., 1:].reshape(*sums.shape[:-1], -1, 3), -1, 0))
    agree = (n - said - told + 2 * both) / n
    chance = (said * told + (n - said) * (n - told)) / n**2
    counts = (told > 0) & (told < n)
    kappa = np.divide(agree - chance, 1 - chance, out=np.zeros_like(agree), where=counts & (chance < 1))
    return np.asarray(kappa.sum(axis=-1) / counts.sum(axis=-1))
