"""CREMA-D: `AudioWAV/1001_DFA_ANG_XX.wav`; genders from `VideoDemographics.csv` where it is there."""

from __future__ import annotations

import re
from pathlib import Path

from aligncap.data.corpora.common import (
    Problem,
    Reading,
    inside,
    label,
    not_the_corpus,
    read_table,
    sound_files,
)
from aligncap.data.manifest import Utterance

_NAME = re.compile(r"(1\d{3})_([A-Z]{3})_([A-Z]{3})_(LO|MD|HI|XX|X)")
_SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
_INTENSITIES = {"MD": "normal", "HI": "strong"}  # LO is weaker than the manifest's scale and stays in extra
# From VideoDemographics.csv, for those who have the sound folder alone; the other actors are men.
_WOMEN = frozenset(
    "1002 1003 1004 1006 1007 1008 1009 1010 1012 1013 1018 1020 1021 1024 1025 1028 1029 1030 1037 1043 "
    "1046 1047 1049 1052 1053 1054 1055 1056 1058 1060 1061 1063 1072 1073 1074 1075 1076 1078 1079 1082 "
    "1084 1089 1091".split()
)


def read(folder: Path) -> Reading:
    """Clips with the sentence that the file name encodes."""
    genders = _genders(folder)
    utterances: list[Utterance] = []
    problems: list[Problem] = []
    for path in sound_files(folder):
        match = _NAME.fullmatch(path.stem)
        if not match or match[2] not in _SENTENCES:
            problems.append(Problem("name", inside(folder, path)))
            continue
        actor, sentence, code, level = match.groups()
        try:
            emotion = label("crema-d", code)
        except KeyError:
            problems.append(Problem("label", f'{inside(folder, path)}: unknown emotion "{code}"'))
            continue
        utterances.append(
            Utterance(
                id=f"crema-d-{path.stem}",
                root=str(folder),
                audio=inside(folder, path),
                corpus="crema-d",
                speaker=f"crema-d-{actor}",
                gender=genders.get(actor) or ("female" if actor in _WOMEN else "male"),
                transcript=_SENTENCES[sentence],
                emotion=emotion,
                intensity=_INTENSITIES.get(level),
                extra={"level": level},
            )
        )
    if not utterances:
        raise not_the_corpus("crema-d", folder, "AudioWAV/1001_DFA_ANG_XX.wav")
    return utterances, problems


def _genders(folder: Path) -> dict[str, str]:
    tables = [*folder.rglob("VideoDemographics.csv"), *folder.parent.glob("VideoDemographics.csv")]
    if not tables:
        return {}
    return {
        row["ActorID"]: row["Sex"].lower()
        for row in read_table(tables[0])
        if row.get("ActorID") and row.get("Sex", "").lower() in ("female", "male")
    }
