"""What a run needs of all rows of a manifest at once, in arrays: 0.2 kB a row, whatever the rows hold.

The columns of a large manifest are made in the one pass that checks it and are kept in a folder beside it
(`.NAME.index`, or in the user's cache where that cannot be written), from where every process maps them. Of
several that start together one reads the manifest, and the others wait at its lock, however long that is.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from math import nan
from pathlib import Path

import numpy as np

from aligncap.audio.members import member_of
from aligncap.data.hashes import locked_place, places_beside
from aligncap.data.manifest import Utterance, manifest_lines, no_utterance, used_twice, utterance_of
from aligncap.text.lexicon import is_chinese
from aligncap.utils.errors import UserErrors
from aligncap.utils.io import Row, data_path, file_sha256, workplace, write_json
from aligncap.utils.progress import track

KEEP_BYTES = 32 << 20  # smaller manifests are read in a second: their columns are made anew at each start
_VERSION = 1  # raise when columns or checks change
_SUMMARY = "manifest.json"  # in the folder: what it was made of, its errors, the names behind codes
_ODD = b"\xff" * 32  # a samples_sha256 that is not 64 hex digits; it stands among the names
_CODED = ("emotion", "corpus", "speaker", "root", "shard")
_HASHED = ("sha256", "samples")
_NONE = -1
_MOST = 2**63 - 1  # that a column can hold


@dataclass(frozen=True)
class Columns:
    """Columns of n rows; -1 and zeros stand for what a row does not have.

    start, size: of the row's line in the file, bytes; sha256, samples: (n, 32) bytes, hashes of the file and
    of its samples; bytes, mtime_ns: as in the row; seconds: its duration, NaN: unknown; captions, p_act:
    their number; described, chinese: captions that answer no instruction, and of them those with Chinese in
    them; emotion, corpus, speaker, root, shard: places in `names`, shard being the tar under its root;
    audio_start, audio_end: of the row's path in `audio`, UTF-8.
    """

    start: np.ndarray
    size: np.ndarray
    sha256: np.ndarray
    samples: np.ndarray
    bytes: np.ndarray
    mtime_ns: np.ndarray
    seconds: np.ndarray
    captions: np.ndarray
    p_act: np.ndarray
    described: np.ndarray
    chinese: np.ndarray
    emotion: np.ndarray
    corpus: np.ndarray
    speaker: np.ndarray
    root: np.ndarray
    shard: np.ndarray
    audio_start: np.ndarray
    audio_end: np.ndarray
    audio: np.ndarray
    names: dict[str, list[str]]

    def __len__(self) -> int:
        return len(self.size)

    def take(self, rows: Sequence[int] | np.ndarray) -> Columns:
        """The columns of these rows, in this order."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _BY_ROW})

    def named(self, column: str) -> list[str]:
        """What a coded column holds, each once, sorted; "" left out."""
        codes = np.unique(getattr(self, column))
        return sorted(self.names[column][code] for code in codes if code != _NONE)

    def lacking(self, column: str) -> np.ndarray:
        """(n,) bool: rows without this hash."""
        found: np.ndarray = getattr(self, column)
        return (found == 0).all(axis=1)

    def hashes(self, column: str) -> frozenset[str]:
        """What a column of hashes holds, as hex digits."""
        column_of: np.ndarray = getattr(self, column)
        whole = np.unique(np.ascontiguousarray(column_of).view("V32")).tobytes()
        found = {whole[i : i + 32].hex() for i in range(0, len(whole), 32)} - {bytes(32).hex()}
        if _ODD.hex() in found:
            found = (found - {_ODD.hex()}) | {*self.names[column]}
        return frozenset(found)

    def path_of(self, row: int) -> tuple[str, str]:
        """Root and audio of a row."""
        audio = self.audio[self.audio_start[row] : self.audio_end[row]].tobytes().decode()
        return self.names["root"][self.root[row]], audio


_ARRAYS = tuple(f.name for f in fields(Columns) if f.name != "names")
_BY_ROW = tuple(name for name in _ARRAYS if name != "audio")
_PLAIN = tuple(name for name in _BY_ROW if name not in _HASHED)
_LONG = ("start", "bytes", "mtime_ns", "audio_start", "audio_end")
_KINDS = {name: "q" if name in _LONG else "d" if name == "seconds" else "i" for name in _PLAIN}
_PACKED = struct.Struct("<" + "".join(_KINDS.values()))  # the plain columns of a row, side by side


class _Builder:
    """Columns that grow by a row at a time."""

    def __init__(self) -> None:
        self.blobs = {name: bytearray() for name in ("rows", *_HASHED, "audio")}
        self.codes: dict[str, dict[str, int]] = {name: {} for name in (*_CODED, "samples")}

    def add(self, u: Utterance, start: int = 0, size: int = 0) -> None:
        blobs, said = self.blobs, u.captions
        before = len(blobs["audio"])
        blobs["audio"] += u.audio.encode("utf-8", "surrogatepass")
        blobs["sha256"] += bytes.fromhex(u.sha256) if u.sha256 else bytes(32)
        blobs["samples"] += self._samples(u.extra.get("samples_sha256"))
        if u.instructions:
            said = [caption for caption, asked in zip(said, u.instructions, strict=False) if not asked]
        shard = f"{u.root}/{member.tar}" if ".tar/" in u.audio and (member := member_of(u.audio)) else None
        blobs["rows"] += _PACKED.pack(
            start,
            size,
            _NONE if u.bytes is None else min(u.bytes, _MOST),
            _NONE if u.mtime_ns is None else min(u.mtime_ns, _MOST),
            nan if u.duration is None else u.duration,
            len(u.captions),
            len(u.p_act),
            len(said),
            sum(not caption.isascii() and is_chinese(caption) for caption in said),
            self._code("emotion", u.emotion),
            self._code("corpus", u.corpus),
            self._code("speaker", u.speaker),
            self._code("root", u.root),
            self._code("shard", shard),
            before,
            len(blobs["audio"]),
        )

    def _code(self, column: str, value: str | None) -> int:
        codes = self.codes[column]
        return codes.setdefault(value, len(codes)) if value else _NONE

    def _samples(self, value: object) -> bytes:
        if not value:
            return bytes(32)
        with suppress(ValueError):
            if len(found := bytes.fromhex(str(value))) == 32 and found.hex() == value:
                return found
        self.codes["samples"].setdefault(str(value), 0)
        return _ODD

    def done(self) -> Columns:
        arrays = {name: np.frombuffer(blob, np.uint8) for name, blob in self.blobs.items()}
        rows = arrays.pop("rows").view([(name, f"<{kind}") for name, kind in _KINDS.items()])
        made = {name: rows[name].copy() for name in _PLAIN}
        made |= {name: arrays[name].reshape(-1, 32) for name in _HASHED}
        return Columns(**made, audio=arrays["audio"], names={k: list(v) for k, v in self.codes.items()})


def columns_of(utterances: Iterable[Utterance]) -> Columns:
    """Columns of utterances: those that they have already (`rows.Manifest`), or new ones."""
    if (made := getattr(utterances, "columns", None)) is not None:
        return made
    builder = _Builder()
    for u in utterances:
        builder.add(u)
    return builder.done()


def manifest_columns(path: str | Path) -> Columns:
    """Columns of a manifest whose every line has been checked, now or by another process.

    Raises:
        UserError, UserErrors: as `manifest.read_manifest`.
    """
    path = Path(path)
    if not path.is_file() or path.stat().st_size < KEEP_BYTES:
        columns, errors = _read(path)
    else:
        columns, errors = _kept(path)
    if errors or columns is None:
        raise UserErrors(errors)
    return columns


def _read(path: Path) -> tuple[Columns | None, list[str]]:
    builder, errors = _Builder(), list[tuple[int, str]]()
    hashes, numbers = array("q"), array("q")
    for line in track(manifest_lines(path), None, f"checking {path.name}"):
        if line.utterance is not None:
            builder.add(line.utterance, line.start, line.size)
            hashes.append(hash(line.utterance.id))
            numbers.append(line.number)
        errors += [(line.number, error) for error in line.errors]
    if not numbers and not errors:
        raise no_utterance(path)
    columns = builder.done()
    errors += _used_twice(path, columns, np.array(hashes), np.array(numbers))
    told = [f"{path}:{number}: {error}" for number, error in sorted(errors, key=lambda pair: pair[0])]
    return (None if told else columns), told


def _used_twice(
    path: Path, columns: Columns, hashes: np.ndarray, numbers: np.ndarray
) -> list[tuple[int, str]]:
    """Ids that an earlier line has; only the rows whose ids' hashes are equal are read again."""
    found, counts = np.unique(hashes, return_counts=True)
    suspects = np.flatnonzero(np.isin(hashes, found[counts > 1]))
    first: dict[str, int] = {}
    errors = []
    with path.open("rb") as file:
        for row in suspects.tolist():
            file.seek(columns.start[row])
            name, number = utterance_of(file.read(columns.size[row])).id, int(numbers[row])
            if (earlier := first.setdefault(name, number)) != number:
                errors.append((number, used_twice(name, earlier)))
    return errors


# ------------------------------------------------------------------------------------------- kept on disk


def _kept(path: Path) -> tuple[Columns | None, list[str]]:
    """Columns or errors of a large manifest, from the folder that holds them, or read and put there."""
    stat = path.stat()
    made_of: Row = {"version": _VERSION, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    made_of["labels"] = file_sha256(data_path("labels.yaml"))
    folders = places_beside(path, "index")
    with locked_place(folders):
        for folder in folders:
            if (found := _load(folder, made_of, path)) is not None:
                return found
        columns, errors = _read(path)
        for folder in folders:
            with suppress(OSError):
                _save(folder, made_of, columns, errors, path)
                return _load(folder, made_of, path) or (columns, errors)
        return columns, errors


def _save(folder: Path, made_of: Row, columns: Columns | None, errors: list[str], path: Path) -> None:
    with workplace(folder) as made:
        if columns is not None:
            for name in _ARRAYS:
                np.save(made / f"{name}.npy", getattr(columns, name))
        # Errors name the manifest as it was named then; it may be named otherwise next time.
        lines = [error.removeprefix(str(path)) for error in errors]
        names = columns.names if columns is not None else {}
        write_json(made / _SUMMARY, {"made_of": made_of, "errors": lines, "names": names})
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for file in sorted(made.iterdir(), key=lambda file: file.name == _SUMMARY):  # it comes last
            os.replace(file, folder / file.name)


def _load(folder: Path, made_of: Row, path: Path) -> tuple[Columns | None, list[str]] | None:
    try:
        summary = json.loads((folder / _SUMMARY).read_text(encoding="utf-8"))
        if summary["made_of"] != made_of:
            return None
        if summary["errors"]:
            return None, [f"{path}{error}" for error in summary["errors"]]
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Columns(**arrays, names=summary["names"]), []
