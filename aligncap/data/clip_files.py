"""The sound files behind the rows of a manifest: all there, unchanged, and known by their hashes.

A start reads no file that has not changed, and looks once at each file or, of a manifest in shards, at each
shard. Hashes are kept as an array and paths are made when they are asked for: as texts, both cost a gigabyte
for a million clips.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from stat import S_ISLNK, S_ISREG
from typing import Any, NamedTuple

import numpy as np

from aligncap.audio.members import member_of
from aligncap.data.columns import Columns, columns_of
from aligncap.data.hashes import Known, hashes_of
from aligncap.data.manifest import Utterance, locate
from aligncap.data.shards import INDEX, SHARD_CHANGED, read_index
from aligncap.utils.distributed import ALONE, Group
from aligncap.utils.errors import UserError, UserErrors

_CHANGED = "has changed since `aligncap prepare`; prepare it again"


class Keys(Sequence[str]):
    """SHA-256 of files, as hex digits, held as an array (n, 32) of bytes."""

    def __init__(self, hashes: np.ndarray) -> None:
        self.hashes = hashes

    def __len__(self) -> int:
        return len(self.hashes)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Keys(self.hashes[index])
        return self.hashes[index].tobytes().hex()

    def __iter__(self) -> Iterator[str]:
        text = self.hashes.tobytes().hex()
        return (text[i : i + 64] for i in range(0, len(text), 64))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as a list's

    def same(self) -> np.ndarray:
        """(n,): which file each key is of, as numbers from 0."""
        whole = np.ascontiguousarray(self.hashes).view("V32")[:, 0]
        return np.unique(whole, return_inverse=True)[1].reshape(-1)

    def chosen(self, places: Sequence[int] | np.ndarray) -> Keys:
        """The keys at these places, in this order."""
        return Keys(self.hashes[np.asarray(places, np.int64)])


class Locator:
    """Paths of the sound files of a manifest's rows."""

    def __init__(self, manifest: str | Path, utterances: Sequence[Utterance]) -> None:
        self.manifest, self.utterances, self.columns = str(manifest), utterances, columns_of(utterances)
        self._real_folder = lru_cache(1 << 16)(os.path.realpath)
        # By root and folder: where that really is, under its root.
        self._folders: dict[tuple[str, str], str] = {}

    def __call__(self, row: int) -> str:
        """The path of a row's file.

        Raises:
            UserError: see `manifest.audio_path`.
        """
        return self.find(row)[0]

    def find(self, row: int) -> tuple[str, os.stat_result | None]:
        """The path of a row's file, and what is so of it; None: no file there, or one in a shard.

        Raises:
            UserError: see `manifest.audio_path`.
        """
        root, audio = self.columns.path_of(row)
        above, _, name = audio.rpartition("/")
        folder = self._folders.get((root, above))
        if folder is not None and name not in ("", ".", "..") and "\0" not in name:
            stat = _stat(path := f"{folder}/{name}", links=False)
            if stat is None or not S_ISLNK(stat.st_mode):
                return path, stat if stat is not None and S_ISREG(stat.st_mode) else None
        try:
            path = locate(self.manifest, "", root, audio, self._real_folder)
        except UserError:  # once more, with the row's name
            path = locate(self.manifest, self.utterances[row].id, root, audio, self._real_folder)
        if member_of(audio) is not None:
            return path, None
        base = self._real_folder(os.path.join(os.path.dirname(self.manifest), root))
        folder = self._real_folder(os.path.join(base, above))
        if f"{folder}/".startswith(f"{base.rstrip('/')}/") and len(self._folders) < 1 << 16:
            self._folders[root, above] = folder
        stat = _stat(path)
        return path, stat if stat is not None and S_ISREG(stat.st_mode) else None

    def __reduce__(self) -> Any:
        return Locator, (self.manifest, self.utterances)


class Paths(Mapping[str, Path]):
    """The sound file behind each key; a path is made when it is asked for."""

    def __init__(self, keys: Keys, path_of: Locator) -> None:
        self.keys_of, self.path_of = keys, path_of
        heads = np.ascontiguousarray(keys.hashes).view(">u8")[:, 0]  # of each hash the first 8 bytes
        self._order = np.argsort(heads, kind="stable").astype(np.int32)
        self._sorted = heads[self._order].astype(np.uint64)

    def __getitem__(self, key: str) -> Path:
        wanted = bytes.fromhex(key)
        head = np.uint64(int.from_bytes(wanted[:8], "big"))
        start, stop = (int(np.searchsorted(self._sorted, head, side)) for side in ("left", "right"))
        for row in self._order[start:stop][::-1].tolist():  # of several the last, as in a dict
            if self.keys_of.hashes[row].tobytes() == wanted:
                return Path(self.path_of(row))
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        try:
            self[str(key)]
        except (KeyError, ValueError):
            return False
        return True

    def __len__(self) -> int:
        return len(self.first_rows())

    def __iter__(self) -> Iterator[str]:
        return (self.keys_of[row] for row in self.first_rows().tolist())

    def first_rows(self) -> np.ndarray:
        """Of each key its first row, in the order of rows."""
        whole = np.ascontiguousarray(self.keys_of.hashes).view("V32")[:, 0]
        return np.sort(np.unique(whole, return_index=True)[1])


class _Look(NamedTuple):
    """What a look at files found; `doubtful` are to be hashed: of rows, and of shards."""

    errors: list[tuple[int, str]]  # row and message
    doubtful: dict[int, tuple[str, Known]]
    shards: dict[int, tuple[str, Known]]


def audio_files(
    manifest: str | Path, utterances: Sequence[Utterance], group: Group = ALONE
) -> tuple[Keys, Paths]:
    """Feature key of each utterance, its file's SHA-256, and the file behind each key.

    A file with the size and time of change that `aligncap prepare` noted is taken to be the one it hashed,
    and so is a shard with those that its index notes. Others, such as those of a copied corpus, are hashed
    and compared, once (see `hashes_of`). Whether files changed without a trace is for `aligncap validate`.

    Args:
        group: the processes that share looking at the files; each must call this.

    Raises:
        UserErrors: files that are missing, have changed or lie outside their root, in every process.
    """
    columns, path_of = columns_of(utterances), Locator(manifest, utterances)
    parts = group.gather(_look(path_of, columns, group))
    errors = [error for part in parts for error in part.errors]
    doubtful = {row: found for part in parts for row, found in part.doubtful.items()}
    shards = {code: found for part in parts for code, found in part.shards.items()}
    hashes = np.array(columns.sha256)
    # Here one process hashes and the others wait for its lock, as long as it takes: a collective has a limit.
    asked = dict([*doubtful.values(), *shards.values()])
    found = hashes_of(manifest, asked) if asked else {}
    for row, (path, _) in doubtful.items():
        key = np.frombuffer(bytes.fromhex(found[path]), np.uint8)
        if columns.sha256[row].any() and (columns.sha256[row] != key).any():
            errors.append((row, f"{manifest}:{row + 1}: {path}: {_CHANGED}"))
        hashes[row] = key
    for code, (path, _) in shards.items():
        if found[path] != read_index(Path(path).parent)[Path(path).name].sha256:
            row = int(np.argmax(columns.shard == code))
            errors.append((row, f"{manifest}:{row + 1}: {path}: {SHARD_CHANGED}"))
    if errors:
        raise UserErrors([what for _, what in sorted(errors)])
    return (keys := Keys(hashes)), Paths(keys, path_of)


def _look(path_of: Locator, columns: Columns, group: Group) -> _Look:
    """A process's share of the files."""
    found = _Look([], {}, {})
    unhashed = columns.lacking("sha256")
    codes, first = np.unique(columns.shard, return_index=True)
    shards = [pair for pair in zip(codes.tolist(), first.tolist(), strict=True) if pair[0] >= 0]
    for code, row in shards[group.rank :: group.count]:
        _look_at_shard(path_of, row, code, found)
    lacking = np.flatnonzero((columns.shard >= 0) & unhashed)[group.rank :: group.count]
    remedy = "a clip in a shard needs its sha256; make the shards with `aligncap shard`"
    found.errors.extend((row, f"{path_of.manifest}:{row + 1}: {remedy}") for row in lacking.tolist())
    files = np.flatnonzero(columns.shard < 0)[group.rank :: group.count]
    for row in files.tolist():
        try:
            path, stat = path_of.find(row)
        except UserError as error:
            found.errors.append((row, str(error)))
            continue
        size, time = int(columns.bytes[row]), int(columns.mtime_ns[row])
        if stat is None:
            found.errors.append((row, f"{path_of.manifest}:{row + 1}: {path}: no such file"))
        elif size not in (-1, stat.st_size):
            found.errors.append((row, f"{path_of.manifest}:{row + 1}: {path}: {_CHANGED}"))
        elif unhashed[row] or size == -1 or time != stat.st_mtime_ns:
            found.doubtful[row] = path, Known(stat.st_size, stat.st_mtime_ns)
    return found


def _stat(path: str, *, links: bool = True) -> os.stat_result | None:
    """What is so of a file, or with `links` false of a link to one; None: nothing is there."""
    try:
        return os.stat(path, follow_symlinks=links)
    except OSError:
        return None


def _look_at_shard(path_of: Locator, row: int, code: int, found: _Look) -> None:
    try:
        member = member_of(path_of(row))
        assert member is not None
        noted = read_index(Path(member.tar).parent).get(Path(member.tar).name)
    except UserError as error:
        found.errors.append((row, str(error)))
        return
    wrong = None
    stat = _stat(member.tar)
    if stat is None or not S_ISREG(stat.st_mode):
        wrong = "no such shard; copy it here, or make the shards anew with `aligncap shard`"
    elif noted is None:
        wrong = f"{INDEX} beside it does not name it; make the shards anew with `aligncap shard`"
    elif noted.bytes != stat.st_size:
        wrong = SHARD_CHANGED
    elif noted.mtime_ns != stat.st_mtime_ns:
        found.shards[code] = member.tar, Known(stat.st_size, stat.st_mtime_ns)
    if wrong:
        found.errors.append((row, f"{path_of.manifest}:{row + 1}: {member.tar}: {wrong}"))
