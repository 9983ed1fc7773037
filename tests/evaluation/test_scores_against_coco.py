"""BLEU, ROUGE-L and CIDEr-D: hand-worked, and equal to pycocoevalcap on the fixture.

The fixture is made by tests/fixtures/make_metrics_200.py.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aligncap.evaluation.metrics.ngram import (
    bleu_counts,
    bleu_scores,
    cider_d,
    common_subsequence,
    count_ngrams,
    rouge_l,
)
from aligncap.evaluation.metrics.tokens import tokenize

FIXTURE = Path(__file__).parents[1] / "fixtures" / "metrics_200.json"
Tokens = tuple[str, ...]


@pytest.fixture(scope="module")
def coco() -> dict[str, Any]:
    return json.loads(FIXTURE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def texts(coco: dict[str, Any]) -> tuple[list[Tokens], list[list[Tokens]]]:
    captions = [tokenize(clip["caption"]) for clip in coco["clips"]]
    return captions, [[tokenize(text) for text in clip["references"]] for clip in coco["clips"]]


def test_fixture_was_scored_on_the_tokens_that_are_counted_today(coco: dict, texts: tuple) -> None:
    assert len(coco["clips"]) == 200 and all(len(clip["references"]) == 5 for clip in coco["clips"])
    assert [" ".join(tokens) for tokens in texts[0]] == [clip["tokens"] for clip in coco["clips"]]


def test_bleu_equals_coco_for_the_corpus_and_for_every_clip(coco: dict, texts: tuple) -> None:
    counts = bleu_counts(count_ngrams(*texts))
    corpus = [coco["corpus"][f"bleu_{order}"] for order in (1, 2, 3, 4)]
    np.testing.assert_allclose(bleu_scores(counts.sum(axis=0)), corpus, atol=1e-6, rtol=0)
    np.testing.assert_allclose(
        bleu_scores(counts), [clip["bleu"] for clip in coco["clips"]], atol=1e-6, rtol=0
    )


def test_rouge_l_equals_coco_for_the_corpus_and_for_every_clip(coco: dict, texts: tuple) -> None:
    scores = rouge_l(*texts)
    assert scores.mean() == pytest.approx(coco["corpus"]["rouge_l"], abs=1e-6)
    np.testing.assert_allclose(scores, [clip["rouge_l"] for clip in coco["clips"]], atol=1e-6, rtol=0)


def test_cider_d_equals_coco_for_the_corpus_and_for_every_clip(coco: dict, texts: tuple) -> None:
    scores = cider_d(count_ngrams(*texts))
    assert scores.mean() == pytest.approx(coco["corpus"]["cider_d"], abs=1e-6)
    np.testing.assert_allclose(scores, [clip["cider_d"] for clip in coco["clips"]], atol=1e-6, rtol=0)


def test_bleu_equals_sacrebleu_where_every_order_matches(texts: tuple) -> None:
    from sacrebleu.metrics import BLEU

    captions, references = texts
    streams = [[" ".join(group[k]) for group in references] for k in range(5)]
    scores = bleu_scores(bleu_counts(count_ngrams(captions, references)).sum(axis=0))
    for order in (1, 2, 3, 4):
        metric = BLEU(tokenize="none", smooth_method="none", max_ngram_order=order, force=True)
        other = metric.corpus_score([" ".join(c) for c in captions], streams).score / 100
        assert scores[order - 1] == pytest.approx(other, abs=1e-6)


def test_bleu_by_hand() -> None:
    sets = count_ngrams(["the man sounds sad".split()], [["the man sounds very sad".split()]])
    counts = bleu_counts(sets)
    assert counts.tolist() == [[4, 2, 1, 0, 4, 3, 2, 1, 4, 5]]
    bleu_1, bleu_2, bleu_3, _ = bleu_scores(counts[0])
    brevity = math.exp(1 - 5 / 4)
    assert bleu_1 == pytest.approx(brevity)
    assert bleu_2 == pytest.approx(brevity * (2 / 3) ** (1 / 2)) == pytest.approx(0.6359, abs=1e-4)
    assert bleu_3 == pytest.approx(brevity * (2 / 3 * 1 / 2) ** (1 / 3))


def test_bleu_clips_by_the_most_generous_reference_and_takes_the_shorter_of_two_close_ones() -> None:
    sets = count_ngrams(["sad sad sad".split()], [["sad".split(), "sad sad".split(), "a b c d".split()]])
    counts = bleu_counts(sets)[0]
    assert counts[0] == 2  # "sad" twice in the second reference
    assert counts[-2:].tolist() == [3, 2]  # 2 and 4 are as close to 3


def test_rouge_l_by_hand() -> None:
    # 2 of 3 words in order: P = R = F = 2/3. Second clip: P = 2/2 (first reference), R = 2/3 (both).
    scores = rouge_l(
        ["he sounds sad".split(), "a b".split()], [["he is sad".split()], ["a b x".split(), "a y b".split()]]
    )
    assert scores[0] == pytest.approx(2 / 3)
    assert scores[1] == pytest.approx((1 + 1.44) * 1 * (2 / 3) / (2 / 3 + 1.44))


def test_cider_d_by_hand() -> None:
    # Two clips of one reference. "he is" is in both references, so it weighs 0; "sad" weighs log 2.
    references = [["he is sad".split()], ["he is calm".split()]]
    scores = cider_d(count_ngrams(["he is sad".split(), "she is calm today".split()], references))
    # Clip 0 equals its reference: similarity 1 for n = 1, 2, 3 and no 4-grams: 10 * 3/4.
    assert scores[0] == pytest.approx(7.5)
    # Clip 1, all weights log 2: {she, calm, today} against {calm}: 1/sqrt(3); {she is, is calm, calm today}
    # against {is calm} ("he is" weighs 0): 1/sqrt(3); no trigram; one bigram more than the reference.
    assert scores[1] == pytest.approx(10 * (2 / math.sqrt(3)) / 4 * math.exp(-1 / 72))


def test_one_clip_alone_has_no_rare_ngram() -> None:
    assert cider_d(count_ngrams(["he is sad".split()], [["he is sad".split()]])).tolist() == [0.0]


def test_empty_captions_score_nothing_and_break_nothing() -> None:
    captions, references = [(), ("sad",)], [[("he", "is", "sad")], [("sad",)]]
    sets = count_ngrams(captions, references)
    assert bleu_scores(bleu_counts(sets))[0].max() < 1e-6
    assert rouge_l(captions, references).tolist() == [0.0, 1.0]
    assert cider_d(sets)[0] == 0.0
    everything_empty = count_ngrams([()], [[("a",)]])
    assert np.isfinite(bleu_scores(bleu_counts(everything_empty).sum(axis=0))).all()


def test_bit_parallel_subsequence_equals_the_textbook_table() -> None:
    rng = random.Random(0)
    for _ in range(300):
        a = [rng.choice("abcd") for _ in range(rng.randint(0, 90))]
        b = [rng.choice("abcd") for _ in range(rng.randint(0, 90))]
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        assert common_subsequence(a, b) == table[-1][-1]


def test_references_may_differ_in_number() -> None:
    captions = [("a", "b"), ("c",), ("d", "e")]
    references = [[("a", "b")], [("c",), ("x",), ("c", "y")], [("d",), ("e", "d")]]
    together = bleu_counts(count_ngrams(captions, references))
    alone = [bleu_counts(count_ngrams([c], [r]))[0] for c, r in zip(captions, references, strict=True)]
    np.testing.assert_array_equal(together, alone)


def test_a_large_vocabulary_is_counted_by_sorting_with_the_same_scores() -> None:
    rng = random.Random(1)
    rare = [f"w{i}" for i in range(5000)]
    captions = [[rng.choice("abc") for _ in range(6)] for _ in range(40)]
    references = [[[rng.choice("abc") for _ in range(6)] for _ in range(3)] for _ in captions]
    alone = count_ngrams(captions, references)
    # one more caption of many words: numbers of n-grams change, those of the other clips' matches do not
    together = count_ngrams([*captions, rare], [*references, [["z"]]])
    np.testing.assert_array_equal(bleu_counts(together)[:-1], bleu_counts(alone))
    for one, other, targets in zip(alone.captions, together.captions, together.references, strict=True):
        assert (one.count == other.count[other.sentence < len(captions)]).all()
        assert len({*other.gram, *targets.gram}) == other.kinds > len(rare) - 4
