"""What must be carried to a machine that has torch, transformers and accelerate alone, and their needs.

    python3 scripts/benchmarks/bare.py DIR [--python 3.12]     # fetch the wheels into DIR; needs pip alone

A test makes such an environment out of the packages installed here (tests/bare_site.py).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable
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


def pinned(names: Iterable[str]) -> list[str]:
    """NAME==VERSION as configs/constraints.txt has it."""
    lines = (ROOT / "configs/constraints.txt").read_text(encoding="utf-8").split()
    versions = {normal(line.partition("==")[0]): line for line in lines if "==" in line}
    return [versions[normal(name)] for name in names]


def main() -> int:
    """Fetch the wheels for a machine of another Python, and weigh them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="of the machine they are for (x86-64 Linux)")
    a = parser.parse_args()
    wanted = pinned((*WHEELS, *PREFERENCES))
    print("to carry:", *wanted, "\ntaken as there:", ", ".join((*THERE, "what these require", *TABLES)))
    platforms = [f"--platform=manylinux_{number}_x86_64" for number in PLATFORMS]
    fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    fetch += [f"--python-version={a.python}", "--implementation=cp", *platforms, "-d", str(a.folder), *wanted]
    subprocess.run(fetch, check=True)
    total = sum(file.stat().st_size for file in a.folder.glob("*.whl"))
    print(f"{total / 1e6:.1f} MB in {a.folder} (at most {LIMIT / 1e6:.0f})")
    return int(total > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
