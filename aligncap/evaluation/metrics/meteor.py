"""METEOR of captions by NLTK's definition, the mean over clips.

`evaluate.load(".../meteor.py")` or `Meteor()`.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from aligncap.evaluation.metrics import FEATURES, USAGE
from aligncap.evaluation.sequences import meteor
from aligncap.evaluation.tokens import tokenize
from aligncap.evaluation.wordnet import find_wordnet


class Meteor(evaluate.Metric):
    """Exact words, Porter stems and, where WordNet is found, synonyms; the result's `variant` says which.

    `compute(..., wordnet=True)` insists on synonyms, `wordnet=False` leaves them out.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="METEOR as nltk.translate.meteor_score defines it (not Java's 1.5).",
            citation="Lavie and Agarwal. METEOR. WMT 2007.",
            inputs_description=USAGE,
            features=datasets.Features(FEATURES()),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[list[str]],
        per_clip: bool = False,
        wordnet: bool | None = None,
    ) -> dict[str, Any]:
        if wordnet is None:
            wordnet = find_wordnet() is not None
        captions = [tokenize(caption) for caption in predictions]
        targets = [[tokenize(text) for text in texts] for texts in references]
        scores = meteor(captions, targets, wordnet=wordnet)
        variant = "exact+stem+WordNet" if wordnet else "exact+stem"
        result: dict[str, Any] = {"meteor": float(scores.mean()), "variant": variant}
        if per_clip:
            result["per_clip"] = scores.tolist()
        return result
