"""`python -m aligncap COMMAND …`: the command, in the form that launchers start."""

import sys

from aligncap.cli import main

if __name__ == "__main__":
    sys.exit(main())
