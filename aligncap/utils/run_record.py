"""run.json: what made a result."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from aligncap.utils.io import Row, file_sha256, write_json

# Those that decide numbers.
_PACKAGES = "aligncap torch transformers trl peft accelerate spacy evaluate numpy soxr".split()


def git_commit() -> str | None:
    """Commit of the checkout that the package runs from, with "+changes" when it is not clean."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    words = ["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"]
    try:
        commit, changes = (
            subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
            for command in words
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changes else "")


def versions() -> dict[str, str]:
    """Versions of the packages that decide numbers."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def file_hashes(paths: Iterable[str | Path]) -> dict[str, str]:
    """SHA-256 of each file; one that has neither changed size nor time is read once a process."""
    stats = {str(path): os.stat(path) for path in paths}
    return {path: _sha256(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


@lru_cache(maxsize=256)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    return file_sha256(path)


def write_run_record(
    folder: str | Path, verb: str, config: Row, data: Iterable[str | Path], **more: object
) -> None:
    """Write `folder/run.json`: command, resolved config, versions, commit, data hashes, seed, machine."""
    record: Row = {
        "verb": verb,
        "command": sys.argv,
        "config": config,
        "data": file_hashes(data),
        "versions": versions(),
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(Path(folder) / "run.json", record | more)
