"""Does a caption make sense by itself? Contradictions, repetitions, and the frame its sentence is built on.

Rules over the words that `claims` and `emotions` read; data/coherence.yaml says which feelings are opposed,
and what makes them sound together. docs/hallucination.md says how often people's captions are found.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache, partial, reduce
from itertools import combinations
from math import dist
from typing import NamedTuple

from aligncap.text.claims import Claim, claims_of, conflicts, dimensions, speech_verbs
from aligncap.text.claims import listed as claim_list
from aligncap.text.emotions import Mention, affect, chinese_forms, emotion_words, english_forms
from aligncap.text.lexicon import (
    HAN,
    Phrases,
    characters,
    is_chinese,
    mask_quotes,
    phrase_pattern,
    tokenise,
    voice_words,
    word_list,
)
from aligncap.utils.io import load_data

FILE = "coherence.yaml"
_ABOUT = re.compile(r"\babout(?: \w+){0,2} $")  # the news about the angry crowd
_ROOT = re.compile(r"(?<=...)(iness|ness|ily|ly|y|ed|e)$")  # sad, sadly and sadness have one root
_MERGED = (  # lists are one word, and "the man" is "he"
    (re.compile(r"(\{quality\}|\{emotion\})(?:(?:,? and|,? but|,)? ?\1)+"), r"\1"),
    (re.compile(r"\b(?:the|this|a) \{person\}'s"), "{his}"),
    (re.compile(r"\b(?:the|this|a) \{person\}"), "{he}"),
)
listed, phrases = partial(word_list, FILE), partial(phrase_pattern, FILE)


class Finding(NamedTuple):
    """What is wrong: a dimension, "emotion" or "words"; the words at odds or repeated; where the last is."""

    kind: str
    words: tuple[str, ...]
    start: int

    def __str__(self) -> str:
        return f"{self.kind}: {' and '.join(self.words)}"


@cache
def opposed(label: str, other: str) -> bool:
    """Whether one voice does not have both emotions: joy and sorrow, calm and rage; not fear and surprise."""
    rules, pair = load_data(FILE), {label, other}
    (a, _), (b, _) = places = affect(label), affect(other)
    apart = min(a, b) < -rules["side"] and max(a, b) > rules["side"] and dist(*places) >= rules["far"]
    return pair in map(set, rules["also"]) or (apart and pair not in map(set, rules["never"]))


@lru_cache(maxsize=1 << 16)
def contradictions(caption: str) -> tuple[Finding, ...]:
    """Different levels of one dimension, and opposed emotions, that a caption asserts of one voice.

    A change ("turns from calm to angry"), a concession ("sad but hopeful"), a mixture, pretence, what is
    denied and what is only hinted at are none.

    >>> [str(found) for found in contradictions("She is sorrowful, with a loud, soft, joyful voice.")]
    ['effort: loud and soft', 'emotion: sorrowful and joyful']
    """
    text, found = mask_quotes(caption), list[Finding]()
    if not phrases("changes").search(text):
        claims = claims_of(caption)
        for dimension in conflicts(claims):
            of = [c for c in claims if c.dimension == dimension]
            words = dict.fromkeys("not " * c.negated + c.word for c in of)
            found.append(Finding(dimension, tuple(words), of[-1].start))
    said = [m for m in emotion_words(caption) if not (m.negated or m.weak or m.word in listed("vague"))]
    said = [m for m in said if not _ABOUT.search(text[: m.start])]
    pairs = (p for p in combinations(said, 2) if opposed(p[0].label, p[1].label) and not _agree(text, *p))
    return (*found, *(Finding("emotion", (a.word, b.word), b.start) for a, b in pairs))


def _agree(text: str, a: Mention, b: Mention) -> bool:
    """Whether a caption says how two opposed feelings go together."""
    between = text[a.start + len(a.word) : b.start]
    if is_chinese(text):
        return any(word in text[: b.start] for word in listed("zh", "between"))
    told = phrases("anywhere").search(text) or phrases("changes").search(text)
    return bool(told or phrases("between").search(frame(between)))  # no "but" of "soft but high"


@lru_cache(maxsize=1 << 16)
def repetitions(caption: str) -> tuple[Finding, ...]:
    """Content words (in any form) and runs of three words said again; a level that two words claim.

    Two words of one level count where this project writes both: a "booming, thunderous voice" is style.

    >>> [str(found) for found in repetitions("Her voice is unsteady and unsteady, high-pitched and high.")]
    ['words: unsteady and unsteady', 'pitch: high-pitched and high']
    """
    text, found, first = mask_quotes(caption), list[Finding](), dict[str, str]()
    if is_chinese(text):
        joins = "|".join(map(re.escape, listed("zh", "joins")))
        doubles = re.finditer(rf"([{HAN}]{{2,8}})(?:{joins})?\1", text)
        return tuple(  # not 哈哈哈哈
            Finding("words", (m[1], m[1]), m.end() - len(m[1])) for m in doubles if len(set(m[1])) > 1
        )
    words = [t for t in tokenise(text) if t.text[0].isalpha()]
    runs, passed = set[str](), set[int]()  # three words in a row; places that need no second look
    for i, token in enumerate(words):
        last, former, word = ["", "", *(t.text for t in words[: i + 1])][-3:]
        run = f"{last} {former} {word}"
        doubled = word if former == word and word not in word_list("breach_words.yaml", "doubled") else ""
        again = next((first[root] for root in _roots(word) if root in first), run if run in runs else doubled)
        if last == word and former == "and" and word.endswith("er"):  # louder and louder
            passed.add(token.start)
        elif again:
            found.append(Finding("words", (again, run if again == run else word), token.start))
            passed.add(token.start)
        runs.add(run)
        first |= dict.fromkeys(_roots(word), word)
    said = dict[tuple[str, str, bool], Claim]()
    for claim in claims_of(caption):
        one, level = said.setdefault(claim.key, claim), claim.claimed
        written = (*level.voice, *level.quality, *level.adverb, *level.phrase)
        twice = one.word == claim.word or (one.word in written and claim.word in written)
        if twice and one is not claim and claim.start not in passed:
            found.append(Finding(claim.dimension, (one.word, claim.word), claim.start))
    return tuple(found)


@cache
def _may_return() -> frozenset[str]:
    """Words that any description may have twice, and those whose claims are compared instead."""
    words = load_data("voice_words.yaml")["en"]
    kinds = ("degree", "degree_adjectives", "negators", "persons", "voice_nouns", "ambiguous")
    graded: set[str] = {word for kind in kinds for phrase in words[kind] for word in phrase.split()}
    lists = word_list("rubric.yaml", "small_words"), claim_list("links"), claim_list("stops"), speech_verbs()
    return frozenset(graded.union(listed("again"), *lists))


def _roots(word: str) -> list[str]:
    """Roots of a word, or of the parts of "tear-filled", that make a repetition when they return."""
    parts = word.split("-") if word[0].isalpha() else []
    return [_ROOT.sub("", part) for part in parts if len(part) > 2 and not {part, word} & _may_return()]


@cache
def _masks() -> tuple[Phrases[str], Phrases[str]]:
    """What stands for each word of a frame, English and Chinese."""
    words, chinese = (load_data("voice_words.yaml")[language] for language in ("en", "zh"))
    persons = claim_list("nouns", "person")
    cues = {word for d in dimensions().values() for level in d.levels for word in level.words}
    table = dict.fromkeys((*words["degree"], *words["degree_adjectives"]), "")
    table |= dict.fromkeys((*voice_words(), *words["ambiguous"], *cues), "{quality}")
    table |= dict.fromkeys(english_forms(), "{emotion}") | dict.fromkeys(("he", "she", "they"), "{he}")
    table |= dict.fromkeys(persons, "{person}") | {f"{person}'s": "{person}'s" for person in persons}
    table |= dict.fromkeys(("his", "her", "their"), "{his}") | {"an": "a"}
    signs = dict.fromkeys(chinese["degree"], "") | dict.fromkeys(chinese["words"], "{quality}")
    return Phrases(table), Phrases(signs | dict.fromkeys(chinese_forms(), "{emotion}") | {"她": "他"}, True)


@lru_cache(maxsize=1 << 16)
def frame(caption: str) -> str:
    """The sentence without what it says: emotions, qualities of the voice, gender and degrees masked.

    >>> frame("The woman sounds deeply sad, and her voice is low, slow and soft.")
    '{he} sounds {emotion}, and {his} voice is {quality}'
    """
    text, (english, chinese) = mask_quotes(caption), _masks()
    han = is_chinese(text)
    table, tokens = (chinese, characters(text)) if han else (english, tokenise(text))
    parts, i = list[str](), 0
    while i < len(tokens):
        length, part = table.match(tokens, i) or (1, tokens[i].text)
        parts += [part] if part.strip() else []
        i += length
    found = re.sub(r" (?=[^\w{])", "", ("" if han else " ").join(parts))
    return reduce(lambda text, merge: merge[0].sub(merge[1], text), _MERGED, found).strip(" .!。！")
