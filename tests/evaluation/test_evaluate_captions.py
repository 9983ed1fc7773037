"""Scoring captions: emotion, diversity, signature, and what does not match."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from aligncap.data.manifest import Utterance
from aligncap.evaluation.metrics import EXTRAS, SCORES
from aligncap.evaluation.metrics.emotion import read_emotions
from aligncap.evaluation.metrics.hallucination import MEASURES
from aligncap.evaluation.metrics.ngram import count_ngrams, distinct_share
from aligncap.evaluation.scoring import differences, evaluate_captions, most_frequent, pair_up, score_rows
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.statistics import clusters_of, jackknife

CAPTIONS = {
    "a0": "He sounds angry and loud.",
    "a1": "He sounds sad.",
    "a2": "A person is speaking.",
    "s0": "She is sad, speaking slowly.",
    "s1": "She sounds surprised.",
    "h0": "He sounds happy.",
}
LABELS = {"a": "angry", "s": "sad", "h": "happy"}


def utterances() -> list[Utterance]:
    made = []
    for number, name in enumerate(CAPTIONS):
        label = LABELS[name[0]]
        references = [f"He sounds {label}.", f"The speaker is {label}, speaking slowly."]
        made.append(
            Utterance(
                name, ".", f"{name}.wav", "made", speaker=f"s{number % 2}", emotion=label, captions=references
            )
        )
    return made


def rows(captions: dict[str, str] = CAPTIONS) -> list[dict[str, Any]]:
    return [{"id": name, "audio": f"{name}.wav", "caption": text} for name, text in captions.items()]


def test_every_metric_has_value_and_interval_that_holds_it() -> None:
    result = evaluate_captions(rows(), utterances())
    for name in set(SCORES) - {*EXTRAS, *MEASURES}:
        cell = result[name]
        assert cell["low"] <= cell["value"] + 1e-9 and cell["value"] <= cell["high"] + 1e-9, name
    json.dumps(result, allow_nan=False)


def test_emotion_is_read_from_words_and_no_word_counts_as_wrong() -> None:
    result = evaluate_captions(rows(), utterances())
    # angry: 1 of 3; sad: 1 of 2; happy: 1 of 1
    assert result["emotion_accuracy"]["value"] == pytest.approx(3 / 6)
    assert result["emotion_uar"]["value"] == pytest.approx((1 / 3 + 1 / 2 + 1) / 3)
    assert result["emotion_none_share"]["value"] == pytest.approx(1 / 6)
    details = result["details"]
    assert details["labels"] == ["angry", "happy", "sad"]
    assert details["columns"] == ["angry", "happy", "sad", "surprised", "none"]
    assert details["confusion"] == [[1, 0, 1, 0, 1], [0, 1, 0, 0, 0], [0, 0, 1, 1, 0]]
    assert [row["clips"] for row in details["speakers"]] == [3, 3]


def test_emotions_the_set_does_not_have_can_be_renamed_and_the_signature_says_so() -> None:
    result = evaluate_captions(rows(), utterances(), label_map={"surprised": "sad"})
    assert result["emotion_accuracy"]["value"] == pytest.approx(4 / 6)
    assert "surprised" not in result["details"]["columns"]
    assert result["signature"]["emotions_renamed"] == {"surprised": "sad"}


def test_clips_without_label_count_for_words_but_not_for_emotion() -> None:
    made = utterances()
    made[0].emotion = None
    emotions = read_emotions(list(CAPTIONS.values()), made)
    assert emotions.truth[0] is None and emotions.confusion().sum() == 5
    result = evaluate_captions(rows(), made)
    assert result["signature"]["clips_with_emotion_label"] == 5
    for u in made:
        u.emotion = None
    result = evaluate_captions(rows(), made)
    assert [result["emotion_uar"][key] for key in ("value", "low", "high")] == [None] * 3
    assert result["cider_d"]["value"] is not None


def test_diversity_by_hand() -> None:
    captions = ["He is sad.", "he is sad", "He is calm."]
    assert most_frequent(captions)[0] == {"caption": "He is sad.", "count": 2, "share": pytest.approx(2 / 3)}
    sets = count_ngrams([c.lower().rstrip(".").split() for c in captions], [[["x"]]] * 3)
    made = [Utterance(str(i), ".", "a", "made", speaker=str(i)) for i in range(3)]
    found = jackknife(*distinct_share(sets, 1, clusters_of(made).index), np.ones(3))
    assert found["value"] == pytest.approx(4 / 9)
    # Without clip 0 or 1: 4 of 6, without clip 2: 3 of 6; jackknife SE, t of 2 degrees of freedom.
    left = np.array([4 / 6, 4 / 6, 3 / 6])
    error = np.sqrt(2 / 3 * ((left - left.mean()) ** 2).sum())
    assert found["high"] == pytest.approx(4 / 9 + 4.302653 * error, abs=1e-6)


def test_signature_says_what_was_counted() -> None:
    signature = evaluate_captions(rows(), utterances(), wordnet="none")["signature"]
    assert (signature["clips"], signature["references"], signature["speakers"]) == (6, 12, 2)
    assert signature["references_per_clip"] == [2, 2]
    assert "exact+stem," in signature["meteor"] and "WordNet" not in signature["meteor"]
    assert "2 speakers; fewer than 12: no claim" in signature["interval"]
    assert {"aligncap", "nltk", "numpy"} <= set(signature["versions"])


def test_an_empty_caption_is_scored_and_counted() -> None:
    result = evaluate_captions(rows({**CAPTIONS, "h0": ""}), utterances())
    assert result["signature"]["empty_captions"] == 1
    assert result["emotion_none_share"]["value"] == pytest.approx(2 / 6)


def test_all_mismatches_are_named_at_once() -> None:
    made = utterances()
    made[1].captions = []
    made[3].captions = ["..."]
    said = [*rows()[1:], {"id": "nobody", "caption": "He is sad."}, rows()[2], {"id": "a0"}]
    with pytest.raises(UserErrors) as caught:
        pair_up(said, made)
    text = str(caught.value)
    for words in (
        "'nobody': a caption without references",
        "'a0': references without a caption",
        "caption 7: id 'a2'",
    ):
        assert words in text
    assert "'a1': no reference captions" in text and "'s0': a reference caption without a word" in text
    assert "caption 8" in text and len(caught.value.errors) == 6


def test_the_same_id_twice_in_the_manifest_is_a_error() -> None:
    with pytest.raises(UserErrors, match="'a0': 2 times"):
        pair_up(rows(), [*utterances(), utterances()[0]])


def test_missing_ones_are_left_out_on_request_and_counted() -> None:
    said = [*rows()[1:], {"id": "nobody", "caption": "He is sad."}]
    signature = evaluate_captions(said, utterances(), allow_missing=True)["signature"]
    assert (signature["clips"], signature["captions_left_out"], signature["references_left_out"]) == (5, 1, 1)
    with pytest.raises(UserError, match="nothing to score"):
        evaluate_captions([{"id": "x", "caption": "y"}], utterances(), allow_missing=True)


def compared(first: list[Any], second: list[Any]) -> dict[str, Any]:
    a, b = ([score_rows(rows, utterances()) for rows in system] for system in (first, second))
    return differences(a, b)


def test_comparing_pairs_clips_whatever_the_order_of_rows() -> None:
    better = {name: f"He sounds {LABELS[name[0]]}." for name in CAPTIONS}
    gap = compared([rows()], [rows(better)[::-1]])
    assert gap["emotion_accuracy"]["value"] == pytest.approx(0.5)
    assert gap["rouge_l"]["value"] > 0
    assert "distinct_1" not in gap


def test_seeds_are_compared_by_their_mean() -> None:
    better = {name: f"He sounds {LABELS[name[0]]}." for name in CAPTIONS}
    pooled = compared([rows(), rows()], [rows(better), rows()])
    single = compared([rows()], [rows(better)])
    for name in ("emotion_accuracy", "emotion_uar", "rouge_l", "cider_d"):
        assert pooled[name]["value"] == pytest.approx(single[name]["value"] / 2), name


def test_an_unknown_use_of_synonyms_is_refused() -> None:
    with pytest.raises(UserError, match="auto, require, none"):
        evaluate_captions(rows(), utterances(), wordnet="wordnet")  # type: ignore[arg-type]
