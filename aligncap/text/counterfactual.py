"""Captions made false on purpose: the same sentence with its emotion, or one acoustic claim, flipped.

A flip stays as close to the caption as grammar allows, so that nothing but what is said tells the two apart.
Where a caption cannot be flipped into good English (or Chinese), the answer is None, never nonsense.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from math import dist
from random import Random
from typing import Any

from aligncap.text.claims import Level, MannerMention, dimensions, manner_mentions
from aligncap.text.emotions import Mention, affect, emotion_of, emotion_words, words_of
from aligncap.text.lexicon import Phrases, is_chinese, mask_quotes, scan_english, tokenise
from aligncap.text.sentences import PLAIN_SHARE
from aligncap.utils.io import load_data

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


_NEAR = 40  # characters between a manner adverb and its verb of speaking


@cache
def is_near(label: str, other: str) -> bool:
    """Whether two labels may both be true of one voice, so that neither is false where the other is said."""
    return label == other or any(label in group and other in group for group in load_data(FILE)["near"])


def flip_emotion(caption: str, rng: Random, known_labels: Collection[str] | None = None) -> str | None:
    """The caption with every mention of its emotion replaced by another label's word of the same form.

    The new label is drawn with weight 0.3 + distance in (valence, arousal), never near the old one
    (data/counterfactual.yaml) nor one that the caption denies. Adjectives stay adjectives, nouns nouns and
    adverbs adverbs; "a" and degree words are mended ("completely neutral" becomes "very angry").

    Args:
        caption: English or Chinese.
        known_labels: labels to choose from; all that have words by default.

    Returns:
        The flipped caption, whose `emotion_of` is the new label; None where the caption names no emotion,
        several that are not near each other, or one in a form that no other label has.
    """
    label, mentions = emotion_of(caption), emotion_words(caption)
    said = [m for m in mentions if not m.negated]
    denied = {m.label for m in mentions if m.negated}
    if label is None or label in denied or any(not is_near(label, m.label) for m in said):
        return None
    options = [
        name
        for name in load_data("caption_templates.yaml")["emotions"]
        if (known_labels is None or name in known_labels)
        and name not in denied
        and not any(is_near(m.label, name) for m in said)
    ]
    replace = _replace_chinese if is_chinese(mask_quotes(caption)) else _replace_english
    while options:
        weights = [load_data(FILE)["base"] + dist(affect(label), affect(name)) for name in options]
        target = rng.choices(options, weights)[0]
        options.remove(target)
        flipped = replace(caption, said, target, rng)
        if flipped and _is_flip(caption, flipped, target, len(said)):
            return flipped
    return None


def flip_claim(caption: str, rng: Random) -> str | None:
    """The caption with exactly one acoustic claim replaced by another level of the same dimension.

    The opposite level where it has a word of the same form (before "voice", after "is", adverb, phrase), else
    another. All other words stay, save "a"/"an", and "and"/"but" between two claims that now differ or agree.

    Returns:
        The flipped caption; None where it is not English or makes no claim that can be flipped. A claim that
        is negated, or of a dimension that the caption speaks of twice, is never flipped.
    """
    mentions = manner_mentions(caption)
    spoken_of = Counter(m.dimension for m in mentions)
    negated = unflippable(caption)
    for mention in rng.sample(mentions, len(mentions)):
        if spoken_of[mention.dimension] > 1 or mention.start in negated:
            continue
        levels = dimensions()[mention.dimension].levels
        rank = next(level.rank for level in levels if level.name == mention.level)
        others = [level for level in levels if level.rank != rank]
        for level in sorted(rng.sample(others, len(others)), key=lambda other: other.rank * rank):
            words = _claim_words(caption, mention, level)
            for word in rng.sample(words, len(words)):
                flipped = put(caption, [(mention.start, mention.start + len(mention.word), word)])
                flipped = _mend_joiner(flipped, mention.start)
                if _is_claim_flip(caption, flipped, mention, level):
                    return flipped
    return None


# ---- emotions


def _entry(label: str) -> dict[str, Any]:
    return load_data("caption_templates.yaml")["emotions"].get(label, {"adjective": []})


def _form(caption: str, mention: Mention) -> str | None:
    """ "noun", "adverb", "person" (before one), "tone" (of a voice), "state" (he is …) or "feeling"."""
    word, entry = mention.word, _entry(mention.label)
    end = mention.start + len(word)
    own = [w for key in ("adjective", "predicate", "strong", "tone") for w in entry.get(key, [])]
    adjective = word in own or word in words_of(mention.label, kinds=["adjective"])
    noun = word in entry.get("noun", []) or word in words_of(mention.label, kinds=["noun"])
    before = ["", "with", *caption[: _degree_start(caption, mention)].lower().split()][-2:]
    place = place_of(caption, mention.start, end) if adjective else None
    fits = before[-1] in listed("before_noun") and (before[-1] != "is" or before[0] == "there")
    if before[-1].endswith("ly"):  # "pleasantly surprised"
        return None
    if noun and (place is None or (place.side == "after" and fits)):
        return "noun" if fits and len(caption.split()) > 1 else None
    if place is not None and place.side == "after" and word.endswith("ing"):  # "is crying"
        return None
    if place is not None:
        if place.noun in listed("voices"):
            return "tone"
        if place.side == "before":
            return "person" if place.noun in listed("persons") else None
        return "feeling" if place.verb in listed("seeming") else "state"
    return "adverb" if word.endswith("ly") and not adjective else None


def _degree_start(caption: str, mention: Mention) -> int:
    """Where the words that grade a mention begin; the mention's own start where nothing grades it."""
    graders = {d for e in load_data("caption_templates.yaml")["emotions"].values() for d in _degrees(e)}
    head = caption[: mention.start].lower()
    for degree in sorted({mention.degree, *graders, *listed("any_degree")} - {""}, key=len, reverse=True):
        if re.search(rf"(?<![\w-]){re.escape(degree)}\s+$", head):
            return head.rindex(degree)
    return mention.start


def _degrees(entry: dict[str, Any], noun: bool | None = None) -> list[str]:
    default = load_data("caption_templates.yaml")["default"]
    keys = ("degree", "noun_degree") if noun is None else ("noun_degree",) if noun else ("degree",)
    return [degree for key in keys for degree in entry.get(key, default[key])]


def _replace_english(caption: str, said: Sequence[Mention], target: str, rng: Random) -> str | None:
    entry, chosen = _entry(target), dict[tuple[str, str], str]()
    changes = []
    for mention in said:
        form = _form(caption, mention)
        if form is None or (form in ("person", "state") and not entry.get("person", True)):
            return None
        start = _degree_start(caption, mention)
        degree = caption[start : mention.start].strip().lower()
        strong = mention.word in _entry(mention.label).get("strong", [])
        words = _emotion_words(entry, form)
        fresh = [w for w in words if w not in chosen.values()]
        if (mention.word, form) not in chosen:
            if not fresh:
                return None
            plain = rng.random() < PLAIN_SHARE or len(fresh) == 1
            chosen[mention.word, form] = fresh[0] if plain else rng.choice(fresh[1:])
        word = chosen[mention.word, form]
        allowed = _degrees(entry, form == "noun")
        if strong and not degree:
            word = rng.choice(entry["strong"]) if entry.get("strong") else f"{rng.choice(allowed)} {word}"
        elif degree and degree not in allowed:
            if degree not in listed("any_degree"):
                degree = rng.choice(allowed)
            elif target == "neutral":  # nobody is slightly neutral
                return None
        changes.append((start, mention.start + len(mention.word), f"{degree} {word}".strip()))
    return put(caption, changes)


def _emotion_words(entry: dict[str, Any], form: str) -> list[str]:
    if form in ("noun", "adverb"):
        return entry.get(form, [])
    if form == "tone":
        return entry.get("tone") or entry["adjective"]
    return entry["adjective"] + (entry.get("predicate", []) if form in ("feeling", "state") else [])


def _replace_chinese(caption: str, said: Sequence[Mention], target: str, rng: Random) -> str | None:
    table = load_data(FILE)["zh"]
    if target not in table or len(said) > 1 or said[0].word not in table.get(said[0].label, []):
        return None
    start, end = said[0].start, said[0].start + len(said[0].word)
    if caption[end : end + 1] == "得":  # a complement follows, which belongs to the old emotion
        return None
    return caption[:start] + rng.choice(table[target]) + caption[end:]


def _is_flip(caption: str, flipped: str, target: str, mentions: int) -> bool:
    said = [m for m in emotion_words(flipped) if not m.negated]
    return (
        len(said) == mentions
        and all(m.label == target for m in said)
        and emotion_of(flipped) == target
        and _claims(flipped) == _claims(caption)
        and not doubles(caption, flipped)
    )


# ---- acoustic claims


def _claim_words(caption: str, mention: MannerMention, level: Level) -> list[str]:
    """Words of a level that can take a mention's place."""
    word, end = mention.word, mention.start + len(mention.word)
    source = next(d for d in dimensions()[mention.dimension].levels if d.name == mention.level)
    if word in source.phrase:
        return list(level.phrase)
    if word in source.adverb or (word in source.also and word.endswith("ly")):
        near = [t.text for t in tokenise(caption) if abs(t.start - mention.start) < _NEAR]
        return list(level.adverb) if listed("speaking") & set(near) else []
    if " " in word:  # "deep voice", "low pitch" as a noun
        first, noun = word.rsplit(" ", 1)
        if noun == "voice":
            return [f"{adjective} voice" for adjective in level.voice]
        return [w for w in level.also if w.endswith(f" {noun}") and w.count(" ") == 1]
    place = place_of(caption, mention.start, end)
    if place is None or (place.noun in listed("persons") and place.verb not in listed("seeming")):
        return []
    if place.noun in listed("paces"):
        return list(level.quality) if mention.dimension == "rate" else []
    return list((level.voice or level.quality) if place.side == "before" else (level.quality or level.voice))


def _tokens_between(caption: str, left: MannerMention, right: MannerMention) -> str:
    return " ".join(t.text for t in tokenise(caption[left.start + len(left.word) : right.start]))


def _mend_joiner(caption: str, start: int) -> str:
    """ "low but loud" with one of the two flipped is "high and loud" (before "voice": "high, loud")."""
    found = manner_mentions(caption)
    place = next((i for i, m in enumerate(found) if m.start == start), None)
    if place is None:
        return caption
    joined = [
        i
        for i in range(len(found) - 1)
        if _tokens_between(caption, found[i], found[i + 1]) in (",", "and", "but", ", and")
    ]
    pair = [i for i in joined if place in (i, i + 1)]
    if len(pair) != 1 or pair[0] + 1 in joined or pair[0] - 1 in joined:
        return caption  # no list of two
    left, right = found[pair[0]], found[pair[0] + 1]
    of_two = [(m, dimensions()[m.dimension].level(m.level)) for m in (left, right)]
    if any(named is None or m.word in named.phrase for m, named in of_two):
        return caption  # "quickly, at a normal volume" is no list
    ranks = {named.rank for m, named in of_two if named and m.dimension != "steadiness"}
    end = left.start + len(left.word)
    joiner = caption[end : right.start]
    head = place_of(caption, left.start, end)
    if len(ranks) < 2 and joiner.strip(" ,") == "but":
        joiner = ", " if head is not None and head.side == "before" else " and "
    elif len(ranks) == 2 and joiner in (", ", " and "):
        joiner = " but "
    return caption[:end] + joiner + caption[right.start :]


def _claims(caption: str) -> list[tuple[str, str]]:
    return [(m.dimension, m.level) for m in manner_mentions(caption)]


def _is_claim_flip(caption: str, flipped: str, mention: MannerMention, level: Level) -> bool:
    wanted = [
        (m.dimension, level.name if m.start == mention.start else m.level) for m in manner_mentions(caption)
    ]
    feelings = [(m.word, m.negated) for m in emotion_words(caption)]
    return (
        _claims(flipped) == wanted
        and [(m.word, m.negated) for m in emotion_words(flipped)] == feelings
        and not doubles(caption, flipped)
    )
