"""Words of acoustic claims and of gender: data/cue_words.yaml and data/claim_words.yaml made searchable."""

from __future__ import annotations

from functools import cache
from typing import Any

from aligncap.captions.cue_words import dimensions
from aligncap.captions.emotions import labels as emotion_labels
from aligncap.captions.emotions import words_of
from aligncap.captions.lexicon import Phrases, adjective_forms, noun_forms, verb_forms
from aligncap.errors import Faults
from aligncap.io import data_path, load_data

FILE = "claim_words.yaml"
# (dimension, level) by where a word stands: the noun it is said of, "sounds", "adverb" or "anywhere"
Reading = dict[str, tuple[str, str]]


@cache
def ranks() -> dict[tuple[str, str], int]:
    """-1, 0 or 1 of every (dimension, level): below, near or above the norm."""
    return {(d.name, level.name): level.rank for d in dimensions().values() for level in d.levels}


@cache
def listed(*keys: str) -> frozenset[str]:
    """Words of a list of data/claim_words.yaml, found by its keys."""
    found: Any = load_data(FILE)
    for key in keys:
        found = found[key]
    return frozenset(found)


@cache
def readings() -> Phrases[Reading]:
    """Every word and phrase with the levels it claims, by the noun it is said of.

    Raises:
        Faults: the file names an unknown dimension, level or place, or a word has two levels at one place.
    """
    found: dict[str, Reading] = {}
    faults: list[str] = []
    instead = listed("instead")

    def add(word: str, place: str, claim: tuple[str, str]) -> None:
        first = found.setdefault(word, {}).setdefault(place, claim)
        if first != claim:
            faults.append(f"{data_path(FILE)}: {word!r} ({place}) stands for {first} and {claim}; keep one")

    for d in dimensions().values():
        for level in d.levels:
            claim = (d.name, level.name)
            for word in level.words - instead:
                if word in level.adverb or (word.endswith("ly") and word not in level.voice + level.quality):
                    add(word, "adverb", claim)
                else:
                    add(word, "anywhere" if " " in word else "voice", claim)
    places = {*load_data(FILE)["nouns"], "sounds", "anywhere", "adverb"}
    for name, levels in load_data(FILE)["words"].items():
        for level_name, by_place in levels.items():
            if (name, level_name) not in ranks() or set(by_place) - places:
                faults.append(f"{data_path(FILE)}: {name} {level_name}: unknown dimension, level or place")
                continue
            for place, words in by_place.items():
                for word in words:
                    graded = place not in ("anywhere", "adverb") and " " not in word and "-" not in word
                    forms = {f for f in adjective_forms(word) if f.endswith(("er", "est"))} if graded else ()
                    for form in (word, *forms):
                        add(form, place, (name, level_name))
    if faults:
        raise Faults(faults)
    # an idiom is found, so that no word in it is, and claims nothing
    found |= {idiom: {} for idiom in listed("idioms")}
    table: Phrases[Reading] = Phrases()
    for word, reading in found.items():
        table.add(word, reading)
    return table


@cache
def nouns() -> Phrases[str]:
    """Nouns with their class: voice, pitch, range, volume, rate, intonation or person."""
    table: Phrases[str] = Phrases()
    for place, words in load_data(FILE)["nouns"].items():
        for word in words:
            table.add(word, place)
    return table


@cache
def emotion_nouns() -> frozenset[str]:
    """Nouns that name an emotion: "a quiet sadness" says nothing of the voice."""
    words = {word for label in emotion_labels() for word in words_of(label, kinds=["noun"])}
    return frozenset(form for word in words for form in noun_forms(word))


@cache
def passed_over() -> frozenset[str]:
    """Words that may stand between a voice and what is said of it: "is", "very", "not", "harsh and"."""
    words = load_data("voice_words.yaml")["en"]
    phrases = (*words["words"]["adjective"], *words["ambiguous"], *words["degree"], *words["negators"])
    return listed("links") | {phrase for phrase in phrases if " " not in phrase}


@cache
def speech_verbs() -> frozenset[str]:
    """Forms of verbs of speaking."""
    forms = frozenset(form for verb in listed("speech_verbs") for form in verb_forms(verb))
    return (forms | listed("speech_irregular")) - {"voice", "voices", "whisper", "cry", "cries"}


@cache
def gender_words() -> Phrases[str]:
    """Words that tell a gender, with it; "" for phrases that leave it open ("he or she")."""
    table: Phrases[str] = Phrases()
    for gender in ("male", "female"):
        for word in load_data(FILE)["gender"][gender]:
            table.add(word, gender)
    for phrase in load_data(FILE)["gender"]["of_him"]:
        table.add(phrase, "male")
    for phrase in load_data(FILE)["gender"]["either"]:
        table.add(phrase, "")
    return table
