"""Clues by word lists and windows alone: Chinese captions, and English ones where no parser is installed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from aligncap.text.emotions import chinese_forms
from aligncap.text.lexicon import (
    FORMS,
    ChineseWords,
    Hit,
    Matcher,
    Phrases,
    Token,
    mask_quotes,
    scan_chinese,
    scan_english,
    tokenise,
)
from aligncap.utils.io import load_data


def word_set(key: str) -> frozenset[str]:
    """One word list of the English half of data/voice_words.yaml."""
    return _word_sets()[key]


@cache
def _word_sets() -> dict[str, frozenset[str]]:
    words = load_data("voice_words.yaml")["en"]
    return {key: frozenset(listed) for key, listed in words.items() if isinstance(listed, list)}


@cache
def english_table() -> Phrases[str]:
    """Feeling and voice words with what they are: "feeling noun", "adjective", "adverb", "noun", "verb"…"""
    table: Phrases[str] = Phrases()
    for word in word_set("ambiguous"):
        if not word.endswith(("ly", "er", "s", "ing", "ed")):
            table.add(_ness(word), "noun")
        table.add(word, "adverb" if word.endswith("ly") else "adjective")
    sources = [(load_data("voice_words.yaml")["en"]["words"], "")]
    sources += [(group["en"], "feeling ") for group in load_data("emotions.yaml").values()]
    for words, origin in sources:
        # listed forms after formed ones: "laughing" is an adjective before it is a form of "laugh"
        for kind in ("verb", "noun", "adjective", "other"):
            for word in words.get(kind, ()):
                if kind == "adjective":
                    table.add(_ness(word), f"{origin}noun")
                for form in FORMS[kind](word) - {word}:
                    table.add(form, "adverb" if form.endswith("ly") and kind == "adjective" else kind)
        for kind in ("verb", "adjective", "other", "noun"):
            for word in words.get(kind, ()):
                for form in FORMS[kind](word) if kind == "noun" else [word]:
                    table.add(form, origin + kind if kind == "noun" else kind)
    return table


def _ness(adjective: str) -> str:
    return (adjective[:-1] + "i" if adjective.endswith("y") else adjective) + "ness"


@cache
def spoken_forms() -> frozenset[str]:
    """Inflected verbs of speaking."""
    return frozenset(form for verb in word_set("speech_verbs") for form in FORMS["verb"](verb)) | {
        "spoke",
        "spoken",
        "said",
    }


def take_neighbours(text: str, hits: Sequence[Hit[str]], taken: set[int]) -> None:
    """Add to `taken`, in place, the hits in a list with taken ones: "toneless, quiet, resigned"."""
    for ordered in (list(hits), list(hits)[::-1]):
        for one, other in zip(ordered, ordered[1:], strict=False):
            first, second = sorted((one, other), key=lambda hit: hit.start)
            between = text[first.end : second.start].lower().replace(second.degree, " ")
            closed = re.match(r"\s*(?:[,.;:!?]|and\b|but\b|or\b|$)", text[second.end :]) is not None
            if (
                one.start in taken
                and other.value != "verb"
                and closed
                and re.fullmatch(r"[\s,]*(and|but|or|yet)?\s*", between)
            ):
                taken.add(other.start)


def clue(hit: Hit[str], word: str = "") -> str:
    """A clue as text: negation, degree, word."""
    parts = (hit.negated, hit.degree, word or hit.word)
    return " ".join(part for part in parts if part)


def unique(clues: Sequence[str]) -> list[str]:
    """Clues without repeats, in order of first appearance."""
    return list(dict.fromkeys(clues))


def without_dimensions(hits: Sequence[Hit[str]], dimension: dict[int, str]) -> list[Hit[str]]:
    """Hits less the nouns that stand with their adjective already: "high energy" is not also "energy"."""
    said = set(dimension.values())
    return [hit for hit in hits if hit.word not in said]


def _grades(hits: Sequence[Hit[str]], k: int, text: str) -> bool:
    """Whether hit k stands directly before an adjective: the hedge of "clearly annoyed"."""
    return (
        k + 1 < len(hits)
        and text[hits[k].end : hits[k + 1].start] == " "
        and hits[k + 1].value == "adjective"
    )


def join_hits(text: str, hits: Sequence[Hit[str]], dimension: dict[int, str]) -> list[str]:
    """Clue texts of hits: an adverb joins the adjective it stands before, a strength its feeling noun.

    Args:
        text: the caption.
        hits: accepted words in order.
        dimension: character offset of a hit -> noun that it needs to be understood ("high" -> "pitch").
    """
    clues: list[str] = []
    joined: str | None = None
    for k, hit in enumerate(hits):
        if hit.word in word_set("not_manner") and _grades(hits, k, text):
            continue
        following = hits[k + 1] if k + 1 < len(hits) else None
        adjacent = following is not None and text[hit.end : following.start] == " "
        noun_next = adjacent and following is not None and following.value == "feeling noun"
        fused = (
            hit.value == "adverb" and adjacent and following is not None and following.value == "adjective"
        ) or (hit.value == "adjective" and noun_next)
        word = (f"{joined} " if joined else "") + hit.word
        if hit.value == "feeling noun" and not joined and not hit.degree:
            before = text[: hit.start].lower().rstrip().rsplit(" ", 1)[-1]
            if before in word_set("degree_adjectives"):
                word = f"{before} {word}"
        if fused:
            joined = f"{hit.degree} {word}".strip()
            continue
        joined = None
        if hit.start in dimension:
            word = f"{word} {dimension[hit.start]}"
        clues.append(clue(hit, word))
    return unique(clues)


_QUALITY_LINK = frozenset(
    "although though while as is are was were sounds sounded seems seemed becomes became "
    "gets got grows grew remains remained stays , : and a the very".split()
)
_SAYING = frozenset(
    "says said say saying tells told telling states stated asks asked "
    "asking claims announces mentions explains".split()
)
CLAUSE_OPENERS = frozenset(
    "to that how why what whether of".split()
)  # "hard to hear", "clear that", "full of"
_CONTENT_OPENS = frozenset("that whether if where why how when who what".split())
_CONTENT_ENDS = frozenset([",", ".", ";", ":", "!", "?", "but", "in", "with", "while"])


def _content(tokens: Sequence[Token]) -> list[bool]:
    """For every token whether it belongs to what is talked about: after "about", after "says that"."""
    inside = [False] * len(tokens)
    on = said = False
    for i, token in enumerate(tokens):
        word = token.text
        if on and word in (_CONTENT_ENDS if not said else _CONTENT_ENDS - {"in", "with"}):
            on = False
        elif word in ("about", "regarding", "concerning"):
            on, said = True, False
        elif word in _CONTENT_OPENS and i and any(t.text in _SAYING for t in tokens[max(0, i - 3) : i]):
            on = said = True
        inside[i] = on
    return inside


def voice_noun_near(tokens: Sequence[Token], i: int, table: Matcher[str]) -> str | None:
    """The voice noun that the adjective at token i belongs to: after it, or before it with a verb between."""
    nouns = word_set("voice_nouns")
    for k in range(i + 1, min(i + 8, len(tokens))):
        if tokens[k].text in nouns:
            return tokens[k].text
        word = tokens[k].text
        passed = (
            word in ("and", ",", "but", "yet") or word in word_set("degree") or word in word_set("not_voice")
        )
        if not (table.match(tokens, k) or passed):
            break
    for k in range(i - 1, max(i - 7, -1), -1):
        if tokens[k].text in nouns:
            return tokens[k].text
        if not (
            tokens[k].text in _QUALITY_LINK or tokens[k].text in word_set("degree") or table.match(tokens, k)
        ):
            break
    return None


def english_clues(caption: str) -> list[str]:
    """Clues of an English caption without a parse."""
    text = mask_quotes(caption)
    tokens, table = tokenise(text), english_table()
    content = _content(tokens)
    hits = [hit for hit in scan_english(text, table) if not content[hit.token]]
    taken: set[int] = set()
    dimension: dict[int, str] = {}
    for hit in hits:
        if hit.word not in word_set("ambiguous"):
            taken.add(hit.start)
            continue
        noun = voice_noun_near(tokens, hit.token, table)
        before = tokens[hit.token - 1].text if hit.token else ""
        spoken = (before in spoken_forms() or hit.degree) and hit.word not in word_set("dimension_adjectives")
        opens_clause = hit.value == "adjective" and any(
            t.text in CLAUSE_OPENERS for t in tokens[hit.token + 1 : hit.token + 2]
        )
        if not opens_clause and (noun is not None or spoken or len(tokens) <= 6):
            taken.add(hit.start)
        if noun in word_set("dimensions") and hit.word in word_set("dimension_adjectives"):
            dimension[hit.start] = noun or ""
    take_neighbours(text, hits, taken)
    kept = [hit for hit in hits if hit.start in taken]
    return join_hits(text, without_dimensions(kept, dimension), dimension)


_WORD_END = frozenset("，,。；;！!？?：:、 　了的地而且又并但得和与、）)")
_ZH_CONTENT_END = re.compile("[，,。；;！!？?]")


@cache
def chinese_table() -> ChineseWords[str]:
    """Feeling words, voice words, and single characters that need company."""
    words = load_data("voice_words.yaml")["zh"]
    table = {word: "single" for word in words["single"]}
    table |= {word: "voice" for word in words["words"]}
    table |= {word: "feeling" for word in chinese_forms()}
    return ChineseWords(table)


@cache
def _zh(key: str) -> tuple[str, ...]:
    return tuple(sorted(load_data("voice_words.yaml")["zh"][key], key=len, reverse=True))


@cache
def _content_verb() -> re.Pattern[str]:
    plain = "|".join(map(re.escape, _zh("content_verbs")))
    spared = "|".join(map(re.escape, _zh("not_content")))
    return re.compile(f"(?:{spared})|({plain})")


def _content_spans(text: str) -> list[tuple[int, int]]:
    spans = []
    for match in _content_verb().finditer(text):
        if match.group(1):
            end = _ZH_CONTENT_END.search(text, match.end())
            spans.append((match.end(), end.start() if end else len(text)))
    return spans


def chinese_clues(caption: str) -> list[str]:
    """Clues of a Chinese caption: longest listed words with negation and degree; 语速较快 keeps its noun."""
    text = mask_quotes(caption)
    spans = _content_spans(text)
    clues: list[str] = []
    for hit in scan_chinese(text, chinese_table()):
        if any(start <= hit.start < end for start, end in spans):
            continue
        body = hit.negated + hit.degree + hit.word
        if hit.value == "single":
            lead = len(body)
            before = text[max(0, hit.end - lead - 4) : hit.end - lead]
            noun = next((noun for noun in _zh("dimensions") if before.endswith(noun)), "")
            ends = hit.end == len(text) or text[hit.end] in _WORD_END
            if not ends or not (noun or hit.degree or hit.negated or before.endswith("得")):
                continue
            if hit.word in _zh("quantities") and not noun:
                continue
            if clues and clues[-1] == noun:
                clues.pop()
            body = noun + body
        clues.append(body)
    return unique(clues)
