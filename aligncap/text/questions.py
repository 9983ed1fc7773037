"""Questions about a voice and their answers, from the words of `data/instructions.yaml`.

A model that learns from them answers other instructions than "describe": it names the emotion, chooses it
from a given set, gives its reasons, or tells two emotions apart, in English and in Chinese.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from aligncap.data.manifest import Utterance
from aligncap.text.emotions import words_of
from aligncap.text.instruction import language_of
from aligncap.text.prompts import Language
from aligncap.text.sentences_zh import WRITERS
from aligncap.utils.io import load_data

FILE = "instructions.yaml"
KINDS = ("caption", "label", "choice", "reason", "compare")
TOLD = "told"  # beside them where it is asked for: the question tells an emotion, the answer is the voice's
SETS = 0.5  # how often a choice is among all labels; else among some


def label_word(label: str, language: Language = "en") -> str:
    """The plain word that answers name a label by.

    >>> label_word("fearful"), label_word("fearful", "zh")
    ('fearful', '恐惧')
    """
    return words_of(label, "zh")[0] if language == "zh" else label


def label_question(labels: Sequence[str], language: Language = "en") -> str:
    """The instruction to choose among labels, in their order."""
    words = load_data(FILE)[language]
    listed = words["separator"].join(label_word(label, language) for label in labels)
    return str(words["choice"][0]).format(labels=listed)


def add_questions(
    u: Utterance,
    count: int,
    rng: Random,
    *,
    labels: Sequence[str],
    languages: Sequence[Language],
    keep: bool = False,
    told: int = 0,
) -> None:
    """Put `count` questions and answers in place of an utterance's captions.

    Args:
        labels, languages: of `write_questions`.
        keep: the captions are a person's: each becomes the answer to a question for a description.
        told: how many of them tell an emotion; none of a clip without one.
    """
    own = u.captions if keep else []
    asked = [rng.choice(load_data(FILE)[language_of([text])]["caption"]) for text in own]
    kinds = KINDS[1:] if own else KINDS
    told = min(told, count) if u.emotion else 0
    facts = u.emotion, u.intensity, u.gender, u.cue_words
    given: dict[str, Any] = {"labels": labels, "languages": languages}
    pairs = write_questions(*facts, count - told, rng, kinds=kinds, **given)
    pairs += write_questions(*facts, told, rng, kinds=[TOLD], **given)
    u.instructions = [*asked, *(question for question, _ in pairs)]
    u.captions = [*own, *(answer for _, answer in pairs)]


def write_questions(
    emotion: str | None,
    intensity: str | None,
    gender: str | None,
    facts: Mapping[str, str],
    count: int,
    rng: Random,
    *,
    labels: Sequence[str],
    languages: Sequence[Language],
    kinds: Sequence[str] = KINDS,
) -> list[tuple[str, str]]:
    """Up to `count` different (instruction, answer) pairs, the kinds and languages in turn.

    Args:
        emotion, intensity, gender, facts: as in `sentences.write_captions`; without an emotion only captions
            are asked for.
        labels: the emotions that may be asked about; fewer than two: nothing is to be chosen.
        kinds: some of KINDS, and TOLD.
    """
    able = [kind for kind in kinds if kind == "caption" or emotion]
    able = [kind for kind in able if kind not in ("choice", "compare") or {*labels} - {emotion}]
    turns = [(kind, language) for language in languages for kind in able]
    rng.shuffle(turns)
    written: dict[tuple[str, str], None] = {}
    for kind, language in turns * (2 + count // max(1, len(turns))):
        if len(written) == count:
            break
        words = load_data(FILE)[language]
        named = label_word(emotion, language) if emotion else ""
        slots, answer = {}, words["answer"].format(emotion=named)
        if kind in ("caption", "reason"):
            named_in = emotion if kind == "caption" else None
            said = WRITERS[language](named_in, intensity, gender, facts, 1, rng)
            if not said:
                continue
            answer = said[0]
            if kind == "reason":
                first = named[0].upper() + named[1:]
                answer = words["reasoned"].format(emotion=first, facts=said[0])
        elif kind in ("choice", "compare"):
            others = rng.sample(sorted({*labels} - {emotion}), len({*labels} - {emotion}))
            some = len(others) if rng.random() < SETS else rng.randint(1, len(others))
            asked = [emotion, *others[: 1 if kind == "compare" else some]]
            rng.shuffle(asked)
            told = [label_word(str(label), language) for label in asked]
            slots = {"labels": words["separator"].join(told), "a": told[0], "b": told[-1]}
        elif kind == TOLD:
            lie = rng.choice(sorted({*labels, *([emotion] if emotion else [])}))  # now and then it is true
            said = rng.choice(words["said"].get(lie, words["said"]["neutral"]))
            slots = {"told": label_word(lie, language), "said": said}
        written[rng.choice(words[kind]).format_map(slots), answer] = None
    return list(written)
