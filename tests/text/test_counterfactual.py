from __future__ import annotations

import re
from collections import Counter
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aligncap.text.claims import dimensions, manner_claims, manner_mentions
from aligncap.text.counterfactual import flip_claim, flip_emotion, is_near
from aligncap.text.emotions import emotion_of, emotion_words, labels
from aligncap.text.sentences import write_captions

TRIES = settings(max_examples=150, deadline=None)


@st.composite
def written(draw: st.DrawFn) -> tuple[str, Random]:
    """A caption of the writer, and a source of choices."""
    rng = Random(draw(st.integers(0, 10**6)))
    facts = {d.name: draw(st.sampled_from(d.levels)).name for d in dimensions().values()}
    captions = write_captions(
        draw(st.sampled_from(labels())),
        draw(st.sampled_from(["normal", "strong"])),
        draw(st.sampled_from(["female", "male", None])),
        facts,
        1,
        rng,
    )
    assume(captions)
    return captions[0], rng


def words(caption: str) -> list[str]:
    return re.findall(r"[a-z'-]+", caption.lower())


def flips(function, caption: str, tries: int = 30, **options) -> set[str | None]:
    return {function(caption, Random(seed), **options) for seed in range(tries)}


@TRIES
@given(written())
def test_a_flipped_emotion_is_another_one_and_all_that_changes(case: tuple[str, Random]) -> None:
    caption, rng = case
    flipped = flip_emotion(caption, rng)
    assume(flipped is not None)
    before, after = emotion_of(caption), emotion_of(flipped)
    assert after != before and not is_near(before, after)
    assert {m.label for m in emotion_words(flipped)} == {after}
    assert manner_claims([flipped]) == manner_claims([caption])
    assert abs(len(words(flipped)) - len(words(caption))) <= 1
    # what is left out or put in is the emotion with its degree, and an article
    assert sum((Counter(words(caption)) - Counter(words(flipped))).values()) <= 3


@TRIES
@given(written())
def test_a_flipped_claim_is_another_level_and_nothing_else_changes(case: tuple[str, Random]) -> None:
    caption, rng = case
    flipped = flip_claim(caption, rng)
    assume(flipped is not None)
    before, after = manner_claims([caption]), manner_claims([flipped])
    assert len(before - after) == len(after - before) == 1
    (old,), (new,) = before - after, after - before
    assert old[0] == new[0] and old[1] != new[1]
    assert emotion_words(flipped) and emotion_of(flipped) == emotion_of(caption)
    kept = [w for m in manner_mentions(flipped) if (m.dimension, m.level) == new for w in words(m.word)]
    added = Counter(words(flipped)) - Counter(words(caption))
    assert not added - Counter([*kept, "a", "an", "and", "but"])


@TRIES
@given(written(), st.sampled_from([flip_emotion, flip_claim]))
def test_a_flip_reads_like_a_sentence(case: tuple[str, Random], flip) -> None:
    caption, rng = case
    flipped = flip(caption, rng)
    assume(flipped is not None)
    assert re.fullmatch(r"[A-Z][a-z' ,:-]*[a-z]\.", flipped), flipped
    assert not re.search(r" [,.:]|,,|  |\ba [aeio]|\ban [^aeiou]", flipped), flipped
    assert not re.search(r"\b(\w+) \1\b", flipped), flipped
    content = [w for w in words(flipped) if len(w) > 4 and w not in ("their", "there")]
    assert len(content) == len(set(content)), flipped


def test_nearly_every_written_caption_can_be_flipped() -> None:
    rng = Random(0)
    facts = {
        "pitch": "low",
        "movement": "lively",
        "effort": "forceful",
        "rate": "slow",
        "steadiness": "shaky",
    }
    captions = [c for label in labels() for c in write_captions(label, "strong", "male", facts, 5, rng)]
    assert sum(flip_emotion(c, rng) is not None for c in captions) > 0.95 * len(captions)
    assert sum(flip_claim(c, rng) is not None for c in captions) > 0.95 * len(captions)


def test_the_new_word_has_the_form_of_the_old_one() -> None:
    known = {"angry", "happy"}

    def flipped(caption: str) -> set[str | None]:
        return flips(flip_emotion, caption, known_labels=known)

    assert flipped("He speaks angrily.") == {"He speaks happily.", "He speaks cheerfully."}
    assert flipped("There is anger in his voice.") == {
        "There is happiness in his voice.",
        "There is joy in his voice.",
    }
    assert flipped("An angry man speaks.") == {f"A {w} man speaks." for w in ("happy", "cheerful", "joyful")}
    assert flipped("A happy man speaks.") == {
        f"An {w} man speaks." for w in ("angry", "annoyed", "irritated")
    }


def test_a_noun_is_told_from_an_adjective_by_its_place() -> None:
    assert flips(flip_emotion, "Her voice is full of calm.", known_labels={"angry"}) == {
        "Her voice is full of anger."
    }
    assert "Her voice is angry." in flips(flip_emotion, "Her voice is calm.", known_labels={"angry"})


def test_all_mentions_go_to_the_same_emotion() -> None:
    made = flips(flip_emotion, "A voice full of anger and frustration.", known_labels={"happy"})
    assert made == {
        "A voice full of happiness and joy.",
        "A voice full of joy and happiness.",
    }


def test_degree_words_are_mended_where_they_do_not_fit() -> None:
    assert all(
        "deeply" not in f for f in flips(flip_emotion, "She is deeply sad.", known_labels={"happy", "angry"})
    )
    assert flips(flip_emotion, "She is very sad.", known_labels={"calm"}) <= {
        f"She is very {w}." for w in ("calm", "relaxed", "peaceful", "serene")
    }
    assert flips(flip_emotion, "She sounds slightly sad.", known_labels={"neutral"}) == {None}


def test_a_strong_word_gives_a_strong_word() -> None:
    assert flips(flip_emotion, "A furious man speaks.", known_labels={"fearful"}) == {
        "A terrified man speaks."
    }
    made = flips(flip_emotion, "A furious man speaks.", known_labels={"calm"})
    assert all(re.match(r"(A|An) (very|deeply|extremely) \w+ man speaks\.", f) for f in made)


def test_what_is_denied_is_never_asserted() -> None:
    made = flips(flip_emotion, "He is not angry, but sad.", known_labels={"angry", "happy"})
    assert made <= {f"He is not angry, but {w}." for w in ("happy", "cheerful", "joyful")}


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "!!!",
        "He speaks quickly.",
        "He does not sound angry.",
        "He sounds surprised but happy.",
        "He is afraid of something.",
        "She is happy to speak.",
        "He is close to tears.",
        "They speak without any emotion.",
        "Calm.",
        "He sounds pleasantly surprised.",
        "He speaks as if he had been crying.",
        "她兴奋得声音都变尖了",
    ],
)
def test_an_emotion_that_cannot_be_flipped_gives_nothing(caption: str) -> None:
    assert flips(flip_emotion, caption) == {None}


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "She sounds happy.",
        "His voice is not loud.",
        "He speaks loudly, in a loud voice.",
        "His voice trembles.",
        "A completely flat voice.",
        "She whispers softly.",
        "A soft voice that gets louder.",
        "Her volume rises steadily.",
        "His intonation is lively, with wide variations.",
        "Her voice is soft as velvet.",
        "Her voice is a bit shaky.",
        'He says "speak softly" in a sad voice.',
    ],
)
def test_a_claim_that_cannot_be_flipped_gives_nothing(caption: str) -> None:
    assert flips(flip_claim, caption) == {None}


def test_a_claim_flips_to_the_opposite_of_the_same_form() -> None:
    assert flips(flip_claim, "He speaks softly.") == {"He speaks loudly.", "He speaks forcefully."}
    assert flips(flip_claim, "He sounds sad, speaking at a slow pace.") == {
        "He sounds sad, speaking at a fast pace.",
        "He sounds sad, speaking at a quick pace.",
    }
    assert flips(flip_claim, "He has an unsteady voice.") == {"He has a steady voice."}
    # no phrase says "soft", so the level between has to do
    assert flips(flip_claim, "He speaks with a lot of force.") == {
        "He speaks at a moderate volume.",
        "He speaks at a normal volume.",
    }


def test_and_and_but_go_with_what_is_said() -> None:
    assert "His voice is slow and low." in flips(flip_claim, "His voice is fast but low.")
    assert "His voice is loud but low." in flips(flip_claim, "His voice is loud and high.")
    assert "A soft, low voice." in flips(flip_claim, "A soft but high voice.")


def test_far_labels_are_drawn_more_often_and_confusable_ones_too() -> None:
    known = {"angry", "fearful", "calm", "frustrated"}
    drawn = Counter(
        emotion_of(flip_emotion("He sounds angry.", Random(seed), known) or "") for seed in range(400)
    )
    assert drawn["calm"] > 2 * drawn["fearful"] > 60
    assert not drawn["frustrated"] and not drawn["angry"]


def test_chinese_emotions_flip_and_chinese_claims_do_not() -> None:
    assert flips(flip_emotion, "他的语气很愤怒，声音很大。", known_labels={"sad"}) == {
        "他的语气很悲伤，声音很大。"
    }
    assert flips(flip_claim, "他的声音很大。") == {None}


def test_the_same_seed_gives_the_same_flip() -> None:
    caption = "She sounds very angry, speaking at a fast pace in a loud, high voice."
    assert flip_emotion(caption, Random(5)) == flip_emotion(caption, Random(5))
    assert flip_claim(caption, Random(5)) == flip_claim(caption, Random(5))
