"""Emotion clues of captions: e_1..n = G_Parser(y), the words of a caption that describe voice or feeling.

The grammar parser of AlignCap (Liang et al., EMNLP 2024), with negation and degree kept.
"""

from __future__ import annotations

import logging
from typing import Any

from aligncap.captions.clue_rules import chinese_clues, english_clues
from aligncap.captions.lexicon import is_chinese
from aligncap.captions.scope import mask_quotes
from aligncap.errors import UserError

_log = logging.getLogger(__name__)
_CACHED = 50_000  # corpora annotated from labels repeat captions


def load_spacy(model: str) -> Any | None:
    """A spaCy pipeline with tagger, lemmatizer and parser; None when the default model is not there.

    Args:
        model: "default", or a folder that spacy.load reads.

    Raises:
        UserError: a folder was named and is not a spaCy model.
    """
    import spacy

    from aligncap.models.sources import DEFAULT_SPACY, resolve

    try:
        folder = resolve(DEFAULT_SPACY, fetch=False) if model == "default" else resolve(model)
    except UserError:
        if model == "default":
            return None
        raise
    try:
        return spacy.load(folder, disable=["ner"])
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: not a spaCy model ({error}); run `aligncap models fetch {DEFAULT_SPACY}`"
        ) from error


class ClueParser:
    """Finds the clues of captions.

    English captions are read by a dependency parse where a spaCy model is at hand, else by rules over word
    lists (said once in the log). Chinese captions, known by their characters, are read by rules. Clues come
    in the order of the caption, in lower case, without repeats; negation and degree stay with their word.

    Args:
        model: "default" for the package's spaCy model, a folder of another, None for rules.

    Raises:
        UserError: `model` names a folder that is not a spaCy model.

    >>> ClueParser(None).parse(["She is not angry but slightly sad, and talks softly about the keys."])
    [['not angry', 'slightly sad', 'softly']]
    """

    def __init__(self, model: str | None = "default") -> None:
        self._nlp: Any | None = None
        if model is not None:
            self._nlp = load_spacy(model)
        if self._nlp is None:
            reason = (
                "asked for"
                if model is None
                else "no spaCy model is installed: `aligncap models fetch` gets it"
            )
            _log.warning("Emotion clues are found by rules, not by a grammar parse (%s).", reason)
        self._cached: dict[str, list[str]] = {}

    @property
    def path(self) -> str:
        """How English captions are read: "parse" or "rules"."""
        return "rules" if self._nlp is None else "parse"

    def parse(self, captions: list[str]) -> list[list[str]]:
        """Clues of each caption; an empty list where a caption says nothing of voice or feeling."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._cached]
        if len(self._cached) + len(new) > _CACHED:
            self._cached = {}
            new = list(dict.fromkeys(captions))
        english = [caption for caption in new if not is_chinese(caption)]
        self._cached |= {caption: chinese_clues(caption) for caption in new if is_chinese(caption)}
        if self._nlp is None:
            self._cached |= {caption: english_clues(caption) for caption in english}
        else:
            from aligncap.captions.clue_grammar import clues_of

            texts = [mask_quotes(caption) for caption in english]
            for caption, text, doc in zip(english, texts, self._nlp.pipe(texts), strict=True):
                self._cached[caption] = clues_of(doc, text)
        return [list(self._cached[caption]) for caption in captions]
