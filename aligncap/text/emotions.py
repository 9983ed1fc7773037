"""Emotion words of captions: which label a caption names, and where its words stand on emotion wheels.

The words stand in `data/emotions.yaml`, one group a label, and `data/emotion_wheels.yaml`. No parser is
needed: a caption takes about 50 microseconds, so that whole test sets are scored at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

from aligncap.text.lexicon import Phrases, inflect, mask_quotes, scan, weak_degrees
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row, load_data

FILE = "emotion_wheels.yaml"
EVERYDAY = ("angry", "happy", "neutral", "sad")
RARER = 0.5  # of the others; docs/results.md says what it is worth and costs
_WEAK = 0.5  # "slightly sad but angry" is angry, "slightly sad" is still sad

Sectors = tuple[frozenset[str], ...]  # one set a wheel


class Mention(NamedTuple):
    """One emotion word of a caption: its label ("" of words that stand on wheels alone) and its family on the
    wheels, whether it is denied, the words that grade it, its character offset."""

    word: str
    label: str
    family: str
    negated: bool
    degree: str
    start: int

    @property
    def weak(self) -> bool:
        """Whether a degree weakens it: "slightly", "a hint of"."""
        return self.degree in weak_degrees()


class Overlap(NamedTuple):
    """Overlap of two sets, mean over wheels, each 0 to 1."""

    precision: float
    recall: float
    f1: float


def labels() -> list[str]:
    """The labels that have emotion words, in the order of the file."""
    return list(load_data("emotions.yaml"))


def everyday_share(label: str) -> float:
    """How likely an emotion is in talk, relative to others: 1 for those of EVERYDAY, RARER for the rest.

    Corpora are acted with every emotion as often, and balanced where they are not; talk is not. Of the
    dialogues of MELD (Poria et al. 2019) these four are 83 % and three others 17 %, which would be .28.

    Raises:
        UserError: the label has no entry.
    """
    return 1.0 if _group(label) and label in EVERYDAY else RARER


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
    chosen = [words for kind, words in group["en"].items() if kinds is None or kind in kinds]
    return list(dict.fromkeys(word for words in chosen for word in words))


def _group(label: str) -> Row:
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


@cache
def chinese_forms() -> dict[str, str]:
    """Every Chinese word with its label."""
    return {word: label for label in labels() for word in words_of(label, "zh")}


def forms_outside(allowed: Iterable[str]) -> list[str]:
    """English surface forms of all emotions but the allowed ones, which a caption is then not to use.

    Raises:
        UserError: an allowed label has no emotion words.
    """
    kept = {label for label in allowed if _group(label)}
    return [form for form, label in english_forms().items() if label not in kept]


@cache
def _tables(on_wheels: bool) -> tuple[Phrases[tuple[str, str]], Phrases[tuple[str, str]]]:
    """(label, family) of English words, with or without those on the wheels alone; and of Chinese words."""
    families = load_data(FILE)["families"]
    family_of = {form: name for name, words in families.items() for form in sorted(inflect(words))}
    alone = {form: ("", family) for form, family in family_of.items()} if on_wheels else {}
    labelled = {form: (label, family_of.get(form, label)) for form, label in english_forms().items()}
    chinese = {word: (label, label) for word, label in chinese_forms().items()}
    return Phrases(alone | labelled), Phrases(chinese, chinese=True)


def _mentions(caption: str, on_wheels: bool) -> list[Mention]:
    hits = scan(mask_quotes(caption), *_tables(on_wheels))
    return [Mention(h.word, *h.value, bool(h.negated), h.degree, h.start) for h in hits]


def emotion_words(caption: str) -> list[Mention]:
    """Words of a caption that name a label, in order, quoted speech left out.

    >>> [(m.word, m.label, m.negated) for m in emotion_words("Not angry, but slightly sad.")]
    [('angry', 'angry', True), ('sad', 'sad', False)]
    """
    return _mentions(caption, on_wheels=False)


@lru_cache(maxsize=1 << 16)  # references are read once for all systems
def feelings(caption: str) -> tuple[Mention, ...]:
    """Words of a caption that name a label or a family of the wheels, in order, quoted speech left out.

    Chinese words have their label's family.

    >>> [(f.word, f.family, f.negated) for f in feelings("Not jealous, but deeply disappointed.")]
    [('jealous', 'envy', True), ('disappointed', 'disappointment', False)]
    """
    return tuple(_mentions(caption, on_wheels=True))


def emotion_of(caption: str) -> str | None:
    """The label that a caption names, None if it names none.

    The label with the most mentions wins, the one named first among equals. A negated mention does not count,
    a weakened one ("slightly", "a hint of", "less") counts half.

    >>> emotion_of("He is not angry, he sounds sad and a little tired.")
    'sad'
    """
    weights: dict[str, float] = {}
    for mention in emotion_words(caption):
        if not mention.negated:
            weights[mention.label] = weights.get(mention.label, 0.0) + (_WEAK if mention.weak else 1.0)
    return max(weights, key=lambda label: weights[label], default=None)


@cache
def wheels() -> dict[str, dict[str, str]]:
    """The sector of each family, by wheel; every family has one on each."""
    return {
        wheel: {family: sector for sector, listed in sectors.items() for family in listed}
        for wheel, sectors in load_data(FILE)["wheels"].items()
    }


def families_said(caption: str, label_map: Mapping[str, str] | None = None) -> frozenset[str]:
    """Families of the emotion words that a caption asserts.

    `label_map` renames labels that a set does not have, {"calm": "neutral"}: their words become the family
    of the other label.
    """
    rename = label_map or {}
    return frozenset(rename.get(f.label, f.family) for f in feelings(caption) if not f.negated)


def sectors(families: Iterable[str]) -> Sectors:
    """The sectors of families on every wheel, in the wheels' order."""
    listed = list(families)
    return tuple(frozenset(places[family] for family in listed) for places in wheels().values())


def true_sectors(label: str | None, references: Sequence[frozenset[str]]) -> Sectors | None:
    """What is so of a clip: its label's sector, and every sector that half of the references name or more.

    Without a label and without such a sector: every sector that a reference names. None where there is
    neither label nor emotion word.

    Args:
        label: the clip's label; one that has no emotion words counts as none.
        references: `families_said` of each reference caption.
    """
    known = [label] if label in labels() else []
    if not known and not any(references):
        return None
    named = [sectors(families) for families in references]
    truth = []
    for number, own in enumerate(sectors(known)):
        votes = Counter(sector for sets in named for sector in sets[number])
        often = {sector for sector, n in votes.items() if 2 * n >= len(named)}
        truth.append(own | often or frozenset(votes))
    return tuple(truth)


def overlap(said: Sectors, truth: Sectors) -> Overlap:
    """Set precision, recall and F1 of the sectors said against the true ones, mean over wheels.

    All three are 0 where nothing is said.

    >>> overlap(sectors(["sad"]), true_sectors("sad", []))
    Overlap(precision=1.0, recall=1.0, f1=1.0)
    """
    sizes = [(len(s & t), len(s), len(t)) for s, t in zip(said, truth, strict=True)]
    scores = [(n / max(1, a), n / max(1, b), 2 * n / max(1, a + b)) for n, a, b in sizes]
    return Overlap(*(sum(column) / len(scores) for column in zip(*scores, strict=True)))
