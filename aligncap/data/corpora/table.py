"""Corpora that users describe themselves: a CSV or TSV file with a header, or a JSONL file.

Columns are found by the manifest's field names or common other names; a map says otherwise, field -> column
(several columns joined by "+" for captions). Columns that no field claims go to `extra`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligncap.data.corpora.common import Problem, Reading, canonical, not_the_corpus, read_table
from aligncap.data.manifest import Utterance
from aligncap.utils.errors import UserError, UserErrors, nearest
from aligncap.utils.io import read_jsonl

_FIELDS: dict[str, tuple[str, ...]] = {
    "id": ("id", "utterance_id", "clip_id", "key"),
    "audio": ("audio", "path", "file", "filename", "file_name", "audio_path", "wav", "clip"),
    "corpus": ("corpus", "dataset"),
    "language": ("language", "lang"),
    "speaker": ("speaker", "speaker_id", "actor"),
    "gender": ("gender", "sex"),
    "transcript": ("transcript", "transcription", "text", "sentence"),
    "emotion": ("emotion", "label", "emotion_label"),
    "intensity": ("intensity",),
    "captions": ("captions", "caption"),
}
_GENDERS = {"f": "female", "female": "female", "woman": "female", "m": "male", "male": "male", "man": "male"}
_INTENSITIES = {"normal": "normal", "strong": "strong", "01": "normal", "02": "strong"}


def read(folder: Path, columns: Mapping[str, str] | None = None) -> Reading:
    """Rows of the one table of a folder, or of the table given itself; clips are relative to its folder.

    Args:
        columns: field -> column; fields are those of the manifest.

    Raises:
        UserError: no table or several, an unknown field or column.
        UserErrors: rows without a clip name, with an unknown emotion, gender or intensity.
    """
    path = _table(folder)
    rows = read_jsonl(path) if path.suffix == ".jsonl" else _csv(path)
    if not rows:
        raise UserError(f"{path}: holds no row")
    columns_of = _columns(path, list(dict.fromkeys(key for row in rows for key in row)), columns or {})
    utterances: list[Utterance] = []
    problems: list[Problem] = []
    errors: list[str] = []
    for number, row in enumerate(rows, 1):
        try:
            utterance = _utterance(row, columns_of, path)
        except ValueError as error:
            errors.append(f"{path}: row {number}: {error}")
            continue
        if (path.parent / utterance.audio).is_file():
            utterances.append(utterance)
        else:
            problems.append(Problem("missing", utterance.audio))
    if errors:
        raise UserErrors(errors)
    if not utterances:
        raise UserError(
            f"{path}: none of the {len(rows)} clips is there, such as {problems[0].what}; "
            f"paths are relative to {path.parent}"
        )
    return utterances, problems


def _csv(path: Path) -> list[dict[str, Any]]:
    return [dict(row) for row in read_table(path, "\t" if path.suffix == ".tsv" else ",")]


def _table(folder: Path) -> Path:
    if folder.is_file():
        return folder
    found = sorted(p for p in folder.iterdir() if p.suffix in (".csv", ".tsv", ".jsonl"))
    if not found:
        raise not_the_corpus("table", folder, "a .csv, .tsv or .jsonl file beside the clips")
    if len(found) > 1:
        raise UserError(
            f"{folder}: {len(found)} tables ({', '.join(p.name for p in found)}); give one of them"
        )
    return found[0]


def _columns(path: Path, names: list[str], given: Mapping[str, str]) -> dict[str, list[str]]:
    """Columns of each field that the table has."""
    errors = [
        f'{path}: unknown field "{f}" in the column map{nearest(f, _FIELDS)}'
        for f in given
        if f not in _FIELDS
    ]
    columns: dict[str, list[str]] = {}
    lower = {name.lower(): name for name in reversed(names)}
    for name, usual in _FIELDS.items():
        if name in given:
            columns[name] = given[name].split("+")
            errors += [
                f'{path}: no column "{c}"{nearest(c, names)}; there are {", ".join(names)}'
                for c in columns[name]
                if c not in names
            ]
        else:
            columns[name] = [lower[u] for u in usual if u in lower][:1]
    if "captions" not in given and not columns["captions"]:
        columns["captions"] = [n for n in names if n.lower().rstrip("0123456789").rstrip("_") == "caption"]
    if not columns["audio"]:
        errors.append(
            f"{path}: no column names the clips; there are {', '.join(names)}: map one, audio=COLUMN"
        )
    if errors:
        raise UserErrors(errors)
    return columns


def _utterance(row: Mapping[str, Any], columns: Mapping[str, list[str]], path: Path) -> Utterance:
    def cell(name: str) -> str | None:
        value = row.get(columns[name][0]) if columns[name] else None
        return str(value).strip() or None if value is not None else None

    audio = cell("audio")
    if audio is None:
        raise ValueError("names no clip")
    audio = audio.replace("\\", "/")
    if Path(audio).is_absolute():
        try:
            audio = Path(audio).relative_to(path.parent).as_posix()
        except ValueError:
            raise ValueError(f"{audio} lies outside {path.parent}, the table's folder") from None
    emotion, gender, intensity = cell("emotion"), cell("gender"), cell("intensity")
    if gender is not None and gender.lower() not in _GENDERS:
        raise ValueError(f'gender "{gender}" is neither female nor male')
    if intensity is not None and intensity.lower() not in _INTENSITIES:
        raise ValueError(f'intensity "{intensity}" is neither normal nor strong')
    try:
        label = canonical(emotion) if emotion else None
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    captions: list[str] = []
    for column in columns["captions"]:
        value = row.get(column)
        captions += [str(v).strip() for v in (value if isinstance(value, list) else [value]) if v is not None]
    used = {column for found in columns.values() for column in found}
    corpus = cell("corpus") or path.parent.name or "corpus"
    return Utterance(
        id=cell("id") or f"{corpus}-{Path(audio).with_suffix('').as_posix().replace('/', '-')}",
        root=str(path.parent),
        audio=audio,
        corpus=corpus,
        language=cell("language") or "en",
        speaker=cell("speaker"),
        gender=_GENDERS[gender.lower()] if gender else None,
        transcript=cell("transcript"),
        emotion=label,
        intensity=_INTENSITIES[intensity.lower()] if intensity else None,
        captions=[caption for caption in captions if caption],
        extra={key: value for key, value in row.items() if key not in used and value not in (None, "")},
    )
