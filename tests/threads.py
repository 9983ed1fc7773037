"""Threads that stand in for processes: the same meetings, without a launcher."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Barrier, BrokenBarrierError, Thread
from typing import Any

from aligncap.utils.distributed import Group


class Meeting:
    def __init__(self, count: int) -> None:
        self.barrier = Barrier(count, timeout=60)
        self.said: list[Any] = [None] * count


@dataclass(frozen=True)
class ThreadGroup(Group):
    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def gather(self, found: Any) -> list[Any]:
        self.meeting.said[self.rank] = pickle.dumps(found)
        self.meeting.barrier.wait()
        heard = [pickle.loads(said) for said in self.meeting.said]
        self.meeting.barrier.wait()
        return heard

    def first(self, value: Any) -> Any:
        return self.gather(value)[0]


def run(count: int, work: Callable[[Group], Any]) -> list[Any]:
    """What `work` returns in each of `count` threads; where one fails the others are stopped, as a launcher
    does, and its error is raised."""
    meeting = Meeting(count)
    results: list[Any] = [None] * count
    errors: list[BaseException] = []

    def one(rank: int) -> None:
        try:
            results[rank] = work(ThreadGroup(rank, count, meeting))
        except BaseException as error:
            meeting.barrier.abort()
            errors.append(error)

    threads = [Thread(target=one, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in sorted(errors, key=lambda e: isinstance(e, BrokenBarrierError)):
        raise error
    return results
