"""What the readers of corpora share."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from aligncap.data.manifest import Utterance
from aligncap.utils.errors import UserError, UserErrors, natural, nearest
from aligncap.utils.io import load_data

SOUND = (".wav", ".flac", ".ogg", ".mp3")
VIDEO = (".mp4", ".avi", ".mkv", ".mov")


class Problem(NamedTuple):
    """Something in a corpus folder that gave no utterance."""

    kind: str  # "missing": listed without a file; "name": not understood; "label"; "audio": not decodable
    what: str


Reading = tuple[list[Utterance], list[Problem]]


def sound_files(folder: Path) -> list[Path]:
    """Sound files anywhere under a folder, in natural order; hidden files and macOS doubles left out."""
    found: list[Path] = []
    seen: set[str] = set()  # real paths, since a symlink may lead back up
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [
            name
            for name in folders
            if not name.startswith((".", "__MACOSX"))
            and (not os.path.islink(os.path.join(parent, name)) or _unseen(os.path.join(parent, name), seen))
        ]
        found += [
            Path(parent, name) for name in names if name.lower().endswith(SOUND) and not name.startswith(".")
        ]
    return sorted(found, key=lambda path: natural(str(path)))


def _unseen(path: str, seen: set[str]) -> bool:
    real = os.path.realpath(path)
    new = real not in seen and not Path(path).parent.resolve().is_relative_to(real)
    seen.add(real)
    return new


def inside(folder: Path, path: Path) -> str:
    """The path relative to the corpus folder, with forward slashes."""
    return path.relative_to(folder).as_posix()


def label(corpus: str, code: str) -> str | None:
    """Label of data/labels.yaml for a corpus's own code; None where the corpus gives no single emotion.

    Raises:
        KeyError: the corpus has no such code.
    """
    found: str | None = load_data("labels.yaml")["corpora"][corpus][code]
    return found


def not_the_corpus(corpus: str, folder: Path, looked_for: str) -> UserError:
    """The error for a folder that is not the corpus: what was looked for and what is there."""
    entries = sorted(
        (p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: natural(p.name)
    )
    shown = ", ".join(p.name + ("/" if p.is_dir() else "") for p in entries[:5])
    shown += f" and {len(entries) - 5} more" if len(entries) > 5 else ""
    clips = sound_files(folder)
    example = f", such as {inside(folder, clips[0])}" if clips else ""
    video = "" if clips else _video_hint(folder)
    return UserError(
        f"{folder}: not the {corpus} corpus: looked for {looked_for}; "
        f"found {shown or 'an empty folder'} ({len(clips)} sound files{example}){video}. "
        "Nothing was written; give the folder that holds the corpus"
    )


def _video_hint(folder: Path) -> str:
    films = sum(1 for path in folder.rglob("*") if path.suffix.lower() in VIDEO)
    return f" and {films} films: take out their sound as .wav first, under the same names" if films else ""


def read_text(path: Path) -> str:
    """Text of a file in UTF-8, UTF-16 or GB18030, whichever it is; old corpora mix them."""
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16")
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("cp1252", errors="replace")


def read_table(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    """Rows of a table with a header line; names and values stripped of stray spaces.

    Raises:
        UserError: no header, or a header that names a column twice.
    """
    # not splitlines(): texts may hold line separators of their own
    lines = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    header = [name.strip() for name in next(lines, [])]
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if not any(header) or twice:
        raise UserError(
            f"{path}:1: a header line with one name a column is needed"
            + (f'; "{twice[0]}" stands there twice' if twice else "")
        )
    errors = []
    rows = []
    for row in lines:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) > len(header) and any(cell.strip() for cell in row[len(header) :]):
            errors.append(f"{path}:{lines.line_num}: {len(row)} columns, the header names {len(header)}")
        rows.append({name: cell.strip() for name, cell in zip(header, row, strict=False) if name})
    if errors:
        raise UserErrors(errors)
    return rows


def read_json(path: Path) -> Any:
    """Parsed JSON.

    Raises:
        UserError: broken JSON, with its line.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: broken JSON ({error.msg}); copy the file again from the corpus"
        ) from None


def need_columns(rows: list[dict[str, str]], columns: set[str], path: Path) -> None:
    """Raise a UserError that names the columns a table lacks."""
    absent = columns - set(rows[0] if rows else ())
    if absent:
        raise UserError(
            f"{path}:1: column {', '.join(sorted(absent))} is missing; copy the table again from the corpus"
        )


def canonical(value: str) -> str:
    """Label for a free spelling ("Anger", "HAPPY"): a label itself or an alias of data/labels.yaml.

    Raises:
        KeyError: unknown; the message carries the nearest label.
    """
    data = load_data("labels.yaml")
    word = value.strip().lower()
    if word in data["labels"]:
        return word
    if word in data["aliases"]:
        return str(data["aliases"][word])
    raise KeyError(f'unknown emotion "{value}"{nearest(word, [*data["labels"], *data["aliases"]])}')


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Paths by file name without its ending.

    Raises:
        UserErrors: two files of one name.
    """
    found: dict[str, Path] = {}
    errors = []
    for path in paths:
        if path.stem in found:
            errors.append(f"{path}: same name as {found[path.stem]}; leave one of them out")
        found.setdefault(path.stem, path)
    if errors:
        raise UserErrors(errors)
    return found
