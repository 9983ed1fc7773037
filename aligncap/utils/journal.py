"""Rows finished so far, kept on disk as they come: what survives when a long run is killed."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from aligncap.utils.distributed import Group
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row
from aligncap.utils.locks import locked


class Journal:
    """Rows finished so far, in `OUT.partial`; its first line says what they were made with.

    Processes that share the work write a part each (`OUT.partial`, `OUT.partial.1`, ...), and each begins
    with what all parts hold, so that a run may go on with another number of processes. A part of other
    settings is not taken up but set aside, so that what was stopped can still go on; all parts are removed
    when `out` is there. `complete` is for the user of the journal to unset: the parts then stay.

    Args:
        out: the file in the making; None keeps nothing on disk.
        settings: what the rows depend on, JSON.
        part: the process's own number.
    """

    def __init__(self, out: Path | None, settings: Row, part: int = 0) -> None:
        self.rows: Row = {}  # any JSON by key
        self._stem = out and out.with_name(f"{out.name}.partial")
        self._file: IO[str] | None = None
        self.complete = True
        if self._stem is None:
            return
        self._head = json.dumps({"settings": settings}, sort_keys=True)
        self.reread()
        self._stem.parent.mkdir(parents=True, exist_ok=True)
        path = self._stem.with_name(f"{self._stem.name}.{part}") if part else self._stem
        resumed = (head := _head(path)) == self._head
        if head and not resumed:
            _set_aside(path, head)
        self._file = path.open("a" if resumed else "w", encoding="utf-8")
        # After a kill in mid-line the next row must not join the torn one.
        self._file.write("\n" if resumed else f"{self._head}\n")
        self._file.flush()

    def __contains__(self, key: object) -> bool:
        return key in self.rows

    def __getitem__(self, key: str) -> Any:
        return self.rows[key]

    def _parts(self) -> list[Path]:
        """Files of all processes, whatever settings they are of."""
        if self._stem is None:
            return []
        others = sorted(self._stem.parent.glob(f"{glob.escape(self._stem.name)}.*"))
        return [path for path in (self._stem, *others) if path.is_file()]

    def reread(self) -> None:
        """Take up what other processes have written meanwhile."""
        for path in self._parts():
            if _head(path) != self._head:
                continue
            # Split at line ends alone: rows are ASCII, but an older journal's may hold other separators.
            for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[1:]:
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the line under way when a run was killed
                self.rows[row["key"]] = row["row"]

    def write(self, rows: Row) -> None:
        """Keep rows; they are on the disk when this returns."""
        self.rows.update(rows)
        if self._file is not None:
            self._file.writelines(json.dumps({"key": key, "row": row}) + "\n" for key, row in rows.items())
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self, *, done: bool) -> None:
        """Stop writing; `done` removes every part, since the finished file is there."""
        if self._file is not None:
            self._file.close()
            for path in self._parts() if done else ():
                path.unlink(missing_ok=True)


@contextmanager
def journaled(out: Path | None, settings: Row, group: Group) -> Iterator[Journal]:
    """A journal for a block that ends with the first process writing `out`, and a lock on `out` meanwhile.

    The parts are removed when every process has come to the end of the block; an error leaves them, and a
    block that unsets `complete`.

    Raises:
        UserError: `out` cannot be written, or another command is writing it.
    """
    with locked(out):
        group.gather(None)  # no process opens its part before the first has the lock
        try:
            journal = Journal(out, settings, group.rank)
            try:
                yield journal
            except BaseException:
                journal.close(done=False)
                raise
            group.gather(None)
            journal.close(done=group.rank == 0 and journal.complete)
        except OSError as error:
            if error.errno is None:  # a library's own, about something else
                raise
            raise UserError(
                f"{out}: cannot be written: {error.strerror}; what is done is kept beside it"
            ) from error


def _set_aside(path: Path, head: str) -> None:
    """Rename a part to a name of its settings, under which `Journal` finds it when it is wanted again."""
    stem = f"{path.name}.{hashlib.sha256(head.encode()).hexdigest()[:8]}"
    names = (stem, *(f"{stem}-{n}" for n in range(1, 100)))
    free = next((aside for name in names if not (aside := path.with_name(name)).exists()), path)
    path.replace(free)
    print(
        f"{path}: of other settings; kept as {free.name}, which the former command takes up", file=sys.stderr
    )


def _head(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline().rstrip("\n")
    except OSError:
        return None
