"""Words that people chose for a voice (LibriTTS-P): captions made of them, and read from captions.

Degrees ("slightly", "very") are written and not compared: people seldom agree on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

from aligncap.utils.io import load_data


def tag_caption(words: Sequence[str]) -> str:
    """A sentence that says all words, in their order.

    >>> tag_caption(["masculine", "very calm", "clear"])
    'The voice sounds masculine, very calm and clear.'
    """
    listed = " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)
    return f"The voice sounds {listed}."


@cache
def _tags() -> re.Pattern[str]:
    words = sorted(load_data("people.yaml")["words"], key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, words))})(?![\w-])")


def tags_of(text: str) -> frozenset[str]:
    """The words of `words` in data/people.yaml that a caption or an annotator says, without degrees.

    >>> sorted(tags_of("A slightly raspy, middle-aged voice."))
    ['middle-aged', 'raspy']
    """
    return frozenset(_tags().findall(text.lower()))


def overlap(said: frozenset[str], others: Iterable[frozenset[str]]) -> tuple[float, float, float]:
    """Set precision, recall and F1 of what is said against each of `others`, means over them.

    >>> overlap(frozenset({"calm", "clear"}), [frozenset({"calm"}), frozenset({"dark"})])
    (0.25, 0.5, 0.3333333333333333)
    """
    rows = [
        (both / max(1, len(said)), both / max(1, len(other)), 2 * both / max(1, len(said) + len(other)))
        for other in others
        for both in [len(said & other)]
    ]
    p, r, f = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    return p, r, f
