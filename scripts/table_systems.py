"""Systems of the tables of reproduce.py, read from configs/tables/systems.yaml."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from aligncap.utils.errors import UserError, UserErrors, nearest


def read_yaml(path: Path) -> dict[str, Any]:
    """Content of a YAML file that must be a mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: names and values are needed at the top")
    return content


KEYS = {"name", "label", "once", "hidden", "seeds", "needs", "steps", "model", "captions", "like", "more"} | {
    "values",
    "weights",
}


def read_systems(path: Path) -> dict[str, dict[str, Any]]:
    """Systems by name, `like` and `more` worked in.

    `like: NAME` takes over what this one does not say; `more` are words appended to the last training.

    Raises:
        UserErrors: unknown keys, names said twice or unknown.
    """
    rows = read_yaml(path).get("systems") or []
    given: dict[str, dict[str, Any]] = {}
    errors = []
    for row in rows:
        name = str(row.get("name"))
        if name in given:
            errors.append(f"{path}: system {name} stands twice")
        for key in set(row) - KEYS:
            errors.append(f"{path}: system {name}: unknown key {key!r}{nearest(key, KEYS)}")
        given[name] = row
    done: dict[str, dict[str, Any]] = {}

    def work_in(name: str, asked: tuple[str, ...] = ()) -> dict[str, Any]:
        if name in done:
            return done[name]
        row = dict(given[name])
        like = row.pop("like", None)
        if like is not None:
            if like not in given or like in (*asked, name):
                raise UserError(f"{path}: system {name}: like {like}: no such system{nearest(like, given)}")
            base = {
                k: v
                for k, v in work_in(like, (*asked, name)).items()
                if k not in ("hidden", "label", "seeds")
            }
            needs = [*base.get("needs", []), *row.get("needs", [])]
            row = {**base, **row, "needs": list(dict.fromkeys(needs))}
        more = _words(row.pop("more", []))
        steps = [{"makes": step["makes"], "run": _words(step["run"])} for step in row.get("steps", [])]
        if more:
            trained = [step for step in steps if step["run"][0] == "train"]
            if not trained:
                raise UserError(f"{path}: system {name}: more: there is no training to add to")
            trained[-1]["run"] = [*trained[-1]["run"], *more]
        row["steps"] = steps
        done[name] = row
        return row

    for name in given:
        work_in(name)
    for name, row in done.items():
        errors += [
            f"{path}: system {name}: needs {need}: no such system{nearest(need, done)}"
            for need in row.get("needs", [])
            if need not in done
        ]
    if errors:
        raise UserErrors(errors)
    return done


def _words(given: str | Sequence[Any]) -> list[str]:
    if isinstance(given, str):
        return shlex.split(given)
    return [str(word).lower() if isinstance(word, bool) else str(word) for word in given]


def fill(text: str, row: Mapping[str, Any], places: Mapping[str, str]) -> str:
    """Text with {placeholders} replaced; a system's own `values` are placeholders too."""
    known = {**{k: str(v) for k, v in row.get("values", {}).items()}, **places}
    for name, value in known.items():
        text = text.replace(f"{{{name}}}", value)
    if "{" in text:
        raise UserError(
            f"system {row.get('name')}: {text}: unknown placeholder; known are "
            + ", ".join(f"{{{name}}}" for name in known)
            + " ({system:NAME} of what it needs)"
        )
    return text
