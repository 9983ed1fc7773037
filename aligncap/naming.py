"""Order of names, and the name that was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key under which "2" comes before "10"."""
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", text) if p]


def nearest(word: str, known: Iterable[str]) -> str:
    """`, nearest is "x"` for messages about an unknown word; empty when nothing is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f', nearest is "{close[0]}"' if close else ""
