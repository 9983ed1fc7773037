"""Words of captions: tokens, lengths, inflections, word lists, the scan for listed words with negation scope.

English is read by words, Chinese by characters. The small words that negate or grade others stand in
`data/voice_words.yaml`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Generic, NamedTuple, TypeVar

from aligncap.utils.io import load_data

T = TypeVar("T")

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Chinese characters, as the inside of a character class
_HAN = re.compile(f"[{HAN}]")
_TOKEN = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*|[^\w\s]|\d+|_")
_WORD = re.compile(rf"[{HAN}]|[^\W_{HAN}]+(?:['-][^\W_{HAN}]+)*")
_QUOTED = re.compile(
    "\"[^\"]*\"|\u201c[^\u201d]*\u201d|\u300c[^\u300d]*\u300d|\u300e[^\u300f]*\u300f|\u2018[^\u2019]*\u2019(?!\\w)|(?<!\\w)'[^']*'(?!\\w)"
)
_VOWELS = "aeiou"
_REACH = 7  # tokens between a negator and the first word it negates


def is_chinese(text: str) -> bool:
    """Whether the text holds any Chinese character."""
    return _HAN.search(text) is not None


def caption_words(text: str) -> list[str]:
    """Words of a text in lower case, without punctuation; every Chinese character is one.

    >>> caption_words("A high-pitched voice, 声音低沉。")
    ['a', 'high-pitched', 'voice', '声', '音', '低', '沉']
    """
    return _WORD.findall(normalise(text).lower())


def caption_length(text: str) -> int:
    """Length of a caption: its English words, its Chinese characters (there are no spaces to split at).

    >>> caption_length("He sounds sad."), caption_length("他听起来很伤心。")
    (3, 7)
    """
    return len(caption_words(text))


class Token(NamedTuple):
    """A lower-case English word, a punctuation mark or a Chinese character, with its offsets in the text."""

    text: str
    start: int
    end: int


def normalise(text: str) -> str:
    """Typographic apostrophes and hyphens replaced one for one, so that offsets stay valid."""
    return text.replace("\u2019", "'").replace("\u2011", "-").replace("\u2010", "-")


@lru_cache(maxsize=1 << 8)  # the readers of a caption all ask for its tokens
def tokenise(text: str) -> tuple[Token, ...]:
    """Words (hyphens and apostrophes inside them kept) and single punctuation marks, in lower case."""
    return tuple(Token(m.group().lower(), *m.span()) for m in _TOKEN.finditer(normalise(text)))


def characters(text: str) -> tuple[Token, ...]:
    """Every character a token: Chinese is read without a segmenter."""
    return tuple(Token(character, i, i + 1) for i, character in enumerate(text))


def mask_quotes(text: str) -> str:
    """The text with quoted speech blanked out, offsets unchanged."""
    return _QUOTED.sub(lambda m: " " * len(m.group()), normalise(text))


def _doubled(word: str) -> str:
    """The stem before -er, -ed and -ing: one short closed syllable doubles its consonant (sad, sadder)."""
    closed = 2 < len(word) <= 4 and word[-1] not in _VOWELS + "wxy" and word[-2] in _VOWELS
    return word + word[-1] if closed and word[-3] not in _VOWELS else word


def _with_s(word: str) -> str:
    if word.endswith("y") and word[-2] not in _VOWELS:
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


def adjective_forms(word: str) -> set[str]:
    """The adjective with its adverb and, for short words, its comparative and superlative."""
    if " " in word:
        return {word}
    if word.endswith("y"):
        adverb, stem = word[:-1] + "ily", word[:-1] + "i"
    else:
        adverb = word + ("ally" if word.endswith("ic") else "ly")
        if word.endswith("le") and len(word) > 4:
            adverb = word[:-1] + "y"
        stem = word[:-1] if word.endswith("e") else _doubled(word)
    if len(word) > 7 or "-" in word or word.endswith(("ed", "ing", "ful", "ous", "ic")):
        return {word, adverb}
    return {word, adverb, stem + "er", stem + "est"}


def noun_forms(word: str) -> set[str]:
    """The noun and its plural."""
    return {word, _with_s(word)}


def verb_forms(word: str) -> set[str]:
    """The verb with -s, -ed and -ing."""
    third = _with_s(word)
    if word.endswith("e"):
        return {word, third, word + "d", word[:-1] + "ing"}
    past = word[:-1] + "ied" if third.endswith("ies") else _doubled(word) + "ed"
    return {word, third, past, _doubled(word) + "ing"}


FORMS = {"adjective": adjective_forms, "noun": noun_forms, "verb": verb_forms, "other": lambda word: {word}}


def inflect(words: Mapping[str, Iterable[str]]) -> set[str]:
    """All surface forms of words listed under `adjective`, `noun`, `verb` and `other`."""
    return {form for kind, listed in words.items() for word in listed for form in FORMS[kind](word)}


@cache
def word_list(file: str, *keys: str) -> frozenset[str]:
    """The words of one list of a file of `data/`, found by its keys."""
    found = load_data(file)
    for key in keys:
        found = found[key]
    return frozenset(found)


@cache
def phrase_pattern(file: str, *keys: str) -> re.Pattern[str]:
    """Phrases of a word list anywhere in a text, whole words where they begin or end with a letter."""

    def whole(phrase: str) -> str:
        before, after = r"(?<![\w-])", r"(?![\w-])"
        first, last = (c.isascii() and c.isalpha() for c in (phrase[0], phrase[-1]))
        return before * first + re.escape(phrase) + after * last

    phrases = sorted(word_list(file, *keys), key=len, reverse=True)
    return re.compile("|".join(map(whole, phrases)), re.IGNORECASE)


class Phrases(Generic[T]):
    """Words and phrases with their values, found by longest match at a token (`chinese`: a character)."""

    def __init__(self, phrases: Mapping[str, T], chinese: bool = False) -> None:
        split = characters if chinese else tokenise
        rows = {tuple(token.text for token in split(phrase)): value for phrase, value in phrases.items()}
        self._by_first: dict[str, list[tuple[tuple[str, ...], T]]] = {}
        for words in sorted(rows, key=len, reverse=True):
            self._by_first.setdefault(words[0], []).append((words, rows[words]))

    def match(self, tokens: Sequence[Token], i: int) -> tuple[int, T] | None:
        """(number of tokens, value) of the longest phrase that starts at token i."""
        for words, value in self._by_first.get(tokens[i].text, ()):
            n = len(words)
            if n == 1 or (n <= len(tokens) - i and all(tokens[i + k].text == words[k] for k in range(1, n))):
                return n, value
        return None


class Hit(NamedTuple, Generic[T]):
    """A listed word found in a text; `start` and `end` are character offsets of the word itself.

    `negated` is the word that negates it in clue form ("not", "不", "没有"), "" when nothing does; `degree`
    are the words that grade it; `token` is the number of its first token.
    """

    value: T
    word: str
    start: int
    end: int
    negated: str
    degree: str
    token: int


@cache
def voice_words() -> frozenset[str]:
    """Surface forms of the English words that describe how a voice sounds, emotion words left out."""
    return frozenset(inflect(load_data("voice_words.yaml")["en"]["words"]))


@cache
def weak_degrees() -> frozenset[str]:
    """Degrees that weaken what they grade ("slightly", "a hint of", "有点"), of both languages."""
    return word_list("voice_words.yaml", "en", "weak") | word_list("voice_words.yaml", "zh", "weak")


@cache
def _markers() -> Phrases[str]:
    words, kinds = load_data("voice_words.yaml")["en"], ("degree", "negators", "not_negators", "breakers")
    return Phrases({word: kind for kind in kinds for word in words[kind]})


def _list_goes_on(tokens: Sequence[Token], i: int, table: Phrases[T]) -> bool:
    """Whether the comma before token i stands in a list joined by "or" or "nor": "no anger, fear or joy"."""
    passed = word_list("voice_words.yaml", "en", "fillers") - {"or", "nor"} | {","}
    while i < len(tokens) and ((found := table.match(tokens, i)) or tokens[i].text in passed):
        i += found[0] if found else 1
    return i < len(tokens) and tokens[i].text in ("or", "nor")


def _directly_goes_on(tokens: Sequence[Token], i: int, table: Phrases[T]) -> bool:
    """Whether a listed word stands at token i, past articles and degrees."""
    while i < len(tokens) and not table.match(tokens, i):
        length, kind = _markers().match(tokens, i) or (1, "")
        if kind != "degree" and tokens[i].text not in ("a", "an", "the", "any"):
            return False
        i += length
    return i < len(tokens)


def scan_english(text: str, table: Phrases[T]) -> list[Hit[T]]:
    """Listed words of an English text in order, each with its negation and degree.

    A negator reaches over fillers and listed words, at most seven tokens, to the end of its clause or list.
    """
    tokens = tokenise(text)
    fillers, markers = word_list("voice_words.yaml", "en", "fillers"), _markers()
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
            negator = "not" if negated else ""
            hits.append(Hit(value, text[start:end].lower(), start, end, negator, " ".join(degree), i))
            after_hit, degree = negated, []
            i += length
            continue
        length, kind = marker or (1, "negators" if word.endswith("n't") else "")
        if kind == "degree":
            phrase = " ".join(token.text for token in tokens[i : i + length])
            if phrase.startswith("not "):
                negated, reach, after_hit = True, _REACH, False
                phrase = phrase[4:]
            degree.append(phrase)
        elif word == "," and not kind and degree and i + 1 < len(tokens) and markers.match(tokens, i + 1):
            pass  # "very, very sad": the degree is still open
        else:
            if kind == "negators":
                negated, reach, after_hit = True, _REACH, False
            elif kind in ("breakers", "not_negators"):
                negated = False
            elif word == ",":
                negated = negated and _list_goes_on(tokens, i + 1, table)
            elif word in ("and", "&") or (after_hit and word not in fillers):
                negated = negated and word in ("and", "&") and _directly_goes_on(tokens, i + 1, table)
            if word != "and":
                degree = []
            reach -= length
            negated = negated and reach > 0
        i += length
    return hits


_CLAUSE_ZH = re.compile("[，,。；;！!？?：:]|但是|但|而是|却|反而|不过|然而|\\s")


@cache
def _chinese_markers() -> Phrases[tuple[str, str]]:
    words = load_data("voice_words.yaml")["zh"]
    table = {word: (kind, word) for kind in ("fillers", "degree") for word in words[kind]}
    table |= {word: ("negators", form) for word, form in words["negators"].items()}
    # a dimension is taken whole, so that 语气愤怒 is not read as 语|气愤|怒
    table |= {word: (kind, "") for kind in ("not_negators", "dimensions") for word in words[kind]}
    return Phrases(table, chinese=True)


def scan_chinese(text: str, table: Phrases[T]) -> list[Hit[T]]:
    """Listed words of a Chinese text in order, each with its negation and degree."""
    tokens, markers = characters(text), _chinese_markers()

    def grades_next(i: int) -> bool:
        """Whether 的 and a listed word follow: 强烈 in 强烈的愤怒 is a degree, in 语气强烈 a quality."""
        return i + 1 < len(tokens) and tokens[i].text == "的" and table.match(tokens, i + 1) is not None

    hits: list[Hit[T]] = []
    negated, degree = "", ""
    i = gap = 0
    while i < len(tokens):
        found = table.match(tokens, i)
        length, (kind, form) = markers.match(tokens, i) or (0, ("", ""))
        grades = kind == "degree" and grades_next(i + length)
        if found and length <= found[0] and not grades:
            end = i + found[0]
            hits.append(Hit(found[1], text[i:end], i, end, negated, degree, i))
            degree, gap = "", 0
            i = end
        elif clause := _CLAUSE_ZH.match(text, i):
            negated, degree = "", ""
            i = clause.end()
        elif not kind:
            gap += 1
            # unlisted characters may stand between a negator and its word, none between a degree and its
            negated = negated if gap <= 2 else ""
            degree = ""
            i += 1
        else:
            if kind == "degree":
                degree += form + "的" * grades
            elif kind == "negators":
                negated, degree, gap = form, "", 0
            elif kind == "not_negators":
                negated, degree = "", ""
            elif form not in ("的", "地"):
                degree = ""
            i += length
    return hits


def scan(text: str, english: Phrases[T], chinese: Phrases[T]) -> list[Hit[T]]:
    """Listed words of a text by the scanner of its language."""
    return scan_chinese(text, chinese) if is_chinese(text) else scan_english(text, english)
