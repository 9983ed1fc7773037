"""A stand-in for a bare machine: torch, transformers, accelerate, what these require, and what is carried."""

from __future__ import annotations

import re
import sys
import venv
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts/benchmarks"))

from bare import PREFERENCES, TABLES, THERE, WHEELS, normal


def closure(names: Iterable[str]) -> set[str]:
    """These distributions and all that they require, extras left out, as installed here."""
    found: set[str] = set()
    left = [normal(name) for name in names]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        try:
            needs = requires(name) or []
        except PackageNotFoundError:  # of another system or Python
            continue
        left += [normal(re.split(r"[^\w.-]", line)[0]) for line in needs if "extra ==" not in line]
    return found


def make_bare(folder: Path, more: Sequence[str] = (*PREFERENCES, *TABLES)) -> Path:
    """An environment of links to the packages of a bare machine, and beside it what is carried; its Python.

    Raises:
        PackageNotFoundError: one of ours is not installed here.
    """
    venv.create(folder, symlinks=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    carried = folder / "carried"
    carried.mkdir()
    ours = {normal(name) for name in (*WHEELS, *more)}
    for name in closure(THERE) | ours:
        try:
            found = distribution(name)
        except PackageNotFoundError:
            if name in ours:
                raise
            continue
        place = carried if name in ours - {normal(table) for table in TABLES} else site
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (place / top).exists():
                (place / top).symlink_to(Path(str(found.locate_file(top))).resolve())
    return folder / "bin/python"
