"""Files of corpora: sound files, tables in whatever encoding, and words for emotions."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from aligncap.utils.errors import UserError, UserErrors, natural, nearest
from aligncap.utils.io import load_data

_SOUND = (".wav", ".flac", ".ogg", ".mp3")


def sound_files(folder: Path) -> list[Path]:
    """Sound files anywhere under a folder, in natural order; hidden files and macOS doubles left out."""
    found: list[Path] = []
    seen = {os.path.realpath(folder)}  # since a symlink may lead back up

    def enters(path: str) -> bool:
        new = not os.path.basename(path).startswith((".", "__MACOSX")) and os.path.realpath(path) not in seen
        seen.add(os.path.realpath(path))
        return new

    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if enters(os.path.join(parent, name))]
        sounds = (name for name in names if name.lower().endswith(_SOUND) and not name.startswith("."))
        found += [Path(parent, name) for name in sounds]
    return sorted(found, key=lambda path: natural(str(path)))


def by_name(
    paths: Iterable[Path], name_of: Callable[[Path], str] = lambda path: path.stem
) -> dict[str, Path]:
    """Paths by name: that of the file without its ending, or what `name_of` says.

    Raises:
        UserErrors: two files of one name.
    """
    found: dict[str, Path] = {}
    errors = []
    for path in paths:
        if (first := found.setdefault(name_of(path), path)) != path:
            errors.append(f"{path}: same name as {first}; leave one of them out")
    if errors:
        raise UserErrors(errors)
    return found


def read_text(path: Path, *, guess: bool = True) -> str:
    """Text of a file in UTF-8, UTF-16 or, if `guess`, GB18030, whichever it is; old corpora mix them.

    Raises:
        UserError: neither UTF-8 nor UTF-16, and nothing shall be guessed.
    """
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16")
    if not guess:
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            raise UserError(f"{path}:{line}: not UTF-8; save the table again as CSV UTF-8") from None
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("cp1252", errors="replace")


def read_table(
    path: Path, delimiter: str = ",", columns: Iterable[str] = (), *, guess: bool = True
) -> list[dict[str, str]]:
    """Rows of a table with a header line; names and values stripped of stray spaces.

    Args:
        guess: see `read_text`.

    Raises:
        UserError: no header, one that names a column twice, or that lacks one of `columns`; quotes that do
            not close.
        UserErrors: rows that are longer than the header.
    """
    lines = _cells(path, read_text(path, guess=guess), delimiter)
    _, first = next(lines, (1, []))
    header = [name.strip() for name in first]
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if not any(header) or twice:
        raise UserError(
            f"{path}:1: a header line with one name a column is needed"
            + (f'; "{twice[0]}" stands there twice' if twice else "")
        )
    if absent := sorted(set(columns) - set(header)):
        raise UserError(f"{path}:1: column {', '.join(absent)} is missing; copy the table again")
    errors = []
    rows = []
    for number, row in lines:
        if any(cell.strip() for cell in row[len(header) :]):
            errors.append(f"{path}:{number}: {len(row)} columns, the header names {len(header)}")
        if any(cell.strip() for cell in row):
            rows.append({name: cell.strip() for name, cell in zip(header, row, strict=False) if name})
    if errors:
        raise UserErrors(errors)
    return rows


def _cells(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of a table's rows; in one of tabs a lone quote is a character like any other."""
    # not splitlines(): texts may hold line separators of their own
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        found = [(rows.line_num, row) for row in rows]
    except csv.Error as error:
        if delimiter != "\t":
            what = f"no CSV ({error}); a text with a quote in it needs quotes around it, and its own doubled"
            raise UserError(f"{path}:{rows.line_num}: {what}") from None
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=csv.QUOTE_NONE)
        found = [(rows.line_num, row) for row in rows]
    yield from found


def read_json(path: Path) -> object:
    """Parsed JSON.

    Raises:
        UserError: broken JSON, with its line.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        what = f"broken JSON ({error.msg}); copy the file again from the corpus"
        raise UserError(f"{path}:{error.lineno}: {what}") from None


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
