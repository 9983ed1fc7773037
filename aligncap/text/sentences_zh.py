"""Chinese sentences that state an emotion and measured facts, from `data/caption_templates_zh.yaml`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import Random

from aligncap.text.claims import chinese_levels, claims_of, dimensions
from aligncap.text.emotions import emotion_of, words_of
from aligncap.text.lexicon import is_chinese
from aligncap.utils.io import load_data

FILE = "caption_templates_zh.yaml"
PLAIN_SHARE = 0.5  # how often the plain word of an emotion is chosen
ADD_SHARE = 0.7  # how often one more fact is said
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
    words = chinese_levels()
    levels = {name: level for name, level in facts.items() if name in words and words[name][level]["said"]}
    ranks = {name: level.rank for name in levels if (level := dimensions()[name].level(levels[name]))}
    outer = {name: level for name, level in levels.items() if ranks.get(name)}
    sayable = outer if len(outer) > 1 else levels
    templates = load_data(FILE)
    patterns = templates["patterns" if sayable else "feeling_only"]
    if emotion is None:
        patterns = templates["facts_only"] if sayable else []
    written: list[str] = []
    for _ in range(8):
        for pattern in rng.sample(patterns, len(patterns)):
            if len(written) == count:
                return written
            text = _draft(pattern, emotion, intensity == "strong", gender, sayable, rng)
            if text and text not in written and _states(text, emotion, sayable):
                written.append(text)
    return written


def _states(text: str, emotion: str | None, facts: Mapping[str, str]) -> bool:
    """Whether a caption says what it is to say, read as captions are read, and is of the right length."""
    said = {(claim.dimension, claim.level, claim.negated) for claim in claims_of(text)}
    size = load_data(FILE)["length"]
    fits = size["least"] <= sum(map(is_chinese, text)) <= size["most"]
    true = all(facts.get(dimension) == level and not negated for dimension, level, negated in said)
    return fits and true and emotion_of(text) == emotion


def _draft(
    pattern: str,
    emotion: str | None,
    strong: bool,
    gender: str | None,
    levels: Mapping[str, str],
    rng: Random,
) -> str:
    """One try at a pattern; empty where a slot cannot be filled."""
    templates, free = load_data(FILE), rng.sample(list(levels), len(levels))
    people = templates["people"][gender if gender in ("female", "male") else "unknown"]
    slots = {name: rng.choice(words) for name, words in people.items()}
    if "{voice}" in pattern:
        voiced = [name for name in free if chinese_levels()[name][levels[name]]["voice"]]
        if not voiced:
            return ""
        free.remove(voiced[0])
        slots["voice"] = rng.choice(chinese_levels()[voiced[0]][levels[voiced[0]]]["voice"])
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
    return re.sub("的的", "的", pattern.format_map(slots))


def _fact(dimension: str, level: str, rng: Random) -> str:
    """A measured fact: 音调较低."""
    words, graded = chinese_levels()[dimension], load_data("cue_words_zh.yaml")["degrees"]
    said = words[level]["said"][0] if rng.random() < PLAIN_SHARE else rng.choice(words[level]["said"])
    near = dimensions()[dimension].level(level)
    degree = rng.choice(graded) if len(said) == 1 and near and near.rank else ""
    return f"{words['nouns'][0]}{degree}{said}"
