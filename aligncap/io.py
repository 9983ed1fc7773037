"""Files that are never half-written, and the data that ships with the package."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import yaml

from aligncap.errors import UserError

_PACKAGE = Path(__file__).resolve().parent


def data_path(name: str) -> Path:
    """Path of a file of `data/`, in an installed wheel or in a checkout."""
    for folder in (_PACKAGE / "_data", _PACKAGE.parent / "data"):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"data/{name} is missing from this installation of aligncap; install it again")


@cache
def load_data(name: str) -> Any:
    """Parsed content of a YAML file of `data/`; read once, treat as read-only."""
    return yaml.safe_load(data_path(name).read_text(encoding="utf-8"))


@contextmanager
def atomic_open(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary sibling of `path` for writing and move it onto `path` when the block ends well.

    Raises:
        UserError: the folder cannot be written or the disk is full; `path` keeps its former content.
    """
    path = Path(path)
    name = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(fd, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
        name = ""
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror or error}. Free space or choose another --out"
        ) from error
    finally:
        if name:
            Path(name).unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write text atomically."""
    with atomic_open(path) as file:
        file.write(text)


def write_json(path: str | Path, value: Any) -> None:
    """Write indented UTF-8 JSON atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    with atomic_open(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def file_sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Objects of a JSONL file, blank lines passed over.

    Raises:
        UserError: the file is missing, or lines are not JSON objects; every such line is named.
    """
    from aligncap.errors import Faults

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            faults.append(
                f"{path}:{number}: broken JSON ({error.msg} at column {error.colno}); mend or delete the line"
            )
            continue
        if isinstance(row, dict):
            rows.append(row)
        else:
            faults.append(f"{path}:{number}: a JSON object is needed, found {type(row).__name__}")
    if faults:
        raise Faults(faults)
    return rows
