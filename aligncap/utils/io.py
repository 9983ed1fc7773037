"""Files that are never half-written, and the data that ships with the package."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import yaml

from aligncap.utils.errors import UserError, UserErrors

Row = dict[str, Any]  # an object of a JSON or JSONL file
BOM = b"\xef\xbb\xbf"  # byte order mark of UTF-8
_PACKAGE = Path(__file__).resolve().parents[1]


def data_path(name: str) -> Path:
    """Path of a file of `data/`, in an installed wheel or in a checkout."""
    for folder in (_PACKAGE / "_data", _PACKAGE.parent / "data"):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"data/{name} is missing from this installation of aligncap; install it again")


def cache_folder() -> Path:
    """Folder of the fetched default models: `$ALIGNCAP_HOME/models`, else `~/.cache/aligncap/models`."""
    home = os.environ.get("ALIGNCAP_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".cache" / "aligncap") / "models"


def config_path(name: str) -> Path:
    """Path of a YAML file, or of the recipe of that name that ships with the package (`distill`).

    Raises:
        UserError: neither a file nor a recipe.
    """
    if Path(name).is_file():
        return Path(name)
    folders = [f / "recipes" for f in (_PACKAGE / "_configs", _PACKAGE.parent / "configs") if f.is_dir()]
    recipes = {p.relative_to(f).with_suffix("").as_posix(): p for f in folders for p in f.rglob("*.yaml")}
    if name in recipes:
        return recipes[name]
    raise UserError(
        f"--config {name}: no such file, and no recipe; the recipes are {', '.join(sorted(recipes))}"
    )


@cache
def load_data(name: str) -> Row:
    """Parsed content of a YAML file of `data/`; read once, treat as read-only."""
    return yaml.safe_load(data_path(name).read_text(encoding="utf-8"))


@contextmanager
def workplace(path: str | Path) -> Iterator[Path]:
    """A folder beside `path` to make it in, so that it can be moved there whole; removed in the end.

    What killed processes of this machine left of theirs for the same `path` is removed first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = f".{path.name}.{socket.gethostname()}-"
    for left in path.parent.glob(f"{glob.escape(stem)}*"):
        owner = left.name[len(stem) :].partition("-")[0]
        if owner.isdigit() and not _runs(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    prefix = f"{stem}{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=path.parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when the block ends well; an empty folder there gives way.

    Raises:
        OSError: `path` is there and not empty.
    """
    path = Path(path)
    with workplace(path) as made:
        yield made
        umask = os.umask(0)
        os.umask(umask)
        made.chmod(0o777 & ~umask)  # a temporary folder is its owner's alone
        if path.is_dir():
            path.rmdir()
        os.replace(made, path)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True


@contextmanager
def atomic_open(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file near `path` for writing and move it onto `path` when the block ends well.

    Raises:
        UserError: the folder cannot be written or the disk is full; `path` keeps its former content.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is no regular file; choose another place")
    try:
        with workplace(path) as folder:
            with (folder / path.name).open(mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(folder / path.name, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror or error}; free space or choose another place"
        ) from error


def write_text(path: str | Path, text: str) -> None:
    """Write text atomically."""
    with atomic_open(path) as file:
        file.write(text)


def write_json(path: str | Path, value: object) -> None:
    """Write indented UTF-8 JSON atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON object a line, atomically."""
    with atomic_open(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def file_sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_jsonl(path: str | Path) -> list[Row]:
    """Objects of a JSONL file, blank lines passed over.

    Raises:
        UserError: the file is missing, or lines are not JSON objects; every such line is named.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    lines = list(json_lines(path))
    if errors := [f"{path}:{number}: {row}" for number, row in lines if isinstance(row, str)]:
        raise UserErrors(errors)
    return [row for _, row in lines if not isinstance(row, str)]


def json_lines(path: str | Path, *, numbers_only: bool = False) -> Iterator[tuple[int, Row | str]]:
    """(line number, object) of each line of a JSONL file that is not blank.

    In place of the object of a line that holds none, what is wrong with it.

    Args:
        numbers_only: whether NaN and Infinity, which are not JSON but which Python writes, are an error.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if (line.removeprefix(BOM) if number == 1 else line).strip():
                yield number, json_line(line, number, numbers_only=numbers_only)


def json_line(line: bytes, number: int, *, numbers_only: bool = False) -> Row | str:
    """The object of line `number` of a JSONL file, or what is wrong with it; see `json_lines`."""
    decode = (_NUMBERS_ONLY if numbers_only else _PLAIN).decode
    try:
        row = decode((line.removeprefix(BOM) if number == 1 else line).decode("utf-8"))
    except UnicodeDecodeError:
        return "not UTF-8 text; save the file as UTF-8"
    except (ValueError, RecursionError) as error:
        at = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        what = getattr(error, "msg", error)
        return f"broken JSON ({what}{at}); mend or delete the line"
    return row if isinstance(row, dict) else f"a JSON object is needed, found {type(row).__name__}"


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


_PLAIN, _NUMBERS_ONLY = json.JSONDecoder(), json.JSONDecoder(parse_constant=_refuse)
