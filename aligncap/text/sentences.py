"""Sentences that state an emotion and measured facts, from the patterns of `data/caption_templates.yaml`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from random import Random
from string import Formatter

from aligncap.text.claims import Level, dimensions
from aligncap.text.lexicon import word_list
from aligncap.utils.io import Row, load_data

FILE = "caption_templates.yaml"
PLAIN_SHARE = 0.5  # how often the plain word of an emotion is chosen
ADD_SHARE = 0.7  # how often a slot with room takes one more fact
STRONG_WORD_SHARE = 0.3  # of strong clips: a stronger synonym instead of a degree word
_FACT = re.compile(r"(voice|quality|manner|phrase)(\d?)")  # a slot of measured facts, and how many it takes
_WORD = re.compile(r"[A-Za-z][\w'-]*")


def write_captions(
    emotion: str | None,
    intensity: str | None,
    gender: str | None,
    facts: Mapping[str, str],
    count: int,
    rng: Random,
) -> list[str]:
    """Up to `count` different captions; fewer only where no more can be told apart.

    Captions differ in pattern, and in the facts they pick, for as long as patterns and facts last.

    Args:
        emotion: label of data/labels.yaml, or None.
        intensity: "strong" adds a degree word or takes a stronger synonym.
        gender: "female", "male" or None.
        facts: measured level names by dimension (`claims.word_cues`). Levels away from the norm are said;
            levels near it only when fewer than two others are there to be said.
        rng: the source of every choice.
    """
    found = {name: dimensions()[name].level(word) for name, word in facts.items() if name in dimensions()}
    # levels without words to say them are left out
    levels = {n: lev for n, lev in found.items() if lev and (lev.voice or lev.adverb or lev.phrase)}
    sayable, patterns = choose(levels, emotion, load_data(FILE))
    written: dict[str, tuple[str, frozenset[str]]] = {}  # captions with their pattern and dimensions
    for fresh_pattern, fresh_facts in ((True, True), (True, False), *[(False, False)] * 4):
        for pattern in rng.sample(patterns, len(patterns)):
            # several tries: a pattern may miss only because of an unlucky word or too many facts
            for _ in range(4):
                if len(written) == count:
                    return list(written)
                text, said = _draft(pattern, emotion, intensity == "strong", gender, sayable, rng)
                if not text or text in written:
                    continue
                if any(
                    (fresh_pattern and pattern == other) or (fresh_facts and said == facts_said)
                    for other, facts_said in written.values()
                ):
                    continue
                written[text] = pattern, said
                break
    return list(written)


def choose(
    levels: dict[str, Level], emotion: str | None, templates: Row
) -> tuple[dict[str, Level], list[str]]:
    """The levels that are said, those away from the norm where there are two, and the patterns that fit."""
    outer = {name: level for name, level in levels.items() if level.rank}
    sayable = outer if len(outer) > 1 else levels
    if emotion is None:
        return sayable, templates["facts_only"] if sayable else []
    return sayable, templates["patterns" if sayable else "feeling_only"]


def emotion_entry(label: str) -> Row:
    """The words that generated captions have for a label: by form, degrees, strong synonyms."""
    return load_data(FILE)["emotions"].get(label, {"adjective": [label]})


def emotion_forms(entry: Row, slot: str) -> list[str]:
    """Words of an `emotion_entry` that fit a slot, the plain one first; none where it has no such form.

    Args:
        slot: "noun", "adverb", "tone", "feeling" (after "sounds"), "state" (after "is") or another.
    """
    if slot in ("noun", "adverb"):
        return entry.get(slot, [])
    if slot == "tone" and entry.get("tone"):
        return entry["tone"]
    return entry["adjective"] + (entry.get("predicate", []) if slot in ("feeling", "state") else [])


def degrees(entry: Row, noun: bool) -> list[str]:
    """Words that grade the adjectives, or the nouns, of an `emotion_entry`."""
    key = "noun_degree" if noun else "degree"
    return entry.get(key, load_data(FILE)["default"][key])


def _reads_well(text: str, least: int, most: int) -> bool:
    """Right length, no content word twice, no pile of "in a …" or "with …" phrases, no list of one."""
    words = [word.lower() for word in _WORD.findall(text)]
    content = [word for word in words if word not in word_list(FILE, "small_words")]
    return (
        least <= len(words) <= most
        and len(content) == len(set(content))
        and len(re.findall(r"\bin an? ", text.lower())) < 2
        and words.count("with") < 2
        and not {"tone", "monotone"} <= set(words)
        and not re.search(r": [\w-]+\.$", text)  # a list of one
    )


def _draft(
    pattern: str,
    emotion: str | None,
    strong: bool,
    gender: str | None,
    levels: Mapping[str, Level],
    rng: Random,
) -> tuple[str, frozenset[str]]:
    """One try at a pattern with its dimensions; an empty text when it cannot be filled or reads badly."""
    failed = "", frozenset[str]()
    people = _people(pattern, gender, rng)
    shares = _share_out([slot for slot in _slots(pattern) if _FACT.fullmatch(slot)], levels, rng)
    if people is None or shares is None:
        return failed
    for slot in _slots(pattern):
        if slot in shares:
            people[slot] = _say(slot.rstrip("0123456789"), shares[slot], levels, rng)
        elif slot not in people:
            feeling = _feel(slot, emotion or "", strong, rng)
            if feeling is None:
                return failed
            people[slot] = feeling
    text = re.sub(r"\ba (?=[aeiou])", "an ", pattern.format_map(people))
    if "speaker" in text:  # "the speaker speaks" grates
        text = text.replace(" speaks ", " talks ").replace(" speaking ", " talking ")
    text = text[0].upper() + text[1:]
    said = frozenset(name for names in shares.values() for name in names)
    return (text, said) if _reads_well(text, **load_data(FILE)["length"]) else failed


@cache
def _slots(pattern: str) -> tuple[str, ...]:
    return tuple(name for _, name, _, _ in Formatter().parse(pattern) if name)


def _people(pattern: str, gender: str | None, rng: Random) -> dict[str, str] | None:
    """Words for the speaker; None when the pattern needs a gender that is not known."""
    known = gender in ("female", "male")
    if not known and "{sex" in pattern:
        return None
    people = load_data(FILE)["people"][gender if known else "unknown"]
    his = people["his"]
    if pattern.startswith("{his}") and (not known or rng.random() < 0.3):
        his = f"the {people['person']}'s"
    person, he = people["person"], rng.choice(people["he"])
    return {"person": person, "sex": str(gender), "sex_person": person, "his": his, "he": he}


def _forms(level: Level, form: str) -> tuple[str, ...]:
    return getattr(level, "adverb" if form == "manner" else form)


def _share_out(slots: Sequence[str], levels: Mapping[str, Level], rng: Random) -> dict[str, list[str]] | None:
    """Dimensions for every fact slot, each dimension at most once; None when a slot stays empty."""
    # levels near the norm are said only where no other fits
    free = sorted(rng.sample(list(levels), len(levels)), key=lambda name: levels[name].rank == 0)
    parsed = [(slot, slot.rstrip("0123456789"), int(slot[-1]) if slot[-1].isdigit() else 1) for slot in slots]
    shares: dict[str, list[str]] = {}
    # the slot with the fewest candidates chooses first
    for slot, form, _ in sorted(parsed, key=lambda row: sum(bool(_forms(levels[n], row[1])) for n in free)):
        # "his voice is fast" alone is no English: a first quality must be one of the voice
        first = "voice" if form == "quality" else form
        name = next((n for n in free if _forms(levels[n], first)), None)
        if name is None:
            return None
        shares[slot] = [name]
        free.remove(name)
    for slot, form, most in parsed:
        for name in list(free):
            if len(shares[slot]) < most and _forms(levels[name], form) and rng.random() < ADD_SHARE:
                shares[slot].append(name)
                free.remove(name)
    return shares


def _say(form: str, names: Sequence[str], levels: Mapping[str, Level], rng: Random) -> str:
    """Words of the facts, joined: "low, soft", "loud and fast", "soft but high"."""
    words = [rng.choice(_forms(levels[name], form)) for name in names]
    if len(words) == 2 and len({levels[name].rank for name in names if name != "steadiness"}) > 1:
        # contrast: one sounds more aroused than usual, the other less
        return " but ".join(words)
    if form == "voice" or len(words) == 1:
        return ", ".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _feel(slot: str, emotion: str, strong: bool, rng: Random) -> str | None:
    """Words of the emotion for a slot; None when it has no such form."""
    entry = emotion_entry(emotion)
    if slot in ("person_feeling", "state") and not entry.get("person", True):
        return None
    words = emotion_forms(entry, slot)
    if slot not in ("noun", "adverb") and strong and entry.get("strong"):
        if rng.random() < STRONG_WORD_SHARE:
            return rng.choice(entry["strong"])
    if not words:
        return None
    plain = rng.random() < PLAIN_SHARE + (STRONG_WORD_SHARE / 2 if strong else 0)
    word = words[0] if plain or len(words) == 1 else rng.choice(words[1:])
    return f"{rng.choice(degrees(entry, slot == 'noun'))} {word}" if strong else word
