"""The manifest: a JSONL file, one utterance a line. Every command reads one, most write one.

The format is described in docs/manifest.md.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from stat import S_ISREG
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, FiniteFloat, NonNegativeInt, TypeAdapter, ValidationError

from aligncap.data.hashes import hashes_of
from aligncap.utils.errors import UserError, UserErrors, nearest
from aligncap.utils.io import Row, json_lines, load_data, write_jsonl


@dataclass(slots=True)
class Utterance:
    """One clip and what is known about it.

    `root` is the corpus folder (absolute, or relative to the manifest's own folder); `audio` is a path
    under it. `emotion` is a label of data/labels.yaml. `captions`, `clues`, `p_act` and `instructions` run in
    parallel: `clues[i]` are the emotion clues of `captions[i]`, `p_act[i]` the acoustic prompt made of them,
    `instructions[i]` what the caption answers ("" or no instructions: to describe how the speaker sounds).
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
    instructions: list[str] = field(default_factory=list)
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


def refuse_answers(path: str | Path, utterances: Sequence[Utterance]) -> None:
    """For what takes captions for descriptions of a voice.

    Raises:
        UserError: captions of the manifest are answers to instructions.
    """
    if asked := next((u for u in utterances if any(u.instructions)), None):
        remedy = "give the manifest that `aligncap annotate --instructions` was made from"
        raise UserError(f"{path}: {asked.id}: its captions are answers to instructions; {remedy}")


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
    return Path(_locate(manifest_path, utterance, os.path.realpath))


def _locate(manifest: str | Path, u: Utterance, real_folder: Callable[[str], str]) -> str:
    """The path of `audio_path`; `real_folder` is `os.path.realpath`, or remembers what that gave."""
    try:
        root = real_folder(os.path.join(os.path.dirname(manifest), u.root))
        folder, name = os.path.split(os.path.join(root, u.audio))
        path = os.path.join(real_folder(folder), name)
        if "\0" in name:
            raise ValueError("embedded null byte")
        if name in ("", ".", "..") or os.path.islink(path):
            path = os.path.realpath(path)
    except (ValueError, OSError) as error:
        raise UserError(f"{manifest}: {u.id}: {u.audio!r} is no usable path ({error})") from None
    if os.path.isabs(u.audio) or not path.startswith(root.rstrip(os.sep) + os.sep):
        remedy = "give a path under the root, or the folder that really holds the file as root"
        raise UserError(f"{manifest}: {u.id}: {u.audio!r} lies outside root {u.root!r}; {remedy}")
    return path


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
    real_folder = cache(os.path.realpath)
    changed = "has changed since `aligncap prepare`; prepare it again"
    for number, u in enumerate(utterances, 1):
        files.append(path := _locate(manifest, u, real_folder))
        keys.append(u.sha256 or "")
        try:
            stat = os.stat(path)
        except OSError:
            stat = None
        if stat is None or not S_ISREG(stat.st_mode):
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

    @cache
    def moved(root: str) -> str:
        return Path(root if os.path.isabs(root) else os.path.relpath(old / root, new)).as_posix()

    return [replace(u, root=moved(u.root)) for u in utterances]


# ---------------------------------------------------------------------------------------------- parsing

_FILLED = Annotated[str, Field(pattern=r"\S")]
# field: (its type, how a message says it)
_TYPES: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("id", "root", "audio", "corpus", "language", "speaker"), (_FILLED, "text, not empty")),
    **dict.fromkeys(("transcript", "emotion"), (str, "text")),
    "gender": (Literal["female", "male"], '"female" or "male"'),
    "intensity": (Literal["normal", "strong"], '"normal" or "strong"'),
    "duration": (Annotated[FiniteFloat, Field(ge=0)], "a number of seconds"),
    "sha256": (Annotated[str, Field(pattern="^[0-9a-f]{64}$")], "64 hex digits"),
    "bytes": (NonNegativeInt, "a whole number of bytes"),
    "mtime_ns": (NonNegativeInt, "a whole number of nanoseconds"),
    **dict.fromkeys(("captions", "p_act", "instructions"), (list[str], "a list of texts")),
    "clues": (list[list[str]], "a list of lists of texts"),
    "cues": (dict[str, FiniteFloat], "an object of numbers"),
    "cue_words": (dict[str, str], "an object of texts"),
    "extra": (dict[str, object], "an object"),
}
_VALIDATE = {
    name: TypeAdapter(kind, config=ConfigDict(strict=True)).validator.validate_python
    for name, (kind, _) in _TYPES.items()
}
_REQUIRED = ("id", "root", "audio", "corpus")


def parse_manifest(path: Path) -> tuple[list[tuple[int, Utterance]], list[str]]:
    """(line number, utterance) of every line that can be read, and all errors of the file.

    Raises:
        UserError: no such file, or neither utterances nor errors in it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such manifest; `aligncap prepare` writes one")
    rows: list[tuple[int, Utterance]] = []
    errors: list[str] = []
    first: dict[str, int] = {}
    shared: dict[str, str] = {}
    collecting = gc.isenabled()
    gc.disable()  # it would go through all rows again for every few new ones
    try:
        for number, row in json_lines(path, numbers_only=True):
            utterance, found = (None, [row]) if isinstance(row, str) else _utterance(row, shared)
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


def _utterance(row: Row, shared: dict[str, str]) -> tuple[Utterance | None, list[str]]:
    errors: list[str] = []
    values: Row = {}
    for key, value in row.items():
        if key not in _TYPES:
            errors.append(f'unknown key "{key}"{nearest(key, _TYPES)}; put what is your own under "extra"')
        elif value is not None:
            try:
                _VALIDATE[key](value)
                values[key] = value
            except ValidationError:
                found = f"{json.dumps(value, ensure_ascii=False):.60}"
                errors.append(f'"{key}" must be {_TYPES[key][1]}, found {found}')
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
    u.instructions = [share(text, text) for text in u.instructions]
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
    if u.instructions and len(u.instructions) != len(u.captions):
        what = f"{len(u.captions)} captions but {len(u.instructions)} instructions"
        errors.append(f"{what}; they run in parallel: run `aligncap annotate --instructions` again")
    if u.emotion and u.emotion not in (labels := load_data("labels.yaml")["labels"]):
        close = load_data("labels.yaml")["aliases"].get(u.emotion.lower())
        hint = f', nearest is "{close}"' if close else nearest(u.emotion, labels)
        errors.append(f'unknown emotion "{u.emotion}"{hint}; the labels are {", ".join(labels)}')
    return errors
