"""What is wrong with a caption as a text: leaks of the transcript, quotes, broken or repeated language."""

from __future__ import annotations

import re
from functools import cache, lru_cache

from aligncap.captions.emotions import emotion_words
from aligncap.captions.lexicon import inflect, is_chinese, tokenise
from aligncap.captions.scope import mask_quotes
from aligncap.io import load_data

FILE = "rubric.yaml"
_RUN = 4  # characters of a Chinese transcript that no caption shares by chance
_RUNS = range(2, 6)  # words of a run shared with an English transcript
_APART = 3  # content words shared out of order that are no chance


def length(caption: str) -> float:
    """Words of a caption; two Chinese characters stand for one."""
    words = sum(token.text[0].isalnum() for token in tokenise(caption) if not is_chinese(token.text))
    return words + len(re.findall("[\u3400-\u9fff]", caption)) / 2


@cache
def _phrases(name: str) -> re.Pattern[str]:
    words = sorted(load_data(FILE)[name], key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, words))})(?![\w-])", re.IGNORECASE)


def tells_the_unheard(caption: str) -> bool:
    """Whether a caption tells what only eyes know."""
    return _phrases("unheard").search(caption) is not None


def speaks_of_itself(caption: str) -> bool:
    """Whether a caption is an assistant's answer ("Here is a description …") and no description."""
    return _phrases("about_itself").search(caption) is not None


def quotes(caption: str) -> bool:
    """Whether a caption quotes two words or more (of Chinese, four characters)."""
    return length(caption) - length(mask_quotes(caption)) >= 2


@cache
def _describing() -> frozenset[str]:
    """Words that describe any voice, so no sign of a leak."""
    return frozenset(load_data(FILE)["small_words"]) | inflect(load_data("voice_words.yaml")["en"]["words"])


@lru_cache(maxsize=1 << 12)
def _words(text: str) -> list[str]:
    """Words in order; small words, emotion words and words for voices as "", so that content stands out."""
    feelings = [(m.start, m.start + len(m.word)) for m in emotion_words(text)]
    return [
        "" if t.text in _describing() or any(a <= t.start < b for a, b in feelings) else t.text
        for t in tokenise(text)
        if t.text[0].isalpha()
    ]


@lru_cache(maxsize=1 << 16)
def leaks(caption: str, transcript: str | None) -> bool:
    """Whether a caption tells what was said in the clip.

    It does where it shares two content words with the transcript that stand in one run of words, or that
    are half of the transcript's content, or three anywhere. Words that describe any voice are no content. A
    Chinese caption leaks where it shares four characters in a row.
    """
    if not transcript:
        return False
    if is_chinese(transcript):
        plain = re.sub(r"\W", "", transcript)
        return any(plain[i : i + _RUN] in caption for i in range(len(plain) - _RUN + 1))
    said, source = _words(caption), _words(transcript)
    shared = (set(said) & set(source)) - {""}
    if len(shared) < 2:
        return False
    if len(shared) >= min(_APART, len(set(source) - {""}) / 2):
        return True
    spoken = [t.text for t in tokenise(transcript) if t.text[0].isalpha()]
    runs = {tuple(spoken[i : i + n]) for n in _RUNS for i in range(len(spoken) - n + 1)}
    told = [t.text for t in tokenise(caption) if t.text[0].isalpha()]
    return any(
        tuple(told[i : i + n]) in runs and len(set(said[i : i + n]) & shared) > 1
        for n in _RUNS
        for i in range(len(told) - n + 1)
    )


def disfluencies(caption: str) -> list[tuple[str, str]]:
    """(name of the rule, reason) of everything wrong with the language, by rules alone."""
    found: list[tuple[str, str]] = []
    words = [t.text for t in tokenise(caption) if t.text[0].isalnum()]
    if words and words[-1] in load_data(FILE)["dangling"]:
        found.append(("unfinished", "breaks off"))
    elif not caption.rstrip(" \"'”’").endswith((".", "!", "?", "。", "！", "？")):
        found.append(("no_stop", "has no full stop"))
    joined = [w for w in words if w not in ("and", "but", "or", "very", "a", "so")]  # "lively and lively"
    if any(a == b for a, b in zip(joined, joined[1:], strict=False)):
        found.append(("doubled_word", "doubles a word"))
    content = [word for word in words if word not in load_data(FILE)["small_words"]]
    runs = list(zip(words, words[1:], words[2:], strict=False))
    if len(set(runs)) < len(runs) or any(content.count(word) > 2 for word in content):
        found.append(("repeated", "repeats itself"))
    elif len(set(content)) < len(content):
        found.append(("echo", "uses a word twice"))
    return found
