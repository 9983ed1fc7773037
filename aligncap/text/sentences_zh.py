"""Chinese sentences that state an emotion and measured facts, from `data/caption_templates_zh.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from aligncap.text.claims import CHINESE, Level, chinese_levels, claims_of, dimensions
from aligncap.text.emotions import emotion_of, words_of
from aligncap.text.lexicon import is_chinese
from aligncap.text.sentences import ADD_SHARE, PLAIN_SHARE, choose, write_captions
from aligncap.utils.io import Row, load_data

FILE = "caption_templates_zh.yaml"
MOST_FACTS = 3


def write_captions_zh(
    emotion: str | None,
    intensity: str | None,
    gender: str | None,
    facts: Mapping[str, str],
    count: int,
    rng: Random,
) -> list[str]:
    """Up to `count` different captions; fewer only where no more can be told apart.

    Arguments as those of `sentences.write_captions`: the same facts are said, in Chinese.
    """
    found = {name: dimensions()[name].level(level) for name, level in facts.items() if name in dimensions()}
    levels = {name: level for name, level in found.items() if level and _words(name, level)["said"]}
    sayable, patterns = choose(levels, emotion, load_data(FILE))
    written: list[str] = []
    for _ in range(8):
        for pattern in rng.sample(patterns, len(patterns)):
            if len(written) == count:
                return written
            text = _draft(pattern, emotion, intensity == "strong", gender, sayable, rng)
            if text and text not in written and _states(text, emotion, sayable):
                written.append(text)
    return written


WRITERS = {"en": write_captions, "zh": write_captions_zh}  # by language of the captions


def _words(dimension: str, level: Level) -> Row:
    return chinese_levels()[dimension][level.name]


def _states(text: str, emotion: str | None, levels: Mapping[str, Level]) -> bool:
    """Whether a caption says what it is to say, read as captions are read, and is of the right length."""
    size = load_data(FILE)["length"]
    fits = size["least"] <= sum(map(is_chinese, text)) <= size["most"]
    true = all(levels.get(c.dimension) == c.claimed and not c.negated for c in claims_of(text))
    return fits and true and emotion_of(text) == emotion


def _draft(
    pattern: str,
    emotion: str | None,
    strong: bool,
    gender: str | None,
    levels: Mapping[str, Level],
    rng: Random,
) -> str:
    """One try at a pattern; empty where a slot cannot be filled."""
    templates, free = load_data(FILE), rng.sample(list(levels), len(levels))
    people = templates["people"][gender if gender in ("female", "male") else "unknown"]
    slots = {name: rng.choice(words) for name, words in people.items()}
    if "{voice}" in pattern:
        voiced = [name for name in free if _words(name, levels[name])["voice"]]
        if not voiced:
            return ""
        free.remove(voiced[0])
        slots["voice"] = rng.choice(_words(voiced[0], levels[voiced[0]])["voice"])
    if "{facts}" in pattern:
        chosen = free[:1] + [name for name in free[1:MOST_FACTS] if rng.random() < ADD_SHARE]
        if not chosen:
            return ""
        slots["facts"] = "，".join(_fact(name, levels[name], rng) for name in chosen)
    if emotion is not None:
        entry = templates["emotions"].get(emotion) or {"feeling": words_of(emotion, "zh")[:1]}
        for slot in ("feeling", "noun"):
            words: list[str] = entry[slot] if slot in entry else entry["feeling"]
            if not words:
                if f"{{{slot}}}" in pattern:
                    return ""
                continue
            word = words[0] if len(words) == 1 or rng.random() < PLAIN_SHARE else rng.choice(words[1:])
            slots[slot] = rng.choice(templates[f"{slot}_degree"]["strong" if strong else "plain"]) + word
    return pattern.format_map(slots).replace("的的", "的")


def _fact(dimension: str, level: Level, rng: Random) -> str:
    """A measured fact: 音调较低."""
    words, graded = _words(dimension, level)["said"], load_data(CHINESE)["degrees"]
    said = words[0] if rng.random() < PLAIN_SHARE else rng.choice(words)
    degree = rng.choice(graded) if len(said) == 1 and level.rank else ""
    return f"{chinese_levels()[dimension]['nouns'][0]}{degree}{said}"
