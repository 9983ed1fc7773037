"""Corpora that users describe themselves: a CSV or TSV file with a header, or a JSONL file.

Columns are found by the manifest's field names or common other names; a map says otherwise, field -> column
(several columns joined by "+" for captions). Columns that no field claims go to `extra`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from aligncap.data.corpora.files import canonical, read_table
from aligncap.data.corpora.registry import Corpus, CorpusFolder
from aligncap.data.manifest import Utterance
from aligncap.utils.errors import UserError, UserErrors, nearest
from aligncap.utils.io import load_data, read_jsonl

_DATA = load_data("corpora.yaml")
_FIELDS: dict[str, list[str]] = _DATA["columns"]
_GENDERS: dict[str, str] = _DATA["genders"]
_INTENSITIES: dict[str, str] = _DATA["intensities"]
_LAYOUT = "a .csv, .tsv or .jsonl file beside the clips"


@Corpus("csv", _LAYOUT, is_table=True)
@Corpus("jsonl", _LAYOUT, is_table=True)
def table(folder: CorpusFolder) -> Iterator[Utterance]:
    """Rows of the one table of a folder, or of the table given itself; clips are relative to its folder.

    Raises:
        UserError: several tables, an unknown field or column.
        UserErrors: rows without a clip name, with an unknown emotion, gender or intensity.
    """
    path = folder.path
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix in (".csv", ".tsv", ".jsonl"))
        if len(found) > 1:
            names = ", ".join(p.name for p in found)
            raise UserError(f"{path}: {len(found)} tables ({names}); give one of them")
        if not found:
            return
        path = found[0]
    delimiter = "\t" if path.suffix == ".tsv" else ","
    rows: Sequence[Mapping[str, object]]
    rows = read_jsonl(path) if path.suffix == ".jsonl" else read_table(path, delimiter, guess=False)
    if not rows:
        raise UserError(f"{path}: holds no row")
    columns = _columns(path, list(dict.fromkeys(key for row in rows for key in row)), folder.columns)
    utterances: list[Utterance] = []
    errors: list[str] = []
    for number, row in enumerate(rows, 1):
        try:
            utterance = _utterance(row, columns, path)
        except (ValueError, KeyError) as error:
            errors.append(f"{path}: row {number}: {error.args[0]}")
            continue
        if (path.parent / utterance.audio).is_file():
            utterances.append(utterance)
        else:
            folder.leave_out("missing", utterance.audio)
    if errors:
        raise UserErrors(errors)
    if not utterances:
        example = f"such as {folder.problems[0].what}; paths are relative to {path.parent}"
        raise UserError(f"{path}: none of the {len(rows)} clips is there, {example}")
    yield from utterances


def _columns(path: Path, names: list[str], given: Mapping[str, str]) -> dict[str, list[str]]:
    """Columns of each field that the table has."""
    unknown = [name for name in given if name not in _FIELDS]
    errors = [f'{path}: unknown field "{f}" in the column map{nearest(f, _FIELDS)}' for f in unknown]
    columns: dict[str, list[str]] = {}
    listed = ", ".join(names)
    lower = {name.lower(): name for name in reversed(names)}
    for name, usual in _FIELDS.items():
        if name in given:
            columns[name] = given[name].split("+")
            absent = [c for c in columns[name] if c not in names]
            errors += [f'{path}: no column "{c}"{nearest(c, names)}; there are {listed}' for c in absent]
        else:
            columns[name] = [lower[u] for u in usual if u in lower][:1]
    if "captions" not in given:
        numbered = [n for n in names if n.lower().rstrip("0123456789").rstrip("_") == "caption"]
        columns["captions"] = list(dict.fromkeys([*columns["captions"], *numbered]))
    if not columns["audio"]:
        errors.append(f"{path}: no column names the clips; there are {listed}: map one, audio=COLUMN")
    if errors:
        raise UserErrors(errors)
    return columns


def _utterance(row: Mapping[str, object], columns: Mapping[str, list[str]], path: Path) -> Utterance:
    def cell(name: str) -> str | None:
        value = row.get(columns[name][0]) if columns[name] else None
        return str(value).strip() or None if value is not None else None

    audio = cell("audio")
    if audio is None:
        raise ValueError("names no clip")
    audio = audio.replace("\\", "/")
    if Path(audio).is_absolute():
        if not Path(audio).is_relative_to(path.parent):
            raise ValueError(f"{audio} lies outside {path.parent}, the table's folder")
        audio = Path(audio).relative_to(path.parent).as_posix()
    emotion, gender, intensity = cell("emotion"), cell("gender"), cell("intensity")
    if gender is not None and gender.lower() not in _GENDERS:
        raise ValueError(f'gender "{gender}" is neither female nor male')
    if intensity is not None and intensity.lower() not in _INTENSITIES:
        raise ValueError(f'intensity "{intensity}" is neither normal nor strong')
    captions: list[str] = []
    for column in columns["captions"]:
        value = row.get(column)
        captions += [str(v).strip() for v in (value if isinstance(value, list) else [value]) if v is not None]
    used = {column for found in columns.values() for column in found}
    corpus = cell("corpus") or path.parent.name or "corpus"
    speaker = cell("speaker")
    return Utterance(
        id=cell("id") or f"{corpus}-{Path(audio).with_suffix('').as_posix().replace('/', '-')}",
        root=str(path.parent),
        audio=audio,
        corpus=corpus,
        language=cell("language") or "en",
        speaker=speaker and f"{corpus}-{speaker.removeprefix(f'{corpus}-')}",  # as in manifests of corpora
        gender=_GENDERS[gender.lower()] if gender else None,
        transcript=cell("transcript"),
        emotion=canonical(emotion) if emotion else None,
        intensity=_INTENSITIES[intensity.lower()] if intensity else None,
        captions=[caption for caption in captions if caption],
        extra={key: value for key, value in row.items() if key not in used and value not in (None, "")},
    )
