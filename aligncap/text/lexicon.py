"""Word lists made searchable: English inflections, phrases by longest match, Chinese by longest match."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Generic, Protocol, TypeVar

from aligncap.utils.io import load_data

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


T_co = TypeVar("T_co", covariant=True)
_REACH = 7  # tokens between a negator and the first word it negates

_QUOTED = re.compile(
    "\"[^\"]*\"|\u201c[^\u201d]*\u201d|\u300c[^\u300d]*\u300d|\u300e[^\u300f]*\u300f|\u2018[^\u2019]*\u2019(?!\\w)|(?<!\\w)'[^']*'(?!\\w)"
)


class Matcher(Protocol[T_co]):
    """Whatever finds a listed word or phrase at a token position: (number of tokens, value) or None."""

    def match(self, tokens: Sequence[Token], i: int) -> tuple[int, T_co] | None: ...


@dataclass(frozen=True, slots=True)
class Hit(Generic[T]):
    """A listed word found in a text; `start` and `end` are character offsets of the word itself.

    `negated` is the word that negates it in clue form ("not", "不", "没有"), empty when nothing does.
    """

    value: T
    word: str
    start: int
    end: int
    negated: str
    degree: str
    token: int


def mask_quotes(text: str) -> str:
    """The text with quoted speech blanked out, offsets unchanged."""
    return _QUOTED.sub(lambda m: " " * len(m.group()), normalise(text))


@cache
def _markers() -> Phrases[str]:
    words = load_data("voice_words.yaml")["en"]
    markers: Phrases[str] = Phrases()
    for kind in ("degree", "negators", "not_negators", "breakers"):
        for word in words[kind]:
            markers.add(word, kind)
    return markers


@cache
def _words(key: str) -> frozenset[str]:
    return frozenset(load_data("voice_words.yaml")["en"][key])


def _list_goes_on(tokens: Sequence[Token], i: int, table: Matcher[Any]) -> bool:
    """Whether the comma at token i stands in a list joined by "or" or "nor": "no anger, fear or joy"."""
    i += 1
    while i < len(tokens):
        if tokens[i].text in ("or", "nor"):
            return True
        found = table.match(tokens, i)
        if found is None and tokens[i].text not in _words("fillers") and tokens[i].text != ",":
            return False
        i += found[0] if found else 1
    return False


def scan_english(text: str, table: Matcher[T]) -> list[Hit[T]]:
    """Listed words of an English text in order, each with its negation and degree."""
    tokens = tokenise(text)
    fillers, markers = _words("fillers"), _markers()
    hits: list[Hit[T]] = []
    negated, reach, after_hit = False, 0, False
    degree: list[str] = []
    i = 0
    while i < len(tokens):
        word = tokens[i].text
        marker, found = markers.match(tokens, i), table.match(tokens, i)
        if found and not (marker and marker[0] > found[0]):
            length, value = found
            start, end = tokens[i].start, tokens[i + length - 1].end
            hits.append(
                Hit(value, text[start:end].lower(), start, end, "not" if negated else "", " ".join(degree), i)
            )
            after_hit, degree = negated, []
            i += length
            continue
        if marker is None and word.endswith("n't"):
            marker = (1, "negators")
        length, kind = marker or (1, "")
        phrase = " ".join(token.text for token in tokens[i : i + length])
        if kind == "degree":
            if phrase.startswith("not "):
                negated, reach, after_hit = True, _REACH, False
                phrase = phrase[4:]
            degree.append(phrase)
        else:
            if kind == "negators":
                negated, reach, after_hit = True, _REACH, False
            elif kind == "breakers" or kind == "not_negators":
                negated = False
            elif word == "," and degree and (markers.match(tokens, i + 1) if i + 1 < len(tokens) else None):
                i += 1
                continue
            elif word == ",":
                negated = negated and _list_goes_on(tokens, i, table)
            elif word in ("and", "&") or (after_hit and word not in fillers):
                negated = negated and word in ("and", "&") and _directly_goes_on(tokens, i + 1, table)
            if word not in ("and",):
                degree = []
            reach -= length
            negated = negated and reach > 0
        i += length
    return hits


def _directly_goes_on(tokens: Sequence[Token], i: int, table: Matcher[Any]) -> bool:
    """Whether a listed word stands at token i, past articles and degrees."""
    while i < len(tokens):
        if table.match(tokens, i):
            return True
        marker = _markers().match(tokens, i)
        if marker and marker[1] == "degree":
            i += marker[0]
        elif tokens[i].text in ("a", "an", "the", "any"):
            i += 1
        else:
            return False
    return False


_CLAUSE_ZH = re.compile("[，,。；;！!？?：:]|但是|但|而是|却|反而|不过|然而|\\s")


@cache
def _chinese_markers() -> ChineseWords[tuple[str, str]]:
    words = load_data("voice_words.yaml")["zh"]
    table: dict[str, tuple[str, str]] = {word: ("degree", word) for word in words["degree"]}
    table |= {word: ("filler", word) for word in words["fillers"] if word not in table}
    table |= {word: ("negation", form) for word, form in words["negators"].items()}
    table |= {word: ("plain", "") for word in words["not_negators"]}
    # a dimension is taken whole, so that 语气愤怒 is not read as 语|气愤|怒
    table |= {word: ("noun", "") for word in words["dimensions"]}
    return ChineseWords(table)


def scan_chinese(text: str, table: ChineseWords[T]) -> list[Hit[T]]:
    """Listed words of a Chinese text in order, each with its negation and degree."""
    hits: list[Hit[T]] = []
    markers = _chinese_markers()
    negated, degree = "", ""
    i = gap = 0
    while i < len(text):
        found, marker = table.match(text, i), markers.match(text, i)
        grades = marker is not None and marker[1][0] == "degree" and _grades_next(text, i + marker[0], table)
        if found and not (marker and (marker[0] > found[0] or grades)):
            length, value = found
            hits.append(Hit(value, text[i : i + length], i, i + length, negated, degree, i))
            degree, gap = "", 0
            i += length
            continue
        clause = _CLAUSE_ZH.match(text, i)
        if clause:
            negated, degree = "", ""
            i = clause.end()
            continue
        if marker is None:
            gap += 1
            # unlisted characters may stand between a negator and its word, none between a degree and its
            negated = negated if gap <= 2 else ""
            degree = ""
            i += 1
            continue
        length, (kind, form) = marker
        if kind == "degree":
            degree = form if not degree else degree + form
            if text[i + length : i + length + 1] == "的" and _grades_next(text, i + length, table):
                degree += "的"
        elif kind == "negation":
            negated, degree, gap = form, "", 0
        elif kind == "plain":
            negated, degree = "", ""
        elif kind == "noun":
            degree = ""
        elif form not in ("的", "地"):
            degree = ""
        i += length
    return hits


def _grades_next(text: str, i: int, table: ChineseWords[Any]) -> bool:
    """Whether 的 and a listed word follow: 强烈 in 强烈的愤怒 is a degree, in 语气强烈 a quality."""
    return text[i : i + 1] == "的" and i + 1 < len(text) and table.match(text, i + 1) is not None
