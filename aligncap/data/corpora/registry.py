"""Which module reads which corpus."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aligncap.data.corpora.common import Reading
from aligncap.utils.errors import UserError, nearest

# name on the command line -> module, imported only when asked for
MODULES = {
    "ravdess": "ravdess",
    "nemo": "nemo",
    "crema-d": "crema_d",
    "emodb": "emodb",
    "esd": "esd",
    "jl-corpus": "jl_corpus",
    "savee": "savee",
    "tess": "tess",
    "meld": "meld",
    "iemocap": "iemocap",
    "secap": "secap",
    "emosec": "emosec",
    "csv": "table",
    "jsonl": "table",
    "made": "made",
}


def corpora() -> list[str]:
    """Names that `prepare` accepts."""
    return list(MODULES)


def reader(corpus: str) -> Callable[..., Reading]:
    """The `read` function of a corpus; its first argument is the corpus folder, a `Path`.

    Raises:
        UserError: no such corpus.
    """
    if corpus not in MODULES:
        raise UserError(
            f'unknown corpus "{corpus}"{nearest(corpus, MODULES)}; there are {", ".join(MODULES)}'
        )
    read: Any = importlib.import_module(f"aligncap.data.corpora.{MODULES[corpus]}").read
    return read


def takes_columns(corpus: str) -> bool:
    """Whether the corpus is a table of the user's own, with a map of columns."""
    return MODULES.get(corpus) == "table"


def is_folder(corpus: str, folder: Path) -> Path:
    """The folder as an absolute path.

    Raises:
        UserError: it does not exist; made speech needs none, it makes one.
    """
    if corpus != "made" and not folder.exists():
        raise UserError(f"{folder}: no such folder; give the folder of the {corpus} corpus")
    if folder.is_file() and not takes_columns(corpus):
        raise UserError(f"{folder}: is a file; give the folder of the {corpus} corpus, unpacked")
    return folder.resolve()
