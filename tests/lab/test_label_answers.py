"""Answers and probabilities of labels, with planted bias, prior and knowledge."""

from __future__ import annotations

import numpy as np
import pytest

from aligncap.data.manifest import Utterance
from aligncap.lab.label_answers import (
    Labelled,
    mean_prior,
    probabilities,
    read_said,
    recognition,
)
from aligncap.utils.statistics import clusters_of

LABELS = ["angry", "happy", "neutral", "sad"]


def about(number: int = 96, speakers: int = 12) -> Labelled:
    truth = [LABELS[i % 4] for i in range(number)]
    clips = [
        Utterance(f"c{i}", ".", "x.wav", "made", speaker=f"s{i // 4 % speakers}", emotion=t)
        for i, t in enumerate(truth)
    ]
    return Labelled(truth, LABELS, clusters_of(clips), [(u.corpus, u.speaker) for u in clips])


def test_right_answers_in_two_languages_are_right():
    known = about()
    words = {"angry": "Angry.", "happy": "高兴", "neutral": "neutral", "sad": "sadness"}
    found = recognition([words[t] for t in known.truth], known)
    assert found["accuracy"]["value"] == found["uar"]["value"] == 1 and found["invalid"]["value"] == 0
    assert found["shares"] == {label: 0.25 for label in LABELS} | {"none": 0}
    assert all(cell["value"] == 0 for cell in found["bias"].values())


def test_one_answer_for_all_is_at_chance_and_its_bias_is_known():
    known = about()
    found = recognition(["neutral"] * len(known.truth), known)
    assert found["uar"]["value"] == known.chance == 0.25
    assert found["bias"]["neutral"]["value"] == 0.75 and found["bias"]["sad"]["value"] == -0.25
    assert np.array(found["confusion"])[:, 2].tolist() == [24] * 4


def test_sentences_are_invalid_and_listed_and_read_where_they_may_be():
    known = about()
    texts = [f"The emotion label is {t}." for t in known.truth]
    texts[0] = "No idea"
    found = recognition(texts, known)
    assert found["invalid"]["value"] == 1 and found["uar"]["value"] == 0
    assert found["invalid_answers"][0]["count"] == 24
    assert found["uar_sentences"]["value"] == pytest.approx(1 - 1 / 24 / 4)
    assert read_said(["The emotion is calm."], LABELS, lenient=True) == ["none"]


def test_samples_are_counted_beside_the_greedy_answer():
    known = about()
    samples = [[t, "neutral"] for t in known.truth]
    found = recognition(known.truth, known, samples)
    assert found["sampled"]["samples"] == 2
    assert found["sampled"]["uar"]["value"] == pytest.approx((1 + 0.25) / 2)
    assert found["sampled"]["as_greedy"]["value"] == pytest.approx((0.5 * 72 + 24) / 96)


def planted(known: Labelled, knows: float, prior: np.ndarray, seed: int = 0) -> np.ndarray:
    """Log-masses that know the truth by `knows` nats and lean by `prior`; a tenth is on label words."""
    rng = np.random.default_rng(seed)
    truth = np.array([LABELS.index(t) for t in known.truth])
    scores = prior + 0.3 * rng.standard_normal((len(truth), 4))
    scores[np.arange(len(truth)), truth] += knows
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True) + np.log(0.1)


def test_knowledge_under_a_neutral_prior_comes_out_when_the_prior_is_taken_off():
    known = about()
    prior = np.array([0.0, 0.0, 4.0, 0.0])
    scores = planted(known, 2.0, prior)
    raw, freed = probabilities(scores, None, known), probabilities(scores, prior, known)
    assert raw["uar"]["value"] == 0.25 and raw["bias"]["neutral"]["value"] == 0.75
    assert raw["never_first"] == ["angry", "happy", "sad"]
    assert raw["mass"]["neutral"] > 0.8 and raw["label_mass"] == pytest.approx(0.1)
    assert raw["by_label"]["sad"]["sad"] < 0.15
    assert raw["rank_of_truth"]["value"] == pytest.approx(1.75, abs=0.03)  # 2 of three labels, 1 of neutral
    assert freed["uar"]["low"] > 0.9 and abs(freed["bias"]["neutral"]["value"]) < 0.05
    assert freed["rank_of_truth"]["value"] < 1.05 and freed["never_first"] == []
    assert probabilities(scores, mean_prior(scores), known)["uar"]["low"] > 0.9


def test_where_nothing_is_known_nothing_comes_out():
    known = about(384)
    scores = planted(known, 0.0, np.array([0.0, 1.0, 3.0, 0.0]))
    for prior in (None, np.array([0.0, 1.0, 3.0, 0.0]), mean_prior(scores)):
        found = probabilities(scores, prior, known)
        assert found["uar"]["low"] < 0.25 < found["uar"]["high"] or found["uar"]["value"] == 0.25


def test_calibration_is_that_of_the_likeliest_label():
    known = about()
    sure = np.log(np.full((96, 4), 1e-6))
    sure[:, 2] = 0
    assert probabilities(sure, None, known)["ece"] == pytest.approx(0.75, abs=1e-3)
