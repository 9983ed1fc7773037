"""Emotion clues by word lists and windows alone: Chinese captions, and English ones without a parser."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from functools import cache, partial

from aligncap.text.emotions import chinese_forms
from aligncap.text.lexicon import (
    Hit,
    Phrases,
    Token,
    adjective_forms,
    inflect,
    mask_quotes,
    phrase_pattern,
    scan_chinese,
    scan_english,
    tokenise,
    word_list,
)
from aligncap.utils.io import load_data

_WORD_END_ZH = frozenset("，,。；;！!？?：:、 　了的地而且又并但得和与、）)")

word_set = partial(word_list, "voice_words.yaml", "en")
_zh = partial(word_list, "voice_words.yaml", "zh")
_zh_pattern = partial(phrase_pattern, "voice_words.yaml", "zh")


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
        table |= dict.fromkeys(inflect({"verb": words.get("verb", ())}), "verb")
        for word in words.get("adjective", ()):
            table[_ness(word)] = nouns
            table |= {f: "adverb" if f.endswith("ly") else "adjective" for f in adjective_forms(word)}
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


def join_hits(text: str, hits: Sequence[Hit[str]], noun_of: Callable[[Hit[str]], str | None]) -> list[str]:
    """Clue texts of hits: an adverb joins the adjective it stands before, a strength its feeling noun.

    Args:
        text: the caption.
        hits: accepted words in order.
        noun_of: the noun that an adjective is said of. Where it is a dimension, the adjective needs it to be
            understood ("high" -> "high pitch"), and the noun is then no clue of its own.
    """
    graded = {hit.start: noun_of(hit) for hit in hits if hit.word in word_set("dimension_adjectives")}
    dimension = {start: noun for start, noun in graded.items() if noun in word_set("dimensions")}
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


def voice_noun_near(tokens: Sequence[Token], i: int) -> str | None:
    """The voice noun that the adjective at token i belongs to: after it, or before it with a verb between."""
    after, before = range(i + 1, min(i + 8, len(tokens))), range(i - 1, max(i - 7, -1), -1)
    before_noun = word_set("not_voice") | {"and", ",", "but", "yet"}
    for side, passed in ((after, before_noun), (before, word_set("quality_links"))):
        for k in side:
            word = tokens[k].text
            if word in word_set("voice_nouns"):
                return word
            if not (word in passed or word in word_set("degree") or english_table().match(tokens, k)):
                break
    return None


def english_clues(caption: str) -> list[str]:
    """Clues of an English caption without a parse."""
    text = mask_quotes(caption)
    tokens, table = tokenise(text), english_table()
    content = _in_content(tokens)
    hits = [hit for hit in scan_english(text, table) if not content[hit.token]]
    taken: set[int] = set()
    words = ["", *(token.text for token in tokens), ""]  # token i is words[i + 1]
    for hit in hits:
        ambiguous, needs_noun = (hit.word in word_set(key) for key in ("ambiguous", "dimension_adjectives"))
        spoken = (words[hit.token] in _spoken_forms() or hit.degree) and not needs_noun
        opens_clause = hit.value == "adjective" and words[hit.token + 2] in word_set("clause_openers")
        alone = spoken or len(tokens) <= 6
        if not ambiguous or (not opens_clause and (alone or voice_noun_near(tokens, hit.token))):
            taken.add(hit.start)
    taken = with_neighbours(text, hits, taken)
    hits = [hit for hit in hits if hit.start in taken]
    return join_hits(text, hits, lambda hit: voice_noun_near(tokens, hit.token))


@cache
def _chinese_tables() -> tuple[Phrases[str], re.Pattern[str]]:
    """Feeling words, voice words, and single characters that need company; and what opens what was said."""
    table = dict.fromkeys(_zh("single"), "single") | dict.fromkeys(_zh("words"), "voice")
    opens, spared = (_zh_pattern(key).pattern for key in ("content_verbs", "not_content"))
    # 说 and its like, to the next punctuation
    content = re.compile(f"(?:{spared})|(?:{opens})(?P<said>[^，,。；;！!？?]*)")
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
