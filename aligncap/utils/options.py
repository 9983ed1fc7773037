"""Options of every command, written once: a dataclass whose fields are flags, YAML keys and help alike.

A field's annotation gives its type and its range, `option` its default and its help:

    @dataclass
    class CaptionConfig(Config):
        '''Options of `aligncap caption`.'''

        POSITIONAL: ClassVar[tuple[str, ...]] = ("files",)

        files: list[str] = option([], "Sound files or folders.")
        model: str = option(help="Model folder.")  # no default: required
        batch_size: PositiveInt = option(32, "Clips that are decoded at a time.")

The parser is transformers' HfArgumentParser, which also reads the training configurations.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    NoReturn,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml
from transformers.hf_argparser import HfArgumentParser

from aligncap.utils.errors import UserError, UserErrors, nearest
from aligncap.utils.io import Row, config_path

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; `open_low` and `open_high` leave the ends out."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        above = self.low < value if self.open_low else self.low <= value
        below = value < self.high if self.open_high else value <= self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        high = f"below {self.high:g}" if self.open_high else f"at most {self.high:g}"
        parts = [low] if self.low > -math.inf else []
        return " and ".join(parts + [high] if self.high < math.inf else parts) or "a finite number"


PositiveInt = Annotated[int, Range(1)]
NaturalInt = Annotated[int, Range(0)]
PositiveFloat = Annotated[float, Range(0, open_low=True)]
NonNegativeFloat = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]  # 0 to 1, both included
Dropout = Annotated[float, Range(0, 1, open_high=True)]  # 0 to 1, 1 left out


def option(default: Any = dataclasses.MISSING, help: str = "") -> Any:
    """A field of a configuration: its default (none: required; a list or a dict is copied) and its help."""
    metadata = {"help": help.replace("%", "%%")}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass
class Config:
    """Base of the configurations of commands. Out of range or contradictory options are refused at once.

    Raises:
        UserErrors: every number out of its range, and whatever `own_errors` of the subclass finds.
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ()  # fields given without a flag; the last may be a list
    MANY_PROCESSES: ClassVar[bool] = False  # whether `accelerate launch` may start several of the command

    def __post_init__(self) -> None:
        if errors := [*range_errors(self), *self.own_errors()]:
            raise UserErrors(errors)

    def own_errors(self) -> list[str]:
        """What a subclass finds wrong with its options, a line each."""
        return []


def changed(config: DataclassInstance, names: Iterable[str]) -> list[str]:
    """Those of `names` that are options of `config` and have another value than by default."""
    none = dataclasses.MISSING
    own = {f.name: f.default if f.default_factory is none else f.default_factory() for f in fields(config)}
    return [name for name in names if name in own and getattr(config, name) != own[name]]


def range_errors(config: DataclassInstance, inherited: Mapping[str, Range] | None = None) -> list[str]:
    """A line for each number of `config` out of its range, and each value that is none of its choices.

    Args:
        inherited: ranges of fields that a library declares without one.
    """
    errors = []
    hints = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        parts = [hint, *getattr(hint, "__args__", ())]  # of Optional[…] too
        limits = (inherited or {}).get(field.name, Range())
        for found in (x for part in parts for x in getattr(part, "__metadata__", ())):
            limits = found if isinstance(found, Range) else limits
        choices = [choice for part in parts if get_origin(part) is Literal for choice in get_args(part)]
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not limits.holds(value):
            errors.append(f"{field.name}={value}: must be {limits}")
        for one in value if isinstance(value, list) else [value]:
            if choices and one is not None and one not in choices:
                errors.append(f"{field.name}={one!r}: choose from {', '.join(map(str, choices))}")
    return errors


def parse(kind: type[C], argv: Sequence[str]) -> C:
    """A configuration from `--config FILE|NAME` and flags; flags win over the file.

    NAME is a packaged recipe such as `distill`. Flags may be written with dashes or underscores, and `none`
    stands for no value where the option allows it.

    Raises:
        UserError: a file that cannot be read, a missing option, a value of a wrong type.
        UserErrors: unknown options, each with the nearest known one; numbers out of their range.
    """
    known = {f.name for f in fields(kind) if f.init}
    positional = getattr(kind, "POSITIONAL", ())
    words, files, errors = [], [], []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--config" or word.startswith("--config="):
            if word == "--config" and not rest:
                raise UserError("--config: name a YAML file or a packaged recipe")
            files.append(word.partition("=")[2] if "=" in word else rest.pop(0))
        elif word.startswith("--"):
            name, sign, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if name not in known and name.removeprefix("no_") not in known:
                errors.append(f"unknown option --{name}{nearest(name, known)}")
            words.append(f"--{name}{sign}{value}")
        else:
            words.append(word)
    from_files: Row = {}
    for path in files:
        content = read_config(path)
        errors += [f"{path}: unknown option {k!r}{nearest(k, known)}" for k in content if k not in known]
        from_files |= content
    if errors:
        raise UserErrors(errors)
    words = [*_words_of(from_files, known), *_name_positional(words, positional, kind)]
    home = os.path.expanduser("~/")  # where no shell has read it: in files, and behind a "="
    words = [re.sub(r"^(--\w+=|[^\s=]+=|)~/", lambda found: found[1] + home, word) for word in words]
    if complete := getattr(kind, "complete_words", None):
        words = complete(words)
    given = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
    needed = [f for f in fields(kind) if f.init and f.default is f.default_factory is dataclasses.MISSING]
    if missing := [f for f in needed if f.name not in given]:
        raise UserErrors(
            [f"{_label(f.name, positional)} is missing: {f.metadata.get('help', '')}" for f in missing]
        )
    parser = _Parser(kind, allow_abbrev=False, add_help=False)  # type: ignore[arg-type]
    for action in parser._actions:
        # A text by default, such as `report_to` of transformers, has "none" for a value of its own.
        if callable(action.type) and _optional(kind, action.dest) and not isinstance(action.default, str):
            action.type = _or_none(action.type)
            if action.nargs == "+":
                action.__class__ = _OptionalList
    try:
        (config,) = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    except (ValueError, TypeError) as error:
        raise UserError(f"options: {error}") from error
    return config


class _Parser(HfArgumentParser):
    """A wrong value is one clear line, not the usage of a hundred options."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))


class _OptionalList(argparse._StoreAction):
    """A list for which the single word `none` stands for no list."""

    def __call__(self, parser: object, namespace: object, values: object, option: str | None = None) -> None:
        setattr(namespace, self.dest, None if values == [None] else values)


def _name_positional(words: list[str], positional: Sequence[str], kind: type) -> list[str]:
    """`words`, of which those that no flag takes are given the flags of the positional fields."""
    hints = get_type_hints(kind)
    hint: object = None
    given: list[str] = []
    rest: list[str] = []
    room = 0  # words that the flag before may still take; below 0: any number
    for word in words:
        if word.startswith("--"):
            hint = hints.get(word[2:].partition("=")[0])
            room = 0 if "=" in word or hint is None else -1 if "list[" in str(hint) else 1
            rest.append(word)
        elif room and (hint is not bool or word.lower() in ("true", "false")):
            rest.append(word)
            room -= 1
        else:
            given.append(word)
    named: list[str] = []
    for name in positional:
        several = str(hints[name]).startswith("list")
        own, given = (given, []) if several else (given[:1], given[1:])
        named += [f"--{name}", *own] if own else []
    if given:
        raise UserError(f"{given[0]}: what is it? Options are written --name value; see --help")
    return [*rest, *named]


def _words_of(content: Mapping[str, object], known: set[str]) -> list[str]:
    """Flags that say what a YAML mapping says."""
    words: list[str] = []
    for name, value in content.items():
        if isinstance(value, list):
            words += [f"--{name}", *(str(v) for v in value)] if value else []
        elif isinstance(value, dict):
            words += [f"--{name}", json.dumps(value)]
        elif isinstance(value, bool):
            words += [f"--{name}", str(value).lower()]
        else:
            words += [f"--{name}", "none" if value is None else str(value)]
    return words


def _optional(kind: type, name: str) -> bool:
    return type(None) in getattr(get_type_hints(kind).get(name), "__args__", ())


def _or_none(convert: Callable[[str], object]) -> Callable[[str], object]:
    def read(word: str) -> object:
        return None if word.lower() == "none" else convert(word)

    read.__name__ = getattr(convert, "__name__", "value")  # argparse names it in its message
    return read


def read_config(path: str) -> Row:
    """The mapping in a YAML file, or in the packaged recipe of that name.

    Raises:
        UserError: no such file or recipe, not YAML, or no mapping.
    """
    file = config_path(path)
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a mapping of options is needed")
    return {str(key): value for key, value in content.items()}


def named_values(words: Sequence[str], name: str) -> list[tuple[str, str]]:
    """(NAME, VALUE) of each word NAME=VALUE of the option `name`.

    Raises:
        UserErrors: every word that is not of this form.
    """
    pairs = [word.partition("=") for word in words]
    if errors := [f"--{name} {''.join(p)}: write NAME=VALUE" for p in pairs if not (p[0] and p[1] and p[2])]:
        raise UserErrors(errors)
    return [(left, right) for left, _, right in pairs]


def _label(name: str, positional: Sequence[str]) -> str:
    return name.upper() if name in positional else f"--{name}"


def _default_shown(field: dataclasses.Field[object]) -> str:
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if default is dataclasses.MISSING:
        return "required"
    if isinstance(default, list):
        return " ".join(map(str, default)) or "none"
    return "none" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


def _choices_shown(hint: object) -> str:
    choices = [c for part in (hint, *get_args(hint)) if get_origin(part) is Literal for c in get_args(part)]
    return f"; {', '.join(map(str, choices))}" if choices else ""


def usage(command: str, kind: type[DataclassInstance]) -> str:
    """Help of a command: what its configuration's docstring says, then its options with their defaults.

    Of options that a library's class brings (transformers', trl's) only those with a default of ours are
    listed.
    """
    positional = kind.POSITIONAL if hasattr(kind, "POSITIONAL") else ()
    hints = get_type_hints(kind)
    ours = [b for b in kind.__mro__ if b.__module__.split(".")[0] not in ("transformers", "trl")]
    own = {name for base in ours for name in getattr(base, "__annotations__", ())}
    shown = [f for f in fields(kind) if f.init and f.name in own and f.name not in getattr(kind, "IDLE", ())]
    doc = "\n".join(line.removeprefix("    ") for line in (kind.__doc__ or "").splitlines())
    lines = [
        f"usage: aligncap {command} {' '.join(p.upper() for p in positional)} [--option value …]".replace(
            "  ", " "
        )
    ]
    lines += [
        "",
        doc.strip(),
        "",
        "options (dashes do as well as underscores; --config FILE|NAME reads them from YAML):",
    ]
    for f in shown:
        name, text = _label(f.name, positional), f.metadata.get("help", "").replace("%%", "%")
        line = f"  {name} [{_default_shown(f)}{_choices_shown(hints[f.name])}]  {text}".rstrip()
        lines += textwrap.wrap(line, 110, subsequent_indent=" " * 8, break_on_hyphens=False)
    inherited = [b.__name__ for b in kind.__mro__ if b.__name__ in ("TrainingArguments", "DPOConfig")]
    if inherited:
        lines.append(f"and all options of {' and '.join(inherited)}")
    return "\n".join(lines)
