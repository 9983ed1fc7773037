"""Emotion words of captions: which label a caption names, with negation taken into account.

The words stand in `data/emotions.yaml`, one group a canonical label. No parser is needed: a caption takes
about 50 microseconds, so that whole test sets are scored at once and always in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from aligncap.captions.lexicon import ChineseWords, Phrases, inflect, is_chinese
from aligncap.captions.scope import mask_quotes, scan_chinese, scan_english
from aligncap.errors import UserError
from aligncap.io import load_data

_WEAK = 0.5  # "slightly sad but angry" is angry, "slightly sad" is still sad


@dataclass(frozen=True, slots=True)
class Mention:
    """One emotion word of a caption; `start` is its character offset, `degree` the words that grade it."""

    word: str
    label: str
    negated: bool
    degree: str
    start: int


def labels() -> list[str]:
    """The labels that have emotion words, in the order of the file."""
    return list(load_data("emotions.yaml"))


def affect(label: str) -> tuple[float, float]:
    """(valence, arousal) of a label, each from -1 to 1.

    Raises:
        UserError: the label has no entry.
    """
    group = _group(label)
    return float(group["valence"]), float(group["arousal"])


def words_of(label: str, language: str = "en", kinds: Sequence[str] | None = None) -> list[str]:
    """Listed words of a label, uninflected, commonest first.

    Args:
        label: a label of `labels()`.
        language: "en" or "zh".
        kinds: English only: any of "adjective", "noun", "verb", "other"; all by default.

    Raises:
        UserError: unknown label or language.
    """
    group = _group(label)
    if language not in ("en", "zh"):
        raise UserError(f"emotion words: no language {language!r}; choose 'en' or 'zh'")
    if language == "zh":
        return list(group["zh"])
    return list(
        dict.fromkeys(w for kind, ws in group["en"].items() if kinds is None or kind in kinds for w in ws)
    )


def _group(label: str) -> dict:
    groups = load_data("emotions.yaml")
    if label not in groups:
        raise UserError(
            f"data/emotions.yaml: no emotion words for {label!r}; the labels are {', '.join(groups)}"
        )
    return groups[label]


@cache
def english_forms() -> dict[str, str]:
    """Every English surface form with its label; a listed form is preferred to one formed by rule."""
    groups = load_data("emotions.yaml")
    forms = {form: label for label, group in groups.items() for form in sorted(inflect(group["en"]))}
    return forms | {word: label for label in groups for word in words_of(label)}


def forms_outside(allowed: Iterable[str]) -> list[str]:
    """English surface forms of all emotions but the allowed ones, which a caption is then not to use.

    Raises:
        UserError: an allowed label has no emotion words.
    """
    kept = set(allowed)
    for label in kept:
        _group(label)
    return [form for form, label in english_forms().items() if label not in kept]


@cache
def _english() -> Phrases[str]:
    table: Phrases[str] = Phrases()
    for form, label in english_forms().items():
        table.add(form, label)
    return table


@cache
def chinese_forms() -> dict[str, str]:
    """Every Chinese word with its label."""
    return {word: label for label in labels() for word in words_of(label, "zh")}


@cache
def _chinese() -> ChineseWords[str]:
    return ChineseWords(chinese_forms())


def emotion_words(caption: str) -> list[Mention]:
    """Emotion words of a caption in order, quoted speech left out.

    >>> [(m.word, m.label, m.negated) for m in emotion_words("Not angry, but slightly sad.")]
    [('angry', 'angry', True), ('sad', 'sad', False)]
    """
    text = mask_quotes(caption)
    hits = scan_chinese(text, _chinese()) if is_chinese(text) else scan_english(text, _english())
    return [Mention(hit.word, hit.value, bool(hit.negated), hit.degree, hit.start) for hit in hits]


def emotion_of(caption: str) -> str | None:
    """The label that a caption names, None if it names none.

    The label with the most mentions wins, the one named first among equals. A negated mention does not count,
    a weakened one ("slightly", "a hint of", "less") counts half.

    >>> emotion_of("He is not angry, he sounds sad and a little tired.")
    'sad'
    """
    words = load_data("voice_words.yaml")
    weak = _weak_degrees(tuple(words["en"]["weak"]), tuple(words["zh"]["weak"]))
    weights: dict[str, float] = {}
    for mention in emotion_words(caption):
        if not mention.negated:
            weights[mention.label] = weights.get(mention.label, 0.0) + (
                _WEAK if mention.degree in weak else 1.0
            )
    return max(weights, key=lambda label: weights[label], default=None)


@cache
def _weak_degrees(*lists: tuple[str, ...]) -> frozenset[str]:
    return frozenset(word for words in lists for word in words)
