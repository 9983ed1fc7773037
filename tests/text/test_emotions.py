"""Emotion words: the groups are clean, and a caption's label survives negation, degree and quotes."""

from __future__ import annotations

import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from aligncap.text.emotions import (
    affect,
    chinese_forms,
    emotion_of,
    emotion_words,
    english_forms,
    labels,
    words_of,
)
from aligncap.text.lexicon import adjective_forms, inflect, noun_forms, verb_forms
from aligncap.utils.errors import UserError
from aligncap.utils.io import data_path, load_data


def test_every_canonical_label_has_words_in_both_languages_and_no_other_label_has():
    assert labels() == list(load_data("labels.yaml")["labels"])
    for label in labels():
        assert words_of(label) and words_of(label, "zh")
        assert words_of(label, kinds=["adjective"])


def test_no_word_or_inflected_form_is_in_two_groups():
    group_of: dict[str, str] = {}
    for label, group in load_data("emotions.yaml").items():
        for form in inflect(group["en"]) | set(group["zh"]):
            assert group_of.setdefault(form, label) == label, form


def test_no_word_is_listed_twice_within_a_kind():
    for label, group in yaml.safe_load(data_path("emotions.yaml").read_text(encoding="utf-8")).items():
        for words in [*group["en"].values(), group["zh"]]:
            assert len(words) == len(set(words)), label


@pytest.mark.parametrize(
    "manner", ["loud", "quiet", "slow", "trembling", "flat", "loudly", "shouting", "high", "tense"]
)
def test_manner_words_are_not_emotion_words(manner):
    assert manner not in english_forms()


def test_manner_words_and_emotion_words_share_nothing():
    words = load_data("voice_words.yaml")
    assert not inflect(words["en"]["words"]) & set(english_forms())
    assert not set(words["zh"]["words"]) & set(chinese_forms())


@pytest.mark.parametrize(
    ("caption", "label"),
    [
        ("The speaker sounds angry.", "angry"),
        ("She is furious, loud and fast.", "angry"),
        ("He answers angrily.", "angry"),
        ("He is not angry, he sounds sad and a little tired.", "sad"),
        ("She speaks without any anger, fear or joy, calm and slow.", "calm"),
        ("neither angry nor sad but happy", "happy"),
        ("He doesn't sound happy, he sounds worried.", "anxious"),
        ("There is no trace of joy; the sadness is deep.", "sad"),
        ("He can't hide his anger.", "angry"),
        ("She is not only surprised but scared, terrified even.", "fearful"),
        ("A neutral tone without emotion.", "neutral"),
        ("The speaker's voice shows no emotion at all.", "neutral"),
        ("A calm voice.", "calm"),
        ("In a matter-of-fact way.", "neutral"),
        ("She is fed up.", "bored"),
        ("Slightly sad but angry.", "angry"),
        ("Slightly sad.", "sad"),
        ("Sad rather than angry.", "sad"),
        ("A kind of fear.", "fearful"),
        ('She says "I am so happy" with disgust.', "disgusted"),
        ("ANGRY!", "angry"),
        ("She isn\u2019t angry.", None),
        ("Loud, fast and trembling.", None),
        ("", None),
        ("语速较快，语气愤怒，带着一丝不耐烦", "angry"),
        ("并没有生气，而是有点难过", "sad"),
        ("听不出丝毫愤怒，语气平静", "calm"),
        ("他很不耐烦", "frustrated"),
        ("语速适中，没有明显的情绪", "neutral"),
        ("她忍不住高兴起来", "happy"),
        ("语速很快，声音很大", None),
    ],
)
def test_label_of_a_caption(caption, label):
    assert emotion_of(caption) == label


def test_the_label_with_more_mentions_wins_and_the_first_among_equals():
    assert emotion_of("Happy at first, then angry, even furious.") == "angry"
    assert emotion_of("Happy, then angry.") == "happy"


def test_mentions_carry_negation_degree_and_offset():
    caption = "Not angry, but slightly sad."
    first, second = emotion_words(caption)
    assert (first.word, first.label, first.negated) == ("angry", "angry", True)
    assert (second.word, second.negated, second.degree) == ("sad", False, "slightly")
    assert caption[second.start :].startswith("sad")


def test_listed_words_of_a_label_name_that_label():
    for label in labels():
        for word in words_of(label):
            assert emotion_of(f"The voice: {word}.") == label, word
        for word in words_of(label, "zh"):
            assert emotion_of(word) == label, word


def test_inflection():
    assert {"happily", "happier", "happiest"} <= adjective_forms("happy")
    assert {"sadder", "sadly"} <= adjective_forms("sad")
    assert "gently" in adjective_forms("gentle")
    assert {"worries", "worried", "worrying"} <= verb_forms("worry")
    assert {"sobbing", "sobbed"} <= verb_forms("sob")
    assert noun_forms("anxiety") == {"anxiety", "anxieties"}


def test_valence_and_arousal_lie_where_the_circumplex_has_them():
    assert affect("happy")[0] > 0 > affect("sad")[0]
    assert affect("angry")[1] > 0 > affect("calm")[1]
    assert all(-1 <= number <= 1 for label in labels() for number in affect(label))


def test_unknown_label_or_language_is_named_with_the_choices():
    with pytest.raises(UserError, match="no emotion words for 'hangry'.*neutral"):
        words_of("hangry")
    with pytest.raises(UserError, match="choose 'en' or 'zh'"):
        words_of("angry", "pl")


@given(st.text())
def test_any_text_is_read_without_error(text):
    assert emotion_of(text) in [None, *labels()]


def test_ten_thousand_captions_take_little_time():
    captions = [
        f"The woman speaks in an angry voice, loud and fast, with no trace of joy, {i}."
        for i in range(10_000)
    ]
    start = time.process_time()
    assert {emotion_of(caption) for caption in captions} == {"angry"}
    # about 0.6 s on one core; the bound leaves room for a busy machine
    assert time.process_time() - start < 5
