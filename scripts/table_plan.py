"""Plan of a table of reproduce.py: which steps its systems take, in which order, and what of them stands.

A step is one `aligncap` command with something that it makes. Its record under done/ holds the words, hashes
of the files they name and when the steps before it ended. A step is done when the record agrees and what it
makes stands.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from table_systems import fill

from aligncap.data.manifest import read_manifest
from aligncap.utils.errors import UserError
from aligncap.utils.io import file_sha256

ONCE = "once"


@dataclass(frozen=True)
class Step:
    """One command; `after` are the ids of steps that must be done before it."""

    id: str
    system: str
    seed: str
    words: tuple[str, ...]
    makes: Path
    after: tuple[str, ...]

    @property
    def owns(self) -> Path:
        """What to delete for it to start over: a training's whole folder, else what it makes."""
        for option in ("--output_dir", "--out"):
            if option in self.words:
                return Path(self.words[self.words.index(option) + 1])
        return self.makes


def probe_path(out: Path, table: str) -> Path:
    """Where the linear probe of a table lies."""
    return out / "probe" / f"{table}.json"


def subset_path(out: Path, name: str) -> Path:
    """Manifest of a subset, named TEST-SUBSET, which the linear probe is scored on."""
    return out / "probe" / f"{name}.jsonl"


def probe_step(table: str, tests: Sequence[str], subsets: Sequence[str], run: Path, out: Path) -> Step:
    """The linear probe on the test sets of a table and on their subsets."""
    manifests = [run / "data" / f"{test}.jsonl" for test in tests] + [
        subset_path(out, name) for name in subsets
    ]
    makes = probe_path(out, table)
    words = [
        "probe",
        "--train",
        run / "data/train.jsonl",
        "--dev",
        run / "data/dev.jsonl",
        "--test",
        *manifests,
    ]
    return Step(f"probe-{table}", "linear probe", ONCE, tuple(map(str, [*words, "--out", makes])), makes, ())


@dataclass
class Plan:
    """Steps in order, and the caption file of each (test set, system, seed)."""

    out: Path
    steps: dict[str, Step] = field(default_factory=dict)
    captions: dict[tuple[str, str, str], Path] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)  # system: why it cannot be had


def make_plan(
    systems: Mapping[str, Mapping[str, Any]],
    wanted: Sequence[str],
    seeds: Sequence[int],
    tests: Sequence[str],
    run: Path,
    out: Path,
    at_hand: Callable[[str], str | None],
) -> Plan:
    """Every step that the wanted systems take, with those they need, one seed after the other.

    `at_hand` says of a model's name why its weights cannot be had, or None.

    Raises:
        UserError: a placeholder is unknown or systems need each other.
    """
    plan = Plan(out)
    names = [(name, seed) for seed in seeds for name in wanted]
    for name, number in names:
        row = systems[name]
        if "seeds" in row and number not in row["seeds"] and not row.get("once"):
            continue
        weights = row.get("weights")
        reason = at_hand(fill(weights, row, {})) if weights else None
        if reason:
            plan.absent[name] = reason
            continue
        seed = ONCE if row.get("once") else str(number)
        last = _add(plan, systems, name, str(number), run, ())
        if row.get("hidden"):
            continue
        for test in tests:
            places = _places(plan, systems, name, str(number), run) | {"set": test}
            if "captions" in row:
                plan.captions[test, name, seed] = Path(fill(row["captions"], row, places))
                continue
            made = out / "captions" / test / f"{name}-{seed}.jsonl"
            plan.captions[test, name, seed] = made
            model = fill(row["model"], row, places)
            words = (
                *("caption", "--model", model, "--manifest", str(run / "data" / f"{test}.jsonl")),
                *("--dtype", "auto", "--out", str(made)),
            )
            identity = f"{name}-{seed}.caption-{test}"
            plan.steps[identity] = Step(identity, name, seed, words, made, last)
    return plan


def _places(
    plan: Plan, systems: Mapping[str, Mapping[str, Any]], name: str, seed: str, run: Path
) -> dict[str, str]:
    def folder(system: str) -> str:
        return str(plan.out / "systems" / f"{system}-{ONCE if systems[system].get('once') else seed}")

    data = {part: str(run / "data" / f"{part}.jsonl") for part in ("train", "dev", "test")}
    others = {f"system:{need}": folder(need) for need in systems[name].get("needs", [])}
    return {"run": str(run), "seed": seed, "at": folder(name), **data, **others}


def _add(
    plan: Plan,
    systems: Mapping[str, Mapping[str, Any]],
    name: str,
    seed: str,
    run: Path,
    asked: tuple[str, ...],
) -> tuple[str, ...]:
    """Add the steps of a system and of what it needs; the ids that what follows must wait for."""
    if name in asked:
        raise UserError(f"systems need each other: {' → '.join((*asked, name))}")
    row = systems[name]
    after = tuple(
        i for need in row.get("needs", []) for i in _add(plan, systems, need, seed, run, (*asked, name))
    )
    places = _places(plan, systems, name, seed, run)
    shown = ONCE if row.get("once") else seed
    for number, step in enumerate(row["steps"], 1):
        identity = f"{name}-{shown}.{number}"
        if identity not in plan.steps:
            words = tuple(fill(word, row, places) for word in step["run"])
            makes = Path(fill(step["makes"], row, places))
            plan.steps[identity] = Step(identity, name, shown, words, makes, after)
        after = (identity,)
    return after


def _hash(path: Path) -> str:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return " ".join(_hash_of(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


@cache
def _hash_of(path: Path, size: int, changed: int) -> str:
    if path.suffix == ".yaml":  # remarks in a recipe make no difference
        return json.dumps(yaml.safe_load(path.read_text(encoding="utf-8")), sort_keys=True)
    return file_sha256(path)


def inputs(step: Step, out: Path) -> dict[str, str]:
    """Hash of each file and model folder outside `out` that the words name.

    Of a manifest to caption only that counts which captions are made from, not its references.
    """
    found = {}
    for before, word in zip(("", *step.words), step.words, strict=False):
        path = Path(word)
        if not (os.sep in word or "." in word) or not path.exists():
            continue
        if before == "--manifest" and step.words[0] == "caption":
            heard = [[u.id, u.sha256, u.speaker, u.cue_words] for u in read_manifest(path)]
            found[word] = hashlib.sha256(json.dumps(heard).encode()).hexdigest()
        elif not path.is_relative_to(out) or path.is_relative_to(out / "probe"):
            found[word] = _hash(path)
    return found


def record_path(step: Step, out: Path) -> Path:
    """Where a step's record lies."""
    return out / "done" / f"{step.id}.json"


def record_of(step: Step, out: Path) -> dict[str, Any]:
    """What stands of a step's record; empty where there is none."""
    try:
        content: dict[str, Any] = json.loads(record_path(step, out).read_text(encoding="utf-8"))
        return content
    except (OSError, ValueError):
        return {}


def state(step: Step, plan: Plan, known: dict[str, str] | None = None) -> tuple[str, str]:
    """ "done", "to do", "begun" (goes on), "changed" or "stale", and why.

    "changed": it was begun or done with other words or inputs. "stale": what it was made from was made anew.
    """
    record = record_of(step, plan.out)
    if not record:
        return "to do", ""
    if record["words"] != list(step.words):
        was = [w for w in record["words"] if w not in step.words]
        now = [w for w in step.words if w not in record["words"]]
        return "changed", f"words were {shlex.join(was) or 'fewer'}, are {shlex.join(now) or 'fewer'}"
    seen = inputs(step, plan.out)
    other = [name for name, value in record["inputs"].items() if seen.get(name) != value]
    if other:
        return "changed", f"another content now: {', '.join(other)}"
    before = {i: record_of(plan.steps[i], plan.out).get("finished") for i in step.after}
    known = known or {}
    anew = [i for i in step.after if record["after"].get(i) != before[i] or known.get(i, "done") != "done"]
    if anew:
        return "stale", f"made before {', '.join(anew)}"
    if not record.get("finished"):
        return "begun", ""
    return ("done", "") if step.makes.exists() else ("to do", "what it made is gone")


def states(plan: Plan) -> dict[str, tuple[str, str]]:
    """State of every step, in order."""
    found: dict[str, tuple[str, str]] = {}
    for step in plan.steps.values():
        found[step.id] = state(step, plan, {name: what for name, (what, _) in found.items()})
    return found


def clear(steps: Iterable[Step], out: Path, take: Callable[[Step, Path], int | None]) -> None:
    """Delete what steps made, and their records; only what lies under `out`, and never of a running step."""
    for step in steps:
        lock = take(step, out)
        if lock is None:
            raise UserError(f"{step.id}: another process is at it; stop that one first")
        os.close(lock)
        if not step.owns.resolve().is_relative_to(out.resolve()):
            raise UserError(f"{step.owns}: lies outside {out}; delete it yourself")
        if step.owns.is_dir():
            shutil.rmtree(step.owns)
        else:
            step.owns.unlink(missing_ok=True)
        record_path(step, out).unlink(missing_ok=True)
