"""The manifest: a JSONL file, one utterance a line. Every command reads one, most write one.

The format is described in docs/manifest.md.
"""

from __future__ import annotations

import gc
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from stat import S_ISLNK, S_ISREG
from typing import Any

from aligncap.data.hashes import hashes_of
from aligncap.utils.errors import UserError, UserErrors, nearest
from aligncap.utils.io import Row, load_data, write_jsonl


@dataclass(slots=True)
class Utterance:
    """One clip and what is known about it.

    `root` is the corpus folder (absolute, or relative to the manifest's own folder); `audio` is a path
    under it. `emotion` is a label of data/labels.yaml. `captions`, `clues` and `p_act` run in parallel:
    `clues[i]` are the emotion clues of `captions[i]`, `p_act[i]` the acoustic prompt made of them.
    `cues` are values measured from the samples (see aligncap/audio/cues.py), `cue_words` their wording.
    `bytes` and `mtime_ns` are the file's size and time of change when `sha256` was taken.
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
    bytes: int | None = None
    mtime_ns: int | None = None  # nanoseconds since 1970
    captions: list[str] = field(default_factory=list)
    clues: list[list[str]] = field(default_factory=list)
    p_act: list[str] = field(default_factory=list)
    cues: dict[str, float] = field(default_factory=dict)
    cue_words: dict[str, str] = field(default_factory=dict)
    extra: Row = field(default_factory=dict)  # whatever else the corpus says


_FIELDS = tuple(f.name for f in fields(Utterance))


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
    rows = ({name: getattr(u, name) for name in _FIELDS} for u in utterances)
    write_jsonl(path, ({k: v for k, v in row.items() if v not in (None, "", [], {})} for row in rows))


def audio_path(manifest_path: str | Path, utterance: Utterance) -> Path:
    """Absolute path of the utterance's sound file, symlinks resolved. The file need not exist.

    Raises:
        UserError: the path is absolute, or leads out of the utterance's root through `..` or a symlink.
    """
    return Path(_locate(manifest_path, utterance, {})[0])


def _locate(manifest: str | Path, u: Utterance, folders: dict[str, str]) -> tuple[str, os.stat_result | None]:
    """The path of `audio_path`, and what `os.stat` says of it; `folders` keeps where folders really are."""

    def real_folder(name: str) -> str:
        if name not in folders:
            folders[name] = os.path.realpath(name)
        return folders[name]

    try:
        root = real_folder(os.path.join(os.path.dirname(manifest), u.root))
        folder, name = os.path.split(os.path.join(root, u.audio))
        path = os.path.join(real_folder(folder), name)
        stat = _lstat(path)
        if name in ("", ".", "..") or stat is not None and S_ISLNK(stat.st_mode):
            path = os.path.realpath(path)
            stat = _lstat(path)
    except (ValueError, OSError) as error:
        raise UserError(f"{manifest}: {u.id}: {u.audio!r} is no usable path ({error})") from None
    if os.path.isabs(u.audio) or not path.startswith(root.rstrip(os.sep) + os.sep):
        remedy = "give a path under the root, or the folder that really holds the file as root"
        raise UserError(f"{manifest}: {u.id}: {u.audio!r} lies outside root {u.root!r}; {remedy}")
    return path, stat if stat is not None and S_ISREG(stat.st_mode) else None


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def audio_files(manifest: str | Path, utterances: list[Utterance]) -> tuple[list[str], dict[str, Path]]:
    """Feature key of each utterance, its file's SHA-256, and the file behind each key.

    A file with the size and time of change that `aligncap prepare` noted is taken to be the one it hashed.
    Others, such as those of a copied corpus, are hashed and compared, once (see `hashes_of`). Whether files
    changed without a trace is for `aligncap validate` to find.

    Raises:
        UserErrors: files that are missing or have changed since `prepare`.
    """
    keys: list[str] = []
    files: list[str] = []
    doubtful: dict[str, os.stat_result] = {}
    errors: list[tuple[int, str]] = []
    folders: dict[str, str] = {}
    changed = "has changed since `aligncap prepare`; prepare it again"
    for number, u in enumerate(utterances, 1):
        path, stat = _locate(manifest, u, folders)
        files.append(path)
        keys.append(u.sha256 or "")
        if stat is None:
            errors.append((number, f"{path}: no such file"))
        elif u.bytes not in (None, stat.st_size):
            errors.append((number, f"{path}: {changed}"))
        elif not (u.sha256 and u.bytes is not None and u.mtime_ns == stat.st_mtime_ns):
            doubtful[path] = stat
    hashes = hashes_of(manifest, doubtful) if doubtful else {}
    for index, (path, key) in enumerate(zip(files, keys, strict=True)):
        keys[index] = hashes.get(path, key)
        if key and keys[index] != key:
            errors.append((index + 1, f"{path}: {changed}"))
    if errors:
        raise UserErrors([f"{manifest}:{number}: {what}" for number, what in sorted(errors)])
    return keys, {key: Path(path) for key, path in zip(keys, files, strict=True)}


def rebase(utterances: Iterable[Utterance], source: str | Path, target: str | Path) -> list[Utterance]:
    """Utterances of the manifest `source` for one at `target`: relative roots still lead to the audio."""
    old, new = Path(source).resolve().parent, Path(target).resolve().parent
    if old == new:
        return list(utterances)
    roots: dict[str, str] = {}

    def moved(root: str) -> str:
        if root not in roots:
            roots[root] = root if Path(root).is_absolute() else os.path.relpath(old / root, new)
        return Path(roots[root]).as_posix()

    return [replace(u, root=moved(u.root)) for u in utterances]


# ---------------------------------------------------------------------------------------------- parsing


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _text(value: object) -> bool:
    return isinstance(value, str)


def _filled(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


Test = Callable[[Any], bool]
# field: (test, what is wanted)
_TYPES: dict[str, tuple[Test, str]] = {
    **dict.fromkeys(("id", "root", "audio", "corpus", "language", "speaker"), (_filled, "text, not empty")),
    **dict.fromkeys(("transcript", "emotion"), (_text, "text")),
    "gender": (lambda v: v in ("female", "male"), '"female" or "male"'),
    "intensity": (lambda v: v in ("normal", "strong"), '"normal" or "strong"'),
    "duration": (lambda v: _number(v) and v >= 0, "a number of seconds"),
    "sha256": (lambda v: _text(v) and re.fullmatch("[0-9a-f]{64}", v) is not None, "64 hex digits"),
    "bytes": (_whole, "a whole number of bytes"),
    "mtime_ns": (_whole, "a whole number of nanoseconds"),
    **dict.fromkeys(("captions", "p_act"), (_texts, "a list of texts")),
    "clues": (lambda v: isinstance(v, list) and all(map(_texts, v)), "a list of lists of texts"),
    "cues": (lambda v: isinstance(v, dict) and all(map(_number, v.values())), "an object of numbers"),
    "cue_words": (lambda v: isinstance(v, dict) and all(map(_text, v.values())), "an object of texts"),
    "extra": (lambda v: isinstance(v, dict), "an object"),
}
_REQUIRED = ("id", "root", "audio", "corpus")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode


def parse_manifest(path: Path) -> tuple[list[tuple[int, Utterance]], list[str]]:
    """(line number, utterance) of every line that can be read, and all errors of the file."""
    if not path.is_file():
        raise UserError(f"{path}: no such manifest; `aligncap prepare` writes one")
    rows: list[tuple[int, Utterance]] = []
    errors: list[str] = []
    first: dict[str, int] = {}
    shared: dict[str, str] = {}
    collecting = gc.isenabled()
    gc.disable()  # it would go through all rows again for every few new ones
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.isspace():
                    continue
                utterance, found = _parse_line(line, shared)
                if utterance is not None:
                    if (earlier := first.setdefault(utterance.id, number)) != number:
                        found.append(f'id "{utterance.id}" is used on line {earlier}; ids must differ')
                    rows.append((number, utterance))
                errors += [f"{path}:{number}: {error}" for error in found]
    finally:
        if collecting:
            gc.enable()
    if not rows and not errors:
        raise UserError(f"{path}: holds no utterance; write it again with `aligncap prepare`")
    return rows, errors


def _parse_line(line: bytes, shared: dict[str, str]) -> tuple[Utterance | None, list[str]]:
    try:
        row = _decode(line.decode("utf-8"))
    except UnicodeDecodeError:
        return None, ["not UTF-8 text; save the file as UTF-8"]
    except json.JSONDecodeError as error:
        return None, [f"broken JSON ({error.msg} at column {error.colno}); mend or delete the line"]
    except (ValueError, RecursionError) as error:
        return None, [f"broken JSON ({error}); mend or delete the line"]
    if not isinstance(row, dict):
        return None, [f"a JSON object is needed, found {type(row).__name__}"]
    errors: list[str] = []
    values: Row = {}
    for key, value in row.items():
        if key not in _TYPES:
            errors.append(f'unknown key "{key}"{nearest(key, _TYPES)}; put what is your own under "extra"')
            continue
        test, wanted = _TYPES[key]
        if value is not None and test(value):
            values[key] = value
        elif value is not None:
            errors.append(f'"{key}" must be {wanted}, found {json.dumps(value, ensure_ascii=False):.60}')
    errors += [f'"{key}" is missing; every utterance needs it' for key in _REQUIRED if row.get(key) is None]
    if any(key not in values for key in _REQUIRED):
        return None, errors
    utterance = Utterance(**values)
    _share_texts(utterance, shared)
    return utterance, errors + _content_errors(utterance)


def _share_texts(u: Utterance, shared: dict[str, str]) -> None:
    """Let equal texts of different utterances be one object: half the memory of a large manifest."""
    share = shared.setdefault
    for name in ("root", "corpus", "language", "speaker", "gender", "transcript", "emotion", "intensity"):
        if (value := getattr(u, name)) is not None:
            setattr(u, name, share(value, value))
    u.clues = [[share(word, word) for word in words] for words in u.clues]
    u.p_act = [share(text, text) for text in u.p_act]
    u.captions = [share(text, text) for text in u.captions]
    u.cues = {sys.intern(key): value for key, value in u.cues.items()}
    u.cue_words = {sys.intern(key): share(word, word) for key, word in u.cue_words.items()}
    u.extra = {sys.intern(key): value for key, value in u.extra.items()}


def _content_errors(u: Utterance) -> list[str]:
    empty = [i for i, caption in enumerate(u.captions, 1) if not caption.strip()]
    errors = [f"caption {i} is empty; write it or delete it" for i in empty]
    for name, parallel in (("clues", u.clues), ("p_act", u.p_act)):
        if parallel and len(parallel) != len(u.captions):
            what = f"{len(u.captions)} captions but {len(parallel)} {name}"
            errors.append(f"{what}; they run in parallel: run `aligncap clues` again")
    if u.emotion and u.emotion not in (labels := load_data("labels.yaml")["labels"]):
        close = load_data("labels.yaml")["aliases"].get(u.emotion.lower())
        hint = f', nearest is "{close}"' if close else nearest(u.emotion, labels)
        errors.append(f'unknown emotion "{u.emotion}"{hint}; the labels are {", ".join(labels)}')
    return errors
