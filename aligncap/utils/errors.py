"""What a user did wrong, said in a form that teaches."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """A mistake of input or configuration. The command line prints it without a stack trace and exits 2.

    The message names the file (and line, where there is one), what is wrong and what would mend it.
    """


class UserErrors(UserError):
    """Several errors found in one pass, one a line."""

    def __init__(self, errors: Sequence[str]) -> None:
        self.errors = list(errors)
        super().__init__("\n".join(self.errors))


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key under which "2" comes before "10"."""
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", text) if p]


def nearest(word: str, known: Iterable[str]) -> str:
    """`, nearest is "x"` for messages about an unknown word; empty when nothing is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f', nearest is "{close[0]}"' if close else ""
