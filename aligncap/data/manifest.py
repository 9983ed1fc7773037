"""The manifest: a JSONL file, one utterance a line. Every verb reads one, most write one.

The format is described for people in data/manifest.md.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from aligncap.utils.errors import UserError, UserErrors, nearest
from aligncap.utils.io import file_sha256, load_data, write_jsonl


@dataclass(slots=True)
class Utterance:
    """One clip and what is known about it.

    `root` is the corpus folder (absolute, or relative to the manifest's own folder); `audio` is a path
    under it. `emotion` is a label of data/labels.yaml. `captions`, `clues` and `p_act` run in parallel:
    `clues[i]` are the emotion clues of `captions[i]`, `p_act[i]` the acoustic prompt made of them.
    `cues` are values measured from the samples (see aligncap/audio/cues.py), `cue_words` their wording.
    """

    id: str
    root: str
    audio: str
    corpus: str
    language: str = "en"
    speaker: str | None = None
    gender: str | None = None  # "female" or "male"
    transcript: str | None = None
    emotion: str | None = None
    intensity: str | None = None  # "normal" or "strong"
    duration: float | None = None  # seconds
    sha256: str | None = None  # of the file's bytes
    captions: list[str] = field(default_factory=list)
    clues: list[list[str]] = field(default_factory=list)
    p_act: list[str] = field(default_factory=list)
    cues: dict[str, float] = field(default_factory=dict)
    cue_words: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)  # whatever else the corpus says


def read_manifest(path: str | Path) -> list[Utterance]:
    """Utterances of a manifest, in its order.

    Raises:
        UserError: no such file, or no utterance in it.
        UserErrors: every line that is broken, of wrong types, with unknown keys, an empty caption, captions
            and clues that do not run in parallel, an unknown emotion label, or an id used before.
    """
    utterances, errors = parse_manifest(Path(path))
    if errors:
        raise UserErrors(errors)
    return [utterance for _, utterance in utterances]


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write a manifest atomically; fields without content are left out.

    Raises:
        UserError: the file cannot be written; its former content stays.
    """
    rows = (asdict(u) for u in utterances)
    write_jsonl(path, ({k: v for k, v in row.items() if v not in (None, "", [], {})} for row in rows))


def audio_path(manifest_path: str | Path, utterance: Utterance) -> Path:
    """Absolute path of the utterance's sound file, symlinks resolved. The file need not exist.

    Raises:
        UserError: the path is absolute, or leads out of the utterance's root through `..` or a symlink.
    """
    try:
        root = (Path(manifest_path).parent / utterance.root).resolve()
        path = (root / utterance.audio).resolve()
        inside = not Path(utterance.audio).is_absolute() and path != root and path.is_relative_to(root)
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(
            f"{manifest_path}: {utterance.id}: {utterance.audio!r} is no usable path ({error})"
        ) from None
    if not inside:
        raise UserError(
            f"{manifest_path}: {utterance.id}: {utterance.audio!r} lies outside root {utterance.root!r}; "
            "give a path under the root, or the folder that really holds the file as root"
        )
    return path


def audio_files(manifest: str, utterances: list[Utterance]) -> tuple[list[str], dict[str, Path]]:
    """Feature key of each utterance, and the file behind each key.

    Raises:
        UserErrors: files that are missing or have changed since `prepare`.
    """
    keys, paths, errors = [], {}, []
    for number, u in enumerate(utterances, 1):
        path = audio_path(Path(manifest), u)
        if not path.is_file():
            errors.append(f"{manifest}:{number}: {path}: no such file")
            continue
        key = file_sha256(path)
        if u.sha256 and u.sha256 != key:
            errors.append(
                f"{manifest}:{number}: {path}: has changed since `aligncap prepare`; prepare it again"
            )
        keys.append(key)
        paths[key] = path
    if errors:
        raise UserErrors(errors)
    return keys, paths


def rebase(utterances: Iterable[Utterance], source: str | Path, target: str | Path) -> list[Utterance]:
    """Utterances of the manifest `source`, for a manifest at `target`.

    Relative roots still lead to the audio.
    """
    old, new = Path(source).resolve().parent, Path(target).resolve().parent
    moved = []
    for u in utterances:
        if old != new and not Path(u.root).is_absolute():
            u = replace(u, root=Path(os.path.relpath(old / u.root, new)).as_posix())
        moved.append(u)
    return moved


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _list_of(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(test(v) for v in value)


def _dict_of(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(test(v) for v in value.values())


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _filled(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


# field: (test, what is wanted)
_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("id", "root", "audio", "corpus", "language", "speaker"), (_filled, "text, not empty")),
    **dict.fromkeys(("transcript", "emotion"), (_text, "text")),
    "gender": (lambda v: v in ("female", "male"), '"female" or "male"'),
    "intensity": (lambda v: v in ("normal", "strong"), '"normal" or "strong"'),
    "duration": (lambda v: _number(v) and v >= 0, "a number of seconds"),
    "sha256": (lambda v: _text(v) and re.fullmatch("[0-9a-f]{64}", v) is not None, "64 hex digits"),
    **dict.fromkeys(("captions", "p_act"), (_list_of(_text), "a list of texts")),
    "clues": (_list_of(_list_of(_text)), "a list of lists of texts"),
    "cues": (_dict_of(_number), "an object of numbers"),
    "cue_words": (_dict_of(_text), "an object of texts"),
    "extra": (_dict_of(lambda v: True), "an object"),
}
_REQUIRED = ("id", "root", "audio", "corpus")
_OPTIONAL = tuple(f.name for f in fields(Utterance) if f.name not in (*_REQUIRED, "language"))


def parse_manifest(path: Path) -> tuple[list[tuple[int, Utterance]], list[str]]:
    """(line number, utterance) of every line that can be read, and all errors of the file."""
    if not path.is_file():
        raise UserError(f"{path}: no such manifest; `aligncap prepare` writes one")
    rows: list[tuple[int, Utterance]] = []
    errors: list[str] = []
    first: dict[str, int] = {}
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        utterance, found = _parse_line(line)
        if utterance is not None:
            if utterance.id in first:
                found.append(f'id "{utterance.id}" is used on line {first[utterance.id]}; ids must differ')
            first.setdefault(utterance.id, number)
            rows.append((number, utterance))
        errors += [f"{path}:{number}: {error}" for error in found]
    if not rows and not errors:
        raise UserError(f"{path}: holds no utterance; write it again with `aligncap prepare`")
    return rows, errors


def _parse_line(line: bytes) -> tuple[Utterance | None, list[str]]:
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        return None, ["not UTF-8 text; save the file as UTF-8"]
    except json.JSONDecodeError as error:
        return None, [f"broken JSON ({error.msg} at column {error.colno}); mend or delete the line"]
    except (ValueError, RecursionError) as error:
        return None, [f"broken JSON ({error}); mend or delete the line"]
    if not isinstance(row, dict):
        return None, [f"a JSON object is needed, found {type(row).__name__}"]
    errors = [
        f'unknown key "{key}"{nearest(key, _TYPES)}; put what is your own under "extra"'
        for key in row
        if key not in _TYPES
    ]
    errors += [f'"{key}" is missing; every utterance needs it' for key in _REQUIRED if row.get(key) is None]
    values: dict[str, Any] = {}
    for key, (test, wanted) in _TYPES.items():
        if row.get(key) is None:
            continue
        if test(row[key]):
            values[key] = row[key]
        else:
            errors.append(f'"{key}" must be {wanted}, found {json.dumps(row[key], ensure_ascii=False):.60}')
    if any(key not in values for key in _REQUIRED):
        return None, errors
    utterance = Utterance(**values)
    return utterance, errors + _content_errors(utterance)


def _content_errors(u: Utterance) -> list[str]:
    errors = [
        f"caption {i} is empty; write it or delete it" for i, c in enumerate(u.captions, 1) if not c.strip()
    ]
    for name, parallel in (("clues", u.clues), ("p_act", u.p_act)):
        if parallel and len(parallel) != len(u.captions):
            errors.append(
                f"{len(u.captions)} captions but {len(parallel)} {name}; they run in parallel: "
                "run `aligncap clues` again"
            )
    labels = load_data("labels.yaml")["labels"]
    if u.emotion and u.emotion not in labels:
        close = load_data("labels.yaml")["aliases"].get(u.emotion.lower())
        hint = f', nearest is "{close}"' if close else nearest(u.emotion, labels)
        errors.append(f'unknown emotion "{u.emotion}"{hint}; the labels are {", ".join(labels)}')
    return errors


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
