"""Does a caption do what was asked, to describe how a voice sounds? Breaches (docs/hallucination.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Literal

from aligncap.text.claims import claims_of, gender_words, listed, manner_mentions, speech_verbs
from aligncap.text.emotions import feelings
from aligncap.text.lexicon import inflect, is_chinese, mask_quotes, tokenise
from aligncap.text.rubric import disfluencies, length, tells_the_unheard
from aligncap.utils.io import load_data

FILE = "breach_words.yaml"
BREACHES = (
    "empty",
    "question",
    "refusal",
    "meta",
    "list",
    "answer",
    "first_person",
    "language",
    "too_long",
    "repetition",
    "fragment",
    "scene",
    "not_the_voice",
)
Language = Literal["en", "zh"]

_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)
_FIELD = re.compile(r"(?:^|[\n,;.{|])\s*\"?[^\W\d_][\w ]{0,20}\"?\s*[:：]")
_UNIT = 8  # words of the longest sequence looked for three times in a row
_LEAST = 3  # words of a caption
_ENOUGH = 6  # words from which half of them must be different


@cache
def _words(key: str) -> frozenset[str]:
    return frozenset(load_data(FILE)[key])


@cache
def _phrases(key: str) -> re.Pattern[str]:
    """Phrases anywhere in a text, whole words where they begin or end with a letter."""
    parts = [
        (r"(?<![\w-])" if p[0].isascii() and p[0].isalpha() else "")
        + re.escape(p)
        + (r"(?![\w-])" if p[-1].isascii() and p[-1].isalpha() else "")
        for p in sorted(_words(key), key=len, reverse=True)
    ]
    return re.compile("|".join(parts), re.IGNORECASE)


@cache
def _voice_words(language: Language) -> frozenset[str]:
    words = load_data("voice_words.yaml")[language]["words"]
    return frozenset(words) if language == "zh" else frozenset(inflect(words))


def language_of(references: Iterable[str]) -> Language:
    """The language that captions are asked for: Chinese where most references are, else English."""
    chinese = [is_chinese(text) for text in references]
    return "zh" if chinese and 2 * sum(chinese) > len(chinese) else "en"


@lru_cache(maxsize=1 << 16)
def breaches(caption: str, language: Language = "en") -> tuple[str, ...]:
    """Names out of BREACHES of all that makes a caption no description of a voice, in that order.

    Quoted speech is left out, as in every reader of captions. An empty caption is empty and nothing else.

    >>> breaches("Sure! What does he sound like?")
    ('question', 'meta', 'not_the_voice')
    """
    text = mask_quotes(caption)
    words = [t.text for t in tokenise(text) if t.text[0].isalnum()]
    if not words:
        # all of it quoted: words, yet none about the voice
        return ("not_the_voice",) if any(c.isalnum() for c in caption) else ("empty",)
    chinese = is_chinese(text)
    found = {
        "question": text.rstrip(" \"'”’*").endswith(("?", "？")),
        "refusal": _phrases("refusal").search(text) is not None,
        "meta": _phrases("meta").search(text) is not None or _opens(words, text, "openings"),
        "list": len(_ITEM.findall(caption)) > 1 or len(_FIELD.findall(caption)) > 1,
        "answer": _opens(words, text, "answers") or _addresses(words, text),
        "first_person": _speaks_of_itself(text),
        "language": (language == "zh") != chinese if chinese or language == "zh" else _foreign(text, words),
        "too_long": length(caption) > load_data(FILE)["longest"],
        "repetition": _repeats(list(re.sub(r"\W", "", text)) if chinese else words, chinese),
        "fragment": not chinese and _fragment(text, words),
        "scene": tells_the_unheard(text) or _phrases("scene").search(text) is not None,
        "not_the_voice": not _tells_of_the_voice(text, chinese),
    }
    return tuple(name for name in BREACHES if found.get(name))


def _opens(words: list[str], text: str, key: str) -> bool:
    """Whether a text begins with one of these words, set apart from what follows."""
    if words[0] not in _words(key):
        return False
    rest = text.lower().split(words[0], 1)[1].lstrip()
    return rest[:1] in (",", "!", ".", ":", "") or (len(words) > 1 and words[1] in ("i", "you"))


def _addresses(words: list[str], text: str) -> bool:
    """Whether somebody is spoken to."""
    said = len({"you", "your", "you're", "you'll", "you've", "yours", "yourself"} & set(words))
    return bool(said) and _phrases("hearers").search(text) is None


def _speaks_of_itself(text: str) -> bool:
    """Whether a text says "I" or "we", other than of those who hear ("we hear a sad man")."""
    rest = _phrases("listeners").sub("", text)
    return any(token.text in _words("first_person") for token in tokenise(rest))


def _foreign(text: str, words: list[str]) -> bool:
    """Whether an expected English text is in another script or, by common words, another language."""
    letters = [c for c in text if c.isalpha()]
    if sum(ord(c) > 0x24F for c in letters) > len(letters) / 2:
        return True
    english = load_data("rubric.yaml")["small_words"]
    own = sum(word in english for word in words)
    return any(
        sum(word in listed_words for word in words) > max(1, own)
        for listed_words in map(frozenset, load_data(FILE)["languages"].values())
    )


def _repeats(words: list[str], chinese: bool) -> bool:
    """Whether a sequence of words stands three times in a row, or hardly any word is new."""
    if not chinese and len(words) >= _ENOUGH and 2 * len(set(words)) < len(words):
        return True
    for unit in range(2 if chinese else 1, _UNIT + 1):
        for i in range(len(words) - 3 * unit + 1):
            part = words[i : i + unit]
            if part == words[i + unit : i + 2 * unit] == words[i + 2 * unit : i + 3 * unit] and not (
                unit == 1 and part[0] in _words("doubled")
            ):
                return True
    return False


def _fragment(text: str, words: list[str]) -> bool:
    """Whether a text is too short, breaks off, or is bare words without anything that they are said of."""
    # "he shouts at her." is whole
    unfinished = any(name == "unfinished" for name, _ in disfluencies(text)) and not text.endswith("her.")
    if len(words) < _LEAST or unfinished:
        return True
    tokens = tokenise(text)
    known = _words("verbs") | speech_verbs() | listed("persons")
    known |= frozenset().union(
        *(listed("nouns", kind) for kind in ("voice", "pitch", "rate", "volume", "person"))
    )
    return not (known & set(words)) and not any(gender_words().match(tokens, i) for i in range(len(tokens)))


def _tells_of_the_voice(text: str, chinese: bool) -> bool:
    """Whether a text has an emotion word, a word for a voice or a claim about one; a gender is not enough."""
    if feelings(text):
        return True
    if chinese:
        return any(word in text for word in _voice_words("zh"))
    words = {t.text for t in tokenise(text)}
    return bool(words & _voice_words("en") or manner_mentions(text) or claims_of(text))
