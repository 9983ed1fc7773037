"""What was asked, answered and paid, a line each, append-only: cache of answers and book of spending.

Lines, after a head that says what the file is:
    {"event": "sent", "request", "key", "cost"}      written before a request leaves; cost is the worst case
    {"event": "done", "request", "key", "outcome", "cost"}     what came of it; "ok" carries "answer"
    {"event": "batch", "batch", "requests": [[key, cost], ...]}      the same as "sent" for a batch
    {"event": "batch-created", "batch", "id"}        the endpoint's name for it
    {"event": "batch-done", "batch"}                 no more answers will come: the unsettled cost nothing
A request without "done" (the run was killed, the answer lost) counts as spent at its worst case. Costs are
in US dollars. A line is handed to the system at once, and on disk when the call that writes it returns (or
`synced`, where many tasks share a sync). A torn last line was never acted upon: it is cut off when the
journal is opened again.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from aligncap.errors import Faults, UserError

_HEAD = json.dumps({"journal": "aligncap verdicts", "format": 1})


@dataclass(frozen=True)
class Paid:
    """An answer that was paid for; `served` is the model as the endpoint named it."""

    answer: dict[str, Any]
    served: str


@dataclass
class Batch:
    """A batch under way; `remote` is the endpoint's name for it, None until that is known.

    `worst` are the worst costs by key; `kind`, `model` and `prices` (in, out) are those of its questions.
    """

    name: str
    worst: dict[str, float]
    kind: str
    model: str
    prices: tuple[float, float]
    remote: str | None = None

    def request(self, key: str) -> str:
        """Name of one of its requests."""
        return f"{self.name}/{key}"


@dataclass
class Ledger:
    """What the lines of a journal come to.

    `paid` are the answers by key; `settled` dollars were spent for sure, `open` are the worst cases of
    requests whose end is not known.
    """

    paid: dict[str, Paid] = field(default_factory=dict)
    open: dict[str, float] = field(default_factory=dict)
    batches: dict[str, Batch] = field(default_factory=dict)
    settled: float = 0.0

    @property
    def spent(self) -> float:
        """Dollars spent at most: what is settled, and the worst case of what is open."""
        return self.settled + sum(self.open.values())

    def take(self, event: dict[str, Any]) -> None:
        """Add one line."""
        match event["event"]:
            case "sent":
                self.open[event["request"]] = event["cost"]
            case "done":
                self.open.pop(event["request"], None)
                self.settled += event["cost"]
                if event["outcome"] == "ok":
                    self.paid[event["key"]] = Paid(event["answer"], event["served"])
            case "batch":
                batch = Batch(
                    event["batch"],
                    dict(event["requests"]),
                    event["kind"],
                    event["model"],
                    tuple(event["prices"]),
                )
                self.batches[batch.name] = batch
                self.open |= {batch.request(key): cost for key, cost in batch.worst.items()}
            case "batch-created":
                self.batches[event["batch"]].remote = event["id"]
            case "batch-done":
                batch = self.batches.pop(event["batch"])
                for key in batch.worst:
                    self.open.pop(batch.request(key), None)


class VerdictJournal(Ledger):
    """A journal opened for writing by this process alone.

    `shared_sync`: writers await `synced` instead of a sync of their own.

    Raises:
        UserError: another process holds the journal, it is no journal, or cannot be written.
        Faults: broken lines before the last.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._file: IO[bytes] | None = None
        self._written = self._synced = 0  # lines
        self._syncing: asyncio.Task[None] | None = None
        self.shared_sync = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(f"{self.path}.lock", timeout=0)
            self._lock.acquire()
        except Timeout:
            raise UserError(
                f"{self.path}: another process is judging with this journal; wait for it, or name another "
                "journal with --cache"
            ) from None
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> VerdictJournal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        self._lock.release()

    async def synced(self) -> None:
        """Return when all lines written so far are on disk; one sync serves all tasks that wait.

        Raises:
            UserError: the disk is full.
        """
        wanted = self._written
        while self._synced < wanted:
            if self._syncing is None:
                self._syncing = asyncio.create_task(self._sync())
            await asyncio.shield(self._syncing)

    def sent(self, key: str, cost: float, **more: Any) -> str:
        """Note that a request is about to leave; returns its name."""
        request = uuid.uuid4().hex[:16]
        self._write({"event": "sent", "request": request, "key": key, "cost": cost} | more)
        return request

    def done(
        self,
        request: str,
        key: str,
        outcome: str,
        cost: float,
        answer: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """Note what came of a request, and what it cost."""
        line = {"event": "done", "request": request, "key": key, "outcome": outcome, "cost": cost} | more
        self._write(line | ({"answer": answer} if answer is not None else {}))

    def batch(
        self, requests: list[tuple[str, float]], kind: str, model: str, prices: tuple[float, float]
    ) -> Batch:
        """Note that a batch of (key, worst cost) is about to leave."""
        name = uuid.uuid4().hex[:16]
        event = {"event": "batch", "batch": name, "requests": requests}
        self._write(event | {"kind": kind, "model": model, "prices": prices})
        return self.batches[name]

    def batch_created(self, batch: Batch, remote: str) -> None:
        """Note the endpoint's name of a batch."""
        self._write({"event": "batch-created", "batch": batch.name, "id": remote})

    def batch_done(self, batch: Batch, outcome: str) -> None:
        """Note that no more answers of a batch will come."""
        self._write({"event": "batch-done", "batch": batch.name, "outcome": outcome})

    def _open(self) -> None:
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            if not whole and not f"{_HEAD}\n".encode().startswith(content):
                raise self._foreign()
            for event in _events(self.path, whole):
                self.take(event)
            self._file = self.path.open("r+b" if content else "wb")
            self._file.truncate(len(whole))
            self._file.seek(0, os.SEEK_END)
            if not whole:
                self._append(_HEAD)
        except OSError as error:
            raise self._unwritable(error) from error

    def _foreign(self) -> UserError:
        return UserError(f"{self.path}: not a journal of verdicts; name another file with --cache")

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"{self.path}: cannot be written: {error.strerror or error}; free space or name another journal "
            "with --cache"
        )

    def _write(self, event: dict[str, Any]) -> None:
        try:
            self._append(json.dumps(event | {"time": round(time.time(), 3)}))
        except OSError as error:
            raise self._unwritable(error) from error
        self.take(event)

    def _append(self, line: str) -> None:
        assert self._file is not None
        self._file.write(f"{line}\n".encode())
        self._file.flush()
        self._written += 1
        if not self.shared_sync:
            os.fsync(self._file.fileno())
            self._synced = self._written

    async def _sync(self) -> None:
        assert self._file is not None
        until = self._written
        try:
            await asyncio.to_thread(os.fsync, self._file.fileno())
            self._synced = until
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            self._syncing = None


def read_ledger(path: str | Path) -> Ledger:
    """What a journal comes to, without opening it for writing; empty where there is none.

    Raises:
        UserError, Faults: as `read_events`.
    """
    ledger = Ledger()
    for event in read_events(path) if Path(path).exists() else []:
        ledger.take(event)
    return ledger


def read_events(path: str | Path) -> list[dict[str, Any]]:
    """Events of a journal, also while another process writes it.

    Raises:
        UserError: it is no journal.
        Faults: broken lines before the last.
    """
    content = Path(path).read_bytes()
    return _events(Path(path), content[: content.rfind(b"\n") + 1])


def _events(path: Path, content: bytes) -> list[dict[str, Any]]:
    lines = content.split(b"\n")[:-1]
    if lines and lines[0].decode("utf-8", "replace") != _HEAD:
        raise UserError(f"{path}: not a journal of verdicts; name another file with --cache")
    events: list[dict[str, Any]] = []
    faults: list[str] = []
    for number, line in enumerate(lines[1:], 2):
        try:
            event = json.loads(line)
            assert isinstance(event["event"], str)
            events.append(event)
        except (ValueError, KeyError, TypeError, AssertionError):
            faults.append(
                f"{path}:{number}: a broken line in the journal; delete it (its answer is then asked again)"
            )
    if faults:
        raise Faults(faults)
    return events
