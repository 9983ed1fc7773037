"""Word lists made searchable: English inflections, phrases by longest match, Chinese by longest match."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

_TOKEN = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*|[^\w\s]|\d+|_", re.UNICODE)
_CJK = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_VOWELS = "aeiou"


def is_chinese(text: str) -> bool:
    """Whether the text holds any CJK ideograph."""
    return _CJK.search(text) is not None


@dataclass(frozen=True, slots=True)
class Token:
    """A lower-case English word or one punctuation mark, with its character offsets in the text."""

    text: str
    start: int
    end: int


def normalise(text: str) -> str:
    """Typographic apostrophes and hyphens replaced one for one, so that offsets stay valid."""
    return text.replace("\u2019", "'").replace("\u2011", "-").replace("\u2010", "-")


def tokenise(text: str) -> list[Token]:
    """Words (hyphens and apostrophes inside them kept) and single punctuation marks, in lower case."""
    return [Token(m.group().lower(), m.start(), m.end()) for m in _TOKEN.finditer(normalise(text))]


def adjective_forms(word: str) -> set[str]:
    """The adjective with its adverb and, for short words, its comparative and superlative."""
    forms = {word}
    if " " in word:
        return forms
    if word.endswith("y"):
        forms.add(word[:-1] + "ily")
    elif word.endswith("ic"):
        forms.add(word + "ally")
    elif word.endswith("le") and len(word) > 4:
        forms.add(word[:-1] + "y")
    else:
        forms.add(word + "ly")
    if len(word) <= 7 and "-" not in word and not word.endswith(("ed", "ing", "ful", "ous", "ic")):
        if word.endswith("y"):
            stem = word[:-1] + "i"
        elif word.endswith("e"):
            stem = word[:-1]
        elif len(word) <= 4 and word[-1] not in _VOWELS + "wxy" and word[-2] in _VOWELS:
            stem = word + word[-1] if word[-3] not in _VOWELS else word
        else:
            stem = word
        forms |= {stem + "er", stem + "est"}
    return forms


def noun_forms(word: str) -> set[str]:
    """The noun and its plural."""
    if word.endswith("y") and word[-2] not in _VOWELS:
        return {word, word[:-1] + "ies"}
    return {word, word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")}


def verb_forms(word: str) -> set[str]:
    """The verb with -s, -ed and -ing."""
    if word.endswith("y") and word[-2] not in _VOWELS:
        return {word, word[:-1] + "ies", word[:-1] + "ied", word + "ing"}
    third = word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")
    if word.endswith("e"):
        return {word, third, word + "d", word[:-1] + "ing"}
    # one short closed syllable doubles its consonant: sob, sobbing
    double = (
        len(word) <= 4
        and len(word) > 2
        and word[-1] not in _VOWELS + "wxy"
        and word[-2] in _VOWELS
        and word[-3] not in _VOWELS
    )
    stem = word + word[-1] if double else word
    return {word, third, stem + "ed", stem + "ing"}


FORMS = {"adjective": adjective_forms, "noun": noun_forms, "verb": verb_forms, "other": lambda word: {word}}


def inflect(words: Mapping[str, Iterable[str]]) -> set[str]:
    """All surface forms of words listed under `adjective`, `noun`, `verb` and `other`."""
    return {form for kind, listed in words.items() for word in listed for form in FORMS[kind](word)}


@dataclass
class Phrases(Generic[T]):
    """English words and phrases, found by longest match at a token position."""

    _by_first: dict[str, list[tuple[tuple[str, ...], T]]] = field(default_factory=dict)

    def add(self, phrase: str, value: T) -> None:
        """Add one word or phrase; a later phrase of equal words replaces the earlier one."""
        words = tuple(token.text for token in tokenise(phrase))
        rows = [row for row in self._by_first.get(words[0], []) if row[0] != words]
        rows.append((words, value))
        self._by_first[words[0]] = sorted(rows, key=lambda row: -len(row[0]))

    def match(self, tokens: Sequence[Token], i: int) -> tuple[int, T] | None:
        """(number of tokens, value) of the longest phrase that starts at token i."""
        for words, value in self._by_first.get(tokens[i].text, ()):
            if len(words) == 1:
                return 1, value
            if len(words) <= len(tokens) - i and all(tokens[i + k].text == w for k, w in enumerate(words)):
                return len(words), value
        return None


class ChineseWords(Generic[T]):
    """Chinese words found by longest match from left to right, without a segmenter."""

    def __init__(self, words: Mapping[str, T]) -> None:
        self._words = dict(words)
        self._longest = max(map(len, self._words), default=0)
        self._firsts = {word[0] for word in self._words}

    def match(self, text: str, i: int) -> tuple[int, T] | None:
        """(number of characters, value) of the longest word that starts at character i."""
        if text[i] not in self._firsts:
            return None
        for length in range(min(self._longest, len(text) - i), 0, -1):
            word = text[i : i + length]
            if word in self._words:
                return length, self._words[word]
        return None

    def find(self, text: str) -> Iterator[tuple[int, str, T]]:
        """(start, word, value) of the words of a text, none overlapping."""
        i = 0
        while i < len(text):
            found = self.match(text, i)
            if found is None:
                i += 1
                continue
            yield i, text[i : i + found[0]], found[1]
            i += found[0]
