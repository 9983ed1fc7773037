"""Where METEOR's synonyms come from: WordNet in NLTK's folder form, found or built, never downloaded."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from aligncap.errors import UserError

SYSTEM_FOLDER = Path("/usr/share/wordnet")  # of the Debian packages wordnet-base and wordnet-sense-index

_FILES = (
    *(f"{kind}.{part}" for kind in ("data", "index") for part in ("noun", "verb", "adj", "adv")),
    *(f"{part}.exc" for part in ("noun", "verb", "adj", "adv")),
    "index.sense",
    "cntlist.rev",
)
_NOUN = (
    "Tops act animal artifact attribute body cognition communication event feeling food group location "
    "motive object person phenomenon plant possession process quantity relation shape state substance time"
)
_VERB = (
    "body change cognition communication competition consumption contact creation emotion motion perception "
    "possession social stative weather"
)


def nltk_folder() -> Path:
    """The project's own NLTK data: `$ALIGNCAP_HOME/nltk_data`, else `~/.cache/aligncap/nltk_data`."""
    home = os.environ.get("ALIGNCAP_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".cache" / "aligncap") / "nltk_data"


def lexnames() -> str:
    """WordNet's table of lexicographer files (lexnames(5WN)), which Debian's packages leave out."""
    rows = [("adj.all", 3), ("adj.pert", 3), ("adv.all", 4)]
    rows += [(f"noun.{name}", 1) for name in _NOUN.split()]
    rows += [(f"verb.{name}", 2) for name in _VERB.split()]
    rows += [("adj.ppl", 3)]
    return "".join(f"{number:02d}\t{name}\t{part}\n" for number, (name, part) in enumerate(rows))


def build_wordnet(source: Path = SYSTEM_FOLDER, out: Path | None = None) -> Path:
    """Copy a WordNet 3.0 database folder into `out`/corpora/wordnet, the form NLTK reads; return `out`.

    Files are copied since NLTK refuses links that lead out of its folder. About 35 MB.

    Raises:
        UserError: files of the database are missing from `source`, or `out` cannot be written.
    """
    out = nltk_folder() if out is None else out
    missing = [name for name in _FILES if not (source / name).is_file()]
    if missing:
        raise UserError(
            f"{source}: not a whole WordNet database, lacks {', '.join(missing)}. "
            "Install the packages wordnet-base and wordnet-sense-index"
        )
    target = out / "corpora" / "wordnet"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as name:
            ready = Path(name) / "wordnet"
            ready.mkdir()
            for file in _FILES:
                shutil.copyfile(source / file, ready / file)
            (ready / "lexnames").write_text(lexnames(), encoding="utf-8")
            if not target.exists():
                os.replace(ready, target)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written: {error.strerror or error}. Set ALIGNCAP_HOME"
        ) from error
    return out


@cache
def find_wordnet() -> Any | None:
    """NLTK's WordNet reader, or None where there is no WordNet on this machine.

    Looked for in NLTK's own places (NLTK_DATA and the like), then in `nltk_folder()`, which is filled from
    /usr/share/wordnet when that is there.
    """
    import nltk
    from nltk.corpus import wordnet

    folder = nltk_folder()
    if str(folder) not in nltk.data.path:
        nltk.data.path.append(str(folder))
    for attempt in range(2):
        try:
            wordnet.ensure_loaded()
            return wordnet
        except LookupError:
            if attempt:
                return None
        try:
            build_wordnet()
        except UserError:
            return None
    return None


def require_wordnet() -> Any:
    """NLTK's WordNet reader.

    Raises:
        UserError: there is none; the message says how to get one or do without.
    """
    reader = find_wordnet()
    if reader is None:
        raise UserError(
            f"WordNet was not found. Install the packages wordnet-base and wordnet-sense-index, or put it in "
            f"{nltk_folder()}/corpora/wordnet, or ask for METEOR without synonyms"
        )
    return reader
