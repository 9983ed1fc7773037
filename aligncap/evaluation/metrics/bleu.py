"""BLEU-1 to BLEU-4 of captions, corpus level, equal to COCO's: `evaluate.load(".../bleu.py")` or `Bleu()`."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from aligncap.evaluation.metrics import FEATURES, USAGE
from aligncap.evaluation.ngrams import bleu_counts, bleu_scores, count_ngrams
from aligncap.evaluation.tokens import tokenize


class Bleu(evaluate.Metric):
    """Closest reference length, no smoothing, counts summed over clips before dividing."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="BLEU-1 to BLEU-4 as COCO's caption evaluation computes them.",
            citation="Papineni et al. BLEU: automatic evaluation of machine translation. ACL 2002.",
            inputs_description=USAGE,
            features=datasets.Features(FEATURES()),
        )

    def _compute(
        self, predictions: list[str], references: list[list[str]], per_clip: bool = False
    ) -> dict[str, Any]:
        captions = [tokenize(caption) for caption in predictions]
        counts = bleu_counts(
            count_ngrams(captions, [[tokenize(text) for text in texts] for texts in references])
        )
        result: dict[str, Any] = {
            f"bleu_{n}": float(v) for n, v in enumerate(bleu_scores(counts.sum(axis=0)), 1)
        }
        if per_clip:
            result["per_clip"] = bleu_scores(counts).tolist()
        return result
