"""JL-Corpus (New Zealand English): `female1_angry_10a_1.wav` with its words in a .txt of the same name."""

from __future__ import annotations

import re
from pathlib import Path

from aligncap.data.corpora.common import (
    Problem,
    Reading,
    inside,
    label,
    not_the_corpus,
    read_text,
    sound_files,
)
from aligncap.data.manifest import Utterance

_NAME = re.compile(r"((female|male)[12])_([a-z]+)_(\d+[ab])_([12])")


def read(folder: Path) -> Reading:
    """Clips of the five primary and five secondary emotions."""
    utterances: list[Utterance] = []
    problems: list[Problem] = []
    for path in sound_files(folder):
        match = _NAME.fullmatch(path.stem)
        if not match:
            problems.append(Problem("name", inside(folder, path)))
            continue
        speaker, gender, code, sentence, repetition = match.groups()
        try:
            emotion = label("jl-corpus", code)
        except KeyError:
            problems.append(Problem("label", f'{inside(folder, path)}: unknown emotion "{code}"'))
            continue
        words = path.with_suffix(".txt")
        utterances.append(
            Utterance(
                id=f"jl-corpus-{path.stem}",
                root=str(folder),
                audio=inside(folder, path),
                corpus="jl-corpus",
                speaker=f"jl-corpus-{speaker}",
                gender=gender,
                transcript=read_text(words).strip() or None if words.is_file() else None,
                emotion=emotion,
                extra={"sentence": sentence, "repetition": int(repetition), "code": code},
            )
        )
    if not utterances:
        raise not_the_corpus("jl-corpus", folder, "female1_angry_10a_1.wav")
    return utterances, problems
