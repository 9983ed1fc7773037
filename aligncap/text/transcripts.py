"""Transcripts held against what was said: word and character error rates, answers that are no transcript."""

from __future__ import annotations

from collections.abc import Sequence

from nltk.metrics.distance import edit_distance

from aligncap.text.instruction import breaches
from aligncap.text.lexicon import caption_words, is_chinese


def word_errors(said: str, heard: str) -> tuple[int, int]:
    """(errors, words of what was said): insertions, deletions and substitutions; case and marks count not.

    A Chinese character is a word. The word error rate of clips is the sum of the first by that of the second.

    >>> word_errors("Kids are talking by the door.", "kids are walking by a door")
    (2, 6)
    """
    true, found = caption_words(said), caption_words(heard)
    return int(edit_distance(true, found)), len(true)


def character_errors(said: str, heard: str) -> tuple[int, int]:
    """As `word_errors`, of letters; spaces and marks count not.

    >>> character_errors("the door", "the doors")
    (1, 7)
    """
    true, found = "".join(caption_words(said)), "".join(caption_words(heard))
    return int(edit_distance(true, found)), len(true)


def refuses(answer: str) -> bool:
    """Whether an answer says that it cannot answer, in English or Chinese.

    >>> refuses("I'm sorry, I cannot listen to audio."), refuses("The door is open.")
    (True, False)
    """
    return "refusal" in breaches(answer, "zh" if is_chinese(answer) else "en")


def near_duplicates(texts: Sequence[str], least: float = 0.8) -> list[int]:
    """A number for each text: texts of one number say almost the same.

    Two texts are alike if at most `1 - least` of the longer one's words need to be changed. The commonest
    text opens a group, the next commonest joins the first group whose opening it is like, and so on; the
    groups are numbered by their size.

    >>> near_duplicates(["He sounds calm.", "he sounds calm", "She is angry."])
    [0, 0, 1]
    """
    words = [tuple(caption_words(text)) for text in texts]
    counts: dict[tuple[str, ...], int] = {}
    for own in words:
        counts[own] = counts.get(own, 0) + 1
    openings: list[tuple[str, ...]] = []
    group: dict[tuple[str, ...], int] = {}
    for own in sorted(counts, key=lambda key: -counts[key]):
        alike = (place for place, first in enumerate(openings) if _alike(first, own, least))
        place = next(alike, len(openings))
        if place == len(openings):
            openings.append(own)
        group[own] = place
    sizes = [0] * len(openings)
    for own, count in counts.items():
        sizes[group[own]] += count
    ranked = sorted(range(len(sizes)), key=lambda place: -sizes[place])
    number = {place: rank for rank, place in enumerate(ranked)}
    return [number[group[own]] for own in words]


def _alike(a: tuple[str, ...], b: tuple[str, ...], least: float) -> bool:
    longest = max(len(a), len(b))
    room = int((1 - least) * longest + 1e-9)
    if abs(len(a) - len(b)) > room:
        return False
    return a == b or (room > 0 and int(edit_distance(list(a), list(b))) <= room)
