"""Captions made false on purpose: the same sentence with its emotion, or one acoustic claim, flipped.

A flip stays as close to the caption as grammar allows, so that nothing but the flipped fact tells the two
apart. Where a caption cannot be flipped into good English (or Chinese), the answer is None, never nonsense.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from functools import cache, partial
from math import dist
from random import Random

from aligncap.text.claims import Claim, Level, cue_words, dimensions, manner_mentions
from aligncap.text.emotions import Mention, affect, emotion_of, emotion_words, labels, words_of
from aligncap.text.lexicon import is_chinese, mask_quotes, scan_english, tokenise, weak_degrees, word_list
from aligncap.text.sentences import FILE as TEMPLATES
from aligncap.text.sentences import PLAIN_SHARE, degrees, emotion_entry, emotion_forms
from aligncap.utils.io import load_data

FILE = "counterfactual.yaml"
_NEAR = 40  # characters between a manner adverb and its verb of speaking

listed = partial(word_list, FILE)


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
        for name in load_data(TEMPLATES)["emotions"]
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
        if flipped:
            now = [m.label for m in emotion_words(flipped) if not m.negated]
            same_claims = _claims(flipped) == _claims(caption)
            if now == [target] * len(said) and same_claims and not _doubles(caption, flipped):
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
    mentions, flippable = manner_mentions(caption), _flippable(caption)
    spoken_of = Counter(m.dimension for m in mentions)
    for mention in rng.sample(mentions, len(mentions)):
        if spoken_of[mention.dimension] > 1 or mention.start not in flippable:
            continue
        others = [
            level for level in dimensions()[mention.dimension].levels if level.rank != mention.claimed.rank
        ]
        for level in sorted(
            rng.sample(others, len(others)), key=lambda other: other.rank * mention.claimed.rank
        ):
            wanted = [(m.dimension, level.name if m is mention else m.level) for m in mentions]
            words = _claim_words(caption, mention, level)
            for word in rng.sample(words, len(words)):
                flipped = _put(caption, [(mention.start, mention.start + len(mention.word), word)])
                flipped = _mend_joiner(flipped, mention.start)
                # no other claim, no emotion may change with it, and no word be doubled
                before, after = ([(m.word, m.negated) for m in emotion_words(t)] for t in (caption, flipped))
                if _claims(flipped) == wanted and before == after and not _doubles(caption, flipped):
                    return flipped
    return None


@cache
def is_near(label: str, other: str) -> bool:
    """Whether two labels may both be true of one voice, so that neither is false where the other is said."""
    return label == other or any(label in group and other in group for group in load_data(FILE)["near"])


def _claims(caption: str) -> list[tuple[str, str]]:
    return [(m.dimension, m.level) for m in manner_mentions(caption)]


@cache
def _between() -> frozenset[str]:
    """Words that may stand between an adjective and its noun."""
    manner = {w for d in dimensions().values() for level in d.levels for w in (*level.voice, *level.also)}
    of_voices = word_list("voice_words.yaml", "en", "words", "adjective")
    feelings = {w for label in labels() for w in words_of(label, kinds=["adjective"])}
    return of_voices | manner | feelings | {"male", "female", "young", "old", "and", "but", ","}


def _place(caption: str, start: int, end: int) -> tuple[str, str] | None:
    """(noun, verb) of the adjective at [start, end), None where they cannot be told.

    Before a noun it has no verb (""); after a verb, the noun is the verb's subject.
    """
    tokens = tokenise(caption)
    after = [t.text for t in tokens if t.start >= end]
    heads = listed("persons") | listed("voices") | listed("paces")
    noun = next((text for text in after if text not in _between()), "")
    if noun in heads - listed("pronouns"):
        return noun, ""
    if after and after[0].isalpha() and after[0] not in listed("followers"):
        return None
    before = [t.text for t in reversed(tokens) if t.end <= start]
    subject = next((text for text in before if text in heads), "")
    verb = next((t for t in before if t in ("is", "was", "are") or t in listed("seeming")), "")
    return (subject, verb) if verb else None


def _put(caption: str, changes: Sequence[tuple[int, int, str]]) -> str:
    """The caption with [start, end) replaced by a word for each change; capitals and "a"/"an" kept right."""
    for start, end, word in sorted(changes, reverse=True):
        if caption[start].isupper():
            word = word[0].upper() + word[1:]
        vowel = re.match(r"(?!eu|uni[fqstv]|us[eu]|one\b)[aeiou]", word, re.IGNORECASE)
        head = re.sub(r"\b([Aa])n?\s+$", r"\1n " if vowel else r"\1 ", caption[:start])
        caption = head + word + caption[end:]
    return caption


def _doubles(caption: str, flipped: str) -> bool:
    """Whether the flip brought in a word, or a root ("high-pitched ... pitch"), that stands there already."""
    words = re.findall(r"[a-z']+", flipped.lower())
    count, former = Counter(words), Counter(re.findall(r"[a-z']+", caption.lower()))
    rest = [w for w in words if count[w] <= former[w] and len(w) > 4]
    new = [w for w in words if count[w] > former[w] and len(w) > 4]
    in_a, former_in_a = (len(re.findall(r"\bin an? ", text.lower())) for text in (flipped, caption))
    return (
        any(n > max(1, former[w]) for w, n in count.items() if w not in word_list(TEMPLATES, "small_words"))
        or any(w.startswith(o) or o.startswith(w) for w in new for o in rest)
        or any(a == b for a, b in zip(words, words[1:], strict=False))
        or count["with"] > max(1, former["with"])
        or in_a > max(1, former_in_a)
        or {"tone", "monotone"} <= set(words)
    )


# ---- emotions


def _form(caption: str, mention: Mention, start: int) -> str | None:
    """ "noun", "adverb", "person" (before one), "tone" (of a voice), "state" (he is …) or "feeling".

    `start` is where the words that grade the mention begin. None for what no other emotion can stand in for.
    """
    word, entry = mention.word, emotion_entry(mention.label)
    own = [w for key in ("adjective", "predicate", "strong", "tone") for w in entry.get(key, [])]
    adjective = word in own or word in words_of(mention.label, kinds=["adjective"])
    is_noun = word in entry.get("noun", []) or word in words_of(mention.label, kinds=["noun"])
    before = ["", "with", *caption[:start].lower().split()][-2:]
    place = _place(caption, mention.start, mention.start + len(word)) if adjective else None
    noun, verb = place or ("", "")
    fits = before[-1] in listed("before_noun") and (before[-1] != "is" or before[0] == "there")
    if before[-1].endswith("ly"):  # "pleasantly surprised"
        return None
    if is_noun and (place is None or (verb and fits)):
        return "noun" if fits and len(caption.split()) > 1 else None
    if place is None:
        return "adverb" if word.endswith("ly") and not adjective else None
    if verb and word.endswith("ing"):  # "is crying"
        return None
    if noun in listed("voices"):
        return "tone"
    if not verb:
        return "person" if noun in listed("persons") else None
    return "feeling" if verb in listed("seeming") else "state"


@cache
def _graders() -> frozenset[str]:
    entries = load_data(TEMPLATES)["emotions"].values()
    words = {degree for entry in entries for noun in (False, True) for degree in degrees(entry, noun)}
    return listed("any_degree") | words


def _degree_start(caption: str, mention: Mention) -> int:
    """Where the words that grade a mention begin; the mention's own start where nothing grades it."""
    head = caption[: mention.start].lower()
    bare = head.rstrip()
    if bare != head:
        graders = filter(bare.endswith, {mention.degree, *_graders()} - {""})
        for degree in sorted(graders, key=len, reverse=True):
            if not re.search(r"[\w-]$", bare[: -len(degree)]):
                return len(bare) - len(degree)
    return mention.start


def _replace_english(caption: str, said: Sequence[Mention], target: str, rng: Random) -> str | None:
    entry, chosen = emotion_entry(target), dict[tuple[str, str], str]()
    changes = []
    for mention in said:
        start = _degree_start(caption, mention)
        form = _form(caption, mention, start)
        if form is None or (form in ("person", "state") and not entry.get("person", True)):
            return None
        if (mention.word, form) not in chosen:
            fresh = [w for w in emotion_forms(entry, form) if w not in chosen.values()]
            if not fresh:
                return None
            plain = rng.random() < PLAIN_SHARE or len(fresh) == 1
            chosen[mention.word, form] = fresh[0] if plain else rng.choice(fresh[1:])
        word = chosen[mention.word, form]
        degree = caption[start : mention.start].strip().lower()
        allowed = degrees(entry, form == "noun")
        if not degree and mention.word in emotion_entry(mention.label).get("strong", []):
            word = rng.choice(entry["strong"]) if entry.get("strong") else f"{rng.choice(allowed)} {word}"
        elif degree and degree not in allowed:
            if degree not in listed("any_degree"):
                degree = rng.choice(allowed)
            elif target == "neutral":  # nobody is slightly neutral
                return None
        changes.append((start, mention.start + len(mention.word), f"{degree} {word}".strip()))
    return _put(caption, changes)


def _replace_chinese(caption: str, said: Sequence[Mention], target: str, rng: Random) -> str | None:
    table = load_data(FILE)["zh"]
    if target not in table or len(said) > 1 or said[0].word not in table.get(said[0].label, []):
        return None
    start, end = said[0].start, said[0].start + len(said[0].word)
    if caption[end : end + 1] == "得":  # a complement follows, which belongs to the old emotion
        return None
    return caption[:start] + rng.choice(table[target]) + caption[end:]


# ---- acoustic claims


def _flippable(caption: str) -> set[int]:
    """Offsets of cue words that are not negated, quoted, graded past the opposite, or settled by others."""
    text = mask_quotes(caption)
    words = {t.text for t in tokenise(text)}
    settled = {name for name, acts in load_data(FILE)["settled"].items() if words & set(acts)}
    found = set()
    for hit in scan_english(text, cue_words()):
        dimension = hit.value[0]
        hedged = dimension == "steadiness" and hit.degree in weak_degrees()  # "a bit steady"
        absolute = hit.degree in listed("absolute_degree")
        if not (hit.negated or absolute or hedged or dimension in settled):
            found.add(hit.start)
    return found


def _claim_words(caption: str, mention: Claim, level: Level) -> Sequence[str]:
    """Words of a level that can take a mention's place."""
    word, source = mention.word, mention.claimed
    if word in source.phrase:
        return level.phrase
    if word in source.adverb or (word in source.also and word.endswith("ly")):
        near = {t.text for t in tokenise(caption) if abs(t.start - mention.start) < _NEAR}
        return level.adverb if listed("speaking") & near else ()
    if " " in word:  # "deep voice", "low pitch" as a noun
        noun = word.rsplit(" ", 1)[1]
        if noun == "voice":
            return [f"{adjective} voice" for adjective in level.voice]
        return [w for w in level.also if w.endswith(f" {noun}") and w.count(" ") == 1]
    noun, verb = _place(caption, mention.start, mention.start + len(word)) or ("he", "is")
    if noun in listed("persons") and verb not in listed("seeming"):
        return ()
    if noun in listed("paces"):
        return level.quality if mention.dimension == "rate" else ()
    return level.quality if verb else level.voice or level.quality


def _mend_joiner(caption: str, start: int) -> str:
    """ "low but loud" with one of the two flipped is "high and loud" (before "voice": "high, loud")."""
    found = manner_mentions(caption)
    ends = [m.start + len(m.word) for m in found]
    gaps = [caption[end : m.start] for end, m in zip(ends, found[1:], strict=False)]
    listing = re.compile(r"\s*(,|and|but|,\s*and)\s*", re.IGNORECASE)
    joined = [i for i, gap in enumerate(gaps) if listing.fullmatch(gap)]
    pair = [i for i in joined if start in (found[i].start, found[i + 1].start)]
    if len(pair) != 1 or pair[0] + 1 in joined or pair[0] - 1 in joined:
        return caption  # no list of two
    left, right = found[pair[0]], found[pair[0] + 1]
    if any(m.word in m.claimed.phrase for m in (left, right)):
        return caption  # "quickly, at a normal volume" is no list
    ranks = {m.claimed.rank for m in (left, right) if m.dimension != "steadiness"}
    end, joiner = ends[pair[0]], gaps[pair[0]]
    if len(ranks) < 2 and joiner.strip(" ,") == "but":
        _, verb = _place(caption, left.start, end) or ("", "is")
        joiner = " and " if verb else ", "
    elif len(ranks) == 2 and joiner in (", ", " and "):
        joiner = " but "
    return caption[:end] + joiner + caption[right.start :]
