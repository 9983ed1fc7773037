"""Answers and probabilities of labels, counted: accuracy, UAR, shares, invalid answers, prior, bias, rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, logsumexp
from scipy.stats import rankdata

from aligncap.text.answers import NONE, plain, read_answer
from aligncap.text.emotions import emotion_of
from aligncap.utils.io import Row
from aligncap.utils.statistics import (
    Clusters,
    Floats,
    Run,
    Statistic,
    averaged,
    calibration_error,
    chance_p,
    intervals,
    mean,
    recall_sums,
    uar,
)

SHOWN = 10  # invalid answers that are listed


@dataclass(frozen=True)
class Labelled:
    """The labels of the clips, all labels in order, and the units of intervals."""

    truth: list[str]
    labels: list[str]
    units: Clusters
    voices: list[tuple[str, str | None]]  # corpus and speaker of each clip

    @property
    def chance(self) -> float:
        """UAR of who always gives one answer, or draws."""
        return 1 / len(set(self.truth))

    def uar_with_p(self, cells: Row, said: Sequence[str]) -> Row:
        """`cells`, of which "uar" has "p": of one as high if answers did not depend on the label."""
        return {**cells, "uar": {**cells["uar"], "p": chance_p(self.truth, said, self.voices)}}


def read_said(texts: Sequence[str], labels: Sequence[str], *, lenient: bool = False) -> list[str]:
    """The label of each answer, NONE of an invalid one.

    Args:
        lenient: also a sentence is read, for the emotion that it names.
    """
    said = [read_answer(text, labels) for text in texts]
    if lenient:
        named = [emotion_of(text) or NONE for text in texts]
        pairs = zip(said, named, strict=True)
        said = [name if own == NONE and name in labels else own for own, name in pairs]
    return said


def recall(truth: Sequence[str], said: Sequence[str]) -> Statistic:
    """UAR over the labels that clips have."""
    return Statistic(recall_sums(truth, said, sorted(set(truth))), uar, 1.0)


def answer_statistics(texts: Sequence[str], about: Labelled) -> Run:
    """accuracy, uar, invalid; "uar_sentences": where sentences around the word count too."""
    said = read_said(texts, about.labels)
    right = [own == label for own, label in zip(said, about.truth, strict=True)]
    return {
        "accuracy": mean(np.array(right, dtype=np.float64)),
        "uar": recall(about.truth, said),
        "uar_sentences": recall(about.truth, read_said(texts, about.labels, lenient=True)),
        "invalid": mean(np.array([label == NONE for label in said], dtype=np.float64)),
    }


def recognition(texts: Sequence[str], about: Labelled, samples: Sequence[Sequence[str]] = ()) -> Row:
    """How labels are recognised by one wording: numbers with intervals, shares, invalid answers, confusion.

    Args:
        texts: the greedy answer of each clip.
        samples: drawn answers of each clip, equally many.
    """
    said = read_said(texts, about.labels)
    invalid = Counter(plain(text) for text, label in zip(texts, said, strict=True) if label == NONE)
    columns = [*about.labels, NONE]
    counts = np.zeros((len(about.labels), len(columns)), np.int64)
    for label, own in zip(about.truth, said, strict=True):
        counts[about.labels.index(label), columns.index(own)] += 1
    found = about.uar_with_p(dict(intervals(answer_statistics(texts, about), about.units)), said)
    found |= {
        "shares": {label: said.count(label) / len(said) for label in columns},
        "bias": bias(said, about),
        "invalid_answers": [{"answer": a, "count": n} for a, n in invalid.most_common(SHOWN)],
        "confusion": counts.tolist(),
        "columns": columns,
    }
    if samples and samples[0]:
        drawn = list(zip(*samples, strict=True))
        rounds = [recall(about.truth, read_said(texts_of, about.labels)) for texts_of in drawn]
        same = [
            np.mean([plain(a) == plain(text) for a in own]) for own, text in zip(samples, texts, strict=True)
        ]
        sampled = {"uar": averaged(rounds), "as_greedy": mean(np.array(same, dtype=np.float64))}
        found["sampled"] = {"samples": len(drawn), **intervals(sampled, about.units)}
    return found


def bias(said: Sequence[str], about: Labelled) -> Row:
    """Of each label how far its share among answers is above its share among clips, with intervals."""
    pairs = list(zip(said, about.truth, strict=True))
    gaps = {label: np.array([(s == label) - float(t == label) for s, t in pairs]) for label in about.labels}
    # may be negative, whatever these clips give
    unbounded = {n: Statistic(np.column_stack([g, np.ones(len(g))]), _mean) for n, g in gaps.items()}
    return dict(intervals(unbounded, about.units))


# ---- probabilities


def without_prior(scores: Floats, prior: Floats | None) -> Floats:
    """Log-probabilities among labels, (clips, labels), of log-masses of the same shape.

    Args:
        prior: log-masses (labels,) where there is nothing to hear: taken off before labels are normalised
            (Zhao et al. 2021, "Calibrate before use"); None: nothing is.
    """
    return np.asarray(log_softmax(scores if prior is None else scores - prior, axis=-1))


def mean_prior(scores: Floats) -> Floats:
    """The labels' mean log-probability over the clips themselves, (labels,): what all clips share."""
    return np.asarray(log_softmax(scores, axis=-1).mean(axis=0))


def probability_statistics(scores: Floats, prior: Floats | None, about: Labelled) -> Run:
    """uar and accuracy of the likeliest label, rank of the true one (1: first), its probability."""
    logs = without_prior(scores, prior)
    place = np.array([about.labels.index(label) for label in about.truth])
    said = [about.labels[i] for i in logs.argmax(axis=1)]
    ranks = rankdata(-logs, axis=1)[np.arange(len(place)), place]
    right = np.array([own == label for own, label in zip(said, about.truth, strict=True)], dtype=np.float64)
    return {
        "accuracy": mean(right),
        "uar": recall(about.truth, said),
        "rank_of_truth": Statistic(np.column_stack([ranks, np.ones(len(ranks))]), _mean, np.inf),
        "probability_of_truth": mean(np.exp(logs[np.arange(len(place)), place])),
    }


def _mean(sums: Floats) -> Floats:
    return np.asarray(sums[..., 0] / sums[..., 1])


def probabilities(scores: Floats, prior: Floats | None, about: Labelled) -> Row:
    """What the label words' probabilities tell, with intervals.

    Returns:
        those of `probability_statistics`; "label_mass": share of all probability that is on label words
        (None of a prior taken off); "mass": mean probability of each label among labels; "by_label": the same
        for the clips of each label; "never_first": labels that are likeliest of no clip; "bias", as of
        answers; "ece": calibration error of the likeliest label.
    """
    logs = without_prior(scores, prior)
    shares = np.exp(logs)
    said = [about.labels[i] for i in logs.argmax(axis=1)]
    right = np.array([own == label for own, label in zip(said, about.truth, strict=True)], dtype=np.float64)
    truth = np.array(about.truth)
    own = [label for label in about.labels if label in set(about.truth)]
    found = about.uar_with_p(dict(intervals(probability_statistics(scores, prior, about), about.units)), said)
    return found | {
        "label_mass": float(np.exp(logsumexp(scores, axis=1)).mean()) if prior is None else None,
        "mass": dict(zip(about.labels, shares.mean(axis=0).tolist(), strict=True)),
        "by_label": {
            label: dict(zip(about.labels, shares[truth == label].mean(axis=0).tolist(), strict=True))
            for label in own
        },
        "never_first": [label for label in about.labels if label not in said],
        "bias": bias(said, about),
        "ece": calibration_error(shares.max(axis=1), right),
    }
