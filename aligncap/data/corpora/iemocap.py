"""IEMOCAP: `Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav` with labels and transcripts."""

from __future__ import annotations

import re
from pathlib import Path

from aligncap.data.corpora.common import (
    Problem,
    Reading,
    by_stem,
    inside,
    label,
    not_the_corpus,
    read_text,
    sound_files,
)
from aligncap.data.manifest import Utterance

_LINE = re.compile(r"\[[\d.]+ - [\d.]+\]\t(Ses\S+)\t([a-z]{3})\t\[([\d., ]+)\]")
_WORDS = re.compile(r"(Ses\S+) \[[\d.]+-[\d.]+\]: (.*)")
_NAME = re.compile(r"Ses0(\d)[FM]_\w+_([FM])\w*\d+")


def read(folder: Path) -> Reading:
    """Labelled utterances; where the annotators did not agree the emotion is left open."""
    labels: dict[str, tuple[str, list[float]]] = {}
    words: dict[str, str] = {}
    for table in sorted(folder.rglob("EmoEvaluation/Ses*.txt")):
        for name, code, scores in _LINE.findall(read_text(table)):
            labels[name] = code, [float(score) for score in scores.split(",")]
    for table in sorted(folder.rglob("transcriptions/Ses*.txt")):
        words.update((m[1], m[2].strip()) for m in map(_WORDS.match, read_text(table).splitlines()) if m)
    found = (p for p in sound_files(folder) if "sentences" in p.relative_to(folder).parts)
    clips = by_stem(found)
    utterances: list[Utterance] = []
    problems: list[Problem] = []
    for name, (code, scores) in labels.items():
        match = _NAME.fullmatch(name)
        path = clips.pop(name, None)
        if match is None or path is None:
            problems.append(Problem("missing" if match else "name", name))
            continue
        try:
            emotion = label("iemocap", code)
        except KeyError:
            problems.append(Problem("label", f'{name}: unknown emotion "{code}"'))
            continue
        utterances.append(
            Utterance(
                id=f"iemocap-{name}",
                root=str(folder),
                audio=inside(folder, path),
                corpus="iemocap",
                speaker=f"iemocap-{match[1]}{match[2]}",
                gender="female" if match[2] == "F" else "male",
                transcript=words.get(name),
                emotion=emotion,
                extra={"code": code}
                | dict(zip(("valence", "activation", "dominance"), scores, strict=False)),
            )
        )
    problems += [Problem("name", f"{inside(folder, path)}: has no label") for path in clips.values()]
    if not utterances:
        raise not_the_corpus(
            "iemocap",
            folder,
            "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt and "
            "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav",
        )
    return utterances, problems
