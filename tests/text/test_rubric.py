"""The offline judge: what raises a mark, what lowers it, and what must not help."""

from __future__ import annotations

from random import Random

import pytest

from aligncap.data.manifest import Utterance
from aligncap.text.rubric import (
    Evidence,
    Marks,
    agreement,
    data_hash,
    disfluencies,
    evidence,
    leaks,
    length,
    quotes,
    score,
    version,
)

LABELS = frozenset({"angry", "sad", "happy", "neutral", "calm", "fearful"})
CUES = {"f0_median_hz": 2.0, "f0_movement_st": 2.0, "effort_db": 2.0, "rate_sps": 2.0, "unsteadiness": 0.0}
ANGRY = Evidence("angry", {"angry": 1.0}, CUES, "male", "Kids are talking by the door.", LABELS)
GOOD = "He sounds angry, with a loud, high voice."


def overall(caption: str, known: Evidence = ANGRY, fluency: float | None = None) -> float:
    return score(caption, known, fluency).overall


def test_a_true_full_caption_gets_near_the_top_and_an_empty_one_nothing() -> None:
    marks = score(GOOD, ANGRY)
    assert marks.overall > 9.5 and marks.reason == "nothing to object to"
    assert score("", ANGRY) == Marks(dict.fromkeys(marks.scores, 0.0), 0.0, "says nothing")
    assert score('"..."', ANGRY).overall == 0


def test_emotion_same_near_rival_none_opposite() -> None:
    marks = [
        score(f"He sounds {word}, with a loud, high voice.", ANGRY).scores["emotion"]
        for word in ("furious", "frustrated", "fearful", "serene")
    ]
    assert marks[0] == 10 and marks[3] == 0
    # frustrated is farther from angry than fearful, but fearful is a label that the corpus tells apart
    assert 3 < marks[1] < 8 and marks[2] < marks[1]
    assert marks[2] > score("He has a loud, high voice.", ANGRY).scores["emotion"] > marks[3]
    assert score("He is not angry at all.", ANGRY).scores["emotion"] == 0


def test_emotion_goes_by_the_references_where_the_clip_has_no_label() -> None:
    known = Evidence(None, {"sad": 0.6, "anxious": 0.4})
    assert agreement("sad", known) == 10 and agreement("anxious", known) == pytest.approx(4, abs=2)
    assert agreement("happy", known) == 0
    assert "emotion" not in score("He sounds sad.", Evidence()).scores


def test_several_emotions_are_as_good_as_the_worst_and_a_hint_costs_less() -> None:
    right = score("He sounds angry.", ANGRY).scores["emotion"]
    hint = score("He sounds angry, with a hint of sadness.", ANGRY).scores["emotion"]
    both = score("He sounds angry and sad.", ANGRY).scores["emotion"]
    assert right == 10 > hint > both
    assert both == score("He sounds sad.", ANGRY).scores["emotion"]


def test_a_wrong_claim_costs_more_than_a_right_one_earns() -> None:
    nothing, right, wrong = (
        score(text, ANGRY).scores["acoustics"]
        for text in ("He sounds angry.", "He sounds angry and loud.", "He sounds angry and quiet.")
    )
    assert right - nothing < nothing - wrong
    assert overall("He sounds angry and loud.") - overall("He sounds angry.") < overall(
        "He sounds angry."
    ) - overall("He sounds angry and quiet.")
    two = score("He sounds angry, with a quiet, low voice.", ANGRY).scores["acoustics"]
    assert 0 < two < wrong
    one_of_four = score("He sounds angry: a loud, high, fast, monotone voice.", ANGRY).scores["acoustics"]
    assert one_of_four < score(GOOD, ANGRY).scores["acoustics"]


def test_acoustics_is_left_out_where_nothing_was_measured() -> None:
    assert "acoustics" not in score(GOOD, Evidence("angry")).scores
    only_rate = Evidence("angry", {}, {"rate_sps": 0.0})
    assert "acoustics" not in score("He sounds angry and loud.", only_rate).scores


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("She sounds angry, with a loud, high voice.", "the speaker is male"),
        ("He sounds angry, with a loud, high and low voice.", "contradicts itself about pitch"),
        ("He sounds angry, with a loud, high, joyful voice.", "contradicts itself about emotion"),
        ("He sounds angry and loud, telling of kids by the door.", "repeats what was said"),
        ('He sounds angry and loud: "kids are talking".', "quotes speech"),
        ("He sounds angry and loud, frowning at the camera.", "cannot be heard"),
        ("Sure, here is a description: he sounds angry and loud.", "is an answer"),
        ("A person is speaking in this recording.", "does not say how"),
        ("Angry.", "too short"),
        (GOOD[:-1] + ", " + "and so on and so forth " * 8 + "in the end.", "too long"),
    ],
)
def test_unfaithful_captions_lose_and_the_reason_says_why(caption: str, reason: str) -> None:
    marks = score(caption, ANGRY)
    assert marks.scores["faithful"] < score(GOOD, ANGRY).scores["faithful"]
    assert reason in marks.reason and marks.overall < overall(GOOD)


def test_specific_counts_true_facts_up_to_enough() -> None:
    marks = [
        score(text, ANGRY).scores["specific"]
        for text in (
            "Someone is speaking.",
            "The speaker sounds angry.",
            "He sounds angry.",
            "He sounds angry and loud.",
            "He sounds angry, loud and fast, with a high voice.",
            "He sounds angry, loud and fast, with a high, lively voice.",
        )
    ]
    assert marks[0] == 0 and marks[:5] == sorted(set(marks[:5])) and marks[4] == marks[5] == 10
    # what is wrong is no fact
    assert score("She sounds calm and quiet.", ANGRY).scores["specific"] == 0


@pytest.mark.parametrize(
    ("caption", "rule"),
    [
        ("He sounds angry, with a", "unfinished"),
        ("He sounds angry", "no_stop"),
        ("He sounds sounds angry.", "doubled_word"),
        ("He sounds lively and lively.", "doubled_word"),
        ("He sounds angry and he sounds angry and he sounds angry.", "repeated"),
        ("His angry tone is an angry whisper.", "echo"),
        ("His tone is angry, high and high-pitched.", "twice"),
        ("He sounds angry, with an angry voice.", "twice"),
    ],
)
def test_broken_language_is_told_by_rules(caption: str, rule: str) -> None:
    assert rule in dict(disfluencies(caption))
    assert disfluencies(GOOD) == []


def test_fluency_of_a_language_model_counts_between_its_thresholds() -> None:
    marks = [score(GOOD, ANGRY, value).scores["fluent"] for value in (-20.0, -8.2, -7.6, -5.0, -1.0)]
    assert marks[0] == 0 and marks == sorted(marks) and marks[-2:] == [10, 10]
    assert overall(GOOD, fluency=-20.0) < 0.6 * overall(GOOD)


CLIPS = [
    Evidence(
        rng.choice(sorted(LABELS)),
        {},
        {cue: rng.uniform(-2, 2) for cue in CUES},
        rng.choice(["male", "female"]),
        None,
        LABELS,
    )
    for rng in map(Random, range(60))
]
STARTS = (
    "He sounds angry.",
    GOOD,
    "She seems sad, speaking slowly in a soft, low voice.",
    "The speaker sounds neutral, and the voice is flat and steady.",
)


@pytest.mark.parametrize(
    "tail",
    [
        ", and it can be heard clearly in this recording.",
        ", with a certain warmth and a depth of its own.",
        ", in a human voice that is natural and easy to understand.",
        ", and its pitch is high and low.",
        ", and the voice is soft, loud, quiet and forceful.",
        ", at a low, medium and high pitch, at a slow, a moderate and a fast pace, loud and soft.",
        ", perhaps also happy, sad, angry and calm.",
        ", or happy, with a hint of anger.",
    ],
)
def test_padding_hedging_and_listing_every_level_never_raise_the_mark(tail: str) -> None:
    for known in CLIPS:
        for start in STARTS:
            assert overall(start[:-1] + tail, known) <= overall(start, known), (start, known)


@pytest.mark.parametrize("start", STARTS)
def test_repeating_what_was_said_never_raises_the_mark(start: str) -> None:
    for known in CLIPS:
        for longer in (f"{start} {start}", start[:-1] + ", and yes, " + start.lower()):
            assert overall(longer, known) <= overall(start, known)


@pytest.mark.parametrize(
    "tail",
    [
        ", high, lively, loud, fast and shaky.",
        ", with a low, monotone, soft, slow and steady voice.",
        ", at a medium pitch, a normal pace and a moderate volume.",
        ", neither high nor low, neither loud nor soft, neither fast nor slow.",
    ],
)
def test_guessing_claims_lowers_the_mark_on_the_whole(tail: str) -> None:
    for start in STARTS:
        before, after = (
            sum(overall(text, known) for known in CLIPS) / len(CLIPS) for text in (start, start[:-1] + tail)
        )
        assert after < before


def test_leaks_need_content_of_the_transcript_not_words_of_any_description() -> None:
    kids = "Kids are talking by the door."
    assert leaks("She says that kids are by the door.", kids)
    assert leaks("About the kids at the door, angrily.", kids)
    assert not leaks("The speaker is talking by himself.", kids)
    assert not leaks("She is happy and talking fast.", "I am so happy, talking fast!")
    long = (
        "Yesterday the captain of the ship told my brother about seven islands far beyond the harbour wall."
    )
    assert leaks("He tells how the captain of the ship spoke.", long)
    assert not leaks("A captain with an air of the harbour.", long)
    assert leaks("他说今天天气很好。", "今天天气很好，我们走吧。") and not leaks(
        "他今天很高兴。", "今天天气很好"
    )
    assert not leaks("Kids by the door.", None)


def test_quotes_and_length_of_captions() -> None:
    assert quotes("He says “come here now” angrily.") and not quotes("He sounds “angry”, isn't it?")
    assert length("It's well-worn, isn't it?") == 4 and length("他很高兴") == 2


def test_evidence_of_a_set_tells_named_labels_known_labels_and_norms() -> None:
    made = [
        Utterance(
            str(i),
            ".",
            "a",
            "made",
            speaker="s",
            gender="male",
            emotion=("sad", "angry")[i % 2],
            cues={"effort_db": float(i)},
            captions=["He sounds sad.", "He is annoyed.", "A man."],
        )
        for i in range(9)
    ]
    first = evidence(made)[0]
    assert first.named == {"sad": pytest.approx(1 / 3), "angry": pytest.approx(1 / 3)}
    assert first.known == {"sad", "angry"} and first.relative["effort_db"] < -1 and first.gender == "male"


def test_marks_are_the_same_every_time_and_name_their_data() -> None:
    assert score(GOOD, ANGRY) == score(GOOD, ANGRY)
    assert version() and len(data_hash()) == 64
