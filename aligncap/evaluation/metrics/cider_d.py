"""CIDEr-D of captions, equal to pycocoevalcap's Cider, the mean over clips.

`evaluate.load(".../cider_d.py")` or `CiderD()`.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from aligncap.evaluation.metrics import FEATURES, USAGE
from aligncap.evaluation.ngrams import cider_d, count_ngrams
from aligncap.evaluation.tokens import tokenize


class CiderD(evaluate.Metric):
    """A single clip scores 0: its document frequencies leave no n-gram rare."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="CIDEr-D, 0 to 10; document frequencies come from these references.",
            citation="Vedantam et al. CIDEr: consensus-based image description evaluation. CVPR 2015.",
            inputs_description=USAGE,
            features=datasets.Features(FEATURES()),
        )

    def _compute(
        self, predictions: list[str], references: list[list[str]], per_clip: bool = False
    ) -> dict[str, Any]:
        captions = [tokenize(caption) for caption in predictions]
        targets = [[tokenize(text) for text in texts] for texts in references]
        scores = cider_d(count_ngrams(captions, targets))
        result: dict[str, Any] = {"cider_d": float(scores.mean())}
        if per_clip:
            result["per_clip"] = scores.tolist()
        return result
