"""`aligncap shard`: the sound of a manifest in tar shards, which are read where it lies (`audio/members.py`).

The layout is WebDataset's: a clip is `KEY.wav` (or whatever its file was) and, behind it, `KEY.json`, its row
of the manifest; index.json is a shard index of wids, WebDataset's reader of shards by number.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, ClassVar, NamedTuple

from aligncap.audio.files import read_bytes
from aligncap.audio.members import Member
from aligncap.data.manifest import Utterance, audio_path, filled, write_manifest
from aligncap.data.rows import Manifest, open_manifest
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import whole_folder, write_json
from aligncap.utils.options import Config, option
from aligncap.utils.progress import track

INDEX = "index.json"
SHARD_CHANGED = "has changed since `aligncap shard`; copy it again, or make the shards anew"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,79}")  # of WebDataset: all before the first dot
_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")
_KIND = {"__kind__": "wids-shard-index-v1", "wids_version": 1}


@dataclass
class ShardConfig(Config):
    """Copy the sound of a manifest into tar shards, and write a manifest of what lies in them.

    Writes to OUT: 000000.tar and so on, index.json, and the manifest under its own name. Every command reads
    that manifest like any other; nothing is extracted. The folder can be moved or copied as a whole.

    Examples:
        aligncap shard data/train.jsonl --out /scratch/train
        aligncap shard data/train.jsonl --out /scratch/train --size 200MB
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("manifest",)
    MANY_PROCESSES: ClassVar[bool] = False

    manifest: str = option(help="Manifest.")
    out: str = option(help="Folder for the shards; there must not be one, or an empty one.")
    size: str = option("1GB", "Size of a shard: a shard is closed once it is as large.")

    def own_errors(self) -> list[str]:
        return [] if _bytes(self.size) else [f"size={self.size}: must be a size such as 500MB or 1GB"]


def _bytes(text: str) -> int:
    """
    >>> _bytes("1.5GB"), _bytes("300"), _bytes("many")
    (1500000000, 300, 0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    return int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0


class Shard(NamedTuple):
    """What an index notes of a shard."""

    bytes: int
    mtime_ns: int  # time of the last change, nanoseconds since 1970
    sha256: str
    clips: int


def run_shard(config: ShardConfig) -> int:
    """`aligncap shard`."""
    utterances, out = open_manifest(config.manifest), Path(config.out)
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty; choose another folder, or empty it")
    with whole_folder(out) as made:
        shards = write_shards(config.manifest, utterances, made, _bytes(config.size))
    total = sum(shard.bytes for shard in shards.values())
    name = Path(config.manifest).name
    print(f"{out / name}: {len(utterances)} clips in {len(shards)} shards, {total / 1e9:.2f} GB")
    return 0


def write_shards(manifest: str | Path, utterances: Manifest, folder: Path, size: int) -> dict[str, Shard]:
    """Write shards of at least `size` bytes (the last may be smaller), their index and their manifest.

    Equal clips give equal shards: times and owners in them are zero.

    Raises:
        UserErrors: sound files that are missing, cannot be read, or are not those the manifest was made of.
    """
    shards: dict[str, Shard] = {}
    errors: list[str] = []
    waiting = enumerate(track(utterances, len(utterances), "writing shards"), 1)

    def written() -> Iterator[Utterance]:
        while (
            shard := _one_shard(manifest, waiting, folder / f"{len(shards):06d}.tar", size, errors)
        ) is not None:
            rows, shards[f"{len(shards):06d}.tar"] = shard
            yield from rows

    write_manifest(folder / Path(manifest).name, written())
    if errors:
        raise UserErrors(errors)
    listed = [
        {"url": name, "nsamples": shard.clips, "filesize": shard.bytes, **shard._asdict()}
        for name, shard in shards.items()
    ]
    write_json(folder / INDEX, _KIND | {"name": Path(manifest).stem, "shardlist": listed})
    return shards


def _one_shard(
    manifest: str | Path, waiting: Iterator[tuple[int, Utterance]], path: Path, size: int, errors: list[str]
) -> tuple[list[Utterance], Shard] | None:
    """The next shard and the rows in it; None: no clip is left."""
    rows: list[Utterance] = []
    with path.open("wb") as plain:
        file = _Hashed(plain)
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
            for number, u in waiting:
                try:
                    rows.append(_add(tar, path.name, manifest, number, u))
                except UserError as error:
                    errors.append(f"{manifest}:{number}: {error}")
                if tar.offset >= size:
                    break
    if not rows:
        path.unlink()
        return None
    stat = path.stat()
    return rows, Shard(stat.st_size, stat.st_mtime_ns, file.hash.hexdigest(), len(rows))


class _Hashed:
    """A file being written, with the hash of all that was."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.hash, self.tell = file, hashlib.sha256(), file.tell

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return self.file.write(data)


def _add(tar: tarfile.TarFile, name: str, manifest: str | Path, number: int, u: Utterance) -> Utterance:
    """Put a clip and its row into a shard of this name; the row that points there."""
    path = audio_path(manifest, u)
    data, _ = read_bytes(path)
    sha256 = hashlib.sha256(data).hexdigest()
    if u.sha256 not in (None, sha256):
        raise UserError(f"{path}: has changed since `aligncap prepare`; prepare it again")
    key = u.id if _KEY.fullmatch(u.id) else f"{number:09d}"  # no key of the first kind begins with a digit
    suffix = path.suffix.lower() if _SUFFIX.fullmatch(path.suffix.lower()) else ".audio"
    member = Member(name, tar.offset + tarfile.BLOCKSIZE, len(data), f"{key}{suffix}")
    row = replace(u, root=".", audio=str(member), sha256=sha256, bytes=len(data), mtime_ns=None)
    said = {k: v for k, v in filled(row).items() if k not in ("root", "audio")}
    for file, content in (
        (member.name, data),
        (f"{key}.json", json.dumps(said, ensure_ascii=False).encode()),
    ):
        head = tarfile.TarInfo(file)
        head.size = len(content)
        tar.addfile(head, io.BytesIO(content))
    return row


def read_index(folder: str | Path) -> Mapping[str, Shard]:
    """What the index of a folder notes of each shard, by name; read once as long as it does not change.

    Raises:
        UserError: there is none, or it is broken.
    """
    path = Path(folder) / INDEX
    remedy = "copy it from where the shards were made, or make them anew with `aligncap shard`"
    try:
        stat = path.stat()
        return _index(str(path), stat.st_size, stat.st_mtime_ns)
    except OSError:
        raise UserError(f"{path}: no such index of the shards; {remedy}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is broken; {remedy}") from None


@lru_cache(maxsize=64)
def _index(path: str, *changes: int) -> dict[str, Shard]:
    listed = json.loads(Path(path).read_text(encoding="utf-8"))["shardlist"]
    return {row["url"]: Shard(*(row[name] for name in Shard._fields)) for row in listed}
