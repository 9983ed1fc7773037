"""A progress bar in a terminal, silence elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], total: int | None, what: str) -> Iterator[T]:
    """Yield `items`; when standard error is a terminal, show how many of `total` are done.

    `total` None is the length of `items`.
    """
    from rich.console import Console
    from rich.progress import track as bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield from items
        return
    if total is None and isinstance(items, Sized):
        total = len(items)
    yield from bar(items, description=what, total=total, console=console, transient=True)
