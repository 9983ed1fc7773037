"""Every error of a manifest at once, and what is worth knowing of it."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from aligncap.audio.files import AudioError, check, read_bytes
from aligncap.audio.members import is_there, member_of
from aligncap.data.manifest import Utterance, audio_path, parse_manifest
from aligncap.data.split import duplicates
from aligncap.utils.errors import UserError, natural
from aligncap.utils.options import Config, option
from aligncap.utils.progress import track


@dataclass
class ValidateConfig(Config):
    """Name every error of a manifest with file and line: broken lines, audio that is absent or has changed.

    The exit code is 1 where there are errors. Identical clips are notes.

    Examples:
        aligncap validate ravdess.jsonl
        aligncap validate ravdess.jsonl --shallow
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("manifest",)

    manifest: str = option(help="Manifest.")
    shallow: bool = option(False, "Only look whether the audio is there; do not read it.")


@dataclass
class Validation:
    """What `validate` found: `errors` to be mended, `notes` worth knowing, and the number of clips."""

    errors: list[str]
    notes: list[str]
    clips: int


def run_validate(config: ValidateConfig) -> int:
    """`aligncap validate`."""
    found = validate(config.manifest, deep=not config.shallow)
    for line in found.errors + [f"note: {note}" for note in found.notes]:
        print(line)
    print(f"{config.manifest}: {found.clips} clips, {len(found.errors)} errors, {len(found.notes)} notes")
    return 1 if found.errors else 0


def validate(path: str | Path, *, deep: bool = True) -> Validation:
    """Errors and notes of a manifest.

    Args:
        deep: read every sound file, decode it and compare it with its sha256; otherwise only its presence
            is checked.

    Raises:
        UserError: no such file.
    """
    path = Path(path)
    rows, errors = parse_manifest(path)
    with ThreadPoolExecutor() as pool:
        checked = pool.map(lambda row: _audio_errors(path, row[1], deep), rows)
        for (number, _), found in zip(rows, track(checked, len(rows), "checking audio"), strict=True):
            errors += [f"{path}:{number}: {error}" for error in found]
    notes = [f"identical clips: {', '.join(ids)}" for ids in duplicates(u for _, u in rows)]
    return Validation(sorted(errors, key=natural), notes, len(rows))


def _audio_errors(manifest: Path, u: Utterance, deep: bool) -> list[str]:
    try:
        path = audio_path(manifest, u)
        if not is_there(path):
            if (member := member_of(path)) is not None:
                return [f"{member.tar}: no such shard; copy it here, or run `aligncap shard` again"]
            return [f"{path}: no such file; check root and audio, or prepare the corpus again"]
        data = read_bytes(path)[0] if deep else b""
    except AudioError as error:
        return [str(error)]
    except UserError as error:
        return [str(error).removeprefix(f"{manifest}: ")]
    errors = check(path, data=data) if deep else []
    if deep and not errors and u.sha256 and hashlib.sha256(data).hexdigest() != u.sha256:
        errors = [f"{path}: not the file that the manifest was made of (sha256 differs); prepare it again"]
    return errors
