"""run.json: what made a result."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from aligncap.utils.io import file_sha256, write_json

_PACKAGES = (
    "aligncap",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "spacy",
    "evaluate",
    "numpy",
    "soxr",
)


def git_commit() -> str | None:
    """Commit of the checkout that the package runs from, with "+changes" when it is not clean."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        )
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def versions() -> dict[str, str]:
    """Versions of the packages that decide numbers."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def file_hashes(paths: list[str | Path]) -> dict[str, str]:
    """SHA-256 of each file."""
    return {str(p): file_sha256(p) for p in paths}


def write_run_record(
    folder: str | Path, verb: str, config: dict[str, Any], data: list[str | Path], **more: Any
) -> None:
    """Write `folder/run.json`: command, resolved config, versions, commit, data hashes, seed, machine."""
    write_json(
        Path(folder) / "run.json",
        {
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
            **more,
        },
    )
