"""Tokens and lengths of captions: English by words, Chinese by characters."""

from __future__ import annotations

import pytest

from aligncap.text.lexicon import caption_length, caption_words, phrase_pattern, word_list


@pytest.mark.parametrize(
    ("caption", "length"),
    [
        ("She sounds sad.", 3),
        ("A high-pitched voice; it isn\u2019t calm.", 6),
        ("她听起来很伤心，语速很慢。", 11),  # one word where spaces are counted
        ("声音 low, 很慢", 5),
        ("…", 0),
        ("", 0),
    ],
)
def test_length_is_words_of_english_and_characters_of_chinese(caption: str, length: int) -> None:
    assert caption_length(caption) == len(caption_words(caption)) == length


def test_phrases_are_whole_words_and_longest_first() -> None:
    pattern = phrase_pattern("rubric.yaml", "unheard")
    assert pattern.search("She is wearing a hat.") and not pattern.search("a wearinger voice")
    assert "wearing" in word_list("rubric.yaml", "unheard")
    assert phrase_pattern("breach_words.yaml", "refusal").search("抱歉，我听不到") is not None
