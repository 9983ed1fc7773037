"""Where a caption's words stand, and other words put in their place without hurting the grammar."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from aligncap.captions.cue_words import dimensions, manner_mentions
from aligncap.captions.emotions import words_of
from aligncap.captions.lexicon import Phrases, tokenise
from aligncap.captions.scope import mask_quotes, scan_english
from aligncap.io import load_data

FILE = "counterfactual.yaml"
_SMALL = frozenset("a an the is it in at of to and but with his her their he she who which there".split())


@dataclass(frozen=True, slots=True)
class Place:
    """Where an adjective stands: "before" a noun, or "after" a verb whose subject is `noun`."""

    side: str
    noun: str
    verb: str = ""


@cache
def listed(key: str) -> frozenset[str]:
    """A word list of data/counterfactual.yaml."""
    return frozenset(load_data(FILE)[key])


@cache
def _adjectives() -> frozenset[str]:
    """Words that may stand between an adjective and its noun."""
    manner = {w for d in dimensions().values() for level in d.levels for w in (*level.voice, *level.also)}
    of_voices = load_data("voice_words.yaml")["en"]["words"]["adjective"]
    feelings = {w for label in load_data("emotions.yaml") for w in words_of(label, kinds=["adjective"])}
    return frozenset(
        manner | set(of_voices) | feelings | {"male", "female", "young", "old", "and", "but", ","}
    )


def place_of(caption: str, start: int, end: int) -> Place | None:
    """Place of the adjective at [start, end); None where it cannot be told."""
    tokens = tokenise(caption)
    heads = listed("persons") | listed("voices") | listed("paces")
    after = [t.text for t in tokens if t.start >= end]
    before = [t.text for t in tokens if t.end <= start]
    for text in after:
        if text in heads and text not in listed("pronouns"):
            return Place("before", text)
        if text not in _adjectives():
            break
    if after and after[0].isalpha() and after[0] not in listed("followers"):
        return None
    subject = next((text for text in reversed(before) if text in heads), "")
    verb = next((t for t in reversed(before) if t in ("is", "was", "are") or t in listed("seeming")), "")
    return Place("after", subject, verb) if verb else None


def put(caption: str, changes: Sequence[tuple[int, int, str]]) -> str:
    """The caption with [start, end) replaced by a word for each change; capitals and "a"/"an" kept right."""
    for start, end, word in sorted(changes, reverse=True):
        if caption[start].isupper():
            word = word[0].upper() + word[1:]
        head = caption[:start]
        article = re.search(r"\b([Aa])n?\s+$", head)
        if article:
            vowel = re.match(r"(?!eu|uni[fqstv]|us[eu]|one\b)[aeiou]", word, re.IGNORECASE)
            head = head[: article.start()] + article[1] + ("n " if vowel else " ")
        caption = head + word + caption[end:]
    return caption


def doubles(caption: str, flipped: str) -> bool:
    """Whether the flip brought in a word, or a root ("high-pitched ... pitch"), that stands there already."""
    words = re.findall(r"[a-z']+", flipped.lower())
    before = re.findall(r"[a-z']+", caption.lower())
    count, former = Counter(words), Counter(before)
    rest = [w for w in words if count[w] <= former[w]]
    new = [w for w in words if count[w] > former[w]]
    return (
        any(count[w] > max(1, former[w]) for w in count if w not in _SMALL)
        or any(len(w) > 4 and len(o) > 4 and (w.startswith(o) or o.startswith(w)) for w in new for o in rest)
        or any(a == b for a, b in zip(words, words[1:], strict=False))
        or count["with"] > max(1, former["with"])
        or len(re.findall(r"\bin an? ", flipped.lower()))
        > max(1, len(re.findall(r"\bin an? ", caption.lower())))
        or {"tone", "monotone"} <= set(words)
    )


@cache
def _claim_table() -> Phrases[bool]:
    table: Phrases[bool] = Phrases()
    for dimension in dimensions().values():
        for level in dimension.levels:
            for word in level.words:
                table.add(word, True)
    return table


def unflippable(caption: str) -> set[int]:
    """Offsets of claims that are negated, quoted, graded past the opposite, or settled by other words."""
    text = mask_quotes(caption)
    words = {t.text for t in tokenise(text)}
    settled = {name for name, acts in load_data(FILE)["settled"].items() if words & set(acts)}
    weak = load_data("voice_words.yaml")["en"]["weak"]
    hits = {h.start: h for h in scan_english(text, _claim_table())}
    bad = set()
    for mention in manner_mentions(caption):
        hit = hits.get(mention.start)
        if (
            hit is None
            or hit.negated
            or hit.degree in listed("absolute_degree")
            or mention.dimension in settled
            or (mention.dimension == "steadiness" and hit.degree in weak)  # "a bit steady"
        ):
            bad.add(mention.start)
    return bad
