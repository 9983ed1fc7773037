"""Words for a voice: captions made of them are read as the same words, and agreement is counted by hand."""

from __future__ import annotations

from random import Random

import pytest
from sklearn.metrics import cohen_kappa_score

from aligncap.data.manifest import Utterance
from aligncap.evaluation.metrics.tags import tag_statistics, tags_among_people
from aligncap.evaluation.scoring import evaluate_captions
from aligncap.text.voice_tags import overlap, tag_caption, tags_of
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


def spoken(voices: list[dict[str, list[str]]]) -> list[Utterance]:
    return [
        Utterance(f"c{i}", ".", f"{i}.wav", "librittsp", speaker=str(i), extra={"voice": voice})
        for i, voice in enumerate(voices)
    ]


def test_people_are_held_against_each_other_without_degrees() -> None:
    voice = {"a": ["very calm", "clear"], "b": ["calm"], "c": ["old"]}
    found = tags_among_people(spoken([voice]))
    # a with b: P .5, R 1, F 2/3; b with a: P 1, R .5; c shares nothing
    assert [found[f"tag_{name}"] for name in ("precision", "recall", "f1")] == pytest.approx(
        [0.25, 0.25, 2 / 9]
    )
    assert tags_among_people(spoken([{"a": ["calm"]}])) == {}


def test_kappa_is_that_of_scikit_learn_and_0_for_words_that_never_change() -> None:
    rng = Random(0)
    clips = spoken([{"a": rng.sample(WORDS[:4], 2), "b": rng.sample(WORDS[:4], 2)} for _ in range(30)])
    captions = [
        tag_caption(u.extra["voice"]["a"] if rng.random() < 0.5 else rng.sample(WORDS[:4], 2)) for u in clips
    ]
    truth = [set(words) for u in clips for words in u.extra["voice"].values()]
    said = [tags_of(caption) for caption in captions for _ in range(2)]
    by_hand = [cohen_kappa_score([w in t for t in truth], [w in s for s in said]) for w in WORDS[:4]]
    assert tag_statistics(captions, clips)["tag_kappa"].value == pytest.approx(sum(by_hand) / 4)
    same = tag_statistics([tag_caption(WORDS[:4])] * 30, clips)
    assert same["tag_kappa"].value == 0 and same["tag_f1"].value > 0.6


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
