"""Moments: what was said, heard and seen at one time, any of the three absent, and the emotion it was.

A file of moments is a JSONL file of the rows of a manifest (docs/manifest.md); `audio` may be absent, and
`pictures` (paths of faces in the order of time) or `video` may be there; `transcript` is what was said. Every
manifest with emotions is a file of moments.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from aligncap.data.manifest import locate, used_twice
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import Row, json_lines, load_data

SEVEN = ("neutral", "happy", "sad", "angry", "fearful", "disgusted", "surprised")
# Labels that mean one of the seven; a moment of any other label is no target and not trained on.
_SAME = {"calm": "neutral"}
_SENSES = ("transcript", "audio", "pictures", "video")


@dataclass(slots=True)
class Moment:
    """One moment; `label` is one of SEVEN, or None where it is another emotion or not known."""

    id: str
    label: str | None = None
    speaker: str | None = None
    language: str = "en"
    text: str | None = None
    audio: str | None = None  # absolute path, as audio/files.py takes it
    pictures: list[Path] = field(default_factory=list)
    video: Path | None = None


_FILLED = Annotated[str, Field(pattern=r"\S")]


@with_config(ConfigDict(strict=True, extra="ignore"))
class _Row(TypedDict):
    id: _FILLED
    root: NotRequired[_FILLED]
    speaker: NotRequired[str | None]
    language: NotRequired[str]
    emotion: NotRequired[str | None]
    transcript: NotRequired[str | None]
    audio: NotRequired[_FILLED | None]
    pictures: NotRequired[list[_FILLED]]
    video: NotRequired[_FILLED | None]


_CHECK: TypeAdapter[_Row] = TypeAdapter(_Row)


def label_of(emotion: str | None) -> str | None:
    """The one of SEVEN that a label of data/labels.yaml or one of its aliases means; None: none of them."""
    name = (emotion or "").strip().lower()
    name = load_data("labels.yaml")["aliases"].get(name, name)
    name = _SAME.get(name, name)
    return name if name in SEVEN else None


def read_moments(path: str | Path, senses: Sequence[str] = ()) -> list[Moment]:
    """The moments of a file, in its order; files that they name need not exist.

    Args:
        path: of the JSONL file.
        senses: keep only moments that have one of these: "text", "voice", "face"; none: every moment.

    Raises:
        UserError: no such file, or no moment of these senses in it.
        UserErrors: every line that is broken, names an id twice or a path outside its root.
    """
    moments, errors, first = [], [], dict[str, int]()
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file of moments; a manifest is one (docs/senses.md)")
    for number, row in json_lines(path):
        try:
            if isinstance(row, str):
                raise UserError(row)
            moment = _moment(path, row)
            if (earlier := first.setdefault(moment.id, number)) != number:
                raise UserError(used_twice(moment.id, earlier))
            moments.append(moment)
        except UserError as error:
            errors.append(f"{path}:{number}: {error}")
    if errors:
        raise UserErrors(errors)
    kept = [m for m in moments if not senses or set(senses) & senses_of(m)]
    if not kept:
        what = f" with {' or '.join(senses)}" if senses else ""
        raise UserError(f"{path}: no moment{what} in it")
    return kept


def senses_of(moment: Moment) -> set[str]:
    """Which of "text", "voice" and "face" there is something for."""
    seen = moment.pictures or moment.video
    return {name for name, what in (("text", moment.text), ("voice", moment.audio), ("face", seen)) if what}


def _moment(path: str | Path, row: Row) -> Moment:
    try:
        given = _CHECK.validate_python(row)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise UserError(f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg'].lower()}") from None
    name, root = given["id"], given.get("root", ".")
    if not any(given.get(key) for key in _SENSES):
        raise UserError(f"{name}: has none of {', '.join(_SENSES)}; a moment needs one")

    def place(file: str) -> str:
        return locate(path, name, root, file, os.path.realpath)

    audio, video = given.get("audio"), given.get("video")
    return Moment(
        name,
        label_of(given.get("emotion")),
        given.get("speaker"),
        given.get("language", "en"),
        (given.get("transcript") or "").strip() or None,
        place(audio) if audio else None,
        [Path(place(file)) for file in given.get("pictures", [])],
        Path(place(video)) if video else None,
    )
