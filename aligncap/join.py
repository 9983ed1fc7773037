"""Several manifests in one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from aligncap.errors import Faults
from aligncap.manifest import Utterance, read_manifest, rebase, write_manifest
from aligncap.splits import straddling

_log = logging.getLogger(__name__)


def join_manifests(paths: Sequence[str | Path], out: str | Path) -> list[Utterance]:
    """Write the utterances of several manifests into one, in their order, and return them.

    Relative roots still lead to the audio. Identical clips of different manifests are a warning in the log.

    Raises:
        Faults: ids that more than one manifest uses.
        UserError: a manifest cannot be read, or `out` not written.
    """
    parts = {str(path): rebase(read_manifest(path), path, out) for path in paths}
    first: dict[str, str] = {}
    faults = []
    for path, utterances in parts.items():
        faults += [
            f'{path}: id "{u.id}" is used in {first[u.id]} too; ids must differ, so name each clip once'
            for u in utterances
            if u.id in first
        ]
        first.update((u.id, path) for u in utterances)
    if faults:
        raise Faults(faults)
    for note in straddling(parts):
        _log.warning("%s; drop one of them", note)
    joined = [u for utterances in parts.values() for u in utterances]
    write_manifest(out, joined)
    return joined
