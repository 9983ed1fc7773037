"""Sound files that lie in tar shards, read where they lie: nothing is extracted.

A member's path is that of its tar, then where its bytes lie and how many, then its name:
`shards/000012.tar/1536+121774/clip.wav`. `files.py` opens such a path like any other.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

BLOCK = 512  # bytes of a tar header; what it heads begins right behind it
_PATH = re.compile(r"(.+\.tar)/(\d{1,18})\+(\d{1,18})/([^/]+)", re.DOTALL)
_SIZE = slice(124, 136)  # of a header: the member's bytes, octal


class Member(NamedTuple):
    """Where a sound file lies in a tar."""

    tar: str
    start: int  # of its bytes
    size: int  # bytes
    name: str

    def __str__(self) -> str:
        return f"{self.tar}/{self.start}+{self.size}/{self.name}"


class MemberError(Exception):
    """A member cannot be read; the message says what is wrong with its tar, and the remedy."""


def member_of(path: str | Path) -> Member | None:
    """The member that a path means; None: an ordinary path.

    >>> member_of("shards/000012.tar/1536+121774/clip.wav")
    Member(tar='shards/000012.tar', start=1536, size=121774, name='clip.wav')
    """
    if (found := _PATH.fullmatch(os.fspath(path))) is None:
        return None
    tar, start, size, name = found.groups()
    return Member(tar, int(start), int(size), name)


def read_member(member: Member) -> bytes:
    """Its bytes.

    Raises:
        MemberError: the tar is gone, cut off, or holds something else in this place.
    """
    file = _open(member.tar)  # held until it is read: a file that nobody holds is closed
    block = os.pread(file.number, BLOCK + member.size, member.start - BLOCK) if member.start >= BLOCK else b""
    head, data = block[:BLOCK], block[BLOCK:]
    remedy = "copy the shard again, or make it anew with `aligncap shard`"
    if len(head) == BLOCK and not _heads(head, member):
        what = f"holds no {member.name} of {member.size} bytes at byte {member.start}, so it has changed"
        raise MemberError(f"{member.tar}: {what}; {remedy}")
    if len(data) < member.size:
        raise MemberError(f"{member.tar}: cut off before the end of {member.name}; {remedy}")
    return data


def is_there(path: str | Path) -> bool:
    """Whether there is such a file; of a member of a tar, whether there is such a tar."""
    return os.path.isfile(path if (member := member_of(path)) is None else member.tar)


def size_of(path: str | Path) -> int:
    """Bytes of a sound file.

    Raises:
        OSError: no such file.
    """
    return os.stat(path).st_size if (member := member_of(path)) is None else member.size


def stamp(path: str | Path) -> tuple[str, int, int]:
    """What tells a file, or one in a tar, from others without reading it: path, bytes, time of change in ns.

    Raises:
        OSError: no such file.
    """
    member = member_of(path)
    return str(path), size_of(path), os.stat(path if member is None else member.tar).st_mtime_ns


def _heads(head: bytes, member: Member) -> bool:
    name = head[:100].rstrip(b"\0").decode("utf-8", "replace").rpartition("/")[2]
    try:
        return name == member.name and int(head[_SIZE].strip(b"\0 ") or b"-1", 8) == member.size
    except ValueError:
        return False


def _open(tar: str) -> _Opened:
    try:
        stat = os.stat(tar)
        return _opened(tar, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    except IsADirectoryError:
        raise MemberError(f"{tar}: is a folder; a tar shard is needed") from None
    except (FileNotFoundError, NotADirectoryError):
        raise MemberError(f"{tar}: no such shard; copy it here, or run `aligncap shard` again") from None
    except OSError as error:
        raise MemberError(f"{tar}: cannot be read: {error.strerror}; change its permissions") from None


class _Opened:
    """An open file; closed when nobody needs it."""

    def __init__(self, path: str) -> None:
        if os.path.isdir(path):
            raise IsADirectoryError
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=32)  # those that neighbouring clips lie in; a changed file is another
def _opened(tar: str, *changes: int) -> _Opened:
    return _Opened(tar)
