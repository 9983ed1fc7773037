"""The clips that a report shows: drawn by seed, with players."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np

from aligncap.captions.emotions import emotion_of
from aligncap.evaluation.systems import System
from aligncap.io import atomic_open
from aligncap.manifest import Utterance, audio_path

Audio = Literal["copy", "link", "embed"]

_MIME = {
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".mp3": "audio/mpeg",
    ".m4a": "audio/mp4",
}


def choose_samples(
    systems: Sequence[System], main: System, references: Sequence[Utterance], number: int, seed: int
) -> list[dict[str, Any]]:
    """Rows of the sample table: `number` clips drawn by `seed`, sorted by label, with what systems say."""
    captions = {s.name: {row["id"]: row["caption"] for row in s.rows} for s in systems}
    pool = [u for u in references if u.id in captions[main.name]]
    chosen = np.random.default_rng(seed).permutation(len(pool))[:number]
    shown = sorted((pool[i] for i in chosen), key=lambda u: (u.emotion or "", u.id))
    rows = []
    for u in shown:
        said = []
        for s in systems:
            if u.id in captions[s.name]:
                emotion = emotion_of(captions[s.name][u.id])
                said.append(
                    {
                        "system": s.name,
                        "caption": captions[s.name][u.id],
                        "emotion": emotion,
                        "right": None if u.emotion is None else emotion == u.emotion,
                    }
                )
        about = [x for x in (u.speaker and f"speaker {u.speaker}", u.gender, u.intensity) if x]
        row = {
            "utterance": u,
            "about": ", ".join(about),
            "said": said,
            "source": None,
            "type": None,
            "missing": None,
        }
        rows.append(row)
    return rows


def attach_audio(rows: Sequence[dict[str, Any]], out: Path, manifest_path: Path, how: Audio) -> None:
    """Give each row a "source" for its player: a copy in `out`/audio, a relative link or a data URI.

    A file that is not there is named under "missing".

    Raises:
        UserError: an audio path leads out of its root, or a copy cannot be written.
    """
    paths = [audio_path(manifest_path, row["utterance"]) for row in rows]
    folder = out / "audio"
    for stale in folder.glob("clip-*.*"):
        stale.unlink()
    for number, (row, path) in enumerate(zip(rows, paths, strict=True)):
        suffix = path.suffix.lower()
        row["type"] = _MIME.get(suffix, "application/octet-stream")
        if not path.is_file():
            row["missing"] = f"{row['utterance'].audio}: no such file"
        elif how == "embed":
            row["source"] = f"data:{row['type']};base64,{base64.b64encode(path.read_bytes()).decode()}"
        elif how == "link":
            row["source"] = quote(Path(os.path.relpath(path, out.resolve())).as_posix())
        else:
            name = f"clip-{number:03d}{suffix if suffix in _MIME else ''}"
            with atomic_open(folder / name, "wb") as file:
                file.write(path.read_bytes())
            row["source"] = f"audio/{name}"
