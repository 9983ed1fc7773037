"""What a user did wrong, said in a form that teaches."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """A mistake of input or configuration. The command line prints it without a stack trace and exits 2.

    The message names the file (and line, where there is one), what is wrong and what would mend it.
    """


class Faults(UserError):
    """Several faults found in one pass, one a line."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        super().__init__("\n".join(self.faults))
