"""What every sense's training begins with and ends in: checked files of moments; scores, F1 and a picture."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console

from aligncap.audio.members import is_there
from aligncap.senses.measures import TITLES, measured, table_of, write_confusion
from aligncap.senses.moments import SEVEN, Moment, read_moments, senses_of
from aligncap.senses.sense import Sense, write_scores
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import Row, write_json
from aligncap.utils.run_record import write_run_record

_SHOWN = 10  # missing files that are told; the others are counted
_log = logging.getLogger(__name__)

Parts = dict[str, list[Moment]]  # by "train", "dev", "test"


def read_parts(files: Mapping[str, str | None], sense: str) -> Parts:
    """The labelled moments of each part that have something for `sense`; how many have not is logged.

    Args:
        files: by "train", "dev", "test"; None: no such part.
        sense: "text", "voice" or "face".

    Raises:
        UserErrors: all at once: files that cannot be read or hold nothing to learn, an emotion without an
            example to learn it from, ids or speakers in two parts, sound files that are not there.
    """
    parts: Parts = {}
    errors: list[str] = []
    for name, path in files.items():
        if path is None:
            continue
        try:
            every = read_moments(path)
        except UserError as error:
            errors.append(str(error))
            continue
        parts[name] = [m for m in every if sense in senses_of(m) and m.label]
        if not parts[name]:
            errors.append(f"{path}: no moment with {sense} and one of {', '.join(SEVEN)}")
        elif left := len(every) - len(parts[name]):
            told = f"{left} of {len(every)} moments have no {sense} or no emotion; left out"
            _log.info("%s: %s", path, told)
    if errors:
        raise UserErrors(errors)
    known = Counter(m.label for m in parts["train"])
    if len(known) < 2:
        errors.append(
            f"{files['train']}: every moment is {next(iter(known))}; two emotions or more are needed"
        )
    for name in [name for name in parts if name != "train"]:
        if unknown := {str(m.label) for m in parts[name]} - {*known}:
            missing = ", ".join(sorted(unknown))
            errors.append(f"{files[name]}: {missing}: no example in {files['train']} to learn it from")
    errors += shared(parts, files)
    if sense == "voice":
        absent = [m.audio for part in parts.values() for m in part if m.audio and not is_there(m.audio)]
        errors += [f"{path}: no such file" for path in absent[:_SHOWN]]
        errors += [f"and {len(absent) - _SHOWN} more sound files are not there"] * (len(absent) > _SHOWN)
    if errors:
        raise UserErrors(errors)
    return parts


def shared(parts: Parts, files: Mapping[str, str | None]) -> list[str]:
    """A line for each two parts that share ids or speakers."""
    errors, names = [], list(parts)
    for place, one in enumerate(names):
        for two in names[place + 1 :]:
            ids = {m.id for m in parts[one]} & {m.id for m in parts[two]}
            people = {m.speaker for m in parts[one]} & {m.speaker for m in parts[two]} - {None}
            for what, both in (("id", ids), ("speaker", people)):
                if both:
                    some = ", ".join(sorted(map(str, both))[:3])
                    remedy = "split by speaker with `aligncap split`"
                    errors.append(
                        f"{files[one]} and {files[two]} share {len(both)} {what}(s): {some}; {remedy}"
                    )
    return errors


def write_outcome(
    out: Path, command: str, config: Row, files: Mapping[str, str | None], parts: Parts, sense: Sense
) -> dict[str, np.ndarray]:
    """Let the trained sense read dev and test; write and print what it makes of them.

    Writes `scores/dev.jsonl`, `scores/test.jsonl`, `metrics.json` (flat names with intervals),
    `confusion.png` (of test, else dev) and `run.json`.

    Returns:
        scores (n, 7) of each part but "train".
    """
    found, metrics, rows = {}, Row(), dict[str, Row]()
    for name in [name for name in parts if name != "train"]:
        moments = parts[name]
        scores = found[name] = sense.read(moments).scores
        write_scores(out / "scores" / f"{name}.jsonl", moments, scores)
        rows[name] = measured(moments, scores)
        note = rows[name]["units"]
        metrics |= {f"{name}_{key}": {**rows[name][key], "units": note} for key in TITLES}
        write_confusion(out / "confusion.png", moments, scores, f"{command}: {name}", "likeliest emotion")
    write_json(out / "metrics.json", metrics)
    data = [path for path in files.values() if path]
    write_run_record(out, command, config, data, seed=config.get("seed"))
    Console().print(table_of(rows, command))
    print(f"{out}: the sense, scores/, metrics.json, confusion.png")
    return found
