"""Every error of a manifest at once, and what is worth knowing of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from aligncap.audio.files import check
from aligncap.data.manifest import Utterance, audio_path, parse_manifest
from aligncap.data.split import duplicate_notes
from aligncap.utils.errors import UserError, natural
from aligncap.utils.io import file_sha256
from aligncap.utils.progress import track


@dataclass
class Validation:
    """What `examine` found: `errors` to be mended, `notes` worth knowing, and the number of clips."""

    errors: list[str]
    notes: list[str]
    clips: int


def examine(path: str | Path, deep: bool = True) -> Validation:
    """UserErrors and notes of a manifest.

    Args:
        deep: decode every sound file and compare it with its sha256; otherwise only its presence is checked.

    Raises:
        UserError: no such file.
    """
    path = Path(path)
    rows, errors = parse_manifest(path)
    with ThreadPoolExecutor() as pool:
        checked = pool.map(lambda row: _audio_errors(path, row[1], deep), rows)
        for (number, _), found in zip(rows, track(checked, len(rows), "checking audio"), strict=True):
            errors += [f"{path}:{number}: {error}" for error in found]
    errors.sort(key=natural)
    return Validation(errors, duplicate_notes(u for _, u in rows), len(rows))


def _audio_errors(manifest: Path, u: Utterance, deep: bool) -> list[str]:
    try:
        path = audio_path(manifest, u)
    except UserError as error:
        return [str(error).removeprefix(f"{manifest}: ")]
    if not path.is_file():
        return [f"{path}: no such file; check root and audio, or prepare the corpus again"]
    if not deep:
        return []
    errors = check(path)
    if u.sha256 and not errors and file_sha256(path) != u.sha256:
        errors.append(
            f"{path}: not the file that the manifest was made of (sha256 differs); prepare it again"
        )
    return errors
