"""Answers to instructions that ask for a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aligncap.text.emotions import chinese_forms, english_forms

NONE = "none"  # in place of the label of a caption or an answer that gives none
_ENDS = " .。!！\"'“”「」"


def plain(caption: str) -> str:
    """A caption without what makes no difference to whether it was said before: case, spaces, a full stop."""
    return " ".join(caption.lower().split()).rstrip(" .。!！")


def read_answer(text: str, labels: Sequence[str], label_map: Mapping[str, str] | None = None) -> str:
    """The label that an answer gives, NONE of an invalid one.

    >>> labels = ["angry", "sad"]
    >>> [read_answer(text, labels) for text in ("Angry.", "悲伤", "sadness", "happy", "The emotion is sad.")]
    ['angry', 'sad', 'sad', 'none', 'none']
    """
    word = plain(text).strip(_ENDS)
    label = word if word in labels else english_forms().get(word) or chinese_forms().get(word, NONE)
    label = (label_map or {}).get(label, label)
    return label if label in labels else NONE
