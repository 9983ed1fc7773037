"""Scores on corpora that training never touched: each by itself, and all together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aligncap.evaluation.bootstrap import Clusters, Interval, Statistic, clusters_of, intervals
from aligncap.evaluation.diversity import diversity_statistics
from aligncap.evaluation.emotion import NONE, Emotions, emotion_statistics, read_emotions
from aligncap.evaluation.evaluate import SCORES, Synonyms, evaluate_captions, pair_up, score
from aligncap.evaluation.systems import Cell, pooled
from aligncap.manifest import Utterance

Rows = Sequence[Mapping[str, Any]]
SUBSET = ("emotion_uar", "emotion_accuracy", "emotion_none_share")
WEIGHTS = {
    "pooled": "the clips of all corpora as one set, so that a corpus weighs as many clips as it has; "
    "CIDEr-D's document frequencies and speakers' norms are those of each corpus",
    "mean_over_corpora": "plain mean of the corpora's own scores, each weighing the same",
    "interval": "95 % percentile bootstrap over the speakers of all corpora, drawn together",
}


@dataclass(frozen=True)
class Corpus:
    """A set to score: `captions` are one list of rows {"id", "caption"} for each training seed.

    `whole` is what speakers' norms are taken from and captions are compared with where only some of its clips
    are scored; by default `utterances`.
    """

    name: str
    manifest: Path
    utterances: list[Utterance]
    captions: list[Rows]
    label_map: dict[str, str] = field(default_factory=dict)
    whole: list[Utterance] = field(default_factory=list)


def score_corpus(
    corpus: Corpus, *, resamples: int = 1000, seed: int = 0, synonyms: Synonyms = "auto"
) -> list[dict[str, Any]]:
    """`evaluate_captions` for each seed's captions.

    Raises:
        Faults: captions and manifest do not match.
    """
    for rows in corpus.captions:
        pair_up(rows, corpus.utterances)
    return [
        evaluate_captions(
            rows,
            corpus.whole or corpus.utterances,
            allow_missing=bool(corpus.whole),
            resamples=resamples,
            seed=seed,
            synonyms=synonyms,
            label_map=corpus.label_map,
        )
        for rows in corpus.captions
    ]


def score_zero_shot(
    corpora: Sequence[Corpus],
    *,
    labels: Sequence[str] = (),
    resamples: int = 1000,
    seed: int = 0,
    synonyms: Synonyms = "auto",
    results: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Scores by corpus and together, over seeds (see `pooled` of systems.py for their form).

    Args:
        corpora: all with captions of as many seeds.
        labels: a choice of labels; scores named `subset_…` are of the clips with one of these labels alone. A
            caption that names an emotion outside of them, or none, is wrong there.
        results: `score_corpus` of each corpus by name, where it has been called before.

    Returns:
        {"corpora": {name: {metric: cell}}, "together": {"pooled" and "mean_over_corpora": {metric: cell}}},
        the latter only for several corpora (else None), and of the scores that all corpora have. Together
        there is no distinct-n, which is no sum over clips.
    """
    options = {"resamples": resamples, "seed": seed}
    by_corpus: dict[str, dict[str, Any]] = {}
    for corpus in corpora:
        done = results and results.get(corpus.name)
        found: dict[str, Any] = pooled(done or score_corpus(corpus, synonyms=synonyms, **options))
        found |= _subset_cells([[corpus]], labels, options)
        by_corpus[corpus.name] = found
    if len(corpora) < 2:
        return {"corpora": by_corpus, "together": None}
    clusters = clusters_of([u for corpus in corpora for u in corpus.utterances])
    runs: dict[str, list[dict[str, Interval]]] = {"pooled": [], "mean_over_corpora": []}
    for number in range(len(corpora[0].captions)):
        parts = [_counted(corpus, number, synonyms) for corpus in corpora]
        runs["pooled"].append(intervals(_pooled_statistics(corpora, parts, number), clusters, **options))
        runs["mean_over_corpora"].append(intervals(_mean_statistics(parts), clusters, **options))
    together = {name: _cells(found) for name, found in runs.items()}
    together["pooled"] |= _subset_cells([corpora], labels, options)
    together["mean_over_corpora"] |= _subset_cells([[corpus] for corpus in corpora], labels, options)
    return {"corpora": by_corpus, "together": together}


def _cells(runs: Sequence[Mapping[str, Interval]]) -> dict[str, Cell]:
    """`pooled` over seeds, for those scores that there are."""
    nothing: Interval = {"value": None, "low": None, "high": None}
    cells = pooled([{name: _told(run.get(name, nothing)) for name in SCORES} for run in runs])
    return {name: cell for name, cell in cells.items() if name in runs[0]}


def _told(interval: Interval) -> Interval:
    return {k: v if v is not None and np.isfinite(v) else None for k, v in interval.items()}


def _counted(corpus: Corpus, number: int, synonyms: Synonyms) -> dict[str, Statistic]:
    utterances, captions = pair_up(corpus.captions[number], corpus.utterances)
    whole = corpus.whole or corpus.utterances
    return score(utterances, captions, synonyms=synonyms, label_map=corpus.label_map, whole=whole).statistics


def _shared_names(parts: Sequence[Mapping[str, Statistic]]) -> list[str]:
    both = set.intersection(*(set(part) for part in parts))
    return [name for name in SCORES if name in both]


def _pooled_statistics(
    corpora: Sequence[Corpus], parts: Sequence[Mapping[str, Statistic]], number: int
) -> dict[str, Statistic]:
    """Sums over the clips of all corpora; emotions over all labels, and the top caption of all captions."""
    found = {
        name: Statistic(np.concatenate([part[name].sums for part in parts]), parts[0][name].score)
        for name in _shared_names(parts)
        # what differs in width is made of other labels, or of other denominators
        if len({part[name].sums.shape[1] for part in parts}) == 1
    }
    captions = [c for corpus in corpora for c in pair_up(corpus.captions[number], corpus.utterances)[1]]
    found.pop("emotion_uar", None)
    found |= emotion_statistics(_emotions(corpora, number))
    found["top_caption_share"] = diversity_statistics(captions, np.zeros(len(captions)))["top_caption_share"]
    return found


def _mean_statistics(parts: Sequence[Mapping[str, Statistic]]) -> dict[str, Statistic]:
    """The mean over corpora, as a statistic of all clips: each corpus has columns of its own."""
    return {name: _mean_of([part[name] for part in parts]) for name in _shared_names(parts)}


def _mean_of(parts: Sequence[Statistic]) -> Statistic:
    widths = np.cumsum([0, *(part.sums.shape[1] for part in parts)])
    sums = np.zeros((sum(len(part.sums) for part in parts), widths[-1]))
    at = 0
    for part, start, end in zip(parts, widths, widths[1:], strict=False):
        sums[at : at + len(part.sums), start:end] = part.sums
        at += len(part.sums)

    def mean(totals: np.ndarray) -> np.ndarray:
        values = [
            part.score(totals[..., start:end])
            for part, start, end in zip(parts, widths, widths[1:], strict=False)
        ]
        result: np.ndarray = np.mean(values, axis=0)
        return result

    return Statistic(sums, mean)


def _emotions(corpora: Sequence[Corpus], number: int) -> Emotions:
    """What was so and what was said in all corpora, each read through its own label map."""
    truth: list[str | None] = []
    said: list[str] = []
    for corpus in corpora:
        utterances, captions = pair_up(corpus.captions[number], corpus.utterances)
        found = read_emotions(captions, utterances, corpus.label_map)
        truth += [u.emotion for u in utterances]
        said += [found.columns[column] for column in found.said]
    labels = sorted({label for label in truth if label})
    columns = [*labels, *sorted(set(said) - {*labels, NONE}), NONE]
    return Emotions(
        labels,
        columns,
        np.array([labels.index(label) if label else -1 for label in truth], dtype=np.int64),
        np.array([columns.index(label) for label in said], dtype=np.int64),
    )


def _chosen(corpus: Corpus, labels: Sequence[str]) -> Corpus | None:
    """The clips of these labels and their captions; None where there are none."""
    utterances = [u for u in corpus.utterances if u.emotion in labels]
    ids = {u.id for u in utterances}
    captions: list[Rows] = [[row for row in rows if row["id"] in ids] for rows in corpus.captions]
    if not utterances:
        return None
    return Corpus(corpus.name, corpus.manifest, utterances, captions, corpus.label_map)


def _subset_cells(
    groups: Sequence[Sequence[Corpus]], labels: Sequence[str], options: Mapping[str, int]
) -> dict[str, Cell]:
    """Emotion scores of the chosen labels, averaged over groups of corpora whose clips are one set."""
    chosen = [[part for corpus in group if (part := _chosen(corpus, labels))] for group in groups]
    chosen = [group for group in chosen if group]
    if not labels or not chosen:
        return {}
    everything = [corpus for group in chosen for corpus in group]
    clusters: Clusters = clusters_of([u for corpus in everything for u in corpus.utterances])
    runs = []
    for number in range(len(everything[0].captions)):
        parts = [emotion_statistics(_emotions(group, number)) for group in chosen]
        runs.append(intervals(_mean_statistics(parts), clusters, **options))
    cells = _cells(runs)
    return {f"subset_{name}": cells[name] for name in SUBSET}
