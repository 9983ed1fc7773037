"""The manifest: a JSONL file, one utterance a line. Every command reads one, most write one.

The format is described in docs/manifest.md.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

from pydantic import ConfigDict, Field, FiniteFloat, NonNegativeInt, TypeAdapter, ValidationError, with_config
from pydantic_core import from_json
from typing_extensions import TypedDict

from aligncap.audio.members import member_of
from aligncap.utils.errors import UserError, UserErrors, nearest
from aligncap.utils.io import BOM, Row, json_line, load_data, write_jsonl


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
    write_jsonl(path, map(filled, utterances))


def filled(u: Utterance) -> Row:
    """The row of an utterance: its fields with content."""
    row = ((name, getattr(u, name)) for name in _FIELDS)
    return {name: value for name, value in row if value not in (None, "", [], {})}


def audio_path(manifest_path: str | Path, utterance: Utterance) -> Path:
    """Absolute path of the utterance's sound file, symlinks resolved. The file need not exist.

    Raises:
        UserError: the path is absolute, or leads out of the utterance's root through `..` or a symlink.
    """
    return Path(locate(manifest_path, utterance.id, utterance.root, utterance.audio, os.path.realpath))


def locate(manifest: str | Path, name: str, root: str, audio: str, real_folder: Callable[[str], str]) -> str:
    """The path of `audio_path`; `real_folder` is `os.path.realpath`, or remembers what that gave.

    Of what lies in a tar shard it is the tar's path that is looked at (`audio/members.py`).
    """
    member = member_of(audio)
    try:
        base = real_folder(os.path.join(os.path.dirname(manifest), root))
        folder, last = os.path.split(os.path.join(base, audio if member is None else member.tar))
        path = os.path.join(real_folder(folder), last)
        if "\0" in audio:
            raise ValueError("embedded null byte")
        if last in ("", ".", "..") or os.path.islink(path):
            path = os.path.realpath(path)
    except (ValueError, OSError) as error:
        raise UserError(f"{manifest}: {name}: {audio!r} is no usable path ({error})") from None
    if os.path.isabs(audio) or not path.startswith(base.rstrip(os.sep) + os.sep):
        remedy = "give a path under the root, or the folder that really holds the file as root"
        raise UserError(f"{manifest}: {name}: {audio!r} lies outside root {root!r}; {remedy}")
    return path if member is None else str(member._replace(tar=path))


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
_NUMBER = (
    Annotated[int, Field(ge=-(2**63), lt=2**63)] | FiniteFloat
)  # 3 stays 3: what is read is written again
# field: (its type, how a message says it)
_TYPES: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("id", "root", "audio", "corpus", "language", "speaker"), (_FILLED, "text, not empty")),
    **dict.fromkeys(("transcript", "emotion"), (str, "text")),
    "gender": (Literal["female", "male"], '"female" or "male"'),
    "intensity": (Literal["normal", "strong"], '"normal" or "strong"'),
    "duration": (Annotated[_NUMBER, Field(ge=0)], "a number of seconds"),
    "sha256": (Annotated[str, Field(pattern="^[0-9a-f]{64}$")], "64 hex digits"),
    "bytes": (NonNegativeInt, "a whole number of bytes"),
    "mtime_ns": (NonNegativeInt, "a whole number of nanoseconds"),
    **dict.fromkeys(("captions", "p_act", "instructions"), (list[str], "a list of texts")),
    "clues": (list[list[str]], "a list of lists of texts"),
    "cues": (dict[str, _NUMBER], "an object of numbers"),
    "cue_words": (dict[str, str], "an object of texts"),
    "extra": (dict[str, object], "an object"),
}
_VALIDATE = {
    name: TypeAdapter(kind, config=ConfigDict(strict=True)).validator.validate_python
    for name, (kind, _) in _TYPES.items()
}
_REQUIRED = ("id", "root", "audio", "corpus")


# A whole row at once, many times faster; what it refuses, `_utterance` reads again and says why.
_ROW: Any = TypedDict(  # type: ignore[misc]  # its fields are those of the table above
    "_ROW", {name: kind if name in _REQUIRED else NotRequired[kind] for name, (kind, _) in _TYPES.items()}
)
_STRICT = ConfigDict(strict=True, extra="forbid", cache_strings="keys")
_VALIDATE_ROW = TypeAdapter(with_config(_STRICT)(_ROW)).validator.validate_json


class Line(NamedTuple):
    """A line of a manifest that is not blank, and the utterance that can be read of it."""

    number: int
    start: int  # in the file, bytes
    size: int  # bytes
    utterance: Utterance | None
    errors: list[str]


def manifest_lines(path: Path) -> Iterator[Line]:
    """Every line of a manifest that is not blank, with its errors but for ids that are used twice.

    Raises:
        UserError: no such file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such manifest; `aligncap prepare` writes one")
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip() and not (number == 1 and not line.removeprefix(BOM).strip()):
                yield Line(number, start, len(line), *_checked(line, number))
            start += len(line)


def _checked(line: bytes, number: int) -> tuple[Utterance | None, list[str]]:
    try:
        if b"NaN" not in line and b"Infinity" not in line:  # pydantic takes them, JSON does not know them
            utterance = Utterance(**_VALIDATE_ROW(line))
            return utterance, _content_errors(utterance)
    except ValueError:
        pass
    row = json_line(line, number, numbers_only=True)
    return (None, [row]) if isinstance(row, str) else _utterance(row)


def utterance_of(line: bytes) -> Utterance:
    """The utterance of a line that was found to be without errors.

    Raises:
        ValueError, TypeError: it has errors.
    """
    try:
        row = from_json(line, cache_strings="keys")
    except ValueError:  # a byte order mark; half of a surrogate pair, which Python's reader takes
        row = json.loads(line.removeprefix(BOM))
    return Utterance(**{key: value for key, value in row.items() if value is not None})


def parse_manifest(path: Path) -> tuple[list[tuple[int, Utterance]], list[str]]:
    """(line number, utterance) of every line that can be read, and all errors of the file.

    Raises:
        UserError: no such file, or neither utterances nor errors in it.
    """
    rows: list[tuple[int, Utterance]] = []
    errors: list[str] = []
    first: dict[str, int] = {}
    shared: dict[str, str] = {}
    collecting = gc.isenabled()
    gc.disable()  # it would go through all rows again for every few new ones
    try:
        for number, _, _, utterance, found in manifest_lines(path):
            if utterance is not None:
                if (earlier := first.setdefault(utterance.id, number)) != number:
                    found.append(used_twice(utterance.id, earlier))
                _share_texts(utterance, shared)
                rows.append((number, utterance))
            errors += [f"{path}:{number}: {error}" for error in found]
    finally:
        if collecting:
            gc.enable()
    if not rows and not errors:
        raise no_utterance(path)
    return rows, errors


def used_twice(name: str, earlier: int) -> str:
    """What is wrong with an id that an earlier line has."""
    return f'id "{name}" is used on line {earlier}; ids must differ'


def no_utterance(path: Path) -> UserError:
    """The error of an empty manifest."""
    return UserError(f"{path}: holds no utterance; write it again with `aligncap prepare`")


def _utterance(row: Row) -> tuple[Utterance | None, list[str]]:
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
