"""Word error rates by hand, refusals, and texts that say almost the same."""

from __future__ import annotations

import pytest

from aligncap.text.transcripts import character_errors, near_duplicates, refuses, word_errors


@pytest.mark.parametrize(
    "said, heard, errors, words",
    [
        ("Kids are talking by the door.", "kids are talking by the door", 0, 6),
        ("Kids are talking by the door.", "Dogs are sitting by the door!", 2, 6),
        ("Kids are talking", "", 3, 3),
        ("talk", "they talk a lot", 3, 1),
        ("你好吗？", "你好", 1, 3),
    ],
)
def test_errors_are_insertions_deletions_and_substitutions(said, heard, errors, words):
    assert word_errors(said, heard) == (errors, words)


def test_characters():
    assert character_errors("a door", "a floor") == (2, 5)


@pytest.mark.parametrize(
    "answer, refusal",
    [
        ("I'm sorry, but I cannot process audio.", True),
        ("As an AI language model, I have no ears.", True),
        ("抱歉，我无法听取音频。", True),
        ("Kids are talking by the door.", False),
        ("angry", False),
    ],
)
def test_refusals(answer, refusal):
    assert refuses(answer) is refusal


def test_near_duplicates_are_one_group_and_the_largest_comes_first():
    texts = [
        "She is angry.",
        "The speaker sounds calm and steady in this clip.",
        "The speaker sounds calm and steady in the clip.",
        "the speaker sounds calm and steady in this clip",
    ]
    assert near_duplicates(texts) == [1, 0, 0, 0]


def test_single_words_are_alike_only_when_equal():
    assert near_duplicates(["sad", "mad", "Sad."]) == [0, 1, 0]
    assert near_duplicates([]) == []
