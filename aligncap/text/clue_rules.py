"""Emotion clues by word lists and windows alone: Chinese captions, and English ones without a parser."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cache, partial

from aligncap.text.emotions import chinese_forms
from aligncap.text.lexicon import (
    FORMS,
    Hit,
    Phrases,
    Token,
    inflect,
    mask_quotes,
    scan_chinese,
    scan_english,
    tokenise,
    word_list,
)
from aligncap.utils.io import load_data

_WORD_END_ZH = frozenset("，,。；;！!？?：:、 　了的地而且又并但得和与、）)")

word_set = partial(word_list, "voice_words.yaml", "en")
_zh = partial(word_list, "voice_words.yaml", "zh")


@cache
def english_table() -> Phrases[str]:
    """Feeling and voice words with what they are: "feeling noun", "adjective", "adverb", "noun", "verb"…"""
    table: dict[str, str] = {}
    for word in word_set("ambiguous"):
        if not word.endswith(("ly", "er", "s", "ing", "ed")):
            table[_ness(word)] = "noun"
        table[word] = "adverb" if word.endswith("ly") else "adjective"
    sources = [("", load_data("voice_words.yaml")["en"]["words"])]
    sources += [("feeling ", group["en"]) for group in load_data("emotions.yaml").values()]
    for origin, words in sources:
        nouns = f"{origin}noun"
        # listed forms after formed ones: "laughing" is an adjective before it is a form of "laugh"
        for kind in ("verb", "noun", "adjective", "other"):
            for word in words.get(kind, ()):
                if kind == "adjective":
                    table[_ness(word)] = nouns
                for form in FORMS[kind](word) - {word}:
                    table[form] = "adverb" if form.endswith("ly") and kind == "adjective" else kind
        for kind in ("verb", "adjective", "other"):
            table |= dict.fromkeys(words.get(kind, ()), kind)
        table |= dict.fromkeys(inflect({"noun": words.get("noun", ())}), nouns)
    return Phrases(table)


def _ness(adjective: str) -> str:
    return (adjective[:-1] + "i" if adjective.endswith("y") else adjective) + "ness"


@cache
def _spoken_forms() -> frozenset[str]:
    return frozenset(inflect({"verb": word_set("speech_verbs")}) | {"spoke", "spoken", "said"})


def with_neighbours(text: str, hits: Sequence[Hit[str]], starts: Collection[int]) -> set[int]:
    """`starts` of hits, and of the hits in a list with them: "toneless, quiet, resigned"."""
    taken = set(starts)
    for ordered in (hits, hits[::-1]):
        for one, other in zip(ordered, ordered[1:], strict=False):
            first, second = sorted((one, other), key=lambda hit: hit.start)
            between = text[first.end : second.start].lower().replace(second.degree, " ")
            if (
                one.start in taken
                and other.value != "verb"
                and re.match(r"\s*(?:[,.;:!?]|and\b|but\b|or\b|$)", text[second.end :])
                and re.fullmatch(r"[\s,]*(and|but|or|yet)?\s*", between)
            ):
                taken.add(other.start)
    return taken


def join_hits(text: str, hits: Sequence[Hit[str]], dimension: dict[int, str]) -> list[str]:
    """Clue texts of hits: an adverb joins the adjective it stands before, a strength its feeling noun.

    Args:
        text: the caption.
        hits: accepted words in order.
        dimension: character offset of a hit -> noun that it needs to be understood ("high" -> "pitch"), which
            is then no clue of its own.
    """
    hits = [hit for hit in hits if hit.word not in dimension.values()]
    clues: list[str] = []
    joined = ""
    for hit, following in zip(hits, [*hits[1:], None], strict=False):
        adjacent = following is not None and text[hit.end : following.start] == " "
        kind = following.value if following and adjacent else ""
        if hit.word in word_set("not_manner") and kind == "adjective":
            continue  # the hedge of "clearly annoyed"
        word = f"{joined} {hit.word}".strip()
        if hit.value == "feeling noun" and not joined and not hit.degree:
            before = text[: hit.start].lower().rstrip().rsplit(" ", 1)[-1]
            if before in word_set("degree_adjectives"):
                word = f"{before} {word}"
        if (hit.value, kind) in (("adverb", "adjective"), ("adjective", "feeling noun")):
            joined = f"{hit.degree} {word}".strip()
            continue
        joined = ""
        parts = (hit.negated, hit.degree, word, dimension.get(hit.start, ""))
        clues.append(" ".join(part for part in parts if part))
    return list(dict.fromkeys(clues))


def _in_content(tokens: Sequence[Token]) -> list[bool]:
    """For every token whether it belongs to what is talked about: after "about", after "says that"."""
    ends = word_set("content_ends")
    inside = [False] * len(tokens)
    on = said = False
    for i, token in enumerate(tokens):
        word = token.text
        if on and word in ends and not (said and word in ("in", "with")):
            on = False
        elif word in ("about", "regarding", "concerning"):
            on, said = True, False
        elif word in word_set("content_opens"):
            if any(t.text in word_set("saying_forms") for t in tokens[max(0, i - 3) : i]):
                on = said = True
        inside[i] = on
    return inside


def voice_noun_near(tokens: Sequence[Token], i: int, table: Phrases[str]) -> str | None:
    """The voice noun that the adjective at token i belongs to: after it, or before it with a verb between."""
    before_noun = word_set("degree") | word_set("not_voice") | {"and", ",", "but", "yet"}
    after_noun = word_set("degree") | word_set("quality_links")
    sides = (
        (range(i + 1, min(i + 8, len(tokens))), before_noun),
        (range(i - 1, max(i - 7, -1), -1), after_noun),
    )
    for side, passed in sides:
        for k in side:
            if tokens[k].text in word_set("voice_nouns"):
                return tokens[k].text
            if not (tokens[k].text in passed or table.match(tokens, k)):
                break
    return None


def english_clues(caption: str) -> list[str]:
    """Clues of an English caption without a parse."""
    text = mask_quotes(caption)
    tokens, table = tokenise(text), english_table()
    content = _in_content(tokens)
    hits = [hit for hit in scan_english(text, table) if not content[hit.token]]
    taken: set[int] = set()
    dimension: dict[int, str] = {}
    words = ["", *(token.text for token in tokens), ""]  # token i is words[i + 1]
    for hit in hits:
        ambiguous, needs_noun = (hit.word in word_set(key) for key in ("ambiguous", "dimension_adjectives"))
        noun = voice_noun_near(tokens, hit.token, table) if ambiguous else None
        spoken = (words[hit.token] in _spoken_forms() or hit.degree) and not needs_noun
        opens_clause = hit.value == "adjective" and words[hit.token + 2] in word_set("clause_openers")
        if not ambiguous or (not opens_clause and (noun or spoken or len(tokens) <= 6)):
            taken.add(hit.start)
        if noun and needs_noun and noun in word_set("dimensions"):
            dimension[hit.start] = noun
    taken = with_neighbours(text, hits, taken)
    return join_hits(text, [hit for hit in hits if hit.start in taken], dimension)


@cache
def _chinese_tables() -> tuple[Phrases[str], re.Pattern[str]]:
    """Feeling words, voice words, and single characters that need company; and what opens what was said."""
    table = dict.fromkeys(_zh("single"), "single") | dict.fromkeys(_zh("words"), "voice")
    plain, spared = (
        "|".join(map(re.escape, sorted(_zh(key), key=len, reverse=True)))
        for key in ("content_verbs", "not_content")
    )
    # 说 and its like, to the next punctuation
    content = re.compile(f"(?:{spared})|(?:{plain})(?P<said>[^，,。；;！!？?]*)")
    return Phrases(table | dict.fromkeys(chinese_forms(), "feeling"), chinese=True), content


def chinese_clues(caption: str) -> list[str]:
    """Clues of a Chinese caption: longest listed words with negation and degree; 语速较快 keeps its noun."""
    text = mask_quotes(caption)
    table, content = _chinese_tables()
    said = [range(*match.span("said")) for match in content.finditer(text)]
    clues: list[str] = []
    for hit in scan_chinese(text, table):
        if any(hit.start in span for span in said):
            continue
        body = hit.negated + hit.degree + hit.word
        if hit.value == "single":
            lead = len(body)
            before = text[max(0, hit.end - lead - 4) : hit.end - lead]
            noun = max((n for n in _zh("dimensions") if before.endswith(n)), key=len, default="")
            ends = hit.end == len(text) or text[hit.end] in _WORD_END_ZH
            if not ends or not (noun or hit.degree or hit.negated or before.endswith("得")):
                continue
            if hit.word in _zh("quantities") and not noun:
                continue
            if clues and clues[-1] == noun:
                clues.pop()
            body = noun + body
        clues.append(body)
    return list(dict.fromkeys(clues))
