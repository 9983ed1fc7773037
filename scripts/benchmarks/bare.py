"""What a bare machine needs from us: the wheels to carry, and a stand-in for such a machine.

Bare: torch, transformers and accelerate with what they require, and nothing else. `make_bare` gives such an
environment out of the packages installed here, so that a test can run what would run on that machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
THERE = ("torch", "transformers", "accelerate", "pip")
# What training, candidates and captions import beside these, tests and the benchmark included.
WHEELS = (
    "transformers peft soundfile cffi pycparser soxr pydantic pydantic_core annotated-types "
    "typing-inspection pytest pluggy iniconfig"
).split()
# Of `train dpo` alone. trl reads datasets, which reads pyarrow and pandas: 67 MB that most machines with
# torch have already and that are not carried. Without them these are left out too, and dpo is not measured.
PREFERENCES = ("trl", "datasets", "dill", "multiprocess", "xxhash")
TABLES = ("pyarrow", "pandas", "python-dateutil")
LIMIT = 60_000_000  # bytes of all wheels
PLATFORMS = "2_39 2_35 2_34 2_31 2_28 2_27 2_24 2_17 2_5".split()


def normal(name: str) -> str:
    """A distribution's name as packaging compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


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
    """A folder of links to the packages of a bare machine, to `WHEELS` and to `more`: for `python -S`.

    Raises:
        PackageNotFoundError: one of ours is not installed here.
    """
    folder.mkdir(parents=True)
    ours = {normal(name) for name in (*WHEELS, *more)}
    for name in closure(THERE) | ours:
        try:
            found = distribution(name)
        except PackageNotFoundError:
            if name in ours:
                raise
            continue
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(found.locate_file(top))).resolve())
    return folder
