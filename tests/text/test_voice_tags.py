"""Words for a voice: captions made of them are read as the same words, and agreement is counted by hand."""

from __future__ import annotations

from random import Random

import pytest

from aligncap.data.manifest import Utterance
from aligncap.evaluation.scoring import evaluate_captions
from aligncap.text.voice_tags import among_people, overlap, tag_caption, tags_of
from aligncap.utils.io import load_data

WORDS = load_data("people.yaml")["words"]


def test_a_caption_says_the_words_it_was_made_of() -> None:
    rng = Random(0)
    for _ in range(200):
        words = rng.sample(WORDS, rng.randint(1, 15))
        graded = [f"{rng.choice(['slightly ', 'very ', ''])}{word}" for word in words]
        assert tags_of(tag_caption(graded)) == set(words)
    assert tag_caption(["calm"]) == "The voice sounds calm."


def test_a_word_within_another_is_not_said() -> None:
    assert tags_of("An adult, thickening, unclear voice, hardly old-fashioned") == set()
    assert tags_of("Middle-aged, RASPY; young") == {"middle-aged", "raspy", "young"}


def test_overlap_by_hand() -> None:
    said, others = frozenset({"calm", "clear", "dark"}), [frozenset({"calm", "clear"}), frozenset({"old"})]
    precision, recall, f1 = overlap(said, others)
    assert (precision, recall) == (pytest.approx((2 / 3 + 0) / 2), pytest.approx((1 + 0) / 2))
    assert f1 == pytest.approx(0.8 / 2)
    assert overlap(frozenset(), others) == (0, 0, 0)


def test_people_are_held_against_each_other_without_degrees() -> None:
    voice = {"a": ["very calm", "clear"], "b": ["calm"], "c": ["old"]}
    # a with b: P .5, R 1, F 2/3; b with a: P 1, R .5; c shares nothing
    assert among_people(voice) == pytest.approx((0.25, 0.25, 2 / 9))
    with pytest.raises(ValueError, match="nobody"):
        among_people({"a": ["calm"]})


def test_a_report_counts_words_where_people_gave_some() -> None:
    clips = [
        Utterance(f"c{i}", ".", f"{i}.wav", "librittsp", speaker=str(i), captions=["The voice sounds calm."])
        for i in range(3)
    ]
    rows = [{"id": u.id, "caption": "The voice sounds calm and old."} for u in clips]
    assert evaluate_captions(rows, clips)["tag_f1"]["value"] is None
    for u in clips:
        u.extra["voice"] = {"df1": ["slightly calm"], "df2": ["calm", "old"]}
    found = evaluate_captions(rows, clips)
    assert found["tag_f1"]["value"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["tag_precision"]["value"] == pytest.approx(0.75)
    assert found["tag_recall"]["value"] == pytest.approx(1.0)
