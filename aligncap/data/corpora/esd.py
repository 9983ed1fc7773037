"""ESD: `0011/Angry/0011_000351.wav` (or in train/, evaluation/, test/ below it) and `0011/0011.txt`."""

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

_NAME = re.compile(r"(00(?:0[1-9]|1\d|20))_(\d{6})")
_WOMEN = frozenset("0001 0002 0003 0007 0009 0015 0016 0017 0018 0019".split())
_EMOTIONS = ("Angry", "Happy", "Neutral", "Sad", "Surprise")
_PARTS = ("train", "evaluation", "test")


def read(folder: Path) -> Reading:
    """Clips, with the transcripts of the speakers' text files; 0001 to 0010 are Chinese, the rest English."""
    transcripts = _transcripts(folder)
    utterances: list[Utterance] = []
    problems: list[Problem] = []
    for path in sound_files(folder):
        match = _NAME.fullmatch(path.stem)
        emotion = next((e for e in _EMOTIONS if e in path.parts[-3:-1]), None)
        if not match or emotion is None:
            problems.append(Problem("name", inside(folder, path)))
            continue
        speaker = match[1]
        part = path.parent.name if path.parent.name in _PARTS else None
        utterances.append(
            Utterance(
                id=f"esd-{path.stem}",
                root=str(folder),
                audio=inside(folder, path),
                corpus="esd",
                language="zh" if int(speaker) <= 10 else "en",
                speaker=f"esd-{speaker}",
                gender="female" if speaker in _WOMEN else "male",
                transcript=transcripts.get(path.stem),
                emotion=label("esd", emotion),
                extra={"part": part} if part else {},
            )
        )
    if not utterances:
        raise not_the_corpus("esd", folder, "0011/Angry/0011_000351.wav")
    return utterances, problems


def _transcripts(folder: Path) -> dict[str, str]:
    """Lines `0011_000001<tab>text<tab>emotion`; some speakers' files have spaces in place of tabs."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("00[0-2][0-9].txt")):
        for line in read_text(path).splitlines():
            name, _, rest = line.strip().partition("\t" if "\t" in line else " ")
            text = re.sub(r"[\t ]+\S+$", "", rest.strip())  # the last column is the emotion
            if _NAME.fullmatch(name.strip()) and text:
                found[name.strip()] = text
    return found
