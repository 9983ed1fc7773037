"""What was counted and how, beside every result of `evaluate_captions`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from aligncap.evaluation import coco, hallucination, tokens
from aligncap.evaluation.wordnet import require_wordnet

if TYPE_CHECKING:
    from aligncap.evaluation.evaluate import Scored


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
