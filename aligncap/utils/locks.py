"""One command at a time writes an output: a lock beside it that names its holder."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from aligncap.utils.errors import UserError

_MUTEX = threading.Lock()  # filelock's own counting is not safe between threads of one process


@contextmanager
def locked(out: str | Path | None) -> Iterator[None]:
    """Keep other commands from writing `out`, a file or a folder, while the block runs.

    The lock is `.NAME.lock` beside `out`. Its holder removes it; of a killed holder it does not hold. A
    process may take it several times. Of the processes of one launch the first takes it, for all. Where no
    lock can be written none is taken, since `out` cannot be written either.

    Raises:
        UserError: another command holds the lock; the message says which, where and since when.
    """
    if out is None or int(os.environ.get("RANK", "0")) > 0:
        yield
        return
    path = Path(os.path.abspath(out))
    file = path.with_name(f".{path.name}.lock")
    new = [folder for folder in path.parents if not folder.exists()]
    lock = FileLock(file, timeout=0, thread_local=False, is_singleton=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _MUTEX:
            lock.acquire()
    except Timeout:
        what = f"{path}: is being written by {_holder(file)}"
        raise UserError(f"{what}; wait until it is done, or choose another output") from None
    except OSError:
        pass
    else:
        if lock.lock_counter == 1:
            _name_holder(file)
    try:
        yield
    finally:
        with _MUTEX:
            with suppress(OSError):
                if lock.lock_counter == 1:
                    file.unlink()
            lock.release()
        with suppress(OSError):  # folders that were made for the lock and stayed empty
            for folder in new:
                folder.rmdir()


def _name_holder(file: Path) -> None:
    command = shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": command if len(command) <= 200 else f"{command[:200]}…",
    }
    with suppress(OSError):
        file.write_text(json.dumps(holder), encoding="utf-8")


def _holder(file: Path) -> str:
    try:
        holder = json.loads(file.read_text("utf-8"))
        return "process {pid} on {host} since {since}: {command}".format(**holder)
    except (OSError, ValueError, KeyError, TypeError):  # it has not said so yet
        return "another process"
