"""Does a caption do what was asked, to describe how a voice sounds? Breaches (docs/hallucination.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial

from aligncap.text.claims import claims_of, gender_words, manner_mentions, speech_verbs
from aligncap.text.claims import listed as claim_list
from aligncap.text.emotions import feelings
from aligncap.text.lexicon import is_chinese, mask_quotes, phrase_pattern, tokenise, voice_words, word_list
from aligncap.text.prompts import Language
from aligncap.text.rubric import disfluencies, length, tells_the_unheard
from aligncap.utils.io import load_data

FILE = "breach_words.yaml"
BREACHES = tuple(
    "empty question refusal meta list answer first_person language too_long repetition fragment scene "
    "not_the_voice".split()
)

_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)
_FIELD = re.compile(r"(?:^|[\n,;.{|])\s*\"?[^\W\d_][\w ]{0,20}\"?\s*[:：]")
_TRIPLED = re.compile(r"(?<!\S)((?:\S+ ){2,8})\1\1")  # two to eight words three times in a row
_SYLLABLES = re.compile("[\u3041-\u3096\u30a1-\u30fa\uac00-\ud7af]")  # Japanese kana, Korean
_LEAST = 3  # words of a caption
_ENOUGH = 6  # words from which half of them must be different

_listed, _phrases = partial(word_list, FILE), partial(phrase_pattern, FILE)


def language_of(references: Iterable[str]) -> Language:
    """The language that captions are asked for: Chinese where most references are, else English."""
    chinese = [is_chinese(text) for text in references]
    return "zh" if chinese and 2 * sum(chinese) > len(chinese) else "en"


def other_language(caption: str) -> bool:
    """Whether a caption, less what it quotes, is in neither language that there are word lists of.

    >>> [other_language(text) for text in ("Die Stimme klingt sehr traurig.", "她很悲伤")]
    [True, False]
    """
    text = mask_quotes(caption)
    words = list(dict.fromkeys(t.text for t in tokenise(text)))
    return bool(_SYLLABLES.search(text)) or (not is_chinese(text) and _foreign(text, words))


@lru_cache(maxsize=1 << 16)
def breaches(caption: str, language: Language = "en") -> tuple[str, ...]:
    """Names out of BREACHES of all that makes a caption no description of a voice, in that order.

    Quoted speech is left out, as in every reader of captions. An empty caption is empty and nothing else.

    >>> breaches("Sure! What does he sound like?")
    ('question', 'meta', 'not_the_voice')
    """
    text = mask_quotes(caption)
    words = [t.text for t in tokenise(text) if t.text[0].isalnum()]
    if not words:
        # all of it quoted: words, yet none about the voice
        return ("not_the_voice",) if any(c.isalnum() for c in caption) else ("empty",)
    chinese = is_chinese(text)
    addressed = not _listed("second_person").isdisjoint(words) and not _phrases("hearers").search(text)
    itself = {token.text for token in tokenise(_phrases("listeners").sub("", text))} & _listed("first_person")
    found = {
        "question": text.rstrip(" \"'”’*").endswith(("?", "？")),
        "refusal": _phrases("refusal").search(text) is not None,
        "meta": _phrases("meta").search(text) is not None or _opens(words, text, "openings"),
        "list": len(_ITEM.findall(caption)) > 1 or len(_FIELD.findall(caption)) > 1,
        "answer": _opens(words, text, "answers") or addressed,
        "first_person": bool(itself),
        "language": (language == "zh") != chinese if chinese or language == "zh" else _foreign(text, words),
        "too_long": length(caption) > load_data(FILE)["longest"],
        "repetition": _repeats(list(re.sub(r"\W", "", text)) if chinese else words, chinese),
        "fragment": not chinese and _fragment(text, words),
        "scene": tells_the_unheard(text) or _phrases("scene").search(text) is not None,
        "not_the_voice": not _tells_of_the_voice(text, chinese),
    }
    return tuple(name for name in BREACHES if found.get(name))


def _opens(words: Sequence[str], text: str, key: str) -> bool:
    """Whether a text begins with one of these words, set apart from what follows."""
    if words[0] not in _listed(key):
        return False
    rest = text.lower().split(words[0], 1)[1].lstrip()
    return rest[:1] in (",", "!", ".", ":", "") or (len(words) > 1 and words[1] in ("i", "you"))


def _foreign(text: str, words: Sequence[str]) -> bool:
    """Whether an expected English text is in another script or, by common words, another language."""
    letters = [c for c in text if c.isalpha()]
    if sum(ord(c) > 0x24F for c in letters) > len(letters) / 2:
        return True
    own = sum(word in word_list("rubric.yaml", "small_words") for word in words)
    languages = [_listed("languages", name) for name in load_data(FILE)["languages"]]
    return any(sum(word in common for word in words) > max(1, own) for common in languages)


def _repeats(words: Sequence[str], chinese: bool) -> bool:
    """Whether a sequence of words stands three times in a row, or hardly any word is new."""
    if _TRIPLED.search(" ".join(words) + " "):
        return True
    if chinese:
        return False
    threes = zip(words, words[1:], words[2:], strict=False)
    tripled = any(a == b == c and a not in _listed("doubled") for a, b, c in threes)
    return tripled or (len(words) >= _ENOUGH and 2 * len(set(words)) < len(words))


def _fragment(text: str, words: Sequence[str]) -> bool:
    """Whether a text is too short, breaks off, or is bare words without anything that they are said of."""
    # "he shouts at her." is whole
    unfinished = any(name == "unfinished" for name, _ in disfluencies(text)) and not text.endswith("her.")
    if len(words) < _LEAST or unfinished:
        return True
    said_of = (claim_list("nouns", kind) for kind in ("voice", "pitch", "rate", "volume", "person"))
    sentence = _listed("verbs"), speech_verbs(), claim_list("persons")  # what makes one, beside a noun
    if not all(known.isdisjoint(words) for known in (*sentence, *said_of)):
        return False
    tokens = tokenise(text)
    return not any(gender_words().match(tokens, i) for i in range(len(tokens)))


def _tells_of_the_voice(text: str, chinese: bool) -> bool:
    """Whether a text has an emotion word, a word for a voice or a claim about one; a gender is not enough."""
    if feelings(text):
        return True
    if chinese:
        return any(word in text for word in word_list("voice_words.yaml", "zh", "words"))
    in_words = not voice_words().isdisjoint(t.text for t in tokenise(text))
    return in_words or bool(manner_mentions(text) or claims_of(text))
