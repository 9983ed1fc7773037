"""Caption scores as one `evaluate.Metric` module, which `aligncap evaluate` itself scores with.

It loads by path and offline, wherever the file lies, while aligncap is installed:

    metric = evaluate.load("<folder>/captions.py", "bleu")  # or meteor, rouge_l, cider_d; without a name: all
    metric.compute(predictions=["He sounds sad."], references=[["He seems sad.", "A sad man speaks."]])
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import datasets
import evaluate
import numpy as np

from aligncap.evaluation.metrics import ngram
from aligncap.evaluation.metrics.java import COCO_METRICS, coco_statistics
from aligncap.utils.io import Row
from aligncap.utils.statistics import Floats, Statistic, mean

CONFIGS = ("bleu", "meteor", "rouge_l", "cider_d")


def caption_statistics(
    names: Sequence[str], captions: Sequence[str], references: Sequence[Sequence[str]], wordnet: bool
) -> dict[str, Statistic]:
    """The scores of `names` (of CONFIGS or COCO_METRICS) as sums over clips; BLEU's are bleu_1 to bleu_4.

    Raises:
        UserError: WordNet or a Java program is asked for and not there.
    """
    said = [ngram.tokenize(caption) for caption in captions]
    targets = [[ngram.tokenize(text) for text in texts] for texts in references]
    sets = ngram.count_ngrams(said, targets)
    found: dict[str, Statistic] = {}
    if "bleu" in names:
        counts = ngram.bleu_counts(sets)
        for order in range(1, ngram.ORDERS + 1):
            found[f"bleu_{order}"] = Statistic(counts, partial(_bleu, order=order))
    if "meteor" in names:
        found["meteor"] = mean(ngram.meteor(said, targets, wordnet=wordnet))
    if "rouge_l" in names:
        found["rouge_l"] = mean(ngram.rouge_l(said, targets))
    if "cider_d" in names:
        found["cider_d"] = mean(ngram.cider_d(sets))
    return found | coco_statistics([name for name in names if name in COCO_METRICS], said, targets)


def _bleu(sums: Floats, order: int) -> Floats:
    return ngram.bleu_scores(sums)[..., order - 1]


class CaptionMetric(evaluate.Metric):
    """One score, or all of CONFIGS, of captions with any number of references each.

    BLEU: closest reference length, no smoothing, counts summed over clips before dividing. CIDEr-D: 0 to 10,
    document frequencies of these references, so that a single clip scores 0. METEOR: exact words, Porter
    stems and, where WordNet is found, synonyms; the result's `variant` says which.

    Options of `compute`: `wordnet` insists on synonyms (True) or leaves them out (False); `per_clip` adds
    the scores of each clip by name, `statistics` the `Statistic` of each score, to resample from.
    """

    def _info(self) -> evaluate.MetricInfo:
        texts = datasets.Value("string")
        return evaluate.MetricInfo(
            description="BLEU-1 to 4, ROUGE-L and CIDEr-D as COCO's caption evaluation computes them; METEOR "
            "as nltk.translate.meteor_score does (not Java's 1.5).",
            citation="Papineni et al. 2002 (BLEU); Lin 2004 (ROUGE); Vedantam et al. 2015 (CIDEr); Lavie and "
            "Agarwal 2007 (METEOR).",
            inputs_description="predictions: captions. references: lists of captions.",
            features=datasets.Features({"predictions": texts, "references": datasets.Sequence(texts)}),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[list[str]],
        wordnet: bool | None = None,
        per_clip: bool = False,
        statistics: bool = False,
    ) -> Row:
        names = CONFIGS if self.config_name == "default" else [self.config_name]
        if unknown := set(names) - {*CONFIGS, *COCO_METRICS}:
            raise ValueError(f"no score {unknown.pop()!r}; there are {', '.join((*CONFIGS, *COCO_METRICS))}")
        if wordnet is None:
            wordnet = "meteor" in names and ngram.find_wordnet() is not None
        found = caption_statistics(names, predictions, references, wordnet)
        result: Row = {name: statistic.value for name, statistic in found.items()}
        if "meteor" in found:
            result["variant"] = "exact+stem+WordNet" if wordnet else "exact+stem"
        if per_clip:
            result["per_clip"] = {name: np.asarray(s.score(s.sums)).tolist() for name, s in found.items()}
        return result | ({"statistics": found} if statistics else {})
