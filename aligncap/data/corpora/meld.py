"""MELD: `train_sent_emo.csv` and `train/dia0_utt0.wav` (the films' sound), likewise dev and test."""

from __future__ import annotations

import re
from pathlib import Path

from aligncap.data.corpora.common import (
    Problem,
    Reading,
    inside,
    label,
    need_columns,
    not_the_corpus,
    read_table,
    sound_files,
)
from aligncap.data.manifest import Utterance
from aligncap.utils.errors import UserErrors

_NAME = re.compile(r"(?:final_videos_test)?(dia\d+_utt\d+)")
_COLUMNS = {"Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID"}
_GENDERS = {
    **dict.fromkeys(("Monica", "Phoebe", "Rachel"), "female"),
    **dict.fromkeys(("Chandler", "Joey", "Ross"), "male"),
}
_C1 = str.maketrans(
    {"\x91": "'", "\x92": "'", "\x93": '"', "\x94": '"', "\x85": "...", "\x96": "-", "\x97": "-"}
)


def read(folder: Path) -> Reading:
    """Rows of the three tables; a row's part is told by the clip's folder, whose name holds the part's."""
    tables = {part: sorted(folder.rglob(f"{part}_sent_emo.csv")) for part in ("train", "dev", "test")}
    clips = _clips(folder)
    utterances: list[Utterance] = []
    problems: list[Problem] = []
    for part, found in tables.items():
        rows = read_table(found[0]) if found else []
        if found:
            need_columns(rows, _COLUMNS, found[0])
        for row in rows:
            name = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
            path = clips.pop((part, name), None)
            if path is None:
                problems.append(Problem("missing", f"{part}/{name}"))
                continue
            try:
                emotion = label("meld", row["Emotion"])
            except KeyError:
                problems.append(Problem("label", f'{part}/{name}: unknown emotion "{row["Emotion"]}"'))
                continue
            utterances.append(
                Utterance(
                    id=f"meld-{part}-{name}",
                    root=str(folder),
                    audio=inside(folder, path),
                    corpus="meld",
                    speaker=f"meld-{row['Speaker']}",
                    gender=_GENDERS.get(row["Speaker"]),
                    transcript=row["Utterance"].translate(_C1),
                    emotion=emotion,
                    extra={"part": part, "sentiment": row.get("Sentiment", "")},
                )
            )
    problems += [Problem("name", f"{inside(folder, path)}: in no table") for path in clips.values()]
    if not utterances:
        raise not_the_corpus("meld", folder, "train_sent_emo.csv and train/dia0_utt0.wav")
    return utterances, problems


def _clips(folder: Path) -> dict[tuple[str, str], Path]:
    found: dict[tuple[str, str], Path] = {}
    errors = []
    for path in sound_files(folder):
        match = _NAME.fullmatch(path.stem)
        folders = "/".join(path.relative_to(folder).parts[:-1]).lower()
        part = next((p for p in ("train", "dev", "test") if p in folders), "")
        key = part, match[1] if match else path.stem
        if key in found:
            errors.append(f"{path}: same clip as {found[key]}; leave one of them out")
        found[key] = path
    if errors:
        raise UserErrors(errors)
    return found
