"""Time of BLEU-1..4, ROUGE-L and CIDEr-D against pycocoevalcap's, on the same tokens in the same run.

    pip install --no-deps --target coco pycocoevalcap==1.2
    PYTHONPATH=coco python scripts/bench_metrics.py [--captions 10000] [--references 5] [--rounds 5]

The texts are made here from the seed, as in scripts/make_metric_fixture.py. Scores are compared first, of the
corpus and of every clip, and must agree within 1e-6. Then the two take turns, metric by metric, round by
round; each time is the median over rounds (least to most) and each ratio is of the same round. What counts as
pycocoevalcap's time is its scorers: Bleu(4), Rouge(), Cider(). Tokenising is timed on its own: ours with an
empty cache, and pycocoevalcap's PTBTokenizer where there is Java. One core; two minutes.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from bench_common import spread
from make_metric_fixture import FEELING, sentence

from aligncap.evaluation.metrics.ngram import (
    bleu_counts,
    bleu_scores,
    cider_d,
    count_ngrams,
    rouge_l,
    tokenize,
)

TOLERANCE = 1e-6
Texts = tuple[list[str], list[list[str]]]
Call = Callable[[], Any]


def texts(captions: int, references: int, seed: int) -> Texts:
    """Captions and their references, seven in ten of the references' emotion."""
    rng = random.Random(seed)
    labels = sorted(FEELING)
    said, targets = [], []
    for _ in range(captions):
        label = rng.choice(labels)
        said.append(sentence(rng, label if rng.random() < 0.7 else rng.choice(labels)))
        targets.append([sentence(rng, label) for _ in range(references)])
    return said, targets


def tokenized(made: Texts) -> tuple[list[tuple[str, ...]], list[list[tuple[str, ...]]]]:
    tokenize.cache_clear()
    return [tokenize(text) for text in made[0]], [[tokenize(text) for text in group] for group in made[1]]


def ways(said: list[Any], targets: list[list[Any]]) -> dict[str, tuple[Call, Call]]:
    """Ours and pycocoevalcap's, by name; each gives its scores of the corpus and of the clips."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    theirs_said = {clip: [" ".join(tokens)] for clip, tokens in enumerate(said)}
    theirs = {clip: [" ".join(tokens) for tokens in group] for clip, group in enumerate(targets)}

    def bleu(sets: Any) -> tuple[Any, Any]:
        counts = bleu_counts(sets)
        return bleu_scores(counts.sum(axis=0)), bleu_scores(counts).T

    def averaged(scores: Any) -> tuple[Any, Any]:
        return scores.mean(), scores

    def everything() -> tuple[Any, ...]:
        sets = count_ngrams(said, targets)
        return bleu(sets), averaged(rouge_l(said, targets)), averaged(cider_d(sets))

    def coco(scorer: Any, **more: int) -> Call:
        return lambda: scorer.compute_score(theirs, theirs_said, **more)

    bleus, rouge, cider = coco(Bleu(4), verbose=0), coco(Rouge()), coco(Cider())
    return {
        "BLEU-1 to 4": (lambda: bleu(count_ngrams(said, targets)), bleus),
        "ROUGE-L": (lambda: averaged(rouge_l(said, targets)), rouge),
        "CIDEr-D": (lambda: averaged(cider_d(count_ngrams(said, targets))), cider),
        "all three": (everything, lambda: (bleus(), rouge(), cider())),
    }


def widest_gap(ours: Any, theirs: Any) -> float:
    """Largest difference between two scores, of the corpus or of any clip."""
    if isinstance(ours, tuple):
        return max(widest_gap(a, b) for a, b in zip(ours, theirs, strict=True))
    return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max())


def seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=int, default=10_000)
    parser.add_argument("--references", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    made = texts(options.captions, options.references, options.seed)
    said, targets = tokenized(made)
    try:
        calls = ways(said, targets)
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}. Install it as the head of this file says") from None

    for name, (ours, theirs) in calls.items():
        gap = widest_gap(ours(), theirs())
        if not gap <= TOLERANCE:
            raise SystemExit(f"{name}: differs from pycocoevalcap by {gap:.2e}, more than {TOLERANCE:g}")
        print(f"{name}: equal, largest difference {gap:.1e}")

    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in [*calls, "tokenising"]}
    java = shutil.which("java")
    for _ in range(options.rounds):
        for name, pair in calls.items():
            for column, call in zip(times[name], pair, strict=True):
                column.append(seconds(call))
        times["tokenising"][0].append(seconds(lambda: tokenized(made)))
        if java:
            times["tokenising"][1].append(seconds(lambda: ptb_tokenized(made)))

    print(
        f"\n{options.captions} captions x {options.references} references, {options.rounds} rounds, seconds"
    )
    for name, (ours_s, theirs_s) in times.items():
        print(f"{name:12}  ours {spread(ours_s, 3)}  ", end="")
        report(ours_s, theirs_s)
    if java:
        ours_s, theirs_s = (
            [
                score + words
                for score, words in zip(times["all three"][side], times["tokenising"][side], strict=True)
            ]
            for side in (0, 1)
        )
        print(f"{'with tokens':12}  ours {spread(ours_s, 3)}  ", end="")
        report(ours_s, theirs_s)


def report(ours: list[float], theirs: list[float]) -> None:
    if not theirs:
        print("pycocoevalcap: no Java")
        return
    share = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(f"pycocoevalcap {spread(theirs, 3)}  share of its time {spread(share, 3)}")


def ptb_tokenized(made: Texts) -> Any:
    """pycocoevalcap's own tokens, of captions and references, as its COCOEvalCap makes them."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    said, targets = made
    tokenizer = PTBTokenizer()
    return (
        tokenizer.tokenize({clip: [{"caption": t} for t in group] for clip, group in enumerate(targets)}),
        tokenizer.tokenize({clip: [{"caption": text}] for clip, text in enumerate(said)}),
    )


if __name__ == "__main__":
    main()
