"""A manifest whose rows stay in its file: each is parsed when it is read."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aligncap.data.columns import Columns, manifest_columns
from aligncap.data.manifest import Utterance, utterance_of
from aligncap.utils.errors import UserError

_BLOCK = 8 << 20  # bytes read at once where rows are read in their order


class Manifest(Sequence[Utterance]):
    """Utterances of a manifest, or some of them: a sequence that holds no utterance.

    Args:
        path: of the manifest; columns: of all its rows (`columns.manifest_columns`).
        rows: which of them, in this order; None: all.
    """

    def __init__(self, path: str | Path, columns: Columns, rows: np.ndarray | None = None) -> None:
        self.path, self.whole = str(path), columns
        self.rows = np.arange(len(columns)) if rows is None else rows
        self.columns = columns if rows is None else columns.take(rows)
        self._file: int | None = None
        self._last: tuple[int, Utterance] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = int(self.rows[index])
        if self._last is None or self._last[0] != row:
            self._last = row, self._parse(self._line(row))
        return self._last[1]

    def __iter__(self) -> Iterator[Utterance]:
        last, utterance = -1, None
        for place, line in self._lines():
            if utterance is None or self.rows[place] != last:
                last, utterance = int(self.rows[place]), self._parse(line)
            yield utterance

    def chosen(self, places: Sequence[int] | np.ndarray) -> Manifest:
        """The utterances at these places, in this order; a place may stand several times."""
        return Manifest(self.path, self.whole, self.rows[np.asarray(places, np.int64)])

    def matching(self, pattern: re.Pattern[bytes]) -> list[tuple[int, Utterance]]:
        """Row of the manifest, from 1, and utterance where the pattern is found in the row's line."""
        own = Manifest(self.path, self.whole, np.unique(self.rows))
        found = ((place, line) for place, line in own._lines() if pattern.search(line))
        return [(int(own.rows[place]) + 1, self._parse(line)) for place, line in found]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_last": None}

    def _parse(self, line: bytes) -> Utterance:
        try:
            return utterance_of(line)
        except (ValueError, TypeError):
            raise UserError(f"{self.path}: has changed since this run began; start it again") from None

    def _line(self, row: int) -> bytes:
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
        return os.pread(self._file, int(self.whole.size[row]), int(self.whole.start[row]))

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """(place, line) of each utterance; neighbours in the file are read together."""
        starts = self.whole.start[self.rows]
        ends = starts + self.whole.size[self.rows]
        place = 0
        while place < len(self):
            ordered = np.diff(starts[place : place + _BLOCK // 64]) >= 0
            stop = place + 1 + (len(ordered) if ordered.all() else int(np.argmin(ordered)))
            stop = min(stop, place + int(np.searchsorted(ends[place:stop], starts[place] + _BLOCK, "right")))
            stop = max(stop, place + 1)
            block = self._read(int(starts[place]), int(ends[stop - 1]))
            for at in range(place, stop):
                yield at, block[starts[at] - starts[place] : ends[at] - starts[place]]
            place = stop

    def _read(self, start: int, end: int) -> bytes:
        self._line(0)  # opens the file
        assert self._file is not None
        return os.pread(self._file, end - start, start)


def open_manifest(path: str | Path) -> Manifest:
    """The utterances of a manifest, all checked, none kept in memory.

    Raises:
        UserError, UserErrors: as `manifest.read_manifest`.
    """
    return Manifest(path, manifest_columns(path))
