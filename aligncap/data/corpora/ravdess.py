"""RAVDESS, speech part: `Actor_XX/MM-VC-EE-II-SS-RR-AA.wav`, also inside `Audio_Speech_Actors_01-24/`."""

from __future__ import annotations

import re
from pathlib import Path

from aligncap.data.corpora.common import Problem, Reading, inside, label, not_the_corpus, sound_files
from aligncap.data.manifest import Utterance

_NAME = re.compile(r"03-01-(0[1-8])-(0[12])-(0[12])-(0[12])-(\d\d)")
_SONG_OR_FILM = re.compile(r"0[123]-0[12](-\d\d){5}")
_SENTENCES = {"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."}
_INTENSITIES = {"01": "normal", "02": "strong"}


def read(folder: Path) -> Reading:
    """Spoken clips; songs and soundtracks of the films in the same folder are reported, not read."""
    utterances: list[Utterance] = []
    problems: list[Problem] = []
    for path in sound_files(folder):
        match = _NAME.fullmatch(path.stem)
        if not match:
            other = _SONG_OR_FILM.fullmatch(path.stem)
            why = ": a song or a film's sound, speech is 03-01-..." if other else ""
            problems.append(Problem("name", inside(folder, path) + why))
            continue
        emotion, intensity, sentence, repetition, actor = match.groups()
        utterances.append(
            Utterance(
                id=f"ravdess-{path.stem}",
                root=str(folder),
                audio=inside(folder, path),
                corpus="ravdess",
                speaker=f"ravdess-{actor}",
                gender="male" if int(actor) % 2 else "female",
                transcript=_SENTENCES[sentence],
                emotion=label("ravdess", emotion),
                intensity=_INTENSITIES[intensity],
                extra={"repetition": int(repetition)},
            )
        )
    if not utterances:
        raise not_the_corpus("ravdess", folder, "Actor_01/03-01-01-01-01-01-01.wav (or .flac)")
    return utterances, problems
