"""SAVEE: four British men, `DC_a01.wav` or `AudioData/DC/a01.wav`."""

from __future__ import annotations

import re
from pathlib import Path

from aligncap.data.corpora.common import Problem, Reading, inside, label, not_the_corpus, sound_files
from aligncap.data.manifest import Utterance

_NAME = re.compile(r"(?:(DC|JE|JK|KL)_)?(sa|su|[adfhn])(\d\d)")
_SPEAKERS = ("DC", "JE", "JK", "KL")


def read(folder: Path) -> Reading:
    """Clips; the speaker is named by the file or by its folder."""
    utterances: list[Utterance] = []
    problems: list[Problem] = []
    for path in sound_files(folder):
        match = _NAME.fullmatch(path.stem)
        speaker = match and (match[1] or path.parent.name)
        if not match or speaker not in _SPEAKERS:
            problems.append(Problem("name", inside(folder, path)))
            continue
        utterances.append(
            Utterance(
                id=f"savee-{speaker}_{match[2]}{match[3]}",
                root=str(folder),
                audio=inside(folder, path),
                corpus="savee",
                speaker=f"savee-{speaker}",
                gender="male",
                emotion=label("savee", match[2]),
            )
        )
    if not utterances:
        raise not_the_corpus("savee", folder, "DC_a01.wav or AudioData/DC/a01.wav")
    return utterances, problems
