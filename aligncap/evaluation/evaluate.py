"""Score captions against references: every metric with its interval, and a signature of what was counted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, get_args

import numpy as np

from aligncap.data.manifest import Utterance
from aligncap.evaluation.metrics import hallucination
from aligncap.evaluation.metrics import java as coco
from aligncap.evaluation.metrics import java as coco_tools
from aligncap.evaluation.metrics import ngram as tokens
from aligncap.evaluation.metrics.emotion import Emotions, by_speaker, emotion_statistics, read_emotions
from aligncap.evaluation.metrics.hallucination import (
    MEASURES,
    ClipMeasures,
    hallucination_statistics,
    measure,
)
from aligncap.evaluation.metrics.ngram import (
    ORDERS,
    CaptionSet,
    bleu_counts,
    bleu_scores,
    cider_d,
    count_ngrams,
    distinct_share,
    diversity_statistics,
    find_wordnet,
    meteor,
    most_frequent,
    require_wordnet,
    rouge_l,
)
from aligncap.evaluation.metrics.similarity import Choice, Encoder, cosines, sentence_encoder
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.statistics import (
    Clusters,
    Interval,
    Statistic,
    clusters_of,
    intervals,
    mean,
    paired_differences,
)


def signature(
    scored: Scored, missing: tuple[int, int], resamples: int, seed: int, label_map: Mapping[str, str] | None
) -> dict[str, Any]:
    """By name, in words and numbers. `missing` is (captions, references) left out for want of a partner."""
    wordnet = "exact+stem"
    if scored.synonyms:
        wordnet = f"exact+stem+WordNet {require_wordnet().get_version()}"
    per_clip = [len(u.captions) for u in scored.utterances]
    corpora = sorted({u.corpus for u in scored.utterances})
    languages = sorted({u.language for u in scored.utterances})
    return {
        "clips": len(scored.captions),
        "references": sum(per_clip),
        "references_per_clip": [min(per_clip), max(per_clip)],
        "speakers": scored.clusters.speakers,
        "clips_of_unknown_speaker": scored.clusters.unknown,
        "clips_with_emotion_label": int((scored.emotions.truth >= 0).sum()),
        "emotion_labels": len(scored.emotions.labels),
        "empty_captions": sum(not caption.strip() for caption in scored.captions),
        "captions_left_out": missing[0],
        "references_left_out": missing[1],
        "corpora": corpora,
        "languages": languages,
        "tokenizer": tokens.DESCRIPTION,
        "bleu": "corpus level, closest reference length, no smoothing but COCO's 1e-15 guard",
        "rouge_l": "COCO's, beta 1.2, mean over clips",
        "cider_d": "n-grams 1-4, sigma 6, 0 to 10, document frequencies of all these references",
        "meteor": f"nltk.translate.meteor_score, {wordnet}, best reference, mean over clips; not Java's 1.5",
        "similarity": scored.similarity,
        **coco.signature(scored.coco),
        "emotion": "label of the caption's emotion words by data/emotions.yaml; no word counts as wrong",
        "emotions_renamed": dict(label_map or {}),
        **hallucination.signature(scored.measures),
        "interval": f"95 % percentile bootstrap over {scored.clusters.note}; distinct_n: jackknife",
        "resamples": resamples,
        "seed": seed,
        "versions": {name: version(name) for name in ("aligncap", "nltk", "numpy")},
    }


Synonyms = Literal["auto", "require", "none"]

METRICS = (
    *(f"bleu_{order}" for order in range(1, ORDERS + 1)),
    "meteor",
    "rouge_l",
    "cider_d",
    "emotion_accuracy",
    "emotion_uar",
    "emotion_none_share",
    "distinct_1",
    "distinct_2",
    "top_caption_share",
    "mean_length",
)
# what needs more than this package: a sentence encoder, Java; None where it is not there or not asked for
EXTRAS = ("similarity", *coco_tools.COCO_METRICS)
# METRICS can be had of any captions, MEASURES where the manifest has cues, genders or transcripts
SCORES = (*METRICS, *EXTRAS, *MEASURES)


def pair_up(
    rows: Sequence[Mapping[str, Any]], references: Sequence[Utterance], *, allow_missing: bool = False
) -> tuple[list[Utterance], list[str]]:
    """Utterances and their captions, in the order of `references`.

    With `allow_missing`, captions and references without a partner are left out; `evaluate_captions` writes
    their number into the signature. An empty caption is a caption (it scores 0); an empty reference is a
    error.

    Raises:
        UserErrors: every id without partner, said twice or without a caption, and every clip without references.
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
        elif not all(tokens.tokenize(text) for text in u.captions):
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


@dataclass(frozen=True)
class Scored:
    """One system's captions with everything counted, before any resampling."""

    utterances: list[Utterance]
    captions: list[str]
    sets: CaptionSet
    emotions: Emotions
    measures: list[ClipMeasures]
    clusters: Clusters
    statistics: dict[str, Statistic]
    synonyms: bool
    similarity: str  # by which encoder, or why by none
    coco: tuple[str, ...] = ()


def _bleu(counts: np.ndarray, order: int) -> Statistic:
    return Statistic(counts, lambda sums: bleu_scores(sums)[..., order - 1])


def score(
    utterances: list[Utterance],
    captions: list[str],
    *,
    synonyms: Synonyms = "auto",
    similarity: Choice = "auto",
    coco: Sequence[str] = (),
    label_map: Mapping[str, str] | None = None,
    whole: Sequence[Utterance] | None = None,
) -> Scored:
    """Count everything once, clip by clip; `captions[i]` belongs to `utterances[i]`.

    `whole` is the set that speakers' norms are taken from, `utterances` by default. The other options are
    those of `evaluate_captions`.
    """
    for name, value in (("synonyms", synonyms), ("similarity", similarity)):
        if value not in get_args(Synonyms):
            raise UserError(f"{name} is {value!r}; choose among {', '.join(get_args(Synonyms))}")
    if synonyms == "require":
        require_wordnet()
    wordnet = synonyms == "require" or (synonyms == "auto" and find_wordnet() is not None)
    said = [tokens.tokenize(caption) for caption in captions]
    targets = [[tokens.tokenize(text) for text in u.captions] for u in utterances]
    sets = count_ngrams(said, targets)
    emotions = read_emotions(captions, utterances, label_map)
    counts = bleu_counts(sets)
    statistics = {f"bleu_{order}": _bleu(counts, order) for order in range(1, ORDERS + 1)}
    statistics["meteor"] = mean(meteor(said, targets, wordnet=wordnet))
    statistics["rouge_l"] = mean(rouge_l(said, targets))
    statistics["cider_d"] = mean(cider_d(sets))
    statistics.update(emotion_statistics(emotions))
    statistics.update(diversity_statistics(captions, sets.caption_lengths))
    encoder = sentence_encoder(similarity, captions, [u.captions for u in utterances])
    if isinstance(encoder, Encoder):
        statistics["similarity"] = mean(cosines(captions, [u.captions for u in utterances], encoder))
    statistics.update(coco_tools.coco_statistics(coco, said, targets))
    measures = measure(captions, utterances, whole=whole, label_map=label_map)
    statistics.update(hallucination_statistics(measures))
    return Scored(
        utterances,
        captions,
        sets,
        emotions,
        measures,
        clusters_of(utterances),
        statistics,
        wordnet,
        f"cosine, mean over references and clips, by {encoder.name}"
        if isinstance(encoder, Encoder)
        else f"not counted: {encoder}",
        tuple(coco),
    )


def _told(interval: Interval) -> Interval:
    """None for what is no number: a share of nothing, such as wrong claims of captions that claim nothing."""
    return {k: v if v is not None and math.isfinite(v) else None for k, v in interval.items()}


def evaluate_captions(
    rows: Sequence[Mapping[str, Any]],
    references: Sequence[Utterance],
    *,
    resamples: int = 1000,
    seed: int = 0,
    synonyms: Synonyms = "auto",
    similarity: Choice = "auto",
    coco: Sequence[str] = (),
    label_map: Mapping[str, str] | None = None,
    allow_missing: bool = False,
    scored: Scored | None = None,
) -> dict[str, Any]:
    """Score `rows` ({"id", "caption", ...}) against the captions and labels of `references`.

    Returns a dict with one entry for each of SCORES ({"value", "low", "high"}, None where it does not
    apply), and "signature": what was counted and how; "details": confusion matrix, scores by speaker, most
    frequent captions.

    `synonyms` is METEOR's use of WordNet, `similarity` the use of the sentence encoder: where found, insisted
    on, or none. `coco` names metrics of pycocoevalcap's Java programs, "meteor_1_5" and "spice". `label_map`
    renames emotions that captions name, for a set without such a label: {"calm": "neutral"}. `scored` is what
    `score` gave for these very rows and options, where that has been counted before.

    Raises:
        UserErrors: captions and references do not match; all mismatches at once.
        UserError: WordNet, the encoder or a Java program is insisted on and not found; nothing to score.
    """
    if scored is None:
        scored = score(
            *pair_up(rows, references, allow_missing=allow_missing),
            synonyms=synonyms,
            similarity=similarity,
            coco=coco,
            label_map=label_map,
            whole=references,
        )
    utterances, captions = scored.utterances, scored.captions
    found = intervals(scored.statistics, scored.clusters, resamples=resamples, seed=seed)
    for order in (1, 2):
        found[f"distinct_{order}"] = distinct_share(scored.sets, order, scored.clusters)
    nothing: Interval = {"value": None, "low": None, "high": None}
    result: dict[str, Any] = {name: _told(found.get(name, nothing)) for name in SCORES}
    missing = (len(rows) - len(captions), len(references) - len(captions))
    result["signature"] = signature(scored, missing, resamples, seed, label_map)
    result["details"] = {
        "labels": scored.emotions.labels,
        "columns": scored.emotions.columns,
        "confusion": scored.emotions.confusion().tolist(),
        "speakers": by_speaker(scored.emotions, utterances),
        "top_captions": most_frequent(captions),
    }
    return result


def compare_captions(
    first: Sequence[Sequence[Mapping[str, Any]]],
    second: Sequence[Sequence[Mapping[str, Any]]],
    references: Sequence[Utterance],
    *,
    resamples: int = 1000,
    seed: int = 0,
    synonyms: Synonyms = "auto",
    similarity: Choice = "auto",
    coco: Sequence[str] = (),
    label_map: Mapping[str, str] | None = None,
) -> dict[str, Interval]:
    """Second minus first, resampled together: {"name": {"value", "low", "high", "p"}}.

    Each system is its rows by training seed; sums over clips are added over seeds, so that a score is that
    of all its seeds' captions together. All must caption every clip of `references`. Distinct-n is not among
    them, as it is no sum over clips.

    Raises:
        UserErrors: captions and references do not match.
    """
    options: dict[str, Any] = {"synonyms": synonyms, "similarity": similarity, "coco": coco}
    systems = [
        [score(*pair_up(rows, references), label_map=label_map, **options) for rows in seeds]
        for seeds in (first, second)
    ]
    both = set.intersection(*(set(s.statistics) for seeds in systems for s in seeds))
    first_of, second_of = (
        {name: _pooled([s.statistics[name] for s in seeds]) for name in SCORES if name in both}
        for seeds in systems
    )
    gaps = paired_differences(first_of, second_of, systems[0][0].clusters, resamples=resamples, seed=seed)
    return {name: _told(gap) for name, gap in gaps.items()}


def _pooled(seeds: Sequence[Statistic]) -> Statistic:
    return Statistic(np.sum([s.sums for s in seeds], axis=0), seeds[0].score)
