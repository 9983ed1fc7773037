"""ROUGE-L as COCO computes it, and METEOR as NLTK does: scores of word order, one a clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Tokens = Sequence[str]
Floats = NDArray[np.float64]

BETA = 1.2  # how much recall outweighs precision in COCO's ROUGE-L


def common_subsequence(a: Tokens, b: Tokens) -> int:
    """Length of the longest common subsequence, by one machine-word row a token (Hyyrö 2004).

    >>> common_subsequence("he sounds very sad".split(), "he is sad".split())
    2
    """
    return _common(_positions(a), len(a), b)


def _positions(tokens: Tokens) -> dict[str, int]:
    masks: dict[str, int] = {}
    for place, token in enumerate(tokens):
        masks[token] = masks.get(token, 0) | 1 << place
    return masks


def _common(masks: dict[str, int], length: int, other: Tokens) -> int:
    full = (1 << length) - 1
    row = full
    for token in other:
        hits = masks.get(token, 0)
        if hits:
            up = row & hits
            row = ((row + up) | (row - up)) & full
    return length - bin(row).count("1")


def rouge_l(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Floats:
    """ROUGE-L of each clip (clips,): F-measure (beta 1.2) of the best precision and best recall it gets.

    "he sounds sad" against "he is sad": 2 words in common order, precision = recall = 2/3, ROUGE-L 0.6667.
    """
    scores = np.zeros(len(captions))
    for clip, (caption, targets) in enumerate(zip(captions, references, strict=True)):
        if not caption:
            continue
        masks = _positions(caption)
        common = [(_common(masks, len(caption), target), len(target)) for target in targets]
        precision = max(length for length, _ in common) / len(caption)
        recall = max(length / max(size, 1) for length, size in common)
        if precision and recall:
            scores[clip] = (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
    return scores


@dataclass(frozen=True)
class _Word:
    text: str

    def name(self) -> str:
        return self.text


@dataclass(frozen=True)
class _Synonyms:
    """Looks like an NLTK synset and like the list of all its words."""

    words: tuple[_Word, ...]

    def lemmas(self) -> tuple[_Word, ...]:
        return self.words


@dataclass(frozen=True)
class _CachedStemmer:
    stem: Callable[[str], str]


@dataclass(frozen=True)
class _CachedWordNet:
    synsets: Callable[[str], list[_Synonyms]]


def meteor(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]], *, wordnet: bool) -> Floats:
    """METEOR of each clip (clips,), the best of its references, by nltk.translate.meteor_score.

    Matches exact words, then Porter stems, then (with `wordnet`) words of one WordNet synset; the last among
    what stemming left, so that "glad" does not find "happy", whose stem is "happi". The Java METEOR
    1.5 of COCO's tools is another score and not comparable.

    Raises:
        UserError: `wordnet` is asked for and no WordNet is found.
    """
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import meteor_score

    from aligncap.evaluation.wordnet import require_wordnet

    reader = require_wordnet() if wordnet else None
    stem = cache(PorterStemmer().stem)
    # NLTK seeks synonyms among the stems of the references: leaving out one that is no such stem changes no
    # score and halves the time.
    vocabulary = {stem(word) for targets in references for target in targets for word in target}

    @cache
    def synsets(word: str) -> list[_Synonyms]:
        if reader is None:
            return []
        words = {lemma.name() for synset in reader.synsets(word) for lemma in synset.lemmas()} & vocabulary
        return [_Synonyms(tuple(_Word(text) for text in sorted(words)))]

    stemmer = _CachedStemmer(stem)
    lexicon = _CachedWordNet(synsets)
    return np.array(
        [
            meteor_score(
                [list(target) for target in targets], list(caption), stemmer=stemmer, wordnet=lexicon
            )
            for caption, targets in zip(captions, references, strict=True)
        ],
        dtype=np.float64,
    )
