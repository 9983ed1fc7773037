from __future__ import annotations

import pytest

from aligncap.text.claims import dimensions, manner_claims, manner_mentions, word_cues
from aligncap.text.emotions import emotion_of
from aligncap.utils.io import load_data


def test_values_beyond_a_bound_take_the_outer_level_and_values_on_it_stay_near_the_norm() -> None:
    for dimension in dimensions().values():
        low, middle, high = (level.name for level in dimension.levels)
        step = 1e-6
        expected = {
            dimension.below - step: low,
            dimension.below: middle,
            (dimension.below + dimension.above) / 2: middle,
            dimension.above: middle,
            dimension.above + step: high,
        }
        for value, level in expected.items():
            assert word_cues({dimension.cue: value}) == {dimension.name: level}


def test_a_cue_that_was_not_measured_has_no_word() -> None:
    assert word_cues({}) == {}
    assert set(word_cues({"f0_median_hz": 0.0, "pause_share": 3.0})) == {"pitch"}


def test_no_manner_word_names_an_emotion() -> None:
    for dimension in dimensions().values():
        for level in dimension.levels:
            for word in level.words:
                assert emotion_of(f"His voice is {word}.") is None, word


def test_outer_levels_can_be_said_in_some_form() -> None:
    for dimension in dimensions().values():
        for level in dimension.levels:
            assert level.rank == 0 or level.voice or level.adverb


@pytest.mark.parametrize(
    ("caption", "mentions"),
    [
        ("A low-pitched, LOUD voice.", [("low-pitched", "pitch", "low"), ("loud", "effort", "forceful")]),
        ("She talks at a high pitch.", [("at a high pitch", "pitch", "high")]),
        ("The pitch is low, the highway is near, softness counts for nothing.", [("low", "pitch", "low")]),
        ("He is slowly, deeply sad.", [("slowly", "rate", "slow")]),
        ("Nothing of the kind.", []),
    ],
)
def test_manner_words_are_found_whole_with_the_longest_match(caption: str, mentions: list) -> None:
    assert [(m.word, m.dimension, m.level) for m in manner_mentions(caption)] == mentions


def test_claims_are_pairs_of_dimension_and_level() -> None:
    assert manner_claims(["A soft, quiet voice.", "He talks fast."]) == {("effort", "soft"), ("rate", "fast")}


def test_dimensions_have_three_levels_and_sound_bounds_and_a_word_stands_for_one_level() -> None:
    owner: dict[str, tuple[str, str]] = {}
    for name, entry in load_data("cue_words.yaml").items():
        assert len(entry["levels"]) == 3 and entry["below"] < entry["above"], name
        for level, forms in entry["levels"].items():
            for word in {word for words in forms.values() for word in words}:
                assert owner.setdefault(word, (name, level)) == (name, level), word
