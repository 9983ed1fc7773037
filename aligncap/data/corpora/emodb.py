"""EmoDB (Berlin, German): `wav/03a01Fa.wav`, speaker, sentence, emotion, version."""

from __future__ import annotations

import re
from pathlib import Path

from aligncap.data.corpora.common import Problem, Reading, inside, label, not_the_corpus, sound_files
from aligncap.data.manifest import Utterance

_NAME = re.compile(r"(\d\d)([ab]\d\d)([WLEAFTN])([a-z])")
_GENDERS = {
    **dict.fromkeys(("03", "10", "11", "12", "15"), "male"),
    **dict.fromkeys(("08", "09", "13", "14", "16"), "female"),
}
_SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}


def read(folder: Path) -> Reading:
    """Clips of the ten speakers and ten sentences."""
    utterances: list[Utterance] = []
    problems: list[Problem] = []
    for path in sound_files(folder):
        match = _NAME.fullmatch(path.stem)
        if not match or match[1] not in _GENDERS or match[2] not in _SENTENCES:
            problems.append(Problem("name", inside(folder, path)))
            continue
        speaker, sentence, emotion, version = match.groups()
        utterances.append(
            Utterance(
                id=f"emodb-{path.stem}",
                root=str(folder),
                audio=inside(folder, path),
                corpus="emodb",
                language="de",
                speaker=f"emodb-{speaker}",
                gender=_GENDERS[speaker],
                transcript=_SENTENCES[sentence],
                emotion=label("emodb", emotion),
                extra={"version": version},
            )
        )
    if not utterances:
        raise not_the_corpus("emodb", folder, "wav/03a01Fa.wav")
    return utterances, problems
