"""Emotion clues of captions: e_1..n = G_Parser(y), the words of a caption that describe voice or feeling.

The grammar parser of AlignCap (Liang et al., EMNLP 2024), with negation and degree kept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from aligncap.text.clue_rules import (
    CLAUSE_OPENERS,
    chinese_clues,
    english_clues,
    english_table,
    join_hits,
    take_neighbours,
    voice_noun_near,
    without_dimensions,
    word_set,
)
from aligncap.text.lexicon import Hit, Token, is_chinese, mask_quotes, scan_english, tokenise
from aligncap.utils.errors import UserError

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

    from aligncap.models.hub import DEFAULT_SPACY, resolve

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
            from aligncap.text.clues import clues_of

            texts = [mask_quotes(caption) for caption in english]
            for caption, text, doc in zip(english, texts, self._nlp.pipe(texts), strict=True):
                self._cached[caption] = clues_of(doc, text)
        return [list(self._cached[caption]) for caption in captions]


_OF_NOUN = ("amod", "compound", "nmod", "nummod", "poss")
_OF_SUBJECT = ("acomp", "attr", "oprd", "xcomp", "ccomp", "dobj")
_SUBJECTS = ("nsubj", "nsubjpass", "csubj")


class _Spans:
    """Accepted words by character offset, for the scan that adds negation and degree."""

    def __init__(self, spans: dict[int, tuple[int, str]]) -> None:
        self._spans = spans

    def match(self, tokens: Sequence[Token], i: int) -> tuple[int, str] | None:
        found = self._spans.get(tokens[i].start)
        if found is None:
            return None
        end, kind = found
        length = 1
        while i + length < len(tokens) and tokens[i + length].end <= end:
            length += 1
        return length, kind


def _first(token: Any) -> Any:
    """The first member of the list that a token belongs to ("loud and angry" -> "loud")."""
    while token.dep_ == "conj" and token.head.i != token.i:
        token = token.head
    return token


def _subject(verb: Any) -> Any | None:
    """Subject of a verb, through lists of verbs and relative clauses."""
    seen = 0
    while seen < 6:
        seen += 1
        for child in verb.children:
            if child.dep_ in _SUBJECTS:
                if child.tag_ in ("WDT", "WP") and verb.dep_ == "relcl":
                    return verb.head
                return child
        if verb.dep_ in ("conj", "xcomp", "advcl", "ccomp") and verb.head.i != verb.i:
            verb = verb.head
        elif verb.dep_ in ("acl", "relcl"):
            return verb.head
        else:
            return None
    return None


def _owner(token: Any) -> tuple[str, Any | None]:
    """What a word is said of: ("noun", noun), ("subject", subject), ("verb", verb) or ("", None)."""
    first = _first(token)
    head = first.head
    own = [child for child in first.children if child.dep_ in _SUBJECTS]
    if own and first.pos_ == "ADJ":
        return "subject", own[0]
    if first.dep_ in _OF_NOUN and head.pos_ in ("NOUN", "PROPN", "PRON"):
        return "noun", head
    if first.dep_ in ("advmod", "npadvmod", "prt", "amod") and head.pos_ in ("VERB", "AUX"):
        return "verb", head
    if first.dep_ in _OF_SUBJECT and head.pos_ in ("VERB", "AUX"):
        return "subject", _subject(head)
    if first.dep_ in ("amod", "acl", "appos", "relcl") and head.pos_ in ("NOUN", "PROPN", "PRON"):
        return "noun", head
    if first.pos_ == "VERB":
        return "subject", _subject(first)
    return "", None


def _lemma(token: Any) -> str:
    return token.lemma_.lower()


def _content(doc: Any) -> set[int]:
    """Tokens that belong to what is talked about: "about the keys", "says that the car is red"."""
    inside: set[int] = set()
    for token in doc:
        about = token.lower_ in ("about", "regarding", "concerning") and token.dep_ == "prep"
        said = (
            token.dep_ == "ccomp"
            and _lemma(token.head) in word_set("saying_verbs")
            and token.i > token.head.i
            and not (_lemma(token.head) == "say" and token.head.i == token.i)
        )
        if about or said:
            inside.update(t.i for t in token.subtree)
    return inside


def _is_voice(noun: Any) -> bool:
    return _lemma(noun) in word_set("voice_nouns") or noun.lower_ in word_set("voice_nouns")


def _is_person(noun: Any) -> bool:
    return _lemma(noun) in word_set("persons") or noun.lower_ in word_set("persons")


def _accepts_listed(token: Any, kind: str, feeling: bool) -> bool:
    """Whether a listed, unambiguous word is said of a voice, a person or a feeling, not of a thing."""
    role, owner = _owner(token)
    if owner is None or role == "verb":
        return True
    if role == "noun" and kind == "adjective":
        return (
            _is_voice(owner)
            or _is_person(owner)
            or english_table().match(tokenise(owner.lower_), 0) is not None
        )
    if role == "subject" and owner.pos_ == "NOUN" and kind in ("adjective", "verb"):
        return _is_voice(owner) or _is_person(owner) or owner.ent_type_ == "PERSON" or feeling
    return True


def _accepts_open(token: Any, listed: bool) -> bool:
    """Whether a word counts by its place in the parse: of a voice noun, after "sounds", a manner of speaking.

    `listed` words (those of voices and of things) may be of any part of speech and need less.
    """
    word, first = token.lower_, _first(token)
    if word in word_set("not_voice") or word in word_set("degree") or _opens_infinitive(token):
        return False
    role, owner = _owner(token)
    if listed and token.pos_ == "VERB" and any(c.dep_ == "dobj" and _is_voice(c) for c in token.children):
        return True
    if listed and token.pos_ in ("NOUN", "PROPN") and role != "noun":
        named = any(child.dep_ == "prep" and child.lower_ == "of" for child in token.children)
        return token.dep_ in ("pobj", "dobj", "attr", "nsubj", "conj", "oprd", "acomp") and not named
    if role == "verb" and owner is not None:
        manner = word.endswith("ly") or listed
        return (
            manner
            and word not in word_set("not_manner")
            and (listed or _lemma(owner) in word_set("speech_verbs"))
        )
    adjective = listed or "ADJ" in (token.pos_, first.pos_) or _sounds_participle(token)
    if listed and role == "noun" and owner is not None and _is_person(owner):
        return True
    if role == "noun" and owner is not None:
        feeling = english_table().match(tokenise(owner.lower_) or [Token("", 0, 0)], 0)
        fits = _is_voice(owner) or (feeling is not None and feeling[1] == "feeling noun")
        return adjective and fits and first.dep_ != "poss" and (listed or token.pos_ not in ("NOUN", "PROPN"))
    if role == "subject" and adjective:
        verb = first.head if first.dep_ in _OF_SUBJECT else first
        linking = _lemma(verb) in word_set("linking_verbs") or _sounds_participle(first)
        hears = linking and _lemma(verb) != "be"
        if owner is None:
            return hears
        if _is_voice(owner):
            return linking or listed
        return _is_person(owner) and (hears or (listed and linking))
    return False


def _opens_infinitive(token: Any) -> bool:
    """ "hard to understand" is not a hard voice, "clear that she is sad" not a clear one."""
    return token.pos_ != "ADV" and token.i + 1 < len(token.doc) and token.nbor().lower_ in CLAUSE_OPENERS


def _sounds_participle(token: Any) -> bool:
    """ "feels rehearsed", read by the parser as a passive."""
    return token.tag_ == "VBN" and any(
        c.dep_ in ("aux", "auxpass") and _lemma(c) in ("sound", "seem", "feel", "appear")
        for c in token.children
    )


def _negated(token: Any) -> bool:
    """Whether the verb that a word completes has a "not" of its own, however far away it stands."""
    head = token.head
    if token.dep_ not in ("acomp", "attr", "oprd") or head.pos_ not in ("VERB", "AUX"):
        return False
    only = ("only", "just", "merely", "simply")
    return any(c.dep_ == "neg" and c.i < token.i and c.nbor().lower_ not in only for c in head.children)


def clues_of(doc: Any, text: str) -> list[str]:
    """Clues of a parsed caption.

    Args:
        doc: spaCy parse of `text`.
        text: caption with quoted speech blanked out.
    """
    table, tokens = english_table(), tokenise(text)
    content = _content(doc)
    by_offset = {token.idx: token for token in doc}
    listed: dict[int, tuple[int, str]] = {}
    scanned = scan_english(text, table)
    for hit in scanned:
        listed[hit.start] = (hit.end, hit.value)
    accepted: dict[int, tuple[int, str]] = {}
    dimension: dict[int, str] = {}
    positions = {token.start: i for i, token in enumerate(tokens)}
    covered: set[int] = set()
    for start, (end, kind) in listed.items():
        inside = [t for t in doc if start <= t.idx < end]
        if not inside or inside[0].i in content:
            continue
        covered.update(t.i for t in inside)
        token, word = by_offset.get(start, inside[0]), text[start:end].lower()
        if word in word_set("ambiguous"):
            near = voice_noun_near(tokens, positions[start], table)
            fragment = not any(t.pos_ in ("VERB", "AUX") for t in doc)
            ok = _accepts_open(token, True) or (
                (near is not None or fragment) and not _opens_infinitive(token)
            )
        else:
            ok = len(inside) > 1 or _accepts_listed(token, kind, kind.startswith("feeling"))
        if ok:
            accepted[start] = (end, kind)
    taken = set(accepted)
    take_neighbours(
        text,
        [h for h in scanned if by_offset.get(h.start) is None or by_offset[h.start].i not in content],
        taken,
    )
    accepted |= {start: listed[start] for start in taken - set(accepted)}
    for token in doc:
        if (
            token.i in content
            or token.i in covered
            or not token.is_alpha
            or token.pos_ not in ("ADJ", "ADV", "VERB")
        ):
            continue
        if token.pos_ == "VERB" and token.dep_ != "amod" and not _sounds_participle(token):
            continue
        if _accepts_open(token, False):
            accepted[token.idx] = (
                token.idx + len(token.text),
                "adverb" if token.pos_ == "ADV" else "adjective",
            )
    hits: list[Hit[str]] = []
    for hit in scan_english(text, _Spans(accepted)):
        anchor = by_offset.get(hit.start)
        if anchor is not None:
            dimension.update(_dimension(anchor, hit, tokens, positions))
            if not hit.negated and _negated(anchor):
                hit = replace(hit, negated="not")
        hits.append(hit)
    return join_hits(text, without_dimensions(hits, dimension), dimension)


def _dimension(
    token: Any, hit: Hit[str], tokens: Sequence[Token], positions: dict[int, int]
) -> Iterable[tuple[int, str]]:
    """The noun that a high or low pitch, volume or energy keeps."""
    if hit.word not in word_set("dimension_adjectives"):
        return []
    _, owner = _owner(token)
    noun = (
        owner.lower_ if owner is not None else voice_noun_near(tokens, positions[hit.start], english_table())
    )
    if noun in word_set("dimensions") and token.pos_ != "VERB":
        return [(hit.start, str(noun))]
    return []
