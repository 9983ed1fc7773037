"""Work shared over the processes that `accelerate launch` or torchrun starts.

Every long stage has one form: batches that depend on the data alone are dealt out in turn, what is finished
is kept on disk, and when all are done every process reads what the others wrote. So neither the number of
processes nor a lost one changes the result, and a later run, of any number, goes on from what is on disk.
The processes need one file system.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from aligncap.utils.progress import track

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
Rows = dict[Any, Any]  # what was computed, by key


class Store(Protocol):
    """Rows by key, kept where other processes find them: a `Journal`, a `TensorCache` or `Gathered`."""

    def __contains__(self, key: object, /) -> bool: ...

    def __getitem__(self, key: Any, /) -> Any: ...

    def write(self, rows: Rows) -> None:
        """Keep finished rows."""

    def reread(self) -> None:
        """Take up what the other processes have written."""


@dataclass(frozen=True)
class Group:
    """The processes that share the work, as one of them sees it."""

    rank: int = 0
    count: int = 1

    def gather(self, found: T) -> list[T]:
        """What each process found, by rank; each waits for all."""
        if self.count == 1:
            return [found]
        from accelerate.utils import gather_object

        return gather_object([found])

    def first(self, value: T) -> T:
        """The first process's value."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def merge(self, found: Mapping[K, T]) -> dict[K, T]:
        """What all processes found together; each waits for all."""
        return {key: value for part in self.gather(dict(found)) for key, value in part.items()}

    def share_out(
        self,
        store: Store,
        batches: Sequence[Sequence[K]],
        compute: Callable[..., Rows],
        title: str,
        at_once: int = 1,
        read: Callable[[Sequence[K]], object] | None = None,
    ) -> None:
        """Compute the batches of which `store` lacks a key; every process must call it.

        A batch is computed whole, also where some of its rows are there: its padding, and with it the last
        digits, are then those of an unbroken run.

        Args:
            batches: the same however many processes there are, the costliest first.
            compute: rows of a batch, from its keys; those that cannot be had may be left out.
            at_once: rows that are worth a write.
            read: of a batch's keys what `compute` is given beside them; it runs in a thread, one batch ahead,
                so that a GPU does not wait for files.
        """
        # The first process's list counts: others may have looked after it began to write.
        todo = self.first([batch for batch in batches if any(key not in store for key in batch)])
        own = todo[self.rank :: self.count]
        rows: Rows = {}
        for batch, *found in _ahead(track(own, None, title) if self.rank == 0 else own, own, read):
            rows |= compute(batch, *found)
            if len(rows) >= at_once:
                store.write(rows)
                rows = {}
        if rows:
            store.write(rows)
        self.gather(None)
        store.reread()


def _ahead(shown: Iterable[T], batches: Sequence[T], read: Callable[[T], object] | None) -> Iterator[Any]:
    """(batch,), or (batch, what `read` gives of it), which is read while the one before is at work.

    Args:
        shown: the batches once more, behind a progress bar.
    """
    if read is None:
        yield from ((batch,) for batch in shown)
        return
    with ThreadPoolExecutor(1) as thread:
        coming = [thread.submit(read, batch) for batch in batches[:1]]
        for place, batch in enumerate(shown):
            found = coming.pop().result()
            coming += [thread.submit(read, after) for after in batches[place + 1 : place + 2]]
            yield batch, found


ALONE = Group()


class Gathered(Rows):
    """A store in memory, for what is sooner made again than kept."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.group = group

    def write(self, rows: Rows) -> None:
        self.update(rows)

    def reread(self) -> None:
        self.update(self.group.merge(self))


def launched(device: str = "auto") -> tuple[Group, str]:
    """The group this process was started in, and its own device: with "auto" or "cuda" a GPU each.

    Alone, nothing is set up and `device` is handed back as it is.
    """
    group = Group(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    if group.count == 1:
        return ALONE, device
    import torch
    from accelerate import PartialState

    cpu = device == "cpu" or not torch.cuda.is_available()
    # A process that is done waits for the others, however long their clips take.
    state = PartialState(cpu, timeout=timedelta(days=7))
    if device in ("auto", "cuda") and not cpu:
        device = str(state.device)
    return group, "cpu" if device == "auto" else device
