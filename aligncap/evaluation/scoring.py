"""Captions scored against references, each clip once: sums over clips, to compare and pool.

Scores of a system are those of `pooled` in `aligncap.utils.statistics`, over its training seeds; those of
several corpora together are in `together`.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any, get_args

import numpy as np

from aligncap.data.manifest import Utterance
from aligncap.evaluation.metrics import SCORES, hallucination, ngram
from aligncap.evaluation.metrics.captions import CaptionMetric, coco_signature
from aligncap.evaluation.metrics.emotion import (
    Emotions,
    by_speaker,
    emotion_statistics,
    joined,
    read_emotions,
)
from aligncap.evaluation.metrics.ngram import find_wordnet, require_wordnet
from aligncap.evaluation.metrics.similarity import Choice, Encoder, cosines, sentence_encoder
from aligncap.evaluation.metrics.tags import tag_statistics
from aligncap.evaluation.metrics.tokens import Chinese, tokenize, tokenizer_name
from aligncap.text.answers import plain
from aligncap.utils.errors import UserError, UserErrors, nearest
from aligncap.utils.io import Row, load_data
from aligncap.utils.statistics import (
    Clusters,
    Floats,
    Interval,
    Run,
    Statistic,
    averaged,
    clusters_of,
    jackknife,
    mean,
    over_seeds,
    paired_differences,
    pooled,
    spread,
)

Rows = Sequence[Row]  # {"id", "caption", …} of one training seed


def pair_up(
    rows: Rows, references: Sequence[Utterance], *, allow_missing: bool = False
) -> tuple[list[Utterance], list[str]]:
    """Utterances and their captions, in the order of `references`.

    With `allow_missing`, captions and references without a partner are left out. An empty caption is a
    caption (it scores 0); an empty reference is an error.

    Raises:
        UserErrors: every id without partner, captioned twice or without a caption; clips without references.
    """
    errors: list[str] = []
    captions: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        name, caption = row.get("id"), row.get("caption")
        if not isinstance(name, str) or not isinstance(caption, str):
            errors.append(
                f'caption {number}: "id" and "caption" must both be text; run aligncap caption again'
            )
        elif name in captions:
            errors.append(f"caption {number}: id {name!r} was captioned before; keep one caption a clip")
        else:
            captions[name] = caption
    times = Counter(u.id for u in references)
    errors += [
        f"id {name!r}: {n} times in the manifest; make ids unique" for name, n in times.items() if n > 1
    ]
    remedy = "caption and score the same manifest, or allow missing ones"
    chosen = []
    for u in references:
        if not u.captions and not allow_missing:
            errors.append(f"id {u.id!r}: no reference captions in the manifest; run aligncap annotate")
        elif not all(tokenize(text) for text in u.captions):
            errors.append(f"id {u.id!r}: a reference caption without a word; mend or delete it")
        if u.id not in captions and not allow_missing:
            errors.append(f"id {u.id!r}: references without a caption; {remedy}")
        elif u.id in captions and u.captions:
            chosen.append(u)
    if not allow_missing:
        errors += [
            f"id {name!r}: a caption without references; {remedy}" for name in captions if name not in times
        ]
    if errors:
        raise UserErrors(errors)
    if not chosen:
        raise UserError("no caption has references, so there is nothing to score; check that the ids agree")
    return chosen, [captions[u.id] for u in chosen]


def wrong_label_map(said: str, label: str, own: Collection[str | None], of: object, text: str) -> str:
    """Why the map that counts `said` as `label`, `text` on the command line, is none; "" if it is one.

    Args:
        own: labels of the clips of `of`.
    """
    known = load_data("labels.yaml")["labels"]
    if said not in known:
        return f'--label_map {text}: unknown label "{said}"{nearest(said, known)}'
    if said in own:
        return f'--label_map {text}: {of} has clips labelled "{said}" itself; leave it out'
    return "" if label in own else f'--label_map {text}: {of} has no clip labelled "{label}"'


@dataclass(frozen=True)
class Scored:
    """Captions of one training seed with everything counted, before any interval.

    `rows` are the caption file's, in the order of `utterances`. `statistics` are the scores by name;
    `distinct` those that are no sums over clips: the score, and the score without each cluster. `counted`
    says how, and becomes the signature of a report.
    """

    utterances: list[Utterance]
    captions: list[str]
    clusters: Clusters
    statistics: dict[str, Statistic]
    distinct: dict[str, tuple[float, Floats]]
    emotions: Emotions
    counted: Row
    rows: Rows = ()

    @property
    def values(self) -> dict[str, float | None]:
        """Every name of SCORES and its value, None where it does not apply."""
        found = {name: statistic.value for name, statistic in self.statistics.items()}
        found |= {name: value for name, (value, _) in self.distinct.items()}
        return {name: found[name] if np.isfinite(found.get(name, np.nan)) else None for name in SCORES}


def score(
    utterances: list[Utterance],
    captions: list[str],
    *,
    wordnet: Choice = "auto",
    similarity: Choice = "auto",
    coco: Sequence[str] = (),
    chinese: Chinese = "characters",
    label_map: Mapping[str, str] | None = None,
    whole: Sequence[Utterance] | None = None,
) -> Scored:
    """Count everything once, clip by clip; `captions[i]` belongs to `utterances[i]`.

    Args:
        wordnet, similarity: whether METEOR uses WordNet and whether a sentence encoder scores similarity:
            where found, insisted on, or not.
        coco: scores of pycocoevalcap's Java programs, "meteor_1_5" and "spice".
        chinese: what n-grams, lengths and distinct-n are counted of, "characters" or "words" (aligncap[zh]).
        label_map: renames emotions that captions name, for a set without such a label: {"calm": "neutral"}.
        whole: the set that speakers' norms and "other clips" are taken from; `utterances` by default.

    Raises:
        UserError: WordNet, the encoder, a Java program or a segmenter is insisted on and not found.
    """
    for name, value in (("wordnet", wordnet), ("similarity", similarity)):
        if value not in get_args(Choice):
            raise UserError(f"{name} is {value!r}; choose among {', '.join(get_args(Choice))}")
    reader = require_wordnet() if wordnet == "require" else find_wordnet() if wordnet == "auto" else None
    references = [u.captions for u in utterances]
    statistics: dict[str, Statistic] = {}
    with tempfile.TemporaryDirectory() as folder:  # `evaluate` would keep one in the user's cache
        for config in ("default", *coco):
            metric = CaptionMetric(config, cache_dir=folder, keep_in_memory=True)
            found = metric.compute(
                predictions=captions,
                references=references,
                wordnet=reader is not None,
                chinese=chinese,
                statistics=True,
            )
            statistics |= found["statistics"]
    clusters = clusters_of(utterances)
    said = ngram.count_ngrams([tokenize(text, chinese) for text in captions], [[]] * len(captions))
    distinct = {f"distinct_{n}": ngram.distinct_share(said, n, clusters.index) for n in (1, 2)}
    statistics["mean_length"] = mean(said.caption_lengths.astype(np.float64))
    statistics["top_caption_share"] = top_caption_share(captions)
    encoder = sentence_encoder(similarity, [*captions, *(text for texts in references for text in texts)])
    if isinstance(encoder, Encoder):
        statistics["similarity"] = mean(cosines(captions, references, encoder))
    emotions = read_emotions(captions, utterances, label_map)
    statistics |= emotion_statistics(emotions)
    statistics |= tag_statistics(captions, utterances)
    measures = hallucination.measure(captions, utterances, whole=whole, label_map=label_map)
    statistics |= hallucination.hallucination_statistics(measures)
    per_clip = [len(texts) for texts in references]
    variant = f"exact+stem+WordNet {reader.get_version()}" if reader else "exact+stem"
    found_by = isinstance(encoder, Encoder) and f"cosine, mean over references and clips, by {encoder.name}"
    counted = {
        "clips": len(captions),
        "references": sum(per_clip),
        "references_per_clip": [min(per_clip), max(per_clip)],
        "speakers": clusters.speakers,
        "clips_of_unknown_speaker": clusters.unknown,
        "clips_with_emotion_label": sum(label is not None for label in emotions.truth),
        "emotion_labels": len(emotions.labels),
        "empty_captions": sum(not caption.strip() for caption in captions),
        "captions_left_out": 0,
        "references_left_out": 0,
        "corpora": sorted({u.corpus for u in utterances}),
        "languages": sorted({u.language for u in utterances}),
        "tokenizer": tokenizer_name(chinese),
        "bleu": "corpus level, closest reference length, no smoothing but COCO's 1e-15 guard",
        "rouge_l": "COCO's, beta 1.2, mean over clips",
        "cider_d": "n-grams 1-4, sigma 6, 0 to 10, document frequencies of all these references",
        "meteor": f"nltk.translate.meteor_score, {variant}, best reference, mean over clips; not Java's 1.5",
        "similarity": found_by or f"not counted: {encoder}",
        **coco_signature(coco),
        "emotion": "label of the caption's emotion words by data/emotions.yaml; no word counts as wrong",
        "emotions_renamed": dict(label_map or {}),
        **hallucination.signature(measures),
    }
    return Scored(utterances, captions, clusters, statistics, distinct, emotions, counted)


def score_rows(
    rows: Rows,
    references: Sequence[Utterance],
    *,
    allow_missing: bool = False,
    whole: Sequence[Utterance] | None = None,
    **options: Any,
) -> Scored:
    """`score` of the rows of a caption file; `whole` is `references` by default.

    Raises:
        UserErrors: captions and references do not match; all mismatches at once.
    """
    utterances, captions = pair_up(rows, references, allow_missing=allow_missing)
    scored = score(utterances, captions, whole=references if whole is None else whole, **options)
    by_id = {row["id"]: row for row in rows}
    left_out = {
        "captions_left_out": len(rows) - len(captions),
        "references_left_out": len(references) - len(captions),
    }
    return replace(scored, rows=[by_id[u.id] for u in utterances], counted={**scored.counted, **left_out})


def most_frequent(captions: Sequence[str], number: int = 10) -> list[Row]:
    """The captions said most often: [{"caption", "count", "share"}], ties in order of the text.

    Each is shown as it was first said; see `plain` for what counts as the same.
    """
    first: dict[str, str] = {}
    for caption in captions:
        first.setdefault(plain(caption), caption.strip())
    counts = Counter(map(plain, captions))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:number]
    return [{"caption": first[text], "count": n, "share": n / len(captions)} for text, n in ranked]


def top_caption_share(captions: Sequence[str]) -> Statistic:
    """Share of the caption that is most frequent in the whole set.

    Without a speaker that same caption is counted: the largest share of fewer clips is biased upwards.
    """
    top = plain(most_frequent(captions, 1)[0]["caption"])
    return mean(np.array([plain(caption) == top for caption in captions], dtype=np.float64))


@dataclass(frozen=True)
class System:
    """One system under test: what was scored of each training seed (or draw of a protocol).

    Raises:
        UserError: nothing was scored, or the seeds were scored on different clips.
    """

    name: str
    seeds: Sequence[Scored]
    note: str = ""

    def __post_init__(self) -> None:
        if not self.seeds:
            raise UserError(f"system {self.name!r} has no result to report; score its captions first")
        if len({tuple(u.id for u in scored.utterances) for scored in self.seeds}) > 1:
            raise UserError(
                f"system {self.name!r}: its runs were scored on different clips, so they have no mean"
            )

    @cached_property
    def cells(self) -> dict[str, Interval]:
        """Every name of SCORES: {"value", "low", "high", "spread", "runs"}, None where it does not apply."""
        runs = [scored.statistics for scored in self.seeds]
        found = pooled(runs, clusters := self.seeds[0].clusters)
        for name in self.seeds[0].distinct:
            values, without = zip(*(scored.distinct[name] for scored in self.seeds), strict=True)
            clips = np.bincount(clusters.index).astype(np.float64)
            cell = jackknife(float(np.mean(values)), np.mean(without, axis=0), clips, 1.0)
            found[name] = {**cell, "spread": spread(values), "runs": len(values)}
        nothing: Interval = {"value": None, "low": None, "high": None, "spread": None, "runs": len(runs)}
        return {name: found.get(name, nothing) for name in SCORES}

    @property
    def signature(self) -> Row:
        """What was counted and how, by name."""
        first = self.seeds[0]
        return {
            **first.counted,
            "interval": f"95 % jackknife, a cluster being left out of all seeds, over {first.clusters.note}",
            **({"protocol": self.note} if self.note else {}),
            "versions": {name: version(name) for name in ("aligncap", "nltk", "numpy")},
        }


@dataclass(frozen=True)
class Baseline:
    """What systems are compared with, such as a linear probe: some scores, by name.

    Raises:
        UserError: a value is given for something that is no score.
    """

    name: str
    values: Mapping[str, float]
    note: str = ""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.values if name not in SCORES]:
            choices = ", ".join(SCORES)
            raise UserError(f"baseline {self.name!r}: {unknown[0]!r} is no metric, unlike {choices}")

    @property
    def cells(self) -> dict[str, Interval]:
        """In the form of `System.cells`, without intervals."""
        rest = {"low": None, "high": None, "spread": None, "runs": 1}
        return {name: {**rest, "value": value} for name, value in self.values.items()}


def details(scored: Scored) -> Row:
    """Confusion matrix with its labels and columns, scores by speaker, most frequent captions."""
    return {
        "labels": scored.emotions.labels,
        "columns": scored.emotions.columns,
        "confusion": scored.emotions.confusion().tolist(),
        "speakers": by_speaker(scored.emotions, scored.utterances),
        "top_captions": most_frequent(scored.captions),
    }


def evaluate_captions(rows: Rows, references: Sequence[Utterance], **options: Any) -> Row:
    """Score `rows` ({"id", "caption", ...}) against the captions and labels of `references`.

    Args:
        options: of `score_rows` and `score`.

    Returns:
        one entry for each of SCORES ({"value", "low", "high", …}, None where it does not apply), "signature":
        what was counted and how, and "details".

    Raises:
        UserErrors: captions and references do not match; all mismatches at once.
        UserError: WordNet, the encoder or a Java program is insisted on and not found; nothing to score.
    """
    system = System("captions", [score_rows(rows, references, **options)])
    return {**system.cells, "signature": system.signature, "details": details(system.seeds[0])}


def differences(first: Sequence[Scored], second: Sequence[Scored]) -> dict[str, Interval]:
    """`paired_differences`, second minus first, each its training seeds, in SCORES' order.

    A system's score is the mean over its seeds, as `over_seeds` says. All must have been scored on
    the same clips. Distinct-n is not among the scores, as it is no sum over clips.
    """
    a, b = (over_seeds([scored.statistics for scored in seeds]) for seeds in (first, second))
    gaps = paired_differences(a, b, first[0].clusters)
    return {name: gaps[name] for name in SCORES if name in gaps}


def together(corpora: Sequence[Sequence[Scored]], labels: Sequence[str]) -> dict[str, dict[str, Interval]]:
    """Scores of all corpora: {"pooled" and "mean_over_corpora": {name: cell}}, of those that all have.

    "pooled" takes the clips of all corpora as one set; "mean_over_corpora" is the plain mean of the corpora's
    own scores. There is no distinct-n, which is no sum over clips.

    Args:
        corpora: what was scored of each corpus, by training seed; of all corpora as many.
        labels: see `subset_cells`.
    """
    one_set: list[Run] = []
    means: list[Run] = []
    for parts in zip(*corpora, strict=True):
        shared = [name for name in SCORES if all(name in part.statistics for part in parts)]
        by_name = {name: [part.statistics[name] for part in parts] for name in shared}
        means.append({name: _mean_of(own) for name, own in by_name.items()})
        found = {
            name: replace(own[0], sums=np.concatenate([s.sums for s in own]))
            for name, own in by_name.items()
            # what differs in width is made of other labels, or of other denominators
            if name != "emotion_uar" and len({s.sums.shape[1] for s in own}) == 1
        }
        found |= emotion_statistics(joined([part.emotions for part in parts]))
        found["top_caption_share"] = top_caption_share([c for part in parts for c in part.captions])
        one_set.append({name: found[name] for name in SCORES if name in found})
    clusters = clusters_of([u for seeds in corpora for u in seeds[0].utterances])
    return {
        "pooled": pooled(one_set, clusters) | subset_cells([corpora], labels),
        "mean_over_corpora": pooled(means, clusters) | subset_cells([[seeds] for seeds in corpora], labels),
    }


def subset_cells(groups: Sequence[Sequence[Sequence[Scored]]], labels: Sequence[str]) -> dict[str, Interval]:
    """Emotion scores of the clips with one of these labels alone, averaged over groups of corpora.

    The clips of a group's corpora are one set. A caption that names an emotion outside of the labels, or
    none, is wrong.

    Args:
        groups: groups of corpora, a corpus being what was scored of it by training seed.

    Returns:
        {"subset_…": cell}, empty where no clip has one of the labels.
    """
    chosen = [[seeds for seeds in group if {*labels} & {*seeds[0].emotions.labels}] for group in groups]
    chosen = [group for group in chosen if group]
    runs = []
    for number in range(len(chosen[0][0]) if chosen else 0):
        of_groups = [joined([seeds[number].emotions for seeds in group], labels) for group in chosen]
        parts = [emotion_statistics(emotions) for emotions in of_groups]
        shared = [name for name in SCORES if name in parts[0]]
        runs.append({f"subset_{name}": _mean_of([part[name] for part in parts]) for name in shared})
    clips = [u for group in chosen for seeds in group for u in seeds[0].utterances if u.emotion in labels]
    return pooled(runs, clusters_of(clips)) if runs else {}


def _mean_of(parts: Sequence[Statistic]) -> Statistic:
    """The mean of scores of different sets as a score of all their clips: each set has its own columns."""
    sizes = [len(part.sums) for part in parts]
    starts = np.cumsum([0, *sizes])
    rows = [((start, starts[-1] - start - size), (0, 0)) for start, size in zip(starts, sizes, strict=False)]
    return averaged(
        [replace(p, sums=np.pad(p.sums, padding)) for p, padding in zip(parts, rows, strict=True)]
    )
