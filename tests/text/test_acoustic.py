"""P_act: the clues in the template's slot, in the clues' language."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligncap.text.prompts import acoustic_prompt
from aligncap.utils.errors import UserError
from aligncap.utils.io import load_data


def test_clues_stand_in_the_template_in_order():
    assert acoustic_prompt(["angry", "very loud", "not calm"]) == "Voice: angry, very loud, not calm."


def test_chinese_clues_get_the_chinese_template():
    assert acoustic_prompt(["语速较快", "愤怒"]) == "声音：语速较快，愤怒。"


def test_no_clue_gives_a_prompt_of_the_same_form_that_claims_nothing():
    assert acoustic_prompt([]) == acoustic_prompt([" "]) == "Voice: unknown."
    assert acoustic_prompt([], language="zh") == "声音：未知。"


def test_other_templates_by_name():
    assert acoustic_prompt(["sad"], template="feeling") == "Feeling: sad."


def test_repeats_and_blanks_are_dropped():
    assert acoustic_prompt(["sad", "", "sad "]) == "Voice: sad."


def test_braces_in_a_clue_are_plain_text():
    assert acoustic_prompt(["{clues}", "{0}"]) == "Voice: {clues}, {0}."


def test_unknown_template_and_language_name_the_choices():
    with pytest.raises(UserError, match="no acoustic template 'loud'.*voice"):
        acoustic_prompt(["sad"], template="loud")
    with pytest.raises(UserError, match="lacks language 'pl'"):
        acoustic_prompt(["sad"], language="pl")


@pytest.mark.parametrize("template", load_data("prompts.yaml")["acoustic"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_template_has_one_slot_and_words_for_none(template, language):
    words = load_data("prompts.yaml")["acoustic"][template][language]
    assert words["text"].count("{clues}") == 1
    assert words["none"] and "{" not in words["none"]


@given(st.lists(st.sampled_from(["angry", "very loud", "not calm"]), unique=True, min_size=1))
def test_every_clue_is_in_the_prompt_once_and_in_order(clues):
    assert acoustic_prompt(clues).removeprefix("Voice: ").removesuffix(".").split(", ") == clues
