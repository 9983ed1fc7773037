"""Words for measured cues: thresholds and wording of data/cue_words.yaml.

A *dimension* (pitch, movement, effort, rate, steadiness) reads one relative cue and has three levels, the
middle one near the speaker's norm. A *fact* is a dimension with its level.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from aligncap.errors import Faults
from aligncap.io import data_path, load_data

FILE = "cue_words.yaml"
FORMS = ("voice", "quality", "adverb", "phrase", "also")


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a dimension and the words that say it, by grammatical form.

    `rank` is -1, 0 or 1: below, near or above the norm.
    """

    name: str
    rank: int
    voice: tuple[str, ...] = ()
    quality: tuple[str, ...] = ()
    adverb: tuple[str, ...] = ()
    phrase: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def words(self) -> frozenset[str]:
        """Every word and phrase that claims this level."""
        return frozenset((*self.voice, *self.quality, *self.adverb, *self.phrase, *self.also))


@dataclass(frozen=True, slots=True)
class Dimension:
    """A relative cue, its two bounds and its three levels, lowest first."""

    name: str
    cue: str
    title: str
    below: float
    above: float
    levels: tuple[Level, ...]

    def level_of(self, value: float) -> Level:
        """The level of a relative value; a value on a bound is near the norm."""
        return self.levels[0 if value < self.below else 2 if value > self.above else 1]

    def level(self, name: str) -> Level | None:
        """The level of that name, None when the wording file no longer has it."""
        return next((level for level in self.levels if level.name == name), None)


@dataclass(frozen=True, slots=True)
class MannerMention:
    """A word or phrase of a caption that claims a level of a dimension."""

    word: str
    dimension: str
    level: str
    start: int


@cache
def dimensions() -> dict[str, Dimension]:
    """Dimensions by name, in the order of the file.

    Raises:
        Faults: the file lacks three levels or sound bounds, or one word stands for two levels.
    """
    found: dict[str, Dimension] = {}
    faults: list[str] = []
    owner: dict[str, str] = {}
    for name, entry in load_data(FILE).items():
        levels = entry["levels"]
        if len(levels) != 3 or not entry["below"] < entry["above"]:
            faults.append(f"{data_path(FILE)}: {name} needs three levels and below < above")
            continue
        made = [
            Level(str(key), rank, **{form: tuple((words or {}).get(form) or ()) for form in FORMS})
            for rank, (key, words) in zip((-1, 0, 1), levels.items(), strict=True)
        ]
        for level in made:
            for word in level.words:
                first = owner.setdefault(word, f"{name} {level.name}")
                if first != f"{name} {level.name}":
                    faults.append(
                        f"{data_path(FILE)}: {word!r} stands for {first} and {name} {level.name}; keep one"
                    )
        found[name] = Dimension(
            name, entry["cue"], entry["title"], float(entry["below"]), float(entry["above"]), tuple(made)
        )
    if faults:
        raise Faults(faults)
    return found


def word_cues(relative: Mapping[str, float]) -> dict[str, str]:
    """Level names by dimension of one clip's relative cues; a cue that was not measured has no word.

    >>> word_cues({"f0_median_hz": 1.9, "rate_sps": 0.1})
    {'pitch': 'high', 'rate': 'medium'}
    """
    return {
        dimension.name: dimension.level_of(relative[dimension.cue]).name
        for dimension in dimensions().values()
        if dimension.cue in relative
    }


@cache
def _pattern() -> tuple[re.Pattern[str], dict[str, tuple[str, str]]]:
    owner = {
        word: (dimension.name, level.name)
        for dimension in dimensions().values()
        for level in dimension.levels
        for word in level.words
    }
    longest_first = sorted(owner, key=lambda word: (-len(word), word))
    alternatives = "|".join(re.escape(word) for word in longest_first)
    return re.compile(rf"(?<![\w-])(?:{alternatives})(?![\w-])", re.IGNORECASE), owner


def manner_mentions(caption: str) -> list[MannerMention]:
    """Manner words and phrases of a caption in order, each with the level it claims; longest match first."""
    pattern, owner = _pattern()
    return [
        MannerMention(match.group().lower(), *owner[match.group().lower()], match.start())
        for match in pattern.finditer(caption)
    ]


def manner_claims(captions: Iterable[str]) -> set[tuple[str, str]]:
    """(dimension, level) pairs that captions claim."""
    return {(m.dimension, m.level) for caption in captions for m in manner_mentions(caption)}
