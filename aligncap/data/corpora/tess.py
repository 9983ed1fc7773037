"""TESS: two Canadian women, `OAF_angry/OAF_back_angry.wav`, "Say the word back"."""

from __future__ import annotations

import re
from pathlib import Path

from aligncap.data.corpora.common import Problem, Reading, inside, label, not_the_corpus, sound_files
from aligncap.data.manifest import Utterance

# One clip of the release is named OA_bite_neutral.
_NAME = re.compile(r"(OAF?|YAF)_([A-Za-z]+)_(angry|disgust|fear|happy|neutral|ps|sad)")


def read(folder: Path) -> Reading:
    """Clips of the older (OAF) and the younger (YAF) speaker."""
    utterances: list[Utterance] = []
    problems: list[Problem] = []
    for path in sound_files(folder):
        match = _NAME.fullmatch(path.stem)
        if not match:
            problems.append(Problem("name", inside(folder, path)))
            continue
        speaker = "YAF" if match[1] == "YAF" else "OAF"
        utterances.append(
            Utterance(
                id=f"tess-{speaker}_{match[2]}_{match[3]}",
                root=str(folder),
                audio=inside(folder, path),
                corpus="tess",
                speaker=f"tess-{speaker}",
                gender="female",
                transcript=f"Say the word {match[2].lower()}.",
                emotion=label("tess", match[3]),
            )
        )
    if not utterances:
        raise not_the_corpus("tess", folder, "OAF_angry/OAF_back_angry.wav")
    return utterances, problems
