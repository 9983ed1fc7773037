"""Emotion words on emotion wheels: how far the set that a caption names and the set that is so overlap.

After the emotion-wheel metric of AffectGPT (Lian et al. 2025, arXiv 2501.16566): forms of a word are one
word, words of a family one emotion, families of a sector one emotion on that wheel; the overlap is the mean
over wheels, so that no single arrangement decides. Families and wheels stand in data/emotion_wheels.yaml.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from aligncap.captions.emotions import chinese_forms, english_forms, labels
from aligncap.captions.lexicon import ChineseWords, Phrases, inflect, is_chinese
from aligncap.captions.scope import mask_quotes, scan_chinese, scan_english
from aligncap.errors import Faults
from aligncap.io import data_path, load_data

FILE = "emotion_wheels.yaml"
_SEEN = 1 << 16  # captions remembered: references are read once for all systems

Sectors = tuple[frozenset[str], ...]  # one set a wheel


@dataclass(frozen=True, slots=True)
class Feeling:
    """One emotion word of a caption: its family on the wheels, its label in emotions.yaml (None of words
    that stand on wheels alone), whether it is denied, the words that grade it, its character offset."""

    word: str
    family: str
    label: str | None
    negated: bool
    degree: str
    start: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """Overlap of two sets, mean over wheels, each 0 to 1."""

    precision: float
    recall: float
    f1: float


@cache
def _family_forms() -> dict[str, str]:
    return {
        form: name for name, words in load_data(FILE)["families"].items() for form in sorted(inflect(words))
    }


@cache
def wheels() -> dict[str, dict[str, str]]:
    """The sector of each family, by wheel.

    Raises:
        Faults: a family without a place on a wheel, with two, or unknown; a word of two families.
    """
    entries = load_data(FILE)
    families = {*labels(), *entries["families"]}
    where = data_path(FILE)
    owners = Counter(form for words in entries["families"].values() for form in inflect(words))
    faults = [f"{where}: {form!r} is of {n} families; keep it in one" for form, n in owners.items() if n > 1]
    found: dict[str, dict[str, str]] = {}
    for wheel, sectors in entries["wheels"].items():
        places = Counter(family for listed in sectors.values() for family in listed)
        faults += [f"{where}: {wheel} has no sector for {f!r}" for f in sorted(families - set(places))]
        faults += [f"{where}: {wheel}: {f!r} is no family" for f in sorted(set(places) - families)]
        faults += [f"{where}: {wheel} has {f!r} in {n} sectors; keep one" for f, n in places.items() if n > 1]
        found[wheel] = {family: sector for sector, listed in sectors.items() for family in listed}
    if faults:
        raise Faults(faults)
    return found


@cache
def _english() -> Phrases[tuple[str, str | None]]:
    table: Phrases[tuple[str, str | None]] = Phrases()
    label_of, family_of = english_forms(), _family_forms()
    for form in {**label_of, **family_of}:
        label = label_of.get(form)
        table.add(form, (family_of.get(form, label or ""), label))
    return table


@cache
def _chinese() -> ChineseWords[tuple[str, str | None]]:
    return ChineseWords({word: (label, label) for word, label in chinese_forms().items()})


@lru_cache(maxsize=_SEEN)
def feelings(caption: str) -> tuple[Feeling, ...]:
    """Emotion words of a caption in order, quoted speech left out; Chinese words have their label's family.

    >>> [(f.word, f.family, f.negated) for f in feelings("Not jealous, but deeply disappointed.")]
    [('jealous', 'envy', True), ('disappointed', 'disappointment', False)]
    """
    text = mask_quotes(caption)
    hits = scan_chinese(text, _chinese()) if is_chinese(text) else scan_english(text, _english())
    return tuple(
        Feeling(hit.word, *hit.value, negated=bool(hit.negated), degree=hit.degree, start=hit.start)
        for hit in hits
    )


def families_said(caption: str, label_map: Mapping[str, str] | None = None) -> frozenset[str]:
    """Families of the emotion words that a caption asserts.

    `label_map` renames labels that a set does not have, {"calm": "neutral"}: their words become the family
    of the other label.
    """
    rename = label_map or {}
    return frozenset(rename.get(f.label or "", f.family) for f in feelings(caption) if not f.negated)


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
    rows = [(len(s & t), len(s), len(t)) for s, t in zip(said, truth, strict=True)]
    n = len(rows)
    return Overlap(
        sum(both / max(1, one) for both, one, _ in rows) / n,
        sum(both / max(1, other) for both, _, other in rows) / n,
        sum(2 * both / max(1, one + other) for both, one, other in rows) / n,
    )
