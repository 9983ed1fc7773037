"""Sentences that say an emotion and measured facts, from the patterns of data/caption_templates.yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from string import Formatter
from typing import Any

from aligncap.text.claims import Level, dimensions
from aligncap.utils.io import load_data

FILE = "caption_templates.yaml"
PLAIN_SHARE = 0.5  # how often the plain word of an emotion is chosen
ADD_SHARE = 0.7  # how often a slot with room takes one more fact
STRONG_WORD_SHARE = 0.3  # of strong clips: a stronger synonym instead of a degree word
_FACT_FORMS = ("voice", "quality", "manner", "phrase")
_SLOT = re.compile(r"(voice|quality|manner|phrase)(\d?)")
_WORD = re.compile(r"[A-Za-z][\w'-]*")
# words that may stand twice in one caption
_SMALL = frozenset("a an the is it in at of to and but with his her their he she who".split())
_PEOPLE: dict[str | None, dict[str, Any]] = {
    "female": {
        "he": ["she"] * 4 + ["the woman"] * 2 + ["the speaker"],
        "his": "her",
        "person": "woman",
        "sex": "female",
    },
    "male": {
        "he": ["he"] * 4 + ["the man"] * 2 + ["the speaker"],
        "his": "his",
        "person": "man",
        "sex": "male",
    },
    None: {
        "he": ["the speaker", "the speaker", "this person"],
        "his": "their",
        "person": "person",
        "sex": None,
    },
}


@dataclass(frozen=True, slots=True)
class Draft:
    """A caption with the dimensions that it speaks of and the emotion word it uses."""

    text: str
    said: frozenset[str]
    feeling: str


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
        facts: measured level names by dimension (`cue_words.word_cues`). Levels away from the norm are said;
            levels near it only when fewer than two others are there to be said.
        rng: the source of every choice.
    """
    levels = _levels(facts)
    outer = {name: level for name, level in levels.items() if level.rank}
    sayable = outer if len(outer) > 1 else levels
    patterns = _patterns(emotion is not None, bool(sayable))
    drafts: list[Draft] = []
    texts: set[str] = set()
    used: dict[str, set[Any]] = {"pattern": set(), "said": set()}
    for strictness in ("pattern and facts", "pattern", "", "", "", ""):
        for pattern in rng.sample(patterns, len(patterns)):
            # several tries: a pattern may miss only because of an unlucky word or too many facts
            for _ in range(4):
                if len(drafts) == count:
                    return [draft.text for draft in drafts]
                draft = _draft(pattern, emotion, intensity, gender, sayable, rng)
                if draft is None or draft.text in texts:
                    continue
                if (pattern in used["pattern"] and "pattern" in strictness) or (
                    draft.said in used["said"] and "facts" in strictness
                ):
                    continue
                drafts.append(draft)
                texts.add(draft.text)
                used["pattern"].add(pattern)
                used["said"].add(draft.said)
                break
    return [draft.text for draft in drafts]


def _levels(facts: Mapping[str, str]) -> dict[str, Level]:
    """Levels by dimension, those left out that have no words to say them."""
    found = {name: dimensions()[name].level(word) for name, word in facts.items() if name in dimensions()}
    return {
        name: level
        for name, level in found.items()
        if level and (level.voice or level.adverb or level.phrase)
    }


def _patterns(feeling: bool, facts: bool) -> Sequence[str]:
    templates = load_data(FILE)
    if feeling:
        return templates["patterns"] if facts else templates["feeling_only"]
    return templates["facts_only"] if facts else []


def _draft(
    pattern: str,
    emotion: str | None,
    intensity: str | None,
    gender: str | None,
    levels: Mapping[str, Level],
    rng: Random,
) -> Draft | None:
    """One try at a pattern; None when it cannot be filled or reads badly."""
    slots = _slots(pattern)
    filled = _people(pattern, gender, rng)
    shares = _share_out([slot for slot in slots if _SLOT.fullmatch(slot)], levels, rng)
    if filled is None or shares is None:
        return None
    feeling = ""
    for slot in slots:
        if slot in shares:
            filled[slot] = _say(_SLOT.fullmatch(slot)[1], shares[slot], levels, rng)  # type: ignore[index]
        elif slot not in filled:
            said = _feel(slot, emotion or "", intensity, rng)
            if said is None:
                return None
            filled[slot] = feeling = said
    text = _finish(pattern.format_map(filled))
    said_of = frozenset(name for names in shares.values() for name in names)
    return Draft(text, said_of, feeling) if _reads_well(text) else None


@cache
def _slots(pattern: str) -> tuple[str, ...]:
    return tuple(name for _, name, _, _ in Formatter().parse(pattern) if name)


def _people(pattern: str, gender: str | None, rng: Random) -> dict[str, str] | None:
    """Words for the speaker; None when the pattern needs a gender that is not known."""
    people = _PEOPLE.get(gender, _PEOPLE[None])
    if people["sex"] is None and "{sex" in pattern:
        return None
    his = people["his"]
    if pattern.startswith("{his}") and (people["sex"] is None or rng.random() < 0.3):
        his = f"the {people['person']}'s"
    return {
        "he": rng.choice(people["he"]),
        "his": his,
        "person": people["person"],
        "sex": str(people["sex"]),
        "sex_person": people["person"],
    }


def _forms(level: Level, form: str) -> tuple[str, ...]:
    if form == "quality":
        return level.quality or level.voice
    return level.adverb if form == "manner" else getattr(level, form)


def _share_out(slots: Sequence[str], levels: Mapping[str, Level], rng: Random) -> dict[str, list[str]] | None:
    """Dimensions for every fact slot, each dimension at most once; None when a slot stays empty."""
    # levels near the norm are said only where no other fits
    free = sorted(rng.sample(list(levels), len(levels)), key=lambda name: levels[name].rank == 0)
    parsed = [(slot, *_SLOT.fullmatch(slot).groups()) for slot in slots]  # type: ignore[union-attr]
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
            if len(shares[slot]) < int(most or 1) and _forms(levels[name], form) and rng.random() < ADD_SHARE:
                shares[slot].append(name)
                free.remove(name)
    return shares


def _say(form: str, names: Sequence[str], levels: Mapping[str, Level], rng: Random) -> str:
    """Words of the facts, joined: "low, soft", "loud and fast", "soft but high"."""
    words = [(rng.choice(_forms(levels[name], form)), levels[name].rank, name) for name in names]
    if len({rank for _, rank, name in words if name != "steadiness"}) > 1 and len(words) == 2:
        # contrast: one sounds more aroused than usual, the other less
        return " but ".join(word for word, *_ in words)
    if form == "voice":
        return ", ".join(word for word, *_ in words)
    *first, last = [word for word, *_ in words]
    return f"{', '.join(first)} and {last}" if first else last


def _feel(slot: str, emotion: str, intensity: str | None, rng: Random) -> str | None:
    """Words of the emotion for a slot; None when it has no such form."""
    default, entry = (
        load_data(FILE)["default"],
        load_data(FILE)["emotions"].get(emotion, {"adjective": [emotion]}),
    )
    strong = intensity == "strong"
    if slot in ("person_feeling", "state") and not entry.get("person", True):
        return None
    if slot in ("noun", "adverb"):
        words = entry.get(slot, [])
    else:
        words = entry.get(slot) or entry["adjective"] + (
            entry.get("predicate", []) if slot in ("feeling", "state") else []
        )
        if strong and entry.get("strong") and rng.random() < STRONG_WORD_SHARE:
            return rng.choice(entry["strong"])
    if not words:
        return None
    plain = rng.random() < PLAIN_SHARE + (STRONG_WORD_SHARE / 2 if strong else 0)
    word = words[0] if plain or len(words) == 1 else rng.choice(words[1:])
    if not strong:
        return word
    degrees = "noun_degree" if slot == "noun" else "degree"
    return f"{rng.choice(entry.get(degrees, default[degrees]))} {word}"


def _finish(text: str) -> str:
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    if "speaker" in text:  # "the speaker speaks" grates
        text = text.replace(" speaks ", " talks ").replace(" speaking ", " talking ")
    return text[0].upper() + text[1:]


def _reads_well(text: str) -> bool:
    """Right length, no content word twice, no pile of "in a …" or "with …" phrases, no list of one."""
    words = [word.lower() for word in _WORD.findall(text)]
    length = load_data(FILE)["length"]
    content = [word for word in words if word not in _SMALL]
    return (
        length["least"] <= len(words) <= length["most"]
        and len(content) == len(set(content))
        and len(re.findall(r"\bin an? ", text.lower())) < 2
        and words.count("with") < 2
        and not {"tone", "monotone"} <= set(words)
        and not re.search(r": [\w-]+\.$", text)  # a list of one
    )
