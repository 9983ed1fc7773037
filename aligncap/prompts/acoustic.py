"""The acoustic prompt P_act = Insert(P_T, idx, e_1..n) that tells the text teacher how the voice sounds.

From AlignCap (Liang et al., EMNLP 2024). It is made from a reference caption, so it exists for the teacher
and in training only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aligncap.captions.lexicon import is_chinese
from aligncap.errors import UserError
from aligncap.io import load_data


def measured_cues(cue_words: Mapping[str, str] | None) -> str:
    """The second kind of acoustic prompt: what was measured in the clip, which a student may be shown.

    >>> measured_cues({"pitch": "low", "rate": "fast"})
    'pitch low, rate fast'
    """
    if not cue_words:
        return str(load_data("templates.yaml")["no_cues"])
    return ", ".join(f"{name} {word}" for name, word in cue_words.items())


def acoustic_prompt(clues: Sequence[str], template: str = "voice", language: str | None = None) -> str:
    """Clues e_1..n inserted into the template P_T at its slot.

    Args:
        clues: clues in the order of the caption, as `ClueParser.parse` gives them. None at all gives the
            template's own words for an unknown voice, so that the teacher's prompt keeps its form.
        template: key under `acoustic` of data/prompts.yaml.
        language: "en" or "zh"; by default Chinese where any clue has Chinese characters.

    Raises:
        UserError: unknown template or language.

    >>> acoustic_prompt(["angry", "very loud", "not calm"])
    'Voice: angry, very loud, not calm.'
    """
    templates = load_data("prompts.yaml")["acoustic"]
    if template not in templates:
        raise UserError(
            f"data/prompts.yaml: no acoustic template {template!r}; choose one of {', '.join(templates)}"
        )
    kept = list(dict.fromkeys(clue.strip() for clue in clues if clue.strip()))
    language = language or ("zh" if any(map(is_chinese, kept)) else "en")
    if language not in templates[template]:
        raise UserError(
            f"data/prompts.yaml: acoustic template {template!r} lacks language {language!r}; it has en and zh"
        )
    words = templates[template][language]
    if not kept:
        return str(words["none"])
    # not str.format: a clue is taken from a caption and may hold braces
    return str(words["text"]).replace("{clues}", str(words["separator"]).join(kept))
