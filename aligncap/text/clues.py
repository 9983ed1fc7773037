"""Emotion clues of captions: e_1..n = G_Parser(y), the words of a caption that describe voice or feeling.

The grammar parser of AlignCap (Liang et al., EMNLP 2024), with negation and degree kept.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from aligncap.data.manifest import read_manifest, rebase, write_manifest
from aligncap.text.clue_rules import (
    chinese_clues,
    english_clues,
    english_table,
    join_hits,
    voice_noun_near,
    with_neighbours,
    word_set,
)
from aligncap.text.instruction import other_language
from aligncap.text.lexicon import Hit, Phrases, Token, is_chinese, mask_quotes, scan_english, tokenise
from aligncap.text.prompts import acoustic_prompt
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import cache_folder
from aligncap.utils.options import Config, option

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc
    from spacy.tokens import Token as Parsed

_log = logging.getLogger(__name__)
_FETCH = "`aligncap models fetch en_core_web_sm` gets it"


@dataclass
class CluesConfig(Config):
    """Find the emotion clues of every caption and write them with their acoustic prompts (P_act).

    Examples:
        aligncap clues runs/captioned.jsonl --out runs/clued.jsonl
        aligncap clues runs/captioned.jsonl --out runs/clued.jsonl --parser rules
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("manifest",)

    manifest: str = option(help="Manifest with captions.")
    out: str = option(help="Manifest to write.")
    parser: str = option("default", help="Grammar parser: default, rules (none), or a spaCy model's folder.")


def run_clues(config: CluesConfig) -> int:
    """`aligncap clues`."""
    utterances = read_manifest(config.manifest)
    errors = [
        f"{config.manifest}:{line}: {u.id}: caption {number} is in a language that there are no word "
        "lists of; clues are found in English and Chinese: translate it, or take it out"
        for line, u in enumerate(utterances, 1)
        for number, caption in enumerate(u.captions, 1)
        if other_language(caption)
    ]
    if errors:
        raise UserErrors(errors)
    parser = ClueParser(None if config.parser == "rules" else config.parser)
    found = iter(parser.parse([caption for u in utterances for caption in u.captions]))
    for u in utterances:
        u.clues = [next(found) for _ in u.captions]
        u.p_act = [acoustic_prompt(clues) for clues in u.clues]
    write_manifest(config.out, rebase(utterances, config.manifest, config.out))
    clues = [clues for u in utterances for clues in u.clues]
    total, empty = sum(map(len, clues)), sum(not c for c in clues)
    print(f"{config.out}: {total} clues in {len(clues)} captions, {empty} captions without any")
    return 0


def load_spacy(model: str) -> Language | None:
    """A spaCy pipeline with tagger, lemmatizer and parser; None when the default model is not there.

    Args:
        model: "default" for the one that `aligncap models fetch` puts into the cache, or another's folder.

    Raises:
        UserError: not a spaCy model.
    """
    default = cache_folder() / "en_core_web_sm"
    if model == "default" and not (default / "source.json").is_file():
        return None
    import spacy

    try:
        return spacy.load(default if model == "default" else model, disable=["ner"])
    except (OSError, ValueError) as error:
        raise UserError(f"{model}: not a spaCy model ({error}); {_FETCH}") from error


class ClueParser:
    """Finds the clues of captions.

    English captions are read by a dependency parse where a spaCy model is at hand, else by rules over word
    lists (noted once in the log). Chinese captions, known by their characters, are read by rules. Clues come
    in the order of the caption, in lower case, without repeats; negation and degree stay with their word.

    Args:
        model: "default" for the package's spaCy model, a folder of another, None for rules.

    Raises:
        UserError: `model` names a folder that is not a spaCy model.

    >>> ClueParser(None).parse(["She is not angry but slightly sad, and talks softly about the keys."])
    [['not angry', 'slightly sad', 'softly']]
    """

    def __init__(self, model: str | None = "default") -> None:
        self._nlp = None if model is None else load_spacy(model)
        self.path = "rules" if self._nlp is None else "parse"  # how English captions are read
        if self._nlp is None:
            reason = "asked for" if model is None else f"no spaCy model is installed: {_FETCH}"
            _log.warning("Emotion clues are found by rules, not by a grammar parse (%s).", reason)

    def parse(self, captions: Sequence[str]) -> list[list[str]]:
        """Clues of each caption; an empty list where a caption has none of voice or feeling."""
        # corpora annotated from labels repeat their captions: each is read once
        found = {caption: chinese_clues(caption) for caption in captions if is_chinese(caption)}
        english = [caption for caption in dict.fromkeys(captions) if caption not in found]
        if self._nlp is None:
            found |= {caption: english_clues(caption) for caption in english}
        else:
            texts = [mask_quotes(caption) for caption in english]
            for caption, text, doc in zip(english, texts, self._nlp.pipe(texts), strict=True):
                found[caption] = clues_of(doc, text)
        return [list(found[caption]) for caption in captions]


_OF_NOUN = ("amod", "compound", "nmod", "nummod", "poss")
_OF_SUBJECT = ("acomp", "attr", "oprd", "xcomp", "ccomp", "dobj")
_SUBJECTS = ("nsubj", "nsubjpass", "csubj")


class _Spans(Phrases[str]):
    """Accepted words by character offset, for the scan that adds negation and degree."""

    def __init__(self, spans: dict[int, tuple[int, str]]) -> None:
        self._spans = spans

    def match(self, tokens: Sequence[Token], i: int) -> tuple[int, str] | None:
        if (found := self._spans.get(tokens[i].start)) is None:
            return None
        end, kind = found
        return max(1, sum(token.end <= end for token in tokens[i:])), kind


def _first(token: Parsed) -> Parsed:
    """The first member of the list that a token belongs to ("loud and angry" -> "loud")."""
    while token.dep_ == "conj" and token.head.i != token.i:
        token = token.head
    return token


def _subject(verb: Parsed) -> Parsed | None:
    """Subject of a verb, through lists of verbs and relative clauses."""
    for _ in range(6):
        for child in verb.children:
            if child.dep_ in _SUBJECTS:
                return verb.head if child.tag_ in ("WDT", "WP") and verb.dep_ == "relcl" else child
        if verb.dep_ in ("acl", "relcl"):
            return verb.head
        if verb.dep_ not in ("conj", "xcomp", "advcl", "ccomp") or verb.head.i == verb.i:
            return None
        verb = verb.head
    return None


def _owner(token: Parsed) -> tuple[str, Parsed | None]:
    """What a word is said of: ("noun", noun), ("subject", subject), ("verb", verb) or ("", None)."""
    first = _first(token)
    head = first.head
    noun, verb = head.pos_ in ("NOUN", "PROPN", "PRON"), head.pos_ in ("VERB", "AUX")
    own = [child for child in first.children if child.dep_ in _SUBJECTS]
    if own and first.pos_ == "ADJ":
        return "subject", own[0]
    if first.dep_ in _OF_NOUN and noun:
        return "noun", head
    if first.dep_ in ("advmod", "npadvmod", "prt", "amod") and verb:
        return "verb", head
    if first.dep_ in _OF_SUBJECT and verb:
        return "subject", _subject(head)
    if first.dep_ in ("acl", "appos", "relcl") and noun:
        return "noun", head
    return ("subject", _subject(first)) if first.pos_ == "VERB" else ("", None)


def _is_in(token: Parsed, key: str) -> bool:
    return not word_set(key).isdisjoint((token.lemma_.lower(), token.lower_))


def _names(noun: Parsed) -> str:
    """What a listed noun is ("feeling noun"), "" of others."""
    tokens = tokenise(noun.lower_)
    found = english_table().match(tokens, 0) if tokens else None
    return found[1] if found else ""


def _content(doc: Doc) -> set[int]:
    """Tokens that belong to what is talked about: "about the keys", "says that the car is red"."""
    inside: set[int] = set()
    for token in doc:
        about = token.lower_ in ("about", "regarding", "concerning") and token.dep_ == "prep"
        said = token.dep_ == "ccomp" and token.head.lemma_.lower() in word_set("saying_verbs")
        if about or (said and token.i > token.head.i):
            inside.update(t.i for t in token.subtree)
    return inside


def _accepts_listed(token: Parsed, kind: str) -> bool:
    """Whether a listed, unambiguous word is said of a voice, a person or a feeling, not of a thing."""
    role, owner = _owner(token)
    if owner is None or role == "verb":
        return True
    fits = _is_in(owner, "voice_nouns") or _is_in(owner, "persons")
    if role == "noun" and kind == "adjective":
        return fits or bool(_names(owner))
    if role == "subject" and owner.pos_ == "NOUN" and kind in ("adjective", "verb"):
        return fits or owner.ent_type_ == "PERSON"
    return True


def _accepts_open(token: Parsed, listed: bool) -> bool:
    """Whether a word counts by its place in the parse: of a voice noun, after "sounds", a manner of speaking.

    `listed` words (those of voices and of things) may be of any part of speech and need less.
    """
    word, first = token.lower_, _first(token)
    if word in word_set("not_voice") or word in word_set("degree") or _opens_infinitive(token):
        return False
    role, owner = _owner(token)
    noun = token.pos_ in ("NOUN", "PROPN")
    if listed and token.pos_ == "VERB":
        if any(c.dep_ == "dobj" and _is_in(c, "voice_nouns") for c in token.children):
            return True
    if listed and noun and role != "noun":
        named = any(child.dep_ == "prep" and child.lower_ == "of" for child in token.children)
        return token.dep_ in ("pobj", "dobj", "attr", "nsubj", "conj", "oprd", "acomp") and not named
    if role == "verb" and owner is not None:
        speaking = word.endswith("ly") and owner.lemma_.lower() in word_set("speech_verbs")
        return word not in word_set("not_manner") and (listed or speaking)
    adjective = listed or "ADJ" in (token.pos_, first.pos_) or _sounds_participle(token)
    if role == "noun" and owner is not None:
        if listed and _is_in(owner, "persons"):
            return True
        fits = _is_in(owner, "voice_nouns") or _names(owner) == "feeling noun"
        return adjective and fits and first.dep_ != "poss" and (listed or not noun)
    if role == "subject" and adjective:
        verb = (first.head if first.dep_ in _OF_SUBJECT else first).lemma_.lower()
        linking = verb in word_set("linking_verbs") or _sounds_participle(first)
        heard = linking and verb != "be"
        if owner is None:
            return heard
        if _is_in(owner, "voice_nouns"):
            return linking or listed
        return _is_in(owner, "persons") and (heard or (listed and linking))
    return False


def _opens_infinitive(token: Parsed) -> bool:
    """ "hard to understand" is not a hard voice, "clear that she is sad" not a clear one."""
    last = token.i + 1 >= len(token.doc)
    return token.pos_ != "ADV" and not last and token.nbor().lower_ in word_set("clause_openers")


def _sounds_participle(token: Parsed) -> bool:
    """ "feels rehearsed", read by the parser as a passive."""
    verbs = [c.lemma_.lower() for c in token.children if c.dep_ in ("aux", "auxpass")]
    return token.tag_ == "VBN" and not {"sound", "seem", "feel", "appear"}.isdisjoint(verbs)


def _negated(token: Parsed) -> bool:
    """Whether the verb that a word completes has a "not" of its own, however far away it stands."""
    head = token.head
    if token.dep_ not in ("acomp", "attr", "oprd") or head.pos_ not in ("VERB", "AUX"):
        return False
    only = ("only", "just", "merely", "simply")
    return any(c.dep_ == "neg" and c.i < token.i and c.nbor().lower_ not in only for c in head.children)


def clues_of(doc: Doc, text: str) -> list[str]:
    """Clues of a parsed caption.

    Args:
        doc: spaCy parse of `text`.
        text: caption with quoted speech blanked out.
    """
    tokens, content, table = tokenise(text), _content(doc), english_table()
    by_offset = {token.idx: token for token in doc}
    fragment = not any(t.pos_ in ("VERB", "AUX") for t in doc)
    scanned = scan_english(text, table)
    accepted: dict[int, tuple[int, str]] = {}
    covered: set[int] = set()
    for hit in scanned:
        inside = [t for t in doc if hit.start <= t.idx < hit.end]
        if not inside or inside[0].i in content:
            continue
        covered.update(t.i for t in inside)
        if hit.word in word_set("ambiguous"):
            near = fragment or voice_noun_near(tokens, hit.token) is not None
            accept = _accepts_open(inside[0], True) or (near and not _opens_infinitive(inside[0]))
        else:
            accept = len(inside) > 1 or _accepts_listed(inside[0], hit.value)
        if accept:
            accepted[hit.start] = (hit.end, hit.value)
    spoken = [h for h in scanned if h.start not in by_offset or by_offset[h.start].i not in content]
    taken = with_neighbours(text, spoken, accepted)
    accepted |= {h.start: (h.end, h.value) for h in scanned if h.start in taken}
    for token in doc:
        if token.i in content or token.i in covered or not token.is_alpha:
            continue
        participle = token.pos_ == "VERB" and (token.dep_ == "amod" or _sounds_participle(token))
        if (token.pos_ in ("ADJ", "ADV") or participle) and _accepts_open(token, False):
            kind = "adverb" if token.pos_ == "ADV" else "adjective"
            accepted[token.idx] = (token.idx + len(token.text), kind)
    hits = scan_english(text, _Spans(accepted))
    for i, hit in enumerate(hits):
        if hit.start in by_offset and not hit.negated and _negated(by_offset[hit.start]):
            hits[i] = hit._replace(negated="not")

    def noun_of(hit: Hit[str]) -> str | None:
        anchor = by_offset.get(hit.start)
        if anchor is None or anchor.pos_ == "VERB":
            return None
        _, owner = _owner(anchor)
        return owner.lower_ if owner else voice_noun_near(tokens, hit.token)

    return join_hits(text, hits, noun_of)
