"""Contradictions, repetitions and sentence frames: what is found, and what must not be."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from aligncap.text.claims import dimensions
from aligncap.text.coherence import contradictions, frame, opposed, repetitions
from aligncap.text.emotions import labels
from aligncap.text.sentences import write_captions
from aligncap.utils.io import data_path, read_jsonl


def generated(number: int) -> list[str]:
    """Captions of every label, gender and level, five a clip, as `annotate` writes them."""
    rng, found = Random(7), list[str]()
    for i in range(number // 5):
        facts = {d.name: rng.choice([level.name for level in d.levels]) for d in dimensions().values()}
        about = rng.choice(labels()), rng.choice(["normal", "strong"]), rng.choice(["female", "male"])
        found += write_captions(*about, facts, 5, Random(f"0|{i}"))
    return found


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("She is deeply sorrowful, with a high-pitched, joyful voice.", "emotion: sorrowful and joyful"),
        ("The man sounds furious and speaks in a serene tone.", "emotion: furious and serene"),
        ("He sounds calm and excited.", "emotion: calm and excited"),
        ("She sounds very angry, and her tone is neutral.", "emotion: angry and neutral"),
        ("She is sad, with a soft but high, happy voice.", "emotion: sad and happy"),
        ("He speaks loudly in a soft voice.", "effort: loudly and soft"),
        ("His voice is steady and trembling.", "steadiness: steady and trembling"),
        ("He is loud, but not loud.", "effort: loud and not loud"),
        ("她听起来很愤怒，声音喜悦。", "emotion: 愤怒 and 喜悦"),
    ],
)
def test_a_contradiction_is_found_with_its_words(caption: str, wrong: str) -> None:
    found = contradictions(caption)
    assert [str(f) for f in found] == [wrong]
    assert caption[found[0].start :].startswith(found[0].words[-1].removeprefix("not "))


@pytest.mark.parametrize(
    "caption",
    [
        "He is not angry but sad.",
        "She sounds sad but hopeful.",
        "She sounds sad, yet happy.",
        "Her voice turns from calm to angry.",
        "He starts softly and ends loud.",
        "At first happy, the woman is heartbroken in the end.",
        "A mixture of joy and sorrow.",
        "She sounds happy, with a hint of sadness.",
        "He tries to sound cheerful, and is furious.",
        "She sounds happy and surprised.",
        "He sounds fearful and surprised.",
        "She sounds sad and fearful.",
        "He sounds sad and angry.",
        "A tender, sad voice.",
        "He sounds excited and angry.",
        "The angry man reads the news about the happy couple.",
        'He says "I am happy" in a sad voice.',
        "他先是平静，后来愤怒。",
        "",
    ],
)
def test_mixed_changing_denied_and_hinted_feelings_are_no_contradiction(caption: str) -> None:
    assert contradictions(caption) == ()


def test_opposition_has_no_order_and_none_is_opposed_to_itself() -> None:
    for a in labels():
        assert not opposed(a, a) and all(opposed(a, b) == opposed(b, a) for b in labels())
    assert opposed("happy", "sad") and not opposed("surprised", "fearful")


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("His voice is unsteady and unsteady.", "words: unsteady and unsteady"),
        ("Her voice is high-pitched and high.", "pitch: high-pitched and high"),
        ("She speaks quickly in a fast voice.", "rate: quickly and fast"),
        ("He is angry and speaks angrily.", "words: angry and angrily"),
        ("He sounds sounds sad.", "words: sounds and sounds"),
        ("He speaks in a sad tone and speaks in a low voice.", "words: speaks in a and speaks in a"),
        ("她很悲伤悲伤。", "words: 悲伤 and 悲伤"),
    ],
)
def test_a_repetition_is_found_with_its_words(caption: str, wrong: str) -> None:
    assert [str(found) for found in repetitions(caption)] == [wrong]


@pytest.mark.parametrize(
    "caption",
    [
        "Her voice gets louder and louder.",
        "She is very, very sad and very quiet.",
        "The pitch is low, the volume is low, and the tempo is low.",
        "His tone is sad, and his voice has a low tone.",
        "A booming, thunderous voice.",
        "He is not loud, and speaks slowly.",
        '"No, no, no", she says softly.',
        "她高高兴兴地哈哈哈哈笑。",
    ],
)
def test_rising_graded_and_carrying_words_may_return(caption: str) -> None:
    assert repetitions(caption) == ()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("She sounds very sad, and her voice is low.", "The man sounds happy, and his voice is high.", True),
        ("He is sad, and his voice is low and soft.", "She is angry, and her voice is loud, high.", True),
        ("An angry woman speaks loudly.", "A deeply sad man speaks at a slow pace.", True),
        ("The man's tone is calm.", "Her tone is angry.", True),
        ("She sounds sad and has a low voice.", "She sounds sad, with a low voice.", False),
        ("She sounds sad.", "She seems sad.", False),
        ("他很悲伤。", "她非常愤怒。", True),
    ],
)
def test_a_frame_is_the_sentence_without_what_it_says(one: str, other: str, same: bool) -> None:
    assert (frame(one) == frame(other)) == same


def test_frames_read_like_their_pattern() -> None:
    caption = "The woman sounds extremely sad, and her voice is low, slow and shaky."
    assert frame(caption) == "{he} sounds {emotion}, and {his} voice is {quality}"
    assert frame("") == ""


def test_generated_captions_make_sense_and_have_many_frames() -> None:
    captions = generated(3000)
    assert [c for c in captions if contradictions(c) or repetitions(c)] == []
    assert Counter(map(frame, captions)).most_common(1)[0][1] < 0.1 * len(captions)


def test_few_captions_written_by_hand_are_found() -> None:
    for name in ("claims_check", "clue_gold"):
        captions = [row["caption"] for row in read_jsonl(data_path("gold") / f"{name}.jsonl")]
        assert sum(bool(contradictions(caption)) for caption in captions) <= 0.005 * len(captions)
        assert sum(bool(repetitions(caption)) for caption in captions) <= 0.01 * len(captions)


def test_against_sentences_labelled_before_the_rules_were_measured() -> None:
    """Hard cases on purpose; docs/hallucination.md has what goes wrong."""
    rows = read_jsonl(data_path("gold") / "coherence_check.jsonl")
    for kind, find, fewest, extra in (
        ("contradiction", contradictions, 12, 5),
        ("repetition", repetitions, 7, 2),
    ):
        found = [(bool(find(row["caption"])), kind in row["expected"]) for row in rows]
        counts = Counter(found)
        print(
            f"{kind}: right {counts[True, True]}, extra {counts[True, False]}, missed {counts[False, True]}"
        )
        assert counts[True, True] >= fewest and counts[True, False] <= extra
