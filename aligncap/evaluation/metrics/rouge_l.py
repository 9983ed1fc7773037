"""ROUGE-L of captions as COCO computes it (beta 1.2), the mean over clips.

`evaluate.load(".../rouge_l.py")` or `RougeL()`.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from aligncap.evaluation.metrics import FEATURES, USAGE
from aligncap.evaluation.sequences import rouge_l
from aligncap.evaluation.tokens import tokenize


class RougeL(evaluate.Metric):
    """F-measure of the longest common subsequence, from the best precision and the best recall."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="ROUGE-L as COCO's caption evaluation computes it (Lin 2004; beta 1.2, no stemming).",
            citation="Lin. ROUGE: a package for automatic evaluation of summaries. 2004.",
            inputs_description=USAGE,
            features=datasets.Features(FEATURES()),
        )

    def _compute(
        self, predictions: list[str], references: list[list[str]], per_clip: bool = False
    ) -> dict[str, Any]:
        captions = [tokenize(caption) for caption in predictions]
        targets = [[tokenize(text) for text in texts] for texts in references]
        scores = rouge_l(captions, targets)
        result: dict[str, Any] = {"rouge_l": float(scores.mean())}
        if per_clip:
            result["per_clip"] = scores.tolist()
        return result
