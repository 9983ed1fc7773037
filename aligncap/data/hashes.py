"""Hashes of sound files that were taken before, so that a start reads no file that has not changed since.

A file is known by its path, size and time of change, as in git's index. What was hashed is kept beside the
manifest in `.NAME.hashes`, or in the user's cache where that folder cannot be written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from aligncap.utils.io import cache_folder, file_sha256
from aligncap.utils.progress import track


class Known(NamedTuple):
    """By what a file is known to be the same."""

    bytes: int
    mtime_ns: int  # time of the last change, nanoseconds since 1970


def hashes_of(manifest: str | Path, files: Mapping[str, Known]) -> dict[str, str]:
    """SHA-256 of each file; only those that are new or have changed since the last call are read.

    Of several processes that ask at the same time one reads the files, and the others wait for it.

    Args:
        files: what was so of each path before this call.
    """
    places = places_beside(manifest, "hashes")
    with locked_place(places):
        found: dict[str, str] = {}
        for path, size, time, sha256 in _lines(places):
            if (stat := files.get(path)) is not None:
                found.pop(path, None)  # a later line counts
                if (size, time) == (stat.bytes, stat.mtime_ns):
                    found[path] = sha256
        new = [path for path in files if path not in found]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found |= zip(new, track(pool.map(file_sha256, new), len(new), "hashing clips"), strict=True)
        lines = ([path, *files[path], found[path]] for path in new)
        _append(places, "".join(json.dumps(line) + "\n" for line in lines))
    return found


def places_beside(manifest: str | Path, kind: str) -> list[Path]:
    """Where what is known of a manifest is kept: beside it, or in the user's cache."""
    path = Path(manifest)
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]
    return [path.with_name(f".{path.name}.{kind}"), cache_folder().parent / kind / name]


@contextmanager
def locked_place(places: list[Path]) -> Iterator[None]:
    """Hold a lock in the first place that can be written; without one processes only repeat work."""
    with ExitStack() as stack:
        for place in places:
            file = place.with_name(f"{place.name}.lock")
            with suppress(OSError):
                place.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(file))
                stack.callback(file.unlink, missing_ok=True)
                break
        yield


def _lines(places: list[Path]) -> Iterator[tuple[str, int, int, str]]:
    for place in places:
        try:
            text = place.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for line in text.split("\n"):
            with suppress(ValueError, TypeError):  # torn by a kill
                path, size, time, sha256 = json.loads(line)
                yield path, size, time, sha256


def _append(places: list[Path], text: str) -> None:
    for place in places if text else ():
        with suppress(OSError), place.open("a", encoding="utf-8") as file:
            file.write("\n" + text)
            return
