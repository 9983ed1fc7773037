"""Emotion words on wheels: forms, families, sectors, overlap of sets; the file is sound."""

from __future__ import annotations

from collections import Counter

import pytest

from aligncap.text.emotions import (
    emotion_words,
    families_said,
    feelings,
    labels,
    overlap,
    sectors,
    true_sectors,
    wheels,
)
from aligncap.text.lexicon import inflect
from aligncap.utils.io import load_data


def score(said: str, label: str | None, *references: str):
    truth = true_sectors(label, [families_said(text) for text in references])
    assert truth is not None
    return overlap(sectors(families_said(said)), truth)


def test_every_label_and_family_has_its_place_on_every_wheel() -> None:
    assert len(wheels()) == 5
    for places in wheels().values():
        assert set(places) >= set(labels())
        assert places["angry"] != places["sad"] != places["happy"] != places["neutral"] != places["surprised"]


def test_forms_of_a_word_are_one_family_and_family_words_go_before_labels() -> None:
    assert families_said("She sounds disappointed.") == families_said("Her disappointment shows.")
    assert families_said("He sounds sad.") == {"sad"}
    assert families_said("Jealously, but not sadly, and in no way angry, he speaks.") == {"envy"}
    assert [(f.family, f.label) for f in feelings("A curious and jealous voice.")] == [
        ("interest", "confused"),
        ("envy", ""),
    ]


def test_words_with_a_label_are_read_as_by_the_reader_of_emotions() -> None:
    for caption in (
        "Not angry, but slightly sad, and with a trace of disappointment.",
        "He says 'I am happy' without interest, close to tears.",
        "她听起来不生气，只是有点伤心。",
    ):
        read = [(f.word, f.label, f.negated, f.degree) for f in feelings(caption) if f.label]
        assert read == [(m.word, m.label, m.negated, m.degree) for m in emotion_words(caption)]
    assert families_said("她听起来很伤心。") == {"sad"}


def test_overlap_is_the_mean_over_wheels() -> None:
    assert score("Furious.", "angry").f1 == 1
    # calm stands with joy on the petals and in the happy core, apart on the other three
    near = score("The voice is calm.", "happy")
    assert near.precision == near.recall == near.f1 == pytest.approx(2 / 5)
    # disgust stands with anger on the wheel of feelings and in the tree
    assert score("A disgusted voice.", "angry").precision == pytest.approx(2 / 5)
    mixed = score("Sad and angry.", "angry")
    assert (mixed.precision, mixed.recall) == (0.5, 1) and mixed.f1 == pytest.approx(2 / 3)
    assert score("A quick voice.", "angry") == score("He isn't angry.", "angry")
    assert score("A quick voice.", "angry").f1 == 0


def test_two_words_of_one_sector_are_one_and_no_better() -> None:
    assert score("Furious and irritated.", "angry") == score("Furious.", "angry")


def test_truth_is_the_label_and_what_half_of_the_references_say() -> None:
    both = ("Sad and anxious.", "Sad, worried.", "Sad.", "Sad.")
    assert score("Sad and worried.", "sad", *both).f1 == 1
    assert score("Worried.", "sad", *both).recall == 0.5
    assert score("Worried.", "sad", "Worried.", "Sad.", "Sad.").precision == 0
    # without label: what most say; where they do not agree, what any says
    assert score("Worried.", None, "Worried.", "Anxious.", "Happy.").f1 == 1
    assert score("Happy.", None, "Worried.", "Sad.", "Happy.").precision == 1
    assert true_sectors(None, [families_said("A quick voice.")]) is None
    assert true_sectors("no such label", []) is None


def test_labels_that_a_set_lacks_are_renamed_word_by_word() -> None:
    assert families_said("Serene and sad.", {"calm": "neutral"}) == {"neutral", "sad"}
    # the family of a word goes with its label
    assert families_said("Curious.", {"confused": "surprised"}) == {"surprised"}


def test_every_family_has_one_sector_on_every_wheel_and_a_word_one_family() -> None:
    entries = load_data("emotion_wheels.yaml")
    families = {*labels(), *entries["families"]}
    owners = Counter(form for words in entries["families"].values() for form in inflect(words))
    assert [form for form, n in owners.items() if n > 1] == []
    for wheel, places in entries["wheels"].items():
        listed = [family for members in places.values() for family in members]
        assert sorted(listed) == sorted(families), wheel
